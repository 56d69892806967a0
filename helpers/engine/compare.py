"""Compare records of the same experiment: another machine, other versions, another seed, a changed parameter.

    papers compare results/public runs/public --csv differences.csv

Two numbers are *within noise* of each other when they differ by no more than their pooled half-widths, the root of the
sum of squares. Runs that share data and seed agree better than that, so *differs* is never said of noise lightly.
"""

import json
import math
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import typer
from rich.console import Console
from rich.table import Table

from helpers.claims import format_number, load_claims
from helpers.paths import chapter_dir, write_atomically
from helpers.record import Record, RecordError

Status = Literal["same", "within noise", "differs", "no interval"]
FLOAT_NOISE = 1e-6  # relative
WIDE = 160  # columns when nobody's terminal says how wide it is
# of a run card: always differ, or stand elsewhere
PASSED_OVER = ("finished", "wall_s", "seed", "peak_memory_mb", "peak_gpu_memory_mb")


class Side(NamedTuple):
    """What one record says of a metric or a claim; empty where it says nothing."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    verdict: str = ""

    def __str__(self) -> str:
        """Write value and interval, or a dash."""
        if self.value is None:
            return "-"
        ends = "" if self.low is None or self.high is None else f" [{self.low:.3g}, {self.high:.3g}]"
        return format_number(self.value) + ends


class Row(NamedTuple):
    """One metric or claim in both records."""

    kind: Literal["headline", "claim", "metric"]
    name: str
    a: Side
    b: Side
    status: Status

    @property
    def changed(self) -> bool:
        """Whether the verdicts differ."""
        return self.a.verdict != self.b.verdict


@dataclass(frozen=True)
class Comparison:
    """Two records side by side: rows (claims first), and in words what else differs between the runs."""

    a: Record
    b: Record
    rows: list[Row]
    circumstances: list[str]


def name(record: Record) -> str:
    """Return paper, notebook, preset, changes and seed of a record in one phrase."""
    changes = "".join(f" {key}={value}" for key, value in sorted(record.changed.items()))
    return f"{record.paper}/{record.notebook} {record.preset}{changes} seed {record.seed}"


def judge(a: Side, b: Side, floor: float = 0.0) -> Status:
    """Say whether two numbers agree; `floor` is a difference that means nothing (steps of 1/n, float noise)."""
    if a.value is None or b.value is None:
        return "same" if a == b else "differs"
    apart = abs(a.value - b.value)
    if apart <= FLOAT_NOISE * max(abs(a.value), abs(b.value)):
        return "same"
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return "within noise" if apart <= floor else "no interval"
    pooled = math.hypot((a.high - a.low) / 2, (b.high - b.low) / 2)
    return "within noise" if apart <= max(pooled, floor) else "differs"


def compare_records(a: Record, b: Record) -> Comparison:
    """Compare two records, whatever they are of."""
    rows, headlines = [], _headlines(a.paper)
    for key in a.claims | b.claims:
        found = [record.claims.get(key) for record in (a, b)]
        one, two = (Side(c.value, c.low, c.high, c.verdict) if c else Side() for c in found)
        rows.append(Row("headline" if key in headlines else "claim", key, one, two, judge(one, two)))
    for key, metric in (a.metrics | b.metrics).items():
        measured = [record.metrics.get(key) for record in (a, b)]
        one, two = (Side(m.value, *(m.interval or (None, None))) if m else Side() for m in measured)
        rows.append(Row("metric", key, one, two, judge(one, two, metric.floor)))
    ours, theirs = ({f"parameter {k}": v for k, v in r.parameters.items()} | _flat(r.card) for r in (a, b))
    apart = [key for key in ours | theirs if ours.get(key) != theirs.get(key)]
    words = [f"{key}: {ours.get(key, '-')!s:.50} | {theirs.get(key, '-')!s:.50}" for key in apart]
    return Comparison(a, b, rows, words)


def _flat(card: dict[str, Any]) -> dict[str, Any]:
    """Return a run card without nesting and without what differs between any two runs."""
    nested = {k: v if isinstance(v, dict) else {"": v} for k, v in card.items() if k not in PASSED_OVER}
    return {f"{key} {inner}".strip(): value for key, inside in nested.items() for inner, value in inside.items()}


def _headlines(paper: str) -> set[str]:
    """Ids of the claims that the chapter's card shows; none when the chapter is not here."""
    with suppress(FileNotFoundError, ValueError):
        return {key for key, claim in load_claims(chapter_dir(paper) / "claims.yaml").items() if claim.headline}
    return set()


