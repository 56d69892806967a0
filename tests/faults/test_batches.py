"""Whatever is killed, deleted or full: a rerun does what is missing, records are whole or absent, failures are named.

The long test runs with REPRODUCTIONS_LONG_FAULTS=1 (`make test-faults`).
"""

import hashlib
import http.server
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress

import psutil
import pytest
import yaml
from batch import environment, make_checkout, processes_in, snakemake, start, stop_all, write_sweep

from helpers.data import DataUnavailableError, fetch
from helpers.engine.plan import failures
from helpers.engine.sweep import plan
from helpers.record import Record

# what a run that comes to its end leaves in a file, and a pause in which it can be killed
NOTES = """
import os, time
time.sleep(float(os.environ.get("PAUSE", "0")))
with open(os.environ["EXECUTIONS"], "a") as notes:
    notes.write(f"{bias} {seed}\\n")
"""
LONG = pytest.mark.skipif(not os.environ.get("REPRODUCTIONS_LONG_FAULTS"), reason="long: make test-faults")


@pytest.fixture
def root(tmp_path):
    checkout = make_checkout(tmp_path / "checkout", NOTES, papers=("heads",))
    yield checkout
    stop_all(checkout)


def noted(root) -> Counter:
    path = root / "executions"
    return Counter(path.read_text().splitlines() if path.exists() else [])


def variables(root, **more) -> dict[str, str]:
    return {"EXECUTIONS": str(root / "executions"), **more}


def runners(root) -> list[psutil.Process]:
    """The processes of `papers run` that work in a checkout, Snakemake's children or orphans."""
    return [p for p in processes_in(root) if {"helpers.engine.cli", "run"} <= set(p.info["cmdline"] or [])]


def wait_for(condition, within_s=600.0):
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)
    return found


def end(process: subprocess.Popen) -> None:
    """Kill a process alone; its children become orphans."""
    process.kill()
    process.wait(60)


@pytest.mark.slow
def test_a_killed_snakemake_leaves_an_orphan_that_is_not_executed_twice(root):
    write_sweep(root, "bias", "heads", {"bias": [0.6]}, "0-1")
    first = start(root, "snakemake", "-c1", "--config", "sweep=bias", **variables(root, PAUSE="8"))
    wait_for(lambda: list(root.glob("runs/*/*/heads/heads.status.json")))
    end(first)
    assert runners(root), "the run goes on without Snakemake"
    words = ["helpers.engine.cli", "sweep", "bias", "--cores", "1"]
    second = start(root, *words, **variables(root))
    said = second.communicate(timeout=600)[0]
    assert second.returncode == 1 and "has left its lock" in said and "snakemake --unlock" in said
    assert snakemake(root, "--unlock").returncode == 0
    third = start(root, *words, **variables(root))
    said = third.communicate(timeout=600)[0]
    assert third.returncode == 0, said
    assert "all 2 runs are there" in said and ("waiting: " in said or "finished already" in said)
    assert noted(root) == {"0.6 0": 1, "0.6 1": 1}

    # the folder of a seed is deleted: it is executed again, and nothing else
    shutil.rmtree(next(root.glob("runs/reduced+*/seed-1")))
    done = snakemake(root, "-c1", "--config", "sweep=bias", **variables(root))
    assert done.returncode == 0, done.stderr
    assert "Nothing to be done" not in done.stderr + done.stdout
    assert noted(root) == {"0.6 0": 1, "0.6 1": 2}
    again = snakemake(root, "-c1", "--config", "sweep=bias", **variables(root))
    assert "Nothing to be done" in again.stderr + again.stdout


@LONG
def test_two_batches_in_one_folder_execute_nothing_twice(root):
    write_sweep(root, "bias", "heads", {"bias": [0.6]}, "0-1")
    command = ["helpers.engine.cli", "sweep", "bias", "--cores", "1"]
    both = [start(root, *command, **variables(root, PAUSE="2")) for _ in range(2)]
    said = [process.communicate(timeout=600)[0] for process in both]
    codes = [process.returncode for process in both]
    assert 0 in codes, said
    for code, words in zip(codes, said, strict=True):
        assert code == 0 or "another Snakemake (process" in words or "not complete" in words
    assert noted(root) == {"0.6 0": 1, "0.6 1": 1}
    assert failures(plan("bias", root)[1], root / "runs") == []


@pytest.mark.slow
def test_a_full_disk_is_named_and_a_rerun_finishes(root, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(small)]
    if not shutil.which("mount") or subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here (it needs root)")
    words = ["run", "notebooks/heads/heads.ipynb", "--out", str(small)]
    command, options = (
        [sys.executable, "-m", "helpers.engine.cli", *words],
        {"cwd": root, "capture_output": True, "text": True},
    )
    try:
        done = subprocess.run(command, env=environment(**variables(root)), **options)
        assert done.returncode == 1, done.stderr
        assert "No space left on device" in done.stderr
        assert not list(small.glob("*/*/*/heads.json"))
        subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
        done = subprocess.run(command, env=environment(**variables(root)), **options)
        assert done.returncode == 0, done.stderr
        assert Record.read(small / "reduced/seed-0/heads/heads.json").complete
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)


class Cut(http.server.BaseHTTPRequestHandler):
    """Promises a whole file and hangs up in the middle, until `whole` is set."""

    content, whole = b"1,0,1\n" * 50_000, False

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(self.content if type(self).whole else self.content[: len(self.content) // 2])

    def log_message(self, *args):
        """Say nothing."""


def test_a_download_that_is_cut_half_way_leaves_nothing_and_the_next_one_is_whole(tmp_path, monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Cut)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        folder = tmp_path / "chapters" / "coin"
        folder.mkdir(parents=True)
        (folder / "claims.yaml").write_text("[]")
        url = f"http://127.0.0.1:{server.server_address[1]}/tosses.csv"
        entry = {
            "url": url,
            "sha256": hashlib.sha256(Cut.content).hexdigest(),
            "licence": "CC0-1.0",
            "citation": "Coins",
        }
        (folder / "data.yaml").write_text(yaml.safe_dump({"files": {"tosses.csv": entry}}))
        monkeypatch.setenv("REPRODUCTIONS_CHAPTERS", str(tmp_path / "chapters"))
        monkeypatch.setenv("REPRODUCTIONS_DATA", str(tmp_path / "cache"))
        with pytest.raises(DataUnavailableError, match=r"coin/tosses\.csv: not in the cache, and the download failed"):
            fetch("coin/tosses.csv")
        assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []
        monkeypatch.setattr(Cut, "whole", True)
        assert fetch("coin/tosses.csv").read_bytes() == Cut.content
        assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == ["tosses.csv"]
    finally:
        server.shutdown()
        server.server_close()
