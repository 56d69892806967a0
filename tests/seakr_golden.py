"""Golden numbers of SeaKR's released code: scripted chains, answers in texts, and scores of random vectors.

Run from the checkout, beside a clone of THU-KEG/SeaKR at d75fe707 and lm-polygraph 0.7.0 unpacked:
`python -m tests.seakr_golden CLONE POLYGRAPH`; writes `tests/chapters/seakr_golden.json`.

Nothing of the release is copied. Its own classes run; what they import (vLLM, spaCy, Elasticsearch ...) is replaced by
the stand-ins below. The model's replies are a function of what it is asked (`reply`), so that a second implementation
that asks the same gets the same. The tests import `reply`, `search` and `QUESTIONS` and run the chapter's loop on them.
"""

import ast
import asyncio
import json
import logging
import re
import sys
import zlib
from pathlib import Path
from random import Random
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

PEOPLE = ["Ada", "Ford", "Ben", "Hart", "Cleo", "Moss", "art", "or", "ford", "Paris", "Lyon", "J.R.", "Snow", "1,945"]
VERBS = ["taught", "painted", "birthplace", "answered", "isn't", "was", "born", "in", "well-known", "sang"]
QUESTIONS = [f"Who {VERBS[i % 7]} {PEOPLE[i % 11]} of St. {PEOPLE[(3 * i) % 13]} no {i} ?" for i in range(300)]
PASSAGES = [f"passage {i} on {PEOPLE[i]} and {VERBS[i]}" for i in range(9)]
LIMITS = [(7, 5), (5, 2), (3, 3)]  # reasoning steps and passages at most; question i has those of i % 3
POSITIVE = 0.5  # a second threshold, at which a U of 0 (no sample has a text) is certain; `lifted` moves U along
SHAPES = [(20, 48), (20, 64), (5, 16), (1, 8), (20, 300)]


def dice(what: str) -> Random:
    """Dice that depend on a text only."""
    return Random(zlib.crc32(what.encode()))


def phrase(r: Random) -> str:
    """A few words, perhaps with a stop."""
    words = [r.choice(PEOPLE if r.random() < 0.5 else VERBS) for _ in range(r.randint(1, 5))]
    return " ".join(words) + r.choice(["", ".", "", "?"])


def random_text(r: Random) -> str:
    """What a model may say: a step, an answer in several forms, "unknown", nothing."""
    a, b = phrase(r), phrase(r)
    forms = [a, a, a, a, f"{a} {b}", f"{a.rstrip('.?')}. {b}", "", ""]
    forms += [f"So the answer is {b}.", f"so the Answer is: {a}", f"{a} So the answer is {r.choice(PEOPLE)}, {b}"]
    forms += [f"{a.rstrip('.?')}. {r.choice(PEOPLE)} is the answer.", "The answer isn't known.", "the answer is ."]
    forms += ["The answer is unknown.", f"{a.rstrip('.?')}. Thus the answer is {r.choice(PEOPLE)}."]
    return r.choice(forms)


def reply(prompt: str) -> tuple[str, float | None, list[tuple[str, float]]]:
    """Text, U (None: all samples were empty) and (token, probability) of each token, without the end token."""
    r = dice(prompt)
    text = random_text(r)
    u = None if r.random() < 0.03 else round(r.uniform(-7.5, -5), 1)
    tokens = []
    for piece in re.findall(r"\s*\S+", text):
        cut = len(piece) if len(piece) < 7 or not piece.strip().isalpha() else 4
        tokens += [(part, r.choice([0.99, 0.95, 0.9, 0.6, 0.2])) for part in (piece[:cut], piece[cut:]) if part]
    return text, u, tokens


def lifted(u: float, delta: float) -> float:
    """U moved along with the threshold, so that as many replies are certain as at the paper's -6."""
    return round(u + delta + 6, 1)


def search(query: str, n: int) -> list[str]:
    """At most n passages, none for some queries."""
    r = dice(f"search {query}")
    return r.sample(PASSAGES, min(n, r.choice([0, 1, 2, 3, 3, 3]))) if query else []


def vectors(number: int) -> np.ndarray:
    """Random sample vectors (k, d) in float32, some long, some nearly the same."""
    k, d = SHAPES[number % len(SHAPES)]
    r = np.random.RandomState(number)
    return ((r.randn(1, d) + r.choice([0.01, 0.3, 3]) * r.randn(k, d)) * r.choice([0.2, 1, 8])).astype(np.float32)


