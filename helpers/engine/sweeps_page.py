"""The page of the book on sweeps: each committed table of `results/sweeps` as text, table and picture."""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.code import code_hash_of
from helpers.engine.cells import as_markdown
from helpers.engine.shown import with_captions
from helpers.engine.sweep import Sweep, load_sweep
from helpers.html import table
from helpers.parameters import BadRequestError

if TYPE_CHECKING:
    import pandas as pd

PLACE = "<!-- sweeps -->"


def fill_sweeps(template: str, root: Path, extra: Path) -> tuple[str, list[str]]:
    """Return the page with every sweep at the placeholder, and one line for everything that is wrong.

    Args:
        template: the committed text.
        root: the checkout.
        extra: the book's folder of files, which gets the tables and the pictures.
    """
    parts, faults = [], []
    for path in sorted((root / "sweeps").glob("*.yaml")):
        try:
            parts.append(_section(path.stem, load_sweep(path.stem, root), root, extra))
        except (BadRequestError, OSError, ValueError, KeyError) as error:
            faults.append(f"sweeps/{path.stem}: {' '.join(str(error).split())}")
    # one notebook, so that the figures of the page are numbered through
    notebook = {"cells": [{"outputs": [{"data": {"text/html": part}}]} for part in parts]}
    notebook, _ = with_captions(notebook, extra / "figures" / "sweeps", "../figures/sweeps")
    parts = [cell["outputs"][0]["data"]["text/html"] for cell in notebook["cells"]]
    return template.replace(PLACE, "\n\n".join(parts) or "There are no sweeps yet."), faults


def _section(name: str, sweep: Sweep, root: Path, extra: Path) -> str:
    source, results = sweep.source(root), root / "results" / "sweeps" / f"{name}.csv"
    about = f"{len(sweep.settings)} settings of [{source.stem}](../notebooks/{sweep.paper}/{source.stem}.ipynb)"
    about += f", preset {sweep.preset}, each with {len(sweep.seeds)} seed(s)."
    head = [f"## {as_markdown(sweep.title)}", f"{sweep.question} {about}"]
    if not results.is_file():
        return "\n\n".join([*head, f"Not run yet. The command: `papers sweep {name} --commit`"])
    import pandas as pd  # takes a second, and few commands need it

    runs = pd.read_csv(results, keep_default_na=True)
    keys = [*sweep.parameters, *(["reading"] if sweep.readings else [])]
    rows = len(sweep.settings) * len(sweep.seeds) * max(len(sweep.readings), 1)
    if len(runs) != rows or not {*keys, sweep.validation.label, sweep.test.label} <= set(runs.columns):
        raise ValueError(f"{results.name} is of another grid; run papers sweep {name} --commit")
    if list(runs["code"].unique()) != [code_hash_of(source)]:
        head.append("The notebook was changed after these runs.")
    shown = [key for key in keys if len(runs[key].unique()) > 1] or keys
    found = _by_setting(runs, keys, shown, sweep)
    target = extra / "records" / "sweeps" / results.name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(results.read_bytes())
    head.append(_best(found, sweep))
    cost = f"The runs took {runs.drop_duplicates([*sweep.parameters, 'seed'])['wall_s'].sum() / 60:.0f} minutes in all."
    link = f"<a href='../records/sweeps/{target.name}' download>{target.name}</a>"
    columns = ("Setting", sweep.validation.label, sweep.test.label)
    cells = [(said, *(str(one) for one in estimates)) for said, estimates in found.items()]
    picture = _picture(name, sweep, found)
    return "\n\n".join([*head, picture, table(columns, cells, "sweep"), f"{cost} Every run as a table: {link}."])


def _by_setting(runs: "pd.DataFrame", keys: list[str], shown: list[str], sweep: Sweep) -> dict[str, tuple[Any, Any]]:
    """Validation and test of every setting, in the order of the file: mean and interval over seeds."""
    from helpers.stats import seed_interval

    found = {}
    for _, group in runs.groupby(keys, sort=False):
        said = ", ".join(f"{key} = {group[key].iloc[0]}" if key != "reading" else group[key].iloc[0] for key in shown)
        found[said] = tuple(seed_interval(group[one.label].to_numpy()) for one in (sweep.validation, sweep.test))
    return found


def _best(found: dict[str, tuple[Any, Any]], sweep: Sweep) -> str:
    """Which setting the validation chooses, what the test says of it, and how sure the choice is."""
    sign = 1 if sweep.prefer == "high" else -1
    best = max(found, key=lambda said: sign * found[said][0].value)
    chosen, told = found[best]
    close = sum(one.low <= chosen.high and chosen.low <= one.high for one, _ in found.values()) - 1
    top = max(found, key=lambda said: found[said][1].value)
    return as_markdown(
        f"Best {sweep.validation.label}: {best}, {chosen}. There the {sweep.test.label} is {told}. "
        f"The intervals of {close} of the {len(found) - 1} other settings overlap with that of the choice. "
        f"The highest {sweep.test.label} is {found[top][1]}, with {top}; nobody may choose by that."
    )


def _picture(name: str, sweep: Sweep, found: dict[str, tuple[Any, Any]]) -> str:
    """Validation and test side by side, one row a setting, as HTML."""
    from helpers import figures

    measures = (sweep.validation, sweep.test)

    def draw(figure: Any) -> None:
        for place, (axis, one) in enumerate(zip(figure.subplots(1, 2, sharey=True), measures, strict=True)):
            figures.forest(axis, {said: estimates[place] for said, estimates in found.items()})
            axis.set_title(textwrap.fill(one.label, 32), fontsize=8)  # two titles stand side by side

    images = figures.render(draw, (8.0, 1.0 + 0.28 * len(found)))
    alt = (
        f"{sweep.title}: {measures[0].label} and {measures[1].label}, mean and interval over seeds, one row a setting."
    )
    return figures.html(images, f"sweep-{name}", alt)
