"""What the notebooks' declared ranges promise: a request inside them resolves, or is refused in one useful line."""

import random
from functools import cache

import pytest
from conftest import CHAPTERS
from fuzz import WIDE, Draw, fault, notebooks, number, requests, value

from helpers.engine.scaffold import STAND_IN, TEMPLATES
from helpers.parameters import BadRequestError, Limits
from helpers.request import resolve

NOTEBOOKS = [*notebooks(), TEMPLATES / STAND_IN / f"{STAND_IN}.ipynb"]
RULES = """
requires:
  - {rule: n_items != n_items, because: nothing satisfies this rule}
"""


@cache
def stands(notebook, preset):
    """Whether a preset can be run without another value."""
    try:
        resolve(notebook, preset, 0, ())
    except BadRequestError:
        return False
    return True


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=[f"{path.parent.name}/{path.stem}" for path in NOTEBOOKS])
def test_requests_inside_the_declared_ranges(notebook):
    drawn = list(requests(notebook, 200))
    assert not dict.fromkeys(said for draw in drawn if (said := fault(draw)))
    # a preset that asks for a file of the user's own is refused as it stands, and so is what is drawn around it
    able = [draw for draw in drawn if stands(notebook, draw.preset)]
    assert sum(draw.request is not None for draw in able) >= len(able) / 10, "the ranges are far wider than what runs"
    assert len(able) > 100


def test_draws_stay_inside_and_reach_the_ends():
    rng = random.Random(0)
    for kind, limits in (
        (int, Limits(2, 9)),
        (float, Limits(-1, 1)),
        (int, Limits(0, 2**31 - 1)),
        (float, Limits(1e-6, 1)),
    ):
        drawn = [number(kind, limits, rng) for _ in range(400)]
        assert all(isinstance(x, kind) and limits.low <= x <= limits.high for x in drawn)
        assert {limits.low, limits.high} <= set(drawn)
    wide = [number(int, Limits(1, 10**6), rng) for _ in range(400)]
    assert sum(x < WIDE for x in wide) > 100
    assert value(list, Limits(1, 3), [2, 2], rng) != [2, 2] or value(list, Limits(1, 3), [2, 2], rng)
    assert value(str, Limits(choices=("a", "b")), "a", rng) in ("a", "b") and value(str, Limits(), "x", rng) == "x"


def test_a_cross_check_refuses_in_one_line_that_names_its_parameters(chapter):
    folder = chapter("plain")
    (folder / "presets.yaml").write_text((folder / "presets.yaml").read_text() + RULES)
    drawn = list(requests(folder / "plain.ipynb", 20))
    assert all(draw.request is None and "n_items" in draw.refused and fault(draw) is None for draw in drawn)


@pytest.mark.parametrize("said", ["", "two\nlines of n_items", "something is wrong"])
def test_a_bad_refusal_is_found(said):
    assert fault(Draw(CHAPTERS / "plain" / "plain.ipynb", "reduced", 0, {}, None, said))
