"""Run a notebook as its page offers it, in a bare environment: `python -m tests.launch [<paper>/<notebook>]`.

Without a name it is a new small chapter in a repository of its own, and the environment borrows the packages of this
one: half a minute. With a name it is a notebook of this checkout at its commit, and pip brings everything: minutes.
The very file is executed, unchanged: git alone is told to find the book's address on this disk.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import nbformat
import yaml
from nbclient import NotebookClient

from helpers.engine.launch import offered

ROOT = Path(__file__).resolve().parents[1]
ADDRESS = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
PARTS = ("helpers", "results", "pyproject.toml", "README.md", "LICENSE", "LICENSE-TEXT", "_config.yml", "_toc.yml")
WHO = {f"GIT_{who}_{what}": "tests" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def clean() -> dict[str, str]:
    """This process's environment without what could lead to the checkout."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("GIT_", "REPRODUCTIONS_", "PYTHON", "PYTEST_"))}


def git(folder: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", folder, *words], env=clean() | WHO, capture_output=True, text=True, check=True
    ).stdout.strip()


def small_repository(folder: Path) -> Path:
    """A repository with the package and one new chapter; returns the chapter's notebook."""
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    (folder / "notebooks").mkdir()
    command = [sys.executable, "-m", "helpers.engine.cli", "new", "ridge_path"]
    subprocess.run(command, cwd=folder, env=clean() | {"PYTHONPATH": str(folder)}, check=True, capture_output=True)
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "A small chapter")
    return folder / "notebooks" / "ridge_path" / "ridge_path.ipynb"


def bare_environment(folder: Path, *, lend: bool) -> Path:
    """A new environment with a kernel; returns its Python. `lend`: it finds all packages of this one but the book's."""
    subprocess.run([sys.executable, "-m", "venv", *["--without-pip"] * lend, folder], check=True)
    python = folder / "bin" / "python"
    if not lend:
        subprocess.run([python, "-m", "pip", "install", "-q", "ipykernel"], env=clean(), check=True)
        return python
    lent = folder / "lent"
    lent.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.startswith(("papers_executed", "__editable__")):
            (lent / path.name).symlink_to(path)
    (next(folder.glob("lib/python*/site-packages")) / "lent.pth").write_text(f"{lent}\n")
    return python


def execute(notebook: nbformat.NotebookNode, python: Path, folder: Path, repository: Path, **more: str) -> None:
    """Run all cells in `folder` with a kernel of `python`; git finds the book in `repository`."""
    spec = {"argv": [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"], "language": "python"}
    kernel = python.parents[1] / "share" / "jupyter" / "kernels" / "bare" / "kernel.json"
    kernel.parent.mkdir(parents=True, exist_ok=True)
    kernel.write_text(json.dumps(spec | {"display_name": "bare"}))
    moved = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.{repository.as_uri()}.insteadOf"}
    env = clean() | moved | {"GIT_CONFIG_VALUE_0": ADDRESS} | more
    os.environ["JUPYTER_PATH"] = str(kernel.parents[2])
    client = NotebookClient(notebook, timeout=3600, kernel_name="bare", resources={"metadata": {"path": str(folder)}})
    client.execute(env=env, cleanup_kc=True)


def launch(folder: Path, name: str | None = None) -> tuple[nbformat.NotebookNode, str]:
    """Run a notebook as its page offers it; returns the executed notebook and the commit it names.

    Args:
        folder: an empty folder for everything that is made.
        name: of a notebook, `<paper>/<notebook>`; None is the small chapter.
    """
    repository, work = (ROOT, folder / "work") if name else (folder / "repository", folder / "work")
    for made in {repository, work} - {ROOT}:
        made.mkdir()
    paper, _, notebook = (name or "").partition("/")
    source = ROOT / "notebooks" / paper / f"{notebook or paper}.ipynb" if name else small_repository(repository)
    commit = git(repository, "rev-parse", "--short=12", "HEAD")
    (work / source.name).write_text(json.dumps(offered(json.loads(source.read_text()), ADDRESS, commit)))
    made = nbformat.read(work / source.name, as_version=4)
    python = bare_environment(folder / "environment", lend=not name)
    for trap in ("helpers.py", "helpers/__init__.py"):  # what a reader may have beside the notebook
        (work / trap).parent.mkdir(exist_ok=True)
        (work / trap).write_text("raise ImportError('not the helpers of the book')\n")
    alone = {} if name else {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0"}
    execute(made, python, work, repository, **alone)
    return made, commit


def main() -> None:
    """Run it and print what the run card says."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        made, commit = launch(Path(folder), sys.argv[1] if len(sys.argv) > 1 and sys.argv[1] else None)
        [record] = Path(folder, "work", "runs").rglob("*.json")
        said = json.loads(record.read_text())["card"]["commit"]
        setup = next(cell for cell in made.cells if cell.get("id") == "setup")
        print("".join(output.get("text", "") for output in setup.outputs).split("\r")[-1])
    assert said == commit, f"the run card names {said}, the page {commit}"
    print(f"launched in {time.monotonic() - start:.0f} s; its run card names {said}")


if __name__ == "__main__":
    main()
