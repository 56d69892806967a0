"""The child process of a run: papermill with an engine that reports each cell and keeps the notebook truthful.

Papermill marks every cell of a killed or timed-out run `completed`; here such a cell is `failed` and the rest stay
`pending`. It also saves at most every `SAVE_EVERY_S` seconds and always at the end, however the run ended.
"""

import os
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import papermill
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.engines import NBClientEngine, NotebookExecutionManager, papermill_engines
from papermill.exceptions import PapermillExecutionError
from papermill.iorw import load_notebook_node

from helpers.lock import Lock

SAVE_EVERY_S = 30
# Jupyter looks for free ports and the kernel takes them a second later; where another process was faster, the kernel
# dies before the first cell and is started once more.
NOT_STARTED = "Kernel died before replying"


def work(
    events: Connection,
    source: Path,
    target: Path,
    parameters: dict[str, Any],
    environment: dict[str, str],
    cell_s: float | None,
    lock: Lock,
) -> None:
    """Execute a notebook in this process, which becomes the leader of a session of its own.

    Sends `("cell", index, id)` as each code cell starts (index and id in the source notebook) and, last,
    `("end", status, error type, message)`; the two are None when no exception was raised.
    """
    os.setsid()
    with target.with_suffix(".log").open("wb") as log:  # what the kernel itself prints, above all when it crashes
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ.update(environment)
    papermill_engines.register("reporting", _engine(events, load_notebook_node(str(source))))
    try:
        papermill.execute_notebook(
            str(source),
            str(target),
            parameters,
            engine_name="reporting",
            progress_bar=False,
            cwd=source.parent,
            execution_timeout=cell_s,
            shutdown_kernel="immediate",
        )
    except PapermillExecutionError as error:
        events.send(("end", "error", error.ename, error.evalue))
    except CellTimeoutError:
        events.send(("end", "timeout", "CellTimeoutError", f"the cell ran longer than {cell_s:g} s"))
    except Exception as error:
        died = isinstance(error, DeadKernelError) or "Kernel died" in str(error)
        message = "the kernel died (killed from outside, out of memory, or a crash)" if died else str(error)
        events.send(("end", "killed" if died else "error", type(error).__name__, message))
    else:
        events.send(("end", "ok", None, None))


def _engine(events: Connection, source: Any) -> type[NBClientEngine]:
    """Return papermill's own engine with a manager that reports to `events`."""
    positions = {cell.id: index for index, cell in enumerate(source.cells)}

    class Manager(NotebookExecutionManager):
        """Papermill's bookkeeping, told truthfully and saved rarely."""

        saved = done = False

        def cell_start(self, cell: Any, cell_index: int | None = None, **kwargs: Any) -> None:
            if cell.cell_type == "code" and cell.id in positions:
                events.send(("cell", positions[cell.id], cell.id))
            super().cell_start(cell, cell_index, **kwargs)

        def cell_complete(self, cell: Any, cell_index: int | None = None, **kwargs: Any) -> None:
            if sys.exc_info()[1] is not None:  # papermill calls this in a `finally`, also for a dead kernel
                self.cell_exception(cell, cell_index)
            super().cell_complete(cell, cell_index, **kwargs)

        def notebook_complete(self, **kwargs: Any) -> None:
            self.done = True
            super().notebook_complete(**kwargs)

        def save(self, **kwargs: Any) -> None:
            if self.done or not self.saved or (self.now() - self.last_save_time).total_seconds() >= SAVE_EVERY_S:
                super().save(**kwargs)
                self.saved = True

    class Reporting(NBClientEngine):
        """Papermill's engine with that manager."""

        @classmethod
        def execute_notebook(
            cls,
            nb: Any,
            kernel_name: str,
            output_path: str | None = None,
            progress_bar: bool = False,
            log_output: bool = False,
            autosave_cell_every: int = 0,
            **kwargs: Any,
        ) -> Any:
            manager = Manager(nb, output_path=output_path, progress_bar=False)
            manager.notebook_start()
            try:
                for last in (False, True):
                    try:
                        cls.execute_managed_notebook(manager, kernel_name, **kwargs)
                        break
                    except RuntimeError as error:
                        if last or NOT_STARTED not in str(error):
                            raise
            finally:
                manager.notebook_complete()
            return manager.nb

    return Reporting
