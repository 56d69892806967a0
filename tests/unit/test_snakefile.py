"""The batch path on two real chapters: Snakemake, papermill, verification and the rendered book."""

import json
import os
from pathlib import Path

import pytest
from batch import make_checkout, snakemake

BREAKS = "\nfrom pathlib import Path\nassert not Path('broken').exists(), 'the coin is broken'"


@pytest.fixture
def checkout(tmp_path):
    """The real machinery and two quick chapters, in a folder with an odd name that must not matter.

    The chapter `tails` fails while a file `broken` lies beside it.
    """
    return make_checkout(tmp_path / "it's R&D, a$HOME ünï", BREAKS)


def status(checkout: Path, paper: str) -> dict:
    return json.loads((checkout / f"runs/reduced/seed-0/{paper}/{paper}.status.json").read_text())


def page(checkout: Path, paper: str) -> str:
    return (checkout / f"_build/reduced/html/notebooks/{paper}/{paper}.html").read_text()


@pytest.mark.slow
def test_batch_runs_what_changed_and_survives_a_failed_chapter(checkout):
    runs = checkout / "runs/reduced/seed-0"
    broken = checkout / "notebooks/tails/broken"

    # a chapter fails: the other is done, the book is rendered, the exit code and the list say what failed
    broken.touch()
    done = snakemake(checkout)
    assert done.returncode == 1, done.stderr
    failed = "1 run(s) failed:\n  tails (seed 0): error: cell 5 (toss): AssertionError: the coin is broken"
    assert failed in done.stderr
    first = status(checkout, "heads")
    assert first["status"] == "ok"
    assert json.loads((runs / "heads/heads.json").read_text())["complete"] is True
    assert status(checkout, "tails")["status"] == "error"
    assert not (runs / "tails/tails.json").exists()
    assert "the coin is broken" in (runs / "tails/tails.ipynb").read_text()
    assert "the coin is broken" in page(checkout, "tails")
    assert "verdict-reproduced" in page(checkout, "heads")
    assert "verdict-reproduced" not in page(checkout, "tails")

    # mended from outside: just the failed chapter is executed again
    broken.unlink()
    done = snakemake(checkout)
    assert done.returncode == 0, done.stderr
    second = status(checkout, "tails")
    assert second["status"] == "ok"
    assert status(checkout, "heads") == first
    assert "verdict-reproduced" in page(checkout, "tails")

    # unchanged: nothing is executed, nothing is rendered
    rendered = (checkout / "_build/reduced/html/index.html").stat().st_mtime_ns
    before = os.times()
    done = snakemake(checkout)
    assert done.returncode == 0, done.stderr
    assert "Nothing to be done" in done.stdout + done.stderr
    assert sum(os.times()[2:4]) - sum(before[2:4]) < 15, "seconds of processor time"
    assert (status(checkout, "heads"), status(checkout, "tails")) == (first, second)
    assert (checkout / "_build/reduced/html/index.html").stat().st_mtime_ns == rendered

    # touching one YAML executes that chapter and no other
    (checkout / "notebooks/heads/claims.yaml").touch()
    done = snakemake(checkout)
    assert done.returncode == 0, done.stderr
    assert status(checkout, "heads")["started"] > first["started"]
    assert status(checkout, "tails") == second

    # a claims file that is wrong is refused before a kernel starts: nothing is touched, and it is named
    claims = checkout / "notebooks/heads/claims.yaml"
    claims.write_text(claims.read_text().replace("direction: greater", "direction: upwards"))
    done = snakemake(checkout)
    assert done.returncode == 1, done.stderr
    assert "heads (seed 0): refused: claims.yaml: claim C1: direction" in done.stderr
    assert "verdict-reproduced" not in page(checkout, "heads")
    assert (runs / "heads/heads.json").exists()
    assert status(checkout, "tails") == second

    # what is damaged or gone is executed again, and nothing else
    claims.write_text(claims.read_text().replace("direction: upwards", "direction: greater"))
    (runs / "tails/tails.json").write_text("[1]")
    done = snakemake(checkout)
    assert done.returncode == 0, done.stderr
    assert json.loads((runs / "tails/tails.json").read_text())["complete"] is True
    assert status(checkout, "tails")["started"] > second["started"]


def test_unknown_chapter_is_named(checkout):
    done = snakemake(checkout, "--config", "papers=heds")
    assert done.returncode == 1
    assert "unknown chapter: heds; known: heads, tails" in done.stderr + done.stdout


def test_seeds_and_papers_are_chosen_by_config(checkout):
    done = snakemake(checkout, "--summary", "--config", "seeds=0-2", "papers=heads")
    marks = {line.split("\t")[0] for line in done.stdout.splitlines() if ".done" in line.split("\t")[0]}
    assert marks == {f"runs/reduced/seed-{seed}/heads/heads.done" for seed in (0, 1, 2)}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("preset=reduced; touch x", "unknown preset 'reduced; touch x'"),
        ("seeds=4-0", "seeds=4-0: whole numbers from 0 on are needed"),
        ("seeds=1,1", "seeds=1,1: a seed stands there twice"),
        ("seeds=0-99999999", "seeds=0-99999999: more than 10,000 seeds"),
        ("sweep=tosses", "no sweep 'tosses'; known: none"),
        ("seeds=-1", "seeds=-1: whole numbers from 0 on are needed"),
        ("bias=0.8", "unknown --config key: bias"),
    ],
)
def test_a_wrong_setting_is_named_and_nothing_is_executed(checkout, setting, message):
    done = snakemake(checkout, "--config", setting)
    assert done.returncode == 1
    assert message in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert not (checkout / "x").exists() and not (checkout / "runs").exists()
