"""The scoreboard: every claim of every chapter at every size, from records alone."""

import csv
import io
from collections import Counter
from typing import get_args

from helpers.claims import Claim, chip, outcome_html
from helpers.engine.cells import as_markdown
from helpers.engine.contributed import elsewhere
from helpers.engine.pages import Chapter, Page
from helpers.engine.tally import Tally, counted
from helpers.html import Raw, table, text
from helpers.record import PRESETS, Verdict

NOT_RUN = Raw('<span class="not-run">not run</span>')
CSV = "<a href='../records/scoreboard.csv' download>scoreboard.csv</a>"


def fill(template: str, chapters: list[Chapter]) -> str:
    """Return the scoreboard page: the committed text with tables at the placeholder."""
    presets = [p for p in PRESETS if any(p in page.records or page.fault(p) for c in chapters for page in c.pages)]
    presets = presets or ["reduced"]
    parts = [_totals(chapters), _summary(chapters, presets)]
    parts.append(f"The same as a table for your own analysis: {CSV}.")
    for chapter in chapters:
        link = f"[Open the chapter](../{chapter.main.docname}.ipynb)"
        parts += [f"(score-{chapter.paper})=", f"## {as_markdown(chapter.main.title)}", link, _claims(chapter, presets)]
        parts += _elsewhere(chapter)
    return template.replace("<!-- scoreboard -->", "\n\n".join(parts) if chapters else "There are no chapters yet.")


def chapter_list(template: str, chapters: list[Chapter]) -> str:
    """Return the preface with the chapters in order, what to know before each, and how its claims fared on its page."""
    lines, titles = [], {chapter.paper: chapter.main.title for chapter in chapters}
    for chapter in chapters:
        said = [Tally.of(chapter.claims, chapter.shown()).sentence() if chapter.claims else chapter.faults[0]]
        said = said if any(page.run.shown for page in chapter.pages) else []
        said += [_state(page) for page in chapter.pages if page.run.status != "ok"]
        before = [*chapter.guide.before, *(titles[paper] for paper in chapter.guide.after if paper in titles)]
        said += [_ended(f"Know before: {'; '.join(before)}")] if before else []
        lines.append(
            f"1. [{as_markdown(chapter.main.title)}](../{chapter.main.docname}.ipynb). {as_markdown(' '.join(said))}"
        )
    return template.replace("<!-- chapters -->", "\n".join(lines) or "There are no chapters yet.")


def as_csv(chapters: list[Chapter]) -> str:
    """Return one line per claim and preset."""
    buffer = io.StringIO()
    lines = csv.writer(buffer, lineterminator="\n")
    numbers = ("verdict", "value", "low", "high", "n")
    lines.writerow(
        ["paper", "notebook", "claim", "evidence", "ours", "preset", "seed", *numbers, "same_verdict", "code"]
    )
    for chapter in chapters:
        for page in chapter.pages:
            for preset, record in page.records.items():
                code = "earlier" if page.outdated(preset) else "this"
                for name, outcome in record.claims.items():
                    claim = chapter.claims.get(name)
                    kind = [claim.evidence, str(claim.ours).lower()] if claim else ["", ""]
                    found = [getattr(outcome, key) for key in numbers]
                    seeds = page.stability(name, preset)
                    lines.writerow([page.paper, page.name, name, *kind, preset, record.seed, *found, seeds, code])
    return buffer.getvalue()


def _totals(chapters: list[Chapter]) -> str:
    pages = [page for chapter in chapters for page in chapter.pages]
    best = [Tally.of(c.claims, {name: found[1] for name in c.claims if (found := c.best(name))}) for c in chapters]
    verdicts = sum((tally.verdicts for tally in best), Counter())
    numbers: dict[str, object] = {"chapters": len(chapters), "complete runs": sum(len(page.records) for page in pages)}
    if failed := sum(not page.run.shown and page.run.status != "not run" for page in pages):
        numbers["runs failed"] = failed
    measured = sum(tally.measured for tally in best)
    numbers["claims measured"] = f"{measured} of {sum(tally.claims for tally in best)}"
    words = ("reproduced", "contradicted", "inconclusive")
    numbers |= {verdict: f"{verdicts[verdict]} of {measured}" for verdict in words}
    tiles = "".join(f"<div><dt>{text(name)}</dt><dd>{text(said)}</dd></div>" for name, said in numbers.items())
    other, ours = sum(tally.other for tally in best), sum(tally.ours for tally in best)
    return (
        f'<dl class="score-totals">{tiles}</dl>\n\nA claim counts once, at the largest size that tested it. '
        f"Not counted, but listed below: {other} recomputed or derived, and {counted(ours, 'statement')} of ours."
    )


