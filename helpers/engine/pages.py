"""What stands behind the pages: a chapter with its claims, and for each of its notebooks the run and the records."""

import re
from dataclasses import dataclass
from functools import cached_property

from pydantic import BaseModel, ConfigDict

from helpers.claims import Claim
from helpers.engine.cells import find_title
from helpers.engine.charts import Chart
from helpers.engine.contributed import Contribution
from helpers.engine.judge import Judgement
from helpers.engine.tally import NOT_TESTABLE
from helpers.record import PRESETS, Outcome, Record
from helpers.verify import Expected


class Guide(BaseModel):
    """What a reader is told of a chapter beforehand, as written in `guide.yaml`.

    Attributes:
        before: what one should know; a term of the glossary becomes a link to it.
        after: papers whose chapters prepare for this one; they stand earlier in the book.
        figure: name of the main notebook's figure that sums it up.
        charts: with a slider, below figures of its notebooks.
    """

    model_config = ConfigDict(extra="forbid")

    before: list[str] = []
    after: list[str] = []
    figure: str | None = None
    charts: list[Chart] = []


@dataclass(frozen=True)
class Page:
    """One notebook of a chapter with the run that it shows.

    Attributes:
        paper, name: folder and stem of the source notebook.
        code: hash of its code cells; None when it cannot be read.
        run: the judgement of its run.
        committed: its committed records of larger runs, by preset.
        repeats: committed records of the same runs with other seeds, by preset.
        damaged: presets whose committed record cannot be believed, with the reason.
        expected: its calibrated values; None when there are none.
        contributed: checked records of it that others made.
    """

    paper: str
    name: str
    code: str | None
    run: Judgement
    committed: dict[str, Record]
    repeats: dict[str, list[Record]]
    damaged: dict[str, str]
    expected: Expected | None
    contributed: list[Contribution]

    @property
    def main(self) -> bool:
        """Whether this is the chapter's main notebook."""
        return self.name == self.paper

    @property
    def docname(self) -> str:
        """The page's place in the book; the same as the notebook's place in the repository."""
        return f"notebooks/{self.paper}/{self.name}"

    @property
    def preset(self) -> str:
        """The preset of the run, `reduced` when the run did not say."""
        return self.run.record.preset if self.run.record else str(self.run.details.get("preset", "reduced"))

    @property
    def title(self) -> str:
        """The notebook's title as plain text."""
        notebook = self.run.source or self.run.executed
        found = find_title(notebook) if notebook else None
        return re.sub(r"[*`$]|\{\w+\}", "", found[1]) if found else self.name

    @cached_property
    def records(self) -> dict[str, Record]:
        """The records that speak for a preset, from small to large: the run of the page before a committed one.

        A failed run is not covered up by an older record, and a run with changed parameters speaks for no preset.
        """
        known = dict(self.committed)
        if not self.run.shown and self.run.status != "not run":
            known.pop(self.preset, None)
        if self.run.record and not self.run.record.changed:
            known[self.preset] = self.run.record
        return {preset: known[preset] for preset in PRESETS if preset in known}

    def fault(self, preset: str) -> tuple[str, str] | None:
        """Return why there is no good record at a preset, as a few words and a sentence; None when nothing is wrong."""
        if preset == self.preset and not self.run.shown and self.run.status != "not run":
            return f"run failed: {self.run.status}", self.run.message
        return ("record unreadable", self.damaged[preset]) if preset in self.damaged else None

    def outdated(self, preset: str) -> bool:
        """Whether a preset's record was made by other code cells than the notebook has now."""
        record = self.records.get(preset)
        return record is not None and record is not self.run.record and record.card.get("code") != self.code

    def stability(self, claim: str, preset: str) -> str:
        """Return for how many seeds a claim had the verdict of the record, such as "4 of 5 seeds".

        The seeds are those of the calibration, or of the committed records of the same run, by the same code, with
        other seeds.
        """
        outcome = self.records[preset].claims.get(claim) if preset in self.records else None
        if outcome is None or outcome.verdict == NOT_TESTABLE:
            return ""
        verdicts = self.expected.claims.get(claim) if self.expected and self.expected.preset == preset else None
        if not verdicts:
            code, repeats = self.records[preset].card.get("code"), self.repeats.get(preset, [])
            others = [r.claims[claim] for r in repeats if claim in r.claims and r.card.get("code") == code]
            verdicts = [one.verdict for one in (outcome, *others)] if others else []
        if not verdicts:
            return ""
        return f"{verdicts.count(outcome.verdict)} of {len(verdicts)} seeds"


@dataclass(frozen=True)
class Chapter:
    """A paper's pages and claims.

    Attributes:
        pages: the main notebook's page first.
        claims: all claims by id; empty when `claims.yaml` cannot be read.
        faults: one line for every file of the chapter that cannot be used.
        guide: what a reader is told beforehand; empty when there is no `guide.yaml`, or it cannot be read.
    """

    paper: str
    pages: list[Page]
    claims: dict[str, Claim]
    faults: list[str]
    guide: Guide

    @property
    def main(self) -> Page:
        """The main notebook's page."""
        return self.pages[0]

    def page_of(self, claim: Claim) -> Page | None:
        """Return the page whose run judges a claim."""
        return next((page for page in self.pages if page.name == (claim.notebook or self.paper)), None)

    def charts_of(self, page: Page) -> list[Chart]:
        """Return the charts with a slider that a page shows."""
        return [chart for chart in self.guide.charts if (chart.notebook or self.paper) == page.name]

    def claims_of(self, page: Page) -> dict[str, Claim]:
        """Return the claims that the run of a page judges."""
        return {name: claim for name, claim in self.claims.items() if self.page_of(claim) is page}

    def at(self, preset: str, pages: list[Page] | None = None) -> dict[str, Outcome]:
        """Return what became of the claims at one preset, in all notebooks or in `pages`."""
        found = {}
        for name, claim in self.claims.items():
            page = self.page_of(claim)
            if page and (pages is None or page in pages) and preset in page.records:
                found[name] = page.records[preset].claims.get(name)
        return {name: outcome for name, outcome in found.items() if outcome}

    def best(self, claim: str) -> tuple[str, Outcome] | None:
        """Return preset and outcome of a claim at the largest preset whose record tested it, else where it has one."""
        found = [(preset, outcome) for preset in PRESETS if (outcome := self.at(preset).get(claim))]
        return next((x for x in reversed(found) if x[1].verdict != NOT_TESTABLE), found[-1] if found else None)

    def shown(self) -> dict[str, Outcome]:
        """Return what became of the claims in the runs that the pages show."""
        records = [page.run.record for page in self.pages if page.run.record]
        found = {name: outcome for record in records for name, outcome in record.claims.items()}
        return {name: found[name] for name in self.claims if name in found}
