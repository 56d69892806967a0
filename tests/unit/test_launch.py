"""What a page offers to run: the cell that installs the page's own commit, and what it does in a runtime.

`make test-launch` runs a whole notebook in a bare environment.
"""

import ast
import json
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from helpers import commit
from helpers.commit import installed_commit, source_commit
from helpers.engine.launch import commit_of, offered
from helpers.engine.loading import load_chapter
from tests.launch import ADDRESS, bare_environment, clean, git

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "notebooks").glob("*/*.ipynb"))
PYPROJECT = """[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "papers-executed"
version = "0.1.0"
[tool.setuptools]
py-modules = ["helpers"]
"""


def setup_of(notebook: dict) -> dict:
    return next(cell for cell in notebook["cells"] if cell["id"] == "setup")


@pytest.mark.parametrize("path", SOURCES, ids=[path.stem for path in SOURCES])
def test_an_offered_notebook_differs_in_its_first_cell_alone(path):
    source = json.loads(path.read_text())
    made = offered(source, ADDRESS, "0123456789ab")
    assert [cell for cell in made["cells"] if cell["id"] != "setup"] == [
        cell for cell in source["cells"] if cell["id"] != "setup"
    ]
    code, before = "".join(setup_of(made)["source"]), "".join(setup_of(source)["source"])
    [steps] = [n.value for n in ast.parse(code).body if isinstance(n, ast.Assign) and ast.unparse(n.targets) == "STEPS"]
    *files, package = ast.literal_eval(steps)
    assert package == [f"git+{ADDRESS}@0123456789ab"] and before.count("==") == len(files)
    assert all(one[0] == "--no-deps" and f'"{one[1]}"' in before for one in files)
    assert "launch" in setup_of(made)["metadata"]["tags"] and max(map(len, code.splitlines())) <= 100


def test_without_a_known_commit_the_repository_is_installed_as_it_is():
    cell = {"id": "setup", "cell_type": "code", "metadata": {}, "source": "x"}
    code = setup_of(offered({"cells": [cell]}, ADDRESS, ""))["source"]
    assert f'    ["git+{ADDRESS}"],\n' in code and 'COMMIT = ""  # of this page\n' in code


@pytest.mark.parametrize(
    ("card", "head", "found"),
    [
        ("0123456789ab", "ba9876543210", "0123456789ab"),
        ("0123456789ab with changes", "ba9876543210", "ba9876543210"),
        ("package 0.1.0", "ba9876543210 with changes", "ba9876543210"),
        (None, "unknown (git is not installed)", ""),
    ],
)
def test_the_commit_of_a_page_is_that_of_its_run(tmp_path, card, head, found):
    page = load_chapter(ROOT / "notebooks" / "rm_bench", tmp_path, ROOT / "results").main
    record = None if card is None else page.committed["public"].model_copy(update={"card": {"commit": card}})
    assert commit_of(replace(page, run=replace(page.run, record=record)), head) == found


def test_a_package_from_a_commit_names_it(monkeypatch):
    class Installed:
        def read_text(self, name):
            return json.dumps({"vcs_info": {"vcs": "git", "commit_id": "0123456789abcdef"}})

    monkeypatch.setattr(commit, "checkout", lambda: None)
    assert source_commit() == "package 0.1.0"  # this environment's package was not installed from a commit
    monkeypatch.setattr(commit, "distribution", lambda name: Installed())
    assert installed_commit() == "0123456789abcdef" and source_commit() == "0123456789ab"


def wheel(folder: Path, version: str) -> Path:
    """A wheel of the package `coin`, which has one module."""
    path, info = folder / f"coin-{version}-py3-none-any.whl", f"coin-{version}.dist-info"
    files = {
        "coin.py": f"version = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: coin\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w") as content:
        for name, text in (files | {f"{info}/RECORD": "".join(f"{name},,\n" for name in files)}).items():
            content.writestr(name, text)
    return path


@pytest.mark.slow
def test_the_cell_refuses_where_a_package_in_use_was_replaced(tmp_path):
    """Twice in one runtime, which holds the old package, then in a new one; the book has a module and a commit."""
    repository, work = tmp_path / "repository", tmp_path / "work"
    repository.mkdir()
    work.mkdir()
    (repository / "pyproject.toml").write_text(PYPROJECT)
    (repository / "helpers.py").write_text("whose = 'the book'\n")
    git(repository, "init", "-q")
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "A package")
    head = git(repository, "rev-parse", "--short=12", "HEAD")
    python = bare_environment(tmp_path / "environment", lend=True)
    env = clean() | {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_FIND_LINKS": str(tmp_path)}
    subprocess.run([python, "-m", "pip", "install", "-q", wheel(tmp_path, "1")], env=env, check=True)
    wheel(tmp_path, "2")
    cell = {"id": "setup", "cell_type": "code", "metadata": {}, "source": 'pip = "coin==2"'}
    code = "".join(setup_of(offered({"cells": [cell]}, repository.as_uri(), head))["source"])
    (work / "helpers.py").write_text("whose = 'mine'\n")
    (work / "cell.py").write_text(code)
    (work / "old.py").write_text(
        "import coin\nnames, code = {}, open('cell.py').read()\nfor _ in range(2):\n"
        "    try:\n        exec(code, names)\n    except RuntimeError as error:\n        print('\\n' + str(error))\n"
    )
    (work / "new.py").write_text(
        "import sys\nsys.path.insert(0, '')\nexec(open('cell.py').read())\nimport coin\nimport helpers\n"
        "print(coin.version, helpers.whose)\n"
    )

    def run(name: str) -> list[str]:
        return subprocess.run(
            [python, name], cwd=work, env=env, capture_output=True, text=True, check=True
        ).stdout.splitlines()

    refused = [line for line in run("old.py") if line.startswith("Restart")]
    assert refused == ["Restart the runtime, then run all: coin changed in use."] * 2
    assert run("new.py") == ["2 the book"]  # nothing is installed a second time, and nothing is said
