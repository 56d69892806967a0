"""The book under test: rendered from `REPRODUCTIONS_STAGED_RUNS`, or from a small fixture made here.

`REPRODUCTIONS_STAGED_RUNS` is a folder of executed copies, `<paper>/<notebook>.{ipynb,json[,status.json]}`.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from filelock import FileLock

from helpers.claims import Claim, claims_table
from helpers.record import Outcome

ROOT = Path(__file__).resolve().parents[2]
SANDBOX = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
QUIET = ["--disable-component-update", "--disable-sync", "--disable-default-apps", "--disable-extensions"]

DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
STUDY = "second_throw"
COINS = """throws,coin,heads,low,high
10,old </script> & "worn",0.7,0.4,0.9
10,new,0.5,0.2,0.8
100,old </script> & "worn",0.71,0.62,0.79
100,new,0.49,0.4,0.58
"""
CHART = {"figure": "coins", "title": "Throw more often.", "slider": "throws", "label": "number of throws"}
CHART |= {"row": "coin", "value": "heads", "axis": "share of heads", "ends": ["low", "high"]}


def claim(name: str, statement: str, **more) -> dict:
    entry = {"id": name, "statement": statement, "source": "section 2", "paper_value": "0.7", "unit": ""}
    entry |= {"estimand": "share of heads, mean over throws", "direction": "greater", "threshold": 0.5}
    entry |= {"presets": ["reduced", "public"], "why_not": {"full": "needs the authors' coin"}, "evidence": "measured"}
    return entry | more


CLAIMS = [
    claim("C1", "Heads are more frequent than tails & <others>.", headline="The coin falls on heads <too> often."),
    claim("C2", "The coin remembers its last throw.", threshold=0.0, paper_value="not stated"),
    claim("C3", "The published table has more heads.", evidence="recomputed"),
    claim("C4", "A second coin does the same.", ours=True),
]
STUDY_CLAIM = claim("C5", "The second throw is fair.", direction="equivalent", margin=0.1, notebook=STUDY)
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
CLAIMS_TEXT = "## Claims\n\nA verdict follows from an interval and a rule.\n"
# What is too wide for a phone: a table of long texts, an equation, a line of code, a table of numbers.
WIDE_TEXT = r"""## Deviations

| paper says | official code does | we do | why | expected effect |
|---|---|---|---|---|
| every coin is thrown ten thousand times | it is thrown as the day allows | twice | time | none that is known |

