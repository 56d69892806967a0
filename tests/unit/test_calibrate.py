"""Calibration that is interrupted or asked for nonsense; the numbers themselves are in test_verify.py."""

import os
import signal
import subprocess
import sys
import time
from concurrent import futures
from pathlib import Path

import psutil
import pytest

from helpers.engine import calibrate
from helpers.engine.calibrate import _run_seeds

COMMAND = [sys.executable, "-m", "helpers.engine.cli", "calibrate"]


def test_after_a_failed_seed_no_other_is_started(tmp_path, monkeypatch):
    started = []

    def run(notebook, seed, out, running):
        started.append(seed)
        raise RuntimeError(f"seed {seed} failed")

    monkeypatch.setattr(calibrate, "_run_seed", run)
    with pytest.raises(RuntimeError, match="seed 0 failed"):
        _run_seeds(tmp_path / "p.ipynb", range(50), 1, tmp_path)
    assert len(started) < 50
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_of_several_failed_seeds_the_first_is_named(tmp_path, monkeypatch):
    def run(notebook, seed, out, running):
        raise RuntimeError(f"seed {seed} failed")

    monkeypatch.setattr(calibrate, "_run_seed", run)
    monkeypatch.setattr(calibrate, "wait", lambda work, **_: futures.wait(work))  # until all of them have failed
    with pytest.raises(RuntimeError, match="seed 0 failed"):
        _run_seeds(tmp_path / "p.ipynb", range(5), 5, tmp_path)


@pytest.mark.parametrize(
    "options, message", [(["--seeds", "a,b"], "at least five whole numbers"), (["--jobs", "0"], "jobs")]
)
def test_nonsense_is_refused(options, message):
    done = subprocess.run([*COMMAND, "rm_bench", *options], capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_terminated_calibration_leaves_no_run_behind(chapter, tmp_path):
    folder = chapter("plain")
    parent = subprocess.Popen(
        [*COMMAND, str(folder / "plain.ipynb"), "--keep", str(tmp_path / "keep")],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stderr=subprocess.DEVNULL,
    )
    me, children = psutil.Process(parent.pid), []
    while not children and parent.poll() is None:
        time.sleep(0.1)
        children = me.children(recursive=True)
    parent.terminate()
    assert parent.wait(30) == 128 + signal.SIGTERM
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    assert not [p for p in Path(tmp_path).iterdir() if p.name.startswith("tmp")]
