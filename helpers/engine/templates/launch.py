import importlib.metadata as installed
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMIT = "PACKAGE_COMMIT"  # of this page
STEPS = [["DATA_ONLY"], ["PACKAGE_ADDRESS"]]


def origins():
    """Version of every installed package, and where it came from."""
    return {d.name: (d.version, d.read_text("direct_url.json")) for d in installed.distributions()}


def pip(*wanted):
    """Install; say how long it has been at it, and at what."""
    log, start = Path(tempfile.mkdtemp(), "pip.log"), time.monotonic()
    command = [sys.executable, "-m", "pip", "install", "--progress-bar=off", *wanted]
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        while process.poll() is None:
            time.sleep(1)
            said = (log.read_text(errors="replace").splitlines() or [""])[-1].strip()[:72]
            print(f"\r{time.monotonic() - start:4.0f} s of about {seconds} s  {said:72}", end="")
    if process.returncode:
        raise RuntimeError(f"pip could not install it:\n{log.read_text(errors='replace')[-2000:]}")


sys.path.sort(key=lambda place: Path(place).resolve() == Path.cwd())  # a helpers.py here goes last
before, replaced = origins(), globals().get("replaced", [])
origin, seconds = before.get("papers-executed", [""])[-1] or "", 60 if "torch" in before else 200
if not ("editable" in origin or (COMMIT and COMMIT in origin)):
    homes = installed.packages_distributions()
    in_use = {name for module in sys.modules if module[0] != "_" for name in homes.get(module, [])}
    for step in STEPS:
        pip(*step)
    replaced += [name for name, old in before.items() - origins().items() if name in in_use]
if replaced:
    raise RuntimeError(f"Restart the runtime, then run all: {', '.join(replaced)} changed in use.")
