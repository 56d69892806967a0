"""One distillation step from a sparse store against a dense one: time and memory, side by side in one run.

    python benchmarks/sparse_kd.py

A step reads its target from a memory-mapped file, computes the loss of 256 tokens over the vocabulary and the gradient
for the student's logits. `dense` is what trainers do with full teacher probabilities (float16 on disk, `F.kl_div`);
`sparse` is the chapter's readable loss on top-50 entries; `fused` its one-pass loss. Timings are interleaved, so that
a busy machine slows all three alike. Peak memory is that of a fresh process each, above its size before the step.
"""

import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from lift import lift  # noqa: E402

NOTEBOOK = ROOT / "notebooks" / "pretraining_distillation" / "pretraining_distillation.ipynb"
TOKENS, TOP_K, ROUNDS = 256, 50, 15
VOCABULARIES = (8_192, 49_152)
VARIANTS = ("dense", "sparse", "fused")


def write_targets(folder: Path, vocab: int) -> None:
    """Write one batch's teacher probabilities, dense and sparse, as .npy files."""
    probs = torch.randn(TOKENS, vocab, generator=torch.Generator().manual_seed(0)).mul(2).softmax(-1)
    best, ids = probs.topk(min(TOP_K, vocab), -1)
    np.save(folder / "dense.npy", probs.numpy().astype(np.float16))
    np.save(folder / "ids.npy", ids.numpy().astype(np.uint16))
    np.save(folder / "probs.npy", best.numpy().astype(np.float16))


def steps(folder: Path, vocab: int) -> dict[str, Callable[[], torch.Tensor]]:
    """Return one function per variant that reads, computes and returns the gradient `(tokens, vocab)`."""
    chapter = lift(NOTEBOOK, ["sparse_nll", "temper", "MixedCrossEntropy"])
    logits = torch.randn(TOKENS, vocab, generator=torch.Generator().manual_seed(1)).requires_grad_()

    def read_sparse() -> tuple[torch.Tensor, torch.Tensor]:
        ids, probs = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("ids", "probs"))
        return torch.from_numpy(ids.astype(np.int64)), chapter.temper(torch.from_numpy(probs.astype(np.float32)))

    def dense() -> torch.Tensor:
        target = torch.from_numpy(np.load(folder / "dense.npy", mmap_mode="r").astype(np.float32))
        loss = F.kl_div(logits.log_softmax(-1), target, reduction="sum") / TOKENS
        return torch.autograd.grad(loss, logits)[0]

    def sparse() -> torch.Tensor:
        ids, probs = read_sparse()
        return torch.autograd.grad(chapter.sparse_nll(logits, ids, probs).mean(), logits)[0]

    def fused() -> torch.Tensor:
        ids, probs = read_sparse()
        loss = chapter.MixedCrossEntropy.apply(logits[None], ids[None], probs[None], torch.zeros(1))
        return torch.autograd.grad(loss.sum(), logits)[0]

    return {"dense": dense, "sparse": sparse, "fused": fused}


def peak_mb(folder: Path, vocab: int, variant: str) -> float:
    """Return how far one step raises the peak memory of a fresh process, in MB (2^20 bytes)."""
    done = subprocess.run(
        [sys.executable, __file__, str(folder), str(vocab), variant], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def measure(vocab: int) -> dict:
    """Return times in ms (median of interleaved rounds), memory in MB, bytes on disk, and ratios to dense."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_targets(folder, vocab)
        functions = steps(folder, vocab)
        times = {variant: [] for variant in VARIANTS}
        for _ in range(ROUNDS):
            for variant in VARIANTS:
                start = time.perf_counter()
                functions[variant]()
                times[variant].append(1e3 * (time.perf_counter() - start))
        memory = {variant: peak_mb(folder, vocab, variant) for variant in VARIANTS}
        disk = {"dense": vocab * 2, "sparse": min(TOP_K, vocab) * 4, "fused": min(TOP_K, vocab) * 4}
    rows = {v: {"ms": statistics.median(times[v]), "peak_mb": memory[v], "bytes_per_token": disk[v]} for v in VARIANTS}
    ratios = {v: {f"{key}_dense_over_this": rows["dense"][key] / rows[v][key] for key in rows[v]} for v in VARIANTS[1:]}
    return {"vocabulary": vocab, "variants": rows, "ratios": ratios}


def peak_kb() -> int:
    """Return this process's peak resident memory since the last reset, in kB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def one_step(folder: Path, vocab: int, variant: str) -> None:
    """Print the rise of this process's peak memory through one step, in MB; the imports' own peak is reset first."""
    function = steps(folder, vocab)[variant]
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_kb()
    function()
    print((peak_kb() - before) / 1024)


def main() -> None:
    """Measure all vocabularies, print a table and write the JSON."""
    results = [measure(vocab) for vocab in VOCABULARIES]
    for result in results:
        for variant, row in result["variants"].items():
            print(f"V={result['vocabulary']:6d} {variant:6s} " + "  ".join(f"{k} {v:9.1f}" for k, v in row.items()))
        print(f"         ratios {json.dumps(result['ratios'])}")
    out = ROOT / "benchmarks" / "results" / "sparse_kd.json"
    out.parent.mkdir(exist_ok=True)
    machine = {"machine": platform.machine(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    settings = {"tokens": TOKENS, "top_k": TOP_K, "rounds": ROUNDS}
    out.write_text(json.dumps({"settings": settings | machine, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) == 4:
        one_step(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    else:
        main()
