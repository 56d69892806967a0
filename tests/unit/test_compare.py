"""Records side by side: what counts as noise, which records belong together, and what the exit code says."""

import os
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from helpers.engine.compare import Side, compare, compare_command, compare_records, judge
from helpers.record import Metric, Outcome, Record

ROOT = Path(__file__).resolve().parents[2]
OTHER_MACHINE = Path(os.environ.get("REPRODUCTIONS_OTHER_RECORDS", ROOT.parent / "shared" / "gpu" / "records"))
CLAIM = """
- id: C1
  statement: The coin shows heads more often than tails.
  headline: Heads come up more often than tails do.
  source: fixture
  paper_value: "0.8"
  estimand: share of heads over all tosses of the run
  unit: ""
  direction: greater
  threshold: 0.5
  evidence: measured
  presets: [reduced]
  why_not: {public: there is no public coin, full: there is no larger coin}
"""


def record(verdict="reproduced", value=0.8, seed=0, notebook="coin", **more) -> Record:
    claim = Outcome(verdict=verdict, value=value, low=value - 0.1, high=value + 0.1, n=9)
    metrics = {"share": Metric(value=value, interval=(value - 0.1, value + 0.1)), "tosses": Metric(value=9)}
    card = {"device": "CPU", "wall_s": 1.0, "packages": {"torch": "2"}, "data": {"tosses.csv": "sha256:" + "0" * 64}}
    values = {"paper": "coin", "notebook": notebook, "preset": "reduced", "parameters": {"seed": seed}, "card": card}
    return Record(**values | {"metrics": metrics, "claims": {"C1": claim, "C2": claim}} | more)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Two folders for records, and the chapter whose headline is C1."""
    (tmp_path / "chapters" / "coin").mkdir(parents=True)
    (tmp_path / "chapters" / "coin" / "claims.yaml").write_text(
        CLAIM + CLAIM.replace("C1", "C2").replace("headline", "expectation")
    )
    monkeypatch.setenv("REPRODUCTIONS_CHAPTERS", str(tmp_path / "chapters"))
    return tmp_path / "a", tmp_path / "b"


def command(*arguments):
    app = typer.Typer()
    app.command()(compare_command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("a", "b", "floor", "status"),
    [
        (Side(1, 0.9, 1.1), Side(1 + 1e-9, 0.9, 1.1), 0, "same"),
        (Side(1, 0.7, 1.3), Side(1.49, 1.09, 1.89), 0, "within noise"),  # half-widths .3 and .4: pooled .5
        (Side(1, 0.7, 1.3), Side(1.51, 1.11, 1.91), 0, "differs"),
        (Side(1, 1, 1), Side(1.1, 1.1, 1.1), 0, "differs"),
        (Side(1, 1, 1), Side(1.1, 1.1, 1.1), 0.2, "within noise"),
        (Side(1), Side(1), 0, "same"),
        (Side(1), Side(1.1), 0, "no interval"),
        (Side(1), Side(1.1, 1, 1.2), 0, "no interval"),
        (Side(1), Side(1.1), 0.2, "within noise"),
        (Side(), Side(), 0, "same"),
        (Side(), Side(1, 0, 2), 0, "differs"),
        (Side(verdict="not testable here"), Side(verdict="not testable here"), 0, "same"),
    ],
)
def test_what_counts_as_noise(a, b, floor, status):
    assert judge(a, b, floor) == judge(b, a, floor) == status


def test_what_one_record_lacks_differs(folders):
    rows = {row.name: row for row in compare_records(record(), record(metrics={}, claims={})).rows}
    assert {row.status for row in rows.values()} == {"differs"} and rows["C1"].changed and not rows["share"].changed


def test_circumstances_are_named(folders):
    other = {"device": "GPU", "wall_s": 2.0, "packages": {"torch": "3"}, "data": {"tosses.csv": "sha256:" + "1" * 64}}
    said = compare_records(record(), record(card=other, seed=1)).circumstances
    assert [line.split(":")[0] for line in said] == ["parameter seed", "device", "packages torch", "data tosses.csv"]
    assert said[1] == "device: CPU | GPU" and len(said[3]) < 140


def test_records_are_matched_at_any_depth(folders):
    a, b = folders
    for run in (record(), record(seed=1), record(notebook="study"), record(changed={"n": 1})):
        run.write(a / run.notebook / str(run.seed) / f"{len(run.changed)}.json")
    for run in (record(), record(seed=2), record(notebook="study"), record(changed={"n": 2})):
        run.write(b / f"{run.notebook}-{run.seed}-{len(run.changed)}.json")
    (b / "damaged.json").write_text("{")
    (b / "coin.status.json").write_text("{}")
    comparisons, notes = compare(a, b)
    assert [(c.a.notebook, c.a.seed, c.a.changed, c.b.seed) for c in comparisons] == [
        ("coin", 0, {}, 0),
        ("study", 0, {}, 0),
    ]
    assert len(notes) == 5 and notes[0].startswith("damaged.json: not a complete record")
    assert f"only in {a}: coin/coin reduced n=1 seed 0" in notes and f"only in {b}: coin/coin reduced seed 2" in notes


def test_exit_code_tells_of_headlines_alone(folders, tmp_path):
    a, b = folders
    record().write(a / "1.json")
    claims = record().claims
    record(claims=claims | {"C2": Outcome(verdict="inconclusive", value=0.8, low=0.4, high=1.2)}).write(b / "1.json")
    done = command(a, b, "--csv", tmp_path / "out" / "rows.csv")
    assert done.exit_code == 0 and "coin/coin reduced seed 0: 1 of 2 verdicts differ: C2" in done.stdout
    assert "headline" in done.stdout and "2 metrics: 2 same" in done.stdout
    rows = pd.read_csv(tmp_path / "out" / "rows.csv")
    assert rows.name.tolist() == ["C1", "C2", "share", "tosses"]
    assert rows.verdict_b.tolist()[:2] == ["reproduced", "inconclusive"] and rows.low_a[0] == pytest.approx(0.7)
    record("inconclusive").write(b / "1.json")
    assert command(a, b).exit_code == 1
    assert "share" not in command(a, b).stdout and "share" in command(a, b, "--all").stdout


def test_a_damaged_record_is_one_line_and_the_others_go_on(folders):
    a, b = folders
    for folder in (a, b):
        record().write(folder / "1.json")
    (b / "2.json").write_text('{"schema": 1}')
    done = command(a, b)
    assert done.exit_code == 0 and "0 of 2 verdicts differ" in done.stdout
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["2.json"]


@pytest.mark.parametrize(
    ("b", "said"), [("missing", "no such file"), ("b", "no run has a record in both"), ("b/1.json", "one of each")]
)
def test_bad_requests(folders, b, said):
    a = folders[0]
    record().write(a / "1.json")
    record(seed=5).write(a.parent / "b" / "1.json")
    done = command(a, a.parent / b)
    assert done.exit_code == 2 and said in done.stderr and done.stderr.count("\n") == 1 and not done.stdout


def test_two_files_may_differ_in_seed_but_not_in_notebook(folders):
    a = folders[0]
    for name, run in {"0": record(), "1": record(seed=1), "2": record(notebook="study")}.items():
        run.write(a / f"{name}.json")
    assert "coin/coin reduced seed 0 | coin/coin reduced seed 1: 0 of 2" in command(a / "0.json", a / "1.json").stdout
    assert command(a / "0.json", a / "2.json").exit_code == 2
    assert command(a / "0.json", a / "9.json").exit_code == 2


@pytest.mark.skipif(not OTHER_MACHINE.is_dir(), reason="no records of another machine beside the checkout")
def test_records_of_another_machine(tmp_path):
    """One GPU machine with other versions against what was committed then: three verdicts of 75 had changed."""
    wanted = {"rm_bench": (0, 14), "safety_neurons": (0, 19), "seakr": (1, 24), "pretraining_distillation": (2, 18)}
    for paper in wanted:
        show = ["git", "-C", str(ROOT), "show", f"c9db2d3:results/public/{paper}.json"]
        done = subprocess.run(show, capture_output=True)
        if done.returncode:
            pytest.skip("a shallow clone without the commit of those records")
        (tmp_path / f"{paper}.json").write_bytes(done.stdout)
    comparisons, notes = compare(tmp_path, OTHER_MACHINE)
    assert not notes and len(comparisons) == 5  # distillation ran on the GPU and on the processor
    for comparison in comparisons:
        claims = [row for row in comparison.rows if row.kind != "metric"]
        assert (sum(row.changed for row in claims), len(claims)) == wanted[comparison.a.paper]
        assert any(line.startswith("packages torch: 2.13.0+cpu | 2.11.0") for line in comparison.circumstances)
