"""A run: parameters, streams, claims, the gate, and a record that appears only on success."""

import json
import random

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from IPython.lib.pretty import pretty

from helpers import Estimate, Run
from helpers.engine.calibrate import as_yaml, expectations
from helpers.lock import LockedError, lock_of
from helpers.parameters import BadRequestError
from helpers.record import Record
from helpers.verify import RegressionError

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
    "evidence": "measured",
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


def test_a_run_seeds_every_generator_and_prints_plain_numbers(chapter):
    def drawn(seed):
        Run("toy", namespace(seed=seed))
        return random.random(), np.random.random(), float(torch.rand(()))

    first, again, other = drawn(3), drawn(3), drawn(4)
    assert first == again and not set(first) & set(other)
    assert torch.get_num_threads() == 1
    assert repr({"half": np.float64(0.5)}) == "{'half': 0.5}"
    assert pretty({"gain": Estimate(0.51234, 0.25, 1.0, 7)}) == "{'gain': 0.512 [0.25, 1]}"


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
    assert on_disk == record.dump() and on_disk["complete"] is True
    assert Record.read(run.path) == record
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
    assert run.finish().claims["C1"].reason == "needs another machine"


def test_the_gate_raises_and_leaves_no_record(chapter):
    def finish(value, seed=0):
        run = Run("toy", namespace(seed=seed))
        run.metric("x", value, null=0.0)
        run.claim("C1", value, (value - 0.1, value + 0.1))
        return run, run.finish

    records = [finish(1.0 + 0.01 * seed, seed)[1]() for seed in range(5)]
    (chapter / "expected.yaml").write_text(as_yaml(expectations(records)))
    assert finish(1.02)[1]().complete
    run, broken = finish(-1.0, seed=9)
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


def test_with_fail_fast_a_metric_out_of_tolerance_raises_where_it_is_noted(chapter, monkeypatch):
    def noted(value, seed=0):
        run = Run("toy", namespace(seed=seed))
        run.metric("x", value, null=0.0)
        return run

    def finished(run):
        run.claim("C1", 1.0, (0.9, 1.1))
        return run.finish()

    records = [finished(noted(1.0 + 0.01 * seed, seed)) for seed in range(5)]
    (chapter / "expected.yaml").write_text(as_yaml(expectations(records)))
    monkeypatch.setenv("REPRODUCTIONS_FAIL_FAST", "1")
    assert noted(1.01)
    with pytest.raises(RegressionError, match="x: -1 is not within"):
        noted(-1.0)


PARAMETERS = """preset: str = "reduced"  # configuration {reduced, public, full}
seed: int = 0  # random seed [0, 9]
n_items: int = 3  # items [1, 10]
"""


@pytest.fixture
def declared(chapter):
    """The chapter with its notebook, so that a run can check its own request."""
    cell = {"cell_type": "code", "id": "p", "metadata": {"tags": ["parameters"]}, "source": PARAMETERS}
    (chapter / "toy.ipynb").write_text(json.dumps({"cells": [cell], "nbformat": 4, "metadata": {}}))
    budgets = {name: {"wall_s": 60, "memory_gb": 1} for name in ("reduced", "public")}
    rule = {"rule": "n_items != 7", "because": "seven items bring bad luck"}
    content = {"reduced": {}, "public": {"n_items": 6}, "budgets": budgets, "requires": [rule]}
    (chapter / "presets.yaml").write_text(yaml.safe_dump(content))
    return chapter


def test_a_trial_never_takes_the_place_of_a_preset(declared):
    plain, trial = Run("toy", namespace()), Run("toy", namespace(n_items=4))
    assert (plain.changed, trial.changed) == ({}, {"n_items": 4})
    assert plain.path.parts[-4] == "reduced" and trial.path.parts[-4].startswith("reduced+n_items=4~")
    assert Run("toy", namespace(preset="public", n_items=6)).changed == {}
    assert Run("toy", namespace(preset="public", n_items=5)).changed == {"n_items": 5}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_items": 30}, r"'n_items': 30 is out of range \[1, 10\]"),
        ({"n_items": 3.0}, "is of type float, not int"),
        ({"n_itms": 3}, "unknown parameter 'n_itms', did you mean 'n_items'"),
        ({"preset": "public"}, "named without its values.*n_items = 6"),
        ({"preset": "full"}, "unknown preset 'full'"),
        ({"n_items": 7}, "in conflict: n_items = 7: seven items bring bad luck"),
    ],
)
def test_a_run_refuses_a_request_that_no_command_has_checked(declared, values, message):
    with pytest.raises(BadRequestError, match=message):
        Run("toy", namespace(**values))


