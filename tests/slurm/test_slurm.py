"""A sweep on a real one-node Slurm on loopback: a cancelled job, a killed scheduler, a resumed batch.

Not part of `make test`; `make test-slurm` runs it. Everything that it starts is stopped.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
from batch import environment, make_checkout, start, write_sweep

from helpers.engine.plan import failures
from helpers.engine.sweep import plan

TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel")
NOTES = """
import os, time
time.sleep(float(os.environ.get("PAUSE", "0")))
with open(os.environ["EXECUTIONS"], "a") as notes:
    notes.write(f"{bias} {seed}\\n")
"""
CONFIG = """
ClusterName=loopback
SlurmctldHost=localhost(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MailProg=/bin/true
KillWait=5
NodeName=localhost NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=short Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why this machine cannot run Slurm; None when it can."""
    absent = [tool for tool in TOOLS if not shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin")]
    if absent:
        return f"not installed: {', '.join(absent)} (Debian: apt-get install slurm-wlm munge)"
    if find_spec("snakemake_executor_plugin_slurm") is None:
        return "not installed: snakemake-executor-plugin-slurm (the extra slurm)"
    return None if os.geteuid() == 0 else "slurmd needs root"


@pytest.fixture
def slurm(tmp_path):
    """Start munged, slurmctld and slurmd; return the variables with which clients find them."""
    if reason := missing():
        pytest.skip(reason)
    folder = tmp_path / "slurm"
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    tmp_path.chmod(0o755)
    folder.chmod(0o755)
    key, config = folder / "munge.key", folder / "slurm.conf"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    config.write_text(CONFIG.format(folder=folder, cpus=os.cpu_count(), memory=8000))
    (folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
    variables = environment(SLURM_CONF=str(config), PATH=f"{os.environ['PATH']}:/usr/sbin")
    places = {"key-file": key, "socket": folder / "munge.socket", "pid-file": folder / "munge.pid"}
    places |= {"log-file": folder / "munge.log", "seed-file": folder / "munge.seed"}
    munge = ["munged", "--foreground", "--force", *(f"--{name}={path}" for name, path in places.items())]
    daemons = [subprocess.Popen(munge, env=variables, stderr=subprocess.DEVNULL)]
    try:
        until(lambda: (folder / "munge.socket").exists())
        for command in (["slurmctld", "-D", "-f", str(config)], ["slurmd", "-D", "-N", "localhost", "-f", str(config)]):
            daemons.append(
                subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )
            time.sleep(1)
        until(lambda: "idle" in call(variables, "sinfo", "-h", "-o", "%T"), logs=folder)
        yield variables
    finally:
        with suppress(subprocess.TimeoutExpired, OSError):
            subprocess.run(["scancel", "--user=root"], env=variables, timeout=20, capture_output=True)
        time.sleep(3)
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(20)
            daemon.kill()


def call(variables, *command) -> str:
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


def until(condition, within_s=120.0, logs: Path | None = None):
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        said = "".join(path.read_text()[-1500:] for path in logs.glob("*.log")) if logs else ""
        assert time.monotonic() < deadline, f"it did not happen\n{said}"
        time.sleep(0.3)
    return found


def statuses(root) -> list[dict]:
    return [json.loads(path.read_text()) for path in root.glob("runs/*/*/heads/heads.status.json")]


def test_a_sweep_on_slurm_survives_a_cancelled_job_and_a_killed_scheduler(slurm, tmp_path):
    begun = time.perf_counter()
    root = make_checkout(tmp_path / "checkout", NOTES, papers=("heads",))
    write_sweep(root, "bias", "heads", {"bias": [0.6, 0.7]}, "0-1")
    (root / "executions").touch()
    more = {"SLURM_CONF": slurm["SLURM_CONF"], "PATH": slurm["PATH"], "EXECUTIONS": str(root / "executions")}
    command = ["helpers.engine.cli", "sweep", "bias", "--workflow-profile", "profiles/slurm-no-accounting"]

    first = start(root, *command, **more, PAUSE="20")
    job = until(lambda: call(slurm, "squeue", "-h", "-t", "running", "-o", "%i").split())[0]
    until(lambda: list(root.glob("runs/*/*/heads/heads.status.json")))
    time.sleep(3)
    assert call(slurm, "scancel", job) == ""
    stopped = until(lambda: [one for one in statuses(root) if one["finished"] and one["status"] != "ok"])
    assert {(one["status"], one["error"]["message"]) for one in stopped} == {("killed", "stopped by SIGTERM")}

    until(lambda: call(slurm, "squeue", "-h", "-t", "running", "-o", "%i").split())
    os.kill(first.pid, signal.SIGKILL)
    for process in psutil.process_iter(["cmdline", "cwd"]):  # the scheduler itself, not the jobs' own Snakemakes
        words = process.info["cmdline"] or []
        if process.info["cwd"] == str(root) and words[1:3] == ["-m", "snakemake"] and "--target-jobs" not in words:
            process.kill()
    first.wait(60)
    unlock = [sys.executable, "-m", "snakemake", "--unlock"]
    subprocess.run(unlock, cwd=root, env=environment(**more), check=True, capture_output=True)
    second = start(root, *command, **more)
    said = second.communicate(timeout=400)[0]
    assert second.returncode == 0, said
    assert "all 4 runs are there" in said
    counted = Counter((root / "executions").read_text().splitlines())
    assert set(counted.values()) == {1} and len(counted) == 4, counted
    assert failures(plan("bias", root)[1], root / "runs") == []
    print(f"\nSlurm: {time.perf_counter() - begun:.0f} s")
