"""`lift` takes out what it is asked for and no more; `sabotage` tells a gate that bites from one that sleeps."""

import nbformat
import pytest
from conftest import CHAPTERS
from lift import lift, sabotage

CELLS = [
    "import math\nfrom helpers.stats import Estimate",
    "SCALE: float = 2.0\nlimits = {'low': 0, 'high': SCALE}\nrun = open('/nowhere')",
    "def area(r):  # ()\n    return SCALE * half(r) ** 2 * math.pi",
    "def half(r):\n    return r / 2\n\nclass Disc:\n    size = area(2.0)",
    "def noted(x):\n    run.append(x)\n    return x",
    "half_of_four = half(4)\nassert False, 'a check cell that must not run'",
]


@pytest.fixture
def notebook(tmp_path):
    path = tmp_path / "discs.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS]), path)
    return path


def test_functions_come_with_what_they_refer_to(notebook):
    assert lift(notebook, ["area"]).area(2) == pytest.approx(2 * 3.14159265)


def test_classes_and_computed_variables_can_be_asked_for(notebook):
    got = lift(notebook, ["Disc", "half_of_four", "limits"])
    assert got.Disc.size == pytest.approx(6.2831853)
    assert got.half_of_four == 2
    assert got.limits == {"low": 0, "high": 2.0}


def test_given_globals_win(notebook):
    notes = []
    got = lift(notebook, ["noted", "area"], {"run": notes, "SCALE": 1.0})
    assert got.noted(3) == 3 and notes == [3]
    assert got.area(2) == pytest.approx(3.14159265)


def test_what_calls_something_is_not_executed_unasked(notebook):
    with pytest.raises(NameError):
        lift(notebook, ["noted"]).noted(1)


def test_unknown_name_is_an_error(notebook):
    with pytest.raises(LookupError, match="does not define volume; it has Disc, SCALE, area"):
        lift(notebook, ["volume"])


@pytest.mark.slow
def test_sabotage_returns_the_error_of_the_gate():
    error = sabotage("quick", {"random(n_tosses) < bias": "random(n_tosses) > bias"}, folder=CHAPTERS / "quick")
    assert error.startswith("RegressionError: regression: share_of_heads: 0.1")


@pytest.mark.slow
def test_sabotage_that_nobody_notices_is_an_error():
    with pytest.raises(AssertionError, match="the gate did not notice"):
        sabotage("quick", {"run.verdicts()": "pass"}, folder=CHAPTERS / "quick")


@pytest.mark.parametrize("old, count", [("no such text", 0), ("run", 9)])
def test_replacement_must_match_exactly_once(old, count):
    with pytest.raises(LookupError, match="times in the code cells, expected once"):
        sabotage("quick", {old: ""}, folder=CHAPTERS / "quick")
