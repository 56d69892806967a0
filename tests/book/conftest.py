"""The book under test: rendered from `REPRODUCTIONS_STAGED_RUNS`, or from a small fixture made here.

`REPRODUCTIONS_STAGED_RUNS` is a folder of executed copies, `<paper>/<notebook>.{ipynb,json[,status.json]}`.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "book"))
BUILD = ROOT / "book" / "build.py"
SANDBOX = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
QUIET = ["--disable-component-update", "--disable-sync", "--disable-default-apps", "--disable-extensions"]

DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
CLAIMS = [
    {
        "id": "C1",
        "statement": "Heads are more frequent than tails & <others>.",
        "source": "section 2",
        "paper_value": "0.7",
        "estimand": "share of heads, mean over throws",
        "unit": "",
        "direction": "greater",
        "threshold": 0.5,
        "presets": ["reduced", "public"],
        "why_not": {"full": "needs the authors' coin"},
    },
    {
        "id": "C2",
        "statement": "The coin remembers its last throw.",
        "source": "table 1",
        "paper_value": "not stated",
        "estimand": "share of repeats minus one half",
        "unit": "",
        "direction": "greater",
        "threshold": 0.0,
        "presets": ["reduced", "public", "full"],
    },
]
TITLE = "# Coins {{ that }} are biased\n\nA. Nobody, *On coins* {cite}`efron1994`.\n\n<!-- card -->\n"
TEXT = r"""## The method

The share of heads is $\hat p = \frac{1}{n}\sum_{i=1}^{n} x_i$, with the word zymurgical for the search test.

$$
\operatorname{Var}(\hat p) = \frac{p\,(1 - p)}{n}
$$ (variance-PAPER)

Equation {eq}`variance-PAPER` is the textbook's. See the {term}`record`.

:::{admonition} Answer
:class: dropdown
It is folded.
:::
"""


def cell(kind: str, name: str, source: str, outputs: list | None = None, tags: list | None = None) -> dict:
    base = {"cell_type": kind, "id": name, "metadata": {"tags": tags} if tags else {}, "source": source}
    return base | ({"execution_count": 1 if outputs else None, "outputs": outputs or []} if kind == "code" else {})


def html_output(text: str) -> dict:
    return {"output_type": "display_data", "metadata": {}, "data": {"text/html": text, "text/plain": "<HTML>"}}


def notebook(cells: list) -> dict:
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    meta = {"kernelspec": kernel, "language_info": {"name": "python", "version": "3.11"}}
    return {"cells": cells, "metadata": meta, "nbformat": 4, "nbformat_minor": 5}


def chapter(paper: str) -> tuple[dict, dict]:
    """Source and executed copy of a chapter; the figure's HTML is that of `helpers.figures`."""
    source = f'alt="a bar at 0.7 for heads" src="data:image/png;base64,{DOT}"'
    images = "".join(f'<img class="only-{page}" {source}>' for page in ("light", "dark"))
    link = '<a class="figure-data" download="coins.csv" href="data:text/csv;base64,eA==">data (CSV)</a>'
    shown = [html_output(f'<figure class="repro-figure" id="figure-coins">{images}{link}</figure>')]
    cells = [
        cell("markdown", "title", TITLE),
        cell("code", "parameters", 'preset: str = "reduced"  # configuration {reduced}', tags=["parameters"]),
        cell("markdown", "method", TEXT.replace("PAPER", paper)),
        cell("code", "experiment", "p = 0.7\nassert p > 0.5\np", shown),
        cell("code", "answer", "1 - p", tags=["hide-cell"]),
    ]
    return notebook([c | {"outputs": [], "execution_count": None} if "outputs" in c else c for c in cells]), notebook(
        cells
    )


def record(paper: str, preset: str) -> dict:
    numbers = {"value": 0.71, "low": 0.62, "high": 0.79, "n": 100, "level": 0.95}
    claims = {
        "C1": {"verdict": "reproduced", **numbers},
        "C2": {"verdict": "not testable here", "reason": "no 2nd coin"},
    }
    return {
        "schema": 1,
        "paper": paper,
        "notebook": paper,
        "preset": preset,
        "parameters": {"preset": preset, "seed": 0},
        "metrics": {},
        "claims": claims,
        "figures": {},
        "card": {},
        "complete": True,
    }


