"""What a page offers to run: its notebook with a first cell that installs the package of the page's own commit.

The committed notebook cannot name its own commit, so the book writes the cell: `templates/launch.py`.
"""

import json
import re
from pathlib import Path
from typing import Any

from helpers.code import Notebook, source_of
from helpers.commit import source_commit
from helpers.engine.pages import Page
from helpers.paths import read_yaml
from helpers.record import variant

LAUNCH = Path(__file__).resolve().parent / "templates" / "launch.py"
PIN = re.compile(r'"([\w.-]+==[^"]+)"')  # in the setup cell: packages of which only the files are used
STEPS = '[["DATA_ONLY"], ["PACKAGE_ADDRESS"]]'  # stands in the template for what pip is asked, one call a line
COMMIT = re.compile(r"[0-9a-f]{7,40}")
GITHUB = "https://github.com/"


def offered(notebook: Notebook, address: str, commit: str) -> Notebook:
    """Return a notebook as its page offers it: the cell `setup` installs the book's package at one commit.

    Args:
        notebook: as committed; it is not changed.
        address: of the repository.
        commit: of the page; "" installs what the repository has.
    """
    cells = [_launching(cell, address, commit) if cell.get("id") == "setup" else cell for cell in notebook["cells"]]
    return notebook | {"cells": cells}


def _launching(cell: dict[str, Any], address: str, commit: str) -> dict[str, Any]:
    steps = [["--no-deps", pin] for pin in PIN.findall(source_of(cell))]
    steps.append([f"git+{address}@{commit}" if commit else f"git+{address}"])
    lines = "".join(f"    {json.dumps(step)},\n" for step in steps)
    text = LAUNCH.read_text(encoding="utf-8").rstrip().replace(STEPS, f"[\n{lines}]")
    text = text.replace('"PACKAGE_COMMIT"', json.dumps(commit))
    tags = [*cell["metadata"].get("tags", []), "launch"]
    return cell | {"source": text.splitlines(keepends=True), "metadata": cell["metadata"] | {"tags": tags}}


def commit_of(page: Page, head: str) -> str:
    """Return the commit that a page was made with: that of its run where it is known and clean, else `head`'s.

    Args:
        page: whose run card names a commit.
        head: what `source_commit` says of the checkout.
    """
    said = page.run.record.card.get("commit", "") if page.run.record else ""
    return said if COMMIT.fullmatch(said) else (found[0] if (found := COMMIT.match(head)) else "")


def buttons(page: Page, config: dict[str, Any]) -> dict[str, str]:
    """Return the address of every button on a page's card by its words; what is not configured has no button."""
    launch, repository = config.get("launch") or {}, config.get("repository") or {}
    record, address = page.run.record, (repository.get("url") or "").rstrip("/")
    folder = variant(record.preset, record.changed) if record else page.preset
    found = {}
    if page.run.source and launch.get("colab") and launch.get("published") and address.startswith(GITHUB):
        place = f"{address.removeprefix(GITHUB)}/blob/{launch['published']}/_sources/{page.docname}.ipynb"
        found["Open in Colab"] = f"{launch['colab']}/github/{place}"
    if page.run.source:
        found["Download notebook"] = f"../../_sources/{page.docname}.ipynb"
    if address:
        found["Source"] = f"{address}/blob/{repository.get('branch', 'main')}/{page.docname}.ipynb"
    found["Download record"] = f"../../records/{folder}/{page.paper}/{page.name}.json"
    return found | {"Scoreboard": f"../../book/scoreboard.html#score-{page.paper.replace('_', '-')}"}


def offer(html: Path, pages: list[Page], root: Path) -> None:
    """Put the notebooks that the pages offer into a rendered book, and what a button downloads beside a script of it.

    A page from disk may not read its neighbours, but it may load a script; `download.js` makes a file of it.

    Args:
        html: folder of the book.
        pages: all pages of the book.
        root: the checkout.
    """
    head = source_commit(root)
    address = (read_yaml(root / "_config.yml").get("repository") or {}).get("url") or ""
    for page in pages:
        if page.run.source:
            made = offered(page.run.source, address, commit_of(page, head)) if address else page.run.source
            place = html / "_sources" / f"{page.docname}.ipynb"
            place.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for folder in ("_sources/notebooks", "records", "executed"):
        for place in [one for one in (html / folder).rglob("*") if one.suffix in (".ipynb", ".json", ".csv")]:
            said = json.dumps([place.name, place.read_text(encoding="utf-8")])
            place.with_name(f"{place.name}.js").write_text(f"saveFile(...{said});\n", encoding="utf-8")
