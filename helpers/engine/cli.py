"""`papers`: the one command that executes, checks, calibrates, compares and renders."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from helpers.claims import load_claims
from helpers.engine.book import book_command
from helpers.engine.calibrate import calibrate_command
from helpers.engine.compare import compare_command
from helpers.engine.contributed import check_contributed, is_contributed
from helpers.engine.execute import prepare, run_command
from helpers.engine.judge import notebooks_by_name
from helpers.engine.scaffold import new_command
from helpers.engine.status import name_of
from helpers.engine.sweep import sweep_command
from helpers.engine.table import table_command
from helpers.paths import checkout
from helpers.record import Record, committed_records
from helpers.request import load_presets
from helpers.verify import compare, load_expected

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
app.command("run")(run_command)


@app.command()
def check(records: Annotated[list[Path], typer.Argument(help="record files")]) -> None:
    """Compare records with their chapters' expected values; exit 1 when one left them.

    Of a contributed record code cells, data and parameters are compared with the chapter's, too.
    """
    problems = [path for path in records if not _check(path, (checkout() or Path.cwd()) / "notebooks")]
    raise typer.Exit(1 if problems else 0)


def _check(path: Path, chapters: Path) -> bool:
    """Say how a record fares against its chapter; True when nothing is wrong."""
    try:
        record = Record.read(path)
        if not (chapters / record.paper / f"{record.notebook}.ipynb").is_file():
            raise ValueError(f"{path.name}: no chapter or notebook {record.paper}/{record.notebook} in {chapters}")
        if is_contributed(path):
            check_contributed(path, chapters / record.paper / f"{record.notebook}.ipynb")
        expected = load_expected(chapters / record.paper, record.notebook)
    except ValueError as error:
        typer.echo(str(error), err=True)
        return False
    name = name_of(record.paper, record.notebook)
    reason = expected.not_about(record.preset, record.parameters) if expected else "never calibrated"
    if expected is None or reason:
        typer.echo(f"{name}: not compared ({reason})")
        return True
    if problems := compare(record, expected):
        typer.echo(f"{name}: " + "; ".join(problems), err=True)
        return False
    typer.echo(f"{name}: {len(expected.metrics)} metrics within tolerance")
    return True


@app.command("list")
def list_command() -> None:
    """List chapters and notebooks: claims, presets with their wall budgets, committed records."""
    for name, path in notebooks_by_name((checkout() or Path.cwd()) / "notebooks").items():
        try:
            budgets = load_presets(path).budgets
            claims = load_claims(path.parent / "claims.yaml", path.stem)
        except ValueError as error:
            typer.echo(f"{name}: {error}", err=True)
            continue
        presets = ", ".join(f"{preset} ({budget.wall_s / 60:.0f} min)" for preset, budget in budgets.items())
        records = ", ".join(committed_records(path.parent.name, path.stem)) or "none"
        typer.echo(f"{name}: {len(claims)} claims; presets within {presets}; committed records: {records}")


app.command("calibrate")(calibrate_command)
app.command("compare")(compare_command)
app.command("table")(table_command)
app.command("sweep", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(sweep_command)
app.command("book")(book_command)
app.command("new")(new_command)


def main() -> None:
    """Run `papers` with the words of the command line."""
    prepare()
    try:
        app(prog_name="papers")
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        sys.exit(f"papers: {error.strerror or error}{where}")


if __name__ == "__main__":
    main()
