"""Whatever goes wrong, the status says so truthfully, no record is left, and other chapters' work is untouched.

Real kernels that really die; the fixture chapter `plain` ends in the way that its parameter `action` names.
"""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml
from typer.testing import CliRunner

from helpers.engine.cli import app
from helpers.engine.execute import pair_up
from helpers.record import record_path

SECRETS = ("/tmp/", "/home/", os.path.expanduser("~") + "/", os.getcwd())


def budgets(folder, **limits):
    path = folder / "presets.yaml"
    content = yaml.safe_load(path.read_text())
    content["budgets"]["reduced"] |= limits
    path.write_text(yaml.safe_dump(content))


def cell_states(notebook):
    ran = [cell for cell in notebook["cells"] if "papermill" in cell["metadata"]]  # papermill also inserts error notes
    return {cell["id"]: cell["metadata"]["papermill"]["status"] for cell in ran}


def assert_failed(run, status, error, message, cell="act"):
    """The one truth, told in every place that a reader may look at."""
    assert run.code == 1
    told = run.status
    assert (told["status"], told["error"]["type"]) == (status, error)
    assert message in told["error"]["message"]
    assert told["last_cell"]["id"] == cell
    assert told["finished"] is not None
    assert told["peak_memory_mb"] > 20
    assert not any(secret in json.dumps(told["error"]) for secret in SECRETS)
    assert f"{error}: " in run.err
    assert not run.record.exists()
    states = cell_states(run.notebook)  # the partial notebook is kept and does not claim more than what ran
    assert states["imports"] == "completed"
    assert states[cell] == "failed"


def test_success_leaves_record_notebook_and_status(chapter, execute):
    run = execute(chapter("plain"))
    assert run.code == 0, run.err
    told = run.status
    assert (told["status"], told["error"], told["last_cell"]) == ("ok", None, {"index": 4, "id": "finish"})
    assert told["parameters"]["n_items"] == 5
    assert 0 < told["wall_s"] < 60
    assert json.loads(run.record.read_text())["complete"] is True
    assert sorted(p.name for p in run.folder.iterdir()) == ["plain.ipynb", "plain.json", "plain.status.json"]
    assert not any("injected-parameters" in c["metadata"].get("tags", []) for c in run.notebook["cells"])


def test_python_error(chapter, execute):
    run = execute(chapter("plain"), "-p", "action", "raise")
    assert_failed(run, "error", "ZeroDivisionError", "no items in")
    assert cell_states(run.notebook)["finish"] == "pending"


def test_kernel_killed(chapter, execute):
    run = execute(chapter("plain"), "-p", "action", "die")
    assert_failed(run, "killed", "DeadKernelError", "the kernel died")
    assert cell_states(run.notebook)["finish"] == "pending"
    outputs = next(c for c in run.notebook["cells"] if c["id"] == "act")["outputs"]
    assert "acting: die" in str(outputs)


def test_cell_timeout(chapter, execute):
    folder = chapter("plain")
    budgets(folder, cell_s=2)
    run = execute(folder, "-p", "action", "sleep")
    assert_failed(run, "timeout", "CellTimeoutError", "longer than 2 s")
    assert cell_states(run.notebook)["finish"] == "pending"


def test_wall_budget(chapter, execute):
    folder = chapter("plain")
    budgets(folder, wall_s=20, cell_s=200)
    start = time.perf_counter()
    run = execute(folder, "-p", "action", "sleep")
    assert_failed(run, "timeout", "WallBudgetError", "longer than its budget of 20 s")
    assert 20 <= run.status["wall_s"] < 60
    assert time.perf_counter() - start < 100


def test_memory_budget(chapter, execute):
    folder = chapter("plain")
    budgets(folder, memory_gb=1)
    run = execute(folder, "-p", "action", "hog")
    assert_failed(run, "killed", "MemoryBudgetError", "its budget is 1 GB")
    assert 1000 < run.status["peak_memory_mb"] < 4000


def test_notebook_without_record_is_an_error(chapter, execute):
    run = execute(chapter("plain"), "-p", "action", "forget")
    assert run.code == 1
    assert run.status["status"] == "error"
    assert run.status["error"]["type"] == "NoRecordError"


