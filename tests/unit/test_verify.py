"""The gate: what passes, what fails, and tolerances that must never be written."""

import copy
import os

import pytest

from helpers.engine.calibrate import _newer_than_inputs, as_yaml, expectations
from helpers.record import Record
from helpers.verify import compare, load_expected


def record(seed: int, value: float, *, null: float | None = 0.5, floor: float = 1e-6, verdict="reproduced") -> Record:
    metric = {"value": value, "n": 10, "null": null, "floor": floor}
    return Record(
        paper="p",
        notebook="p",
        preset="reduced",
        parameters={"preset": "reduced", "seed": seed, "n_items": 3},
        metrics={"auroc": metric, "seconds": {"value": 100.0 * seed, "gate": False}},
        claims={"C1": {"verdict": verdict}, "C2": {"verdict": "not testable here", "reason": "too small"}},
        card={},
    )


def five(values=(0.80, 0.81, 0.79, 0.80, 0.82), **kwargs):
    return [record(seed, value, **kwargs) for seed, value in enumerate(values)]


def test_tolerance_is_four_spreads():
    entry = expectations(five()).metrics["auroc"]
    assert entry.mean == pytest.approx(0.804)
    assert entry.tolerance == pytest.approx(4 * entry.spread)
    assert entry.spread == pytest.approx(0.0114018, rel=1e-4)


def test_a_metric_without_spread_keeps_its_floor():
    assert expectations(five([0.8] * 5, floor=0.01)).metrics["auroc"].tolerance == 0.01


def test_ungated_metrics_are_left_out():
    assert "seconds" not in expectations(five()).metrics


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
    records[2].parameters["n_items"] = 4
    with pytest.raises(ValueError, match="differ only in their seed"):
        expectations(records)


def test_compare_names_what_left_and_what_is_missing():
    expected = expectations(five())
    assert compare(record(9, 0.8), expected) == []
    assert "auroc: 0.5 is not within" in compare(record(9, 0.5), expected)[0]
    undefined = record(9, 0.8)
    undefined.metrics["auroc"].value = None
    assert "undefined is not within" in compare(undefined, expected)[0]
    renamed = copy.deepcopy(record(9, 0.8))
    renamed.metrics["accuracy"] = renamed.metrics.pop("auroc")
    assert len(compare(renamed, expected)) == 2


def test_a_verdict_that_turns_round_fails_and_one_that_wavers_does_not():
    expected = expectations(five())
    assert expected.claims == {"C1": ["reproduced"] * 5}
    said = "claim C1: contradicted, but reproduced with all 5 calibrated seeds"
    assert compare(record(9, 0.8, verdict="contradicted"), expected) == [said]
    assert compare(record(9, 0.8, verdict="inconclusive"), expected) == []
    wavering = expectations([*five()[:4], record(4, 0.82, verdict="inconclusive")])
    assert compare(record(9, 0.8, verdict="contradicted"), wavering) == []


def test_expectations_speak_only_of_the_calibrated_configuration():
    expected = expectations(five())
    assert expected.not_about("reduced", record(77, 0.1).parameters) is None
    assert "n_items" in expected.not_about("reduced", {"preset": "reduced", "n_items": 99})
    assert "preset" in expected.not_about("public", {})


def test_the_file_is_read_as_it_was_written_and_a_wrong_one_is_named(tmp_path):
    folder = tmp_path / "p"
    folder.mkdir()
    assert load_expected(folder, "p") is None
    (folder / "expected.yaml").write_text(as_yaml(expectations(five())))
    assert load_expected(folder, "p") == expectations(five())
    for text, words in (("", "valid dictionary"), ("schema: 1", "paper"), ("- [", "not valid YAML")):
        (folder / "expected.yaml").write_text(text)
        with pytest.raises(ValueError, match=rf"expected\.yaml: .*{words}"):
            load_expected(folder, "p")


def test_a_gate_that_is_silently_off_is_refused(tmp_path):
    """Expected values of another notebook or preset, a tolerance wider than calibration writes it, keys twice."""
    folder = tmp_path / "p"
    folder.mkdir()
    good = as_yaml(expectations(five()))
    assert good.count("tolerance: 0.0456") == 1
    for old, new, words in (
        ("paper: p", "paper: q", "speaks of q/q"),
        ("preset: reduced", "preset: public", "preset"),
        ("tolerance: 0.0456", "tolerance: 1.0456", "auroc"),
        ("k: 4", "k: 4\nk: 4", "'k' stands there twice"),
        ("k: 4", "4: 4", "'4' is not text"),
    ):
        (folder / "expected.yaml").write_text(good.replace(old, new))
        with pytest.raises(ValueError, match=rf"expected\.yaml: .*{words}"):
            load_expected(folder, "p")
    wide = expectations(five(null=0.0))
    assert wide.metrics["auroc"].tolerance < 0.05
    wide.metrics["auroc"].tolerance = 0.7
    assert "wider than calibration writes it" in compare(record(0, 0.8, null=0.0), wide)[0]


def test_an_interrupted_calibration_reuses_what_is_newer_than_its_inputs(tmp_path):
    notebook, record_file = tmp_path / "p.ipynb", tmp_path / "runs" / "p.json"
    notebook.write_text("{}")
    assert not _newer_than_inputs(record_file, notebook)
    record(3, 0.8).write(record_file)
    assert _newer_than_inputs(record_file, notebook)
    later = record_file.stat().st_mtime + 10
    os.utime(notebook, (later, later))
    assert not _newer_than_inputs(record_file, notebook)
