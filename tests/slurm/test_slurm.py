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

import pytest
from batch import environment, make_checkout, processes_in, start, stop_all, write_sweep

from helpers.engine.plan import failures
from helpers.engine.sweep import plan

TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel")
LINKED = ("slurm.conf", "cgroup.conf")
ETC = Path("/etc/slurm")  # where Slurm looks by itself; Snakemake's plugin drops SLURM_CONF before it calls srun
PATH = f"{os.environ['PATH']}:/usr/sbin"
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
KillWait=30
NodeName=localhost NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=short Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why this machine cannot run Slurm; None when it can."""
    absent = [tool for tool in TOOLS if not shutil.which(tool, path=PATH)]
    if absent:
        return f"not installed: {', '.join(absent)} (Debian: apt-get install slurm-wlm munge)"
    if find_spec("snakemake_executor_plugin_slurm") is None:
        return "not installed: snakemake-executor-plugin-slurm (the extra slurm)"
    if (ETC / "slurm.conf").exists():
        return f"this machine has a Slurm of its own ({ETC})"
    return None if os.geteuid() == 0 else "slurmd needs root"


def version() -> tuple[int, int]:
    """Slurm's, such as (22, 5)."""
    said = subprocess.run(["slurmd", "-V"], env=environment(PATH=PATH), capture_output=True, text=True).stdout
    year, month = said.split()[-1].split(".")[:2]
    return int(year), int(month)


def configure(folder: Path) -> list[str]:
    """Write key and configuration into a folder, link them from where Slurm looks, and return munge's command."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    for path in (folder.parent, folder):  # munge wants nobody else to write there
        path.chmod(0o755)
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    (folder / "slurm.conf").write_text(CONFIG.format(folder=folder, cpus=os.cpu_count(), memory=8000))
    plugin = (
        "disabled" if version() >= (23, 2) else "cgroup/v1"
    )  # an older one knows no "disabled", and v1 does nothing
    (folder / "cgroup.conf").write_text(f"CgroupPlugin={plugin}\n")
    for name in LINKED:
        (ETC / name).unlink(missing_ok=True)  # of an earlier test that was killed: a link to nothing
        (ETC / name).symlink_to(folder / name)
    places = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    return ["munged", "--foreground", "--force", *(f"--{name}={folder}/munge.{end}" for name, end in places.items())]


@pytest.fixture
def slurm(tmp_path):
    """Start munged, slurmctld and slurmd; return the variables with which clients find them."""
    if reason := missing():
        pytest.skip(reason)
    folder, variables, daemons = tmp_path / "slurm", environment(PATH=PATH), []
    commands = [configure(folder), ["slurmctld", "-D"], ["slurmd", "-D", "-N", "localhost"]]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    try:
        for command, shows in zip(commands, ("munge.socket", "slurmctld.pid", "slurmd.pid"), strict=True):
            daemons.append(subprocess.Popen(command, env=variables, **quiet))
            until(lambda shows=shows: (folder / shows).exists(), logs=folder)
        until(lambda: "idle" in call(variables, "sinfo", "-h", "-o", "%T"), logs=folder)
        yield variables
    finally:
        stop(variables, daemons)


def stop(variables, daemons: list[subprocess.Popen]) -> None:
    """Cancel all jobs, stop the daemons, and remove what `configure` linked."""
    with suppress(subprocess.TimeoutExpired, OSError):
        call(variables, "scancel", "--user=root")
        until(lambda: not call(variables, "squeue", "-h"), within_s=60)
    for daemon in reversed(daemons):
        daemon.terminate()
        with suppress(subprocess.TimeoutExpired):
            daemon.wait(20)
        daemon.kill()
        daemon.wait(20)
    for name in LINKED:
        (ETC / name).unlink(missing_ok=True)


def call(variables, *command) -> str:
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


def until(condition, within_s=600.0, logs: Path | None = None):
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        said = "".join(path.read_text()[-1500:] for path in logs.glob("*.log")) if logs else ""
        assert time.monotonic() < deadline, f"it did not happen\n{said}"
        time.sleep(0.3)
    return found


def running(variables) -> list[str]:
    """The numbers of the jobs that run."""
    return call(variables, "squeue", "-h", "-t", "running", "-o", "%i").split()


def statuses(root) -> list[dict]:
    return [json.loads(path.read_text()) for path in root.glob("runs/*/*/heads/heads.status.json")]


@pytest.fixture
def root(tmp_path, slurm):
    checkout = make_checkout(tmp_path / "checkout", NOTES, papers=("heads",))
    yield checkout
    stop_all(checkout)


def linked_python(place: Path) -> Path:
    """Python of this environment by another path."""
    place.symlink_to(sys.prefix)
    return place / "bin" / "python"


def test_a_python_whose_path_has_a_space_is_refused_with_the_way_out(slurm, root, tmp_path):
    write_sweep(root, "bias", "heads", {"bias": [0.6]}, "0")
    command = ["helpers.engine.cli", "sweep", "bias", "--workflow-profile", "profiles/slurm-no-accounting"]
    tried = start(root, *command, python=linked_python(tmp_path / "my env"), PATH=PATH)
    said = tried.communicate(timeout=300)[0]
    assert tried.returncode == 1 and "because its path has a space; make a link, ln -s '" in said, said
    assert not list(root.glob("runs/*/*/heads/*"))


def test_a_sweep_on_slurm_survives_a_cancelled_job_and_a_killed_scheduler(slurm, root, tmp_path):
    python = linked_python(tmp_path / "env")  # the folder of this checkout may have a space
    begun = time.perf_counter()
    write_sweep(root, "bias", "heads", {"bias": [0.6, 0.7]}, "0-1")
    (root / "executions").touch()
    more = {"PATH": PATH, "EXECUTIONS": str(root / "executions")}
    command = ["helpers.engine.cli", "sweep", "bias", "--workflow-profile", "profiles/slurm-no-accounting"]

    first = start(root, *command, python=python, **more, PAUSE="20")
    jobs = root / "runs"
    until(lambda: first.poll() is not None or 0 < len(running(slurm)) <= len(list(jobs.glob("*/*/heads/heads.ipynb"))))
    assert first.poll() is None, first.communicate()[0]
    job = running(slurm)[0]
    assert call(slurm, "scancel", job) == ""
    stopped = until(lambda: [one for one in statuses(root) if one["finished"] and one["status"] != "ok"])
    assert {(one["status"], one["error"]["message"]) for one in stopped} == {("killed", "stopped by SIGTERM")}

    until(lambda: running(slurm))
    os.kill(first.pid, signal.SIGKILL)
    for process in processes_in(root):  # the scheduler itself, not the jobs' own Snakemakes
        words = process.info["cmdline"] or []
        if words[1:3] == ["-m", "snakemake"] and "--target-jobs" not in words:
            process.kill()
    first.wait(60)
    unlock = [str(python), "-m", "snakemake", "--unlock"]
    subprocess.run(unlock, cwd=root, env=environment(**more), check=True, capture_output=True)
    second = start(root, *command, python=python, **more)
    said = second.communicate(timeout=1200)[0]
    assert second.returncode == 0, said
    assert "all 4 runs are there" in said
    counted = Counter((root / "executions").read_text().splitlines())
    assert set(counted.values()) == {1} and len(counted) == 4, counted
    assert failures(plan("bias", root)[1], root / "runs") == []
    print(f"\nSlurm: {time.perf_counter() - begun:.0f} s")