def test_a_notebook_that_ends_itself_has_failed(chapter, execute):
    run = execute(chapter("plain"), "-p", "action", "exit")
    assert run.code == 1
    assert (run.status["status"], run.status["error"]["type"]) == ("error", "SystemExit")
    assert not run.record.exists()


def test_failed_run_takes_the_earlier_record_away_and_leaves_other_chapters_alone(chapter, execute):
    plain = chapter("plain")
    neighbour = plain.parent / "neighbour"
    plain.rename(neighbour)
    plain = chapter("plain")
    (neighbour / "plain.ipynb").rename(neighbour / "neighbour.ipynb")
    other = execute(neighbour)
    first = execute(plain)
    assert (other.code, first.code) == (0, 0)
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in other.folder.iterdir()}
    notebook = (plain / "plain.ipynb").read_text()
    (plain / "plain.ipynb").write_text(notebook.replace('action: str = \\"none\\"', 'action: str = \\"die\\"'))
    second = execute(plain)
    assert_failed(second, "killed", "DeadKernelError", "the kernel died")
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in other.folder.iterdir()} == before


def _start_sleeping(folder, out):
    command = [sys.executable, "-m", "helpers.engine.cli", "run", str(folder / "plain.ipynb"), "--out", str(out)]
    process = subprocess.Popen([*command, "-p", "action", "sleep"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    record = record_path("plain", "plain", "reduced", 0, {"action": "sleep"}, out)
    status = record.with_name("plain.status.json")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        below = psutil.Process(process.pid).children(recursive=True)
        if any("ipykernel_launcher" in part for p in below for part in p.cmdline()):
            return process, status, below
        time.sleep(0.2)
    raise AssertionError("no kernel was started")


def _gone(processes, within_s=20):
    return not psutil.wait_procs(processes, timeout=within_s)[1]


@pytest.mark.parametrize("whole", [False, True])
def test_stopping_the_command_stops_the_kernel_and_says_so(chapter, tmp_path, whole):
    """A cluster that cancels a job signals all its processes at once."""
    process, status, below = _start_sleeping(chapter("plain"), tmp_path / "runs")
    for stopped in [*(below if whole else []), process]:
        stopped.send_signal(signal.SIGTERM)
    assert process.wait(60) == 1
    told = json.loads(status.read_text())
    assert (told["status"], told["error"]["message"]) == ("killed", "stopped by SIGTERM")
    assert _gone(below)


def test_killing_the_command_leaves_a_truthful_status_and_no_orphans(chapter, tmp_path):
    process, status, below = _start_sleeping(chapter("plain"), tmp_path / "runs")
    process.kill()
    process.wait(60)
    told = json.loads(status.read_text())
    assert (told["status"], told["finished"]) == ("killed", None)
    assert _gone(below)


def test_missing_data_without_network(chapter, execute, tmp_path):
    cache = {"REPRODUCTIONS_DATA": str(tmp_path / "cache")}
    run = execute(chapter("quick"), "-p", "data_file", "quick/tosses.csv", environment=cache)
    assert_failed(run, "error", "DataUnavailableError", "quick/tosses.csv: not in the cache", cell="data")
    message = run.status["error"]["message"]
    for part in (
        "Coin tosses (fixture, 2026)",
        "0.0 MB",
        "CC0-1.0",
        "https://example.invalid/coins",
        "Put the file at",
    ):
        assert part in message
    output = next(c for c in run.notebook["cells"] if c["id"] == "data")["outputs"]  # the page names the folder in full
    assert str(tmp_path / "cache" / "quick" / "tosses.csv") in str(output)


def test_corrupted_cached_file(chapter, execute, tmp_path):
    cached = tmp_path / "cache" / "quick" / "tosses.csv"
    cached.parent.mkdir(parents=True)
    cached.write_text("not what was registered")
    cache = {"REPRODUCTIONS_DATA": str(tmp_path / "cache")}
    run = execute(chapter("quick"), "-p", "data_file", "quick/tosses.csv", environment=cache)
    assert_failed(run, "error", "DataCorruptedError", "does not have the registered hash", cell="data")
    assert not cached.exists()
    assert cached.with_name("tosses.csv.wrong-hash").read_text() == "not what was registered"


REFUSED = {
    "unknown parameter": (["-p", "n_item", "3"], "unknown parameter 'n_item', did you mean 'n_items'?"),
    "wrong type": (["-p", "n_items", "many"], "parameter 'n_items': 'many' is not of type int"),
    "float for int": (["-p", "n_items", "2.5"], "parameter 'n_items': '2.5' is not of type int"),
    "out of range": (["-p", "n_items", "101"], "parameter 'n_items': 101 is out of range [1, 100]"),
    "not a number": (["-p", "learning_rate", "nan"], "parameter 'learning_rate': nan is not a finite number"),
    "not a choice": (["-p", "action", "dance"], "parameter 'action': 'dance' is not one of none, raise"),
    "list element": (["-p", "sizes", "[1, 20]"], "parameter 'sizes': 20 is out of range [1, 9]"),
    "not a bool": (["-p", "verbose", "perhaps"], "parameter 'verbose': 'perhaps' is not of type bool"),
    "preset as parameter": (["-p", "preset", "public"], "parameter 'preset': give it as --preset"),
    "unknown preset": (["--preset", "pubic"], "unknown preset 'pubic', did you mean 'public'?"),
    "seed out of range": (["--seed", "-1"], "parameter 'seed': -1 is out of range"),
}


def assert_refused(folder, out, message, *arguments):
    """Exit code 2, one line, and nothing written."""
    words = pair_up(["run", str(folder / "plain.ipynb"), "--out", str(out), *arguments])
    called = CliRunner().invoke(app, words)
    assert called.exit_code == 2
    assert message in called.stderr
    assert len(called.stderr.strip().splitlines()) == 1
    assert not out.exists()


@pytest.mark.parametrize("arguments, message", REFUSED.values(), ids=REFUSED)
def test_bad_request_is_refused_before_a_kernel_starts(chapter, tmp_path, arguments, message):
    assert_refused(chapter("plain"), tmp_path / "runs", message, *arguments)


WRONG_FILES = {
    "claims": ("claims.yaml", "direction: greater", "direction: up", "claims.yaml: claim C1: direction"),
    "claims not YAML": ("claims.yaml", "- id: C1", "- id: [C1", "claims.yaml: not valid YAML"),
    "presets not YAML": ("presets.yaml", "reduced: {}", "reduced: {", "presets.yaml: not valid YAML"),
    "preset value": (
        "presets.yaml",
        "n_items: 50",
        "n_items: 500",
        "presets.yaml: preset 'public': parameter 'n_items'",
    ),
    "preset name": (
        "presets.yaml",
        "n_items: 50",
        "n_itms: 50",
        "presets.yaml: preset 'public': unknown parameter 'n_itms'",
    ),
    "budget": ("presets.yaml", "memory_gb: 2, cell_s", "memory: 2, cell_s", "presets.yaml: budgets.reduced."),
    "budget of a number": (
        "presets.yaml",
        "budgets:\n",
        "budgets:\n  1: 2\n",
        "the key '1' is not text",
    ),
    "budget of nothing": ("presets.yaml", "budgets:\n", "budgets:\n  plain: 5\n", "presets.yaml: budgets: a mapping"),
    "rules": ("presets.yaml", "budgets:\n", "requires: 5\nbudgets:\n", "presets.yaml: requires: a list of rules"),
    "twice": (
        "claims.yaml",
        "  direction: greater",
        "  direction: greater\n  direction: less",
        "stands there twice",
    ),
    "infinite": ("claims.yaml", "threshold: 0", "threshold: .inf #", "claims.yaml: claim C1: threshold"),
    "a date": ("claims.yaml", "threshold: 0", "threshold: 2024-13-45 #", "claims.yaml: not valid YAML: month must"),
    "notebook": ("plain.ipynb", "learning_rate: float", "learning_rate: complex", "'learning_rate': type complex"),
}


@pytest.mark.parametrize("name, old, new, message", WRONG_FILES.values(), ids=WRONG_FILES)
def test_wrong_chapter_file_is_refused(chapter, tmp_path, name, old, new, message):
    folder = chapter("plain")
    text = (folder / name).read_text()
    assert text.count(old) == 1
    (folder / name).write_text(text.replace(old, new))
    assert_refused(folder, tmp_path / "runs", message)


def test_refusal_is_the_exit_code_of_the_process(chapter, execute):
    run = execute(chapter("plain"), "-p", "n_item", "3")
    assert (run.code, run.out) == (2, "")
    assert run.err == (
        "refused: unknown parameter 'n_item', did you mean 'n_items'?; known: "
        "preset, seed, n_items, learning_rate, verbose, sizes, action\n"
    )


def files(folder):
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_a_refused_request_touches_nothing(chapter, execute):
    folder = chapter("plain")
    first = execute(folder)
    assert first.code == 0
    before = files(first.folder)
    (folder / "claims.yaml").write_text("[]")
    for arguments in ([], ["--preset", "reduced/"], ["--seed", "-1"], ["-p", "n_items", "1000"]):
        run = execute(folder, *arguments)
        assert (run.code, len(run.err.strip().splitlines())) == (2, 1)
        assert files(first.folder) == before
    nowhere = folder.parent / "elsewhere" / "plain"
    assert execute(nowhere).code == 2
    assert files(first.folder) == before and not nowhere.exists()


@pytest.mark.slow
def test_a_failed_run_keeps_the_earlier_good_one_aside(chapter, execute):
    folder = chapter("plain")
    good = execute(folder).record.read_bytes()
    notebook = (folder / "plain.ipynb").read_text()
    (folder / "plain.ipynb").write_text(notebook.replace('action: str = \\"none\\"', 'action: str = \\"raise\\"'))
    run = execute(folder)
    assert run.code == 1 and "kept in plain.before" in run.err
    assert not run.record.exists()
    assert (run.folder / "plain.before" / "plain.json").read_bytes() == good


@pytest.mark.slow
def test_a_second_execution_of_one_request_is_refused_in_one_line(chapter, tmp_path):
    folder, out = chapter("plain"), tmp_path / "runs"
    process, status, below = _start_sleeping(folder, out)
    before = status.read_bytes()
    words = pair_up(["run", str(folder / "plain.ipynb"), "--out", str(out), "-p", "action", "sleep"])
    called = CliRunner().invoke(app, words)
    assert called.exit_code == 2
    assert f"is being executed by process {process.pid}" in called.stderr
    assert len(called.stderr.strip().splitlines()) == 1
    assert status.read_bytes() == before and process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    assert _gone(below)


ODD = "my papers R&D it's a$HOME ünï"


@pytest.mark.slow
def test_odd_folder_names_and_a_latin_1_locale(chapter, execute, tmp_path):
    folder = tmp_path / ODD / "plain"
    folder.parent.mkdir()
    chapter("plain").rename(folder)
    environment = {"LC_ALL": "en_US.ISO-8859-1", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    run = execute(folder, environment=environment)
    assert run.code == 0, run.err


@pytest.mark.slow
def test_relative_folders_umask_and_no_home(chapter, tmp_path):
    folder = chapter("quick")
    environment = {k: v for k, v in os.environ.items() if k != "HOME" and not k.startswith("REPRODUCTIONS_")}
    environment |= {"REPRODUCTIONS_RUNS": "my runs", "REPRODUCTIONS_DATA": "cache"}
    command = [sys.executable, "-m", "helpers.engine.cli", "run", str(folder / "quick.ipynb")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, umask=0o027, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = tmp_path / "my runs" / "reduced" / "seed-0" / "quick" / "quick.json"
    assert record.stat().st_mode & 0o777 == 0o640
    assert not list(folder.glob("my runs"))


def test_a_folder_that_cannot_be_written_is_one_clear_line(chapter, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    called = CliRunner().invoke(app, ["run", str(chapter("plain") / "plain.ipynb"), "--out", str(tmp_path / "file")])
    assert called.exit_code == 1
    assert "cannot write the run's files: Not a directory" in called.stderr
    assert len(called.stderr.strip().splitlines()) == 1
