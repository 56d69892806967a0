"""Colours are legible on both pages, figures carry alt text and data."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from helpers.figures import COLORS, PAGES, forest, html, palette, render, whiskers
from helpers.record import Metric
from helpers.stats import Estimate


def luminance(colour: str) -> float:
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("name", COLORS)
def test_contrast_is_at_least_three_to_one(name, page):
    """WCAG 2.1, 1.4.11: graphical objects need 3:1."""
    low, high = sorted([luminance(COLORS[name]), luminance(PAGES[page][0])])
    assert (high + 0.05) / (low + 0.05) >= 3


def test_a_method_keeps_its_colour_and_colours_run_out_loudly():
    assert palette(["a", "b"])["a"] == palette(["a", "c", "d"])["a"]
    with pytest.raises(ValueError, match="9 names"):
        palette(list("abcdefghi"))


def test_the_page_has_both_images_alt_text_and_data():
    images = render(lambda figure: figure.subplots().plot([1, 2]))
    assert images["light"] != images["dark"] and all(i[8:12] == b"WEBP" for i in images.values())
    page = html(images, "f", 'A "line" & more', pd.DataFrame({"x": [1]}))
    assert page.count("<img") == 2 and page.count('alt="A &quot;line&quot; &amp; more"') == 2
    assert 'class="only-light"' in page and 'class="only-dark"' in page and 'download="f.csv"' in page


ONE, TWO = Estimate(1.0, 0.5, 2.0, 9), Estimate(-1.0, -1.5, -0.9, 9)
NONE = Estimate(float("nan"), float("nan"), float("nan"), 9)


def drawn(axis) -> list[tuple[list, list]]:
    """Points of every line with a marker, as (x, y)."""
    points = [line for line in axis.lines if line.get_marker() not in ("None", "|", "_")]
    return [(np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist()) for line in points]


def spans(axis) -> list[list]:
    """Intervals, as ((x, y), (x, y)); matplotlib empties the path of a missing one."""
    paths = [path for collection in axis.collections for path in collection.get_segments()]
    ends = [[tuple(round(float(number), 9) for number in end) for end in path] for path in paths]
    return [path for path in ends if path]


def test_whiskers_reach_from_end_to_end_in_both_directions():
    upright, flat = Figure().subplots(1, 2)
    whiskers(upright, [3, 4], [ONE, TWO], line="-", color=COLORS["red"], label="a")
    whiskers(flat, [3, 4], [ONE, TWO], horizontal=True)
    assert spans(upright) == [[(3.0, 0.5), (3.0, 2.0)], [(4.0, -1.5), (4.0, -0.9)]]
    assert spans(flat) == [[(0.5, 3.0), (2.0, 3.0)], [(-1.5, 4.0), (-0.9, 4.0)]]
    assert drawn(upright) == [([3, 4], [1.0, -1.0])] and drawn(flat) == [([1.0, -1.0], [3, 4])]
    assert upright.get_legend_handles_labels()[1] == ["a"] and to_hex(upright.lines[-1].get_color()) == COLORS["red"]


def test_whiskers_take_what_chapters_have():
    """A record's metric has `interval`; tables have columns; an undefined estimate leaves a gap; bias may be large."""

    axis = Figure().subplots()
    table = pd.DataFrame({"value": [1.0], "low": [0.0], "high": [2.0]}).itertuples()
    outside = Estimate(5.0, 0.0, 2.0, 9)
    rows = [Metric(value=1.0, interval=(0.5, 2.0)), Metric(value=1.0), Metric(value=None), *table, NONE, 0.25, outside]
    whiskers(axis, range(7), rows)
    (_, values), *_ = drawn(axis)
    assert [v if v == v else None for v in values] == [1.0, 1.0, None, 1.0, None, 0.25, 5.0]
    assert spans(axis) == [
        [(0.0, 0.5), (0.0, 2.0)],
        [(3.0, 0.0), (3.0, 2.0)],
        [(6.0, 0.0), (6.0, 2.0)],
    ]


def test_a_forest_reads_from_top_to_bottom_with_a_line_at_the_threshold():
    axis = Figure().subplots()
    forest(
        axis,
        {"first": ONE, "second": TWO, "third": NONE},
        threshold=0.5,
        colors={n: COLORS["red"] for n in ("first", "second", "third")},
    )
    assert [label.get_text() for label in axis.get_yticklabels()] == ["first", "second", "third"]
    assert axis.get_ylim() == (2.5, -0.5) and drawn(axis)[:2] == [([1.0], [0.0]), ([-1.0], [1.0])]
    assert list(axis.lines[0].get_xdata()) == [0.5, 0.5] and axis.lines[0].get_linestyle() == "--"
    assert not axis.get_legend_handles_labels()[1]


def test_series_of_a_row_stand_beside_each_other_and_each_is_named_once():
    axis = Figure().subplots()
    forest(axis, {"row": {"a": ONE, "b": TWO}, "other": {"b": ONE}})
    assert drawn(axis) == [([1.0], [-0.15]), ([-1.0, 1.0], [0.15, 1.15])]
    assert axis.get_legend_handles_labels()[1] == ["a", "b"]
    black = Figure().subplots()
    forest(black, {"row": {"a": ONE, "b": TWO}}, colors="#000000")
    assert [line.get_color() for line in black.lines if line.get_label() in "ab"] == ["#000000"] * 2


def test_a_forest_without_rows_is_an_empty_axis():
    axis = Figure().subplots()
    forest(axis, {})
    assert not axis.lines


def test_both_are_drawn_on_both_pages():
    def draw(figure):
        top, bottom = figure.subplots(2)
        forest(top, {"a": ONE, "b": NONE}, threshold=0)
        whiskers(bottom, [1, 2], [ONE, TWO], line="-")

    assert all(image[8:12] == b"WEBP" for image in render(draw).values())