$$
\hat p_{\text{coin}} = \frac{x_1 + x_2 + x_3 + x_4 + x_5 + x_6 + x_7 + x_8 + x_9 + x_{10} + x_{11} + x_{12}}{n_1 + n_2}
$$ (wide-PAPER)
"""
WIDE_CODE = "def thrown_coin(count: int, share_of_heads: float = 0.5, generator: int = 0) -> tuple[float]:"
WIDE_NUMBERS = "".join(f"<th>column {i}</th>" for i in range(9)), "".join(f"<td>{i}.123456</td>" for i in range(9))
WIDE_FRAME = '<table border="1" class="dataframe"><thead><tr>{}</tr></thead><tbody><tr>{}</tr></tbody></table>'


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
    data = base64.b64encode(COINS.encode()).decode()
    link = f'<a class="figure-data" download="coins.csv" href="data:text/csv;base64,{data}">data (CSV)</a>'
    shown = [html_output(f'<figure class="repro-figure" id="figure-coins">{images}{link}</figure>')]
    cells = [
        cell("markdown", "title", TITLE),
        cell("code", "parameters", 'preset: str = "reduced"  # configuration {reduced}', tags=["parameters"]),
        cell("markdown", "method", TEXT.replace("PAPER", paper)),
        cell("code", "experiment", "p = 0.7\nassert p > 0.5\np", shown),
        cell("code", "draw", "run.figure('coins')", shown, tags=["hide-input"]),
        cell("markdown", "claims", CLAIMS_TEXT),
        cell("code", "verdicts", "run.verdicts()", [html_output(verdicts(paper))]),
        cell("markdown", "deviations", WIDE_TEXT.replace("PAPER", paper)),
        cell("code", "wide", WIDE_CODE, [html_output(WIDE_FRAME.format(*WIDE_NUMBERS))]),
        cell("code", "answer", "1 - p", tags=["hide-cell"]),
        cell("code", "imports", "from helpers import Run\nfrom helpers.stats import bootstrap"),
    ]
    return notebook([c | {"outputs": [], "execution_count": None} if "outputs" in c else c for c in cells]), notebook(
        cells
    )


def verdicts(paper: str) -> str:
    """The table of claims as a notebook shows it."""
    found = {name: Outcome(**outcome) for name, outcome in record(paper, "reduced")["claims"].items()}
    return claims_table({one["id"]: Claim(**one) for one in CLAIMS}, {"this run (reduced)": found})


def record(paper: str, preset: str, name: str | None = None) -> dict:
    numbers = {"value": 0.71, "low": 0.62, "high": 0.79, "n": 100, "level": 0.95}
    claims = {
        "C1": {"verdict": "reproduced", **numbers},
        "C2": {"verdict": "not testable here", "reason": "no 2nd coin"},
        "C3": {"verdict": "reproduced", **numbers},
        "C4": {"verdict": "contradicted", **numbers},
    }
    return {
        "schema": 1,
        "paper": paper,
        "notebook": name or paper,
        "preset": preset,
        "parameters": {"preset": preset, "seed": 0},
        "metrics": {},
        "claims": {"C5": {"verdict": "inconclusive", **numbers, "value": 0.6, "low": 0.59}} if name else claims,
        "figures": {},
        "card": {},
        "complete": True,
    }


def expected(paper: str) -> dict:
    metric = {"mean": 0.7, "spread": 0.01, "tolerance": 0.04, "null": 0.5}
    verdicts = {"C1": ["reproduced"] * 4 + ["inconclusive"]}
    entry = {"schema": 1, "paper": paper, "preset": "reduced", "k": 4, "seeds": [0, 1, 2, 3, 4]}
    return entry | {"parameters": {"preset": "reduced"}, "metrics": {"heads": metric}, "claims": verdicts}


def write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_chapter(root: Path, runs: Path, paper: str, *, run: bool = True) -> dict:
    """A chapter below `root`, with a good run of its reduced preset; returns the executed notebook."""
    source, executed = chapter(paper)
    write_json(root / "notebooks" / paper / f"{paper}.ipynb", source)
    (root / "notebooks" / paper / "claims.yaml").write_text(yaml.safe_dump(CLAIMS))
    if run:
        write_json(runs / paper / f"{paper}.ipynb", executed)
        write_json(runs / paper / f"{paper}.json", record(paper, "reduced"))
    return executed


def write_checkout(root: Path, papers: tuple[str, ...]) -> None:
    """A checkout without chapters, whose table of contents names `papers` and one that is only planned."""
    shutil.copytree(ROOT / "book", root / "book", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("_config.yml", "CHANGELOG.md"):
        shutil.copy(ROOT / name, root)
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    chapters = next(p for p in toc["parts"] if p["caption"] == "Chapters")
    chapters["chapters"] = [{"file": f"notebooks/{p}/{p}"} for p in (*papers, "planned_coin")]
    (root / "_toc.yml").write_text(yaml.safe_dump(toc))


def write_fixture(folder: Path, name: str) -> SimpleNamespace:
    """A checkout with four chapters: run well (two notebooks), killed, failed without a status file, never run."""
    root, runs = folder / name, folder / "runs"
    write_checkout(root, ("good_coin", "killed_coin", "wrong_coin", "new_coin"))
    write_chapter(root, runs, "good_coin")
    (root / "notebooks" / "good_coin" / "claims.yaml").write_text(yaml.safe_dump([*CLAIMS, STUDY_CLAIM]))
    (root / "notebooks" / "good_coin" / "expected.yaml").write_text(yaml.safe_dump(expected("good_coin")))
    write_json(root / "results" / "public" / "good_coin" / "good_coin.json", record("good_coin", "public"))
    guide = {"before": ["bootstrap", "coins <of any kind>"], "figure": "coins", "charts": [CHART]}
    (root / "notebooks" / "good_coin" / "guide.yaml").write_text(yaml.safe_dump(guide))
    title = cell("markdown", "title", "# A second throw\n\nOf the same coin.\n\n<!-- card -->\n")
    study = notebook([title, cell("code", "throw", "p = 0.6", [html_output("<p>0.6</p>")])])
    write_json(root / "notebooks" / "good_coin" / f"{STUDY}.ipynb", study)
    write_json(runs / "good_coin" / f"{STUDY}.ipynb", study)
    write_json(runs / "good_coin" / f"{STUDY}.json", record("good_coin", "reduced", STUDY))
    bib = "@misc{coin, title={Coins}, author={Nobody, A.}, year={2020}}\n"
    write_chapter(root, runs, "killed_coin")  # looks complete after SIGKILL, and has the record of an older run
    (root / "notebooks" / "killed_coin" / "guide.yaml").write_text(yaml.safe_dump({"after": ["good_coin"]}))
    for paper in ("good_coin", "killed_coin"):  # shared entries are joined
        (root / "notebooks" / paper / "references.bib").write_text(bib)
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

    executed = write_chapter(root, runs, "wrong_coin")
    (runs / "wrong_coin" / "wrong_coin.json").unlink()
    error = {"output_type": "error", "ename": "ValueError", "evalue": "\x1b[31mbad coin\x1b[0m", "traceback": []}
    broken = [c | {"outputs": [error]} if c["id"] == "experiment" else c for c in executed["cells"]]
    note = cell("markdown", "note", "<span>An Exception was encountered</span>", tags=["papermill-error-cell-tag"])
    broken.insert(0, note)  # papermill does this
    write_json(runs / "wrong_coin" / "wrong_coin.ipynb", notebook(broken))
    write_chapter(root, runs, "new_coin", run=False)
    return SimpleNamespace(root=root, runs=runs)


BAD = (
    "good_coin",
    "empty_record",
    "list_record",
    "stub_record",
    "bad_results",
    "bad_claims",
    "hidden_files",
    "code_first",
    "long_line",
    "bad_bib",
    "no_bib",
    "bad_expected",
    "script_title",
    "not_json",
)


FOREIGN = "Foreign <script>alert(1)</script> & <img src=x onerror=alert(1)>\n\n</div>{{ text }}"


def write_bad_checkout(folder: Path) -> SimpleNamespace:
    """A checkout in which each chapter but the first has one bad file, named by the chapter."""
    root, runs = folder / "checkout", folder / "runs"
    write_checkout(root, BAD)
    executed = {paper: write_chapter(root, runs, paper) for paper in BAD}
    chapters = root / "notebooks"

    def change(paper: str, cells: list) -> None:
        write_json(runs / paper / f"{paper}.ipynb", notebook(cells))
        bare = [c | {"outputs": [], "execution_count": None} if "outputs" in c else c for c in cells]
        write_json(chapters / paper / f"{paper}.ipynb", notebook(bare))

    for paper, content in (("empty_record", ""), ("list_record", "[1]"), ("stub_record", '{"complete": true}')):
        (runs / paper / f"{paper}.json").write_text(content)
    write_json(root / "results" / "public" / "bad_results" / "bad_results.json", {"complete": True})
    (chapters / "bad_claims" / "claims.yaml").write_text("- id: [C1\n- x: : y")
    (chapters / "bad_expected" / "expected.yaml").write_text("schema: 7")
    (chapters / "not_json" / "not_json.ipynb").write_text('{"cells": [')
    for path in ("hidden_files/._x.ipynb", "hidden_files/.ipynb_checkpoints/y.ipynb", ".ipynb_checkpoints/z.ipynb"):
        (chapters / path).parent.mkdir(exist_ok=True)
        (chapters / path).write_bytes(b"\x00\x05\x16\x07")
    (root / "book" / "._reading.md").write_bytes(b"\x00\x05\x16\x07")
    title, *rest = executed["code_first"]["cells"]
    change("code_first", [rest[2], title, *rest[:2], *rest[3:]])
    title, *rest = executed["long_line"]["cells"]
    printed = [{"output_type": "stream", "name": "stdout", "text": "x" * 20_000} for _ in range(10)]
    change("long_line", [title, *rest, cell("code", "print", "print('x' * 200_000)", printed)])
    for paper in ("bad_bib", "no_bib"):
        title, *rest = executed[paper]["cells"]
        change(paper, [title, cell("markdown", "cites", f"See {{cite}}`lost_{paper}`."), *rest])
    (chapters / "bad_bib" / "references.bib").write_text("@misc{lost_bad_bib, title={Coins, author={Nobody, A.}\n")
    title, *rest = executed["script_title"]["cells"]
    source = title["source"].replace("biased", "<script>alert(1)</script> *here*")
    change("script_title", [title | {"source": source}, *rest])
    said = {"statement": FOREIGN, "source": FOREIGN, "paper_value": FOREIGN, "headline": FOREIGN, "unit": FOREIGN}
    rules = [CLAIMS[0] | said | {"estimand": FOREIGN}, *CLAIMS[1:]]
    (chapters / "script_title" / "claims.yaml").write_text(yaml.safe_dump(rules))
    outcome = record("script_title", "reduced")
    outcome["claims"]["C2"]["reason"] = FOREIGN
    write_json(runs / "script_title" / "script_title.json", outcome)
    return SimpleNamespace(root=root, runs=runs)


def run_build(runs: Path, out: Path, root: Path, jobs: int = 2) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "helpers.engine.cli", "book", "--runs", str(runs), "--out", str(out)]
    return subprocess.run([*command, "--root", str(root), "--jobs", str(jobs)], capture_output=True, text=True)


def pytest_collection_modifyitems(items):
    """With `-n 2 --dist loadgroup`, tests that share what is slow to make run in one process."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            made = "bad" if "bad_book" in item.fixturenames else "fixture"
            if "REPRODUCTIONS_STAGED_RUNS" in os.environ and "book" in item.fixturenames:
                made = item.callspec.params["seen"] if "seen" in item.fixturenames else "book"
            item.add_marker(pytest.mark.xdist_group(made))


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
    """A small checkout and its runs, in a folder with a name that needs care."""
    return write_fixture(tmp_path_factory.mktemp("fixture"), "it's R&D ünï $HOME")


