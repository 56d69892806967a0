"""Sweeps: one notebook over lists of parameters and seeds, as `sweeps/<name>.yaml` says.

    papers sweep rm_bench --cores 1 --commit

Every point is a run of its own with a folder of its own; Snakemake executes what is missing. Exit code: 0 all of it is
there, 1 something is missing (each failure is named), 2 the request was refused and nothing was started.
"""

import io
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import psutil
import typer
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from helpers.engine.plan import Run, failures, seeds_of
from helpers.parameters import FIXED, BadRequestError, hint
from helpers.paths import checkout, read_yaml, write_atomically
from helpers.record import Name, Preset, Record, first_fault
from helpers.request import resolve

READING = "{reading}"


class Measure(BaseModel):
    """A metric of the notebook's record (`{reading}` stands for a reading), and what a reader is told that it is."""

    model_config = ConfigDict(extra="forbid")

    metric: str
    label: str = Field(min_length=3)


class Sweep(BaseModel):
    """The content of `sweeps/<name>.yaml`.

    Attributes:
        title, question: what the page of the book says above the results; the question in Markdown.
        parameters: by name the values to try; all combinations are run.
        readings: what one run measures side by side, such as designs: a reader's name, and its part of metrics' names.
        seeds: every combination is run with each.
        validation: the best setting is the one with the best mean of this over seeds.
        prefer: which values of it are good.
        test: what is told of that setting; nothing is chosen by it.
    """

    model_config = ConfigDict(extra="forbid")

    title: str = Field(min_length=3)
    question: str = Field(min_length=10)
    paper: Name
    notebook: Name | None = None
    preset: Preset = "reduced"
    parameters: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(min_length=1)
    readings: dict[str, str] = {}
    seeds: Annotated[list[int], BeforeValidator(seeds_of)]
    validation: Measure
    prefer: Literal["high", "low"]
    test: Measure

    @model_validator(mode="after")
    def _readings_are_used(self) -> Self:
        if any((READING in measure.metric) != bool(self.readings) for measure in (self.validation, self.test)):
            raise ValueError(f"readings and {READING} in the names of both metrics belong together")
        return self

    @property
    def settings(self) -> list[dict[str, Any]]:
        """All combinations of the values, as written."""
        return [
            dict(zip(self.parameters, values, strict=True)) for values in itertools.product(*self.parameters.values())
        ]

    def source(self, root: Path) -> Path:
        """Return the notebook."""
        return root / "notebooks" / self.paper / f"{self.notebook or self.paper}.ipynb"

    def runs(self, root: Path) -> list[Run]:
        """Check every point as `papers run` would, and return the runs, setting by setting.

        Raises:
            BadRequestError: a point cannot be run, or two are the same run; one line.
        """
        runs, source = [], self.source(root)
        if not source.is_file():
            raise BadRequestError(f"no chapter or notebook {self.paper}/{source.stem}")
        if fixed := [name for name in FIXED if name in self.parameters]:
            raise BadRequestError(f"parameters: '{fixed[0]}' has a line of its own in the file")
        for setting in self.settings:
            words = [(name, str(value)) for name, value in setting.items()]
            changed = resolve(source, self.preset, self.seeds[0], words).changed
            if any(run.changed == changed for run in runs):
                raise BadRequestError(f"parameters: a value stands there twice ({_said(setting)})")
            runs += [Run(source, self.preset, seed, changed) for seed in self.seeds]
        resolve(source, self.preset, max(self.seeds))  # the range of the seed
        return runs


