"""The record of a run: its schema, its place, and the only code that writes and reads it."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from helpers.paths import results_dir, runs_dir, write_atomically

Preset = Literal["reduced", "public", "gpu", "full"]  # from small to large
PRESETS: tuple[Preset, ...] = get_args(Preset)
Name = Annotated[str, Field(pattern=r"^\w[\w .&'$-]*$", max_length=100)]  # of a folder, never a path
Verdict = Literal["reproduced", "contradicted", "inconclusive", "not testable here"]
READABLE = 60  # characters of a trial's folder name that say what was changed


class RecordError(ValueError):
    """A file that is not a complete record; the message is one line that names file and fault."""


def first_fault(error: ValidationError, *within: str) -> str:
    """Return what is wrong first, in one line: the field (`within`: what it stands in), if there is one, and why."""
    first = error.errors()[0]
    field = ".".join([*within, *map(str, first["loc"])])
    return f"{field}: {first['msg']}" if field else first["msg"]


class Metric(BaseModel):
    """A measured number; `value` is None where a trial at odd sizes left it undefined."""

    model_config = ConfigDict(allow_inf_nan=False)

    value: float | None
    interval: tuple[float, float] | None = None
    n: int | None = None
    unit: str = ""
    null: float | None = None
    floor: float = 1e-6
    gate: bool = True


class Outcome(BaseModel):
    """How one claim fared. Without numbers: `reason` says why."""

    model_config = ConfigDict(allow_inf_nan=False)

    verdict: Verdict
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    level: float | None = None
    reason: str | None = None


class Record(BaseModel):
    """What a run measured, on what, and what became of the claims. Schema 1 in all its parts.

    Attributes:
        notebook: stem of the notebook; that of the main notebook is the paper's name.
        changed: parameters that differ from the named preset; such a run is a trial and speaks for no preset.
        figures: figure -> its CSV beside the record, or None.
        card: what produced the record (see `helpers.card`).
    """

    model_config = ConfigDict(populate_by_name=True, allow_inf_nan=False)

    schema_: Literal[1] = Field(default=1, alias="schema")
    paper: Name
    notebook: Name
    preset: Preset
    parameters: dict[str, Any]
    changed: dict[str, Any] = {}
    metrics: dict[str, Metric]
    claims: dict[str, Outcome]
    figures: dict[str, str | None] = {}
    card: dict[str, Any]
    complete: Literal[True] = True

    @property
    def seed(self) -> int:
        """The random seed."""
        return self.parameters["seed"]

    def dump(self) -> dict[str, Any]:
        """Return the record as plain JSON values; fields that say nothing are left out of the claims."""
        content = self.model_dump(mode="json", by_alias=True)
        for outcome in content["claims"].values():
            for name in [name for name, value in outcome.items() if value is None]:
                del outcome[name]
        return content

    def write(self, path: Path) -> None:
        """Write the record so that a reader sees the old file or the new one, never a part."""
        write_atomically(path, json.dumps(self.dump(), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a record.

        Raises:
            RecordError: there is none, or it is damaged or not complete.
        """
        try:
            record = cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise RecordError(f"{path.name}: no such record") from None
        except OSError as error:
            raise RecordError(f"{path.name}: cannot be read ({error.strerror})") from None
        except ValidationError as error:
            raise RecordError(f"{path.name}: not a complete record: {first_fault(error)}") from None
        if not isinstance(record.parameters.get("seed"), int):
            raise RecordError(f"{path.name}: not a complete record: parameters.seed: an integer is needed")
        return record


def find_record(path: Path) -> Record | None:
    """Return the record at `path`, or None when there is none that is complete."""
    try:
        return Record.read(path)
    except RecordError:
        return None


def committed_records(paper: str, notebook: str | None = None, results: Path | None = None) -> dict[str, Record]:
    """Return the committed records of a notebook by preset, from `results/<preset>/<paper>/<notebook>.json`.

    A trial speaks for no preset, wherever its record lies.
    """
    folder = results or results_dir()
    found = {preset: find_record(folder / preset / paper / f"{notebook or paper}.json") for preset in PRESETS}
    return {preset: record for preset, record in found.items() if record and not record.changed}


def variant(preset: str, changed: Mapping[str, Any] = {}) -> str:
    """Return the folder name of a preset, or of a trial that changes it: readable part, then a hash of exact values."""
    if not changed:
        return preset
    exact = json.dumps(dict(changed), sort_keys=True, default=str)
    said = ",".join(f"{name}={re.sub(r'[^A-Za-z0-9_.-]', '_', str(value))}" for name, value in sorted(changed.items()))
    return f"{preset}+{said[:READABLE]}~{hashlib.sha256(exact.encode()).hexdigest()[:8]}"


def record_path(
    paper: str, notebook: str, preset: str, seed: int, changed: Mapping[str, Any] = {}, out: Path | None = None
) -> Path:
    """Return where a run's record goes: `REPRODUCTIONS_RECORD`, or its place below `out` (default: `runs_dir()`)."""
    if out is None and (exact := os.environ.get("REPRODUCTIONS_RECORD")):
        return Path(exact)
    return (out or runs_dir()) / variant(preset, changed) / f"seed-{seed}" / paper / f"{notebook}.json"
