"""HTML that the build puts into pages: the card of a page, a picture of its claims, the notice of a failed run.

It stands raw in a Markdown cell, so it must be one block: no line break, every text escaped.
"""

from collections.abc import Collection, Mapping
from html import escape
from math import inf, isfinite

from helpers.claims import Claim, chip, format_number
from helpers.engine.cells import reading_minutes
from helpers.engine.contents import anchor
from helpers.engine.judge import STATUS
from helpers.engine.pages import Chapter, Guide, Page
from helpers.engine.tally import Tally, counted
from helpers.html import table, text

LONGEST_MESSAGE = 3000  # characters
LEGEND = (
    "Bar: the interval. Dot: the estimate. Shaded: where the claim counts as reproduced. Each picture has a scale of "
    "its own and shows the largest run that tested the claim; the folded table below has every run."
)


def card(page: Page, chapter: Chapter, links: dict[str, str], beforehand: str = "") -> str:
    """Return the card of a page: headlines, reading time, how the claims fared at each size, other pages, buttons.

    Args:
        page: of `chapter`.
        chapter: whose claims and other pages are told.
        links: address of every button by its words.
        beforehand: HTML that follows the headlines, as `introduction` makes it.
    """
    claims = chapter.claims_of(page)
    lines = [findings(chapter, chapter.claims if page.main else claims, headlines=True), beforehand]
    minutes = reading_minutes(page.run.executed or {"cells": []})
    lines.append(_paragraph("card-reading", f"Reading time: {counted(minutes, 'minute')}, without the code."))
    trial = page.run.record.changed if page.run.record else {}
    if trial:
        said = "; ".join(f"{name} = {value}" for name, value in trial.items())
        lines.append(_paragraph("card-stale", f"<strong>Changed run.</strong> {text(said)}. It speaks for no preset."))
    for preset in page.records if claims else ():
        this = " (this page)" if page.records[preset] is page.run.record else ""
        this = " (earlier code)" if page.outdated(preset) else this
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


def introduction(guide: Guide, images: Mapping[str, str], terms: Collection[str], titles: Mapping[str, str]) -> str:
    """Return the figure that sums a chapter up, what one should know before, and which chapters help first.

    Args:
        guide: of the chapter.
        images: HTML of every figure's images by the figure's name.
        terms: of the glossary.
        titles: of the chapters by paper.
    """
    lines = []
    if guide.figure and guide.figure in images:
        lines.append(f'<a class="card-figure" href="#figure-{text(guide.figure)}">{images[guide.figure]}</a>')
    if guide.before:
        known = {term.lower(): term for term in terms}
        links = [
            _link(f"../../book/glossary.html#{anchor(known[one.lower()])}", one) if one.lower() in known else text(one)
            for one in guide.before
        ]
        lines.append(_paragraph("card-before", f"Know before: {', '.join(links)}."))
    if guide.after:
        links = [_link(f"../{paper}/{paper}.html", titles[paper]) for paper in guide.after if paper in titles]
        lines.append(_paragraph("card-before", f"Easier after: {'; '.join(links)}."))
    return "".join(lines)


def overview(page: Page, chapter: Chapter) -> str:
    """Return what was found on every claim of a page, for the top of its section on claims."""
    found = findings(chapter, chapter.claims_of(page))
    return f'<div class="claims-overview">{_paragraph("legend", LEGEND)}{found}</div>' if found else ""


def findings(chapter: Chapter, claims: dict[str, Claim], headlines: bool = False) -> str:
    """Return what the largest run found that tested each claim; of `headlines` alone, in their plain words."""
    items = []
    for claim in claims.values():
        page, best = chapter.page_of(claim), chapter.best(claim.id)
        if page is None or best is None or (headlines and not claim.headline):
            continue
        preset, outcome = best
        seeds = page.stability(claim.id, preset)
        marks = [f"same with {seeds}" if seeds else "", claim.evidence, "ours" if claim.ours else ""]
        marks.append("earlier code" if page.outdated(preset) else "")
        notes = ", ".join([preset, *(mark for mark in marks if mark not in ("", "measured"))])
        drawn, numbers = "", outcome.reason or ""
        if outcome.value is not None and outcome.low is not None and outcome.high is not None:
            drawn = picture(claim, outcome.value, outcome.low, outcome.high)
            value, low, high = map(format_number, (outcome.value, outcome.low, outcome.high))
            numbers = f"{value} [{low}, {high}] {claim.unit}".strip() + f"; rule: {claim.rule()}"
        words = f"<strong>{text(claim.headline if headlines else claim.id)}</strong>"
        words += "" if headlines else f" {text(claim.statement)}"
        said = f"{words} {chip(outcome.verdict)}<br><small>{text(numbers)} ({text(notes)})</small>"
        items.append(f"<li>{drawn}<div>{said}</div></li>")
    return f'<ul class="findings">{"".join(items)}</ul>' if items else ""


def picture(claim: Claim, value: float, low: float, high: float) -> str:
    """Return a small picture: the interval against the side on which the claim is reproduced."""
    margin = claim.margin or 0.0
    sides = {"less": (-inf, claim.threshold), "greater": (claim.threshold, inf)}
    goal = sides.get(claim.direction, (claim.threshold - margin, claim.threshold + margin))
    edges = [end for end in goal if isfinite(end)]
    ends = [value, low, high, *edges]
    scale = 96 / ((max(ends) - min(ends)) or 1.0)

    def x(number: float) -> float:
        return round(min(max(12 + (number - min(ends)) * scale, 0.0), 120.0), 1)

    lines = "".join(f'<path class="threshold" d="M{x(end)} 0V16"/>' for end in edges)
    said = f"interval {format_number(low)} to {format_number(high)}; reproduced is {claim.rule()}"
    return (
        f'<svg class="interval" viewBox="0 0 120 16" width="120" height="16" role="img" aria-label="{text(said)}">'
        f'<rect class="goal" x="{x(goal[0])}" width="{round(x(goal[1]) - x(goal[0]), 1)}" height="16"/>{lines}'
        f'<path class="bar" d="M{x(low)} 8H{x(high)}"/><circle class="dot" cx="{x(value)}" cy="8" r="3.5"/></svg>'
    )


def other_pages(page: Page, chapter: Chapter) -> str:
    """Return links to the chapter's other pages; the main page says how its studies fared."""
    if not page.main:
        return _paragraph("card-study", f'A study of <a href="{page.paper}.html">{text(chapter.main.title)}</a>.')
    lines = []
    for study in chapter.pages[1:]:
        claims = chapter.claims_of(study)
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


def _link(href: str, words: str) -> str:
    return f'<a href="{text(href)}">{text(words)}</a>'


def _button(name: str, href: str) -> str:
    download = " download" if name.startswith("Download") else ""
    return f'<a class="card-button" href="{escape(href)}"{download}>{escape(name)}</a>'


def _paragraph(style: str, html: str) -> str:
    return f'<p class="{style}">{html}</p>'