def _summary(chapters: list[Chapter], presets: list[str]) -> str:
    rows = []
    for chapter in chapters:
        link = Raw(f'<a href="../{chapter.main.docname}.html">{text(chapter.main.title)}</a>')
        rows.append([link, *(_counts(chapter, preset) for preset in presets)])
    return table(("Chapter", *presets), rows, "scoreboard")


def _counts(chapter: Chapter, preset: str) -> Raw:
    """The counted verdicts of all notebooks at one size, and the marks of what is wrong."""
    tally = Tally.of(chapter.claims, chapter.at(preset))
    chips = [f"{tally.measured} of {tally.claims} measured"] if tally.verdicts else []
    chips += [f"<b>{tally.verdicts[v]}</b> {chip(v)}" for v in get_args(Verdict) if tally.verdicts[v]]
    beside = [f"{n} {word}" for n, word in ((tally.other, "not measured"), (tally.ours, "ours")) if n]
    chips += [f"<small>and {text(', '.join(beside))}</small>"] if beside else []
    for page in chapter.pages:
        chips += [mark for mark in (failed_chip(page, preset), stale_chip(page, preset)) if mark]
    there = any(preset in page.records for page in chapter.pages)
    if there and not chapter.claims:
        chips.append(_mark("claims unreadable", chapter.faults[0]))
    if not chips:
        return Raw('<span class="not-run">nothing counted</span>') if there else NOT_RUN
    return Raw(f'<span class="chips">{"".join(f"<span>{one}</span>" for one in chips)}</span>')


def _mark(words: str, why: str) -> str:
    return f'<span class="verdict run-failed-chip" title="{text(why)}">! {text(words)}</span>'


def failed_chip(page: Page, preset: str) -> str:
    """Return the mark of a failed run or a damaged record, with the reason as a title."""
    if not (fault := page.fault(preset)):
        return ""
    return _mark(fault[0] if page.main else f"{page.name}: {fault[0]}", fault[1])


def stale_chip(page: Page, preset: str) -> str:
    """Return the mark of a run whose notebook was changed afterwards, or of a record that other code made."""
    if page.run.status == "stale" and preset == page.preset:
        word, why = "stale", "The notebook was changed after the run."
    elif page.outdated(preset):
        word, why = "earlier code", "The notebook's code was changed after this committed run."
    else:
        return ""
    said = word if page.main else f"{page.name}: {word}"
    return f'<span class="verdict run-stale" title="{why}">! {text(said)}</span>'


def _claims(chapter: Chapter, presets: list[str]) -> str:
    if not chapter.claims:
        return f'<p class="card-stale">{text(chapter.faults[0])}</p>'
    rows = [
        [_statement(chapter, claim), Raw(f"{text(claim.paper_value)}<br><small>{text(claim.source)}</small>")]
        + [_outcome(chapter, claim, preset) for preset in presets]
        for claim in chapter.claims.values()
    ]
    return table(("Claim", "The paper", *presets), rows, "claims")


def _elsewhere(chapter: Chapter) -> list[str]:
    """The records that others made of the chapter's notebooks, if there are any."""
    found = [(one, page.records.get(one.record.preset)) for page in chapter.pages for one in page.contributed]
    return ["**Reproduced elsewhere.** Records that others contributed.", elsewhere(found)] if found else []


def _statement(chapter: Chapter, claim: Claim) -> Raw:
    page = chapter.page_of(claim)
    kinds = [f'<span class="evidence">{text(kind)}</span>' for kind in (claim.evidence, *["ours"] * claim.ours)]
    if page and not page.main:
        kinds.append(f'<a href="../{page.docname}.html">{text(page.title)}</a>')
    return Raw(f"<b>{text(claim.id)}</b> {text(claim.statement)}<br><small>{' '.join(kinds)}</small>")


def _outcome(chapter: Chapter, claim: Claim, preset: str) -> Raw:
    page = chapter.page_of(claim)
    if page and (mark := failed_chip(page, preset)):
        return Raw(mark)
    record = page.records.get(preset) if page else None
    if page is None or record is None or claim.id not in record.claims:
        return NOT_RUN
    seeds = page.stability(claim.id, preset)
    said = outcome_html(record.claims[claim.id]) + (f"<br><small>same with {seeds}</small>" if seeds else "")
    return Raw(" ".join(said.split()))  # a blank line in a reason would end the table


def _state(page: Page) -> str:
    """What a reader must know of a run that is not good, as a sentence."""
    name = "" if page.main else f"{_ended(page.title)} "
    words = {"not run": "Not run.", "stale": "Stale."}.get(page.run.status, f"Run failed: {page.run.status}.")
    return name + words


def _ended(sentence: str) -> str:
    """A text with a full stop, where it has no sign of its own at its end."""
    return sentence if sentence.endswith((".", "?", "!")) else f"{sentence}."
