"""The workflows of `.github`: what they ask for is there, and their one script publishes a book."""

import importlib.util
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from helpers.engine.cli import app

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".github" / "workflows"
STEPS = [
    (path.stem, step)
    for path in sorted(FOLDER.glob("*.yml"))
    for job in yaml.safe_load(path.read_text())["jobs"].values()
    for step in job["steps"]
]
RUNS = [(name, step["run"]) for name, step in STEPS if "run" in step]


def unknown(line: str) -> list[str]:
    """What a command of a workflow asks for and the checkout has not."""
    words = shlex.split(line, comments=True)
    lost = [word for word in words if word.endswith((".lock", ".yml")) and not (ROOT / word).is_file()]
    if words[:1] == ["make"]:
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        lost += [target for target in words[1:] if target not in targets]
    if Path(words[0]).name == "papers":
        known = [one.name or one.callback.__name__.removesuffix("_command") for one in app.registered_commands]
        lost += [words[1]] if words[1] not in known else []
    if "-m" in words and Path(words[0]).name.startswith("python"):
        lost += [] if importlib.util.find_spec(words[words.index("-m") + 1]) else [words[words.index("-m") + 1]]
    return lost + ([words[0]] if words[0].startswith(".ci/") and not (ROOT / words[0]).is_file() else [])


@pytest.mark.parametrize(("name", "script"), RUNS)
def test_what_a_step_runs_is_there(name, script):
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    assert "\n" in script or not unknown(script), name  # the one longer script runs below


def test_what_is_not_there_is_noticed():
    wrong = ["make bok", "papers bake", ".ci/walk", "python -m tests.lost", "pip install -r lost.lock"]
    assert [unknown(line) for line in wrong] == [["bok"], ["bake"], [".ci/walk"], ["tests.lost"], ["lost.lock"]]


def git(folder: Path, *words: str) -> str:
    names = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    return subprocess.run(["git", *names, *words], cwd=folder, check=True, capture_output=True, text=True).stdout


def test_the_published_branch_holds_the_book_of_the_night_alone(tmp_path):
    """The script that publishes, run against a repository of this machine: twice, and the second book replaces all."""
    [script] = [step["run"] for name, step in STEPS if name == "pages" and "run" in step]
    hub = tmp_path / "hub.git"
    git(tmp_path, "init", "-q", "--bare", "-b", "main", str(hub))
    for night, pages in (("first", ["index.html", "old.html"]), ("second", ["index.html", "_static/book.css"])):
        work = tmp_path / night / "work"
        work.mkdir(parents=True)
        git(work, "init", "-q", "-b", "main")
        git(work, "remote", "add", "origin", str(hub))
        for page in pages:
            place = work / "book-of-the-night" / page
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(night)
        given = {"GITHUB_WORKSPACE": str(work), "GITHUB_ACTOR": "a", "MADE_FROM": f"the {night}"}
        subprocess.run(["bash", "-e", "-c", script], cwd=work, check=True, env={**given, "PATH": "/usr/bin:/bin"})
    listed = git(hub, "ls-tree", "-r", "--name-only", "gh-pages").split()
    assert listed == [".nojekyll", "_static/book.css", "index.html"]
    assert git(hub, "log", "--format=%s", "gh-pages").splitlines() == ["The book of the second"]
    assert git(hub, "show", "gh-pages:index.html") == "second"
