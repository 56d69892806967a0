"""The run card: what produced a record, so that two records can be compared."""

import hashlib
import platform
import resource
import sys
import time
from datetime import UTC, datetime
from typing import Any

import torch

from helpers.commit import version_of
from helpers.html import table
from helpers.paths import checkout
from helpers.record import Record

PACKAGES = ("torch", "transformers", "numpy", "scikit-learn")


def describe_machine(device: torch.device, start: float, commit: str) -> dict[str, Any]:
    """Return commit, lock, device, threads, versions, wall time and peak memory of this process.

    Args:
        device: where the run computed.
        start: `time.perf_counter()` at the start of the run.
        commit: what `source_commit()` said at the start; a long run may outlive a commit.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak_mb = peak / 1e6 if sys.platform == "darwin" else peak / 1024  # bytes on macOS, kB elsewhere
    card = {
        "commit": commit,
        "lock": _lock_hash(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine() + " CPU",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "packages": {name: version_of(name) for name in PACKAGES},
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "wall_s": round(time.perf_counter() - start, 1),
        "peak_memory_mb": round(peak_mb),
    }
    if device.type == "cuda":
        card["peak_gpu_memory_mb"] = round(torch.cuda.max_memory_allocated() / 2**20)
    return card


def card_html(record: Record, regression: str) -> str:
    """Return the run card as an HTML table.

    Args:
        record: a run's record.
        regression: what the regression check said.
    """
    card = record.card
    gpu = card.get("peak_gpu_memory_mb")
    trial = ", changed: " + ", ".join(f"{k} = {v!r}" for k, v in record.changed.items()) if record.changed else ""
    rows = {
        "preset and seed": f"{record.preset}, seed {record.seed}{trial}",
        "commit": card["commit"],
        "code cells": card.get("code") or "not known",
        "lock": card["lock"],
        "data": "; ".join(f"{name} {digest[:19]}…" for name, digest in card["data"].items()) or "packaged or generated",
        "device": f"{card['device']}, {card['threads']} thread(s)",
        "software": f"Python {card['python']}; " + "; ".join(f"{k} {v}" for k, v in card["packages"].items()),
        "wall time": f"{card['wall_s']} s",
        "peak memory": f"{card['peak_memory_mb']} MB" + (f", GPU {gpu} MB" if gpu else ""),
        "finished": card["finished"],
        "regression": regression,
    }
    return table((), rows.items(), "run-card")


def _lock_hash() -> str:
    root = checkout()
    lock = root / "requirements.lock" if root else None
    if lock is None or not lock.is_file():
        return "none (see versions)"
    return "sha256:" + hashlib.sha256(lock.read_bytes()).hexdigest()[:16]
