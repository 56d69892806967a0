"""DICE: both pages as a whole on a tiny model, the committed adapters, and the gates."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from dice_pages import FOLDER
from lift import sabotage
from safetensors.torch import load_file
from tiny import save_tiny

from helpers.models import load_lm
from helpers.paths import data_dir
from helpers.record import Record
from helpers.verify import load_expected

TRAINING = [f"dice/{name}" for name in ("SVAMP.json", "gsm8k_train.jsonl", "gsmhardv2.jsonl")]
TRAINING += [f"dice/mawps{name}.jsonl" for name in ("addsub", "multiarith", "singleeq", "singleop")]
TRAINING += ["dice/dice_gsm8k_rephrased1.csv", "dice/dice_gsm8k_original.csv"]
TRAINING += [f"safety_neurons/self_instruct_{name}.jsonl" for name in ("seed_tasks", "user_oriented")]
have_data = pytest.mark.skipif(
    not all((data_dir() / name).is_file() for name in TRAINING), reason="public files are not cached"
)
calibrated = pytest.mark.skipif(load_expected(FOLDER, "dice") is None, reason="the page was never calibrated")


@pytest.fixture
def chapter_copy(tmp_path) -> Path:
    """The chapter in a folder of this test."""
    return shutil.copytree(FOLDER, tmp_path / "notebooks" / "dice")


@pytest.fixture
def tiny_folder(tmp_path) -> str:
    tokenizer = load_lm("smollm2-135m-instruct").tokenizer
    return save_tiny(tmp_path / "tiny", tokenizer, initializer_range=0.3, num_hidden_layers=4)


@pytest.mark.slow
@have_data
@pytest.mark.parametrize("preset", ["gpu", "full"])
def test_larger_presets_train_and_judge_on_a_tiny_model(chapter_copy, tiny_folder, execute, tmp_path, preset):
    """Scaled down: every branch of the preset, few short trainings."""
    sizes = {"n_models": 3, "n_seen": 4, "copies": 2, "n_items": 12, "n_read": 4, "n_locating": 2, "epochs": 2}
    parameters = {"model": tiny_folder, "longest": 128, "token_budget": 512} | sizes
    if preset == "full":
        own = tmp_path / "own.jsonl"
        rows = [{"question": f"Say {word}.", "answer": f"{word}, of course."} for word in ("yes", "no", "perhaps")]
        own.write_text("\n".join(map(json.dumps, rows)))
        parameters |= {"instructions": own, "longest": 256}
    environment = {"REPRODUCTIONS_DATA": str(data_dir())}
    done = execute(chapter_copy, preset=preset, parameters=parameters, environment=environment)
    assert done.code == 0, done.err
    record = Record.read(done.record)
    assert {"D1", "D2", "D2n", "D3", "D3x", "D3t", "D3b", "H", "HT", "HD", "D4", "D4f"} <= record.claims.keys()
    assert {"auroc_on_hard", "auroc_on_syn_unseen", "topic_svamp", "topic_singleop"} <= record.metrics.keys()
    made = done.record.with_suffix(".adapters")
    manifest = json.loads((made / "manifest.json").read_text())
    assert manifest["sizes"]["n_items"] == 12 and manifest["sizes"]["copies"] == 2
    assert len(manifest["files"]) == len(list(made.glob("*.safetensors"))) == 18


def test_committed_adapters_are_whole():
    manifest = json.loads((FOLDER / "adapters" / "manifest.json").read_text())
    files = {path.stem: path for path in (FOLDER / "adapters").glob("*.safetensors")}
    assert files.keys() == manifest["files"].keys() and len(files) == 25
    for name, path in files.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == manifest["files"][name]
        a, b = (load_file(path)[key] for key in ("a", "b"))
        assert a.shape == (30, 1536) and b.shape == (30, 576) and a.isfinite().all() and b.isfinite().all()


@pytest.mark.slow
def test_study_runs_on_a_tiny_model(chapter_copy, tiny_folder, execute):
    parameters = {"model": tiny_folder, "n_questions": 2, "n_draws": 2}
    done = execute(chapter_copy, notebook="published_numbers", parameters=parameters)
    assert done.code == 0, done.err
    assert Record.read(done.record).claims["P1"].verdict == "reproduced"


BROKEN = {
    "R^2 with the scores of one set": ("score[name]], 1) for name in SETS", "score['GSM8K']], 1) for name in SETS"),
    "a placebo without noise": ("p += size * p.square().mean().sqrt() * z", "p += 0 * size * z"),
}


@pytest.mark.sabotage
@pytest.mark.parametrize("what", BROKEN)
def test_gate_notices(what):
    said = sabotage("dice", dict([BROKEN[what]]), notebook="published_numbers")
    assert said.startswith("RegressionError: regression: ")


@calibrated
@pytest.mark.sabotage
def test_gate_notices_a_detector_that_is_fitted_on_one_model():
    """Half of each class has the other label: nothing is left that other models share.

    Up to that gate only the prompts of the seen questions count, so their answers are not read: half the time.
    """
    old = 'score = make(states_of(*unc, "seen", layer), states_of(*con, "seen", layer), stream)'
    new = """one, two = states_of(*unc, "seen", layer), states_of(*con, "seen", layer)
    score = make(torch.cat([one[::2], two[1::2]]), torch.cat([two[::2], one[1::2]]), stream)"""
    read = 'read_into(kind, number, adapters[kind, number], ["seen"])'
    prompts = """with tuned(adapters[kind, number]):
        told[kind, number, "seen"] = read(rows["seen prompts"])"""
    said = sabotage("dice", {old: new, read: prompts})
    assert said.startswith("RegressionError") and "auroc_seen" in said