def words_of(text: str) -> list[str]:
    """Words and marks, as the chapter cuts them; a number such as 1,945 is one word, as in spaCy."""
    return re.findall(r"\w+(?:[-'’]\w+|(?<=\d)[.,]\d+)*|[^\w\s]", text)


class Doc(list):
    """A text as spaCy would give it: tokens with part of speech, and sentences."""

    def __init__(self, text: str) -> None:
        marks = [re.fullmatch(r"[^\w\s]", w) is not None for w in words_of(text)]
        kinds = [
            "X" if m or w.lower() in ENGLISH_STOP_WORDS else "NOUN" for w, m in zip(words_of(text), marks, strict=True)
        ]
        rows = zip(words_of(text), kinds, marks, strict=True)
        super().__init__(SimpleNamespace(text=w, pos_=kind, is_punct=m) for w, kind, m in rows)
        self.sents = [SimpleNamespace(text=s) for s in re.split(r"(?<=[.?!])\s+", text.strip())]


class Engine:
    """Replies in place of a model; `LogProb` objects as vLLM gives them."""

    def __init__(self, delta: float) -> None:
        self.delta = delta

    async def generate(self, inputs: str, sampling_params: dict, request_id: str) -> Any:
        text, u, tokens = reply(inputs)
        rows = [{0: SimpleNamespace(decoded_token=t, logprob=float(np.log(p)))} for t, p in tokens]
        rows += [{1: SimpleNamespace(decoded_token="", logprob=0.0)}]  # the forced end token
        scores = {} if u is None or "greedy" in request_id else {"eigen_score": lifted(u, self.delta)}
        yield SimpleNamespace(outputs=[SimpleNamespace(text=text, logprobs=rows)], uncertainty=scores)

    async def abort(self, request_id: str) -> None:
        """Nothing to stop."""


async def merged(*streams: Any) -> Any:
    for i, stream in enumerate(streams):
        async for item in stream:
            yield i, item


class Index:
    """The search behind the release's own `BM25.retrieve`, which fills up missing hits."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def retrieve(self, corpus: None, queries: dict[int, str], **options: Any) -> dict:
        self.asked += queries.values()
        found = {i: {p: (1.0, p) for p in search(q, 3)} for i, q in queries.items()}
        return {i: hits for i, hits in found.items() if hits}


class Cutter:
    """A tokenizer that keeps the last words."""

    padding_side = truncation_side = "right"

    def __call__(self, texts: list[str], max_length: int, **options: Any) -> dict:
        return {"input_ids": [text.split()[-max_length:] for text in texts]}

    def batch_decode(self, rows: list, **options: Any) -> list[str]:
        return [" ".join(row) for row in rows]


class Silent(ModuleType):
    """A module in which every name exists and does nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda self, *a, **k: None})


def stand_ins() -> None:
    """Put the stand-ins where the release imports from."""
    names = ["vllm", "vllm.sequence", "vllm.utils", "spacy", "faiss", "tenacity", "beir"]
    names += ["beir.datasets.data_loader", "beir.retrieval.evaluation", "beir.retrieval.search.lexical"]
    names += [
        "beir.retrieval.search.lexical.elastic_search",
        "beir.datasets",
        "beir.retrieval",
        "beir.retrieval.search",
    ]
    for name in names:
        sys.modules[name] = Silent(name)
    sys.modules["vllm"].SamplingParams = dict
    sys.modules["vllm.utils"].merge_async_iterators = merged
    sys.modules["spacy"].load = lambda name: Doc
    sys.modules["tenacity"].retry = lambda **options: lambda f: f
    for name in ("stop_after_attempt", "wait_fixed"):
        setattr(sys.modules["tenacity"], name, lambda number: None)


def key(question: str, steps: list[str], docs: list[str]) -> str:
    """What the model is asked, without the wording of a prompt; full stops leave the steps, as in the release."""
    return json.dumps([question, [s.replace(".", "") for s in steps], docs])


