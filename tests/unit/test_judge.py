"""One judgement of a run: every way in which a run can look finished and is not."""

import json
import subprocess
import sys

import pytest

from helpers.engine.judge import chapters_of, judge
from helpers.paths import notebooks_of

SEED = {"preset": "reduced", "seed": 0}


def cell(name, source="x = 1", kind="code", **more):
    code = {"execution_count": 1, "outputs": []} if kind == "code" else {}
    return {"cell_type": kind, "id": name, "metadata": {}, "source": source} | code | more


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def run(tmp_path):
    """A good run: source notebook, and the place of its executed copy, record and status file."""
    source, place = tmp_path / "notebooks" / "coin" / "coin.ipynb", tmp_path / "runs" / "coin" / "coin"
    content = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}}
    content["cells"] = [cell("title", "# Coin", "markdown"), cell("throw"), cell("end", "run.finish()")]
    record = {"paper": "coin", "notebook": "coin", "preset": "reduced", "parameters": SEED | {"n": 5}}
    record |= {"metrics": {}, "claims": {}, "card": {}, "complete": True}
    status = SEED | {"status": "ok", "error": None, "parameters": SEED | {"n": 5}, "finished": "2026-01-01"}
    write(source, content)
    write(place.with_name("coin.ipynb"), content)
    write(place.with_name("coin.json"), record)
    write(place.with_name("coin.status.json"), status)
    return source, place


def change(run, suffix, edit):
    path = run[1].with_name("coin" + suffix)
    content = json.loads(path.read_text())
    edit(content)
    write(path, content)


def test_a_good_run_is_ok_also_without_status_file(run):
    found = judge(*run)
    assert (found.status, found.record.seed, found.shown) == ("ok", 0, True)
    run[1].with_name("coin.status.json").unlink()  # nbmake writes none
    assert judge(*run).status == "ok"


def test_nothing_at_all_is_not_run(run):
    for path in run[1].parent.iterdir():
        path.unlink()
    assert judge(*run).status == "not run"


@pytest.mark.parametrize("status", ["error", "timeout", "killed"])
def test_a_run_that_ended_badly_is_not_saved_by_a_record(run, status):
    error = {"type": "ValueError", "message": "bad coin"}
    change(run, ".status.json", lambda s: s.update(status=status, error=error, last_cell={"index": 1, "id": "throw"}))
    found = judge(*run)
    assert (found.status, found.message, found.record) == (status, "cell 1 (throw): ValueError: bad coin", None)


def test_an_unfinished_status_is_killed(run):
    change(run, ".status.json", lambda s: s.update(finished=None))
    assert judge(*run).status == "killed"


def test_an_unknown_status_is_an_error(run):
    change(run, ".status.json", lambda s: s.update(status="fine?"))
    assert (judge(*run).status, judge(*run).message) == ("error", "the status file says 'fine?'")


@pytest.mark.parametrize("ename", ["ValueError", "SystemExit"])  # papermill calls sys.exit(0) a success
def test_an_error_output_counts_even_when_the_status_says_ok(run, ename):
    error = {"output_type": "error", "ename": ename, "evalue": "\x1b[31m0\x1b[0m\n.", "traceback": []}
    change(run, ".ipynb", lambda n: n["cells"][2].update(outputs=[error]))
    found = judge(*run)
    assert (found.status, found.message, found.record) == ("error", f"cell 2 (end): {ename}: 0 .", None)


@pytest.mark.parametrize(
    ("suffix", "content", "status", "said"),
    [
        (".json", None, "no record", "coin.json: no such record"),
        (".json", "", "no record", "coin.json: not a complete record"),
        (".json", "[1]", "no record", "coin.json: not a complete record"),
        (".json", '{"complete": true}', "no record", "coin.json: not a complete record"),
        (".json", '{"complete": tr', "no record", "coin.json: not a complete record"),
        (".ipynb", '{"cells": [', "unreadable", "coin.ipynb: not JSON"),
        (".ipynb", '{"nbformat": 4, "cells": [1]}', "unreadable", "coin.ipynb: not a notebook"),
        (
            ".ipynb",
            '{"nbformat": 4, "cells": [{"cell_type": "code", "metadata": {}, "source": "", "outputs": [{}]}]}',
            "unreadable",
            "coin.ipynb: not a notebook",
        ),
        (
            ".ipynb",
            '{"cells": 5, "nbformat": 4, "nbformat_minor": 5, "metadata": {}}',
            "unreadable",
            "coin.ipynb: not",
        ),
        (".ipynb", '{"nbformat": 4, "cells": [{"cell_type": -1}]}', "unreadable", "coin.ipynb: not a notebook"),
        (".ipynb", None, "unreadable", "coin.ipynb: no such file"),
        (".status.json", "{", "unreadable", "coin.status.json: not JSON"),
        (".status.json", "{}", "unreadable", "coin.status.json: says no status"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(run, suffix, content, status, said):
    path = run[1].with_name("coin" + suffix)
    path.unlink() if content is None else write(path, content)
    found = judge(*run)
    assert found.status == status and found.message.startswith(said) and "\n" not in found.message, found.message
    assert found.record is None


@pytest.mark.parametrize("content", ["{", "", "[]", '{"nbformat": 4, "cells": []}', '{"nbformat": 3, "cells": [{}]}'])
def test_a_damaged_source_is_unreadable(run, content):
    write(run[0], content)
    found = judge(*run)
    assert (found.status, found.source, found.record) == ("unreadable", None, None)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda r: r["parameters"].update(n=6), "n = 6 instead of 5"),
        (lambda r: r["parameters"].update(seed=3), "seed = 3 instead of 0"),
        (lambda r: r.update(preset="public"), "preset = 'public' instead of 'reduced'"),
        (lambda r: r.update(notebook="other"), "the record is of coin/other"),
    ],
)
def test_a_record_of_another_run_is_no_record(run, edit, said):
    change(run, ".json", edit)
    found = judge(*run)
    assert found.status == "no record" and said in found.message, found.message


def test_changed_code_makes_a_run_stale_but_changed_text_and_injected_parameters_do_not(run):
    injected = cell("x", "seed = 1", metadata={"tags": ["injected-parameters"]})
    change(run, ".ipynb", lambda n: n["cells"].insert(1, injected))
    change(run, ".ipynb", lambda n: n["cells"][0].update(source="# Coins"))
    assert judge(*run).status == "ok"
    change(run, ".ipynb", lambda n: n["cells"][2].update(source="x = 2"))
    found = judge(*run)
    assert found.status == "stale" and found.shown


def test_hidden_files_and_checkpoints_are_no_notebooks(run):
    folder = run[0].parent
    for name in ("._coin.ipynb", ".ipynb_checkpoints/coin-checkpoint.ipynb", "a_study.ipynb", "notes.md"):
        write(folder / name, run[0].read_text())
    write(folder.parent / ".ipynb_checkpoints" / "coin-checkpoint.ipynb", "{}")
    assert [path.name for path in notebooks_of(folder)] == ["coin.ipynb", "a_study.ipynb"]
    assert chapters_of(folder.parent) == [folder]


def test_the_judge_is_quick_to_import(run):
    code = "import sys, helpers.engine.judge; sys.exit(any(m in sys.modules for m in ('torch', 'pandas', 'sphinx')))"
    subprocess.run([sys.executable, "-c", code], check=True)
