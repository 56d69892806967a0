"""The gate is connected: under nbmake a chapter that contradicts its expected values fails, and its twin passes."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHAPTERS = Path(__file__).resolve().parents[1] / "fixtures" / "chapters"


def nbmake(tmp_path, paper):
    """Run one fixture chapter the way that `make test` runs the real ones."""
    folder = tmp_path / "reduced" / "seed-0"
    shutil.copytree(CHAPTERS / paper, folder / paper)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("REPRODUCTIONS_", "PYTEST_"))}
    command = [sys.executable, "-m", "pytest", "--nbmake", "--overwrite", "-p", "no:cacheprovider", str(folder)]
    done = subprocess.run(
        command,
        env=environment | {"REPRODUCTIONS_RUNS": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    done.stdout = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    return done, folder / paper / f"{paper}.json"


@pytest.mark.slow
def test_canary_fails_under_nbmake(tmp_path):
    done, record = nbmake(tmp_path, "canary")
    assert done.returncode == 1, done.stdout
    assert "RegressionError: regression: share_of_heads: 0.8" in done.stdout
    assert "is not within 0.2" in done.stdout
    assert not record.exists()


@pytest.mark.slow
def test_its_twin_passes_and_leaves_its_record_beside_the_staged_copy(tmp_path):
    done, record = nbmake(tmp_path, "quick")
    assert done.returncode == 0, done.stdout
    assert record.exists()
