"""What a batch executes: its runs, their seeds, and the order in which they start.

Snakemake imports this module when it reads the Snakefile, so nothing here imports a heavy package.
"""

import json
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from helpers.engine.judge import Judgement, judge
from helpers.engine.status import name_of
from helpers.parameters import BadRequestError
from helpers.paths import PACKAGE
from helpers.record import committed_records, record_path
from helpers.request import load_presets
from helpers.verify import compare, expected_of

MANY = 10_000  # seeds in one batch; more is a slip of the keyboard


@dataclass(frozen=True)
class Run:
    """One run of a batch; `changed` holds the parameters that differ from the preset."""

    notebook: Path
    preset: str
    seed: int
    changed: dict[str, Any] = field(default_factory=dict)

    def place(self, out: Path) -> Path:
        """Return the run's files below the folder of all runs, without their suffix."""
        about = (self.notebook.parent.name, self.notebook.stem, self.preset, self.seed, self.changed)
        return record_path(*about, out=out).with_suffix("")

    @property
    def name(self) -> str:
        """What a person calls the run."""
        changes = "".join(f", {key} = {value}" for key, value in self.changed.items())
        return f"{name_of(self.notebook.parent.name, self.notebook.stem)} (seed {self.seed}{changes})"

    @property
    def words(self) -> list[str]:
        """The run on the command line of `papers run`."""
        changes = [word for name, value in self.changed.items() for word in ("-p", f"{name}={value}")]
        return [str(self.notebook), "--preset", self.preset, "--seed", str(self.seed), *changes]


def seeds_of(given: Any) -> list[int]:
    """Return the seeds that a person named: a number, a range such as "0-4", several with commas, or a list.

    Raises:
        BadRequestError: not understood, too many, or one of them twice; one line.
    """
    texts = [str(part).strip() for part in given] if isinstance(given, list) else str(given).split(",")
    seeds: list[int] = []
    for part in texts:
        ends = re.fullmatch(r"(\d{1,10})(?:-(\d{1,10}))?", part, re.ASCII)
        first, last = (int(ends[1]), int(ends[2] or ends[1])) if ends else (1, 0)
        if last < first:
            said = f"seeds={given}: whole numbers from 0 on are needed, such as 0-4 or 0,1,2"
            raise BadRequestError(f"{said}; '{part}' is none")
        if last - first >= MANY or len(seeds) >= MANY:
            raise BadRequestError(f"seeds={given}: more than {MANY:,} seeds")
        seeds += range(first, last + 1)
    if not seeds or len(set(seeds)) < len(seeds):
        raise BadRequestError(f"seeds={given}: {'a seed stands there twice' if seeds else 'no seed'}")
    return seeds


def failures(runs: Iterable[Run], out: Path) -> list[str]:
    """Return one line for every run that has no good record."""
    lines = []
    for run in runs:
        place = run.place(out)
        judgement = judge(run.notebook, place)
        try:
            load_presets(run.notebook)
        except ValueError as error:
            lines.append(f"{run.name}: refused: {error}")
            continue
        if judgement.status != "ok":
            lines.append(f"{run.name}: {judgement.status}: {judgement.message}")
        elif not place.with_suffix(".done").exists():
            lines.append(f"{run.name}: was not executed")
    return lines


def is_current(judgement: Judgement, notebook: Path, values: dict[str, Any]) -> bool:
    """Whether a run is good, of these parameters, and started after the last change of all that it depends on.

    Good also means within the expected values: a run of calibration was compared with nothing.
    """
    if judgement.status != "ok" or judgement.record is None or judgement.record.parameters != values:
        return False
    expected, _ = expected_of(notebook.parent, notebook.stem, judgement.record.preset, values)
    if expected and compare(judgement.record, expected):
        return False
    files = [
        notebook,
        *notebook.parent.glob("*.yaml"),
        *PACKAGE.glob("*.py"),
        *PACKAGE.parent.glob("requirements*.lock"),
    ]
    changed = max(path.stat().st_mtime for path in files if path.name != "guide.yaml")
    with suppress(KeyError, ValueError):
        return datetime.fromisoformat(judgement.details["started"]).timestamp() > changed
    return False


def seconds_of(notebook: Path, preset: str, out: Path) -> float:
    """Guess how long a run takes: as the latest one did here, as the committed one did, else by budget and length."""
    found = sorted(
        out.glob(f"{preset}*/*/{notebook.parent.name}/{notebook.stem}.status.json"), key=lambda p: p.stat().st_mtime
    )
    with suppress(IndexError, OSError, ValueError, KeyError):
        return float(json.loads(found[-1].read_bytes())["wall_s"])
    with suppress(KeyError, TypeError, ValueError):  # there is no record, or it does not say
        return float(committed_records(notebook.parent.name, notebook.stem)[preset].card["wall_s"])
    with suppress(BadRequestError, KeyError):
        return load_presets(notebook).budgets[preset].wall_s * min(1.0, notebook.stat().st_size / 2e5)
    return 0.0
