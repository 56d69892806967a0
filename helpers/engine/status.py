"""The status file of a run: how it ended, where, and what it used. It starts as the sad truth and improves."""

import json
import re
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from helpers.paths import checkout, write_atomically


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

    def __init__(self, notebook: Path, folder: Path, parameters: dict[str, Any]) -> None:
        """Name the files; until `end` is called the run counts as killed."""
        folder = folder.resolve()
        self.executed, self.record, self.path, self.log = (
            folder / f"{notebook.stem}{kind}" for kind in (".ipynb", ".json", ".status.json", ".log")
        )
        self.identity = {"schema": 1, "paper": notebook.resolve().parent.name, "notebook": notebook.stem}
        self.identity |= {"preset": parameters["preset"], "seed": parameters["seed"], "parameters": parameters}
        self.end("killed", "Unfinished", "the run was stopped before it could report its end")
        self.cell: dict[str, Any] | None = None
        self.peak_bytes = 0
        self.start, self.started = time.monotonic(), _now()
        self.wall_s = 0.0

    def clear(self) -> None:
        """Remove what an earlier run left in these places."""
        for path in (self.record, self.executed, self.path, self.log):
            path.unlink(missing_ok=True)

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
        run = f"{self.identity['notebook']} ({self.identity['preset']}, seed {self.identity['seed']})"
        return f"{run}: {self.status} after {self.wall_s:.1f} s, peak memory {self.peak_bytes / 1e9:.2f} GB"

    def failure(self) -> str:
        """Return one line: in which cell and why a run failed."""
        where = f"cell {self.cell['index']} ({self.cell['id']}): " if self.cell else ""
        return f"{where}{self.error}: {self.message}"


def refused(notebook: Path, folder: Path, parameters: dict[str, Any], message: str) -> None:
    """Replace an earlier run's files by a status that says why its request is refused now."""
    status = Status(notebook, folder, parameters)
    status.clear()
    status.end("error", "BadRequestError", message)
    status.write(finished=True)


def short(message: str, limit: int = 800) -> str:
    """Return an error message on one line, without terminal colours and without the paths of this machine."""
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", message).split())
    for place, name in ((checkout(), "."), (Path(tempfile.gettempdir()), "<tmp>"), (Path.home(), "~")):
        if place is not None and len(place.parts) > 1:
            text = text.replace(f"{place}/", f"{name}/")
    text = re.sub(r"(?<![\w:/.~>-])/(?:[\w.@+-]+/)+([\w.@+-]+)", r".../\1", text)
    return text if len(text) <= limit else text[: limit - 4] + " ..."


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
