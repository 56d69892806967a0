"""Read chapters, their runs and their records into what stands behind the pages."""

import glob
from pathlib import Path

from pydantic import ValidationError

from helpers.claims import load_claims
from helpers.code import code_hash_of
from helpers.engine.contributed import contributions
from helpers.engine.judge import chapters_of, judge
from helpers.engine.pages import Chapter, Guide, Page
from helpers.paths import notebooks_of, read_yaml
from helpers.record import PRESETS, Record, RecordError, first_fault
from helpers.verify import load_expected


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
    code = code_hash_of(path)
    return Page(paper, path.stem, code, found, committed, repeats, damaged, expected, contributed)


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
