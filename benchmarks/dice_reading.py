"""States at the last token of benchmark prompts: batches sorted by length against one prompt at a time, in one process.

    python benchmarks/dice_reading.py [--questions 1319] [--device cpu]

Two ways to the same states, on the same prompts:

- one: as the release does it, one prompt at a time through the whole model, logits of every position;
- packed: the chapter's `read`, sorted by length, filled up to a token budget, no logits.

Beside them the products alone: all weights of the blocks times as many random rows as the prompts have tokens. No way
to the same states, in the same precision, can be faster than that, so the time of `one` over it bounds the ratio.

The prompts are those of the released GSM8K test set where it is in the cache, else those that a package ships. Writes
`benchmarks/results/dice_reading.json` with seconds, tokens, the ratio and the largest difference of the states.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from lift import lift  # noqa: E402

from helpers.data import DataUnavailableError, fetch  # noqa: E402
from helpers.models import LanguageModel, load_lm  # noqa: E402

Row = tuple[list[int], list[int]]
NAMES = ["read", "encode", "packaged_items", "released_items"]


@torch.inference_mode()
def one_by_one(lm: LanguageModel, rows: list[Row]) -> Tensor:
    """States (n, L + 1, d) at the last token, one prompt at a time."""
    kept = []
    for ids, _ in rows:
        out = lm.model(torch.tensor([ids], device=lm.device), output_hidden_states=True)
        kept.append(torch.stack([h[0, -1] for h in out.hidden_states]).float().cpu())
    return torch.stack(kept)


@torch.inference_mode()
def products(lm: LanguageModel, tokens: int, rows: int = 1024) -> None:
    """Multiply the weights of all blocks with so many random rows, in chunks; all that is left out is not a product."""
    layers = [one for one in lm.model.base_model.modules() if isinstance(one, torch.nn.Linear)]
    inputs = {one.in_features: torch.randn(rows, one.in_features, device=lm.device) for one in layers}
    for start in range(0, tokens, rows):
        for one in layers:
            one(inputs[one.in_features][: min(rows, tokens - start)])


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=1319)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    lm = load_lm("smollm2-135m-instruct", device=asked.device)
    budget = 1024 if asked.device == "cpu" else 32768
    run = argparse.Namespace(data=fetch, device=asked.device)
    given = {"lm": lm, "run": run, "token_budget": budget, "pairs": []}  # `pairs` is a local of what is lifted
    nb = lift("notebooks/dice/dice.ipynb", NAMES, given)
    try:
        items, source = nb.released_items(), "GSM8K test set"
    except DataUnavailableError:
        items, source = nb.packaged_items(), "packaged questions"
    rows = [(nb.encode(*item)[0], []) for item in items[: asked.questions]]
    seconds, states = {}, {}
    for name, read in (("one", lambda: one_by_one(lm, rows)), ("packed", lambda: nb.read(rows)[0])):
        start = time.perf_counter()
        states[name] = read()
        seconds[name] = round(time.perf_counter() - start, 2)
    start = time.perf_counter()
    products(lm, sum(len(ids) for ids, _ in rows))
    seconds["products"] = round(time.perf_counter() - start, 2)
    result = {
        "model": f"{lm.name}, float32, {asked.device}, one thread",
        "prompts": f"{len(rows)} of {source}, {sum(len(ids) for ids, _ in rows)} tokens",
        "seconds": seconds,
        "one over packed": round(seconds["one"] / seconds["packed"], 2),
        "one over products": round(seconds["one"] / seconds["products"], 2),
        "largest difference": (states["one"] - states["packed"]).abs().max().item(),
        "largest state": states["one"].abs().max().item(),
    }
    print(json.dumps(result, indent=1))
    Path(__file__).with_name("results").joinpath("dice_reading.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
