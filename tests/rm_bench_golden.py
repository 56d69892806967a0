"""Golden numbers of RM-Bench's released code on random texts: what it scores, and how.

    python -m tests.rm_bench_golden REWARD-BENCH RM-BENCH > tests/chapters/golden/rm_bench.json

The two arguments are clones of allenai/reward-bench (commit 05a9005e; dpo.py and models/pipeline.py
are those of 12666382, which RM-Bench pins) and THU-KEG/RM-Bench (commit 73c52d7b). Their
functions are executed, none of their code is kept.
"""

import ast
import contextlib
import copy
import hashlib
import json
import random
import sys
import typing
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from tokenizers.processors import TemplateProcessing
from transformers import LlamaForSequenceClassification, PreTrainedTokenizerBase

TEXT = "the a model says red blue **bold** seven, and nothing.\n- item\n1. first `code` émigré 12 x=3 ## Title"
WORDS = TEXT.split(" ")
LENGTHS = [(3, 4), (12, 9), (1, 1), (40, 60), (150, 1100), (1900, 30), (1700, 1500)]  # words of prompt and answer
SHORT = 4  # rewards are computed for the first ones; of the others, tokens only
CUTS = (60, 2048)  # longest texts of the classifier, in tokens
PARTS = ["chat", "math", "code", "safety-refuse", "safety-response"]


