"""One judgement of a run, for Snakemake, the book and the scoreboard: what it left, and whether it may be believed.

Snakemake imports this module when it reads the Snakefile, so nothing here imports a heavy package.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers.claims import load_claims
from helpers.code import Notebook, code_of
from helpers.engine.status import name_of, short
from helpers.paths import notebooks_of
from helpers.record import Record, RecordError
from helpers.verify import load_expected

# How a run is judged -> what a reader is told. "ok" to "killed" are words of the status file.
STATUS = {
    "ok": "ran to the end",
    "stale": "the notebook was changed after the run",
    "refused": "a file of the chapter is wrong, so nothing of it can be believed",
    "error": "a cell raised an error",
    "timeout": "the run took longer than its budget and was stopped",
    "killed": "the process was killed before it finished",
    "not run": "no run of this notebook was found",
    "no record": "the run left no record that belongs to it",
    "unreadable": "a file of the run cannot be read",
}


class NotebookError(ValueError):
    """A file that is not a notebook; the message is one line that names file and fault."""


@dataclass(frozen=True)
class Judgement:
    """What became of one run.

    Attributes:
        status: a key of STATUS.
        message: one line that says where and why; what STATUS says when there is no more to say.
        record: the record, only of a run that may be shown (ok or stale).
        details: what the status file said: `error` and `last_cell` are dictionaries or None.
        executed: the notebook that the run left, however far it came; None when there is none that can be read.
        source: the notebook as committed; None when it cannot be read.
    """

    status: str
    message: str
    record: Record | None = None
    details: dict[str, Any] = field(default_factory=dict)
    executed: Notebook | None = None
    source: Notebook | None = None

    @property
    def shown(self) -> bool:
        """Whether the run's results may be shown (those of a stale run with a warning)."""
        return self.record is not None


def chapters_of(notebooks: Path) -> list[Path]:
    """Return the folders of all chapters: those that are not hidden and hold a notebook."""
    return [path for path in sorted(notebooks.glob("[!._]*/")) if notebooks_of(path)]


def notebooks_by_name(notebooks: Path) -> dict[str, Path]:
    """Return every notebook of every chapter by what a person calls it."""
    paths = [path for folder in chapters_of(notebooks) for path in notebooks_of(folder)]
    return {name_of(path.parent.name, path.stem): path for path in paths}


def judge(notebook: Path, run: Path) -> Judgement:
    """Judge one run; what is not clearly a complete run of this notebook counts as failed.

    Args:
        notebook: the source notebook, `notebooks/<paper>/<name>.ipynb`.
        run: the run's files without their suffix (`.ipynb`, `.json`, `.status.json`).
    """
    faults: dict[str, str] = {}
    source = _notebook(notebook, faults)
    copy, record_file, status_file = (run.with_name(run.name + kind) for kind in (".ipynb", ".json", ".status.json"))
    if not any(path.exists() for path in (copy, record_file, status_file)):
        status, message = ("unreadable", faults["source"]) if faults else ("not run", STATUS["not run"])
        return Judgement(status, message, source=source)
    executed = _notebook(copy, faults, "executed")
    details = _details(status_file, faults)
    try:
        record = Record.read(record_file)
    except RecordError as fault:
        record, faults["record"] = None, str(fault)
    if record and (other := _differs(record, notebook, details)):
        record, faults["record"] = None, f"{record_file.name}: {other}"

    def judged(status: str, message: str) -> Judgement:
        shown = record if status in ("ok", "stale") else None
        return Judgement(status, short(message), shown, details, executed, source)

    if fault := _chapter_fault(notebook):
        return judged("refused", fault)
    ending = details.get("status", "ok")
    if "status" in faults:
        return judged("unreadable", faults["status"])
    if ending != "ok":
        return judged(ending if ending in STATUS else "error", _failure(details) or f"the status file says {ending!r}")
    if details.get("finished", "") is None:
        return judged("killed", "the run is not finished, or was stopped before it could report its end")
    # whatever the status file says: sys.exit() is no error to papermill
    if executed and (error := last_error(executed)):
        details = details | error
        return judged("error", _failure(details))
    if executed is None:
        return judged("unreadable", faults["executed"])
    if record is None:
        return judged("no record", faults["record"])
    if source is None:
        return judged("unreadable", faults["source"])
    if code_of(executed) != code_of(source):
        return judged("stale", STATUS["stale"])
    return judged("ok", STATUS["ok"])


