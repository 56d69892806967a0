"""The regression gate: a record against `expected.yaml`, and `calibrate`, which alone writes that file."""

import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import yaml

from helpers.paths import PACKAGE, chapter_dir, read_record, read_yaml, write_atomically

K = 4  # tolerance in units of the spread over seeds
RELATIVE_FLOAT_NOISE = 1e-6
UNCALIBRATED = ("seed",)


class RegressionError(AssertionError):
    """A metric left its tolerance."""


def load_expected(paper: str) -> dict[str, Any] | None:
    """Return a chapter's `expected.yaml`, or None when it was never calibrated."""
    path = chapter_dir(paper) / "expected.yaml"
    return read_yaml(path) if path.is_file() else None


def applies(expected: dict[str, Any] | None, record: dict[str, Any]) -> str | None:
    """Return None when `expected` speaks about this record, else the reason why it does not."""
    if expected is None:
        return "the chapter has no expected.yaml yet"
    if record["preset"] != expected["preset"]:
        return f"expected values are for the {expected['preset']} preset"
    ours = {k: v for k, v in record["parameters"].items() if k not in UNCALIBRATED}
    changed = [k for k in sorted(ours.keys() | expected["parameters"]) if ours.get(k) != expected["parameters"].get(k)]
    return f"changed parameters: {', '.join(changed)}" if changed else None


def compare(record: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Return one line per metric that is missing, new, not a number or out of tolerance; empty means a pass."""
    wanted = expected["metrics"]
    got = {name: metric["value"] for name, metric in record["metrics"].items() if metric["gate"]}
    problems = [f"{name}: expected but not measured" for name in sorted(wanted.keys() - got)]
    problems += [f"{name}: measured but not calibrated (run calibrate)" for name in sorted(got.keys() - wanted)]
    for name in sorted(wanted.keys() & got):
        mean, tolerance = wanted[name]["mean"], wanted[name]["tolerance"]
        if not abs(got[name] - mean) <= tolerance:  # written so that NaN fails
            problems.append(f"{name}: {got[name]:.6g} is not within {mean:.6g} ± {tolerance:.3g}")
    return problems


def expectations(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Build the content of `expected.yaml` from records that differ only in their seed.

    Raises:
        ValueError: fewer than five seeds, different parameters, no metric with a null value, or a tolerance that
            would accept a metric's null value (chance, zero effect).
    """
    seeds = sorted(r["parameters"]["seed"] for r in records)
    if len(set(seeds)) < 5:
        raise ValueError(f"calibration needs at least 5 different seeds, got {seeds}")
    settings = [{k: v for k, v in r["parameters"].items() if k not in UNCALIBRATED} for r in records]
    if any(s != settings[0] for s in settings):
        raise ValueError("calibration needs records that differ only in their seed")
    names = [name for name, metric in records[0]["metrics"].items() if metric["gate"]]
    metrics, refused = {}, []
    for name in names:
        entry = _expectation([r["metrics"][name] for r in records])
        metrics[name] = entry
        if entry["null"] is not None and abs(entry["mean"] - entry["null"]) <= entry["tolerance"]:
            refused.append(f"{name} ({entry['mean']:.4g} ± {entry['tolerance']:.2g} accepts {entry['null']:.4g})")
    if refused:
        raise ValueError("a tolerance would accept the null value: " + "; ".join(refused))
    if all(entry["null"] is None for entry in metrics.values()):
        raise ValueError("no metric names its null value, so the gate could pass on chance")
    head = {"schema": 1, "paper": records[0]["paper"], "preset": records[0]["preset"], "k": K, "seeds": seeds}
    return head | {"parameters": settings[0], "metrics": metrics}


def _expectation(measured: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean, spread (sample standard deviation over seeds) and tolerance of one metric."""
    values = np.array([m["value"] for m in measured], dtype=float)
    mean, spread = float(values.mean()), float(values.std(ddof=1))
    tolerance = max(K * spread, measured[0]["floor"], RELATIVE_FLOAT_NOISE * abs(mean))
    rounded = {"mean": mean, "spread": spread, "tolerance": tolerance}
    return {k: float(f"{v:.8g}") for k, v in rounded.items()} | {"null": measured[0]["null"]}


def _run_seed(notebook: Path, seed: int, out: Path) -> dict[str, Any]:
    """Execute the reduced preset with one seed and return its record; one that is newer than its inputs is reused."""
    if record := _finished(notebook, seed, out):
        return record
    command = [sys.executable, "-m", "helpers.execute", str(notebook), "--preset", "reduced", "--seed", str(seed)]
    done = subprocess.run([*command, "--out", str(out), "--calibrate"], capture_output=True, text=True)
    record = _finished(notebook, seed, out)
    if done.returncode or record is None:
        raise RuntimeError(f"seed {seed} failed: {done.stderr.strip()[-2000:]}")
    return record


def _finished(notebook: Path, seed: int, out: Path) -> dict[str, Any] | None:
    """The record of this seed below `out`, unless notebook, YAML files or the package changed after it was written."""
    inputs = [notebook, *notebook.parent.glob("*.yaml"), *PACKAGE.glob("*.py")]
    changed = max(path.stat().st_mtime for path in inputs if path.name != "expected.yaml")
    fresh = [path for path in out.rglob("*.json") if path.stat().st_mtime > changed]
    records = [record for path in fresh if (record := read_record(path))]
    return next((record for record in records if record["parameters"]["seed"] == seed), None)


app = typer.Typer(add_completion=False, help=__doc__)


@app.command()
def check(record_file: Path) -> None:
    """Compare one record with its chapter's expectations; exit 1 when it left them."""
    record = read_record(record_file)
    if record is None:
        typer.echo(f"{record_file}: no complete record", err=True)
        raise typer.Exit(1)
    expected = load_expected(record["paper"])
    if reason := applies(expected, record):
        typer.echo(f"{record['paper']}: not compared ({reason})")
        return
    if problems := compare(record, expected):
        typer.echo(f"{record['paper']}: " + "; ".join(problems), err=True)
        raise typer.Exit(1)
    typer.echo(f"{record['paper']}: {len(expected['metrics'])} metrics within tolerance")


@app.command()
def calibrate(
    paper: str,
    seeds: Annotated[str, typer.Option(help="comma-separated seeds, at least five")] = "0,1,2,3,4",
    jobs: Annotated[int, typer.Option(help="runs side by side")] = 2,
    keep: Annotated[Path | None, typer.Option(help="keep the runs in this folder, and continue there")] = None,
) -> None:
    """Write `expected.yaml` of a chapter from runs of its reduced preset with several seeds."""
    folder = chapter_dir(paper)
    notebook = folder / f"{paper}.ipynb"
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(jobs) as pool:
        out = keep or Path(scratch)
        work = [pool.submit(_run_seed, notebook, int(seed), out / f"calibrate-{seed}") for seed in seeds.split(",")]
        try:
            records = [job.result() for job in work]
            expected = expectations(records)
        except (RuntimeError, ValueError) as error:
            typer.echo(f"{paper}: nothing written: {error}", err=True)
            raise typer.Exit(1) from None
    text = "# Written by `python -m helpers.verify calibrate`; not edited by hand.\n"
    write_atomically(folder / "expected.yaml", text + yaml.safe_dump(json.loads(json.dumps(expected)), sort_keys=False))
    typer.echo(f"{paper}: expected.yaml written, {len(expected['metrics'])} metrics from {len(records)} seeds")


if __name__ == "__main__":
    app()
