"""Draw random requests inside the ranges that the notebooks declare, and see that each runs or is refused in one line.

    python -m tests.fuzz                              # 200 requests of every notebook, none executed
    python -m tests.fuzz seakr --draws 50 --execute 4 # 50 of seakr's notebooks, 4 of them through `papers run`

A declared range is a promise: what lies in it runs, or a cross-check of `presets.yaml` says in one line why not.
"""

import math
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from helpers.parameters import BadRequestError, Limits, limits_of, schema
from helpers.paths import notebooks_of
from helpers.request import FIXED, Request, load_presets, resolve

ROOT = Path(__file__).resolve().parents[1]
WIDE = 1000  # a range that spans more than this factor is drawn on a logarithmic scale


@dataclass(frozen=True)
class Draw:
    """One random request and what became of it: a checked request, or the line that refused it."""

    notebook: Path
    preset: str
    seed: int
    texts: dict[str, str]
    request: Request | None
    refused: str = ""

    @property
    def command(self) -> list[str]:
        """The same request as words for `papers`."""
        words = ["run", str(self.notebook), "--preset", self.preset, "--seed", str(self.seed)]
        words.append("--calibrate")  # expected values may be of another state of the chapter
        return words + [word for name, text in self.texts.items() for word in ("-p", f"{name}={text}")]


def notebooks(chapters: Path = ROOT / "notebooks") -> list[Path]:
    """All notebooks of all chapters."""
    return [path for folder in sorted(chapters.glob("*/")) for path in notebooks_of(folder)]


def bounds_of(model: type[BaseModel]) -> dict[str, tuple[type, Limits]]:
    """Type and limits of every parameter."""
    return {name: (field.annotation, limits_of(model, name)) for name, field in model.model_fields.items()}


def value(kind: type, limits: Limits, default: Any, rng: random.Random) -> Any:
    """A random value inside the limits, its ends included; the default where nothing bounds it."""
    if kind is bool:
        return rng.random() < 0.5
    if limits.choices:
        chosen = rng.choice(limits.choices)
        return [kind(chosen)] if kind is list else kind(chosen)
    if kind is list and limits.low is not None:
        return [number(type(part), limits, rng) for part in default]
    return default if limits.low is None or limits.high is None else number(kind, limits, rng)


def number(kind: type, limits: Limits, rng: random.Random) -> Any:
    """An end of the range one time in ten each, else a number between: on a logarithmic scale in a wide range."""
    low, high, where = float(limits.low or 0), float(limits.high or 0), rng.random()
    if where < 0.2:
        drawn = low if where < 0.1 else high
    elif low >= 0 and high > WIDE * max(low, 1e-6):
        start = max(low, 1.0 if kind is int else high * 1e-6)
        drawn = math.exp(rng.uniform(math.log(start), math.log(high)))
    else:
        drawn = rng.uniform(low, high)
    return min(max(round(drawn), math.ceil(low)), math.floor(high)) if kind is int else min(max(drawn, low), high)


def requests(notebook: Path, n: int, seed: int = 0) -> Iterator[Draw]:
    """Draw requests: a preset, a seed, and about half of the parameters.

    Raises:
        Any error but a BadRequestError, which is how a request is refused.
    """
    rng, model, presets = random.Random(f"{seed} {notebook.stem}"), schema(notebook), load_presets(notebook)
    bounds = {name: pair for name, pair in bounds_of(model).items() if name not in FIXED}
    for _ in range(n):
        preset, number_of_seed = rng.choice(list(presets.values)), rng.randrange(2**31)
        chosen = [name for name in bounds if rng.random() < 0.5]
        values = {name: value(*bounds[name], model.model_fields[name].default, rng) for name in chosen}
        texts = {name: drawn if isinstance(drawn, str) else repr(drawn) for name, drawn in values.items()}
        try:
            request = resolve(notebook, preset, number_of_seed, texts.items(), calibrate=True)
        except BadRequestError as error:
            yield Draw(notebook, preset, number_of_seed, texts, None, str(error))
        else:
            yield Draw(notebook, preset, number_of_seed, texts, request)


def fault(draw: Draw) -> str | None:
    """What is wrong with the way that a request was refused: more than a line, or no parameter named."""
    if draw.request is not None:
        return None
    if "\n" in draw.refused or not draw.refused:
        return f"not one line: {draw.refused!r}"
    names = schema(draw.notebook).model_fields
    return (
        None
        if any(re.search(rf"\b{name}\b", draw.refused) for name in names)
        else f"names no parameter: {draw.refused}"
    )


def main(
    papers: Annotated[list[str] | None, typer.Argument(help="chapters or <paper>/<notebook>; all by default")] = None,
    draws: Annotated[int, typer.Option(help="requests of each notebook")] = 200,
    execute: Annotated[int, typer.Option(help="how many of those that resolved to run, of each notebook")] = 0,
    preset: Annotated[str, typer.Option(help="execute requests of this preset only")] = "reduced",
    seed: Annotated[int, typer.Option(help="seed of the draws")] = 0,
) -> None:
    """Draw random requests, and execute some. Exit code 1: one was refused badly, or one that resolved did not run."""
    wrong = 0
    for path in notebooks():
        name = f"{path.parent.name}/{path.stem}"
        if papers and path.parent.name not in papers and name not in papers:
            continue
        drawn = list(requests(path, draws, seed))
        resolved = [draw for draw in drawn if draw.request]
        faults = [said for draw in drawn if (said := fault(draw))]
        typer.echo(f"{name}: {len(resolved)} of {draws} resolve, {len(faults)} refused badly")
        for said in dict.fromkeys(faults):
            typer.echo(f"  {said}")
        ran = [run(draw) for draw in [draw for draw in resolved if draw.preset == preset][:execute]]
        wrong += len(faults) + ran.count(False)
    raise typer.Exit(1 if wrong else 0)


def run(draw: Draw) -> bool:
    """Run a request through `papers run` and say how it ended; True when it succeeded."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "helpers.engine.cli", *draw.command, "--out", out]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    said = (done.stdout + done.stderr).strip().replace("\n", "\n    ").replace(out, "OUT")
    typer.echo(f"  papers {' '.join(draw.command)}\n    {said}")
    return done.returncode == 0


if __name__ == "__main__":
    typer.run(main)
