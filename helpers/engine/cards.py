"""HTML that the build puts into pages: the card of a chapter, the notice of a failed run.

All of it is raw HTML in a Markdown cell, so it must be one block: no blank line, every text escaped.
"""

from collections import Counter
from html import escape
from typing import Any

from chapters import STATUS, Notebook, Page, source_of

PLACE = "<!-- card -->"
LONGEST_MESSAGE = 3000  # characters


def tally(record: dict[str, Any]) -> Counter:
    """Return how many claims of a record have each verdict."""
    return Counter(outcome["verdict"] for outcome in record["claims"].values())


def verdict_sentence(record: dict[str, Any]) -> str:
    """Return one sentence on how the claims of a record fared, as text."""
    counts = tally(record)
    total = sum(counts.values())
    rest = [
        f"{counts[v]} {phrase}"
        for v, phrase in (
            ("contradicted", "contradicted"),
            ("inconclusive", "inconclusive"),
            ("not testable here", "not testable at this size"),
        )
        if counts[v]
    ]
    head = f"{counts['reproduced']} of {total} {'claim' if total == 1 else 'claims'} reproduced"
    return f"{head}, {', '.join(rest[:-1]) + ' and ' + rest[-1] if len(rest) > 1 else rest[0]}." if rest else f"{head}."


def card(page: Page, records: dict[str, dict[str, Any]], links: dict[str, str]) -> str:
    """Return the card of a chapter: how the claims fared at each size, and the buttons.

    Args:
        page: the page that gets the card.
        records: the records to report, by preset.
        links: button text -> address.
    """
    lines = []
    for preset, record in records.items():
        this = " (this page)" if record is page.record else ""
        lines.append(
            f'<p class="card-verdict"><span class="card-preset">{escape(preset)}{this}</span> '
            f"{escape(verdict_sentence(record))}</p>"
        )
    if page.stale:
        lines.append(
            '<p class="card-stale"><strong>Stale.</strong> The notebook was changed after the run '
            "that this page shows. Run it again before you rely on a number.</p>"
        )
    buttons = "".join(_button(text, href) for text, href in links.items())
    return f'<div class="chapter-card">{"".join(lines)}<p class="card-buttons">{buttons}</p></div>'


def _button(text: str, href: str) -> str:
    download = " download" if text.startswith("Download") else ""
    return f'<a class="card-button" href="{escape(href)}"{download}>{escape(text)}</a>'


def failure_notice(page: Page) -> str:
    """Return the notice that stands on the page of a failed run."""
    why = STATUS.get(page.status, "the run did not finish")
    not_run = page.status == "not run"
    title = "This chapter has not been run" if not_run else f"This chapter's run failed: {escape(page.status)}"
    error, cell = page.details.get("error") or {}, page.details.get("last_cell") or {}
    facts = {
        "preset and seed": f"{page.preset}, seed {page.details['seed']}" if "seed" in page.details else None,
        "last cell": f"{cell.get('id')} (number {cell.get('index')})" if cell else None,
        "error": error.get("type"),
        "wall time": f"{page.details['wall_s']} s" if "wall_s" in page.details else None,
        "peak memory": f"{page.details['peak_memory_mb']} MB" if "peak_memory_mb" in page.details else None,
        "finished": page.details.get("finished"),
    }
    rows = "".join(f"<tr><th>{escape(k)}</th><td>{escape(str(v))}</td></tr>" for k, v in facts.items() if v)
    table = f'<table class="run-card"><tbody>{rows}</tbody></table>' if rows else ""
    message = str(error.get("message") or "")[:LONGEST_MESSAGE]
    block = f"<pre>{_one_block(message)}</pre>" if message else ""
    return (
        '<div class="run-failed" role="alert">'
        f'<p class="run-failed-title">{title}</p>'
        f"<p>{escape(why.capitalize())}. The page shows no results. Text and code follow, without outputs.</p>"
        f"{block}{table}</div>"
    )


def _one_block(text: str) -> str:
    """Escape a text so that no line break ends the HTML block around it."""
    return escape(text).replace("\r", "").replace("\n", "&#10;")


def markdown_cell(cell_id: str, text: str) -> dict[str, Any]:
    """Return a notebook cell with Markdown."""
    return {"cell_type": "markdown", "id": cell_id, "metadata": {}, "source": text}


def with_card(page: Page, html: str) -> Notebook:
    """Return the executed notebook with its card at the placeholder, or after the title cell."""
    first, *rest = page.executed["cells"]
    text = source_of(first)
    text = text.replace(PLACE, f"\n\n{html}\n\n", 1) if PLACE in text else f"{text}\n\n{html}\n"
    return page.executed | {"cells": [first | {"source": text}, *rest]}


def failed_notebook(page: Page) -> Notebook:
    """Return a notebook that says that the run failed and where, with text and code but no outputs below."""
    base = page.executed or page.source
    stopped = (page.details.get("last_cell") or {}).get("id")
    first, *rest = base["cells"]
    cells = [first | {"source": source_of(first).replace(PLACE, "")}, markdown_cell("run-failed", failure_notice(page))]
    for cell in rest:
        if stopped is not None and cell.get("id") == stopped:
            cells.append(markdown_cell("run-stopped", '<p class="run-stopped">The run stopped in this cell:</p>'))
        cells.append(cell | {"outputs": [], "execution_count": None} if cell["cell_type"] == "code" else cell)
    return base | {"cells": cells}
