"""LLMAEL: prior, BM25, bi-encoder and re-ranker behind one interface, and the cross-encoder against plain readings."""

from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fake_run import FakeRun
from lift import lift
from transformers import BertConfig, BertModel

from helpers.models import load_encoder

MAIN = Path("notebooks/llmael/llmael.ipynb")
LOCAL = dict.fromkeys(("m", "some", "base", "described", "test"))
TITLES = ["Port Lorn", "Gulf of Lorn", "Old Lorn", "New Vosk"]
RIVALS = torch.tensor([[0, 1, 2], [3, -1, -1], [-1, -1, -1]])
TEXTS = [("ships reach", "Lorn", "at noon"), ("trade in", "Vosk", ""), ("", "Pell", "is far")]


def take(*names: str, **given: Any) -> SimpleNamespace:
    """Definitions of the page over three test mentions: of three candidates, of one, and of none."""
    known = {"run": FakeRun(), "rivals": {"test": RIVALS}, "gold": {"test": torch.tensor([1, 3, 0])}, "top": 2}
    known |= {"titles": TITLES, "rest": dict.fromkeys(TITLES, "a place with ships"), "counts": torch.arange(4.0)}
    return lift(MAIN, names, LOCAL | known | given)


@pytest.fixture(scope="module")
def tiny() -> SimpleNamespace:
    """An encoder of a few weights with the packaged tokenizer."""
    tokenizer = load_encoder().tokenizer
    config = BertConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertModel(config, add_pooling_layer=False).eval().requires_grad_(False)
    return SimpleNamespace(tokenizer=tokenizer, model=model)


def page(tiny: SimpleNamespace, *names: str, **given: Any) -> SimpleNamespace:
    """Definitions that read with the tiny encoder, and the rows of its entities."""
    known = {"encoder": tiny, "DIM": 32}
    rows = [take("read_entity", **known).read_entity(title) for title in TITLES]
    return take(*names, **known, entity_rows=rows, **given)


def test_every_linker_scores_the_candidates_of_each_mention(tiny):
    names = (
        "prior_linker",
        "bm25_linker",
        "bi_encoder",
        "cross_encoder",
        "start_maps",
        "linked",
        "encode",
        "read_entity",
    )
    nb = page(tiny, *names)
    entities = nb.encode([nb.read_entity(title) for title in TITLES])
    nb = page(tiny, *names, entities=entities)
    maps = nb.start_maps(1)
    for link in (
        nb.prior_linker,
        nb.bm25_linker,
        nb.bi_encoder(maps),
        nb.cross_encoder(tiny.model, nb.bi_encoder(maps)),
    ):
        scores = link(TEXTS)
        assert scores.shape == (3, 3) and not scores.isnan().any()
        assert not scores[RIVALS < 0].isfinite().any() and scores[1, 0].isfinite()
        assert link(TEXTS[:1]).shape == (1, 3)
        assert nb.linked(scores)[1:].tolist() == [1.0, 0.0]  # its only candidate, and none at all
    assert nb.prior_linker(TEXTS)[0].tolist() == [0, 1, 2]


def test_the_re_ranker_reads_the_shortlist_of_the_first_linker_only(tiny):
    names = ("cross_encoder", "bi_encoder", "start_maps", "encode", "read_entity")
    nb = page(tiny, *names)
    nb = page(tiny, *names, entities=nb.encode([nb.read_entity(title) for title in TITLES]))
    maps = nb.start_maps(1)
    first, again = nb.bi_encoder(maps)(TEXTS), nb.cross_encoder(tiny.model, nb.bi_encoder(maps))(TEXTS)
    left_out = first[0].argmin().item()
    assert [again[0, j].isfinite().item() for j in range(3)] == [j != left_out for j in range(3)]


def test_intervals_are_drawn_by_document():
    """Ten documents of ten equal mentions: wider than a hundred mentions drawn one by one."""
    a, none = np.repeat(np.arange(10) % 2, 10).astype(float), np.zeros(100)
    by_document, alone = ([f"d{i // 10}" for i in range(100)], [f"d{i}" for i in range(100)])
    wide, narrow = (take("gain", documents=names).gain(a, none, "x") for names in (by_document, alone))
    assert wide.n == 10 and wide.high - wide.low > 2 * (narrow.high - narrow.low)