def _chapter_fault(notebook: Path) -> str | None:
    """What is wrong with the rules that the run would be held against; None where a chapter has none."""
    claims = notebook.parent / "claims.yaml"
    try:
        if claims.exists():
            load_claims(claims)
        load_expected(notebook.parent, notebook.stem)
    except ValueError as error:
        return str(error)
    return None


def read_notebook(path: Path) -> Notebook:
    """Return a notebook that has cells and is one by the format's own schema.

    Raises:
        NotebookError: it is missing, damaged or empty.
    """
    from nbformat import validate  # half the time that everything else here needs to be imported

    content = _read_json(path)
    try:
        validate(content)
    except Exception as error:  # nbformat fails in many ways on what is no notebook at all
        said = (str(error).splitlines() or [""])[0]
        raise NotebookError(f"{path.name}: not a notebook: {said or type(error).__name__}") from None
    if content["nbformat"] != 4 or not content["cells"]:
        raise NotebookError(f"{path.name}: not a notebook of format 4 with cells")
    return content


def last_error(notebook: Notebook) -> dict[str, Any] | None:
    """Return cell and error of the first error output as a status file has them, or None when no cell failed."""
    for index, cell in enumerate(notebook["cells"]):
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                error = {"type": output.get("ename", "error"), "message": short(str(output.get("evalue", "")))}
                return {"error": error, "last_cell": {"index": index, "id": cell.get("id")}}
    return None


def _failure(details: dict[str, Any]) -> str:
    """Where and why a run failed, in one line; empty when the details do not say."""
    cell, error = details.get("last_cell"), details.get("error")
    where = f"cell {cell.get('index')} ({cell.get('id')}): " if cell else ""
    return f"{where}{error.get('type')}: {error.get('message')}" if error else where.removesuffix(": ")


def _differs(record: Record, notebook: Path, details: dict[str, Any]) -> str | None:
    """Why a record is not of this run: another notebook, or other parameters than the status file says."""
    if (record.paper, record.notebook) != (notebook.resolve().parent.name, notebook.stem):
        return f"the record is of {record.paper}/{record.notebook}"
    got = record.parameters | {"preset": record.preset}
    asked = details["parameters"] | {k: details[k] for k in ("preset", "seed") if k in details}
    other = [f"{k} = {got.get(k)!r} instead of {v!r}" for k, v in asked.items() if got.get(k) != v]
    return f"the record is of a run with {', '.join(other)}" if other else None


def _details(path: Path, faults: dict[str, str]) -> dict[str, Any]:
    """What a status file says; a run under nbmake has none."""
    try:
        content = _read_json(path) if path.exists() else {}
        if path.exists() and not isinstance(content.get("status"), str):
            raise NotebookError(f"{path.name}: says no status")
    except NotebookError as fault:
        content, faults["status"] = {}, str(fault)
    parts = {k: v if isinstance(v := content.get(k), dict) else None for k in ("error", "last_cell", "parameters")}
    return content | parts | {"parameters": parts["parameters"] or {}}


def _notebook(path: Path, faults: dict[str, str], kind: str = "source") -> Notebook | None:
    """The notebook, without the notes that papermill puts into a failed one; the book has its own."""
    try:
        notebook = read_notebook(path)
    except NotebookError as fault:
        faults[kind] = str(fault)
        return None
    cells = [c for c in notebook["cells"] if "papermill-error-cell-tag" not in c["metadata"].get("tags", [])]
    return notebook | {"cells": cells}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise NotebookError(f"{path.name}: no such file") from None
    except OSError as error:
        raise NotebookError(f"{path.name}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise NotebookError(f"{path.name}: not JSON") from None
    if not isinstance(content, dict):
        raise NotebookError(f"{path.name}: not a JSON object")
    return content
