"""Pure parts of the executor: values, folders and messages. What needs a kernel is in tests/faults."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import nbformat
import pytest
from conftest import CHAPTERS
from fuzz import bounds_of
from papermill.engines import NBClientEngine

from helpers.engine.execute import execute, find_notebook, pair_up
from helpers.engine.status import Status, short
from helpers.engine.worker import _engine
from helpers.lock import Lock, LockedError
from helpers.parameters import BadRequestError, Limits, check_values, schema
from helpers.record import Record, record_path, variant
from helpers.request import resolve

PLAIN = CHAPTERS / "plain" / "plain.ipynb"


def test_schema_is_read_from_the_parameters_cell():
    model = schema(PLAIN)
    known = bounds_of(model)
    assert list(known) == ["preset", "seed", "n_items", "learning_rate", "verbose", "sizes", "action"]
    assert known["seed"] == (int, Limits(0, 2**31 - 1))
    assert known["learning_rate"] == (float, Limits(1e-6, 1))
    assert known["preset"][1].choices == ("reduced", "public", "full")
    assert (model.model_fields["sizes"].default, model.model_fields["learning_rate"].default) == ([1, 2], 1e-3)
    assert model.model_fields["n_items"].description == "number of items [1, 100]"


def test_preset_seed_and_overrides_are_merged_in_this_order():
    request = resolve(PLAIN, "public", 7, [("n_items", "60"), ("verbose", "true"), ("sizes", "[3]")])
    assert request.injected == {
        "preset": "public",
        "seed": 7,
        "n_items": 60,
        "learning_rate": 1e-4,  # YAML 1.1 reads 1e-4 as text
        "verbose": True,
        "sizes": [3],
    }
    assert request.values["action"] == "none"
    assert request.changed == {"n_items": 60, "verbose": True, "sizes": [3]}  # what the preset itself does not say
    assert request.budget.memory_gb == 2


def test_reduced_preset_changes_nothing():
    assert resolve(PLAIN, "reduced", 0).injected == {}


WRONG = [("n_items", True), ("n_items", 1.0), ("learning_rate", "1"), ("action", 1), ("verbose", 1), ("sizes", 3)]


@pytest.mark.parametrize("name, value", WRONG)
def test_types_are_not_mixed_up(name, value):
    with pytest.raises(BadRequestError, match=f"'{name}'.*, not"):
        check_values(schema(PLAIN), {name: value})


def test_an_int_is_a_float():
    value = check_values(schema(PLAIN), {"learning_rate": 1})["learning_rate"]
    assert value == 1.0 and isinstance(value, float)


def test_every_trial_has_a_folder_of_its_own_and_short_names():
    where = ("coins", "coins", "full", 3)
    assert record_path(*where, out=Path("runs")) == Path("runs/full/seed-3/coins/coins.json")
    trials = [{"text": "a/b"}, {"text": "a b"}, {"text": "a_b"}, {"k": 2}, {"k": "2"}, {"k": 2.0}, {"k": [2]}]
    names = [variant("full", changed) for changed in trials]
    assert len(set(names)) == len(trials)
    long = variant("full", {f"parameter_{i}": "é" * 100 for i in range(30)})
    assert len(long.encode()) < 100 and "/" not in "".join([*names, long])


CONFLICT = """requires:
  - rule: "n_items >= len(sizes) or verbose"
    because: every size needs an item of its own
