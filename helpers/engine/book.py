"""Render the book from finished runs: `papers book --runs runs/reduced/seed-0 --out _build/html`.

Nothing is executed here. The executed notebooks are staged with the prose pages in a folder of their own, the
scoreboard and the chapters' cards are made from the records, and jupyter-book renders all of it. One bad file never
costs the book: its page is shown as failed, or without the part that is bad, and the summary says so. Where the book's
own pages do not render without a warning, the old book stays.

Exit codes: 0 the book is there and nothing in it is wrong (a notebook may not have been run), 1 something is wrong;
the summary says whether the book was replaced, 2 bad request.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from helpers.engine import cells
from helpers.engine.cards import card, failure_notice, introduction, other_pages, overview
from helpers.engine.charts import with_charts, write_script
from helpers.engine.contents import documents, join_bibliographies, read_terms, table_of_contents
from helpers.engine.launch import buttons, offer
from helpers.engine.loading import find_chapters
from helpers.engine.pages import Chapter, Page
from helpers.engine.previews import write_previews
from helpers.engine.prose import fill_pages
from helpers.engine.rendering import RenderError, render
from helpers.engine.shown import definitions, with_captions, with_folded_code
from helpers.parameters import BadRequestError
from helpers.paths import checkout, read_yaml
from helpers.record import variant

MATHJAX = ("startup.js", "core.js", "input", "output/chtml.js", "output/chtml", "a11y/assistive-mml.js", "ui/lazy.js")
ICONS = "_static/scripts/fontawesome.js"  # the theme's: 1.5 MB on every page, and the book shows 18 of its 2,000 icons
OURS = ".made-by-papers-book"  # lists what the book put beside it; a folder that holds more is not replaced
REDIRECT = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="refresh" content="0; url={page}"></head><body><a href="{page}">{title}</a></body></html>
"""


def render_book(
    runs: Path, out: Path, root: Path | None = None, jobs: int = 1, verbose: bool = False
) -> tuple[list[str], list[str]]:
    """Render the book into `out`, where an older one is replaced.

    Args:
        runs: folder with `<paper>/<notebook>.{ipynb,json,status.json}`.
        out: folder for the finished book.
        root: the checkout, whose `results` hold the records of larger runs; by default that of this package.
        jobs: as many pages are read and written at once.
        verbose: show everything that jupyter-book says.

    Returns:
        One line for everything that is wrong in the book, and the pages without a run.

    Raises:
        BadRequestError: there is no such folder, `out` holds something else, or the table of contents is wrong.
        RenderError: jupyter-book stopped, or had something to say about a page that is no chapter's.
    """
    root = root or checkout()
    if root is None:
        raise BadRequestError("the book is rendered from a checkout, and this package was installed without one")
    out, root = out.resolve(), root.resolve()
    if not runs.is_dir():
        raise BadRequestError(f"no folder {runs}: run the chapters first (make book)")
    _refuse_foreign(out)
    chapters = find_chapters(root / "notebooks", runs, root / "results")
    pages = [page for chapter in chapters for page in chapter.pages]
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".book-") as work:
        faults = stage(Path(work) / "stage", chapters, root)
        print(f"rendering {len(pages)} notebook(s) ...", flush=True)
        html, complaints = render(Path(work), jobs, verbose)
        write_previews(html)
        offer(html, pages, root)
        _swap(html, out)
    return faults + complaints, [page.docname for page in pages if page.run.status == "not run"]


