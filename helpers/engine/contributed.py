"""Records that others made, in `results/contributed/<name>/<preset>/<paper>/`, checked before they count."""

from pathlib import Path
from typing import NamedTuple

from helpers.code import code_hash_of
from helpers.data import registry
from helpers.html import Raw, table
from helpers.parameters import schema
from helpers.record import Record
from helpers.request import changed_from_preset

HEAD = ("Where", "Notebook and preset", "Machine", "Versions", "Verdicts", "Time")


class Contribution(NamedTuple):
    """A checked record and the name under which it was contributed."""

    who: str
    record: Record


def is_contributed(path: Path) -> bool:
    """Whether a record lies where contributed ones do."""
    return len(path.absolute().parents) > 3 and path.absolute().parents[3].name == "contributed"


def check_contributed(path: Path, notebook: Path) -> Record:
    """Return a contributed record that is of this very notebook, its data and a preset.

    Raises:
        ValueError: it is not, or it is damaged; one line.
    """
    record = Record.read(path)
    about, place = (record.preset, record.paper, record.notebook), (*path.absolute().parts[-3:-1], notebook.stem)
    if about != place or record.paper != notebook.parent.name:
        raise ValueError(f"{path.name}: the record is of {'/'.join(about)}, its place says {'/'.join(place)}")
    if missing := schema(notebook).model_fields.keys() - record.parameters:
        raise ValueError(f"{path.name}: it lacks the parameters {', '.join(sorted(missing))}")
    if changed := record.changed | changed_from_preset(notebook, record.parameters):
        raise ValueError(f"{path.name}: {', '.join(changed)}: not the value of the preset {record.preset}")
    if record.card.get("code") != code_hash_of(notebook):
        said = "is of other code cells than the notebook here" if record.card.get("code") else "names no code cells"
        raise ValueError(f"{path.name}: the record {said}")
    if used := record.card.get("data"):
        known = {f"{record.paper}/{name}": one.digest for name, one in registry(record.paper, notebook.parent).items()}
        if other := [name for name, digest in used.items() if known.get(name) != digest]:
            raise ValueError(f"{path.name}: {', '.join(other)}: not the registered data")
    return record


def contributions(notebook: Path, results: Path) -> tuple[list[Contribution], list[str]]:
    """Return the good contributed records of a notebook, and one line for every other one."""
    found, faults = [], []
    for path in sorted(results.glob(f"contributed/*/*/{notebook.parent.name}/*.json")):
        if path.name.split(".")[0] == notebook.stem:
            try:
                found.append(Contribution(path.parents[2].name, check_contributed(path, notebook)))
            except ValueError as error:
                faults.append(f"{path.parent.relative_to(results.parent)}/{' '.join(str(error).split())}")
    return found, faults


def elsewhere(found: list[tuple[Contribution, Record | None]]) -> Raw:
    """Return the table "reproduced elsewhere"; beside every record stands ours of the same preset, if there is one."""
    return table(HEAD, [_row(one, ours) for one, ours in found], "elsewhere")


def _row(one: Contribution, ours: Record | None) -> list[object]:
    card, record = one.record.card, one.record
    packages = card.get("packages")
    versions = {"Python": card.get("python", "?")} | (packages if isinstance(packages, dict) else {})
    both = record.claims.keys() & ours.claims.keys() if ours else set()
    same = sum(record.claims[name].verdict == ours.claims[name].verdict for name in both) if ours else 0
    return [
        one.who,
        f"{record.notebook}, {record.preset}, seed {record.seed}",
        card.get("device", "?"),
        ", ".join(f"{name} {version}" for name, version in versions.items()),
        f"{same} of {len(both)} as ours" if both else "nothing of ours to compare with",
        f"{card.get('wall_s', '?')} s",
    ]
