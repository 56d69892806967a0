"""Pure parts of the executor: values, folders and messages. What needs a kernel is in tests/faults."""

from contextlib import nullcontext
from pathlib import Path

import nbformat
import pytest
from conftest import CHAPTERS
from helpers.execute import run_folder
from helpers.parameters import BadRequestError, Parameter, schema
from helpers.presets import resolve
from helpers.status import Status, refused, short
from helpers.worker import _engine
from papermill.engines import NBClientEngine

PLAIN = CHAPTERS / "plain" / "plain.ipynb"


def test_schema_is_read_from_the_parameters_cell():
    known = schema(PLAIN)
    assert list(known) == ["preset", "seed", "n_items", "learning_rate", "verbose", "sizes", "action"]
    assert (known["seed"].low, known["seed"].high) == (0, 2**31 - 1)
    assert (known["learning_rate"].default, known["learning_rate"].low) == (1e-3, 1e-6)
    assert known["preset"].choices == ("reduced", "public", "full")
    assert known["sizes"].default == [1, 2]
    assert known["n_items"].help == "number of items [1, 100]"


def test_preset_seed_and_overrides_are_merged_in_this_order():
    request = resolve(PLAIN, "public", 7, [("n_items", "60"), ("verbose", "true"), ("sizes", "[3]")])
    assert request.changed == {
        "preset": "public",
        "seed": 7,
        "n_items": 60,
        "learning_rate": 1e-4,  # YAML 1.1 reads 1e-4 as text
        "verbose": True,
        "sizes": [3],
    }
    assert request.values["action"] == "none"
    assert request.budget.memory_gb == 2


def test_reduced_preset_changes_nothing():
    assert resolve(PLAIN, "reduced", 0).changed == {}


@pytest.mark.parametrize("kind, value", [("int", True), ("int", 1.0), ("float", "1"), ("str", 1), ("bool", 1)])
def test_types_are_not_mixed_up(kind, value):
    with pytest.raises(BadRequestError, match=f"not {kind}"):
        Parameter("x", kind, None, "").check(value)


def test_an_int_is_a_float():
    value = Parameter("x", "float", 0.0, "", low=0, high=2).check(1)
    assert value == 1.0 and isinstance(value, float)


def test_trial_gets_a_folder_of_its_own():
    assert run_folder(Path("runs"), "full", 3, "coins") == Path("runs/full/seed-3/coins")
    trial = run_folder(Path("runs"), "full", 3, "coins", [("model", "org/name"), ("k", "2")])
    assert trial == Path("runs/full+k=2+model=org_name/seed-3/coins")


@pytest.mark.parametrize(
    "message, expected",
    [
        ("no file /srv/data/set/a.csv here", "no file .../a.csv here"),
        ("see https://example.org/a/b/c", "see https://example.org/a/b/c"),
        (f"cache {Path.home()}/.cache/x/y.csv", "cache ~/.cache/x/y.csv"),
        ("a ratio of 3/4 or 1/2/3", "a ratio of 3/4 or 1/2/3"),
        ("\x1b[31mred\x1b[0m\n  and  more", "red and more"),
        ("x" * 900, "x" * 796 + " ..."),
    ],
)
def test_messages_name_no_path_of_this_machine(message, expected):
    assert short(message) == expected


def test_status_is_killed_until_the_run_has_ended(tmp_path):
    status = Status(PLAIN, tmp_path, {"preset": "reduced", "seed": 0})
    assert status.status == "killed"
    status.end("ok")
    status.cell = {"index": 3, "id": "act"}
    assert status.summary().startswith("plain (reduced, seed 0): ok after 0.0 s")


def test_refusal_replaces_what_an_earlier_run_left(tmp_path):
    (tmp_path / "plain.json").write_text("{}")
    refused(PLAIN, tmp_path, {"preset": "reduced", "seed": 0}, "claims.yaml: wrong")
    assert [p.name for p in tmp_path.iterdir()] == ["plain.status.json"]


@pytest.mark.parametrize(("deaths", "survives"), [(1, True), (2, False)])
def test_a_kernel_that_dies_before_the_first_cell_is_started_once_more(monkeypatch, deaths, survives):
    starts = []

    def start(manager, kernel_name, **kwargs):
        starts.append(kernel_name)
        if len(starts) <= deaths:
            raise RuntimeError("Kernel died before replying to kernel_info")

    monkeypatch.setattr(NBClientEngine, "execute_managed_notebook", start)
    notebook = nbformat.v4.new_notebook(metadata={"papermill": {}})
    with nullcontext() if survives else pytest.raises(RuntimeError, match="Kernel died"):
        _engine(None, notebook).execute_notebook(notebook, "python3")
    assert len(starts) == 2
