"""One owner for the files of a run."""

import os
from contextlib import suppress
from multiprocessing import reduction
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows, where only a lone notebook runs; nobody shares its files
    fcntl = None


class LockedError(RuntimeError):
    """Another process executes this very request."""


class Lock:
    """The owner of a run's files: an advisory lock that the system frees when the last process that holds it is gone.

    Passed to a child process it stays held there, so that an orphan that still computes keeps others out.
    """

    def __init__(self, path: Path) -> None:
        """Take the lock.

        Raises:
            LockedError: it is held; the message names the run and the process.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                if fcntl:
                    fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.pread(self.descriptor, 100, 0).decode(errors="replace") or "another process"
                os.close(self.descriptor)
                name = path.name.removeprefix(".").removesuffix(".lock")
                raise LockedError(f"{name} in {path.parent} is being executed by {owner}; wait or stop it") from None
            with suppress(FileNotFoundError):
                if os.stat(path).st_ino == os.fstat(self.descriptor).st_ino:
                    break
            os.close(self.descriptor)  # the former owner removed the file in between
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, f"process {os.getpid()}".encode(), 0)

    def release(self) -> None:
        """Give the lock back; the file goes with it."""
        self.path.unlink(missing_ok=True)
        os.close(self.descriptor)

    def __reduce__(self) -> tuple:
        """Hand a duplicate of the descriptor to a child process."""
        return _held_lock, (self.path, reduction.DupFd(self.descriptor))


def lock_of(record: Path) -> Lock:
    """Take the lock of the run that a record belongs to; raises LockedError."""
    return Lock(record.with_name(f".{record.stem}.lock"))


def _held_lock(path: Path, duplicate: Any) -> Lock:
    lock = object.__new__(Lock)
    lock.path, lock.descriptor = path, duplicate.detach()
    return lock
