"""A new chapter passes everything that `make test` asks of a chapter, at once; a refused one leaves nothing behind."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

from helpers.engine import scaffold
from helpers.engine.calibrate import expectations
from helpers.engine.scaffold import STAND_IN, TEMPLATES, new_chapter, with_entry
from helpers.parameters import BadRequestError
from helpers.verify import load_expected

ROOT = Path(__file__).resolve().parents[2]
CHECKOUT = ["helpers", "book", "tests", "_config.yml", "_toc.yml", "pyproject.toml", "CHANGELOG.md"]
LOCKS = ["requirements.lock", "requirements-models.lock"]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """The least that counts as a checkout."""
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setattr(scaffold, "checkout", lambda: tmp_path)
    return tmp_path


def files(folder):
    return {path.relative_to(folder): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_chapter_is_written_under_its_own_name(checkout):
    written = new_chapter("ridge_path")
    there = files(checkout)
    assert {Path(path) for path in written} | {Path("_config.yml")} == there.keys()
    assert not [path for path, text in there.items() if "new_paper" in text or "REPOSITORY_URL" in text]
    assert load_expected(checkout / "notebooks" / "ridge_path", "ridge_path").paper == "ridge_path"
    assert list(checkout.iterdir()) and not list(checkout.glob(".*"))


def test_the_entry_stands_last_in_its_part_and_comments_stay(checkout):
    before = (checkout / "_toc.yml").read_text()
    after = with_entry(before, "ridge_path")
    added = [line for line in after.splitlines() if line not in before.splitlines()]
    assert added == ["      - file: notebooks/ridge_path/ridge_path"]
    chapters = next(part for part in yaml.safe_load(after)["parts"] if part["caption"] == "Chapters")["chapters"]
    assert chapters[-1] == {"file": "notebooks/ridge_path/ridge_path"}
    assert with_entry(after, "ridge_path") == after
    with pytest.raises(BadRequestError, match="caption 'Chapters'"):
        with_entry("root: a\n", "ridge_path")


@pytest.mark.parametrize(
    "name", ["", "Ridge", "ridge-path", "ridge__path", "_ridge", "1ridge", "../up", "class", "r" * 41]
)
def test_bad_names_are_refused(checkout, name):
    before = files(checkout)
    with pytest.raises(BadRequestError, match="no name for a chapter"):
        new_chapter(name)
    assert files(checkout) == before


@pytest.mark.parametrize("there", ["notebooks/ridge_path/notes.txt", "tests/chapters/test_ridge_path.py"])
def test_what_is_there_is_never_touched(checkout, there):
    (checkout / there).parent.mkdir(parents=True)
    (checkout / there).write_text("mine")
    before = files(checkout)
    with pytest.raises(BadRequestError, match="is there already"):
        new_chapter("ridge_path")
    assert files(checkout) == before


def test_an_installed_package_is_refused(monkeypatch):
    monkeypatch.setattr(scaffold, "checkout", lambda: None)
    with pytest.raises(BadRequestError, match="needs a checkout"):
        new_chapter("ridge_path")


def test_a_failure_halfway_leaves_nothing(checkout, monkeypatch):
    def write(path, text):
        if path.name == "_toc.yml":
            raise OSError("the disk is full")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    before = files(checkout)
    monkeypatch.setattr(scaffold, "write_atomically", write)
    with pytest.raises(OSError, match="disk is full"):
        new_chapter("ridge_path")
    assert files(checkout) == before


@pytest.mark.slow
def test_a_new_chapter_passes_what_make_test_asks(tmp_path):
    """End to end in a checkout of its own: lint, form, tests, the regression gate and the book."""
    for name in (*CHECKOUT, *LOCKS):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    (tmp_path / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / "ruff.toml", tmp_path / "notebooks")
    for path in (tmp_path / "tests" / "chapters").glob("*.py"):
        path.unlink()
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("REPRODUCTIONS_", "PYTEST_"))}
    clean |= {"PYTHONPATH": str(tmp_path), "REPRODUCTIONS_RUNS": str(tmp_path / "staged")}

    def do(*command):
        done = subprocess.run([sys.executable, "-m", *command], cwd=tmp_path, env=clean, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-2000:]}"
        return done.stdout

    do("helpers.engine.cli", "new", "ridge_path")
    do("ruff", "check", "notebooks", "tests/chapters")
    do("ruff", "format", "--check", "notebooks", "tests/chapters")
    do("pytest", "-q", "tests/unit/test_notebook_form.py", "tests/chapters")
    staged = shutil.copytree(tmp_path / "notebooks", tmp_path / "staged" / "reduced" / "seed-0")
    do("pytest", "-q", "--nbmake", "--overwrite", str(staged))
    do("helpers.engine.cli", "book", "--runs", str(staged), "--out", str(tmp_path / "html"))


def test_the_shipped_expected_values_are_those_of_five_seeds(tmp_path, monkeypatch):
    """Calibration anew, in this process: the cells one after the other, with five seeds."""
    folder = shutil.copytree(TEMPLATES / STAND_IN, tmp_path / STAND_IN)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("REPRODUCTIONS_CALIBRATE", "1")
    monkeypatch.setenv("REPRODUCTIONS_RECORD", str(tmp_path / "record.json"))
    cells = [c for c in nbformat.read(f"{STAND_IN}.ipynb", as_version=4).cells if c.cell_type == "code"]
    records = []
    for seed in range(5):
        namespace = {"__name__": "__main__"}
        for cell in cells:
            exec(cell.source, namespace)
            if "parameters" in cell.metadata.get("tags", []):
                namespace["seed"] = seed
        records.append(namespace["record"])
    again, shipped = expectations(records), load_expected(folder, STAND_IN)
    assert (again.parameters, again.claims, again.seeds) == (shipped.parameters, shipped.claims, shipped.seeds)
    assert again.metrics.keys() == shipped.metrics.keys()
    for name, metric in again.metrics.items():
        assert metric.mean == pytest.approx(shipped.metrics[name].mean, rel=1e-6), name
        assert metric.tolerance == pytest.approx(shipped.metrics[name].tolerance, rel=1e-4), name