def test_a_default_that_was_edited_in_place_makes_a_trial(declared):
    def finish(seed):
        run = Run("toy", namespace(seed=seed))
        run.metric("x", 1.0 + 0.01 * seed, null=0.0)
        run.claim("C1", 1.0, (0.9, 1.1))
        return run.finish()

    (declared / "expected.yaml").write_text(as_yaml(expectations([finish(seed) for seed in range(5)])))
    text = (declared / "toy.ipynb").read_text()
    (declared / "toy.ipynb").write_text(text.replace("n_items: int = 3", "n_items: int = 5"))
    assert Run("toy", namespace(n_items=5)).changed == {"n_items": 5}


def test_a_trial_may_leave_a_number_undefined_and_a_preset_may_not(declared):
    trial = Run("toy", namespace(n_items=4))
    trial.metric("x", float("nan"), null=0.0)
    nothing = Estimate(float("nan"), float("nan"), float("nan"), 3)
    assert trial.claim("C1", nothing) == "inconclusive"
    trial.verdicts()
    record = trial.finish()
    assert record.metrics["x"].value is None and "undefined" in record.claims["C1"].reason
    assert Record.read(trial.path) == record
    with pytest.raises(ValueError, match="undefined"):
        Run("toy", namespace()).claim("C1", nothing)


def test_an_unfinished_run_leaves_an_earlier_record_alone(declared):
    def finish():
        run = Run("toy", namespace())
        run.metric("x", 1.0)
        run.claim("C1", 1.0, (0.9, 1.1))
        return run.finish(), run.path

    _, path = finish()
    before = path.read_bytes()
    Run("toy", namespace()).metric("x", 2.0)
    assert path.read_bytes() == before


@pytest.mark.parametrize("unannotated", [5, "missing", np.int64(3), (3,)])
def test_a_parameter_without_its_annotation_is_read_all_the_same(declared, unannotated):
    """`n_items = 5` in the parameters cell of an open notebook: no annotation, and not always a plain value."""
    values = namespace()
    del values["__annotations__"]["n_items"]
    if unannotated == "missing":
        del values["n_items"]
    else:
        values["n_items"] = unannotated
    if unannotated == 5:
        assert Run("toy", values).changed == {"n_items": 5}
    else:
        with pytest.raises(BadRequestError, match="n_items"):
            Run("toy", values)


def ready(values=None):
    run = Run("toy", values or namespace())
    run.metric("x", 1.0)
    run.claim("C1", 1.0, (0.9, 1.1))
    return run


def test_a_parameter_that_is_changed_after_the_start_is_noticed(declared):
    values = namespace()
    run = ready(values)
    values["n_items"] = 5
    with pytest.raises(ValueError, match="changed after the start of the run: n_items"):
        run.finish()
    assert not run.path.exists()


def test_the_record_of_a_run_that_is_executed_elsewhere_is_left_alone(declared):
    run = ready()
    lock = lock_of(run.path)
    with pytest.raises(LockedError, match="is being executed by process"):
        run.finish()
    lock.release()
    assert not run.path.exists()
    assert run.finish() and run.path.exists()


def test_figure_data_appears_with_the_record_and_leaves_with_it(declared):
    def drawn(name, number):
        run = ready()
        data = pd.DataFrame({"y": [number]})
        run.figure(lambda figure: figure.subplots().plot([0, 1]), name, alt="A line that goes up.", data=data)
        return run

    run = drawn("line", 1)
    assert not run.path.parent.exists()
    run.finish()
    folder = run.path.with_suffix(".figures")
    drawn("line", 2)  # a run that never ends
    assert (folder / "line.csv").read_text() == "y\n1\n"
    drawn("curve", 3).finish()
    assert [path.name for path in folder.iterdir()] == ["curve.csv"]
