"""A training step of ARCI: the chapter's stacked, loop-free network against one patient after the other, in one run.

    python benchmarks/arci_attention.py

The loop sends every patient of every training through the same layers by itself and adds up the losses, as one would
write it without masks. Both end at the same gradients (asserted). Rounds are interleaved, so that a busy machine slows
both alike.
"""

import json
import platform
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from lift import lift  # noqa: E402

NOTEBOOK = "notebooks/arci/arci.ipynb"
NAMES = ("ARCI", "build", "make_world", "generate", "loss_of")
RUNS, BATCH, ROUNDS, DIM = 3, 64, 3, 32


def gradients(net, losses) -> list[torch.Tensor]:
    """Gradients of the sum of losses."""
    net.zero_grad()
    for loss in losses:
        loss.backward()
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


def main() -> None:
    """Measure both ways on both tasks and write the ratios."""
    torch.set_num_threads(1)
    nb = lift(NOTEBOOK, NAMES, {"run": SimpleNamespace(device=torch.device("cpu")), "batch_size": BATCH})
    world = nb.make_world(np.random.default_rng(0))
    visits = torch.as_tensor(nb.generate(np.random.default_rng(1), 120, world).visits)
    cases = {}
    for task in ("new drugs", "all drugs"):
        data = nb.build(visits, task == "new drugs")
        net = nb.ARCI(RUNS, torch.Generator().manual_seed(0), data.y.shape[1], DIM, dropout=0.0)
        rows = torch.as_tensor(np.random.default_rng(2).permutation(len(data.y))[: RUNS * BATCH]).view(RUNS, BATCH)
        singles = [nb.ARCI(1, torch.Generator(), data.y.shape[1], DIM, dropout=0.0) for _ in range(RUNS)]
        for r, single in enumerate(singles):
            single.load_state_dict({name: value[r : r + 1] for name, value in net.state_dict().items()})

        def stacked(net=net, data=data, rows=rows):
            return gradients(net, [nb.loss_of(net, data.batch(rows), data.y[rows], 0.2)])

        def loop(singles=singles, data=data, rows=rows):
            found = []
            for single, own in zip(singles, rows, strict=True):
                one = (row.view(1, 1) for row in own)
                losses = (nb.loss_of(single, data.batch(r), data.y[r], 0.2) / BATCH for r in one)
                found.append(gradients(single, losses))
            return [torch.cat(parts) for parts in zip(*found, strict=True)]

        for a, b in zip(stacked(), loop(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)
        times: dict[str, list[float]] = {"stacked": [], "loop": []}
        for _ in range(ROUNDS):
            for name, way in (("stacked", stacked), ("loop", loop)):
                start = time.perf_counter()
                way()
                times[name].append(time.perf_counter() - start)
        best = {name: min(values) for name, values in times.items()}
        ratios = [b / a for a, b in zip(times["stacked"], times["loop"], strict=True)]
        cases[task] = {f"{name}_ms_per_step": round(1e3 * value, 1) for name, value in best.items()}
        cases[task]["loop / stacked"] = round(statistics.median(ratios), 2)
    setting = {"runs": RUNS, "batch": BATCH, "rounds": ROUNDS, "dim": DIM, "threads": 1}
    setting |= {"torch": torch.__version__, "machine": platform.machine()}
    result = {"topic": "arci_attention", "setting": setting, "cases": cases}
    target = ROOT / "benchmarks" / "results" / "arci_attention.json"
    target.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(cases, indent=1))


if __name__ == "__main__":
    main()
