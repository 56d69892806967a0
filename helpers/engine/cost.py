"""The page on what runs cost: measured time and memory from records, and an estimate for the preset `full`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from helpers.engine.pages import Chapter, Page
from helpers.engine.status import name_of
from helpers.html import Raw, table, text
from helpers.parameters import BadRequestError
from helpers.record import Record
from helpers.request import load_presets

MEASURED, ESTIMATED = "<!-- measured -->", "<!-- estimated -->"


class Card(NamedTuple):
    """A kind of GPU, from its maker's data sheet: memory in GB, TB/s of its memory, bf16 TFLOP/s without sparsity."""

    name: str
    memory_gb: float
    bandwidth: float
    compute: float


# The budgets are written for the first; the page names the data sheets' numbers.
CARDS = (
    Card("H100 SXM", 80, 3.35, 989),
    Card("H200", 141, 4.8, 989),
    Card("A100 SXM 80 GB", 80, 2.04, 312),
    Card("L40S", 48, 0.864, 362),
)


def fill_cost(template: str, chapters: list[Chapter], notebooks: Path) -> str:
    """Return the page with what was measured and what is estimated at its places."""
    pages = [page for chapter in chapters for page in chapter.pages]
    return template.replace(MEASURED, _measured(pages)).replace(ESTIMATED, _estimated(pages, notebooks))


def _records(page: Page) -> Iterator[tuple[str, Record]]:
    """Every record of a notebook, with who made it where that was not we."""
    for preset, record in page.records.items():
        yield from (("", one) for one in (record, *page.repeats.get(preset, [])))
    yield from page.contributed


def _measured(pages: list[Page]) -> str:
    groups: dict[tuple[str, ...], list[Record]] = {}
    for page in pages:
        for who, record in _records(page):
            device = str(record.card.get("device", "?"))
            groups.setdefault((page.paper, page.name, record.preset, device, who), []).append(record)
    head = ("Notebook", "preset", "machine", "runs", "seconds", "memory in MB", "GPU memory in MB")
    names = ("wall_s", "peak_memory_mb", "peak_gpu_memory_mb")
    rows = []
    for (paper, name, preset, device, who), records in groups.items():
        about = _link(paper, name), preset, f"{device} ({who})" if who else device, len(records)
        rows.append([*about, *(_range(record.card.get(key) for record in records) for key in names)])
    if not rows:
        return "No record stands here yet."
    walls = [page.run.record.card.get("wall_s") for page in pages if page.run.record]
    seconds = sum(wall for wall in walls if isinstance(wall, int | float))
    gpus = any(record.card.get("peak_gpu_memory_mb") for records in groups.values() for record in records)
    said = f"The runs of this book's pages took {seconds / 60:.0f} minutes of one core."
    if not gpus:
        said, head, rows = f"{said} No record of a GPU stands here yet.", head[:-1], [row[:-1] for row in rows]
    return f"{said}\n\n{table(head, rows, 'cost')}"


def _range(values: Iterator[Any]) -> str:
    """Smallest and largest of the numbers that are there; a record by another hand may hold anything."""
    found = sorted(value for value in values if isinstance(value, int | float))
    ends = [f"{value:,.0f}" for value in (found[0], found[-1])] if found else [""]
    return " to ".join(dict.fromkeys(ends))


def _link(paper: str, name: str) -> Raw:
    return Raw(f'<a href="../notebooks/{text(paper)}/{text(name)}.html">{text(name_of(paper, name))}</a>')


def _estimated(pages: list[Page], notebooks: Path) -> str:
    """A row a notebook, and the sum, in hours: the budget on the first card, scaled to the others."""
    rows, sums = [], [[0.0, 0.0] for _ in CARDS]
    for page in pages:
        try:
            budget = load_presets(notebooks / page.paper / f"{page.name}.ipynb").budgets["full"]
        except (BadRequestError, KeyError):
            continue
        hours = [[budget.wall_s / 3600 * factor for factor in _factors(card)] for card in CARDS]
        fits = [budget.memory_gb <= card.memory_gb for card in CARDS]
        for total, one in zip(sums, hours, strict=True):
            total[:] = [a + b for a, b in zip(total, one, strict=True)]
        cells = [_hours(one) if fit else "too small" for one, fit in zip(hours, fits, strict=True)]
        rows.append([_link(page.paper, page.name), f"{budget.memory_gb:g}", *cells])
    if not rows:
        return "No chapter has a preset `full` yet."
    rows.append(["all of them, where they fit", "", *map(_hours, sums)])
    return table(("Notebook", "GB at most", *(card.name for card in CARDS)), rows, "cost")


def _factors(card: Card) -> list[float]:
    """How much longer than on the first card: where memory is what limits, and where arithmetic is; in order."""
    return sorted((CARDS[0].bandwidth / card.bandwidth, CARDS[0].compute / card.compute))


def _hours(ends: list[float]) -> str:
    return " to ".join(dict.fromkeys(f"{hours:.1f}" for hours in ends))
