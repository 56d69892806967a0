"""SeaKR's estimator in one batch against one `generate` call per sample.

Both sides draw k samples of the same prompts from SmolLM2-135M-Instruct with the same settings and end every sample at
an end token whose MLP output is read. The sequential side is transformers' own `generate` plus one forward pass over
prompt and sample to read the vector; the ratio without that pass is reported too. Ratios are per generated token,
because sampled lengths differ.
Run from the checkout: `python -m benchmarks.seakr_estimator`; writes `benchmarks/results/seakr_estimator.json`.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import torch
from transformers.utils import logging

from helpers.activations import capture
from helpers.generation import generate
from helpers.models import load_lm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from lift import lift

K, NEW_TOKENS, LAYER = 20, 24, "model.layers.14.mlp"
QUESTIONS = [
    "Which river flows through the city where Mozart was born?",
    "Who was the teacher of the philosopher that taught Alexander the Great?",
    "In which country does the longest river of South America begin?",
]


def sequential(lm, prompt: str) -> tuple[torch.Tensor, int, float]:
    """Make k calls of transformers' generate and a forward pass each: vectors (k, d), tokens, seconds in generate."""
    ids = lm.tokenizer(prompt, return_tensors="pt")
    vectors, tokens, seconds = [], 0, 0.0
    for _ in range(K):
        start = time.perf_counter()
        out = lm.model.generate(
            **ids, do_sample=True, temperature=1.0, top_p=0.9, top_k=50, max_new_tokens=NEW_TOKENS, pad_token_id=0
        )
        seconds += time.perf_counter() - start
        out[0, -1] = lm.tokenizer.eos_token_id
        tokens += out.shape[1] - ids.input_ids.shape[1]
        with capture(lm.model, [LAYER]) as seen:
            lm.model(out, logits_to_keep=1)
        vectors.append(seen[LAYER][0][0, -1])
    return torch.stack(vectors), tokens, seconds


def batched(lm, prompts: list[str]) -> tuple[torch.Tensor, int]:
    """One call for all prompts: vectors (n, k, d), and generated tokens."""
    options = {"force_eos": True, "hidden_layers": [LAYER], "hidden_last_only": True}
    out = generate(lm, prompts, NEW_TOKENS, K, 1.0, 0.9, 50, torch.Generator().manual_seed(0), **options)
    return torch.stack([torch.cat(rows) for rows in out.hidden[LAYER]]), sum(
        len(t) for rows in out.token_ids for t in rows
    )


@torch.inference_mode()
def main() -> None:
    """Measure and write the result."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    torch.manual_seed(0)
    nb = lift("notebooks/seakr/language_model.ipynb", ["eigen_score", "cot_prefix"])
    lm = load_lm("smollm2-135m-instruct")
    prompts = [f"{nb.cot_prefix(3)}Question: {q}\nAnswer:" for q in QUESTIONS]
    batched(lm, prompts[:1])  # warm up
    rows = []
    for prompt in prompts:
        start = time.perf_counter()
        _, slow_tokens, generating = sequential(lm, prompt)
        middle = time.perf_counter()
        vectors, fast_tokens = batched(lm, [prompt])
        end = time.perf_counter()
        nb.eigen_score(vectors)
        score = time.perf_counter() - end
        slow, fast = middle - start, end - middle
        rows.append(
            {
                "prompt_tokens": len(lm.tokenizer(prompt).input_ids),
                "sequential_s": slow,
                "batched_s": fast,
                "ratio_per_generated_token": (slow / slow_tokens) / (fast / fast_tokens),
                "ratio_generate_only": (generating / slow_tokens) / (fast / fast_tokens),
                "logdet_s": score,
            }
        )
        print(rows[-1])
    start = time.perf_counter()
    batched(lm, prompts)
    together = (time.perf_counter() - start) / len(prompts)
    result = {
        "what": "k samples with end-token vectors: time of one generate call per sample over time of one batch",
        "k": K,
        "max_new_tokens": NEW_TOKENS,
        "threads": torch.get_num_threads(),
        "ratio": statistics.median(r["ratio_per_generated_token"] for r in rows),
        "ratio_generate_only": statistics.median(r["ratio_generate_only"] for r in rows),
        "batched_s_per_prompt_three_together": together,
        "prompts": rows,
    }
    Path(__file__).with_name("results").joinpath("seakr_estimator.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "prompts"}))


if __name__ == "__main__":
    main()
