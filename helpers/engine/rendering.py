"""Sphinx on the staged book, with the settings that jupyter-book makes of `_config.yml`.

`jupyter-book build` reads and writes one page after the other. `build_sphinx`, which it calls for that, also takes a
number of processes, and then as many pages are read and written at once.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

COMPLAINT = re.compile(r"WARNING|ERROR|rror:")


class RenderError(Exception):
    """The book could not be rendered, and an older one was left alone; `args` are lines that say why."""


def render(work: Path, jobs: int, verbose: bool = False) -> tuple[Path, list[str]]:
    """Render `work/stage`; return the folder with the pages, and the complaints about chapters.

    Sphinx has a process of its own, because it changes tables that all of a process shares.

    Args:
        work: the folder for what is made.
        jobs: as many pages are read and written at once.
        verbose: show everything that Sphinx says.

    Raises:
        RenderError: it stopped, or complained about something that is no chapter's.
    """
    html = work / "_build" / "html"
    done = subprocess.run(
        [sys.executable, "-m", "helpers.engine.rendering", str(work / "stage"), str(html), str(jobs)],
        env=os.environ | {"NO_COLOR": "1", "SPHINX_NO_COLOR": "1", "PYTHONHASHSEED": "0", "PYTHONUTF8": "1"},
        text=True,
        encoding="utf-8",
        errors="replace",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout).replace(f"{work / 'stage'}/", "")
    if verbose:
        print(said)
    said = re.sub(r"\.ipynb:(\d+)(\d{4}):", lambda m: f".ipynb, cell {m[1]}, line {int(m[2])}:", said)
    complaints = [line for line in said.splitlines() if COMPLAINT.search(line)]
    if done.returncode:
        ours = [line for line in complaints if not line.startswith("notebooks/")]
        if ours or not complaints or not (html / "objects.inv").is_file():
            raise RenderError(*(complaints or said.splitlines()))
    return html, complaints if done.returncode else []


def build(stage: Path, html: Path, jobs: int) -> int:
    """Run Sphinx in this process; return 0 where it had nothing to complain about."""
    from jupyter_book.sphinx import build_sphinx

    settings = {"external_toc_path": str(stage / "_toc.yml"), "nitpicky": True, "latex_individualpages": False}
    status = build_sphinx(
        stage,
        html,
        noconfig=True,
        path_config=stage / "_config.yml",
        confoverrides=settings,
        warningiserror=True,
        keep_going=True,
        jobs=jobs,
    )
    return status if isinstance(status, int) else 1


if __name__ == "__main__":
    sys.exit(build(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
