"""Records of any number of folders as one table.

papers table runs/reduced results/public --metric "*gain*" --csv > gains.csv
"""

import csv
import io
import sys
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import typer

from helpers.engine.compare import key_of, read_folder
from helpers.record import Record, RecordError

HEAD = (
    "paper",
    "notebook",
    "preset",
    "changed",
    "seed",
    "kind",
    "name",
    "value",
    "low",
    "high",
    "n",
    "verdict",
    "device",
)


def rows_of(record: Record, patterns: Iterable[str]) -> list[tuple]:
    """Return a row for every metric and claim of a record whose name fits one of the patterns (`*` is anything)."""
    about, device = key_of(record), record.card.get("device", "")
    rows: list[tuple] = [
        (*about, "metric", name, one.value, *(one.interval or (None, None)), one.n, "", device)
        for name, one in record.metrics.items()
    ]
    rows += [
        (*about, "claim", name, one.value, one.low, one.high, one.n, one.verdict, device)
        for name, one in record.claims.items()
    ]
    return [row for row in rows if any(fnmatchcase(row[6], pattern) for pattern in patterns)]


def as_markdown(rows: list[tuple]) -> str:
    """Return a Markdown table with numbers of four digits."""

    def cell(content: object) -> str:
        said = f"{content:.4g}" if isinstance(content, float) else "" if content is None else str(content)
        return said.replace("|", "\\|")

    lines = [HEAD, ["---"] * len(HEAD), *([cell(one) for one in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def as_csv(rows: list[tuple]) -> str:
    """Return the table as CSV with all digits."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([HEAD, *rows])
    return buffer.getvalue()


def table_command(
    places: Annotated[list[Path], typer.Argument(help="records, or folders of records at any depth")],
    metric: Annotated[list[str] | None, typer.Option(help="only names that fit, such as '*gain*'; repeatable")] = None,
    csv: Annotated[bool, typer.Option("--csv", help="write CSV instead of Markdown")] = False,
) -> None:
    """Write the records of all folders as one table. Exit code: 1 a record is damaged, 2 nothing to show."""
    records, notes = [], []
    for place in places:
        try:
            found, said = read_folder(place) if place.is_dir() else ([Record.read(place)], [])
        except RecordError as error:
            found, said = [], [str(error)]
        records, notes = records + found, notes + said
    rows = [row for record in records for row in rows_of(record, metric or ["*"])]
    for note in notes:
        typer.echo(note, err=True)
    if not rows:
        typer.echo(f"{len(records)} record(s), and nothing of them to show", err=True)
        raise typer.Exit(2)
    sys.stdout.write(as_csv(rows) if csv else as_markdown(rows))
    raise typer.Exit(1 if notes else 0)
