"""A batch against calling papermill directly, and two cores against one, on the same reduced runs.

Both sides execute the same notebooks with the same parameters on one thread. The batch's side is `snakemake -c1`, from
an empty folder to the rendered book: checks, budgets, records, verification, rendering. The direct side calls papermill
once for each notebook and renders nothing. Bars: the batch takes at most 1.0 times as long as the direct calls, and two
cores are at least 1.8 times as fast as one. --order names the parts and their order; the machine should be quiet, for
the two cores above all.

    python -m benchmarks.batch_overhead                                   # the whole book, both questions
    python -m benchmarks.batch_overhead --order direct,1 rm_bench seakr   # two chapters, what a batch costs
    python -m benchmarks.batch_overhead --order 2,1                       # what a second core brings

Writes `benchmarks/results/batch_overhead.json`, or `batch_cores.json` where nothing is called directly.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from helpers.engine.judge import notebooks_by_name
from helpers.engine.plan import Run

ROOT = Path(__file__).resolve().parents[1]
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS", "NUMEXPR")}
RENDERED = ("--runs", "runs/reduced/seed-0", "--out", "_build/reduced/html")
DIRECT = "import papermill, sys; papermill.execute_notebook(*sys.argv[1:3], cwd=sys.argv[3], progress_bar=False)"


def copy_of_checkout(folder: Path) -> Path:
    """The tracked files, as they lie here."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def timed(command: list[str], checkout: Path, **more: str) -> dict[str, float]:
    """Seconds of one command in a checkout, by the clock and of processor time (its own and of all below it).

    Raises:
        RuntimeError: it failed; the message has its last lines.
    """
    variables = {k: v for k, v in os.environ.items() if k not in ("REPRODUCTIONS_RUNS", "PYTHONDONTWRITEBYTECODE")}
    variables |= ONE_THREAD | {"PYTHONPATH": str(checkout)} | more
    before = os.times()
    done = subprocess.run(command, cwd=checkout, env=variables, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError("\n".join((done.stdout + done.stderr).splitlines()[-20:]))
    after = os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return {"wall_s": after.elapsed - before.elapsed, "processor_s": processor}


def direct(checkout: Path, names: list[str]) -> dict[str, dict[str, float]]:
    """Seconds of papermill alone, by notebook."""
    found, paths = {}, notebooks_by_name(checkout / "notebooks")
    with tempfile.TemporaryDirectory() as out:
        for name in names:
            target = Path(out, f"{name.replace('/', '-')}.ipynb")
            command = [sys.executable, "-c", DIRECT, str(paths[name]), str(target), str(paths[name].parent)]
            found[name] = timed(command, checkout, REPRODUCTIONS_RUNS=out)
    return found


def batch(checkout: Path, names: list[str], cores: int) -> dict[str, float]:
    """Seconds of a batch from an empty folder to the rendered book; pages whose notebook is not named say "not run"."""
    for name in ("runs", "_build", ".snakemake"):
        shutil.rmtree(checkout / name, ignore_errors=True)
    paths = notebooks_by_name(checkout / "notebooks")
    places = [Run(paths[name], "reduced", 0).place(Path("runs")) for name in names]
    run = timed([sys.executable, "-m", "snakemake", f"-c{cores}", *(f"{place}.done" for place in places)], checkout)
    book = timed([sys.executable, "-m", "helpers.engine.cli", "book", *RENDERED, "--jobs", str(cores)], checkout)
    return {key: run[key] + book[key] for key in run}


def measure(names: list[str], order: list[str]) -> dict[str, Any]:
    """Measure the parts in their order, and put them in relation."""
    with tempfile.TemporaryDirectory() as folder:
        checkout = copy_of_checkout(Path(folder))
        parts, by_name, load = {}, {}, {}
        for part in order:
            if part == "direct":
                by_name = direct(checkout, names)
                parts[part] = {key: sum(one[key] for one in by_name.values()) for key in ("wall_s", "processor_s")}
            else:
                parts[part] = batch(checkout, names, int(part))
            load[part] = os.getloadavg()[0]
            said = ", ".join(f"{key} {value:.1f}" for key, value in parts[part].items())
            print(f"{part}: {said}, load {load[part]:.1f}", flush=True)
    result = {"notebooks": names, "seconds": parts, "direct_by_notebook": by_name, "load": load}
    for key in ("wall_s", "processor_s") if "direct" in parts else ():
        result[f"batch_over_direct_{key}"] = parts["1"][key] / parts["direct"][key]
    return result | ({"two_cores": parts["1"]["wall_s"] / parts["2"]["wall_s"]} if "2" in parts else {})


def main() -> None:
    """Measure, print and write."""
    known = notebooks_by_name(ROOT / "notebooks")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="<paper> (all its notebooks) or <paper>/<notebook>; default: all")
    parser.add_argument("--order", default="direct,1,2", help="parts in their order: 1 and direct, 2 or both")
    options = parser.parse_args()
    order = options.order.split(",")
    papers = {path.parent.name: [n for n, p in known.items() if p.parent == path.parent] for path in known.values()}
    if unknown := [name for name in options.names if name not in known and name not in papers]:
        parser.error(f"no notebook {', '.join(unknown)}; known: {', '.join(known)}")
    if "1" not in order or len(order) < 2 or len(set(order)) < len(order) or set(order) - {"1", "2", "direct"}:
        parser.error(f"--order {options.order}: 1 is needed, and direct, 2 or both, each once")
    names = [one for name in options.names for one in papers.get(name, [name])] or list(known)
    result = measure(names, order)
    out = ROOT / "benchmarks" / "results" / ("batch_overhead.json" if "direct" in order else "batch_cores.json")
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: round(value, 2) for key, value in result.items() if isinstance(value, float)}))
    print("bars: batch_over_direct_wall_s at most 1.0, two_cores at least 1.8")


if __name__ == "__main__":
    main()
