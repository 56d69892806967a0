"""One figure style for the book: every figure is drawn for light and for dark pages, with alt text and its data."""

import base64
import io
from collections.abc import Callable
from html import escape

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

Draw = Callable[[Figure], None]

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
        "axes.prop_cycle": mpl.cycler(color=list(COLORS.values())),
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
        PNG bytes by page ("light", "dark").
    """
    images = {}
    for page in PAGES:
        with mpl.rc_context(style(page)):
            figure = Figure(figsize=size, layout="constrained")
            draw(figure)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", metadata={"Software": None})
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
    sources = {page: "data:image/png;base64," + base64.b64encode(image).decode() for page, image in images.items()}
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
