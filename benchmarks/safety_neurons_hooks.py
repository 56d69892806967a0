"""What recording and patching neurons cost: ratios to plain passes and to other tools, measured side by side.

    python benchmarks/safety_neurons_hooks.py

Every variant runs in its own process for its peak memory; times are the best of several interleaved rounds in one
process. Other tools (nnsight, TransformerLens) are measured where they are installed and reported as absent otherwise.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from lift import lift  # noqa: E402

from helpers.models import LanguageModel, load_lm  # noqa: E402

NOTEBOOK = "notebooks/safety_neurons/safety_neurons.ipynb"
REQUESTS = ["Explain how a bicycle stays upright when it is moving."] * 4
N_TOKENS, ROUNDS = 16, 3


def variants(only: str | None = None) -> dict:
    """Functions to time, by name; with `only`, what that variant does not need is not loaded."""
    torch.set_num_threads(1)
    nb = lift(NOTEBOOK, ["Net", "greedy", "greedy_recomputed", "encode"], {"guide": None})
    ids = torch.randint(100, 40_000, (4, 48), generator=torch.Generator().manual_seed(2))
    out = {}
    if only is None or only.split(",")[0] not in TOOLS:
        out |= ours(nb, nb.Net(load_lm("smollm2-135m-instruct")), ids)
    for tool, (module, recorder) in TOOLS.items():
        if find_spec(module) and (only is None or only.startswith(tool)):
            out[f"{tool}, all neurons recorded"] = recorder(load_lm("smollm2-135m-instruct"), ids)  # a model of its own
    return out


def ours(nb: SimpleNamespace, net: object, ids: torch.Tensor) -> dict:
    """The chapter's own recording and patching."""
    guide = 1 + 0.05 * torch.randn(net.shape, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(net.shape, generator=torch.Generator().manual_seed(1)) < 0.05

    def forward(keep: dict | None = None) -> dict | None:
        with torch.no_grad(), net.using(None, watch=None if keep is None else keep.__setitem__):
            net.lm.model(ids, use_cache=False)
        return keep

    return {
        "forward": forward,
        "forward, all neurons recorded": lambda: forward({}),
        "plain generation, M1 and M2": lambda: (
            nb.greedy(net, REQUESTS, N_TOKENS),
            nb.greedy(net, REQUESTS, N_TOKENS, scale=guide),
        ),
        "patched generation, cached": lambda: nb.greedy(net, REQUESTS, N_TOKENS, guide=guide, mask=mask),
        "patched generation, recomputed": lambda: [
            nb.greedy_recomputed(net, r, N_TOKENS, guide, mask) for r in REQUESTS
        ],
    }


def nnsight_recorder(lm: LanguageModel, ids: torch.Tensor) -> Callable[[], dict]:
    """Record all inputs of `down_proj` with an nnsight trace."""
    import nnsight

    traced = nnsight.NNsight(lm.model)

    def record() -> dict:
        with torch.no_grad(), traced.trace(ids, use_cache=False):
            kept = nnsight.save([layer.mlp.down_proj.input for layer in traced.model.layers])
        return dict(enumerate(kept))

    return record


def lens_recorder(lm: LanguageModel, ids: torch.Tensor) -> Callable[[], dict]:
    """Record all `mlp.hook_post` with the TransformerLens bridge."""
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers("", hf_model=lm.model, tokenizer=lm.tokenizer)

    def record() -> dict:
        with torch.no_grad():
            _, cache = bridge.run_with_cache(ids, names_filter=lambda name: name.endswith("mlp.hook_post"))
        return {layer: cache[f"blocks.{layer}.mlp.hook_post"] for layer in range(len(cache))}

    return record


TOOLS = {"nnsight": ("nnsight", nnsight_recorder), "TransformerLens": ("transformer_lens", lens_recorder)}


RECORDED = "forward, all neurons recorded"
PAIRS = {
    "recording over a plain forward pass": (RECORDED, "forward"),
    "cached patching over plain generation of both models": (
        "patched generation, cached",
        "plain generation, M1 and M2",
    ),
    "recomputed over cached patching": ("patched generation, recomputed", "patched generation, cached"),
    "recording, nnsight over hooks": ("nnsight, all neurons recorded", RECORDED),
    "recording, TransformerLens over hooks": ("TransformerLens, all neurons recorded", RECORDED),
}


def best_times(functions: dict) -> dict[str, float]:
    """Seconds by name: the best of interleaved rounds."""
    times = {name: [] for name in functions}
    for _ in range(ROUNDS):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: min(values) for name, values in times.items()}


def own_peak_mb() -> int:
    """Peak resident memory of this process; `ru_maxrss` would also count its parent's, from before the exec."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e3)


def peak_mb(name: str) -> float:
    """Peak memory of a process that runs one variant once."""
    done = subprocess.run([sys.executable, __file__, "--one", name], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    """Measure, print and write the results."""
    functions = variants()
    want = functions["forward, all neurons recorded"]()
    same = {}
    for tool in TOOLS:
        if f"{tool}, all neurons recorded" in functions:
            got = functions[f"{tool}, all neurons recorded"]()
            same[tool] = all(torch.allclose(got[layer], want[layer], atol=1e-4) for layer in want)
    seconds = best_times(functions)
    memory = {name: peak_mb(name) for name in functions}
    ratios = {}
    for name, (a, b) in PAIRS.items():
        if a in seconds:
            ratios[name] = {"time": round(seconds[a] / seconds[b], 3), "peak memory": round(memory[a] / memory[b], 3)}
    result = {
        "model": "smollm2-135m-instruct, float32, one thread",
        "setting": f"forward: 4 x 48 tokens; generation: 4 requests x {N_TOKENS} tokens, 5 % of neurons patched",
        "ratios": ratios,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "peak_memory_mb": memory,
        "same_activations_as_hooks": same,
        "tools": {
            tool: version(module) if find_spec(module) else "not installed" for tool, (module, _) in TOOLS.items()
        },
        "torch": torch.__version__,
    }
    target = ROOT / "benchmarks" / "results" / "safety_neurons_hooks.json"
    target.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        variants(sys.argv[2])[sys.argv[2]]()
        print(own_peak_mb())
    else:
        main()
