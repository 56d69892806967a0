"""A record from elsewhere counts only when it is of this very notebook, its data and a preset."""

import json
import shutil
from pathlib import Path

import pytest

from helpers.code import code_hash, code_hash_of
from helpers.engine.contributed import check_contributed, contributions, elsewhere, is_contributed

QUICK = Path(__file__).resolve().parents[1] / "fixtures" / "chapters" / "quick"


@pytest.fixture
def notebook(tmp_path):
    return shutil.copytree(QUICK, tmp_path / "notebooks" / "quick") / "quick.ipynb"


@pytest.fixture
def content(notebook):
    values = {"preset": "reduced", "seed": 3, "n_tosses": 400, "bias": 0.8, "data_file": ""}
    card = {"code": code_hash_of(notebook), "data": {}, "device": "<abacus>", "python": "3.12.1", "wall_s": 4.2}
    claims = {"C1": {"verdict": "reproduced", "value": 0.8}}
    record = {"schema": 1, "paper": "quick", "notebook": "quick", "preset": "reduced", "parameters": values}
    return record | {"metrics": {}, "claims": claims, "card": card, "complete": True}


def put(tmp_path, content, where="abacus/reduced/quick/quick.json"):
    path = tmp_path / "results" / "contributed" / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def test_a_good_record_is_shown_with_machine_and_versions(tmp_path, notebook, content):
    path = put(tmp_path, content)
    assert is_contributed(path) and not is_contributed(tmp_path / "results/public/quick/quick.json")
    found, faults = contributions(notebook, tmp_path / "results")
    assert faults == [] and [one.who for one in found] == ["abacus"]
    other = found[0].record.model_copy(update={"claims": {}})
    html = elsewhere([(found[0], found[0].record), (found[0], other), (found[0], None)])
    assert "quick, reduced, seed 3" in html and "&lt;abacus&gt;" in html and "Python 3.12.1" in html
    assert html.count("1 of 1 as ours") == 1 and html.count("nothing of ours to compare with") == 2


WRONG = {
    "other code": ({"card": {"code": "sha256:0"}}, "is of other code cells"),
    "no code": ({"card": {"code": None}}, "names no code cells"),
    "other data": ({"card": {"data": {"quick/tosses.csv": "sha256:0"}}}, "quick/tosses.csv: not the registered data"),
    "unknown data": ({"card": {"data": {"quick/dice.csv": "sha256:0"}}}, "quick/dice.csv: not the registered data"),
    "a trial": ({"parameters": {"bias": 0.7}}, "bias: not the value of the preset reduced"),
    "said to be a trial": ({"changed": {"bias": 0.7}}, "bias: not the value of the preset reduced"),
    "out of range": ({"parameters": {"bias": 7.0}}, "parameter 'bias': 7.0 is out of range"),
    "unknown parameter": ({"parameters": {"coins": 2}}, "unknown parameter 'coins'"),
    "another paper": ({"paper": "slow"}, "the record is of reduced/slow/quick"),
    "another preset": ({"preset": "public"}, "the record is of public/quick/quick"),
    "schema": ({"schema": 2}, "not a complete record"),
    "not complete": ({"complete": False}, "not a complete record"),
}


@pytest.mark.parametrize("changes, message", WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_named_and_not_shown(tmp_path, notebook, content, changes, message):
    for key, value in changes.items():
        content[key] = content[key] | value if isinstance(value, dict) and key in content else value
    path = put(tmp_path, content)
    with pytest.raises(ValueError, match=r"quick\.json|parameter") as error:
        check_contributed(path, notebook)
    assert message in str(error.value)
    found, faults = contributions(notebook, tmp_path / "results")
    assert found == [] and len(faults) == 1 and "abacus/reduced/quick" in faults[0]


def test_a_missing_parameter_is_named(tmp_path, notebook, content):
    del content["parameters"]["bias"]
    with pytest.raises(ValueError, match="lacks the parameters bias"):
        check_contributed(put(tmp_path, content), notebook)


def test_the_hash_is_of_the_code_cells_alone(notebook):
    content = json.loads(notebook.read_text())
    first = code_hash(json.dumps(content))
    content["cells"][0]["source"] = "other prose"
    injected = {
        "cell_type": "code",
        "metadata": {"tags": ["injected-parameters"]},
        "source": "bias = 0.1",
        "outputs": [],
    }
    assert code_hash(json.dumps(content | {"cells": [*content["cells"], injected]})) == first
    next(c for c in content["cells"] if c["id"] == "toss")["source"] += "\n"
    assert code_hash(json.dumps(content)) != first
    assert code_hash_of(notebook.with_name("none.ipynb")) is None
    for text in ("[]", "{}", "not JSON", '{"cells": [1]}'):
        with pytest.raises(ValueError):
            code_hash(text)
