"""A run: parameters, streams, claims, the gate, and a record that appears only on success."""

import json

import numpy as np
import pytest
import yaml

from helpers import Estimate, Run
from helpers.verify import RegressionError, expectations

CLAIM = {
    "id": "C1",
    "statement": "The value is positive.",
    "source": "section 1",
    "paper_value": "1.0",
    "estimand": "mean of the value",
    "unit": "",
    "direction": "greater",
    "threshold": 0.0,
    "presets": ["reduced", "public"],
    "why_not": {"full": "needs another machine"},
}


@pytest.fixture
def chapter(tmp_path, monkeypatch):
    folder = tmp_path / "chapters" / "toy"
    folder.mkdir(parents=True)
    (folder / "claims.yaml").write_text(yaml.safe_dump([CLAIM]))
    monkeypatch.setenv("REPRODUCTIONS_CHAPTERS", str(folder.parent))
    monkeypatch.setenv("REPRODUCTIONS_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("REPRODUCTIONS_RECORD", raising=False)
    return folder


def namespace(**values):
    values = {"preset": "reduced", "seed": 0, "n_items": 3} | values
    return values | {"__annotations__": dict.fromkeys([*values, "array"]), "array": np.ones(2), "other": 5}


def test_parameters_are_the_annotated_plain_values(chapter):
    assert Run("toy", namespace()).parameters == {"preset": "reduced", "seed": 0, "n_items": 3}


@pytest.mark.parametrize("values", [{"seed": "x"}, {"preset": 3}])
def test_preset_and_seed_are_needed(chapter, values):
    with pytest.raises(ValueError, match="preset: str"):
        Run("toy", namespace(**values))


def test_streams_are_repeatable_and_apart(chapter):
    run, again = Run("toy", namespace()), Run("toy", namespace())
    assert run.rng("a").random() == again.rng("a").random()
    assert run.rng("a").random() != run.rng("b").random()
    assert run.rng("a").random() != Run("toy", namespace(seed=1)).rng("a").random()
    assert run.torch_generator("a").initial_seed() == again.torch_generator("a").initial_seed()


def test_a_finished_run_writes_a_complete_record(chapter):
    run = Run("toy", namespace())
    run.metric("x", Estimate(1.0, 0.5, 1.5, 9), unit="m", null=0.0)
    assert run.claim("C1", Estimate(1.0, 0.5, 1.5, 9)) == "reproduced"
    run.figure(lambda figure: figure.subplots().plot([0, 1]), "line", alt="A line that goes up.")
    run.verdicts()
    record = run.finish()
    on_disk = json.loads(run.path.read_text())
    assert on_disk == record and on_disk["complete"] is True
    assert on_disk["metrics"]["x"]["interval"] == [0.5, 1.5]
    assert on_disk["claims"]["C1"]["verdict"] == "reproduced"
    assert on_disk["card"]["peak_memory_mb"] > 10


def test_a_claim_that_was_not_judged_is_an_error(chapter):
    run = Run("toy", namespace())
    run.metric("x", 1.0)
    with pytest.raises(ValueError, match="C1"):
        run.finish()
    assert not run.path.exists()


def test_a_claim_that_cannot_be_tested_is_listed_with_its_reason(chapter):
    run = Run("toy", namespace(preset="full"))
    run.metric("x", 1.0)
    with pytest.raises(ValueError, match="not testable"):
        run.claim("C1", 1.0, (0.5, 1.5))
    assert run.finish()["claims"]["C1"]["reason"] == "needs another machine"


def test_the_gate_raises_and_leaves_no_record(chapter):
    def finish(value, seed=0):
        run = Run("toy", namespace(seed=seed))
        run.metric("x", value, null=0.0)
        run.claim("C1", value, (value - 0.1, value + 0.1))
        return run, run.finish

    records = [finish(1.0 + 0.01 * seed, seed)[1]() for seed in range(5)]
    (chapter / "expected.yaml").write_text(yaml.safe_dump(expectations(records)))
    assert finish(1.02)[1]()["complete"]
    run, broken = finish(-1.0)
    with pytest.raises(RegressionError, match="x: -1 is not within"):
        broken()
    assert not run.path.exists()


def test_names_are_used_once_and_numbers_are_finite(chapter):
    run = Run("toy", namespace())
    run.metric("x", 1.0)
    with pytest.raises(ValueError, match="before"):
        run.metric("x", 1.0)
    with pytest.raises(ValueError, match="not finite"):
        run.metric("y", float("nan"))
    with pytest.raises(KeyError, match="C9"):
        run.claim("C9", 1.0, (0, 2))
    with pytest.raises(ValueError, match="alt text"):
        run.figure(lambda figure: None, "empty", alt="")