def texts() -> list[tuple[str, list[str], list[str]]]:
    """(prompt, three right answers, three wrong ones): short and long, and some that are too long for 2,048 tokens."""
    draw = random.Random(5)

    def words(n: int) -> str:
        return " ".join(draw.choices(WORDS, k=n))

    rows = []
    for prompt, answer in LENGTHS:
        sides = [[words(max(1, answer + draw.randint(-answer // 3, answer // 3))) for _ in range(3)] for _ in "cr"]
        rows.append((words(prompt), *sides))
    return rows


def records() -> list[dict]:
    """60 records with many ties, from all five files."""
    draw = np.random.default_rng(7)
    scores, parts = draw.integers(0, 5, size=(60, 6)).tolist(), draw.integers(0, 5, 60)
    return [
        {"domain": PARTS[k], "score_chosen": row[:3], "score_rejected": row[3:]}
        for row, k in zip(scores, parts, strict=True)
    ]


def definitions(file: Path, names: set[str]) -> dict:
    """Functions and classes of a file, without running the rest of it."""
    found = {"torch": torch, "nn": torch.nn, "np": np, "PreTrainedTokenizer": PreTrainedTokenizerBase}
    found |= {name: getattr(typing, name) for name in typing.__all__}
    for node in ast.parse(file.read_text(encoding="utf8").replace('"cuda"', '"cpu"')).body:
        if getattr(node, "name", None) in names:
            exec(compile(ast.Module([node], []), file.name, "exec"), found)
    return found


def released(inference: type, write: typing.Callable, tokenizer, policy, reference, kind: str) -> tuple[list, list]:
    """Rewards of the short rows, and (tokens, scored, hash of the tokens) of all, by row and answer."""
    device = SimpleNamespace(device=torch.device("cpu"))
    judge = inference(policy, reference, tokenizer=tokenizer, accelerator=device, ref_free_norm=kind)
    rewards, tokens = [], []
    rows = texts() if kind == "avg" and reference is None else texts()[:SHORT]
    for row, (prompt, right, wrong) in enumerate(rows):
        reward, token = [], []
        for chosen, rejected in zip(right, wrong, strict=True):
            pair = write({"prompt": prompt, "chosen": chosen, "rejected": rejected}, tokenizer=tokenizer)
            coded = judge.tokenize_row(pair)
            sides = [[int(i) for i in coded[f"{side}_input_ids"]] for side in ("chosen", "rejected")]
            labels = [coded[f"{side}_labels"] for side in ("chosen", "rejected")]
            hashes = [zlib.crc32(json.dumps(ids).encode()) for ids in sides]
            token.append(
                [[len(a), sum(x != -100 for x in b), h] for a, b, h in zip(sides, labels, hashes, strict=True)]
            )
            if row < SHORT:
                batch = {k: torch.tensor([v]) for k, v in coded.items() if k.startswith(("chosen_", "rejected_"))}
                both = judge.inference_step(batch, ref_free=reference is None)
                reward.append([round(x.item(), 5) for x in both])
        tokens.append([pair[side] for side in (0, 1) for pair in token])
        rewards += [[pair[side] for side in (0, 1) for pair in reward]] * (row < SHORT)
    return rewards, tokens


def begins_with_a_token(tokenizer):
    """The same tokenizer putting its first token in front, even of a template that writes one."""
    other = copy.deepcopy(tokenizer)
    first = (other.bos_token, other.bos_token_id)
    other.backend_tokenizer.post_processor = TemplateProcessing(single=f"{first[0]} $A", special_tokens=[first])
    return other


def classified(pipeline: type, tokenizer, model, longest: int) -> list[list[float]]:
    """Rewards of the short rows by a sequence classifier; run_rm.py cuts on the left."""
    tokenizer.truncation_side = "left"
    judge, rows = pipeline("text-classification", model, tokenizer), []
    for prompt, right, wrong in texts()[:SHORT]:
        turns = [[{"role": "user", "content": prompt}, {"role": "assistant", "content": x}] for x in right + wrong]
        written = [tokenizer.apply_chat_template(turn, tokenize=False) for turn in turns]
        rows.append([round(x, 5) for x in judge(written, max_length=longest)[:, 0].tolist()])
    return rows


QUESTION = {"question": "Q?", "answer_1": "one", "answer_2": "two"}


def judge_question(readme: str) -> str:
    """Hash of the question that the README's template for judges makes of QUESTION."""
    template = readme.split("The prompt template used for comparision")[1].split("```")[1].strip("\n")
    asked = template.replace("\\\\", "\\").format(**QUESTION)  # it stands there as in a source file
    return hashlib.sha256(asked.encode()).hexdigest()


def main(reward_bench: Path, rm_bench: Path) -> dict:
    """All golden numbers."""
    from tiny import tiny_llama

    from helpers.models import load_lm

    dpo = definitions(reward_bench / "rewardbench" / "dpo.py", {"DPOInference", "pad_to_length"})
    write = definitions(reward_bench / "rewardbench" / "utils.py", {"prepare_dialogue_from_tokenizer"})
    names = {"RewardBenchPipeline", "disable_dropout_in_model"}
    pipeline = definitions(reward_bench / "rewardbench" / "models" / "pipeline.py", names)["RewardBenchPipeline"]
    score = definitions(rm_bench / "scripts" / "utils.py", {"compute_accuracy", "split_dataset_by_domain"})
    tokenizer = load_lm("smollm2-135m-instruct").tokenizer
    policy, reference = (tiny_llama(tokenizer, seed=seed) for seed in (0, 1))
    parts = dpo["DPOInference"], write["prepare_dialogue_from_tokenizer"], tokenizer, policy
    out: dict = {"command": "python -m tests.rm_bench_golden REWARD-BENCH RM-BENCH"}
    classifier = tiny_llama(tokenizer, LlamaForSequenceClassification, seed=2, num_labels=1)
    for name, change in (("as it is", copy.deepcopy), ("a second first token", begins_with_a_token)):
        rewards = {n: classified(pipeline, change(tokenizer), classifier, n) for n in CUTS}
        out[f"classifier, {name}"] = rewards
    for name in ("with a first token", "without a first token"):
        if name.startswith("without"):  # as the script does for such a tokenizer
            tokenizer.bos_token_id = tokenizer.pad_token_id = tokenizer.eos_token_id
        found = {kind: released(*parts, None, kind) for kind in ("avg", "sum", "norm")}
        out[name] = {kind: rewards for kind, (rewards, _) in found.items()} | {"tokens": found["avg"][1]}
        out[name]["with reference"] = released(*parts, reference, "avg")[0]
    with contextlib.redirect_stdout(sys.stderr):  # it says what it does
        accuracy = score["compute_accuracy"](records())
    out["judge"] = judge_question((rm_bench / "README.md").read_text(encoding="utf8"))
    return out | {"accuracy": {name: round(float(value), 10) for name, value in accuracy.items()}}


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]))))
