"""Render the book from finished runs: `python book/build.py --runs runs/reduced/seed-0 --out _build/html`.

Nothing is executed here. The executed notebooks are staged with the prose pages in a folder of their own, the
scoreboard and the chapters' cards are made from the records, and jupyter-book renders all of it with warnings as
errors. A chapter whose run failed gets a page that says so. The old book stays until the new one is complete.

Exit codes: 0 the book is there, 1 rendering failed (the old book is untouched), 2 bad request.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from cards import card, failed_notebook, with_card
from chapters import Page, committed_records, find_pages
from pybtex.database import parse_string
from pybtex.exceptions import PybtexError
from scoreboard import Records, as_csv, chapter_list, fill

from helpers.claims import PRESETS

ROOT = Path(__file__).resolve().parent.parent
MATHJAX = ("tex-chtml-full.js", "output/chtml/fonts/woff-v2")  # what a page needs of MathJax 3.2.2
REDIRECT = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="refresh" content="0; url={page}"></head><body><a href="{page}">{title}</a></body></html>
"""


class RequestError(Exception):
    """Something that was asked for cannot be built; the message is one line for the user."""


def main(
    runs: Annotated[Path, typer.Option(help="Folder with <paper>/<notebook>.{ipynb,json,status.json}.")],
    out: Annotated[Path, typer.Option(help="Folder for the finished book; an older book there is replaced.")],
    results: Annotated[Path | None, typer.Option(help="Committed records of larger runs [ROOT/results].")] = None,
    root: Annotated[Path, typer.Option(help="The checkout.")] = ROOT,
    verbose: Annotated[bool, typer.Option(help="Show everything that jupyter-book says.")] = False,
) -> None:
    """Render the book from finished runs."""
    out, root = out.resolve(), root.resolve()
    try:
        pages = _check(runs, out, root)
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".book-") as work:
            stage(Path(work) / "stage", pages, root, results or root / "results")
            print(f"rendering {len(pages)} notebook(s) ...", flush=True)
            html = render(Path(work), verbose)
            for page in pages:  # the download button gives the notebook as committed, ready to run
                _write_json(html / "_sources" / f"{page.docname}.ipynb", page.source)
            _swap(html, out)
    except RequestError as error:
        print(f"book: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    except subprocess.CalledProcessError as error:
        print(f"book: jupyter-book stopped with exit code {error.returncode}; nothing was replaced", file=sys.stderr)
        raise typer.Exit(1) from None
    for page in pages:
        if not page.ok or page.stale:
            print(f"  {page.docname}: {'stale' if page.stale else 'shown as failed: ' + page.status}")
    print(f"book: {out / 'index.html'}")


def stage(folder: Path, pages: list[Page], root: Path, results: Path) -> None:
    """Put everything that jupyter-book needs into `folder`.

    Raises:
        RequestError: the table of contents or a bibliography is wrong.
    """
    config = yaml.safe_load((root / "_config.yml").read_text())
    contents = table_of_contents(yaml.safe_load((root / "_toc.yml").read_text()), pages, root / "book")
    shutil.copytree(root / "book", folder / "book", ignore=shutil.ignore_patterns("*.py", "_static", "__pycache__"))
    shutil.copytree(root / "book" / "_static", folder / "_static")
    shutil.copy(root / "CHANGELOG.md", folder)
    (folder / "_config.yml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "_toc.yml").write_text(yaml.safe_dump(contents, sort_keys=False))
    bibliographies = [root / "book" / "references.bib", *sorted((root / "notebooks").glob("*/references.bib"))]
    (folder / "book" / "references.bib").write_text(join_bibliographies(bibliographies))
    _stage_extra(folder / "_extra", config["title"], contents["root"])

    records: dict[str, Records] = {}
    for page in pages:
        known = committed_records(results, page.paper) if page.name == page.paper else {}
        own = {page.record["preset"]: page.record} if page.record else {}
        if not page.ok:
            known.pop(page.preset, None)  # a failed run is not covered up by an older record
        mine = {preset: (known | own)[preset] for preset in PRESETS if preset in known | own}
        for preset, record in mine.items():
            _write_json(folder / "_extra" / "records" / preset / f"{page.name}.json", record)
        if page.name == page.paper:
            records[page.paper] = mine
        notebook = with_card(page, card(page, mine, _links(page, config))) if page.ok else failed_notebook(page)
        _write_json(folder / f"{page.docname}.ipynb", notebook)

    order = list(_files(contents))
    mains = sorted((p for p in pages if p.name == p.paper), key=lambda p: order.index(p.docname))
    preface, board = folder / f"{contents['root']}.md", folder / "book" / "scoreboard.md"
    preface.write_text(chapter_list(preface.read_text(), mains))
    board.write_text(fill(board.read_text(), mains, records, root / "notebooks"))
    target = folder / "_extra" / "records" / "scoreboard.csv"
    target.parent.mkdir(exist_ok=True)
    target.write_text(as_csv(mains, records))


def table_of_contents(contents: dict[str, Any], pages: list[Page], prose: Path) -> dict[str, Any]:
    """Return the table of contents without the chapters that do not exist yet.

    Raises:
        RequestError: a notebook or a prose page is not listed, or a listed prose page does not exist.
    """
    there = {page.docname for page in pages} | {f"book/{path.stem}" for path in prose.glob("*.md")}
    listed = set(_files(contents))
    if unlisted := sorted(there - listed):
        raise RequestError(f"_toc.yml does not list {', '.join(unlisted)}")
    if missing := sorted(name for name in listed - there if not name.startswith("notebooks/")):
        raise RequestError(f"_toc.yml lists {', '.join(missing)}, which does not exist")

    def keep(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        kept = [entry for entry in entries if entry["file"] in there]
        return [e | {"sections": keep(e["sections"])} if "sections" in e else e for e in kept]

    parts = [part | {"chapters": keep(part["chapters"])} for part in contents["parts"]]
    return contents | {"parts": [part for part in parts if part["chapters"]]}


def join_bibliographies(paths: list[Path]) -> str:
    """Return the entries of all files; of a work that two files name under one key the first entry is taken.

    Raises:
        RequestError: two files have works with different titles under one key.
    """
    entries: dict[str, tuple[str, str, Path]] = {}
    for path in paths:
        for text in re.split(r"(?m)^(?=@)", path.read_text())[1:]:
            try:
                [(key, entry)] = parse_string(text, "bibtex").entries.items()
            except (PybtexError, ValueError) as error:
                raise RequestError(f"{path}: {error} in {text.splitlines()[0]!r}") from None
            title = re.sub(r"[^a-z0-9]", "", entry.fields.get("title", "").lower())
            _, known, where = entries.setdefault(key, (text, title, path))
            if known != title:
                raise RequestError(f"bibliography key '{key}' has two titles, in {where} and {path}")
    return "\n".join(text.strip() + "\n" for text, _, _ in entries.values())


def render(work: Path, verbose: bool) -> Path:
    """Run jupyter-book on `work/stage` and return the folder with the pages.

    Raises:
        subprocess.CalledProcessError: a warning or an error; what was said is on stderr.
    """
    program = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
    command = [*program, "build", str(work / "stage"), "--path-output", str(work)]
    environment = os.environ | {"NO_COLOR": "1", "SPHINX_NO_COLOR": "1", "PYTHONHASHSEED": "0"}
    done = subprocess.run(
        [*command, "--warningiserror", "--nitpick", "--keep-going"],
        env=environment,
        text=True,
        stdout=None if verbose else subprocess.PIPE,
        stderr=None if verbose else subprocess.STDOUT,
    )
    if done.returncode:
        said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout or "").replace(f"{work / 'stage'}/", "")
        said = re.sub(r"\.ipynb:(\d+)(\d{4}):", lambda m: f".ipynb, cell {m[1]}, line {int(m[2])}:", said)
        complaints = [line for line in said.splitlines() if re.search(r"WARNING|ERROR|rror:", line)]
        print("\n".join(complaints) or said, file=sys.stderr)
    done.check_returncode()
    return work / "_build" / "html"


def _check(runs: Path, out: Path, root: Path) -> list[Page]:
    if not runs.is_dir():
        raise RequestError(f"no folder {runs}: run the chapters first (make book)")
    if out.exists() and any(out.iterdir()) and not (out / "objects.inv").is_file():
        raise RequestError(f"{out} holds something that is not a book; choose another folder")
    try:
        return find_pages(root / "notebooks", runs)
    except ValueError as error:
        raise RequestError(str(error)) from None


def _files(contents: dict[str, Any]) -> list[str]:
    """All documents that a table of contents names, in order."""
    names = [contents[key] for key in ("root", "file") if key in contents]
    for key in ("parts", "chapters", "sections"):
        names += [name for entry in contents.get(key, []) for name in _files(entry)]
    return names


def _links(page: Page, config: dict[str, Any]) -> dict[str, str]:
    """The buttons on a chapter's card."""
    repository, up = config["repository"], "../" * page.docname.count("/")
    place = f"{repository['branch']}/{page.docname}.ipynb"
    slug = repository["url"].removeprefix("https://github.com/").strip("/")
    return {
        "Open in Colab": f"{config['launch_buttons']['colab_url']}/github/{slug}/blob/{place}",
        "Download notebook": f"{up}_sources/{page.docname}.ipynb",
        "Source": f"{repository['url']}/blob/{place}",
        "Download record": f"{up}records/{page.preset}/{page.name}.json",
        "Scoreboard": f"{up}book/scoreboard.html#score-{page.paper.replace('_', '-')}",
    }


def _stage_extra(extra: Path, title: str, first_page: str) -> None:
    """Stage what is copied as it is: MathJax and a start page at the book's root."""
    spec = find_spec("sphinx-mathjax-offline")
    if spec is None or spec.origin is None:
        raise RequestError("the package sphinx-mathjax-offline is not installed; it ships MathJax for offline pages")
    source, target = Path(spec.origin).parent / "static" / "mathjax", extra / "_static" / "mathjax"
    for name in MATHJAX:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (source / name).is_dir() else shutil.copy
        copy(source / name, target / name)
    (extra / "index.html").write_text(REDIRECT.format(title=title, page=f"{first_page}.html"))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _swap(new: Path, out: Path) -> None:
    """Put the finished book in its place; a reader sees the old one or the new one."""
    old = new.with_name("old")
    if out.exists():
        out.rename(old)
    new.rename(out)


if __name__ == "__main__":
    typer.run(main)
