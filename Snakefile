# execute -> verify -> render. A run verifies itself: `run.finish()` compares with expected.yaml before it writes a record.
#
#   snakemake                                                   the reduced preset, seed 0, two at a time
#   snakemake -c2 --config preset=public seeds=0-2              another preset, several seeds (the book shows the first)
#   snakemake --config papers=rm_bench,llmael                   some chapters only
#   snakemake --config sweep=rm_bench                           a grid of sweeps/rm_bench.yaml, and its table
#   snakemake --workflow-profile profiles/slurm --config preset=full
#
# A notebook's run depends on the notebook, its chapter's YAML files (data.yaml holds the hashes of its data), helpers
# (not helpers/engine), and the locks. A failed run leaves its partial notebook and status.json, stops no other run, and
# is executed again by the next call; the book is rendered all the same and shows that page as failed.
# What Snakemake tracks are marks (`.done`), so that it never deletes a record: `papers run` owns those.
# With --wait it takes the good run of an orphan whose Snakemake was killed, so nothing is computed twice.

import shlex
import subprocess
import sys
from pathlib import Path

from helpers.engine.judge import chapters_of, judge
from helpers.engine.plan import Run, failures, seconds_of, seeds_of
from helpers.engine.sweep import plan
from helpers.record import PRESETS
from helpers.parameters import BadRequestError
from helpers.paths import notebooks_of
from helpers.request import load_presets
from helpers.verify import expected_name

SETTINGS = ("preset", "seeds", "papers", "sweep", "runs")
if unknown := sorted(set(config) - set(SETTINGS)):
    raise WorkflowError(f"unknown --config key: {', '.join(unknown)}; known: {', '.join(SETTINGS)}")
SWEEP = str(config.get("sweep", ""))
if both := sorted({"preset", "seeds", "papers"} & set(config) if SWEEP else ()):
    raise WorkflowError(f"sweep={SWEEP} names {', '.join(both)} in its file; leave it out here")
PRESET = str(config.get("preset", "reduced"))
if PRESET not in PRESETS:
    raise WorkflowError(f"unknown preset {PRESET!r}; known: {', '.join(PRESETS)}")
CHAPTERS = {folder.name: folder for folder in chapters_of(Path("notebooks")) if (folder / "presets.yaml").exists()}
PAPERS = str(config["papers"]).split(",") if "papers" in config else list(CHAPTERS)
if unknown := sorted(set(PAPERS) - set(CHAPTERS)):
    raise WorkflowError(f"unknown chapter: {', '.join(unknown)}; known: {', '.join(CHAPTERS)}")
OUT = Path(str(config.get("runs", "runs")))
try:
    SEEDS = seeds_of(config.get("seeds", 0))
    if SWEEP:
        BATCH = plan(SWEEP, Path())[1]
    else:
        BATCH = [Run(path, PRESET, seed) for seed in SEEDS for paper in PAPERS for path in notebooks_of(CHAPTERS[paper])]
except BadRequestError as error:
    raise WorkflowError(str(error))

BY_PLACE = {str(run.place(OUT)): run for run in BATCH}
BOOK = f"_build/{PRESET}/html"
GOAL = f"{OUT}/sweeps/{SWEEP}.csv" if SWEEP else f"{BOOK}.rendered"
PAPERS_COMMAND = [sys.executable, "-m", "helpers.engine.cli"]
RENDER = [*PAPERS_COMMAND, "book", "--runs", f"{OUT}/{PRESET}/seed-{SEEDS[0]}", "--out", BOOK]
COLLECT = [*PAPERS_COMMAND, "sweep", SWEEP, "--out", str(OUT), "--collect"]
PACKAGE = sorted(str(path) for path in [*Path("helpers").glob("*.py"), *Path().glob("requirements*.lock")])
PAGES = [path for folder in ("book", "results", "sweeps", "helpers/engine") for path in Path(folder).rglob("*")]
PAGES += [*Path().glob("_*.yml"), *Path("notebooks").glob("*/references.bib"), *Path().glob("CHANGELOG.md")]
PAGES += Path("notebooks").glob("*/guide.yaml")


