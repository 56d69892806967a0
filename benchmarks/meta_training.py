"""Meta-training of many small networks: the chapter's stacked `train` against a plain loop, side by side in one run.

    python benchmarks/meta_training.py

The loop trains one network after the other with `torch.autograd.grad` and copies of all weights in the inner step, as
tutorials do it. `stacked` is the chapter's: `vmap` over runs, inner steps in the space of the batch. `stacked, plain
inner loop` keeps the `vmap` and drops the shortcut, which tells apart what each of the two brings. All three see the
same batches and end at the same weights (asserted). Rounds are interleaved, so that a busy machine slows all alike.
"""

import json
import platform
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from lift import lift  # noqa: E402

NOTEBOOK = "notebooks/gene_meta_learning/gene_meta_learning.ipynb"
RUNS, STEPS, ROUNDS, GENES, HIDDEN = 25, 6, 3, 695, 32
CASES = {
    "joint": (0, False),
    "FOMAML": (1, False),
    "MAML": (1, True),
    "FOMAML, 5 steps": (5, False),
    "MAML, 5 steps": (5, True),
}


def plain_loop(nb, start, target, sources, rule, settings, seed) -> dict[str, Tensor]:
    """Train every run by itself, with autograd and copies of the weights; weights (runs, ...)."""
    target_rng, source_rng = np.random.default_rng(seed).spawn(2)
    runs = len(target[1])
    plan = list(
        nb.batches(target[1].shape[1], settings.batch_size, settings.epochs, settings.max_steps, runs, target_rng)
    )
    drawn = [[source_rng.random(y.shape).argsort(1)[:, : settings.batch_size] for _, y in sources] for _ in plan]
    finished = []
    for r in range(runs):
        net = nb.MLP(GENES, HIDDEN)
        net.load_state_dict({name: value[r] for name, value in start.items()})
        adam = torch.optim.Adam(net.parameters(), lr=settings.learning_rate)
        for rows, source_rows in zip(plan, drawn, strict=True):
            own = torch.as_tensor(rows[r])
            loss = rule.alpha * F.binary_cross_entropy_with_logits(net(target[0][r][own]), target[1][r][own])
            for (x, y), picked in zip(sources, source_rows, strict=True):
                xs, ys = x[r][torch.as_tensor(picked[r])], y[r][torch.as_tensor(picked[r])]
                weights = dict(net.named_parameters())
                for _ in range(rule.steps):
                    inner = F.binary_cross_entropy_with_logits(functional_call(net, weights, (xs,)), ys)
                    g = torch.autograd.grad(inner, list(weights.values()), create_graph=rule.second_order)
                    weights = {k: w - rule.eta * d for (k, w), d in zip(weights.items(), g, strict=True)}
                source = F.binary_cross_entropy_with_logits(functional_call(net, weights, (xs,)), ys)
                loss = loss + (1 - rule.alpha) * source
            adam.zero_grad()
            loss.backward()
            adam.step()
        finished.append({name: value.detach() for name, value in net.named_parameters()})
    return {name: torch.stack([f[name] for f in finished]) for name in start}


def main() -> None:
    """Time the three variants for every case, print the table and write it."""
    torch.set_num_threads(1)
    names = ["MLP", "Rule", "Settings", "batches", "take", "fresh", "train", "plain_outer_loss", "outer_loss"]
    nb = lift(NOTEBOOK, names)
    short = lift(NOTEBOOK, names, {"outer_loss": nb.plain_outer_loss})
    rng = np.random.default_rng(0)
    put = lambda *shape: torch.as_tensor(rng.normal(size=shape).astype(np.float32))  # noqa: E731
    labels = lambda n: torch.as_tensor((rng.random((RUNS, n)) < 0.5).astype(np.float32))  # noqa: E731
    target, sources = (put(RUNS, 64, GENES), labels(64)), [(put(RUNS, 100, GENES), labels(100)) for _ in range(3)]
    start = nb.fresh(partial(nb.MLP, GENES, HIDDEN), RUNS, torch.Generator().manual_seed(0), "cpu")
    settings = nb.Settings(HIDDEN, 32, 1000, STEPS, 4e-4)
    table = {}
    for case, (steps, second_order) in CASES.items():
        rule = nb.Rule(steps, 0.01, second_order)
        variants = {
            "stacked": lambda r=rule: nb.train(
                nb.MLP(GENES, HIDDEN), start, target, sources, r, settings, np.random.default_rng(1)
            ),
            "stacked, plain inner loop": lambda r=rule: short.train(
                nb.MLP(GENES, HIDDEN), start, target, sources, r, settings, np.random.default_rng(1)
            ),
            "loop": lambda r=rule: plain_loop(nb, start, target, sources, r, settings, 1),
        }
        ends = {name: run() for name, run in variants.items()}  # also the warm-up
        for (
            name
        ) in variants:  # Adam's first steps have full length even where a gradient is nearly 0, so the mean counts
            gap = max(float((ends[name][key] - value).abs().mean()) for key, value in ends["loop"].items())
            assert gap < 2e-5, (case, name, gap)
        times = {name: [] for name in variants}
        for _ in range(ROUNDS):
            for name, run in variants.items():
                began = time.perf_counter()
                run()
                times[name].append((time.perf_counter() - began) / (RUNS * STEPS) * 1e3)
        row = {f"{name}_ms_per_step": round(statistics.median(t), 3) for name, t in times.items()}
        for name in ("stacked", "stacked, plain inner loop"):
            row[f"loop / {name}"] = round(
                statistics.median(a / b for a, b in zip(times["loop"], times[name], strict=True)), 2
            )
        table[case] = row
        print(case, row, flush=True)
    setting = {
        "runs": RUNS,
        "steps": STEPS,
        "rounds": ROUNDS,
        "genes": GENES,
        "hidden": HIDDEN,
        "batch": 32,
        "threads": 1,
    }
    machine = {"torch": torch.__version__, "machine": platform.machine()}
    result = {"topic": "meta_training", "setting": setting | machine, "cases": table}
    (ROOT / "benchmarks" / "results" / "meta_training.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
