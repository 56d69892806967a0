"""Execute a notebook: a checked request, papermill in a child process within budgets, and a truthful status file.

    python -m helpers.execute notebooks/<paper>/<paper>.ipynb --preset reduced --seed 0 -p n_items 12 --out runs

Writes `<out>/<preset>/seed-<seed>/<paper>/<notebook>.ipynb` (kept however far the run came), `.status.json` and, only
when the run succeeded, the record `.json`. With `-p` the preset's folder carries the changed parameters in its name, so
that a trial never takes the place of a preset's run.

Exit code: 0 the run succeeded; 1 it did not, and status.json says how; 2 the request was refused before a kernel
started.
"""

import multiprocessing
import re
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import click
import psutil

from helpers.parameters import BadRequestError
from helpers.paths import read_record
from helpers.presets import Budget, Request, resolve
from helpers.status import Status, refused
from helpers.worker import work

POLL_S = 0.2
GRACE_S = 20  # for the child to save the partial notebook after its kernel was stopped
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
THREADS = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "VECLIB")}
ENVIRONMENT = THREADS | {"TOKENIZERS_PARALLELISM": "false", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}


class Tree:
    """The processes of a run: the child and everything below it, remembered after their parents die."""

    def __init__(self, pid: int) -> None:
        """Start with the child process `pid`."""
        self.root = psutil.Process(pid)
        self.seen: dict[int, psutil.Process] = {}

    def measure(self) -> int:
        """Look at all living processes once; return their resident memory in bytes."""
        with suppress(psutil.NoSuchProcess):
            self.seen |= {p.pid: p for p in self.root.children(recursive=True) if p.pid not in self.seen}
        total = 0
        for process in [self.root, *self.seen.values()]:
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total

    def kill(self, *, root: bool) -> None:
        """Kill the kernel and its children; with `root` the child process too."""
        self.measure()
        for process in [*self.seen.values(), *([self.root] if root else [])]:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def run_folder(out: Path, preset: str, seed: int, paper: str, overrides: Iterable[tuple[str, str]] = ()) -> Path:
    """Return the folder of a run's files below `out`."""
    changed = "".join(f"+{name}={re.sub(r'[^A-Za-z0-9_.-]', '_', text)[:40]}" for name, text in sorted(overrides))
    return out / (preset + changed) / f"seed-{seed}" / paper


def execute(
    notebook: Path,
    request: Request,
    folder: Path,
    *,
    environment: dict[str, str] | None = None,
    progress: bool = False,
) -> Status:
    """Run a checked request; return its status, which also lies in `folder`.

    Args:
        notebook: the source; it runs in its own folder, so that its YAML files are found.
        request: what `helpers.presets.resolve` returned.
        folder: where notebook, record and status go; what an earlier run left there is removed first.
        environment: more environment variables for the kernel.
        progress: print a line on standard error as each cell starts.
    """
    status = Status(notebook, folder, request.values)
    status.clear()
    status.write(finished=False)  # what a reader must believe if this very process is killed
    variables = ENVIRONMENT | {"REPRODUCTIONS_RECORD": str(status.record)} | (environment or {})
    job = (notebook.resolve(), status.executed, request.changed, variables, request.budget.cell_s)
    _supervise(status, job, request.budget, progress)
    if status.status == "ok" and not _record_fits(status.record, request):
        status.end("error", "NoRecordError", "the notebook ended without its record (its last call is run.finish())")
    if status.status != "ok":
        status.record.unlink(missing_ok=True)
    else:
        status.log.unlink(missing_ok=True)
    status.write(finished=True)
    return status


def _supervise(status: Status, job: tuple, budget: Budget, progress: bool) -> None:
    """Run the child, watch its budgets and signals, and tell `status` how it ended."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=work, args=(sender, *job))
    signals: list[int] = []
    previous = {number: signal.signal(number, lambda got, _: signals.append(got)) for number in SIGNALS}
    child.start()
    sender.close()
    tree, stopped_at = Tree(child.pid), None
    try:
        while True:
            status.peak_bytes = max(status.peak_bytes, tree.measure())
            now = time.monotonic()
            if stopped_at is None and (reason := _reason_to_stop(status, budget, signals, now)):
                status.end(*reason)
                stopped_at = now
            if stopped_at is not None:
                tree.kill(root=now - stopped_at > GRACE_S)
            try:
                event = receiver.recv() if receiver.poll(POLL_S) else None
            except EOFError:  # the child is gone
                break
            if event and event[0] == "cell":
                status.cell = {"index": event[1], "id": event[2]}
                if progress:
                    click.echo(f"{now - status.start:6.0f} s  cell {event[1]:3d}  {event[2]}", err=True)
            elif event and stopped_at is None:
                status.end(*event[1:])
                stopped_at = now  # nothing of the run may stay behind
    finally:
        tree.kill(root=True)
        child.join()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _reason_to_stop(status: Status, budget: Budget, signals: list[int], now: float) -> tuple[str, str, str] | None:
    """Return status, error type and message when a budget is spent or a signal came."""
    if signals:
        return "killed", "Interrupted", f"stopped by {signal.Signals(signals[0]).name}"
    if now - status.start > budget.wall_s:
        return "timeout", "WallBudgetError", f"the run took longer than its budget of {budget.wall_s:g} s"
    if status.peak_bytes > budget.memory_gb * 1e9:
        used = f"{status.peak_bytes / 1e9:.2f} GB"
        return "killed", "MemoryBudgetError", f"the run used {used}, its budget is {budget.memory_gb:g} GB"
    return None


def _record_fits(path: Path, request: Request) -> bool:
    """Tell whether the notebook wrote a complete record of this very request."""
    try:
        record = read_record(path)
    except ValueError:
        return False
    return record is not None and all(record["parameters"].get(k) == v for k, v in request.values.items())


@click.command(help=__doc__.replace("\n\n", "\n\n\b\n"))
@click.argument("notebook", type=click.Path(path_type=Path))
@click.option("--preset", default="reduced", show_default=True, help="a preset of presets.yaml")
@click.option("--seed", default=0, show_default=True, help="random seed")
@click.option("-p", "--parameter", "overrides", nargs=2, multiple=True, metavar="NAME VALUE", help="may be repeated")
@click.option("--out", type=click.Path(path_type=Path), default="runs", envvar="REPRODUCTIONS_RUNS", help="all runs")
@click.option("--calibrate", is_flag=True, help="do not compare with expected.yaml")
def main(
    notebook: Path, preset: str, seed: int, overrides: tuple[tuple[str, str], ...], out: Path, calibrate: bool
) -> None:
    """Execute a notebook from the command line."""
    folder = run_folder(out, preset, seed, notebook.resolve().parent.name, overrides)
    try:
        request = resolve(notebook, preset, seed, overrides)
    except BadRequestError as error:
        if folder.is_dir():  # an earlier run of this request no longer speaks for it
            refused(notebook, folder, {"preset": preset, "seed": seed}, str(error))
        click.echo(f"refused: {error}", err=True)
        sys.exit(2)
    environment = {"REPRODUCTIONS_CALIBRATE": "1"} if calibrate else {}
    status = execute(notebook, request, folder, environment=environment, progress=sys.stderr.isatty())
    click.echo(f"{status.summary()}, files in {folder}")
    if status.status != "ok":
        click.echo(status.failure(), err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
