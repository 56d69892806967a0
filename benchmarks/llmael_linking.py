"""LLMAEL's linker: encoding and search in batches against a loop over mentions.

Both sides read the same texts of the main notebook's benchmark with the same trunk and maps, and give the best
candidate. The plain loop encodes a mention and its candidates when it meets them, as a `link(mention)` does, and scores
them one by one. The other loop has all entities encoded beforehand and encodes only the mention. The chapter encodes
every distinct row once, rows of similar length side by side, and searches by one matrix product. The search through the
whole knowledge base is timed alone, too: a loop that scores and sorts all entities against a product and `topk`.
Run from the checkout: `python -m benchmarks.llmael_linking`; writes `benchmarks/results/llmael_linking.json`.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from fake_run import FakeRun
from lift import lift

from helpers.models import load_encoder

NAMES = ["encode", "read_mention", "build_base", "collect", "boolq_paragraphs", "sentences", "best_candidate"]
NAMES += ["pieces", "start_maps", "project", "ENTITY", "LONGER"]
N = 256


class Task:
    """The first mentions of the packaged paragraphs, the rows of both sides, and one linker."""

    def __init__(self, nb: SimpleNamespace) -> None:
        """Build the knowledge base, and the windows of mentions and entities."""
        paragraphs = list(dict.fromkeys(nb.boolq_paragraphs()))
        articles, aliases = nb.build_base(paragraphs)
        some = nb.collect(paragraphs[:4000], [t for ts in aliases.values() for t in ts])[:N]
        self.nb, self.maps = nb, nb.start_maps(1)
        self.titles = sorted({t for m in some for t in aliases[m.text]})
        number = {title: i for i, title in enumerate(self.titles)}
        self.candidates = [[number[t] for t in aliases[m.text]] for m in some]
        self.mentions = [nb.read_mention(*m[:3], 32) for m in some]
        self.entities = [self._entity(title, articles[title]) for title in self.titles]

    def _entity(self, title: str, article: str) -> tuple:
        name = self.nb.pieces(title)[: self.nb.ENTITY // 2]
        rest = " ".join(self.nb.sentences(article)[1:])
        return (), tuple(name), tuple(self.nb.pieces(": " + rest)[: self.nb.ENTITY - len(name)])

    def vectors(self, rows: list[tuple], side: str) -> torch.Tensor:
        """Projected vectors (n, d) of rows."""
        return self.nb.project(self.nb.encode(rows), getattr(self.maps, side))[0]

    def plain_loop(self) -> list[int]:
        """The best candidate of each mention; everything is encoded when it is met."""
        picks = []
        for row, own in zip(self.mentions, self.candidates, strict=True):
            u = self.vectors([row], "mention")[0]
            scores = [(u @ self.vectors([self.entities[j]], "entity")[0]).item() for j in own]
            picks.append(own[int(np.argmax(scores))])
        return picks

    def kept_loop(self, entities: torch.Tensor) -> list[int]:
        """The same with entities (n, d) that were encoded beforehand."""
        picks = []
        for row, own in zip(self.mentions, self.candidates, strict=True):
            u = self.vectors([row], "mention")[0]
            picks.append(own[int(np.argmax([(u @ entities[j]).item() for j in own]))])
        return picks

    def batched(self, entities: torch.Tensor) -> list[int]:
        """All mentions at once."""
        rivals = torch.full((len(self.candidates), max(map(len, self.candidates))), -1)
        for i, own in enumerate(self.candidates):
            rivals[i, : len(own)] = torch.tensor(own)
        return self.nb.best_candidate(self.vectors(self.mentions, "mention") @ entities.T, rivals).tolist()


def timed(work: Callable, *args: Any) -> tuple[Any, float]:
    """What the work returns, and its seconds."""
    start = time.perf_counter()
    done = work(*args)
    return done, time.perf_counter() - start


def searched_one_by_one(u: torch.Tensor, entities: torch.Tensor) -> list[list[float]]:
    """The ten best scores of every mention by a loop over entities."""
    return [sorted(((v @ e).item() for e in entities), reverse=True)[:10] for v in u]


def main() -> None:
    """Measure and write the result."""
    torch.set_num_threads(1)
    encoder = load_encoder()
    given = {"run": FakeRun(), "encoder": encoder, "DIM": encoder.model.config.hidden_size, "test": [None]}
    task = Task(lift("notebooks/llmael/llmael.ipynb", NAMES, given))
    task.vectors(task.mentions[:2], "mention")  # warm up
    slow, loop_s = timed(task.plain_loop)
    entities, entities_s = timed(task.vectors, task.entities, "entity")
    kept, kept_s = timed(task.kept_loop, entities)
    fast, batched_s = timed(task.batched, entities)
    u = task.vectors(task.mentions, "mention")
    _, search_loop_s = timed(searched_one_by_one, u, entities)
    _, search_s = timed(lambda: (u @ entities.T).topk(10))
    result = {
        "what": "seconds of a loop over mentions over seconds of the batched linker, entities included where not kept",
        "mentions": len(task.mentions),
        "entities": len(task.titles),
        "threads": torch.get_num_threads(),
        "ratio": loop_s / (entities_s + batched_s),
        "ratio_entities_kept": kept_s / batched_s,
        "ratio_search_only": search_loop_s / search_s,
        "mentions_per_s": len(task.mentions) / (entities_s + batched_s),
        "mentions_per_s_entities_kept": len(task.mentions) / batched_s,
        "same_answers": float(np.mean(np.array([slow, kept]) == np.array(fast))),
        "loop_s": loop_s,
        "kept_loop_s": kept_s,
        "entities_s": entities_s,
        "batched_s": batched_s,
    }
    Path(__file__).with_name("results").joinpath("llmael_linking.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
