"""Colours are legible on both pages, figures carry alt text and data."""

import numpy as np
import pandas as pd
import pytest

from helpers.figures import COLORS, PAGES, html, palette, render


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
    assert images["light"] != images["dark"] and all(i.startswith(b"\x89PNG") for i in images.values())
    page = html(images, "f", 'A "line" & more', pd.DataFrame({"x": [1]}))
    assert page.count("<img") == 2 and page.count('alt="A &quot;line&quot; &amp; more"') == 2
    assert 'class="only-light"' in page and 'class="only-dark"' in page and 'download="f.csv"' in page
