"""The gate: what passes, what fails, and tolerances that must never be written."""

import copy
import json
import os

import pytest

from helpers.verify import _finished, applies, compare, expectations


def record(seed: int, value: float, *, null: float | None = 0.5, floor: float = 1e-6) -> dict:
    metric = {"value": value, "interval": None, "n": 10, "unit": "", "null": null, "floor": floor, "gate": True}
    ungated = metric | {"value": 100.0 * seed, "gate": False}
    return {
        "paper": "p",
        "preset": "reduced",
        "parameters": {"preset": "reduced", "seed": seed, "n_items": 3},
        "metrics": {"auroc": metric, "seconds": ungated},
    }


def five(values=(0.80, 0.81, 0.79, 0.80, 0.82), **kwargs):
    return [record(seed, value, **kwargs) for seed, value in enumerate(values)]


def test_tolerance_is_four_spreads():
    entry = expectations(five())["metrics"]["auroc"]
    assert entry["mean"] == pytest.approx(0.804)
    assert entry["tolerance"] == pytest.approx(4 * entry["spread"])
    assert entry["spread"] == pytest.approx(0.0114018, rel=1e-4)


def test_a_metric_without_spread_keeps_its_floor():
    assert expectations(five([0.8] * 5, floor=0.01))["metrics"]["auroc"]["tolerance"] == 0.01


def test_ungated_metrics_are_left_out():
    assert "seconds" not in expectations(five())["metrics"]


@pytest.mark.parametrize(
    ("records", "words"),
    [
        (five()[:4], "at least 5"),
        ([record(0, 0.8)] * 5, "at least 5"),
        (five([0.4, 0.6, 0.5, 0.7, 0.55]), "accepts 0.5"),
        (five(null=None), "no metric names its null"),
    ],
)
def test_calibration_refuses(records, words):
    with pytest.raises(ValueError, match=words):
        expectations(records)


def test_calibration_refuses_mixed_parameters():
    records = five()
    records[2]["parameters"]["n_items"] = 4
    with pytest.raises(ValueError, match="differ only in their seed"):
        expectations(records)


def test_compare_names_what_left_and_what_is_missing():
    expected = expectations(five())
    assert compare(record(9, 0.8), expected) == []
    assert "auroc: 0.5 is not within" in compare(record(9, 0.5), expected)[0]
    assert compare(record(9, float("nan")), expected)
    renamed = copy.deepcopy(record(9, 0.8))
    renamed["metrics"]["accuracy"] = renamed["metrics"].pop("auroc")
    assert len(compare(renamed, expected)) == 2


def test_expectations_speak_only_of_the_calibrated_configuration():
    expected = expectations(five())
    assert applies(expected, record(77, 0.1)) is None
    assert "no expected.yaml" in applies(None, record(0, 0.1))
    other = record(0, 0.8)
    other["parameters"]["n_items"] = 99
    assert "n_items" in applies(expected, other)
    assert "preset" in applies(expected, record(0, 0.8) | {"preset": "public"})


def test_an_interrupted_calibration_reuses_what_is_newer_than_its_inputs(tmp_path):
    notebook, record_file = tmp_path / "p.ipynb", tmp_path / "runs" / "p.json"
    notebook.write_text("{}")
    record_file.parent.mkdir()
    record_file.write_text(json.dumps(record(3, 0.8) | {"complete": True}))
    assert _finished(notebook, 3, record_file.parent)["parameters"]["seed"] == 3
    assert _finished(notebook, 4, record_file.parent) is None
    later = record_file.stat().st_mtime + 10
    os.utime(notebook, (later, later))
    assert _finished(notebook, 3, record_file.parent) is None
