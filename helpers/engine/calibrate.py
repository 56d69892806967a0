"""Calibration: runs of the reduced preset with several seeds give `expected.yaml`, which nothing else writes."""

import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import yaml

from helpers.engine.execute import find_notebook
from helpers.parameters import BadRequestError
from helpers.paths import PACKAGE, write_atomically
from helpers.record import Metric, Record, find_record, record_path
from helpers.verify import RELATIVE_FLOAT_NOISE, UNCALIBRATED, Expectation, Expected, K


def expectations(records: Sequence[Record]) -> Expected:
    """Build the content of `expected.yaml` from records that differ only in their seed.

    Raises:
        ValueError: fewer than five seeds, different parameters, no metric with a null value, or a tolerance that
            would accept a metric's null value (chance, zero effect).
    """
    records = sorted(records, key=lambda record: record.seed)
    first, seeds = records[0], [record.seed for record in records]
    if len(set(seeds)) < 5:
        raise ValueError(f"calibration needs at least 5 different seeds, got {seeds}")
    settings = [{k: v for k, v in r.parameters.items() if k not in UNCALIBRATED} for r in records]
    if any(s != settings[0] for s in settings):
        raise ValueError("calibration needs records that differ only in their seed")
    gated = [name for name, metric in first.metrics.items() if metric.gate]
    metrics = {name: _expectation([record.metrics[name] for record in records]) for name in gated}
    refused = [
        f"{name} ({entry.mean:.4g} ± {entry.tolerance:.2g} accepts {entry.null:.4g})"
        for name, entry in metrics.items()
        if entry.accepts_null()
    ]
    if refused:
        raise ValueError("a tolerance would accept the null value: " + "; ".join(refused))
    if all(entry.null is None for entry in metrics.values()):
        raise ValueError("no metric names its null value, so the gate could pass on chance")
    judged = [name for name, outcome in first.claims.items() if outcome.verdict != "not testable here"]
    return Expected(
        paper=first.paper,
        notebook=None if first.notebook == first.paper else first.notebook,
        k=K,
        seeds=seeds,
        parameters=settings[0],
        metrics=metrics,
        claims={name: [record.claims[name].verdict for record in records] for name in judged},
    )


def _expectation(measured: Sequence[Metric]) -> Expectation:
    values = np.array([metric.value for metric in measured], dtype=float)
    mean, spread = float(values.mean()), float(values.std(ddof=1))
    tolerance = max(K * spread, measured[0].floor, RELATIVE_FLOAT_NOISE * abs(mean))
    mean, spread, tolerance = (float(f"{v:.8g}") for v in (mean, spread, tolerance))
    return Expectation(mean=mean, spread=spread, tolerance=tolerance, null=measured[0].null)


def _run_seed(notebook: Path, seed: int, out: Path, running: set[subprocess.Popen]) -> Record:
    """Execute the reduced preset with one seed and return its record; one that is newer than its inputs is reused."""
    place = record_path(notebook.resolve().parent.name, notebook.stem, "reduced", seed, out=out)
    if _newer_than_inputs(place, notebook) and (record := find_record(place)):
        return record
    command = [sys.executable, "-m", "helpers.engine.cli", "run", str(notebook), "--seed", str(seed), "--out", str(out)]
    child = subprocess.Popen([*command, "--calibrate"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    running.add(child)
    said = child.communicate()[1].strip()
    running.discard(child)
    if child.returncode:
        raise RuntimeError(f"seed {seed} failed: {said[-2000:] or f'exit code {child.returncode}'}")
    return Record.read(place)


def _newer_than_inputs(record: Path, notebook: Path) -> bool:
    """Whether notebook, YAML files and the package are older than a record; False where there is none."""
    inputs = [notebook, *notebook.parent.glob("*.yaml"), *PACKAGE.glob("*.py")]
    changed = max(path.stat().st_mtime for path in inputs if not path.name.endswith(("expected.yaml", "guide.yaml")))
    return record.is_file() and record.stat().st_mtime > changed


def _run_seeds(notebook: Path, seeds: Sequence[int], jobs: int, keep: Path) -> list[Record]:
    """Execute all seeds, `jobs` at a time; after the first failure, or a signal, none is started and none goes on."""
    running: set[subprocess.Popen] = set()
    previous = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with ThreadPoolExecutor(jobs) as pool:
        work = [pool.submit(_run_seed, notebook, seed, keep / f"calibrate-{seed}", running) for seed in seeds]
        try:
            done, _ = wait(work, return_when=FIRST_EXCEPTION)
            # in the order of the seeds: of several failures, the first seed's is the one that is told
            for job in work:
                if job in done:
                    job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in list(running):
                child.terminate()
            raise
        finally:
            signal.signal(signal.SIGTERM, previous)
    return [job.result() for job in work]


def as_yaml(expected: Expected) -> str:
    """Return the text of the file."""
    content: dict[str, Any] = expected.model_dump(mode="json", by_alias=True, exclude_none=False)
    if expected.notebook is None:
        del content["notebook"]
    head = "# Written by `papers calibrate`; not edited by hand.\n"
    return head + yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120)


def calibrate_command(
    notebook: Annotated[str, typer.Argument(help="<paper> or <paper>/<notebook>")],
    seeds: Annotated[str, typer.Option(help="comma-separated seeds, at least five")] = "0,1,2,3,4",
    jobs: Annotated[int, typer.Option(min=1, help="runs side by side")] = 2,
    keep: Annotated[Path | None, typer.Option(help="keep the runs in this folder, and continue there")] = None,
) -> None:
    """Write a notebook's expected values from runs of its reduced preset with several seeds."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            path = find_notebook(notebook)
            if not re.fullmatch(r"\d{1,10}(,\d{1,10}){4,}", seeds):
                raise BadRequestError(f"--seeds {seeds}: at least five whole numbers, separated by commas")
            numbers = [int(seed) for seed in seeds.split(",")]
            expected = expectations(_run_seeds(path, numbers, jobs, keep or Path(scratch)))
        except BadRequestError as error:
            typer.echo(f"refused: {error}", err=True)
            raise typer.Exit(2) from None
        except (RuntimeError, ValueError) as error:
            typer.echo(f"{notebook}: nothing written: {error}", err=True)
            raise typer.Exit(1) from None
    write_atomically(path.parent / expected.file_name(), as_yaml(expected))
    said = f"{len(expected.metrics)} metrics and {len(expected.claims)} claims from {len(expected.seeds)} seeds"
    typer.echo(f"{notebook}: {expected.file_name()} written, {said}")
