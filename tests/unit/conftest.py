"""A tiny random language model: real classes, real tokenizer, seconds on a CPU."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from helpers.models import LanguageModel, load_lm


@pytest.fixture(scope="session")
def tiny_lm_folder(tmp_path_factory):
    """Two layers of width 32 with random weights, saved as a local folder the way a user's model would be."""
    folder = tmp_path_factory.mktemp("tiny-lm")
    tokenizer = load_lm("smollm2-135m-instruct").tokenizer
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_lm(tiny_lm_folder) -> LanguageModel:
    """The tiny model, loaded."""
    return load_lm(str(tiny_lm_folder))
