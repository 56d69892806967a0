"""The scoreboard: every claim of every chapter at every size, from records alone."""

import csv
import io
import re
from collections import Counter
from html import escape
from pathlib import Path
from typing import Any, get_args

import yaml
from cards import tally, verdict_sentence
from chapters import STATUS, Page

from helpers.claims import PRESETS, Verdict, chip, format_number

PLACE = "<!-- scoreboard -->"
NOT_RUN = '<span class="not-run">not run</span>'
Records = dict[str, dict[str, Any]]  # preset -> record


def fill(template: str, pages: list[Page], records: dict[str, Records], notebooks: Path) -> str:
    """Return the scoreboard page.

    Args:
        template: the committed page, with a placeholder.
        pages: the main page of every chapter, in the book's order.
        records: for every paper its records by preset.
        notebooks: folder with the chapters' `claims.yaml`.
    """
    if not pages:
        return template.replace(PLACE, "There are no chapters yet.")
    parts = [_totals(pages, records), _summary(pages, records)]
    parts.append(
        "The same as a table for your own analysis: <a href='../records/scoreboard.csv' download>scoreboard.csv</a>."
    )
    for page in pages:
        claims = yaml.safe_load((notebooks / page.paper / "claims.yaml").read_text())
        link = f"[Open the chapter](../{page.docname}.ipynb)"
        parts += [f"(score-{page.paper})=", f"## {page.title}", link, _claims(page, claims, records[page.paper])]
    return template.replace(PLACE, "\n\n".join(parts))


def chapter_list(template: str, pages: list[Page]) -> str:
    """Return the preface with a list of the chapters and how their claims fared."""
    lines = []
    for page in pages:
        said = verdict_sentence(page.record) if page.ok else f"{STATUS.get(page.status, page.status).capitalize()}."
        lines.append(f"- [{page.title}](../{page.docname}.ipynb). {said}")
    return template.replace("<!-- chapters -->", "\n".join(lines) or "There are no chapters yet.")


def as_csv(pages: list[Page], records: dict[str, Records]) -> str:
    """Return one line per claim and preset."""
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(["paper", "claim", "preset", "seed", "verdict", "value", "low", "high", "n"])
    for page in pages:
        for preset, record in records[page.paper].items():
            for name, outcome in record["claims"].items():
                numbers = [outcome.get(key, "") for key in ("verdict", "value", "low", "high", "n")]
                table.writerow([page.paper, name, preset, record["parameters"].get("seed", ""), *numbers])
    return buffer.getvalue()


def _totals(pages: list[Page], records: dict[str, Records]) -> str:
    shown = [record for by_preset in records.values() for record in by_preset.values()]
    verdicts = sum((tally(record) for record in shown), Counter())
    numbers = {"chapters": len(pages), "complete runs": len(shown)}
    numbers["runs failed"] = sum(not page.ok and page.status != "not run" for page in pages)
    numbers |= {verdict: verdicts[verdict] for verdict in ("reproduced", "contradicted", "inconclusive")}
    tiles = "".join(f"<div><dt>{escape(k)}</dt><dd>{v}</dd></div>" for k, v in numbers.items())
    return f'<dl class="score-totals">{tiles}</dl>'


def _summary(pages: list[Page], records: dict[str, Records]) -> str:
    head = "".join(f'<th scope="col">{title}</th>' for title in ("Chapter", *PRESETS))
    rows = []
    for page in pages:
        cells = "".join(f"<td>{_counts(page, preset, records[page.paper])}</td>" for preset in PRESETS)
        link = f'<a href="../{page.docname}.html">{escape(page.title)}</a>'
        rows.append(f'<tr><th scope="row">{link}</th>{cells}</tr>')
    return (
        f'<div class="table-scroll"><table class="scoreboard"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _counts(page: Page, preset: str, records: Records) -> str:
    """The verdicts of one record as counted chips, or why there is none."""
    if not page.ok and preset == page.preset:
        return failed_chip(page)
    if preset not in records:
        return NOT_RUN
    counts = tally(records[preset])
    chips = "".join(f"<span><b>{counts[v]}</b> {chip(v)}</span>" for v in get_args(Verdict) if counts[v])
    stale = ' <span class="verdict run-stale">! stale</span>' if page.stale and preset == page.preset else ""
    return f'<span class="chips">{chips}{stale}</span>'


def failed_chip(page: Page) -> str:
    """Return the mark of a failed run, with the reason as a title."""
    if page.status == "not run":
        return NOT_RUN
    why = escape(STATUS.get(page.status, page.status))
    return f'<span class="verdict run-failed-chip" title="{why}">! run failed: {escape(page.status)}</span>'


def _claims(page: Page, claims: list[dict[str, Any]], records: Records) -> str:
    head = "".join(f'<th scope="col">{title}</th>' for title in ("Claim", "The paper", *PRESETS))
    rows = []
    for claim in claims:
        cells = "".join(f"<td>{_outcome(page, claim['id'], preset, records)}</td>" for preset in PRESETS)
        statement = _plain(claim["statement"])
        rows.append(
            f'<tr><th scope="row"><b>{escape(claim["id"])}</b> {statement}</th>'
            f"<td>{_plain(str(claim['paper_value']))}<br><small>{_plain(claim['source'])}</small></td>{cells}</tr>"
        )
    return (
        f'<div class="table-scroll"><table class="claims"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _outcome(page: Page, claim: str, preset: str, records: Records) -> str:
    if not page.ok and preset == page.preset:
        return failed_chip(page)
    outcome = records.get(preset, {}).get("claims", {}).get(claim)
    if outcome is None:
        return NOT_RUN
    if outcome["verdict"] == "not testable here":
        return f"{chip(outcome['verdict'])}<br><small>{_plain(outcome.get('reason', ''))}</small>"
    value, low, high = (format_number(outcome[key]) for key in ("value", "low", "high"))
    return f"{chip(outcome['verdict'])}<br><small>{value} [{low}, {high}], n&nbsp;=&nbsp;{outcome['n']}</small>"


def _plain(text: str) -> str:
    """Escape a text and put it on one line, so that it stays inside its HTML block."""
    return escape(re.sub(r"\s+", " ", str(text)).strip())
