"""DICE: both pages as a whole on a tiny model, and their gates.

`execute` and `sabotage` come from the project's tests.
"""

import json
import shutil
from pathlib import Path

import pytest
from lift import sabotage
from tiny import save_tiny

from helpers.models import load_lm
from helpers.paths import data_dir
from helpers.record import Record
from helpers.verify import load_expected

FOLDER = Path(__file__).resolve().parents[1]
TRAINING = ["dice/SVAMP.json", "dice/dice_gsm8k_rephrased1.csv", "safety_neurons/self_instruct_seed_tasks.jsonl"]
TRAINING += ["safety_neurons/self_instruct_user_oriented.jsonl"]
calibrated = pytest.mark.skipif(
    load_expected(FOLDER, "published_numbers") is None, reason="the page was never calibrated"
)


@pytest.fixture
def chapter_copy(tmp_path) -> Path:
    """The chapter in a folder of this test, without its tests."""
    return shutil.copytree(FOLDER, tmp_path / "notebooks" / "dice", ignore=shutil.ignore_patterns("tests"))


@pytest.fixture
def tiny_folder(tmp_path) -> str:
    tokenizer = load_lm("smollm2-135m-instruct").tokenizer
    return save_tiny(tmp_path / "tiny", tokenizer, initializer_range=0.3, num_hidden_layers=4)


@pytest.mark.slow
@pytest.mark.skipif(not all((data_dir() / name).is_file() for name in TRAINING), reason="public files are not cached")
def test_main_page_trains_and_judges_on_a_tiny_model(chapter_copy, tiny_folder, execute):
    sizes = {"n_models": 3, "n_questions": 4, "n_locating": 2, "epochs": 2}
    parameters = {"model": tiny_folder, "retrain": True} | sizes
    environment = {"REPRODUCTIONS_DATA": str(data_dir())}
    done = execute(chapter_copy, preset="public", parameters=parameters, environment=environment)
    assert done.code == 0, done.err
    record = Record.read(done.record)
    assert {"D1", "D2", "D2n", "D3", "D3x", "D3t", "D3b", "H", "D4", "D4f"} <= record.claims.keys()
    made = done.record.with_suffix(".adapters")
    manifest = json.loads((made / "manifest.json").read_text())
    assert len(manifest["files"]) == 12 and len(list(made.glob("*.safetensors"))) == 12
    shutil.copytree(made, chapter_copy / "adapters", dirs_exist_ok=True)
    again = execute(chapter_copy, parameters=parameters | {"retrain": False})
    assert again.code == 0, again.err
    small = {name: metric.value for name, metric in Record.read(again.record).metrics.items()}
    large = {name: metric.value for name, metric in record.metrics.items()}
    assert small["gain_unseen"] == pytest.approx(large["gain_unseen"], abs=0.02)  # half precision


@pytest.mark.slow
def test_study_runs_on_a_tiny_model(chapter_copy, tiny_folder, execute):
    parameters = {"model": tiny_folder, "n_questions": 2, "n_draws": 2}
    done = execute(chapter_copy, notebook="published_numbers", parameters=parameters)
    assert done.code == 0, done.err
    assert Record.read(done.record).claims["P1"].verdict == "reproduced"


BROKEN = {
    "R^2 with the scores of one set": ("score[name]], 1) for name in SETS", "score['GSM8K']], 1) for name in SETS"),
    "AUROC turned the wrong way": ("return 50 + abs(percent - 50)", "return 50 - abs(percent - 50)"),
    "a placebo without noise": ("p += size * p.square().mean().sqrt() * z", "p += 0 * size * z"),
}


@calibrated
@pytest.mark.sabotage
@pytest.mark.parametrize("what", BROKEN)
def test_gate_notices(what):
    said = sabotage("dice", dict([BROKEN[what]]), FOLDER, notebook="published_numbers")
    assert said.startswith("RegressionError: regression: ")
