# execute -> verify -> render.
#
#   snakemake                                                   the reduced preset, seed 0, two at a time
#   snakemake -c2 --config preset=public seeds=0,1,2            another preset, several seeds (the book shows the first)
#   snakemake --config papers=rm_bench,llmael                   some chapters only
#   snakemake --workflow-profile profiles/slurm --config preset=full
#
# A chapter's run depends on its notebook, its YAML files (data.yaml holds the hashes of its data), helpers, and the
# locks. A failed run leaves its partial notebook and status.json, stops no other run, and is the only one that the next
# call executes again; the book is rendered all the same and shows that page as failed.

import json
import subprocess
import sys
from pathlib import Path

import yaml

PRESET = str(config.get("preset", "reduced"))
SEEDS = [int(seed) for seed in str(config.get("seeds", 0)).split(",")]
FOLDERS = sorted(path.parent for path in Path("notebooks").glob("*/presets.yaml"))
KNOWN = [folder.name for folder in FOLDERS if (folder / f"{folder.name}.ipynb").exists()]
PAPERS = str(config["papers"]).split(",") if "papers" in config else KNOWN
RUNS = str(config.get("runs", "runs"))
BOOK = f"_build/{PRESET}/html"
RENDER = [sys.executable, "book/build.py", "--runs", f"{RUNS}/{PRESET}/seed-{SEEDS[0]}", "--out", BOOK]
PACKAGE = sorted(str(path) for path in [*Path("helpers").glob("*.py"), *Path().glob("requirements*.lock")])
PAGES = [path for folder in ("book", "results") for path in Path(folder).rglob("*") if path.suffix != ".pyc"]
PAGES += [*Path().glob("_*.yml"), *Path("notebooks").glob("*/references.bib"), *Path().glob("CHANGELOG.md")]

if unknown := sorted(set(PAPERS) - set(KNOWN)):
    raise WorkflowError(f"unknown chapter: {', '.join(unknown)}; known: {', '.join(KNOWN)}")


def chapter_files(wildcards):
    """What stands beside the notebook; a chapter need not have all of it."""
    names = ("presets.yaml", "claims.yaml", "expected.yaml", "data.yaml")
    paths = [Path("notebooks") / wildcards.paper / name for name in names]
    return [str(path) for path in paths if path.exists()]


def budget(wildcards):
    """The chapter's budget; helpers.execute complains about a wrong one."""
    try:
        budgets = yaml.safe_load(Path(f"notebooks/{wildcards.paper}/presets.yaml").read_text())["budgets"]
        return {"wall_s": float(budgets[wildcards.preset]["wall_s"]), "gb": float(budgets[wildcards.preset]["memory_gb"])}
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return {"wall_s": 600.0, "gb": 4.0}


def failures():
    """One line for every run that has no verified record."""
    for seed in SEEDS:
        for paper in PAPERS:
            run = Path(RUNS, PRESET, f"seed-{seed}", paper, paper)
            record, verified = run.with_suffix(".json"), run.with_suffix(".verified")
            try:
                status = json.loads(run.with_suffix(".status.json").read_text())
            except (OSError, ValueError):
                yield f"{paper} (seed {seed}): was not executed"
                continue
            if status["status"] != "ok":
                cell = status["last_cell"]
                where = f" in cell {cell['index']} ({cell['id']})" if cell else ""
                error = status["error"]
                yield f"{paper} (seed {seed}): {status['status']}{where}: {error['type']}: {error['message']}"
            elif not record.exists():
                yield f"{paper} (seed {seed}): its record is gone"
            elif not verified.exists() or verified.stat().st_mtime < record.stat().st_mtime:
                yield f"{paper} (seed {seed}): not verified"


wildcard_constraints:
    preset="[^/]+",
    seed="[0-9]+",
    paper="[^/]+",


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
        notebook="notebooks/{paper}/{paper}.ipynb",
    output:
        "{runs}/{preset}/seed-{seed}/{paper}/{paper}.json",
    threads: 1
    resources:
        mem_mb=lambda wildcards: int(budget(wildcards)["gb"] * 1000),
        runtime=lambda wildcards: int(budget(wildcards)["wall_s"] / 60) + 2,
        gpu=lambda wildcards: int(wildcards.preset == "full"),
    params:
        python=sys.executable,
    shell:
        "{params.python:q} -m helpers.execute {input.notebook:q} --preset {wildcards.preset} --seed {wildcards.seed}"
        " --out {wildcards.runs:q}"


rule verify:
    input:
        "{run}/{paper}/{paper}.json",
    output:
        touch("{run}/{paper}/{paper}.verified"),
    params:
        python=sys.executable,
    shell:
        "{params.python:q} -m helpers.verify check {input:q}"


rule book:
    input:
        expand(f"{RUNS}/{PRESET}/seed-{{seed}}/{{paper}}/{{paper}}.verified", seed=SEEDS, paper=PAPERS),
        [str(path) for path in PAGES if path.is_file()],
    output:
        touch(f"{BOOK}.rendered"),
    params:
        command=subprocess.list2cmdline(RENDER),
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
