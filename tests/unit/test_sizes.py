"""`papers run --scale N`: a preset at an Nth of its declared sizes, within their ranges, and never its record."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import CHAPTERS
from fuzz import bounds_of, notebooks

from helpers.engine.contributed import check_contributed
from helpers.parameters import BadRequestError, schema
from helpers.record import Record, committed_records
from helpers.request import load_presets, resolve
from helpers.sizes import Sizes

PLAIN = CHAPTERS / "plain" / "plain.ipynb"
SIZED = [(path, load_presets(path)) for path in notebooks() if load_presets(path).sizes.names()]
LARGE = [(path, preset) for path, presets in SIZED for preset in ("gpu", "full") if preset in presets.values]
OWN_FILE = {"cohort": "a folder", "instructions": "a file"}  # what some presets ask a person for
SCALES = (2, 3, 4, 7, 10, 30, 100, 1000, 10**9)


@pytest.fixture
def plain(chapter):
    """Write `scale` into the presets of a fixture chapter; its notebook."""

    def write(text: str) -> Path:
        folder = chapter("plain")
        with (folder / "presets.yaml").open("a") as handle:
            handle.write(f"scale: {text}\n")
        return folder / "plain.ipynb"

    return write


@pytest.mark.parametrize(
    ("scale", "wanted"),
    [(2, {"n_items": 25, "sizes": [1]}), (7, {"n_items": 8, "sizes": [1]}), (1000, {"n_items": 1, "sizes": [1]})],
)
def test_an_nth_is_rounded_up_and_lists_keep_their_first_part(plain, scale, wanted):
    notebook = plain("{divide: [n_items], shorten: [sizes]}")
    request = resolve(notebook, "public", 3, scale=scale)
    assert request.changed == wanted and request.preset == "public" and request.seed == 3
    assert request.injected == wanted | {"preset": "public", "seed": 3, "learning_rate": 1e-4}


def test_numbers_in_a_list_stop_at_their_own_least_and_none_grows():
    model = schema(PLAIN)
    sizes = Sizes(divide=["sizes", "n_items"], least={"sizes": [2, 3], "n_items": 20})
    found = sizes.scaled(model, {"sizes": [1, 9, 9, 8], "n_items": 90}, 3)
    assert found == {"sizes": [1, 3, 3, 3], "n_items": 30}
    assert sizes.scaled(model, {"sizes": [9, 9], "n_items": 90}, 100) == {"sizes": [2, 3], "n_items": 20}
    both = Sizes(divide=["sizes"], shorten=["sizes"])
    assert both.scaled(model, {"sizes": [9, 8, 7]}, 2) == {"sizes": [5, 4]}


def test_a_value_of_the_command_line_is_taken_as_it_is(plain):
    notebook = plain("{divide: [n_items], shorten: [sizes]}")
    changed = resolve(notebook, "public", 0, [("n_items", "60")], scale=10).changed
    assert changed == {"n_items": 60, "sizes": [1]}


@pytest.mark.parametrize(
    ("text", "scale", "message"),
    [
        ("{divide: [n_items]}", 0, "scale 0: a whole number from 2 on is needed"),
        ("{divide: [n_items]}", -3, "scale -3: a whole number from 2 on is needed"),
        ("{}", 5, "scale 5: presets.yaml names no sizes of this notebook under 'scale'"),
        ("{divide: [n_items], least: {n_items: 99}}", 5, "scale 5: every size is as small as it may be: n_items"),
        ("{divide: [n_itms]}", 1, "presets.yaml: scale: unknown parameter 'n_itms', did you mean 'n_items'?"),
        ("{divide: [learning_rate]}", 1, "scale: divide: parameter 'learning_rate' is no whole number"),
        ("{divide: [verbose]}", 1, "scale: divide: parameter 'verbose' is no whole number"),
        ("{shorten: [n_items]}", 1, "scale: shorten: parameter 'n_items' is no list"),
        ("{least: {n_items: 3}}", 1, "scale: least of 'n_items', which is not divided"),
        ("{divide: n_items}", 1, "presets.yaml: scale.divide: Input should be a valid list"),
        ("{divided: [n_items]}", 1, "presets.yaml: scale.divided: Extra inputs are not permitted"),
        ("{divide: [sizes], least: {sizes: []}}", 1, "presets.yaml: scale.least.sizes"),
        ("[n_items]", 1, "a mapping of presets to values is needed"),
    ],
)
def test_what_cannot_be_divided_is_refused_in_one_line(plain, text, scale, message):
    with pytest.raises(BadRequestError) as caught:
        resolve(plain(text), "public", 0, scale=scale)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_rule_that_a_scale_breaks_names_the_scale(plain):
    rule = '{rule: "n_items > 5", because: "five items say nothing"}'
    notebook = plain(f"{{divide: [n_items]}}\nrequires: [{rule}]")
    assert resolve(notebook, "public", 0, scale=5).values["n_items"] == 10
    with pytest.raises(BadRequestError, match=r"^scale 10: parameters in conflict: n_items = 5: five items"):
        resolve(notebook, "public", 0, scale=10)


@pytest.mark.parametrize(("path", "preset"), LARGE, ids=[f"{path.stem}-{preset}" for path, preset in LARGE])
def test_every_larger_preset_resolves_at_every_scale(path, preset):
    """Sizes that are declared, at any scale, break no rule; at the largest each is as small as it may be."""
    model, presets = schema(path), load_presets(path)
    own = [pair for pair in OWN_FILE.items() if preset == "full" and pair[0] in model.model_fields]
    whole = resolve(path, preset, 0, own).values
    for scale in SCALES:
        request = resolve(path, preset, 0, own, scale=scale)
        assert request.changed and request.changed.keys() <= {*presets.sizes.names(), *dict(own)}
    bounds = bounds_of(model)
    for name in set(presets.sizes.divide) - presets.sizes.least.keys():
        least, now = max(1, bounds[name][1].low or 0), request.values[name]
        assert all(one == least for one in (now if isinstance(now, list) else [now])) or now == whole[name] == 0
    assert all(len(request.values[name]) == min(1, len(whole[name])) for name in presets.sizes.shorten)


def test_a_scaled_run_is_executed_and_speaks_for_no_preset(chapter, execute, tmp_path, monkeypatch):
    folder = chapter("quick")
    with (folder / "presets.yaml").open("a") as handle:
        handle.write("scale: {divide: [n_tosses]}\n")
    done = execute(folder, "--scale", "4")
    assert done.code == 0, done.err
    assert done.folder.parts[-3].startswith("reduced+n_tosses=100~")
    record = Record.read(done.record)
    assert (record.preset, record.changed, record.metrics["share_of_heads"].n) == ("reduced", {"n_tosses": 100}, 100)
    place = tmp_path / "results" / "reduced" / "quick" / "quick.json"
    place.parent.mkdir(parents=True)
    shutil.copy(done.record, place)
    assert committed_records("quick", results=tmp_path / "results") == {}
    with pytest.raises(ValueError, match="n_tosses: not the value of the preset reduced"):
        check_contributed(place, folder / "quick.ipynb")
    place.write_text(json.dumps(json.loads(place.read_text()) | {"changed": {}}))
    with pytest.raises(ValueError, match="n_tosses: not the value of the preset reduced"):
        check_contributed(place, folder / "quick.ipynb")


def test_a_scale_that_is_refused_touches_nothing(chapter, execute):
    done = execute(chapter("quick"), "--scale", "4")
    assert (done.code, done.folder.exists()) == (2, False)
    assert done.err == "refused: scale 4: presets.yaml names no sizes of this notebook under 'scale'\n"
