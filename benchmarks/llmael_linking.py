"""LLMAEL's linker: encoding and search in batches against a loop over mentions.

Both sides read the same joined texts of the main notebook's benchmark with the same trunk and maps, and give the best
candidate and the ten best of the whole knowledge base. The loop encodes a mention and its candidates when it meets
them, as a plain `link(mention)` does, and scores them one by one; the chapter encodes every distinct row once, rows of
similar length side by side, and searches by one matrix product. The parts are timed alone, too.
Run from the checkout: `python -m benchmarks.llmael_linking`; writes `benchmarks/results/llmael_linking.json`.
"""

import json
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from fake_run import FakeRun
from lift import lift

NAMES = ["encode", "read_mention", "build_base", "collect", "boolq_paragraphs", "sentences", "best_candidate"]
NAMES += ["pieces", "start_maps", "project", "ENTITY"]
N = 96


def main() -> None:
    """Measure and write the result."""
    torch.set_num_threads(1)
    from helpers.models import load_encoder

    encoder = load_encoder()
    given = {"run": FakeRun(), "encoder": encoder, "DIM": encoder.model.config.hidden_size, "test": [None]}
    nb = lift("notebooks/llmael/llmael.ipynb", NAMES, given)
    paragraphs = list(dict.fromkeys(nb.boolq_paragraphs()))
    articles, aliases = nb.build_base(paragraphs)
    mentions = nb.collect(paragraphs[:2000], [t for ts in aliases.values() for t in ts])[:N]
    titles = sorted({t for m in mentions for t in aliases[m.text]})
    number = {title: i for i, title in enumerate(titles)}

    def entity(title: str) -> tuple:
        name = nb.pieces(title)[: nb.ENTITY // 2]
        rest = " ".join(nb.sentences(articles[title])[1:])
        return (), tuple(name), tuple(nb.pieces(": " + rest)[: nb.ENTITY - len(name)])

    rows = [nb.read_mention(*m[:3], 32) for m in mentions]
    base = {title: entity(title) for title in titles}
    maps = nb.start_maps(1)

    def vector(row: tuple) -> torch.Tensor:
        return nb.project(nb.encode([row]), maps.mention)[0, 0]

    vector(rows[0])  # warm up
    start, slow, spent = time.perf_counter(), [], defaultdict(float)
    for m, row in zip(mentions, rows, strict=True):
        u = vector(row)
        scores = [(u @ vector(base[title])).item() for title in aliases[m.text]]
        slow.append(number[aliases[m.text][int(np.argmax(scores))]])
    spent["loop_s"] = time.perf_counter() - start
    start = time.perf_counter()
    entities = nb.project(nb.encode([base[t] for t in titles]), maps.entity)[0]
    spent["entities_s"] = time.perf_counter() - start
    u = nb.project(nb.encode(rows), maps.mention)[0]
    scores = u @ entities.T
    width = max(len(aliases[m.text]) for m in mentions)
    rivals = torch.full((len(mentions), width), -1)
    for i, m in enumerate(mentions):
        rivals[i, : len(aliases[m.text])] = torch.tensor([number[t] for t in aliases[m.text]])
    fast = nb.best_candidate(scores, rivals).tolist()
    spent["batched_s"] = time.perf_counter() - start

    start = time.perf_counter()
    one_by_one = torch.stack([vector(row) for row in rows])
    encoding_loop = time.perf_counter() - start
    start = time.perf_counter()
    nb.project(nb.encode(rows), maps.mention)
    encoding = time.perf_counter() - start
    start = time.perf_counter()
    for v in one_by_one:
        sorted(((v @ e).item() for e in entities), reverse=True)[:10]
    search_loop = time.perf_counter() - start
    start = time.perf_counter()
    (u @ entities.T).topk(10)
    search = time.perf_counter() - start
    result = {
        "what": "seconds of a loop over mentions that encodes its candidates anew, over seconds of the batched linker",
        "mentions": len(mentions),
        "entities": len(titles),
        "threads": torch.get_num_threads(),
        "ratio": spent["loop_s"] / spent["batched_s"],
        "ratio_encoding_mentions_only": encoding_loop / encoding,
        "ratio_search_only": search_loop / search,
        "mentions_per_s": len(mentions) / spent["batched_s"],
        "same_answers": float(np.mean(np.array(slow) == np.array(fast))),
        **spent,
    }
    Path(__file__).with_name("results").joinpath("llmael_linking.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
