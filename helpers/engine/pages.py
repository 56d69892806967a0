"""What stands behind the pages: a chapter with its claims, and for each of its notebooks the run and the records."""

import glob
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from helpers.claims import Claim, load_claims
from helpers.engine.cells import find_title
from helpers.engine.charts import Chart
from helpers.engine.contributed import Contribution, contributions
from helpers.engine.judge import Judgement, chapters_of, judge
from helpers.engine.tally import NOT_TESTABLE
from helpers.paths import notebooks_of, read_yaml
from helpers.record import PRESETS, Outcome, Record, RecordError, first_fault
from helpers.verify import Expected, load_expected


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
        run: the judgement of its run.
        committed: its committed records of larger runs, by preset.
        repeats: committed records of the same runs with other seeds, by preset.
        damaged: presets whose committed record cannot be believed, with the reason.
        expected: its calibrated values; None when there are none.
        contributed: checked records of it that others made.
    """

    paper: str
    name: str
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

    def stability(self, claim: str, preset: str) -> str:
        """Return for how many seeds a claim had the verdict of the record, such as "4 of 5 seeds".

        The seeds are those of the calibration, or of the committed records of the same run with other seeds.
        """
        outcome = self.records[preset].claims.get(claim) if preset in self.records else None
        if outcome is None or outcome.verdict == NOT_TESTABLE:
            return ""
        verdicts = self.expected.claims.get(claim) if self.expected and self.expected.preset == preset else None
        if not verdicts:
            others = [record.claims[claim] for record in self.repeats.get(preset, []) if claim in record.claims]
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


def find_chapters(notebooks: Path, runs: Path, results: Path) -> list[Chapter]:
    """Return every chapter below `notebooks`; a file that cannot be used becomes a fault of its chapter."""
    return [load_chapter(folder, runs / folder.name, results) for folder in chapters_of(notebooks)]


def load_chapter(folder: Path, runs: Path, results: Path) -> Chapter:
    """Return one chapter.

    Args:
        folder: its notebooks and YAML files.
        runs: its runs, `<notebook>.{ipynb,json,status.json}`.
        results: all committed records, `<preset>/<paper>/<notebook>.json`.
    """
    faults: list[str] = []
    try:
        claims = load_claims(folder / "claims.yaml")
    except (ValueError, OSError) as error:
        claims = {}
        faults.append(f"{folder.name}/{error}")
    pages = [_load_page(path, runs / path.stem, results, faults) for path in notebooks_of(folder)]
    names = {page.name for page in pages}
    for name, claim in claims.items():
        if (claim.notebook or folder.name) not in names:
            faults.append(f"{folder.name}/claims.yaml: claim {name}: no notebook '{claim.notebook or folder.name}'")
    return Chapter(folder.name, pages, claims, faults, _load_guide(folder / "guide.yaml", faults))


def _load_guide(path: Path, faults: list[str]) -> Guide:
    try:
        return Guide.model_validate(read_yaml(path) if path.exists() else {})
    except (ValueError, OSError) as error:
        said = f"{path.name}: {first_fault(error)}" if isinstance(error, ValidationError) else error
        faults.append(f"{path.parent.name}/{said}")
        return Guide()


def _load_page(path: Path, run: Path, results: Path, faults: list[str]) -> Page:
    paper, found = path.parent.name, judge(path, run)
    if found.status not in ("ok", "not run", "refused"):  # of the last the wrong file itself is named
        faults.append(f"{paper}/{path.stem}: {found.status}: {found.message}")
    try:
        expected = load_expected(path.parent, path.stem)
    except (ValueError, OSError) as error:
        expected = None
        faults.append(f"{paper}/{error}")
    committed, repeats, damaged = {}, {}, {}
    for preset in PRESETS:
        folder = results / preset / paper
        try:
            record = _committed(folder / f"{path.stem}.json", path, preset)
        except RecordError as error:
            damaged[preset] = str(error)
            continue
        if record:
            committed[preset] = record
            try:
                repeats[preset] = _repeats(record, folder, path)
            except RecordError as error:  # the record itself is good, and stays
                faults.append(f"results/{preset}/{paper}/{error}")
    faults += [f"results/{preset}/{paper}/{message}" for preset, message in damaged.items()]
    contributed, wrong = contributions(path, results)
    faults += wrong
    return Page(paper, path.stem, found, committed, repeats, damaged, expected, contributed)


def _committed(place: Path, notebook: Path, preset: str) -> Record | None:
    """Read a committed record, or None where there is none; RecordError: it is damaged, or of another run."""
    record = Record.read(place) if place.exists() else None
    about = (notebook.parent.name, notebook.stem, preset)
    if record and ((record.paper, record.notebook, record.preset) != about or record.changed):
        raise RecordError(f"{place.name}: the record is of another run")
    return record


def _repeats(record: Record, folder: Path, notebook: Path) -> list[Record]:
    """Read the records of the same run with other seeds, `<notebook>.seed-<seed>.json`; errors: `_committed`."""
    places = sorted(folder.glob(f"{glob.escape(notebook.stem)}.seed-*.json"))
    found = [one for place in places if (one := _committed(place, notebook, record.preset))]
    settings = [one.parameters | {"seed": None} for one in (record, *found)]
    seeds = {one.seed for one in (record, *found)}
    if any(one != settings[0] for one in settings) or len(seeds) <= len(found):
        names = ", ".join(place.name for place in places)
        raise RecordError(f"{names}: not the run of {notebook.stem}.json with other seeds")
    return found
