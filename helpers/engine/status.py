"""The status file of a run: how it ended, where, and what it used. It starts as the sad truth and improves."""

import json
import os
import re
import shutil
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from helpers.paths import checkout, write_atomically
from helpers.record import find_record


class Status:
    """What is known of one run, and the files that it leaves.

    Attributes:
        executed, record, path, log: the executed notebook, the record, the status file and what the kernel printed
            outside its cells (kept only for a failed run), as absolute paths.
        status: "ok", "error", "timeout" or "killed".
        error, message: type and text of what ended the run; None after a success.
        cell: index and id (in the source notebook) of the last code cell that was started.
        peak_bytes: largest resident memory of all processes of the run together.
    """

    def __init__(self, notebook: Path, record: Path, parameters: dict[str, Any]) -> None:
        """Name the files; until `end` is called the run counts as killed.

        Args:
            notebook: the source.
            record: where its record goes; the other files stand beside it.
            parameters: every parameter of the run.
        """
        self.record, stem = record, record.stem
        self.executed, self.path, self.log = (
            record.with_name(f"{stem}{kind}") for kind in (".ipynb", ".status.json", ".log")
        )
        self.before = record.with_name(f"{stem}.before")
        self.identity = {"schema": 1, "paper": notebook.resolve().parent.name, "notebook": notebook.stem}
        self.identity |= {"preset": parameters["preset"], "seed": parameters["seed"], "parameters": parameters}
        self.end("killed", "Unfinished", "the run was stopped before it could report its end")
        self.cell: dict[str, Any] | None = None
        self.peak_bytes = 0
        self.start, self.started = time.monotonic(), _now()
        self.wall_s = 0.0

    def set_aside(self) -> None:
        """Move what an earlier good run left out of the way.

        The record moves last: where this is interrupted, the next start finds it and goes on with the rest.
        """
        self.moved = find_record(self.record) is not None
        if self.moved:
            if (self.before / self.record.name).exists():  # complete, of the run before that one
                shutil.rmtree(self.before, ignore_errors=True)
            self.before.mkdir(exist_ok=True)
            for path in self._files():
                if path.exists():
                    os.replace(path, self.before / path.name)

    def begin(self) -> None:
        """Say that the run goes on, and remove what a failed one left.

        Raises:
            OSError: that cannot be written; then everything is as it was before `set_aside`.
        """
        try:
            self.write(finished=False)  # what a reader must believe if this very process is killed
        except OSError:
            self._put_back()
            raise
        for path in (self.executed, self.record, self.log):
            path.unlink(missing_ok=True)

    def _put_back(self) -> None:
        """Undo `set_aside`; a good run from before a failed one stays where it is, since the failed one is the last."""
        if not self.moved:
            return
        for path in self._files():
            if (self.before / path.name).exists():
                os.replace(self.before / path.name, path)
        shutil.rmtree(self.before, ignore_errors=True)

    def _files(self) -> tuple[Path, ...]:
        """What a good run leaves, the record last."""
        return self.executed, self.path, self.record.with_suffix(".figures"), self.record

    def settle(self) -> None:
        """Write the last word; after a success what was set aside is no longer needed."""
        self.write(finished=True)
        if self.status == "ok":
            self.log.unlink(missing_ok=True)
            shutil.rmtree(self.before, ignore_errors=True)
        else:
            self.record.unlink(missing_ok=True)

    def end(self, status: str, error: str | None = None, message: str | None = None) -> None:
        """Set how the run ended."""
        self.status, self.error, self.message = status, error, None if message is None else short(message)

    def write(self, *, finished: bool) -> None:
        """Write the status file atomically."""
        self.wall_s = round(time.monotonic() - self.start, 2)
        content = self.identity | {
            "status": self.status,
            "error": None if self.error is None else {"type": self.error, "message": self.message},
            "last_cell": self.cell,
            "wall_s": self.wall_s,
            "peak_memory_mb": round(self.peak_bytes / 1e6, 1),
            "started": self.started,
            "finished": _now() if finished else None,
        }
        write_atomically(self.path, json.dumps(content, indent=1) + "\n")

    def summary(self) -> str:
        """Return one line: which run, how it ended, time and memory."""
        name = name_of(self.identity["paper"], self.identity["notebook"])
        run = f"{name} ({self.identity['preset']}, seed {self.identity['seed']})"
        return f"{run}: {self.status} after {self.wall_s:.1f} s, peak memory {self.peak_bytes / 1e9:.2f} GB"

    def failure(self) -> str:
        """Return one line: in which cell and why a run failed."""
        where = f"cell {self.cell['index']} ({self.cell['id']}): " if self.cell else ""
        kept = f" (an earlier good run is kept in {self.before.name})" if self.before.is_dir() else ""
        return f"{where}{self.error}: {self.message}{kept}"


def name_of(paper: str, notebook: str) -> str:
    """Return what a person calls a notebook: `<paper>` for the chapter's main one, else `<paper>/<notebook>`."""
    return paper if notebook == paper else f"{paper}/{notebook}"


def short(message: str, limit: int = 800) -> str:
    """Return an error message on one line, without terminal colours and without the paths of this machine."""
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", message).split())
    home = Path(os.path.expanduser("~"))  # unlike Path.home() it does not raise where there is none
    for place, name in ((checkout(), "."), (Path(tempfile.gettempdir()), "<tmp>"), (home, "~")):
        if place is not None and len(place.parts) > 1:
            text = text.replace(f"{place}/", f"{name}/")
    text = re.sub(r"(?<![\w:/.~>-])/(?:[\w.@+-]+/)+([\w.@+-]+)", r".../\1", text)
    return text if len(text) <= limit else text[: limit - 4] + " ..."


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
