"""A tiny random language model: real classes, real tokenizer, seconds on a CPU."""

import pytest
from tiny import save_tiny

from helpers.models import LanguageModel, load_lm


@pytest.fixture(scope="session")
def tiny_lm_folder(tmp_path_factory):
    """Two layers of width 32 with random weights, saved as a local folder the way a user's model would be."""
    folder = tmp_path_factory.mktemp("tiny-lm")
    save_tiny(folder, load_lm("smollm2-135m-instruct").tokenizer)
    return folder


@pytest.fixture(scope="session")
def tiny_lm(tiny_lm_folder) -> LanguageModel:
    """The tiny model, loaded."""
    return load_lm(str(tiny_lm_folder))