def write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_fixture(folder: Path) -> SimpleNamespace:
    """A checkout with four chapters: run well, killed, failed without a status file, never run."""
    root, runs = folder / "checkout", folder / "runs"
    shutil.copytree(ROOT / "book", root / "book", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("_config.yml", "CHANGELOG.md"):
        shutil.copy(ROOT / name, root)
    papers = ("good_coin", "killed_coin", "wrong_coin", "new_coin")
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    chapters = next(p for p in toc["parts"] if p["caption"] == "Chapters")
    chapters["chapters"] = [{"file": f"notebooks/{p}/{p}"} for p in (*papers, "planned_coin")]
    (root / "_toc.yml").write_text(yaml.safe_dump(toc))
    executed = {}
    for paper in papers:
        source, executed[paper] = chapter(paper)
        write_json(root / "notebooks" / paper / f"{paper}.ipynb", source)
        (root / "notebooks" / paper / "claims.yaml").write_text(yaml.safe_dump(CLAIMS))
    bib = "@misc{coin, title={Coins}, author={Nobody, A.}, year={2020}}\n"
    for paper in papers[:2]:  # shared entries are joined
        (root / "notebooks" / paper / "references.bib").write_text(bib)

    write_json(runs / "good_coin" / "good_coin.ipynb", executed["good_coin"])
    write_json(runs / "good_coin" / "good_coin.json", record("good_coin", "reduced"))
    write_json(root / "results" / "public" / "good_coin.json", record("good_coin", "public"))

    write_json(runs / "killed_coin" / "killed_coin.ipynb", executed["killed_coin"])  # looks complete after SIGKILL
    write_json(runs / "killed_coin" / "killed_coin.json", record("killed_coin", "reduced"))  # left by an older run
    status = {
        "status": "killed",
        "preset": "reduced",
        "seed": 0,
        "error": {"type": "KernelDied", "message": "<script>alert(1)</script>\n\n# not a heading {{ x }} `y`"},
        "last_cell": {"index": 3, "id": "experiment"},
        "wall_s": 12.5,
        "peak_memory_mb": 4100.0,
    }
    write_json(runs / "killed_coin" / "killed_coin.status.json", status)

    error = {"output_type": "error", "ename": "ValueError", "evalue": "\x1b[31mbad coin\x1b[0m", "traceback": []}
    broken = [c | {"outputs": [error]} if c["id"] == "experiment" else c for c in executed["wrong_coin"]["cells"]]
    note = cell("markdown", "note", "<span>An Exception was encountered</span>", tags=["papermill-error-cell-tag"])
    broken.insert(0, note)  # papermill does this
    write_json(runs / "wrong_coin" / "wrong_coin.ipynb", notebook(broken))
    return SimpleNamespace(root=root, runs=runs)


def run_build(runs: Path, out: Path, root: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(BUILD), "--runs", str(runs), "--out", str(out), "--root", str(root)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="session")
def build():
    """`build(runs, out, root)` runs the build as a user does."""
    return run_build


@pytest.fixture(scope="session")
def repository():
    """The checkout under test."""
    return ROOT


@pytest.fixture(scope="session")
def fixture_checkout(tmp_path_factory):
    """A small checkout and its runs."""
    return write_fixture(tmp_path_factory.mktemp("fixture"))


@pytest.fixture(scope="session")
def fixture_book(fixture_checkout, tmp_path_factory):
    """The book of the small checkout."""
    out = tmp_path_factory.mktemp("book") / "html"
    done = run_build(fixture_checkout.runs, out, fixture_checkout.root)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="session")
def book(request, tmp_path_factory):
    """The book of this checkout from staged runs when there are some, else the fixture's."""
    staged = os.environ.get("REPRODUCTIONS_STAGED_RUNS")
    if not staged:
        return request.getfixturevalue("fixture_book")
    out = tmp_path_factory.mktemp("staged-book") / "html"
    done = run_build(Path(staged), out, ROOT)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium from PATH."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, "the book's tests need Chromium on PATH (Debian: apt-get install chromium)"
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=[*SANDBOX, *QUIET])
        yield browser
        browser.close()
