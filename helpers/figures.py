"""One figure style for the book: every figure is drawn for light and for dark pages, with alt text and its data."""

import base64
import io
from collections.abc import Callable, Iterable, Mapping
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

Draw = Callable[[Figure], None]


# What is drawn with two ends: an `Estimate`, a metric or claim of a record, a row of a table; a number has none.
Interval = Any

# Eight hues with a contrast of at least 3:1 against both page colours (tested), apart for colour-blind readers.
COLORS = {
    "blue": "#3a86d0",
    "orange": "#d9702b",
    "green": "#2a9474",
    "pink": "#c4609f",
    "purple": "#8b74d6",
    "ochre": "#a8842c",
    "red": "#d14a58",
    "grey": "#7d8590",
}
PAGES = {"light": ("#ffffff", "#1f2328"), "dark": ("#14181e", "#e6e6e6")}  # page colour, ink
SPREAD = 0.6  # height over which the series of a row of `forest` are spread; rows are 1 apart


def palette(names: list[str]) -> dict[str, str]:
    """Return one colour per name, in order; use it once per chapter so that a method keeps its colour.

    Raises:
        ValueError: more names than colours.
    """
    if len(names) > len(COLORS):
        raise ValueError(f"{len(names)} names but only {len(COLORS)} colours: group some of them")
    return dict(zip(names, COLORS.values(), strict=False))


def style(page: str) -> dict:
    """Return matplotlib settings for a `light` or `dark` page."""
    ink = PAGES[page][1]
    grid = "#d0d7de" if page == "light" else "#3a414b"
    return {
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
        "text.color": ink,
        "axes.labelcolor": ink,
        "axes.edgecolor": ink,
        "axes.titlecolor": ink,
        "xtick.color": ink,
        "ytick.color": ink,
        "legend.labelcolor": ink,
        "legend.frameon": False,
        "grid.color": grid,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": cycler(color=list(COLORS.values())),
        "font.size": 10,
        "axes.titlesize": 11,
        "figure.dpi": 110,
        "savefig.dpi": 160,
        "image.cmap": "viridis",
    }


def render(draw: Draw, size: tuple[float, float] = (7.0, 4.0)) -> dict[str, bytes]:
    """Draw a figure once per page colour.

    Args:
        draw: fills an empty matplotlib Figure; called once for each page colour, so it must not change its inputs.
        size: width and height in inches.

    Returns:
        WebP bytes by page ("light", "dark"): without loss, and half as long as PNG.
    """
    images = {}
    for page in PAGES:
        with mpl.rc_context(style(page)):
            figure = Figure(figsize=size, layout="constrained")
            draw(figure)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="webp", pil_kwargs={"lossless": True})
        images[page] = buffer.getvalue()
    return images


def html(images: dict[str, bytes], name: str, alt: str, data: pd.DataFrame | None = None) -> str:
    """Return a figure as HTML: both images, alt text, and a link to the figure's data as CSV.

    Outside the book (Colab, JupyterLab) there is no theme switch; there the light image is shown on white.

    Raises:
        ValueError: no alt text.
    """
    if len(alt.split()) < 3:
        raise ValueError(f"figure '{name}': alt text must say what the figure shows, got {alt!r}")
    sources = {page: "data:image/webp;base64," + base64.b64encode(image).decode() for page, image in images.items()}
    pictures = "".join(
        f'<img class="only-{page}" alt="{escape(alt)}" src="{src}" style="max-width:100%">'
        for page, src in sources.items()
    )
    link = ""
    if data is not None:
        csv = base64.b64encode(data.to_csv(index=False).encode()).decode()
        link = f'<a class="figure-data" download="{escape(name)}.csv" href="data:text/csv;base64,{csv}">data (CSV)</a>'
    fallback = (
        "<style>html:not([data-theme]) .repro-figure img.only-dark{display:none}"
        "html:not([data-theme]) .repro-figure img.only-light{background:#fff}</style>"
    )
    return f'{fallback}<figure class="repro-figure" id="figure-{escape(name)}">{pictures}{link}</figure>'


def whiskers(
    axis: Axes,
    x: ArrayLike,
    estimates: Iterable[Interval],
    *,
    color: str = COLORS["blue"],
    label: str | None = None,
    marker: str = "o",
    line: str = "",
    horizontal: bool = False,
    **style: Any,
) -> None:
    """Draw values with their intervals.

    Args:
        axis: where.
        x: place of every estimate, (n,); its height where `horizontal`.
        estimates: n of them; an undefined one leaves its place empty. A value may lie outside its interval.
        color: of points, line and intervals.
        label: name in the legend.
        marker: matplotlib's name; "" for intervals alone, as on bars.
        line: style of the line that joins the values, such as "-".
        horizontal: intervals lie along the horizontal axis.
        style: more for the points, such as `markersize` or `alpha`.
    """
    value, low, high = np.array([_numbers(e) for e in estimates], dtype=float).reshape(-1, 3).T
    x, middle, half = np.atleast_1d(x), (low + high) / 2, (high - low) / 2
    ends: dict[str, Any] = dict(fmt="none", capsize=3, ecolor=color, alpha=style.get("alpha"))
    if horizontal:
        axis.errorbar(middle, x, xerr=half, **ends)
    else:
        axis.errorbar(x, middle, yerr=half, **ends)
    places = (value, x) if horizontal else (x, value)
    axis.plot(*places, marker=marker, linestyle=line, color=color, label=label, **style)


def forest(
    axis: Axes,
    rows: Mapping[str, Interval | Mapping[str, Interval]],
    *,
    threshold: float | None = None,
    colors: str | Mapping[str, str] | None = None,
    **style: Any,
) -> None:
    """Draw one row for each name, from top to bottom: its value and interval, or those of several series.

    Args:
        axis: where; a legend, where it is wanted, is up to the caller.
        rows: by name an estimate, or the estimates of several series by the series' name; a series may lack a row.
        threshold: value of a dashed vertical line, such as no difference, chance, or a claim's threshold.
        colors: one colour, or by series (by row, where a row is one estimate); default: `palette` of the series.
        style: more for `whiskers`.
    """
    if threshold is not None:
        axis.axvline(threshold, color=COLORS["grey"], linestyle="--", zorder=1)
    nested = any(isinstance(row, Mapping) for row in rows.values())
    table = {name: row if nested else {name: row} for name, row in rows.items()}
    series = list(dict.fromkeys(one for row in table.values() for one in row))
    if isinstance(colors, str) or (colors is None and not nested):
        colors = dict.fromkeys(series, colors or COLORS["blue"])
    colors = colors or palette(series)
    shifts = np.linspace(-0.5, 0.5, 2 * len(series) + 1)[1::2] * SPREAD if nested else np.zeros(len(series))
    for one, shift in zip(series, shifts, strict=True):
        places, found = zip(*((y + shift, row[one]) for y, row in enumerate(table.values()) if one in row), strict=True)
        own = {"color": colors[one], "label": one if nested else None}
        whiskers(axis, places, found, horizontal=True, **(own | style))
    axis.set_yticks(range(len(rows)), list(rows))
    axis.set_ylim(max(len(rows), 1) - 0.5, -0.5)


def _numbers(estimate: Interval) -> tuple:
    """Value and both ends; NaN for what is missing."""
    if not hasattr(estimate, "value"):
        return estimate, np.nan, np.nan
    ends = (estimate.low, estimate.high) if hasattr(estimate, "low") else (estimate.interval or (None, None))
    return tuple(np.nan if number is None else number for number in (estimate.value, *ends))
