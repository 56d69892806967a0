"""The book's own pages whose lists and numbers come from the chapters and their records."""

from collections.abc import Callable
from pathlib import Path

from helpers.engine.api import fill_api
from helpers.engine.cost import fill_cost
from helpers.engine.pages import Chapter
from helpers.engine.scoreboard import as_csv, chapter_list, fill
from helpers.engine.sweeps_page import fill_sweeps
from helpers.paths import PACKAGE

Filled = tuple[str, list[str]]  # a page, and what is wrong with it


def fill_pages(folder: Path, first: str, chapters: list[Chapter], root: Path) -> list[str]:
    """Fill the staged pages and write the scoreboard's table; return one line for everything that is wrong.

    Args:
        folder: of the staged book.
        first: its first page, without `.md`.
        chapters: in the book's order.
        root: the checkout.
    """
    pages: dict[str, Callable[[str], Filled]] = {
        first: lambda text: (chapter_list(text, chapters), []),
        "book/scoreboard": lambda text: (fill(text, chapters), []),
        "book/api": lambda text: (fill_api(text, PACKAGE, chapters), []),
        "book/cost": lambda text: (fill_cost(text, chapters, root / "notebooks"), []),
        "book/sweeps": lambda text: fill_sweeps(text, root, folder / "_extra"),
    }
    records, faults = folder / "_extra" / "records", []
    records.mkdir(exist_ok=True)
    (records / "scoreboard.csv").write_text(as_csv(chapters), encoding="utf-8")
    for name, change in pages.items():
        if (page := folder / f"{name}.md").exists():
            text, wrong = change(page.read_text(encoding="utf-8"))
            page.write_text(text, encoding="utf-8")
            faults += wrong
    return faults
