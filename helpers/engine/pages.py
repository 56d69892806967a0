"""What stands behind a page: the source notebook, its run, the record, and whether the run may be shown."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers.claims import PRESETS
from helpers.status import short

Notebook = dict[str, Any]

# Status of a page -> what a reader is told. The first four come from `helpers.execute`.
STATUS = {
    "ok": "ran to the end",
    "error": "a cell raised an error",
    "timeout": "the run took longer than its budget and was stopped",
    "killed": "the process was killed before it finished",
    "not run": "no run of this chapter was found",
    "no record": "the run wrote no complete record",
    "unreadable": "the executed notebook cannot be read",
}


@dataclass(frozen=True)
class Page:
    """One notebook of a chapter with the run that it shows.

    Attributes:
        paper, name: folder and stem of the source notebook.
        source: the notebook as committed, without outputs.
        executed: the notebook of the run; None when there is none that can be read.
        record: the record of the run; None unless the run may be shown.
        status: a key of STATUS, or another word that a status file used.
        details: what the status file said (last cell, message, memory ...).
        stale: the source changed after the run.
    """

    paper: str
    name: str
    source: Notebook
    executed: Notebook | None
    record: dict[str, Any] | None
    status: str
    details: dict[str, Any] = field(default_factory=dict)
    stale: bool = False

    @property
    def ok(self) -> bool:
        """Whether the run may be shown."""
        return self.status == "ok"

    @property
    def docname(self) -> str:
        """The page's place in the book; the same as the notebook's place in the repository."""
        return f"notebooks/{self.paper}/{self.name}"

    @property
    def preset(self) -> str:
        """The preset of the run, `reduced` when the run did not say."""
        return (self.record or self.details).get("preset", "reduced")

    @property
    def title(self) -> str:
        """The first heading of the notebook, without markup."""
        match = re.search(r"^# +(.+?) *$", source_of(self.source["cells"][0]), re.MULTILINE)
        return re.sub(r"[*`$]|\{\w+\}", "", match[1]) if match else self.paper


def find_pages(notebooks: Path, runs: Path) -> list[Page]:
    """Return a page for every `notebooks/<paper>/<name>.ipynb`, the chapter's main notebook first."""
    paths = sorted(notebooks.glob("*/*.ipynb"), key=lambda p: (p.parent.name, p.stem != p.parent.name, p.stem))
    return [load_page(path, runs / path.parent.name / path.stem) for path in paths]


def load_page(path: Path, run: Path) -> Page:
    """Judge one run; everything that is not clearly a complete run counts as failed.

    Args:
        path: the source notebook.
        run: the run's files without their suffix (`.ipynb`, `.json`, `.status.json`).

    Raises:
        ValueError: the source notebook itself cannot be read.
    """
    source = read_notebook(path)
    if source is None:
        raise ValueError(f"{path}: not a notebook")
    copy = run.with_name(run.name + ".ipynb")
    executed = without_notes(read_notebook(copy))
    record = read_json(run.with_name(run.name + ".json"))
    status_file = run.with_name(run.name + ".status.json")
    details = read_json(status_file) or {}
    error = last_error(executed) if executed else None
    if status_file.is_file() and details.get("status") != "ok":
        status = str(details.get("status", "error"))
    elif error:
        status, details = "error", details | error  # even when the status file says ok
    elif not copy.is_file() and record is None:
        status = "not run"
    elif executed is None:
        status = "unreadable"
    elif record is None or record.get("complete") is not True:
        status = "no record"
    else:
        status = "ok"
    stale = status == "ok" and code_of(executed) != code_of(source)
    shown = record if status == "ok" else None
    return Page(path.parent.name, path.stem, source, executed, shown, status, details, stale)


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object at `path`, or None when there is none or it is damaged."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def read_notebook(path: Path) -> Notebook | None:
    """Return the notebook at `path`, or None when it is missing, damaged or has no cells."""
    content = read_json(path)
    return content if content and content.get("nbformat") == 4 and content.get("cells") else None


def without_notes(notebook: Notebook | None) -> Notebook | None:
    """Drop the notes that papermill puts into a failed notebook; the book has its own."""
    if notebook is None:
        return None
    cells = [c for c in notebook["cells"] if "papermill-error-cell-tag" not in c["metadata"].get("tags", [])]
    return notebook | {"cells": cells} if cells else None


def source_of(cell: dict[str, Any]) -> str:
    """Return a cell's source as one string."""
    return "".join(cell["source"])


def code_of(notebook: Notebook) -> list[str]:
    """Return the sources of the code cells, without the cell that papermill injects."""
    cells = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    return [source_of(c) for c in cells if "injected-parameters" not in c["metadata"].get("tags", [])]


def last_error(notebook: Notebook) -> dict[str, Any] | None:
    """Return cell and error of the first error output as a status file has them, or None when no cell failed."""
    for index, cell in enumerate(notebook["cells"]):
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                error = {"type": output.get("ename", "error"), "message": short(output.get("evalue", ""))}
                return {"error": error, "last_cell": {"index": index, "id": cell.get("id")}}
    return None


def committed_records(results: Path, paper: str) -> dict[str, dict[str, Any]]:
    """Return the complete committed records of a chapter by preset, from `results/<preset>/<paper>.json`."""
    found = {preset: read_json(results / preset / f"{paper}.json") for preset in PRESETS}
    return {preset: record for preset, record in found.items() if record and record.get("complete") is True}
