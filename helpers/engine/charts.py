"""Charts with a slider, beside the figures whose data they show; drawn in the reader's browser by Vega-Lite.

A chapter declares them in `guide.yaml`. The scripts are served with the book and come when a chart comes near;
without scripts there is the figure. Nothing is computed in the browser but which rows are shown.
"""

import base64
import io
import json
import re
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from helpers.engine.judge import Notebook
from helpers.html import text

if TYPE_CHECKING:
    import pandas as pd

FIGURE = re.compile(r'<figure class="repro-figure" id="figure-([^"]+)">.*?</figure>', re.DOTALL)
DATA = re.compile(r'href="data:text/csv;base64,([^"]+)"')
ROW, AROUND = 24, 56  # pixels: height of a row of the chart, and of its axis
SCRIPT = "vega.js"


class Chart(BaseModel):
    """A chart as declared: one row for each `row`, as long as its `value`; a slider chooses what is shown.

    Attributes:
        figure: name of the figure whose data is shown.
        notebook: stem of its notebook; None is the chapter's main one.
        title: what can be tried, one sentence.
        slider, label: column of the values that the slider runs through, in the order of the data, and its words.
        row: column of the names.
        value, axis: column of the numbers, and what they are.
        ends: columns of the interval's ends.
        where: the value, or the values, that a column must have.
        spread: columns that hold the numbers; their names become the `row`, or the `slider` where there is such a row.
            [] stands for all columns that are not named otherwise.
    """

    model_config = ConfigDict(extra="forbid")

    figure: str
    notebook: str | None = None
    title: str
    slider: str
    label: str
    row: str
    value: str
    axis: str
    ends: tuple[str, str] | None = None
    where: dict[str, bool | str | float | list[str]] = {}
    spread: list[str] | None = None


def with_charts(notebook: Notebook, charts: list[Chart]) -> tuple[Notebook, list[str]]:
    """Return a notebook with charts below their figures, and one line for every chart that cannot be drawn.

    Args:
        notebook: executed; it is not changed.
        charts: of this notebook.
    """
    wanted, faults = {chart.figure: chart for chart in charts}, []

    def with_chart(found: re.Match[str]) -> str:
        chart = wanted.pop(found[1], None)
        if chart is None:
            return found[0]
        try:
            return found[0] + as_html(chart, table_of(found[0], chart))
        except (ValueError, KeyError) as error:
            faults.append(f"the chart of '{chart.figure}': {error}")
            return found[0]

    cells = []
    for cell in notebook["cells"]:
        outputs = [_changed(output, with_chart) for output in cell.get("outputs", [])]
        cells.append(cell | {"outputs": outputs} if outputs else cell)
    return notebook | {"cells": cells}, faults + [f"the chart of '{name}': there is no such figure" for name in wanted]


def _changed(output: dict[str, Any], change: Any) -> dict[str, Any]:
    html = "".join(output.get("data", {}).get("text/html", ""))
    return output | {"data": output["data"] | {"text/html": FIGURE.sub(change, html)}} if html else output


def table_of(figure: str, chart: Chart) -> "pd.DataFrame":
    """Return what a chart shows: columns `at` (the slider's value), `slot` (its number), `row`, `value`, `low`, `high`.

    Raises:
        ValueError: the figure has no data, or no row is left.
        KeyError: a column is not there.
    """
    import pandas as pd

    found = DATA.search(figure)
    if found is None:
        raise ValueError("the figure has no data")
    table: Any = pd.read_csv(io.BytesIO(base64.b64decode(unescape(found[1]))))
    for column, wanted in chart.where.items():
        table = table[table[column].isin(wanted if isinstance(wanted, list) else [wanted])]
    if chart.spread is not None:
        made, kept = (chart.slider, chart.row) if chart.row in table else (chart.row, chart.slider)
        columns = chart.spread or [one for one in table if one not in (kept, *chart.where)]
        table = table.melt([kept], columns, made, chart.value)
    low, high = chart.ends or (chart.value, chart.value)
    names = {"at": chart.slider, "row": chart.row, "value": chart.value, "low": low, "high": high}
    table = pd.DataFrame({name: table[column] for name, column in names.items()}).dropna()
    if table.empty:
        raise ValueError("no row of the data is left")
    return table.assign(slot=pd.factorize(table["at"])[0], row=table["row"].astype(str))


def as_html(chart: Chart, table: "pd.DataFrame") -> str:
    """Return a slider with its chart, which `explore.js` draws; its height is known, so that nothing moves then."""
    values = [f"{value:g}" if isinstance(value, float) else str(value) for value in table["at"].unique()]
    start, height = len(values) // 2, ROW * table["row"].nunique() + AROUND
    spec = json.dumps(specification(chart, table, start), ensure_ascii=False).replace("<", r"\u003c")
    slider = (
        f'<input type="range" min="0" max="{len(values) - 1}" step="1" value="{start}" '
        f'aria-valuetext="{text(values[start])}">'
    )
    return (
        f'<div class="explore" data-values="{text(json.dumps(values))}"><p><b>Try it.</b> {text(chart.title)}</p>'
        f"<p><label>{text(chart.label)} {slider}</label> <output>{text(values[start])}</output></p>"
        f'<div class="explore-plot" role="img" aria-label="{text(chart.axis)}" style="height:{height}px"></div>'
        f'<script type="application/json">{spec}</script></div>'
    )


def specification(chart: Chart, table: "pd.DataFrame", start: int) -> dict[str, Any]:
    """Return the chart for Vega-Lite: bars from zero, and intervals where there are some."""
    import altair as alt  # of the extra "book"

    from helpers.figures import COLORS

    ends = (min(0.0, *table["low"]), max(0.0, *table["high"]))
    columns = ["slot", "row", "value", "low", "high"]
    values = [dict(zip(columns, one, strict=True)) for one in table[columns].to_numpy().tolist()]
    base = alt.Chart(alt.InlineData(values=values)).transform_filter("datum.slot == at")
    rows = alt.Y("row:N", sort=None, title=None, axis=alt.Axis(labelLimit=150))
    scale = alt.Scale(domain=ends, nice=True)
    bars = base.mark_bar(color=COLORS["blue"], height=alt.RelativeBandSize(0.55)).encode(
        y=rows, x=alt.X("value:Q", title=chart.axis, scale=scale), tooltip=["row:N", "value:Q"]
    )
    rules = base.mark_rule(strokeWidth=2).encode(y=rows, x=alt.X("low:Q", scale=scale), x2="high:Q")
    drawn = alt.layer(bars, rules) if chart.ends else alt.layer(bars)
    size = {"width": "container", "height": ROW * table["row"].nunique()}
    return drawn.add_params(alt.param(name="at", value=start)).properties(**size).to_dict()


def write_script(folder: Path) -> None:
    """Write Vega, Vega-Lite and the function that draws with them, for the book to serve; no page names them."""
    import altair as alt
    import vl_convert

    version = ".".join(alt.VEGALITE_VERSION.split(".")[:2])
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version)
    # its names stay its own: the page has scripts with the same ones
    (folder / SCRIPT).write_text(f"(() => {{\n{bundle}\n}})();\n", encoding="utf-8")
