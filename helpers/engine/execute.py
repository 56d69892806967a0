"""Execute a notebook: a checked request, papermill in a child process within budgets, and a truthful status file.

    papers run rm_bench --preset reduced --seed 0 -p n_items 12 --out runs

Writes `<out>/<preset>/seed-<seed>/<paper>/<notebook>.ipynb` (kept however far the run came), `.status.json` and, only
when the run succeeded, the record `.json`. With `-p` or `--scale` the preset's folder gets a name of its own, so that a
trial never takes the place of a preset's run. An earlier good run is kept in `<notebook>.before` until this one
succeeded.

Exit code: 0 the run succeeded; 1 it did not, and status.json says how; 2 the request was refused, nothing was touched.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from helpers.engine.judge import judge, last_error, notebooks_by_name, read_notebook
from helpers.engine.plan import is_current
from helpers.engine.processes import Tree, die_with, lock_when_free
from helpers.engine.status import Status
from helpers.lock import LockedError, lock_of
from helpers.parameters import BadRequestError, hint
from helpers.paths import checkout
from helpers.record import Record, RecordError, record_path
from helpers.request import Budget, Request, resolve

POLL_S = 0.2
PATIENCE = 50  # reading the memory of a large process takes time: at most 1/50 of one core goes into it
GRACE_S = 20  # for the child to save the partial notebook after its kernel was stopped
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
THREADS = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "VECLIB")}
ENVIRONMENT = THREADS | {"TOKENIZERS_PARALLELISM": "false", "PYDEVD_DISABLE_FILE_VALIDATION": "1", "PYTHONUTF8": "1"}


def find_notebook(target: str) -> Path:
    """Return the notebook that a person named: a path, `<paper>` or `<paper>/<notebook>`.

    Raises:
        BadRequestError: there is none; near misses are offered.
    """
    if target.endswith(".ipynb") or Path(target).is_file():
        if not Path(target).is_file():
            raise BadRequestError(f"{target}: no such notebook")
        return Path(target)
    known = notebooks_by_name((checkout() or Path.cwd()) / "notebooks")
    paper, _, study = target.partition("/")
    name = paper if study in ("", paper) else target
    if name not in known:
        raise BadRequestError(
            f"no chapter or notebook '{target}'{hint(name, known)}; known: {', '.join(known) or 'none'}"
        )
    return known[name]


def execute(
    notebook: Path,
    request: Request,
    out: Path,
    *,
    environment: dict[str, str] | None = None,
    progress: bool = False,
    wait: bool = False,
) -> Status | None:
    """Run a checked request; return its status, which also lies beside the record.

    Args:
        notebook: the source; it runs in its own folder, so that its YAML files are found.
        request: what `helpers.request.resolve` returned.
        out: the folder of all runs.
        environment: more environment variables for the kernel.
        progress: print a line on standard error as each cell starts.
        wait: wait for another process that executes this request, and take a good run that is newer than all that it
            depends on; then None is returned.

    Raises:
        LockedError: this very request is being executed already, and nobody wants to `wait`.
        OSError: its files cannot be written.
    """
    where = (request.paper, request.notebook, request.preset, request.seed, request.changed)
    record = record_path(*where, out=out.absolute())
    lock = lock_when_free(record) if wait else lock_of(record)
    try:
        if wait and is_current(judge(notebook, record.with_suffix("")), notebook, request.values):
            return None
        status = Status(notebook, record, request.values)
        status.set_aside()
        status.begin()
        variables = ENVIRONMENT | _absolute() | {"REPRODUCTIONS_RECORD": str(status.record)} | (environment or {})
        job = (notebook.resolve(), status.executed, request.injected, variables, request.budget.cell_s, lock)
        _supervise(status, job, request.budget, progress)
        if status.status == "ok" and (error := last_error(read_notebook(status.executed))):
            # papermill takes sys.exit() for an end
            status.end("error", error["error"]["type"], error["error"]["message"])
            status.cell = error["last_cell"]
        if status.status == "ok" and (problem := _unfit(status.record, request)):
            status.end("error", "NoRecordError", problem)
        status.settle()
    finally:
        lock.release()
    return status


def _absolute() -> dict[str, str]:
    """Folders that the environment names, made absolute: the kernel works in the notebook's folder."""
    names = [name for name in os.environ if name.startswith("REPRODUCTIONS_")]
    folders = [name for name in names if name.split("_")[1] in ("DATA", "MODELS", "RUNS", "CHAPTERS")]
    return {name: str(Path(os.path.expanduser(os.environ[name])).absolute()) for name in folders if os.environ[name]}


def _child(*job: Any) -> None:
    """Do the work; papermill takes two seconds to import, and only this process needs it."""
    threading.Thread(target=die_with, args=(os.getppid(),), daemon=True).start()
    from helpers.engine.worker import work

    work(*job)


