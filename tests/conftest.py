"""Settings for all tests, and the fixtures that several of them use."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from helpers.record import record_path

TESTS = Path(__file__).resolve().parent
CHAPTERS = TESTS / "fixtures" / "chapters"
sys.path.insert(0, str(TESTS))  # for the modules `lift` and `tiny`


@dataclass
class Execution:
    """What `papers run` did: exit code, what it said, and the files it left."""

    code: int
    out: str
    err: str
    folder: Path
    paper: str

    @property
    def status(self) -> dict:
        return json.loads((self.folder / f"{self.paper}.status.json").read_text())

    @property
    def record(self) -> Path:
        return self.folder / f"{self.paper}.json"

    @property
    def notebook(self) -> dict:
        return json.loads((self.folder / f"{self.paper}.ipynb").read_text())


@pytest.fixture
def chapter(tmp_path) -> Callable[[str], Path]:
    """Copy a fixture chapter to a folder of this test and return the copy."""
    return lambda name: shutil.copytree(CHAPTERS / name, tmp_path / "notebooks" / name)


@pytest.fixture
def execute(tmp_path) -> Callable[..., Execution]:
    """Run the real command on a chapter's folder, in a process of its own."""

    def call(folder: Path, *arguments: str, environment: dict[str, str] | None = None) -> Execution:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("REPRODUCTIONS_")} | (environment or {})
        out, paper = tmp_path / "runs", folder.name
        command = [sys.executable, "-m", "helpers.engine.execute", str(folder / f"{paper}.ipynb"), "--out", str(out)]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, env=clean, timeout=300)
        trial = [n for flag, n in pairwise(arguments) if flag == "-p"]
        found = [path for path in out.glob(f"reduced{'+*' if trial else ''}/seed-0/{paper}") if path.is_dir()]
        folder = found[0] if found else record_path(paper, paper, "reduced", 0, out=out).parent
        return Execution(done.returncode, done.stdout, done.stderr, folder, paper)

    return call