def run_of(wildcards):
    """The run whose files lie at a place; one that the batch does not name is of a preset."""
    place = f"{wildcards.runs}/{wildcards.variant}/seed-{wildcards.seed}/{wildcards.paper}/{wildcards.notebook}"
    notebook = Path("notebooks", wildcards.paper, f"{wildcards.notebook}.ipynb")
    return BY_PLACE.get(place) or Run(notebook, wildcards.variant, int(wildcards.seed))


def chapter_files(wildcards):
    """What stands beside the notebook; a chapter need not have all of it."""
    names = ["presets.yaml", "claims.yaml", "data.yaml", expected_name(wildcards.paper, wildcards.notebook)]
    paths = [Path("notebooks") / wildcards.paper / name for name in names]
    return [str(path) for path in paths if path.exists()]


def budget(wildcards):
    """The notebook's budget; `papers run` complains about a wrong one."""
    run = run_of(wildcards)
    try:
        found = load_presets(run.notebook).budgets[run.preset]
        return {"wall_s": found.wall_s, "gb": found.memory_gb}
    except (BadRequestError, KeyError):
        return {"wall_s": 600.0, "gb": 4.0}


# A mark whose run cannot be believed (deleted, damaged, half-written) is a lie; without it the run is executed again.
# A mark that is missing would not be asked for while the goal is there, so the goal goes with it.
for _place, _run in BY_PLACE.items():
    _mark = Path(f"{_place}.done")
    if _mark.exists() and judge(_run.notebook, Path(_place)).status not in ("ok", "stale", "refused"):
        _mark.unlink()
    if not _mark.exists():
        Path(GOAL).unlink(missing_ok=True)


wildcard_constraints:
    variant="[^/]+",
    seed="[0-9]+",
    paper="[A-Za-z0-9_]+",
    notebook="[A-Za-z0-9_]+",


localrules:
    all,
    finish,


rule all:
    input:
        GOAL,


# One rule a notebook, because a rule has one priority: the longest start first, so that two cores end together.
for _notebook in dict.fromkeys(run.notebook for run in BATCH):

    rule:
        name:
            f"execute_{_notebook.parent.name}_{_notebook.stem}"
        input:
            chapter_files,
            PACKAGE,
            notebook=str(_notebook),
        output:
            touch(
                f"{{runs}}/{{variant}}/seed-{{seed}}/{{paper,{_notebook.parent.name}}}/{{notebook,{_notebook.stem}}}.done"
            ),
        threads: 1
        priority: 1 + int(seconds_of(_notebook, BATCH[0].preset, OUT))
        resources:
            mem_mb=lambda wildcards: int(budget(wildcards)["gb"] * 1000),
            runtime=lambda wildcards: int(budget(wildcards)["wall_s"] / 60) + 2,
            gpu=lambda wildcards: int(run_of(wildcards).preset in ("gpu", "full")),
        params:
            command=PAPERS_COMMAND,
            words=lambda wildcards: run_of(wildcards).words,
        shell:
            "{params.command:q} run {params.words:q} --out {wildcards.runs:q} --wait"


rule finish:
    input:
        [f"{place}.done" for place in BY_PLACE],
        f"sweeps/{SWEEP}.yaml" if SWEEP else [str(p) for p in PAGES if p.is_file() and "__pycache__" not in p.parts],
    output:
        GOAL if SWEEP else touch(GOAL),
    threads: 4
    params:
        command=lambda wildcards, threads: COLLECT if SWEEP else [*RENDER, "--jobs", str(threads)],
    shell:
        "{params.command:q}"


onstart:
    # A plugin for a cluster writes the path of this Python into the jobs' scripts without quotes.
    if not workflow.local_exec and any(map(str.isspace, sys.executable)):
        raise WorkflowError(
            f"jobs on a cluster cannot be started by {sys.executable}, because its path has a space; make a link, "
            f"ln -s {shlex.quote(sys.prefix)} ~/papers-env, and start with ~/papers-env/bin/python -m snakemake, "
            "or -m helpers.engine.cli sweep"
        )


onerror:
    failed = failures(BATCH, OUT)
    Path(GOAL).unlink(missing_ok=True)
    if not SWEEP and any(Path(OUT, PRESET).glob("*/*/*.status.json")):
        subprocess.run(RENDER)
    print(f"{len(failed)} run(s) failed:" if failed else "failed; see above", file=sys.stderr)
    for line in failed:
        print(f"  {line}", file=sys.stderr)