def chains(clone: Path, questions: list[str], delta: float = -6.0) -> list[dict]:
    """What the released loop does with every question."""
    sys.path.insert(0, str(clone))
    stand_ins()
    from SEAKR.reasoner import MultiHopReasoner
    from SEAKR.retriever import BM25

    class Traced(MultiHopReasoner):
        async def read_all_steps(self) -> None:
            self.loop = {"steps": [s.content for s in self.running_steps], "calls": self.llm_call_times}
            await super().read_all_steps()

    done = []
    logging.disable(logging.CRITICAL)
    for i, question in enumerate(questions):
        retriever = BM25.__new__(BM25)
        retriever.tokenizer, retriever.retriever, retriever.max_ret_topk = Cutter(), Index(), 1000

        def written(question: str, cot_steps: list | None = None, docs: list | None = None) -> str:
            return key(question, cot_steps or [], list(docs or []))

        one = Traced(str(i), question, written, Engine(delta), retriever, eigen_threshold=delta)
        steps, docs = LIMITS[i % 3]
        row: dict[str, Any] = {}
        try:
            said = asyncio.run(one.solve(max_reasoning_steps=steps, max_docs=docs))
            row = {"answers": [said[f"Final {x}Answer"] for x in ("Step ", "Read ", "")]}
        except IndexError:  # the release loses a question whose only step was dropped
            row = {"answers": None}
        kept = [re.sub("^_.*", "", d) for d in one.doc_id_list]  # names of made-up empty passages are random
        done.append(row | one.loop | {"kept": kept, "queries": retriever.retriever.asked})
    return done


def method(path: Path, names: list[str], given: dict[str, Any]) -> dict[str, Any]:
    """Functions of a source file by name, wherever they stand, without importing the file."""
    nodes = [n for n in ast.walk(ast.parse(path.read_text())) if getattr(n, "name", None) in names]
    exec(compile(ast.Module(nodes, []), str(path), "exec"), given)
    return given


def main() -> None:
    """Run the released code and write what it gave."""
    clone, polygraph = map(Path, sys.argv[1:])
    engine = clone / "vllm_uncertainty/vllm/engine/llm_engine.py"
    given = {"torch": torch, "np": np, "RequestOutput": Any, "CompletionOutput": Any, "List": list, "Dict": dict}
    released = method(
        engine, ["_compute_eigen_score", "_compute_single_uncertainty", "compute_perplexity"], given | {"Logprob": Any}
    )
    own = SimpleNamespace(eigen_alpha=1e-3, compute_perplexity=lambda p: released["compute_perplexity"](None, p))
    estimator = ModuleType("estimator")
    estimator.Estimator = type("Estimator", (), {"__init__": lambda self, *a: None})  # pyright: ignore
    sys.modules |= {"lm_polygraph.estimators.estimator": estimator}
    other: dict[str, Any] = {"__name__": "eigenscore"}
    exec((polygraph / "lm_polygraph/estimators/eigenscore.py").read_text(), other)
    scores = []
    for i in range(40):
        z = vectors(i)
        u = released["_compute_eigen_score"](own, torch.tensor(z))
        peer = other["EigenScore"]()({"sample_embeddings": [z.astype(np.float64)]})[0]
        scores.append([None if np.isnan(u) else round(u, 5), round(float(peer), 6)])
    r = np.random.RandomState(7)
    rows = [(np.log(r.rand(n)).tolist(), (20 * r.rand(n)).tolist()) for n in (1, 2, 5, 9)]
    cheap = []
    for logprobs, energies in rows:
        out = SimpleNamespace(logprobs=[{0: SimpleNamespace(logprob=p)} for p in logprobs], energy_score=energies)
        released["_compute_single_uncertainty"](own, out)
        cheap.append({"logprobs": logprobs, "energies": energies} | {k: float(v) for k, v in out.uncertainty.items()})
    done, positive = chains(clone, QUESTIONS), chains(clone, QUESTIONS[:100], POSITIVE)
    from SEAKR.reasoner import MultiHopReasoner

    texts = list(dict.fromkeys(random_text(dice(f"text {i}")) for i in range(300)))
    answers = [[t, MultiHopReasoner._check_final_answer(None, t)] for t in texts]
    result = {
        "made_by": "python -m tests.seakr_golden CLONE POLYGRAPH; THU-KEG/SeaKR d75fe707, lm-polygraph 0.7.0",
        "scores": scores,
        "cheap": cheap,
        "answers": answers,
        "chains": done,
        "positive": positive,
    }
    lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in result.items())
    Path(__file__).with_name("chapters").joinpath("seakr_golden.json").write_text(
        "{\n" + lines + "\n}\n", encoding="utf-8"
    )
    print(len(done), "chains,", sum(row["answers"] is None for row in done), "lost")


if __name__ == "__main__":
    main()