"""


def test_a_cross_check_names_the_parameters_in_conflict(chapter):
    folder = chapter("plain")
    notebook = folder / "plain.ipynb"
    with (folder / "presets.yaml").open("a") as handle:
        handle.write(CONFLICT)
    assert resolve(notebook, "reduced", 0, [("n_items", "2")]).values["n_items"] == 2
    said = r"in conflict: n_items = 1, sizes = \[1, 2\], verbose = False: every size needs an item of its own"
    with pytest.raises(BadRequestError, match=said):
        resolve(notebook, "reduced", 0, [("n_items", "1")])


@pytest.mark.parametrize(
    ("rule", "message"),
    [("n_itms > 3", "unknown parameter 'n_itms'"), ("n_items >", "not an expression"), ("open('x')", "open")],
)
def test_a_wrong_cross_check_is_named(chapter, rule, message):
    folder = chapter("plain")
    with (folder / "presets.yaml").open("a") as handle:
        handle.write(f"requires:\n  - rule: {json.dumps(rule)}\n    because: a reason that is long enough\n")
    with pytest.raises(BadRequestError, match=r"presets\.yaml: requires") as caught:
        resolve(folder / "plain.ipynb", "reduced", 0)
    assert message in str(caught.value)


def test_values_of_a_preset_count_for_the_notebooks_that_declare_them(chapter):
    folder = chapter("plain")
    text = (folder / "plain.ipynb").read_text()
    (folder / "study.ipynb").write_text(text.replace("n_items: int = 5", "n_draws: int = 5"))
    presets = (folder / "presets.yaml").read_text().replace("n_items: 50,", "n_items: 50, n_draws: 7,")
    budget = "budgets:\n  study: {public: {wall_s: 5, memory_gb: 1}}\n"
    (folder / "presets.yaml").write_text(presets.replace("budgets:\n", budget))
    main, study = (resolve(folder / f"{name}.ipynb", "public", 0) for name in ("plain", "study"))
    assert (main.values["n_items"], study.values["n_draws"]) == (50, 7)
    assert "n_draws" not in main.values and "n_items" not in study.values
    assert (main.budget.wall_s, study.budget.wall_s) == (60, 5)


def test_a_notebook_is_named_by_chapter_or_path():
    assert find_notebook(str(PLAIN)) == PLAIN
    assert find_notebook("rm_bench").name == "rm_bench.ipynb"
    with pytest.raises(BadRequestError, match="did you mean 'rm_bench"):
        find_notebook("rm_bensh")


def test_papermills_way_of_writing_parameters_is_understood():
    assert pair_up(["run", "x", "-p", "n", "3", "-p", "text", "a=b", "--seed", "1"]) == [
        *("run", "x", "-p", "n=3", "-p", "text=a=b", "--seed", "1")
    ]
    assert pair_up(["-p", "n=3"]) == ["-p", "n=3"]
    assert pair_up(["-p", "n"]) == ["-p", "n"]


def test_a_run_has_one_owner(tmp_path):
    lock = Lock(tmp_path / ".plain.lock")
    with pytest.raises(LockedError, match=f"process {os.getpid()}"):
        Lock(tmp_path / ".plain.lock")
    lock.release()
    Lock(tmp_path / ".plain.lock").release()
    assert not list(tmp_path.iterdir())


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
    status = Status(PLAIN, tmp_path / "plain.json", {"preset": "reduced", "seed": 0})
    assert status.status == "killed"
    status.end("ok")
    status.cell = {"index": 3, "id": "act"}
    assert status.summary().startswith("plain (reduced, seed 0): ok after 0.0 s")


def record(path):
    parameters = {"preset": "reduced", "seed": 0}
    made = Record(paper="p", notebook="p", preset="reduced", parameters=parameters, metrics={}, claims={}, card={})
    made.write(path)
    return path


def test_an_earlier_good_run_is_kept_until_the_next_one_succeeded(tmp_path):
    path = record(tmp_path / "plain.json")
    status = Status(PLAIN, path, {"preset": "reduced", "seed": 0})
    status.set_aside()
    assert not path.exists() and Record.read(tmp_path / "plain.before" / "plain.json")
    status.end("error", "ValueError", "no")
    status.settle()
    assert "an earlier good run is kept in plain.before" in status.failure()
    again = Status(PLAIN, path, {"preset": "reduced", "seed": 0})
    again.set_aside()
    again.begin()  # of a failed run nothing is kept, and it does not push out the good one
    assert Record.read(tmp_path / "plain.before" / "plain.json")
    record(path)
    again.end("ok")
    again.settle()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plain.json", "plain.status.json"]


def good_run(folder):
    path = record(folder / "plain.json")
    for name, text in (("plain.ipynb", "{}"), ("plain.status.json", "{}"), ("plain.figures/a.csv", "1")):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return path


@pytest.mark.parametrize("moves", range(5))
def test_setting_aside_may_be_interrupted_anywhere(tmp_path, monkeypatch, moves):
    path, done, replace = good_run(tmp_path), [], os.replace

    def move(source, target):
        if len(done) == moves:
            raise KeyboardInterrupt
        done.append(source)
        replace(source, target)

    monkeypatch.setattr(os, "replace", move)
    with nullcontext() if moves == 4 else pytest.raises(KeyboardInterrupt):
        Status(PLAIN, path, {"preset": "reduced", "seed": 0}).set_aside()
    monkeypatch.undo()
    Status(PLAIN, path, {"preset": "reduced", "seed": 0}).set_aside()
    kept = sorted(p.name for p in (tmp_path / "plain.before").iterdir())
    assert kept == ["plain.figures", "plain.ipynb", "plain.json", "plain.status.json"]
    assert (tmp_path / "plain.before" / "plain.figures" / "a.csv").read_text() == "1"


def test_a_run_that_could_not_start_gives_the_earlier_one_back(tmp_path, monkeypatch):
    request = resolve(PLAIN, "reduced", 0)
    folder = tmp_path / "reduced" / "seed-0" / "plain"
    folder.mkdir(parents=True)
    good_run(folder)
    before = sorted(p.relative_to(folder) for p in folder.rglob("*"))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Status, "write", full)
    with pytest.raises(OSError, match="No space left"):
        execute(PLAIN, request, tmp_path)
    assert sorted(p.relative_to(folder) for p in folder.rglob("*")) == before


def test_a_run_that_could_not_start_does_not_hide_an_earlier_failure(tmp_path, monkeypatch):
    path = good_run(tmp_path)
    failed = Status(PLAIN, path, {"preset": "reduced", "seed": 0})
    failed.set_aside()
    failed.begin()
    failed.end("error", "ValueError", "no")
    failed.settle()
    again = Status(PLAIN, path, {"preset": "reduced", "seed": 0})
    again.set_aside()
    monkeypatch.setattr("helpers.engine.status.write_atomically", lambda *_: os.stat(tmp_path / "full disk"))
    with pytest.raises(OSError, match="full disk"):
        again.begin()
    assert json.loads((tmp_path / "plain.status.json").read_text())["status"] == "error"
    assert not path.exists() and (tmp_path / "plain.before" / "plain.json").exists()


def test_the_last_word_is_written_before_the_earlier_run_goes(tmp_path, monkeypatch):
    path = good_run(tmp_path)
    status = Status(PLAIN, path, {"preset": "reduced", "seed": 0})
    status.set_aside()
    record(path)
    status.end("ok")
    monkeypatch.setattr("helpers.engine.status.write_atomically", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        status.settle()
    assert (tmp_path / "plain.before" / "plain.json").exists()


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


def test_the_module_behind_the_command_is_a_command_too():
    words = [sys.executable, "-m", "helpers.engine.execute", str(PLAIN), "-p", "n_item", "3"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2 and "did you mean 'n_items'?" in done.stderr and done.stderr.count("\n") == 1