def _said(setting: dict[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in setting.items())


def load_sweep(name: str, root: Path) -> Sweep:
    """Read `sweeps/<name>.yaml`.

    Raises:
        BadRequestError: there is none, or it is wrong; one line that names file and field.
    """
    known = sorted(path.stem for path in (root / "sweeps").glob("*.yaml"))
    if name not in known:
        raise BadRequestError(f"no sweep '{name}'{hint(name, known)}; known: {', '.join(known) or 'none'}")
    try:
        return Sweep.model_validate(read_yaml(root / "sweeps" / f"{name}.yaml"))
    except ValidationError as error:
        raise BadRequestError(f"{name}.yaml: {first_fault(error).replace('Value error, ', '')}") from None
    except ValueError as error:
        raise BadRequestError(str(error)) from None


def plan(name: str, root: Path) -> tuple[Sweep, list[Run]]:
    """Return a sweep and its runs; BadRequestError, which names the file: one of them cannot be run."""
    sweep = load_sweep(name, root)
    try:
        return sweep, sweep.runs(root)
    except BadRequestError as error:
        raise BadRequestError(f"{name}.yaml: {error}") from None


def collect(name: str, root: Path, out: Path) -> str:
    """Return the table of a finished sweep as CSV: one line a run, with its setting, both metrics and what it cost.

    Raises:
        ValueError: a record is missing, or has no such metric; one line.
    """
    import pandas as pd  # takes a second, and only this needs it

    sweep, runs = plan(name, root)
    settings = [setting for setting in sweep.settings for _ in sweep.seeds]
    rows = []
    for setting, run in zip(settings, runs, strict=True):
        record = Record.read(run.place(out).with_suffix(".json"))
        card = {key: record.card.get(key) for key in ("wall_s", "peak_memory_mb", "commit", "code")}
        for said, part in (sweep.readings or {"": ""}).items():
            row = setting | ({"reading": said} if said else {}) | {"seed": run.seed}
            for measure in (sweep.validation, sweep.test):
                metric = measure.metric.replace(READING, part)
                if metric not in record.metrics:
                    raise ValueError(f"{name}.yaml: no metric '{metric}'{hint(metric, record.metrics)}")
                row[measure.label] = record.metrics[metric].value
            rows.append(row | card)
    buffer = io.StringIO()
    pd.DataFrame(rows).to_csv(buffer, index=False, lineterminator="\n")
    return buffer.getvalue()


def stale_lock(root: Path) -> str | None:
    """Say whose lock Snakemake stumbles over in this folder; None when there is none."""
    if not any((root / ".snakemake" / "locks").glob("*")):
        return None
    for process in psutil.process_iter(["cmdline", "cwd"]):
        words = process.info["cmdline"] or []
        if process.info["cwd"] == str(root) and any(word.endswith("snakemake") for word in words[:3]):
            return f"another Snakemake (process {process.pid}) works in this folder: wait for it, or stop it"
    return (
        "a Snakemake that was killed has left its lock; nobody holds it now. Free it with\n  snakemake --unlock\n"
        "and start again: runs that still go on are waited for, finished ones are kept"
    )


def sweep_command(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="a file of the folder sweeps, without .yaml")],
    out: Annotated[Path, typer.Option(envvar="REPRODUCTIONS_RUNS", help="folder of all runs")] = Path("runs"),
    cores: Annotated[int | None, typer.Option(min=1, help="runs side by side [as the profile says: 2]")] = None,
    check: Annotated[bool, typer.Option(help="check the sweep, and start nothing")] = False,
    only_collect: Annotated[bool, typer.Option("--collect", help="write the table of runs that are there")] = False,
    commit: Annotated[bool, typer.Option(help="write the table to results/sweeps, too, for the book")] = False,
) -> None:
    """Execute what is missing of a sweep; further options, such as --workflow-profile, go to Snakemake."""
    root, out = checkout() or Path.cwd(), out.absolute()
    table = out / "sweeps" / f"{name}.csv"
    try:
        _, runs = plan(name, root)
        if only_collect:
            write_atomically(table, collect(name, root, out))
            return
    except BadRequestError as error:
        typer.echo(f"refused: {error}", err=True)
        raise typer.Exit(2) from None
    except ValueError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    typer.echo(f"{name}: {len(runs)} runs, {len(failures(runs, out))} of them not finished")
    if check:
        return
    folder = out.relative_to(root) if out.is_relative_to(root) else out  # as plain `snakemake` calls it
    command = [sys.executable, "-m", "snakemake", *(["--cores", str(cores)] if cores else []), *context.args]
    if subprocess.run([*command, "--config", f"sweep={name}", f"runs={folder}"], cwd=root).returncode:
        typer.echo(stale_lock(root) or f"{name}: not complete; start it again to go on", err=True)
        raise typer.Exit(1)
    if commit:
        write_atomically(root / "results" / "sweeps" / table.name, table.read_bytes())
    typer.echo(f"{name}: all {len(runs)} runs are there, table in {table}")