def _supervise(status: Status, job: tuple, budget: Budget, progress: bool) -> None:
    """Run the child, watch its budgets and signals, and tell `status` how it ended."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(sender, *job))
    signals: list[int] = []
    previous = {number: signal.signal(number, lambda got, _: signals.append(got)) for number in SIGNALS}
    child.start()
    sender.close()
    tree, stopped_at, look_at = Tree(child.pid or 0), None, 0.0
    try:
        while True:
            now = time.monotonic()
            if now >= look_at:
                status.peak_bytes = max(status.peak_bytes, tree.measure())
                look_at = time.monotonic() + max(POLL_S, PATIENCE * (time.monotonic() - now))
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
                    typer.echo(f"{now - status.start:6.0f} s  cell {event[1]:3d}  {event[2]}", err=True)
            elif event and stopped_at is None:
                status.end(*event[1:])
                stopped_at = now  # nothing of the run may stay behind
    finally:
        tree.kill(root=True)
        child.join()
        for number, handler in previous.items():
            signal.signal(number, handler)
    if signals and status.status == "killed" and status.error != "MemoryBudgetError":
        # a cluster signals all processes of a job at once, and the child can be gone before the signal was looked at
        status.end(*_interrupted(signals))


def _interrupted(signals: list[int]) -> tuple[str, str, str]:
    return "killed", "Interrupted", f"stopped by {signal.Signals(signals[0]).name}"


def _reason_to_stop(status: Status, budget: Budget, signals: list[int], now: float) -> tuple[str, str, str] | None:
    """Return status, error type and message when a budget is spent or a signal came."""
    if signals:
        return _interrupted(signals)
    if now - status.start > budget.wall_s:
        return "timeout", "WallBudgetError", f"the run took longer than its budget of {budget.wall_s:g} s"
    if status.peak_bytes > budget.memory_gb * 1e9:
        used = f"{status.peak_bytes / 1e9:.2f} GB"
        return "killed", "MemoryBudgetError", f"the run used {used}, its budget is {budget.memory_gb:g} GB"
    return None


def _unfit(path: Path, request: Request) -> str | None:
    """Return None when the notebook wrote a complete record of this very request, else what is wrong."""
    try:
        record = Record.read(path)
    except RecordError as error:
        return f"the notebook ended without its record (its last call is run.finish()): {error}"
    other = [name for name, value in request.values.items() if record.parameters.get(name) != value]
    return f"the record is of another request: {', '.join(other)}" if other else None


def run_command(
    notebook: Annotated[str, typer.Argument(help="<paper>, <paper>/<notebook>, or the path of an .ipynb file")],
    preset: Annotated[str, typer.Option(help="a preset of presets.yaml")] = "reduced",
    seed: Annotated[int, typer.Option(help="random seed")] = 0,
    parameter: Annotated[
        list[str] | None, typer.Option("-p", "--parameter", metavar="NAME VALUE", help="may be repeated")
    ] = None,
    scale: Annotated[int, typer.Option(metavar="N", help="divide the preset's sizes by N; the run is a trial")] = 1,
    out: Annotated[Path, typer.Option(envvar="REPRODUCTIONS_RUNS", help="folder of all runs")] = Path("runs"),
    calibrate: Annotated[bool, typer.Option(help="do not compare with the expected values")] = False,
    wait: Annotated[bool, typer.Option(help="wait for the same request; take its good run if nothing changed")] = False,
) -> None:
    """Execute a notebook within its budgets and leave notebook, status and record below --out."""
    environment = {"REPRODUCTIONS_CALIBRATE": "1"} if calibrate else {}
    try:
        path = find_notebook(notebook)
        overrides = [(name, value) for name, _, value in (text.partition("=") for text in parameter or [])]
        request = resolve(path, preset, seed, overrides, calibrate=calibrate, scale=scale)
        status = execute(path, request, out, environment=environment, progress=sys.stderr.isatty(), wait=wait)
    except (BadRequestError, LockedError) as error:
        typer.echo(f"refused: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from None
    except OSError as error:
        typer.echo(f"cannot write the run's files: {error.strerror}: {error.filename or out}", err=True)
        raise typer.Exit(1) from None
    if status is None:
        typer.echo(f"{notebook}: finished already, and nothing that it depends on has changed since")
        return
    typer.echo(f"{status.summary()}, files in {status.record.parent}")
    if status.status != "ok":
        typer.echo(status.failure(), err=True)
        raise typer.Exit(1)


def pair_up(arguments: Sequence[str]) -> list[str]:
    """Write `-p NAME VALUE`, as papermill has it, the way that typer can read: `-p NAME=VALUE`."""
    found, rest = [], list(arguments)
    while rest:
        word = rest.pop(0)
        found.append(word)
        if word in ("-p", "--parameter") and len(rest) > 1 and rest[0].isidentifier():
            found.append(f"{rest.pop(0)}={rest.pop(0)}")
    return found


def prepare() -> None:
    """Make the command line readable, and the process speak UTF-8: in another locale it would misread file names."""
    if sys.getfilesystemencoding() != "utf-8":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    sys.argv[1:] = pair_up(sys.argv[1:])


if __name__ == "__main__":  # the module behind `papers run`, for machines where the command is not on PATH
    prepare()
    typer.run(run_command)