@pytest.fixture(scope="session")
def fixture_book(fixture_checkout, tmp_path_factory):
    """The book of the small checkout."""
    out = tmp_path_factory.mktemp("book") / "it's R&D ünï $HOME" / "html"
    done = run_build(fixture_checkout.runs, out, fixture_checkout.root)
    failed = [
        "killed_coin/killed_coin: killed: cell 3 (experiment): KernelDied",
        "wrong_coin/wrong_coin: error: cell 3",
    ]
    said = done.stderr.splitlines()
    assert done.returncode == 1 and len(said) == 2, done.stderr
    assert all(line.strip().startswith(start) for line, start in zip(said, failed, strict=True)), done.stderr
    assert "notebooks/new_coin/new_coin: not run" in done.stdout
    return out


@pytest.fixture(scope="session")
def bad_book(tmp_path_factory):
    """The book of a checkout in which every chapter but one has a bad file, and what the build said."""
    folder = tmp_path_factory.mktemp("bad")
    checkout = write_bad_checkout(folder)
    done = run_build(checkout.runs, folder / "html", checkout.root)
    assert (folder / "html").is_dir(), done.stderr
    return SimpleNamespace(html=folder / "html", done=done, papers=BAD)


@pytest.fixture(scope="session")
def book(request, tmp_path_factory):
    """The book of this checkout from staged runs when there are some, else the fixture's."""
    staged = os.environ.get("REPRODUCTIONS_STAGED_RUNS")
    if not staged:
        return request.getfixturevalue("fixture_book")
    base = tmp_path_factory.getbasetemp()
    folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    out = folder / "staged-book" / "html"
    with FileLock(folder / "staged-book.lock"):  # one process renders it, another waits
        if not out.is_dir():
            done = run_build(Path(staged), out, ROOT)
            assert done.returncode == 0, done.stdout + done.stderr
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