def compare(a: Path, b: Path) -> tuple[list[Comparison], list[str]]:
    """Compare two records, or those records of two folders that are of one paper, notebook, preset, seed and change.

    Returns:
        The comparisons, and one line for every record that is damaged or has no partner.

    Raises:
        ValueError: nothing can be compared; one line says why.
    """
    if missing := [path for path in (a, b) if not path.exists()]:
        raise ValueError(f"{missing[0]}: no such file or folder")
    if a.is_dir() != b.is_dir():
        raise ValueError("two records or two folders are needed, not one of each")
    if not a.is_dir():
        one, two = Record.read(a), Record.read(b)
        if (one.paper, one.notebook) != (two.paper, two.notebook):
            raise ValueError(f"records of different notebooks: {name(one)}, {name(two)}")
        return [compare_records(one, two)], []
    (ours, notes), (theirs, more) = read_folder(a), read_folder(b)
    pairs = [(x, y) for x in ours for y in theirs if key_of(x) == key_of(y)]
    notes += more
    for folder, records, others in ((a, ours, theirs), (b, theirs, ours)):
        notes += [f"only in {folder}: {name(r)}" for r in records if key_of(r) not in map(key_of, others)]
    if not pairs:
        raise ValueError("; ".join([f"no run has a record in both {a} and {b}", *notes]))
    return [compare_records(*pair) for pair in pairs], notes


def key_of(record: Record) -> tuple[str, ...]:
    """Return what two records of one experiment share: paper, notebook, preset, changes and seed."""
    changes = json.dumps(record.changed, sort_keys=True)
    return record.paper, record.notebook, record.preset, changes, str(record.seed)


def read_folder(folder: Path) -> tuple[list[Record], list[str]]:
    """Every record below a folder, and a line for every file that should be one."""
    records, notes = [], []
    for path in sorted(folder.rglob("*.json")):
        aside = any(part.endswith(".before") for part in path.relative_to(folder).parts)  # of an earlier run
        if not aside and not path.name.endswith(".status.json"):
            try:
                records.append(Record.read(path))
            except RecordError as error:
                notes.append(f"{path.parent.relative_to(folder)}/{error}".removeprefix("./"))
    return records, notes


def _csv(comparisons: list[Comparison]) -> str:
    names = ("paper", "notebook", "preset", "changed", "seed", "kind", "name")
    sides = [f"{field}_{side}" for side in "ab" for field in Side._fields]
    rows = [(*key_of(c.a), row.kind, row.name, *row.a, *row.b, row.status) for c in comparisons for row in c.rows]
    import pandas as pd  # takes a second, and only this needs it

    return pd.DataFrame(rows, columns=[*names, *sides, "status"]).to_csv(index=False)


def _show(console: Console, comparison: Comparison, everything: bool) -> None:
    claims = [row for row in comparison.rows if row.kind != "metric"]
    changed = ", ".join(row.name for row in claims if row.changed)
    runs = " | ".join(dict.fromkeys([name(comparison.a), name(comparison.b)]))
    title = f"{runs}: {sum(row.changed for row in claims)} of {len(claims)} verdicts differ"
    table = Table("", "", "a", "b", "verdict a", "verdict b", "", box=None)
    for row in comparison.rows:
        if everything or row.kind != "metric" or row.status not in ("same", "within noise"):
            cells = (row.kind, row.name, str(row.a), str(row.b), row.a.verdict, row.b.verdict, row.status)
            table.add_row(*cells, style="bold red" if row.changed else None)
    statuses = Counter(row.status for row in comparison.rows if row.kind == "metric")
    console.print(f"{title}: {changed}" if changed else title, table, sep="\n")
    counts = ", ".join(f"{n} {status}" for status, n in statuses.items())
    console.print(f"{statuses.total()} metrics: {counts}", *comparison.circumstances, "", sep="\n  ")


def compare_command(
    a: Annotated[Path, typer.Argument(help="a record, or a folder of records at any depth")],
    b: Annotated[Path, typer.Argument(help="the other record or folder")],
    csv: Annotated[Path | None, typer.Option(help="write every row to this file")] = None,
    everything: Annotated[bool, typer.Option("--all", help="show the metrics that agree, too")] = False,
) -> None:
    """Put records side by side. Exit code: 1 when the verdict of a headline claim differs, 2 for a bad request."""
    try:
        comparisons, notes = compare(a, b)
        if csv:
            write_atomically(csv, _csv(comparisons))
    except (ValueError, OSError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else WIDE)
    for comparison in comparisons:
        _show(console, comparison, everything)
    for note in notes:
        typer.echo(note, err=True)
    raise typer.Exit(any(row.kind == "headline" and row.changed for c in comparisons for row in c.rows))