def alone(tiny: SimpleNamespace, mention: tuple, entity: tuple) -> float:
    """Likeness of one pair, read without padding, mean by mean."""
    begin, end = tiny.tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]"])
    (a, m, b), (_, name, about) = mention, entity
    half, rest = [begin, *a, *m, *b, end], [*name, *about, end]
    kinds = torch.tensor([[0] * len(half) + [1] * len(rest)])
    with torch.inference_mode():
        hidden = tiny.model(input_ids=torch.tensor([half + rest]), token_type_ids=kinds).last_hidden_state[0]
    unit = lambda rows: torch.nn.functional.normalize(rows.sum(0), dim=0)  # noqa: E731
    n = len(half)
    u = unit(hidden[1 + len(a) : 1 + len(a) + len(m)]) + unit(hidden[1 : n - 1])
    e = unit(hidden[n : n + len(name)]) + unit(hidden[n : n + len(name) + len(about)])
    return torch.cosine_similarity(u, e, dim=0).item()


def test_pairs_are_read_as_one_text(tiny):
    nb = page(tiny, "read_together", "read_mention", "read_entity")
    pairs = [(nb.read_mention(*text, 32), nb.read_entity(t)) for text in TEXTS for t in TITLES]
    with torch.inference_mode():
        got = nb.read_together(tiny.model, pairs)
    want = torch.tensor([alone(tiny, *pair) for pair in pairs])
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def test_a_pair_without_a_mention_has_a_likeness(tiny):
    nb = page(tiny, "read_together", "read_mention", "read_entity")
    got = nb.read_together(tiny.model, [(nb.read_mention("", "", "", 32), nb.read_entity(TITLES[0]))])
    assert got.isfinite().all()


def test_shortlists_begin_with_the_right_entity():
    apart = torch.tensor([[0.1, 0.9, 0.5], [0.3, -torch.inf, -torch.inf]])
    own = torch.tensor([[0, 1, 2], [3, -1, -1]])
    assert take("shortlist").shortlist(apart, own, torch.tensor([2, 3])).tolist() == [[2, 1], [3, -1]]
    assert take("shortlist", top=9).shortlist(apart, own, torch.tensor([1, 3])).tolist() == [
        [1, 2, 0, -1],
        [3, -1, -1, -1],
    ]


def test_the_fit_learns_and_leaves_the_trunk_alone(tiny):
    """Four mentions whose right entity is told by one word; the lower layers and the trunk itself stay as they were."""
    nb = page(tiny, "fit_cross", "pair_scores", "read_mention", rerank_steps=40, CROSS_RATE=3e-3, PAIRS=4)
    words = ["port", "gulf", "old", "new"]
    rows = [nb.read_mention(word, "Lorn", word, 32) for word in words]
    own = torch.tensor([[i, *[j for j in range(4) if j != i]] for i in range(4)])
    apart, before = torch.zeros(4, 4), deepcopy(tiny.model.state_dict())
    with torch.inference_mode(False):
        reader = nb.fit_cross(rows, own, apart)
    assert (nb.pair_scores(reader, rows, own, apart).argmax(1) == 0).all()
    assert all(torch.equal(v, before[k]) for k, v in tiny.model.state_dict().items())
    changed = {k.split(".")[2] for k, v in reader.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"1", "2"}


def test_a_score_that_is_no_number_stops_the_run(tiny):
    """Also where the re-ranker's weights have diverged; `argmax` would take the first NaN for the best."""
    scores = torch.tensor([[0.1, torch.nan, 0.2, 0.3]])
    with pytest.raises(ValueError, match="not a number"):
        take("best_candidate").best_candidate(scores, RIVALS[:1])
    nb = page(tiny, "pair_scores", "read_mention")
    broken = deepcopy(tiny.model)
    broken.encoder.layer[-1].output.dense.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="not a number"):
        nb.pair_scores(broken, [nb.read_mention(*TEXTS[0], 32)], torch.tensor([[0, 1]]), torch.zeros(1, 2))


def test_the_re_rankers_score_is_that_of_its_candidate(tiny):
    """Likeness read together plus the first linker's score, at the candidate's own place."""
    names = ("cross_encoder", "read_mention", "read_entity")
    nb = page(tiny, *names)
    first = torch.tensor([[0.1, 0.5, 0.9], [0.3, -torch.inf, -torch.inf], [-torch.inf] * 3])
    again = nb.cross_encoder(tiny.model, lambda texts: first)(TEXTS)
    for i, j in ((0, 1), (0, 2), (1, 0)):
        pair = nb.read_mention(*TEXTS[i], 32), nb.read_entity(TITLES[RIVALS[i, j]])
        assert again[i, j].item() == pytest.approx(alone(tiny, *pair) + first[i, j].item(), abs=1e-5)
    assert again.isfinite().sum() == 3
