"""A small checkout on which batches run in seconds: the real machinery and two quick chapters."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[1]
QUICK = ROOT / "tests" / "fixtures" / "chapters" / "quick"
MACHINERY = ("Snakefile", "profiles", "helpers", "book", "_config.yml", "_toc.yml", "CHANGELOG.md", "pyproject.toml")


def make_checkout(root: Path, more: str = "", papers: tuple[str, ...] = ("heads", "tails")) -> Path:
    """Return a new checkout with a chapter for each of `papers`; `more` is code for the cell that tosses the coin."""
    root.mkdir()
    for name in MACHINERY:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, root / name)
    for paper in papers:
        folder = root / "notebooks" / paper
        shutil.copytree(QUICK, folder)
        notebook = json.loads((folder / "quick.ipynb").read_text())
        for cell in notebook["cells"]:
            source = "".join(cell["source"]).replace('Run("quick"', f'Run("{paper}"')
            cell["source"] = source.replace("# Quick", f"# {paper.title()}") + (more if cell["id"] == "toss" else "")
        (folder / f"{paper}.ipynb").write_text(json.dumps(notebook))
        for name in ("quick.ipynb", "data.yaml", "expected.yaml"):
            (folder / name).unlink()
    toc = yaml.safe_load((root / "_toc.yml").read_text())
    chapters = next(part for part in toc["parts"] if part["caption"] == "Chapters")
    chapters["chapters"] = [{"file": f"notebooks/{paper}/{paper}"} for paper in papers]
    (root / "_toc.yml").write_text(yaml.safe_dump(toc))
    return root


def environment(**more: str) -> dict[str, str]:
    """The variables of a user, without these tests' own settings for runs."""
    return {k: v for k, v in os.environ.items() if not k.startswith("REPRODUCTIONS_")} | more


def start(root: Path, *arguments: str, python: str | Path = sys.executable, **more: str) -> subprocess.Popen:
    """Start `python -m <arguments>` in a checkout, the leader of a session of its own."""
    command = [str(python), "-m", *arguments]
    out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    return subprocess.Popen(command, cwd=root, env=environment(**more), **out)


def processes_in(root: Path) -> list[psutil.Process]:
    """Every process that works in a checkout, children and orphans alike, with its `info["cmdline"]`."""
    found = []
    for process in psutil.process_iter(["cwd", "cmdline"]):
        if process.info["cwd"] and Path(process.info["cwd"]).is_relative_to(root):
            found.append(process)
    return found


def stop_all(root: Path) -> None:
    """Kill what a test that failed has left at work in a checkout."""
    for process in processes_in(root):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def snakemake(root: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess:
    """Run Snakemake as a user would."""
    command = [sys.executable, "-m", "snakemake", *arguments]
    return subprocess.run(command, cwd=root, env=environment(**more), capture_output=True, text=True, timeout=600)


def write_sweep(root: Path, name: str, paper: str, parameters: dict, seeds: str) -> None:
    """A sweep of a quick chapter."""
    content = {"title": "More tosses", "question": "Does it matter?", "paper": paper, "parameters": parameters}
    content |= {"seeds": seeds, "prefer": "high", "validation": {"metric": "share_of_heads", "label": "share of heads"}}
    content |= {"test": {"metric": "share_of_heads", "label": "the same share"}}
    (root / "sweeps").mkdir(exist_ok=True)
    (root / "sweeps" / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