def book_command(
    runs: Annotated[Path, typer.Option(help="Folder with <paper>/<notebook>.{ipynb,json,status.json}.")],
    out: Annotated[Path, typer.Option(help="Folder for the finished book; an older book there is replaced.")],
    root: Annotated[Path | None, typer.Option(help="The checkout [that of this package].")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Pages that are rendered at once [as many as cores].")] = None,
    verbose: Annotated[bool, typer.Option(help="Show everything that jupyter-book says.")] = False,
) -> None:
    """Render the book from finished runs."""
    try:
        faults, not_run = render_book(runs, out, root, jobs or os.cpu_count() or 1, verbose)
    except BadRequestError as error:
        typer.echo(f"book: {error}", err=True)
        raise typer.Exit(2) from None
    except RenderError as error:
        typer.echo("\n".join([*map(str, error.args), "book: not rendered; nothing was replaced"]), err=True)
        raise typer.Exit(1) from None
    for docname in not_run:
        typer.echo(f"  {docname}: not run")
    for fault in faults:
        typer.echo(f"  {fault}", err=True)
    wrong = f", {len(faults)} thing(s) wrong in it" if faults else ""
    typer.echo(f"book: {out.resolve() / 'index.html'}{wrong}")
    raise typer.Exit(1 if faults else 0)


def stage(folder: Path, chapters: list[Chapter], root: Path) -> list[str]:
    """Put everything that jupyter-book needs into `folder`; return one line for everything that is wrong.

    Raises:
        BadRequestError: the settings or the table of contents are wrong.
    """
    try:
        config, listed = read_yaml(root / "_config.yml"), read_yaml(root / "_toc.yml")
    except ValueError as error:
        raise BadRequestError(str(error)) from None
    contents = table_of_contents(listed, chapters, root / "book")
    order = documents(contents)
    chapters = sorted(chapters, key=lambda chapter: order.index(chapter.main.docname))
    shutil.copytree(root / "book", folder / "book", ignore=shutil.ignore_patterns(".*", "_*"))
    for name in ("_static", "_templates"):
        shutil.copytree(root / "book" / name, folder / name)
    shutil.copy(root / "CHANGELOG.md", folder)
    _write_json(folder / "_config.yml", {name: value for name, value in config.items() if name != "launch"})
    _write_json(folder / "_toc.yml", contents)
    own = [root / "notebooks" / chapter.paper / "references.bib" for chapter in chapters]
    references, faults = join_bibliographies([root / "book" / "references.bib", *filter(Path.exists, own)])
    (folder / "book" / "references.bib").write_text(references, encoding="utf-8")
    _stage_extra(folder / "_extra", config["title"], contents["root"])
    terms = read_terms((root / "book" / "glossary.md").read_text(encoding="utf-8"))
    titles: dict[str, str] = {}
    for chapter in chapters:
        later = [paper for paper in chapter.guide.after if paper not in titles]
        faults += chapter.faults + [f"{chapter.paper}/guide.yaml: after: no chapter '{p}' before it" for p in later]
        for page in chapter.pages:
            faults += _stage_page(folder, page, chapter, config, partial(introduction, terms=terms, titles=titles))
        titles[chapter.paper] = chapter.main.title
    return faults + fill_pages(folder, contents["root"], chapters, root)


def _stage_page(
    folder: Path, page: Page, chapter: Chapter, config: dict[str, Any], introduce: Callable[..., str]
) -> list[str]:
    """Stage one notebook with its records; return what is wrong with it beyond its run."""
    extra, links, faults = folder / "_extra", buttons(page, config), []
    for record in [*page.records.values(), *([page.run.record] if page.run.record else [])]:
        record.write(extra / "records" / variant(record.preset, record.changed) / page.paper / f"{page.name}.json")
    shown = (page.run.executed if page.run.shown else page.run.executed or page.run.source) or {"cells": []}
    notebook = cells.with_title({"nbformat": 4, "nbformat_minor": 5, "metadata": {}} | shown, page.title)
    if shown["cells"] and notebook["cells"][0].get("id") != shown["cells"][0].get("id"):
        faults.append(f"{page.paper}/{page.name}.ipynb: the first cell is not the title, so it was put first")
    if page.run.shown:
        notebook, cut = cells.with_short_outputs(notebook)
        if cut:
            faults.append(f"{page.paper}/{page.name}.ipynb: {cut} over-long output(s) cut")
            _write_json(extra / "executed" / page.paper / f"{page.name}.ipynb", shown)
            links["Download executed notebook"] = f"../../executed/{page.paper}/{page.name}.ipynb"
        notebook, wrong = with_charts(notebook, chapter.charts_of(page))
        faults += [f"{page.paper}/guide.yaml: {said}" for said in wrong]
        notebook, images = with_captions(notebook, extra / "figures" / page.paper, f"../../figures/{page.paper}")
        if page.main and chapter.guide.figure not in (None, *images):
            faults.append(f"{page.paper}/guide.yaml: figure: there is no '{chapter.guide.figure}' on the main page")
        html = card(page, chapter, links, introduce(chapter.guide, images) if page.main else "")
        notebook = cells.with_html(notebook, cells.CLAIMS, overview(page, chapter))
    else:
        notebook = cells.without_results(notebook, (page.run.details.get("last_cell") or {}).get("id"))
        html = failure_notice(page) + other_pages(page, chapter)
    main = chapter.main.run.source
    known = definitions(main) if main and not page.main else set()
    notebook = cells.with_html(with_folded_code(notebook, known), cells.CARD, html)
    _write_json(folder / f"{page.docname}.ipynb", notebook)
    return faults


def _stage_extra(extra: Path, title: str, first_page: str) -> None:
    """Stage what is copied as it is: MathJax, Vega and a start page at the book's root."""
    spec = find_spec("sphinx-mathjax-offline")
    if spec is None or spec.origin is None:
        raise BadRequestError("the package sphinx-mathjax-offline is not installed; it ships MathJax for offline pages")
    source, target = Path(spec.origin).parent / "static" / "mathjax", extra / "_static" / "mathjax"
    for name in MATHJAX:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (source / name).is_dir() else shutil.copy
        copy(source / name, target / name)
    write_script(extra / "_static")
    (extra / ICONS).parent.mkdir()
    (extra / ICONS).write_text("// icons.css has the icons that the book shows\n", encoding="utf-8")
    (extra / "index.html").write_text(REDIRECT.format(title=title, page=f"{first_page}.html"), encoding="utf-8")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _refuse_foreign(out: Path) -> None:
    """Raise BadRequestError where something would be lost that `papers book` has not made, or nothing can be put."""
    if out.is_mount() or (out.exists() and not out.is_dir()):
        raise BadRequestError(f"{out} is not a folder that can be replaced; choose another, or one inside it")
    found = {path.name for path in out.iterdir()} if out.is_dir() else set()
    made = {OURS, *(out / OURS).read_text(encoding="utf-8").split("\n")} if OURS in found else set()
    if foreign := sorted(found - made):
        raise BadRequestError(
            f"{out} holds what this command has not made: {', '.join(foreign[:5])}; move it, or choose another folder"
        )


def _swap(new: Path, out: Path) -> None:
    """Put the finished book in its place; a reader sees the old one or the new one."""
    (new / OURS).write_text("\n".join(sorted(path.name for path in new.iterdir())) + "\n", encoding="utf-8")
    old = new.with_name("old")
    if out.exists():
        out.rename(old)
    new.rename(out)
