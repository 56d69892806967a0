"""HTML that the build puts into pages: the card of a page, the notice of a failed run.

It stands raw in a Markdown cell, so it must be one block: no line break, every text escaped.
"""

from html import escape

from helpers.claims import Claim, chip, format_number
from helpers.engine.judge import STATUS
from helpers.engine.pages import Chapter, Page
from helpers.engine.tally import Tally
from helpers.html import table, text
from helpers.record import Outcome

LONGEST_MESSAGE = 3000  # characters


def card(page: Page, chapter: Chapter, links: dict[str, str]) -> str:
    """Return the card of a page: headlines, how the claims fared at each size, the chapter's other pages, buttons."""
    claims = {name: claim for name, claim in chapter.claims.items() if chapter.page_of(claim) is page}
    lines = [headlines(chapter)] if page.main else []
    trial = page.run.record.changed if page.run.record else {}
    if trial:
        said = "; ".join(f"{name} = {value}" for name, value in trial.items())
        lines.append(_paragraph("card-stale", f"<strong>Changed run.</strong> {text(said)}. It speaks for no preset."))
    for preset in page.records if claims else ():
        this = " (this page)" if page.records[preset] is page.run.record else ""
        said = Tally.of(claims, chapter.at(preset, [page])).sentence()
        lines.append(_paragraph("card-verdict", f'<span class="card-preset">{preset}{this}</span> {text(said)}'))
    if not chapter.claims:
        lines.append(_paragraph("card-stale", f"The verdicts cannot be counted: {text(chapter.faults[0])}"))
    if page.run.status == "stale":
        said = "<strong>Stale.</strong> The notebook was changed after the run that this page shows. "
        lines.append(_paragraph("card-stale", f"{said}Run it again before you rely on a number."))
    lines.append(other_pages(page, chapter))
    lines.append(_paragraph("card-buttons", "".join(_button(name, href) for name, href in links.items())))
    return f'<div class="chapter-card">{"".join(lines)}</div>'


def headlines(chapter: Chapter) -> str:
    """Return the headline claims in plain words with verdict and interval from the largest run that tested them."""
    items = []
    for name, claim in chapter.claims.items():
        if claim.headline and (best := chapter.best(name)):
            preset, outcome = best
            page = chapter.page_of(claim)
            seeds = page.stability(name, preset) if page else ""
            marks = [f"same with {seeds}" if seeds else "", claim.evidence, "ours" if claim.ours else ""]
            notes = ", ".join([preset, *(mark for mark in marks if mark not in ("", "measured"))])
            numbers = _interval(claim, outcome) if outcome.low is not None else text(outcome.reason or "")
            said = f'<span class="headline">{text(claim.headline)}</span> {chip(outcome.verdict)}'
            items.append(f"<li>{said}<br><small>{numbers} ({text(notes)})</small></li>")
    return f'<ul class="card-headlines">{"".join(items)}</ul>' if items else ""


def _interval(claim: Claim, outcome: Outcome) -> str:
    """The numbers, and a small picture: the interval against the side on which the claim is reproduced."""
    value, low, high = (number or 0.0 for number in (outcome.value, outcome.low, outcome.high))
    margin = claim.margin or 0.0
    goal = {"less": (None, claim.threshold), "greater": (claim.threshold, None)}.get(
        claim.direction, (claim.threshold - margin, claim.threshold + margin)
    )
    ends = [low, high, *(end for end in goal if end is not None)]
    width = (max(ends) - min(ends)) or 1.0

    def x(number: float) -> float:
        return round(12 + 96 * (number - min(ends)) / width, 1)

    left, right = (0.0 if goal[0] is None else x(goal[0])), (120.0 if goal[1] is None else x(goal[1]))
    edges = "".join(f'<path class="threshold" d="M{x(end)} 0V16"/>' for end in goal if end is not None)
    words = f"{format_number(value)} [{format_number(low)}, {format_number(high)}] {claim.unit}".strip()
    picture = (
        f'<svg class="interval" viewBox="0 0 120 16" width="120" height="16" role="img" aria-label="'
        f'{text(f"interval {format_number(low)} to {format_number(high)}; reproduced is {claim.rule()}")}">'
        f'<rect class="goal" x="{left}" width="{round(right - left, 1)}" height="16"/>{edges}'
        f'<path class="bar" d="M{x(low)} 8H{x(high)}"/><circle class="dot" cx="{x(value)}" cy="8" r="3.5"/></svg>'
    )
    return f"{picture} {text(words)}; rule: {text(claim.rule())}"


def other_pages(page: Page, chapter: Chapter) -> str:
    """Return links to the chapter's other pages; the main page says how its studies fared."""
    if not page.main:
        return _paragraph("card-study", f'A study of <a href="{page.paper}.html">{text(chapter.main.title)}</a>.')
    lines = []
    for study in chapter.pages[1:]:
        claims = {name: claim for name, claim in chapter.claims.items() if chapter.page_of(claim) is study}
        best = {name: found[1] for name in claims if (found := chapter.best(name))}
        said = Tally.of(claims, best).sentence() if claims else ""
        if study.run.status != "ok":
            said = f"{STATUS[study.run.status].capitalize()}. {said}"
        lines.append(f'<li><a href="{study.name}.html">{text(study.title)}</a>. {text(said)}</li>')
    return (
        f'<p class="card-study">More on this paper:</p><ul class="card-studies">{"".join(lines)}</ul>' if lines else ""
    )


def failure_notice(page: Page) -> str:
    """Return the notice that stands on the page of a failed run."""
    status, details = page.run.status, page.run.details
    failed = f"This page's run failed: {escape(status)}"
    title = "This page's notebook has not been run" if status == "not run" else failed
    error, cell = details.get("error") or {}, details.get("last_cell") or {}
    facts = {
        "preset and seed": f"{page.preset}, seed {details['seed']}" if "seed" in details else None,
        "last cell": f"{cell.get('id')} (number {cell.get('index')})" if cell else None,
        "error": error.get("type"),
        "wall time": f"{details['wall_s']} s" if "wall_s" in details else None,
        "peak memory": f"{details['peak_memory_mb']} MB" if "peak_memory_mb" in details else None,
        "finished": details.get("finished"),
    }
    rows = [(name, said) for name, said in facts.items() if said]
    message = str(error.get("message") or (page.run.message if status != "not run" else ""))[:LONGEST_MESSAGE]
    message = escape(message).replace("\r", "").replace("\n", "&#10;")  # no line break may end the HTML block
    return (
        f'<div class="run-failed" role="alert"><p class="run-failed-title">{title}</p>'
        f"<p>{STATUS[status].capitalize()}. The page shows no results. Text and code follow, without outputs.</p>"
        f"{f'<pre>{message}</pre>' if message else ''}{table([], rows, 'run-card', scroll=False) if rows else ''}</div>"
    )


def _button(name: str, href: str) -> str:
    download = " download" if name.startswith("Download") else ""
    return f'<a class="card-button" href="{escape(href)}"{download}>{escape(name)}</a>'


def _paragraph(style: str, html: str) -> str:
    return f'<p class="{style}">{html}</p>'
