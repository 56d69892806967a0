"""Sweeps: what is refused before anything starts, which runs a file means, and what is told of their records."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from helpers.code import code_hash_of
from helpers.engine import sweep as module
from helpers.engine.cli import app
from helpers.engine.judge import Judgement
from helpers.engine.plan import Run, is_current, seconds_of, seeds_of
from helpers.engine.sweep import collect, load_sweep, plan, stale_lock
from helpers.engine.sweeps_page import fill_sweeps
from helpers.parameters import BadRequestError
from helpers.record import Metric, Outcome, Record
from helpers.verify import load_expected

ROOT = Path(__file__).resolve().parents[2]
QUICK = ROOT / "tests" / "fixtures" / "chapters" / "quick"
GOOD = {
    "title": "More tosses",
    "question": "Does the number of tosses move the share of heads?",
    "paper": "quick",
    "parameters": {"n_tosses": [100, 400], "bias": [0.6, 0.8]},
    "seeds": "0-2",
    "validation": {"metric": "p_heads", "label": "share of heads"},
    "prefer": "high",
    "test": {"metric": "p_control", "label": "share with a fair coin"},
}


@pytest.fixture
def root(tmp_path):
    """A checkout with one chapter and no sweep yet."""
    shutil.copytree(QUICK, tmp_path / "notebooks" / "quick")
    (tmp_path / "sweeps").mkdir()
    return tmp_path


def write(root, **changes):
    content = {key: value for key, value in (GOOD | changes).items() if value is not None}
    (root / "sweeps" / "tosses.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def test_every_combination_and_seed_is_a_run_with_a_folder_of_its_own(root):
    write(root)
    _, runs = plan("tosses", root)
    assert len({run.place(Path("runs")) for run in runs}) == len(runs) == 12
    assert runs[0].words[:5] == [str(root / "notebooks/quick/quick.ipynb"), "--preset", "reduced", "--seed", "0"]
    assert {tuple(run.words[5:]) for run in runs} >= {("-p", "n_tosses=100"), ("-p", "n_tosses=100", "-p", "bias=0.6")}


REFUSED = {
    "unknown parameter": ({"parameters": {"bais": [0.6]}}, "unknown parameter 'bais', did you mean 'bias'?"),
    "out of range": ({"parameters": {"bias": [0.6, 1.7]}}, "parameter 'bias': 1.7 is out of range"),
    "wrong type": ({"parameters": {"n_tosses": [2.5]}}, "parameter 'n_tosses': '2.5' is not of type int"),
    "empty list": ({"parameters": {"bias": []}}, "parameters.bias: List should have at least 1 item"),
    "no parameters": ({"parameters": {}}, "parameters: Dictionary should have at least 1 item"),
    "no list": ({"parameters": {"bias": 0.6}}, "parameters.bias: Input should be a valid list"),
    "repeated value": ({"parameters": {"bias": [0.6, 0.6]}}, "a value stands there twice (bias = 0.6)"),
    "the same number": ({"parameters": {"bias": [1, 1.0]}}, "a value stands there twice (bias = 1.0)"),
    "seed as parameter": ({"parameters": {"seed": [1]}}, "'seed' has a line of its own"),
    "seeds": ({"seeds": "4-1"}, "seeds: seeds=4-1: whole numbers from 0 on are needed"),
    "seeds twice": ({"seeds": [1, 1]}, "seeds=[1, 1]: a seed stands there twice"),
    "seed out of range": ({"seeds": [0, 9999999999]}, "parameter 'seed': 9999999999 is out of range"),
    "no seeds": ({"seeds": []}, "no seed"),
    "preset": ({"preset": "pubic"}, "preset: Input should be 'reduced'"),
    "chapter": ({"paper": "quik"}, "no chapter or notebook quik/quik"),
    "notebook": ({"notebook": "slow"}, "no chapter or notebook quick/slow"),
    "unknown key": ({"parameter": {}}, "parameter: Extra inputs are not permitted"),
    "readings": ({"readings": {"heads": "heads"}}, "belong together"),
    "metric": ({"test": None}, "test: Field required"),
}


@pytest.mark.parametrize("changes, message", REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_is_one_line_that_names_the_file(root, changes, message):
    write(root, **changes)
    with pytest.raises(BadRequestError) as error:
        plan("tosses", root)
    said = str(error.value)
    assert message in said and said.startswith("tosses.yaml") and "\n" not in said


def test_a_rule_of_the_chapter_is_checked_for_every_point(root):
    presets = root / "notebooks" / "quick" / "presets.yaml"
    rule = {"rule": "n_tosses * bias <= 300", "because": "so many heads do not fit on the table"}
    presets.write_text(presets.read_text() + yaml.safe_dump({"requires": [rule]}))
    write(root)
    with pytest.raises(BadRequestError, match=r"bias = 0\.8, n_tosses = 400: so many heads"):
        plan("tosses", root)


def test_the_command_refuses_with_exit_code_2_and_starts_nothing(root, monkeypatch, tmp_path):
    write(root, parameters={"bias": [7.0]})
    monkeypatch.setattr(module, "checkout", lambda: root)
    for name, message in (
        ("tosses", "refused: tosses.yaml: parameter 'bias': 7.0"),
        ("tossers", "did you mean 'tosses'"),
    ):
        called = CliRunner().invoke(app, ["sweep", name, "--out", str(tmp_path / "runs")])
        assert called.exit_code == 2 and message in called.stderr
        assert len(called.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("given", "seeds"),
    [(0, [0]), ("0", [0]), ("0-4", [0, 1, 2, 3, 4]), ("3,1", [3, 1]), ("0-1,7", [0, 1, 7]), ([2, "4-5"], [2, 4, 5])],
)
def test_seeds_are_numbers_and_ranges(given, seeds):
    assert seeds_of(given) == seeds


@pytest.mark.parametrize("given", ["", "a", "-1", "1-", "4-0", "0,0", "0-2,1", "1.5", "0-10000", "٣", [], None, True])
def test_wrong_seeds_are_refused(given):
    with pytest.raises(BadRequestError, match="seeds="):
        seeds_of(given)


def finish(root, out, **metrics):
    """A record for every run of the sweep, as a run would leave it."""
    _, runs = plan("tosses", root)
    for number, run in enumerate(runs):
        values = {name: {"value": value + number / 100} for name, value in metrics.items()}
        record = Record(
            paper="quick",
            notebook="quick",
            preset="reduced",
            parameters={"seed": run.seed},
            metrics=values,
            claims={},
            card={"wall_s": 6.0, "code": code_hash_of(root / "notebooks/quick/quick.ipynb"), "commit": "abc"},
        )
        record.write(run.place(out).with_suffix(".json"))


def test_the_table_has_a_line_a_run_and_a_metric_that_is_not_there_is_named(root, tmp_path):
    write(root)
    finish(root, tmp_path / "runs", p_heads=0.5, p_control=0.4)
    table = root / "results" / "sweeps" / "tosses.csv"
    table.parent.mkdir(parents=True)
    table.write_text(collect("tosses", root, tmp_path / "runs"))
    rows = pd.read_csv(table)
    assert list(rows.columns[:5]) == ["n_tosses", "bias", "seed", "share of heads", "share with a fair coin"]
    assert len(rows) == 12 and rows["share of heads"].iloc[-1] == pytest.approx(0.61)
    write(root, test={"metric": "p_contrl", "label": "a slip"})
    with pytest.raises(ValueError, match="no metric 'p_contrl', did you mean 'p_control'"):
        collect("tosses", root, tmp_path / "runs")


def test_readings_are_settings_of_one_run(root, tmp_path):
    measures = {
        "validation": {"metric": "p_{reading}", "label": "share"},
        "test": {"metric": "q_{reading}", "label": "told"},
    }
    write(root, readings={"a biased coin": "heads", "a fair coin": "control"}, **measures)
    finish(root, tmp_path / "runs", p_heads=0.5, p_control=0.4, q_heads=0.3, q_control=0.2)
    lines = collect("tosses", root, tmp_path / "runs").splitlines()
    assert len(lines) == 1 + 12 * 2 and lines[2].startswith("100,0.6,a fair coin,0,0.4,0.2,")


def page_of(root, tmp_path):
    text, faults = fill_sweeps("before <!-- sweeps --> after", root, tmp_path / "extra")
    return re.sub(r"\\(\W|_)", r"\1", text), faults


def test_the_page_tells_the_best_setting_and_its_other_number(root, tmp_path):
    write(root)
    text, faults = page_of(root, tmp_path)
    assert "Not run yet. The command: `papers sweep tosses --commit`" in text and faults == []
    finish(root, tmp_path / "runs", p_heads=0.5, p_control=0.4)
    (root / "results" / "sweeps").mkdir(parents=True)
    (root / "results" / "sweeps" / "tosses.csv").write_text(collect("tosses", root, tmp_path / "runs"))
    text, faults = page_of(root, tmp_path)
    assert faults == [] and "Not run yet" not in text
    assert "Best share of heads: n_tosses = 400, bias = 0.8, 0.6 [0.575, 0.625]" in text
    assert "There the share with a fair coin is 0.5 [" in text and "of the 3 other settings overlap" in text
    assert text.count('alt="More tosses:') == 2 and "changed after" not in text  # light and dark
    assert (tmp_path / "extra/records/sweeps/tosses.csv").is_file()
    assert len(list((tmp_path / "extra/figures/sweeps").glob("*.webp"))) == 2
    for kind in ("sweeps/{}.yaml", "results/sweeps/{}.csv"):
        shutil.copy(root / kind.format("tosses"), root / kind.format("tosses_again"))
    assert re.findall(r"<b>Figure (\d)", page_of(root, tmp_path)[0]) == ["1", "2"]
    (root / "sweeps/tosses_again.yaml").unlink()
    write(root, prefer="low")
    assert "Best share of heads: n_tosses = 100, bias = 0.6" in page_of(root, tmp_path)[0]
    notebook = root / "notebooks/quick/quick.ipynb"
    notebook.write_text(notebook.read_text().replace('Run(\\"quick\\"', 'Run( \\"quick\\"'))
    assert "The notebook was changed after these runs." in page_of(root, tmp_path)[0]


def test_a_table_of_another_grid_is_a_fault_and_costs_the_page_nothing_else(root, tmp_path):
    write(root)
    finish(root, tmp_path / "runs", p_heads=0.5, p_control=0.4)
    (root / "results" / "sweeps").mkdir(parents=True)
    (root / "results" / "sweeps" / "tosses.csv").write_text(collect("tosses", root, tmp_path / "runs"))
    write(root, seeds="0-3")
    shutil.copy(root / "sweeps/tosses.yaml", root / "sweeps/other.yaml")
    text, faults = page_of(root, tmp_path)
    assert len(faults) == 1 and "of another grid" in faults[0]
    assert text.count("Not run yet") == 1 and text.startswith("before ") and text.endswith(" after")


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "sweeps").glob("*.yaml")))
def test_the_sweeps_of_the_book_can_be_run(name):
    sweep, runs = plan(name, ROOT)
    assert len(sweep.seeds) >= 3 and len(runs) == len(sweep.settings) * len(sweep.seeds)


def test_a_stale_lock_is_named_with_what_frees_it(tmp_path):
    assert stale_lock(tmp_path) is None
    lock = tmp_path / ".snakemake" / "locks" / "0.input.lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    assert "snakemake --unlock" in (stale_lock(tmp_path) or "")


def test_a_good_run_is_current_until_something_that_it_depends_on_changes(root):
    notebook, record = (
        root / "notebooks/quick/quick.ipynb",
        {"paper": "quick", "notebook": "quick", "preset": "reduced"},
    )
    found = Record(**record, parameters={"seed": 0}, metrics={}, claims={}, card={})
    later = {"started": "2099-01-01T00:00:00+00:00"}
    assert is_current(Judgement("ok", "", found, later), notebook, {"seed": 0})
    assert not is_current(Judgement("ok", "", found, later), notebook, {"seed": 1})
    assert not is_current(Judgement("stale", "", found, later), notebook, {"seed": 0})
    assert not is_current(Judgement("ok", "", found, {"started": "2020-01-01T00:00:00+00:00"}), notebook, {"seed": 0})
    assert not is_current(Judgement("ok", "", found, {}), notebook, {"seed": 0})


def test_a_run_of_calibration_that_left_the_expected_values_is_not_current(root):
    notebook = root / "notebooks/quick/quick.ipynb"
    expected = load_expected(notebook.parent, "quick")
    values = expected.parameters | {"seed": 0}
    metrics = {name: Metric(value=wanted.mean, null=wanted.null) for name, wanted in expected.metrics.items()}
    claims = {name: Outcome(verdict=seen[0]) for name, seen in expected.claims.items()}
    found = Record(
        paper="quick", notebook="quick", preset="reduced", parameters=values, metrics=metrics, claims=claims, card={}
    )
    good = Judgement("ok", "", found, {"started": "2099-01-01T00:00:00+00:00"})
    assert is_current(good, notebook, values)
    metrics["share_of_heads"] = Metric(value=expected.metrics["share_of_heads"].mean + 0.2)
    left = replace(good, record=found.model_copy(update={"metrics": metrics}))
    assert not is_current(left, notebook, values)


def test_the_length_of_a_run_is_that_of_the_last_one_or_of_the_budget(root, tmp_path):
    notebook = root / "notebooks/quick/quick.ipynb"
    guessed = seconds_of(notebook, "reduced", tmp_path / "runs")
    assert 0 < guessed <= 600
    status = Run(notebook, "reduced", 3).place(tmp_path / "runs").with_suffix(".status.json")
    status.parent.mkdir(parents=True)
    status.write_text(json.dumps({"wall_s": 1234.5}))
    assert seconds_of(notebook, "reduced", tmp_path / "runs") == 1234.5


def test_a_sweep_that_is_no_yaml_is_named(root):
    (root / "sweeps" / "tosses.yaml").write_text("a: [")
    with pytest.raises(BadRequestError, match=r"tosses\.yaml: not valid YAML"):
        load_sweep("tosses", root)
