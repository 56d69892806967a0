"""Whatever is killed, deleted or full: a rerun does what is missing, records are whole or absent, failures are named.

The two long tests run with REPRODUCTIONS_LONG_FAULTS=100 (`make test-faults`).
A smaller number, at least 10, makes their sweeps smaller.
"""

import hashlib
import http.server
import json
import os
import random
import shutil
import signal
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
from helpers.engine.judge import judge
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
SIZE = int(os.environ.get("REPRODUCTIONS_LONG_FAULTS") or 0)
LONG = pytest.mark.skipif(not SIZE, reason="long: make test-faults")


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


def assert_whole(root, runs) -> None:
    """Every record that is there is complete, of its run, and its status agrees."""
    for run in runs:
        place = run.place(root / "runs")
        if place.with_suffix(".json").exists():
            record = Record.read(place.with_suffix(".json"))
            assert record.seed == run.seed and record.changed == run.changed
        status = place.with_suffix(".status.json")
        told = json.loads(status.read_text()) if status.exists() else {"status": "not run", "finished": None}
        assert told["status"] != "ok" or (told["finished"] and place.with_suffix(".json").exists())


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


@pytest.mark.slow
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


def _below(process: subprocess.Popen) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid).children(recursive=True)
    return []


def _unlock(root) -> None:
    if any((root / ".snakemake" / "locks").glob("*")):
        assert snakemake(root, "--unlock").returncode == 0


def _finish(root, name, limit=20) -> int:
    """Start a sweep until it is complete; return how often that was."""
    for count in range(1, limit + 1):
        _unlock(root)
        done = start(root, "helpers.engine.cli", "sweep", name, "--cores", "2", **variables(root))
        said = done.communicate(timeout=1800)[0]
        if done.returncode == 0:
            return count
        assert "failed" in said or "not complete" in said or "lock" in said, said
    raise AssertionError("the batch does not come to its end")


KINDS = {"ipykernel": "kernel", "snakemake": "scheduler", "helpers.engine.cli run": "runner", "spawn_main": "papermill"}


def _kill_one(batch: subprocess.Popen, dice: random.Random) -> str | None:
    """SIGKILL to one process of a batch; return what it was, or None when there was none."""
    with suppress(psutil.NoSuchProcess, IndexError):
        victim = dice.choice(_below(batch))
        words = " ".join(victim.cmdline())
        victim.send_signal(signal.SIGKILL)
        return next((kind for part, kind in KINDS.items() if part in words), "other")
    return None


def _kill_schedulers(root) -> None:
    for process in processes_in(root):
        words = process.info["cmdline"] or []
        if "sweep" in words or "snakemake" in words[:3]:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def _good(root, runs) -> dict[str, bytes]:
    """The records of the runs that ended well."""
    places = [run.place(root / "runs") for run in runs if judge(run.notebook, run.place(root / "runs")).status == "ok"]
    return {str(place): place.with_suffix(".json").read_bytes() for place in places}


@LONG
def test_twenty_random_kills_of_a_batch_lose_nothing(root):
    """SIGKILL to a random process of the batch: scheduler, runner, papermill's process or kernel."""
    write_sweep(root, "bias", "heads", {"bias": [round(0.5 + i / 100, 2) for i in range(SIZE // 10)]}, "0-3")
    _, runs = plan("bias", root)
    dice, killed, good, begun = random.Random(18), Counter(), {}, time.perf_counter()
    while killed.total() < 20:
        _unlock(root)
        command = ["helpers.engine.cli", "sweep", "bias", "--cores", "2"]
        batch = start(root, *command, **variables(root, PAUSE="1"))
        threading.Thread(target=batch.communicate, daemon=True).start()
        wait_for(lambda batch=batch: len(_below(batch)) > 1 or batch.poll() is not None)
        assert batch.poll() != 0, "the batch was complete before it was killed twenty times"
        for _ in range(2):
            time.sleep(dice.uniform(0, 6))
            if kind := _kill_one(batch, dice):
                killed[kind] += 1
        _kill_schedulers(root)  # the runs go on
        assert_whole(root, runs)
        good, before = _good(root, runs), good
        assert before.items() <= good.items(), "a finished run was lost or executed again"
        print(f"{dict(killed)}, {len(good)} finished", flush=True)
    starts = _finish(root, "bias")
    assert_whole(root, runs)
    assert good.items() <= _good(root, runs).items()
    assert failures(runs, root / "runs") == []
    print(f"killed: {dict(killed)}, then {starts} start(s), {time.perf_counter() - begun:.0f} s")
    print(f"executions of {len(runs)} runs that came to the toss: {noted(root).total()}")


@LONG
def test_a_sweep_of_a_hundred_runs_resumes_after_the_scheduler_is_killed(root):
    write_sweep(root, "bias", "heads", {"bias": [round(0.5 + i / 100, 2) for i in range(SIZE // 4)]}, "0-3")
    _, runs = plan("bias", root)
    begun, kills = time.perf_counter(), 0
    for share in (0.2, 0.5, 0.8):
        batch = start(root, "snakemake", "-c2", "--config", "sweep=bias", **variables(root))
        threading.Thread(target=batch.communicate, daemon=True).start()
        wait_for(lambda share=share: sum(noted(root).values()) >= share * len(runs), 3600)
        kills += batch.poll() is None
        end(batch)
        assert snakemake(root, "--unlock").returncode == 0
    assert _finish(root, "bias") == 1
    assert set(noted(root).values()) == {1} and len(noted(root)) == len(runs)
    assert_whole(root, runs)
    assert failures(runs, root / "runs") == []
    print(f"{len(runs)} runs, {kills} kills of the scheduler, {time.perf_counter() - begun:.0f} s, none executed twice")
