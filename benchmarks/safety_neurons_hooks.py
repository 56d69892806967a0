"""What recording and patching neurons cost: ratios to plain passes and to other tools, measured side by side.

    python benchmarks/safety_neurons_hooks.py

Every variant runs in its own process for its peak memory; times are the best of several interleaved rounds in one
process. Other tools (nnsight, TransformerLens) are measured where they are installed and reported as absent otherwise.
"""

import json
import resource
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from lift import lift  # noqa: E402

from helpers.models import load_lm  # noqa: E402

NOTEBOOK = "notebooks/safety_neurons/safety_neurons.ipynb"
REQUESTS = ["Explain how a bicycle stays upright when it is moving."] * 4
N_TOKENS, ROUNDS = 16, 3


def variants() -> dict:
    """Functions to time, by name."""
    torch.set_num_threads(1)
    nb = lift(NOTEBOOK, ["Net", "greedy", "greedy_recomputed", "contrast", "encode"])
    lm = load_lm("smollm2-135m-instruct")
    net = nb.Net(lm)
    guide = 1 + 0.05 * torch.randn(net.shape, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(net.shape, generator=torch.Generator().manual_seed(1)) < 0.05
    ids = torch.randint(100, 40_000, (4, 48), generator=torch.Generator().manual_seed(2))

    def forward(scale: torch.Tensor | None = None, keep: dict | None = None) -> None:
        with torch.no_grad(), net.using(scale, watch=None if keep is None else keep.__setitem__):
            lm.model(ids, use_cache=False)

    out = {
        "forward": forward,
        "forward, all neurons recorded": lambda: forward(keep={}),
        "plain generation, M1 and M2": lambda: (
            nb.greedy(net, REQUESTS, N_TOKENS),
            nb.greedy(net, REQUESTS, N_TOKENS, scale=guide),
        ),
        "patched generation, cached": lambda: nb.greedy(net, REQUESTS, N_TOKENS, guide=guide, mask=mask),
        "patched generation, recomputed": lambda: [
            nb.greedy_recomputed(net, r, N_TOKENS, guide, mask) for r in REQUESTS
        ],
    }
    return out | peers(lm, ids)


def peers(lm, ids: torch.Tensor) -> dict:
    """The same recording with other tools, as far as they are installed."""
    out = {}
    if find_spec("nnsight"):
        from nnsight import NNsight

        traced = NNsight(lm.model)

        def record_nnsight() -> None:
            with torch.no_grad(), traced.trace(ids, use_cache=False):
                for layer in traced.model.layers:
                    layer.mlp.down_proj.input.save()

        out["nnsight, all neurons recorded"] = record_nnsight
    if find_spec("transformer_lens"):
        from transformer_lens.model_bridge import TransformerBridge

        bridge = TransformerBridge.boot_transformers("", hf_model=lm.model, tokenizer=lm.tokenizer)

        def record_lens() -> None:
            with torch.no_grad():
                bridge.run_with_cache(ids, names_filter=lambda name: name.endswith("mlp.hook_post"))

        out["TransformerLens, all neurons recorded"] = record_lens
    return out


def best_times(functions: dict) -> dict[str, float]:
    """Seconds by name: the best of interleaved rounds."""
    times = {name: [] for name in functions}
    for _ in range(ROUNDS):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: min(values) for name, values in times.items()}


def peak_mb(name: str) -> float:
    """Peak memory of a process that runs one variant once."""
    done = subprocess.run([sys.executable, __file__, "--one", name], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    """Measure, print and write the results."""
    functions = variants()
    seconds = best_times(functions)
    memory = {name: peak_mb(name) for name in functions}
    ratio = lambda a, b: round(seconds[a] / seconds[b], 3)  # noqa: E731
    ratios = {
        "recording over a plain forward pass": ratio("forward, all neurons recorded", "forward"),
        "cached patching over plain generation of both models": ratio(
            "patched generation, cached", "plain generation, M1 and M2"
        ),
        "recomputed over cached patching": ratio("patched generation, recomputed", "patched generation, cached"),
    }
    for name in functions:
        if name.split(",")[0] in ("nnsight", "TransformerLens"):
            ratios[f"recording, {name.split(',')[0]} over hooks"] = ratio(name, "forward, all neurons recorded")
    absent = [tool for tool in ("nnsight", "transformer_lens") if not find_spec(tool)]
    result = {
        "model": "smollm2-135m-instruct, float32, one thread",
        "setting": f"forward: 4 x 48 tokens; generation: 4 requests x {N_TOKENS} tokens, 5 % of neurons patched",
        "ratios": ratios,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "peak_memory_mb": memory,
        "not_installed": absent,
        "torch": torch.__version__,
    }
    target = ROOT / "benchmarks" / "results" / "safety_neurons_hooks.json"
    target.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        variants()[sys.argv[2]]()
        print(round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3))
    else:
        main()
