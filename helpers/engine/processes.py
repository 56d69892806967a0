"""The processes of a run: what they use together, and that none of them outlives its supervisor."""

import os
import time
from contextlib import suppress
from pathlib import Path

import psutil
import typer

from helpers.lock import Lock, LockedError, lock_of

WAIT_S = 1.0  # between two looks at a lock that somebody else holds


def _memory(process: psutil.Process) -> int:
    """Proportional set size where the system tells it (Linux), else resident memory."""
    try:
        return process.memory_full_info().pss
    except (AttributeError, psutil.AccessDenied):
        return process.memory_info().rss


class Tree:
    """The processes of a run: the child and everything below it, remembered after their parents die."""

    def __init__(self, pid: int) -> None:
        """Start with the child process `pid`."""
        self.root = psutil.Process(pid)
        self.seen: dict[int, psutil.Process] = {}

    def measure(self) -> int:
        """Look at all living processes once; return their memory in bytes, what they share counted once (PSS)."""
        with suppress(psutil.NoSuchProcess):
            self.seen |= {p.pid: p for p in self.root.children(recursive=True) if p.pid not in self.seen}
        total = 0
        for process in [self.root, *self.seen.values()]:
            with suppress(psutil.NoSuchProcess):
                total += _memory(process)
        return total

    def kill(self, *, root: bool) -> None:
        """Kill the kernel and its children; with `root` the child process too."""
        self.measure()
        for process in [*self.seen.values(), *([self.root] if root else [])]:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def die_with(parent: int) -> None:
    """Stop this process and its kernel once the parent is gone: nobody would keep the budgets or write the status."""
    while os.getppid() == parent:
        time.sleep(1)
    for process in psutil.Process().children(recursive=True):
        process.kill()
    os._exit(1)


def lock_when_free(record: Path) -> Lock:
    """Take the lock of a run when its owner, perhaps an orphan of a killed batch, is gone."""
    told = False
    while True:
        try:
            return lock_of(record)
        except LockedError as error:
            if not told:
                typer.echo(f"waiting: {error}", err=True)
            told = True
            time.sleep(WAIT_S)
