# execute -> verify -> render.
#
#   snakemake                                                   the reduced preset, seed 0, two at a time
#   snakemake -c2 --config preset=public seeds=0,1,2            another preset, several seeds (the book shows the first)
#   snakemake --config papers=rm_bench,llmael                   some chapters only
#   snakemake --workflow-profile profiles/slurm --config preset=full
#
# A notebook's run depends on the notebook, its chapter's YAML files (data.yaml holds the hashes of its data), helpers
# (not helpers/engine), and the locks. A failed run leaves its partial notebook and status.json, stops no other run, and
# is executed again by the next call; the book is rendered all the same and shows that page as failed.
# What Snakemake tracks are marks (`.done`, `.verified`), so that it never deletes a record: `papers run` owns those.

import shlex
import subprocess
import sys
from pathlib import Path

from helpers.engine.judge import chapters_of, judge
from helpers.engine.status import name_of
from helpers.record import PRESETS
from helpers.parameters import BadRequestError
from helpers.paths import notebooks_of
from helpers.request import load_presets
from helpers.verify import expected_name

SETTINGS = ("preset", "seeds", "papers", "runs")
if unknown := sorted(set(config) - set(SETTINGS)):
    raise WorkflowError(f"unknown --config key: {', '.join(unknown)}; known: {', '.join(SETTINGS)}")

PRESET = str(config.get("preset", "reduced"))
if PRESET not in PRESETS:
    raise WorkflowError(f"unknown preset {PRESET!r}; known: {', '.join(PRESETS)}")
SEEDS = str(config.get("seeds", 0)).split(",")
if not all(seed.isdecimal() for seed in SEEDS):
    raise WorkflowError(f"seeds={config['seeds']}: whole numbers from 0 on are needed, separated by commas")
SEEDS = [int(seed) for seed in SEEDS]
CHAPTERS = {folder.name: folder for folder in chapters_of(Path("notebooks")) if (folder / "presets.yaml").exists()}
PAPERS = str(config["papers"]).split(",") if "papers" in config else list(CHAPTERS)
if unknown := sorted(set(PAPERS) - set(CHAPTERS)):
    raise WorkflowError(f"unknown chapter: {', '.join(unknown)}; known: {', '.join(CHAPTERS)}")

NOTEBOOKS = [path for paper in PAPERS for path in notebooks_of(CHAPTERS[paper])]
RUNS = str(config.get("runs", "runs"))
BOOK = f"_build/{PRESET}/html"
PAPERS_COMMAND = [sys.executable, "-m", "helpers.engine.cli"]
RENDER = [*PAPERS_COMMAND, "book", "--runs", f"{RUNS}/{PRESET}/seed-{SEEDS[0]}", "--out", BOOK]
PACKAGE = sorted(str(path) for path in [*Path("helpers").glob("*.py"), *Path().glob("requirements*.lock")])
PAGES = [path for folder in ("book", "results", "helpers/engine") for path in Path(folder).rglob("*")]
PAGES += [*Path().glob("_*.yml"), *Path("notebooks").glob("*/references.bib"), *Path().glob("CHANGELOG.md")]
PAGES += Path("notebooks").glob("*/guide.yaml")


def run_of(notebook, seed):
    """The files of a notebook's run, without their suffix."""
    return Path(RUNS, PRESET, f"seed-{seed}", notebook.parent.name, notebook.stem)


def chapter_files(wildcards):
    """What stands beside the notebook; a chapter need not have all of it."""
    names = ["presets.yaml", "claims.yaml", "data.yaml", expected_name(wildcards.paper, wildcards.notebook)]
    paths = [Path("notebooks") / wildcards.paper / name for name in names]
    return [str(path) for path in paths if path.exists()]


def budget(wildcards):
    """The notebook's budget; `papers run` complains about a wrong one."""
    try:
        found = load_presets(Path("notebooks", wildcards.paper, f"{wildcards.notebook}.ipynb")).budgets[PRESET]
        return {"wall_s": found.wall_s, "gb": found.memory_gb}
    except (BadRequestError, KeyError):
        return {"wall_s": 600.0, "gb": 4.0}



def failures():
    """One line for every run that has no verified record."""
    for seed in SEEDS:
        for notebook in NOTEBOOKS:
            run = run_of(notebook, seed)
            name = f"{name_of(notebook.parent.name, notebook.stem)} (seed {seed})"
            judgement = judge(notebook, run)
            try:
                load_presets(notebook)
            except ValueError as error:
                yield f"{name}: refused: {error}"
                continue
            if judgement.status != "ok":
                yield f"{name}: {judgement.status}: {judgement.message}"
            elif not run.with_suffix(".done").exists():
                yield f"{name}: was not executed"
            elif not run.with_suffix(".verified").exists():
                yield f"{name}: not verified"


# A mark whose run cannot be believed (deleted, damaged, half-written) is a lie; without it the run is executed again.
for _seed in SEEDS:
    for _notebook in NOTEBOOKS:
        if (_mark := run_of(_notebook, _seed).with_suffix(".done")).exists():
            if judge(_notebook, run_of(_notebook, _seed)).status not in ("ok", "stale", "refused"):
                _mark.unlink()
                _mark.with_suffix(".verified").unlink(missing_ok=True)  # a missing mark alone would not be asked for


wildcard_constraints:
    preset="[a-z]+",
    seed="[0-9]+",
    paper="[A-Za-z0-9_]+",
    notebook="[A-Za-z0-9_]+",


localrules:
    all,
    verify,
    book,


rule all:
    input:
        f"{BOOK}.rendered",


rule execute:
    input:
        chapter_files,
        PACKAGE,
        notebook="notebooks/{paper}/{notebook}.ipynb",
    output:
        touch("{runs}/{preset}/seed-{seed}/{paper}/{notebook}.done"),
    threads: 1
    resources:
        mem_mb=lambda wildcards: int(budget(wildcards)["gb"] * 1000),
        runtime=lambda wildcards: int(budget(wildcards)["wall_s"] / 60) + 2,
        gpu=lambda wildcards: int(wildcards.preset in ("gpu", "full")),
    params:
        papers=PAPERS_COMMAND,
    shell:
        "{params.papers:q} run {input.notebook:q} --preset {wildcards.preset:q} --seed {wildcards.seed:q}"
        " --out {wildcards.runs:q}"


rule verify:
    input:
        "{run}/{notebook}.done",
    output:
        touch("{run}/{notebook}.verified"),
    params:
        papers=PAPERS_COMMAND,
        record=lambda wildcards: f"{wildcards.run}/{wildcards.notebook}.json",
    shell:
        "{params.papers:q} check {params.record:q}"


rule book:
    input:
        [str(run_of(notebook, seed).with_suffix(".verified")) for seed in SEEDS for notebook in NOTEBOOKS],
        [str(path) for path in PAGES if path.is_file() and "__pycache__" not in path.parts],
    output:
        touch(f"{BOOK}.rendered"),
    params:
        command=shlex.join(RENDER),
    shell:
        "{params.command}"


onerror:
    failed = list(failures())
    Path(f"{BOOK}.rendered").unlink(missing_ok=True)
    if any(Path(RUNS, PRESET).glob("*/*/*.status.json")):
        subprocess.run(RENDER)
    print(f"{len(failed)} run(s) failed:" if failed else "failed; see above", file=sys.stderr)
    for line in failed:
        print(f"  {line}", file=sys.stderr)
