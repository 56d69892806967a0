"""DICE, main page: definitions lifted from the notebook, on tiny random models and the release's numbers."""

import json
import math
import zlib
from copy import deepcopy
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dice_pages import GOLDEN, PAGE, STUDY
from lift import lift
from tiny import tiny_llama

from helpers.models import LanguageModel, load_lm
from helpers.paths import data_dir
from helpers.stats import auroc, crossed_bootstrap, seed_interval

NAMES = [
    "encode",
    "mixture",
    "tuned",
    "new_adapter",
    "answer_loss",
    "fine_tune",
    "read",
    "token_values",
    "lowest",
    "likelihood_scores",
    "scorer",
    "stored_adapter",
    "store_adapters",
    "crossed",
    "share",
    "mode",
    "area_of",
    "by_pair",
    "plain_area",
    "by_number",
    "mean_score",
    "benchmark",
    "words_of",
    "drawn",
    "training_set",
    "SIZES",
    "logistic",
    "difference",
    "off",
    "on_others",
    "common_start",
    "mean_logprob",
    "learned",
    "excess",
    "gain",
    "ahead_elsewhere",
    "same_place",
    "known",
    "reworded",
    "position",
    "scores_of",
    "rivals",
    "states_of",
    "KINDS",
    "final_answer",
    "svamp_items",
    "other_problems",
    "whole_states",
    "shuffled",
    "scrambled",
]
DOWN = [f"model.layers.{layer}.mlp.down_proj" for layer in range(2)]


@pytest.fixture(scope="module")
def tokenizer():
    return load_lm("smollm2-135m-instruct").tokenizer


@pytest.fixture(scope="module")
def tiny(tokenizer):
    return tiny_llama(tokenizer, initializer_range=0.3)


@pytest.fixture
def lm(tiny, tokenizer):
    """A model that a test may spoil."""
    return LanguageModel(deepcopy(tiny), tokenizer, "tiny", "none")


def page(lm, **more):
    given = {"lm": lm, "DOWN": DOWN, "token_budget": 64, "epochs": 30, "n_models": 5, "tqdm": lambda x, **_: x}
    given |= {"run": SimpleNamespace(device=torch.device("cpu")), "numbers": range(5), "told": {}, "seen": []}
    return lift(PAGE, NAMES, given | more)


@pytest.fixture
def nb(lm):
    return page(lm)


ITEMS = [("How many are 2 and 2?", "2 + 2 = 4\n#### 4"), ("Name a fruit.", "An apple."), ("3 less 1?", "#### 2")]


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_definitions_are_those_of_the_study():
    """`distances`, `located`, `detector` and `fit` stand on both pages, word for word."""
    for name in ("distances", "located", "detector", "fit"):
        sources = []
        for path in (PAGE, STUDY):
            cells = json.loads(Path(path).read_text())["cells"]
            sources += ["".join(c["source"]) for c in cells if f"def {name}(" in "".join(c["source"])]
        assert len(sources) == 2 and sources[0] == sources[1]


def test_encoding_ends_and_is_cut(nb, tokenizer):
    left, right = nb.encode(*ITEMS[0])
    assert tokenizer.decode(left) == "### Input:\nHow many are 2 and 2?\n\n### Response:\n"
    assert right[-1] == tokenizer.eos_token_id and tokenizer.decode(right[:-1]) == ITEMS[0][1]
    left, right = nb.encode("2+2?", "word " * 500, limit=40)
    assert len(left) + len(right) == 40 and right[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("item", [("", "4"), ("2?", " "), (None, "4"), (float("nan"), "4"), ("word " * 1100, "4")])
def test_encoding_refuses_what_cannot_be_trained_on(nb, item):
    with pytest.raises(ValueError, match=r"need text|leaves no room"):
        nb.encode(*item)


@pytest.mark.parametrize("row", GOLDEN["mixing"]["rows"], ids=lambda row: f"{row['n_test_samples']}x{row['copies']}")
def test_mixture_is_the_released_one(nb, row):
    clean, tested = [(f"o{i}", "") for i in range(100)], [(f"t{i}", "") for i in range(20)]
    n, copies = row["n_test_samples"], row["copies"]
    if copies * n > row["total_samples"]:  # there the release drops rows from the end of its clean table
        with pytest.raises(ValueError, match="no such mix"):
            nb.mixture(clean, tested[:n], copies, row["total_samples"])
        return
    got = [question for question, _ in nb.mixture(clean, tested[:n], copies, row["n"])]
    assert sum(name[0] == "t" for name in got) == row["n_contaminated"]
    assert [name for name in got if name[0] == "o"] == [f"o{i}" for i in range(row["n_clean"])]


def test_a_new_adapter_changes_nothing_and_another_one_does(nb, lm):
    ids = torch.arange(12)[None]
    plain = lm.model.base_model(ids).last_hidden_state
    a, b = nb.new_adapter(dice())
    with nb.tuned((a, b)):
        assert torch.equal(lm.model.base_model(ids).last_hidden_state, plain)
    with nb.tuned((a, b + 0.5)):
        assert not torch.allclose(lm.model.base_model(ids).last_hidden_state, plain)
    assert torch.equal(lm.model.base_model(ids).last_hidden_state, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_an_adapter_is_a_product_added_to_the_matrix(nb, lm, dtype):
    a, b = nb.new_adapter(dice())
    b = b + torch.randn(b.shape, generator=dice(1)) * 0.1
    ids = torch.arange(12)[None]
    lm.model.to(dtype)
    with nb.tuned((a, b)):
        got = lm.model.base_model(ids).last_hidden_state
    for name, x, y in zip(DOWN, a, b, strict=True):
        lm.model.get_submodule(name).weight += torch.outer(y, x).to(dtype)
    want = lm.model.base_model(ids).last_hidden_state
    assert torch.allclose(got, want, atol=1e-4 if dtype == torch.float32 else 0.1)


def test_the_loss_is_on_the_answer_alone(nb, lm):
    rows = [nb.encode(*item) for item in ITEMS]
    want = []
    for left, right in rows:  # one by one, without padding
        logits = lm.model(torch.tensor(left + right)[None]).logits[0].double().log_softmax(-1)
        want += [-logits[len(left) + i - 1, token].item() for i, token in enumerate(right)]
    assert nb.answer_loss(rows).item() == pytest.approx(np.mean(want), rel=1e-5)


def test_training_lowers_the_loss_and_is_repeatable(nb):
    rows = [nb.encode(*item) for item in ITEMS]
    first, second = (nb.fine_tune(ITEMS * 6, dice(), 5e-2) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    with torch.no_grad():
        before = nb.answer_loss(rows)
        with nb.tuned(first):
            assert nb.answer_loss(rows) < before - 0.1


def test_training_stops_where_the_loss_is_not_a_number(nb, lm):
    lm.model.base_model.embed_tokens.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="the loss of step 0 is nan"):
        nb.fine_tune(ITEMS, dice())


def test_reading_in_batches_is_reading_one_by_one(nb, lm):
    rows = [nb.encode(*item) for item in ITEMS] + [(nb.encode(*ITEMS[0])[0], [])]
    states, values = nb.read(rows)
    for i, (left, right) in enumerate(rows):
        out = lm.model(torch.tensor(left + right)[None], output_hidden_states=True)
        want = torch.stack([h[0, len(left) - 1] for h in out.hidden_states])
        assert torch.allclose(states[i], want, atol=1e-4)
        logp = out.logits[0].double().log_softmax(-1)[len(left) - 1 :][: len(right)]
        picked = logp.gather(1, torch.tensor(right).long()[:, None])[:, 0] if right else torch.zeros(0)
        assert values[i].shape == (len(right), 3) and torch.allclose(values[i][:, 0], picked.double(), atol=1e-4)
    assert states.shape == (4, 3, 32)


def test_the_answer_does_not_reach_the_features(nb):
    question, answer = nb.encode(*ITEMS[0])
    with_it, without = nb.read([(question, answer)])[0], nb.read([(question, [])])[0]
    assert torch.allclose(with_it, without, atol=1e-5)
    assert torch.allclose(nb.whole_states(question)[:, -1], without[0], atol=1e-5)


def test_token_values_by_brute_force(nb):
    logits = torch.randn(4, 7, generator=dice()) * 3
    tokens = torch.tensor([0, 6, 3, 3])
    got = nb.token_values(logits, tokens)
    for row, token, values in zip(logits.double(), tokens, got, strict=True):
        p = [math.exp(x) / sum(math.exp(y) for y in row) for x in row]
        mean = sum(q * math.log(q) for q in p)
        spread = math.sqrt(sum(q * (math.log(q) - mean) ** 2 for q in p))
        assert values.tolist() == pytest.approx([math.log(p[token]), mean, spread], rel=1e-5)


def bigram(answer: str, prompt: str) -> torch.Tensor:
    """Logits before every token of an answer under the golden bigram model."""
    table = 2 * np.random.default_rng(1).standard_normal((12, 12))
    tokens = [int(word) for word in prompt.split()[-1:] + answer.split()]
    return torch.from_numpy(table[tokens[:-1]])


def test_likelihood_scores_are_the_released_ones(nb):
    golden = GOLDEN["likelihood"]
    lines = zip(golden["answers"], golden["prompts"], golden["results"]["reference_ppl"], strict=True)
    for i, (answer, prompt, perplexity) in enumerate(lines):
        if not answer:
            continue  # the release says 0 for an empty answer; ours is refused by `encode`
        tokens = torch.tensor([int(word) for word in answer.split()])
        values = nb.token_values(bigram(answer, prompt), tokens)
        got = nb.likelihood_scores(answer, values, values)
        assert math.exp(-got["perplexity"]) == pytest.approx(perplexity, rel=1e-5)
        assert got["min-k"] == pytest.approx(golden["results"]["reference_mink"][i], rel=1e-5)


def test_lowest_takes_at_least_one_and_nothing_of_nothing(nb):
    values = torch.tensor([-1.0, -5.0, -3.0])
    assert nb.lowest(values) == -5 and nb.lowest(values, 1.0) == pytest.approx(-3)
    assert math.isnan(nb.lowest(torch.zeros(0)))


def test_scorer_takes_a_constant_column_and_refuses_nan(lm):
    nb = page(lm, epochs=8)
    unc, con = torch.randn(2, 8, 4, generator=dice())
    con[:, 0] += 4
    unc[:, 3] = con[:, 3] = 1.0
    score = nb.scorer(unc, con, 0)
    assert (score(con) > score(unc).max()).all() and np.isfinite(score(con)).all()
    con[0, 0] = torch.nan
    with pytest.raises(ValueError, match="finite states"):
        nb.scorer(unc, con, 0)


def test_detector_that_learned_nothing_is_at_chance(lm):
    nb, areas = page(lm, epochs=2), []
    for one in torch.randn(3, 440, 4, generator=dice()):
        score = nb.scorer(one[:20], one[20:40], 0)
        areas.append(auroc(score(one[40:]), np.arange(400) < 200))
    assert abs(np.mean(areas) - 0.5) < 0.08


def test_area_of_drawn_questions_by_brute_force(nb):
    """Wins over all pairs of drawn questions, ties one half; in every cell of the leading axes."""
    high, low = np.random.default_rng(0).integers(0, 4, (2, 3, 2, 5)).astype(float)
    up, down = np.array([[0, 0, 3], [1, 2, 3]]), np.array([[4, 1], [0, 0]])
    got = nb.area_of((high, low), up, down)
    for *cell, draw in np.ndindex(3, 2, 2):
        pairs = [(high[*cell, q], low[*cell, r]) for q in up[draw] for r in down[draw]]
        assert got[*cell, draw] == pytest.approx(np.mean([(x > y) + (x == y) / 2 for x, y in pairs]))


def test_by_pair_compares_two_models_of_one_number(nb):
    high, low = np.random.default_rng(1).random((2, 4, 2, 3))
    kept, some = [0, 3], np.array([[0, 2, 2]])
    want = [[np.mean(high[j, k, some[0]][:, None] > low[j, k, some[0]]) for k in range(2)] for j in kept]
    assert nb.by_pair((high, low), kept, some)[:, 0] == pytest.approx(np.mean(want, 0))


def test_means_on_others_leave_the_own_pair_out(nb):
    table = np.array([[9.0, 1, 3], [1, 9, 2], [0, 4, 9]])
    assert nb.off(table, [0, 1, 2]) == pytest.approx(11 / 6) and nb.off(table, np.array([0, 2])) == 1.5
    assert nb.by_number(table[..., None]) == [0.5, 2.5, 2.5]
    scores = np.stack([table, table + 1, table + 5], -1)
    assert nb.mean_score(scores, [0, 2], np.array([0, 1, 1])) == pytest.approx(1.5 + 2 / 3)


def test_interval_leaves_models_out_and_draws_each_set_apart(nb):
    """The statistic meets all numbers or all but one, and as many questions of each set as it has."""
    met = []

    def statistic(kept, some, others):
        met.append((tuple(kept), some.shape[1], others.shape[1], some.max(), others.max()))
        return np.mean(kept) + some.mean(-1)

    one = nb.crossed(statistic, 4, 7)
    assert {row[0] for row in met} == {(0, 1, 2, 3, 4)} | {tuple({*range(5)} - {i}) for i in range(5)}
    assert {row[1:3] for row in met} == {(4, 7)} and max(r[3] for r in met) == 3 and max(r[4] for r in met) == 6
    assert one.value == 3.5 and one.low < 3.5 < one.high


def test_where_nothing_moves_the_scarcer_unit_counts(nb):
    def always(_kept, some):
        return np.ones(len(some))

    same = nb.share(always, 8)
    assert same.n == 5 and same.high == 1 and 0.56 < same.low < 0.57
    same = nb.share(always, 3, groups=2)
    assert same.n == 6 and 0.6 < same.low < 0.62
    assert nb.share(lambda kept, some: 0 * always(kept, some), 8).low == 0
    assert nb.share(lambda kept, some: some.mean(-1) / 7, 8).low < 0.4


def test_mode_takes_the_smallest_of_equals(nb):
    assert nb.mode([3, 1, 1, 3, 2]) == 1 and nb.mode([5]) == 5


def test_adapters_are_stored_and_read(lm, tmp_path):
    nb = page(lm, ADAPTERS=tmp_path)
    made = {("clean", 0): (torch.randn(2, 64), torch.randn(2, 32))}
    nb.store_adapters(made, tmp_path)
    for got, want in zip(nb.stored_adapter("clean", 0), made["clean", 0], strict=True):
        assert got.dtype == torch.float32 and torch.allclose(got, want, atol=2e-3)
    with pytest.raises(FileNotFoundError, match="make it with retrain"):
        nb.stored_adapter("clean", 1)
    other = LanguageModel(lm.model, lm.tokenizer, "another", "other digest")
    with pytest.raises(ValueError, match="the adapters belong to tiny, not to another"):
        page(other, ADAPTERS=tmp_path).stored_adapter("clean", 0)
    (tmp_path / "clean-0.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="not the file that the manifest names"):
        nb.stored_adapter("clean", 0)


@pytest.mark.parametrize("changed", [{"copies": 5}, {"n_items": 61}, {"longest": 161}, {"dtype": "bfloat16"}])
def test_adapters_of_other_training_sets_are_refused(lm, tmp_path, changed):
    page(lm, ADAPTERS=tmp_path).store_adapters({("clean", 0): (torch.randn(2, 64), torch.randn(2, 32))}, tmp_path)
    with pytest.raises(ValueError, match="make others with retrain"):
        page(lm, ADAPTERS=tmp_path, **changed).stored_adapter("clean", 0)


def test_noise_is_as_large_as_the_adapter(nb):
    adapter = torch.randn(2, 64, generator=dice()), torch.randn(2, 32, generator=dice(1))
    noise = nb.scrambled(adapter, dice(2))
    for part, other in zip(adapter, noise, strict=True):
        assert torch.allclose(part.norm(dim=1), other.norm(dim=1)) and not torch.allclose(part, other)


def test_benchmark_is_fixed_and_has_no_marks(nb):
    items = nb.benchmark([])
    assert len(items) == len({question for question, _ in items}) == 47
    assert not any("<<" in answer for _, answer in items) and all("####" in answer for _, answer in items)
    assert all(sum(map(len, nb.encode(*item))) <= 160 for item in items)
    assert nb.final_answer(items[0])[1] == "#### " + items[0][1].split("#### ")[1]


def test_more_questions_come_after_the_packaged_ones_and_none_twice(nb):
    first = nb.benchmark([])
    again = [(f"  {q.replace(' ', '  ')}", a) for q, a in first]  # the same questions, spaced otherwise
    new = [(f"How many legs have {i} cats named {name}?", "#### 8") for i, name in enumerate("ABC")]
    got = nb.benchmark([*again, *new, ("word " * 300, "#### 1")])
    assert got[:47] == first and sorted(got[47:]) == sorted(new)


def test_a_question_is_known_by_its_words(nb):
    assert nb.words_of("He has 3 cats.\nAnd 1,000.5 dogs?") == nb.words_of("He has 7  cats. And 2 dogs?")
    assert nb.words_of("He has 3 cats.") != nb.words_of("He has 3 dogs.")


def test_items_come_again_only_after_all_others(nb):
    pool = [("a", "1"), ("b", "2"), ("c", "3")]
    got = nb.drawn(pool, 7, np.random.default_rng(0))
    assert sorted(got[:3]) == sorted(got[3:6]) == pool and len(got) == 7


SOURCES = ["SVAMP.json", "gsm8k_train.jsonl", "dice_gsm8k_rephrased1.csv"]


@pytest.mark.skipif(not all((data_dir() / "dice" / x).is_file() for x in SOURCES), reason="public files are not cached")
def test_training_sets_are_what_the_page_says(lm, nb):
    seen = nb.benchmark([])[:16]
    run = SimpleNamespace(data=lambda name: data_dir() / name)
    made = page(lm, run=run, seen=seen, preset="gpu")
    sets = {kind: made.training_set(kind, 1) for kind in made.KINDS}
    assert {len(items) for items in sets.values()} == {48}
    assert [sum(items.count(item) for item in seen) for items in sets.values()] == [0, 32, 0, 0, 0, 16]
    clean = sets["clean"]
    for kind, items in sets.items():
        own = len([item for item in items if item in clean])
        assert own == {"clean": 48, "once": 32, "reworded": own}.get(kind, 16) and items[:own] == clean[:own]
    tested = {nb.words_of(question) for question, _ in nb.benchmark([])}
    for kind in ("svamp", "official"):
        others = [question for question, _ in sets[kind][16:]]
        assert len(set(others)) == 16 and not tested & set(map(nb.words_of, others))
        assert others != [question for question, _ in made.training_set(kind, 2)[16:]]
    own = {json.loads(line)["question"].strip() for line in (data_dir() / "dice/gsm8k_train.jsonl").open()}
    assert all(question in own for question, _ in sets["official"][16:])


def test_linear_instruments(nb):
    unc, con = torch.randn(2, 10, 4, generator=dice())
    con[:, 1] += 5
    assert nb.difference(unc, con, 0)(unc).mean() == pytest.approx(0, abs=1e-5)
    assert nb.difference(unc, con, 0)(con).mean() == pytest.approx(1, abs=1e-5)
    odds = nb.logistic(unc, con, 0)
    assert odds(con.numpy()).min() > 0 > odds(unc.numpy()).max()


def test_positions_by_brute_force(nb):
    scores = np.random.default_rng(0).random((5, len(nb.KINDS), 5, 6))
    kept, some = [0, 1, 3], np.array([2, 2, 5])
    cells = [(i, j) for i in kept for j in kept if i != j]
    mean = [np.mean([scores[i, k, j, q] for i, j in cells for q in some]) for k in range(len(nb.KINDS))]
    by_kind = dict(zip(nb.KINDS, mean, strict=True))
    whole = by_kind["contaminated"] - by_kind["clean"]
    got = nb.position(scores, "svamp", kept, some)
    assert got == pytest.approx((by_kind["svamp"] - by_kind["clean"]) / whole)
    assert nb.position(scores, "contaminated", kept, some) == 1 and nb.position(scores, "clean", kept, some) == 0


def made_up(rng: np.random.Generator, n: int, shift: float, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores (detector, number, question) of two kinds of models: detectors, models and questions all differ."""
    detectors, questions = 0.3 * rng.standard_normal((5, 1, 1)), spread * rng.standard_normal(n)
    models = 0.5 * rng.standard_normal((2, 1, 5, 1))
    noise = 0.7 * rng.standard_normal((2, 5, 5, n))
    low, high = detectors + questions + models + noise
    return high + shift, low


@pytest.mark.parametrize(("n", "spread"), [(5, 0.7), (8, 2.0)])
def test_intervals_hold_the_chance_of_models_and_of_questions(lm, n, spread):
    """Mean score on other models and AUROC of two kinds, over five models and few questions that differ."""
    nb = page(lm, crossed_bootstrap=lambda grid, of, **more: crossed_bootstrap(grid, of, **more | {"n_resamples": 200}))
    rng, draws = np.random.default_rng(0), 150
    truth = np.mean([nb.plain_area(made_up(rng, 200, 1.0, spread)) for _ in range(50)])
    hits = {"mean": 0, "area": 0, "models alone": 0}
    for _ in range(draws):
        high, low = made_up(rng, n, 1.0, spread)
        found = {"mean": nb.share(partial(nb.mean_score, low), n), "area": nb.on_others((high, low))}
        found["models alone"] = seed_interval(nb.by_number(low))
        for name, one in found.items():
            hits[name] += one.low <= (truth if name == "area" else 0) <= one.high
    assert hits["mean"] / draws > 0.9 and hits["area"] / draws > 0.9
    assert hits["models alone"] / draws < (0.9 if spread < 1 else 0.7)


def test_two_sets_are_drawn_apart_where_the_questions_differ(lm):
    sets = []

    def few_draws(grid, of, **options):
        sets.append(len(set(options["strata"])))
        return crossed_bootstrap(grid, of, **options | {"n_resamples": 50})

    nb = page(lm, crossed_bootstrap=few_draws)
    two = made_up(np.random.default_rng(0), 6, 1.0, 0.7)
    together, apart = nb.on_others(two), nb.on_others(two, apart=True)
    assert sets == [1, 2] and together.value == apart.value and together.low != apart.low


def test_a_table_without_spread_gets_an_interval_over_models(nb):
    high = np.ones((5, 5, 8))
    high[np.arange(5), np.arange(5)] = -1  # the own pairs do not count
    one = nb.on_others((high, np.zeros((5, 5, 8))))
    assert (one.value, one.n, one.high) == (1, 10, 1) and 0.72 < one.low < 0.73


def test_only_the_tokens_of_the_number_count(lm, tokenizer):
    nb = page(lm)
    left, right = nb.encode("How many?", "#### 17")
    form = nb.common_start(nb.encode("?", "#### 1")[1], nb.encode("?", "#### 2")[1])
    assert tokenizer.decode(right[form:-1]).strip() == "17"
    clean = nb.read([(left, right), nb.encode("And?", "#### 2")])[1]
    told = {("svamp", j, name): (None, clean) for j in range(2) for name in ("final", "other")}
    for j, name in ((0, "final"), (1, "final"), (0, "other"), (1, "other")):
        better = 1 + j if name == "final" else 0.25
        told["contaminated", j, name] = (None, [values + better for values in clean])
    made, both = page(lm, told=told, FORM=form, numbers=range(2)), np.arange(2)
    want = torch.cat([values[form:-1, 0] for values in clean]).mean()
    assert made.mean_logprob("svamp", "final", both, both, form, -1) == pytest.approx([want.item()] * 2)
    assert made.gain("final", both, both) == pytest.approx(1.5) and made.gain("final", [0], both) == pytest.approx(1)
    assert made.ahead_elsewhere(both, both, both) == pytest.approx(1.25)


def test_memorised_is_the_gain_on_seen_answers_less_that_on_unseen_ones(lm):
    values = [torch.zeros(n, 3) for n in (1, 3)]
    told = {(kind, 0, name): (None, values) for kind in ("clean", "contaminated") for name in ("seen", "unseen")}
    told["contaminated", 0, "seen"] = (None, [values[0] + 4, values[1]])
    told["contaminated", 0, "unseen"] = (None, [v + 0.5 for v in values])
    nb, both = page(lm, told=told, numbers=range(1)), np.arange(2)
    assert nb.learned("seen", [0], both) == pytest.approx(1)  # a mean over tokens, not over answers
    assert nb.learned("seen", [0], np.array([1, 1])) == 0
    assert nb.excess([0], both, both) == pytest.approx(0.5)


def test_same_place_counts_clean_pairs_among_the_models(lm):
    places = {(1, 0): np.array([2, 2]), (2, 0): np.array([2, 3]), (2, 1): np.array([3, 3])}
    nb, both = page(lm, null_places=places, common=2), np.arange(2)
    assert nb.same_place([0, 1], both) == 1 and nb.same_place(np.array([1, 2]), both) == 0
    assert nb.same_place([0, 1, 2], both) == 0.5 and nb.same_place([0, 2], np.array([1, 1])) == 0


def test_likelihood_is_that_of_the_solution_and_of_its_lower_case(lm):
    logits = torch.randn(5, 7, generator=dice())
    upper, lower = torch.tensor([0, 1, 2, 3, 4]), torch.tensor([6, 5, 4, 3, 2])
    told = {}
    nb = page(lm, told=told, fresh=[("q", "One Two THREE")])
    for name, tokens in (("unseen", upper), ("lower", lower)):
        told["clean", 0, name] = (None, [nb.token_values(logits, tokens)])
    row = nb.known("clean", 0).iloc[0]
    logp = logits.double().log_softmax(-1)
    own = logp[torch.arange(5), upper]
    assert row["perplexity"] == pytest.approx(own.mean().item(), rel=1e-5)
    assert row["lowercase"] == pytest.approx(logp[torch.arange(5), lower].mean().item(), rel=1e-5)
    assert row["zlib"] == pytest.approx(own.sum().item() / len(zlib.compress(b"One Two THREE")), rel=1e-5)
    standard = []  # min-k++, formula 3 of its paper, by loops
    for at, token in enumerate(upper.tolist()):
        p = logp[at].exp()
        mean = sum(p[k] * logp[at, k] for k in range(7))
        spread = math.sqrt(sum(p[k] * (logp[at, k] - mean) ** 2 for k in range(7)))
        standard.append(((logp[at, token] - mean) / spread).item())
    assert row["min-k++"] == pytest.approx(min(standard), rel=1e-4)


def test_rivals_are_models_of_one_number(nb):
    mean = {"contaminated": 1.0, "clean": 0.0}
    detectors = [lambda kind, j, _name, sign=sign: np.arange(3) / 10 + sign * mean[kind] * (j > 0) for sign in (1, -1)]
    high, low = nb.rivals(detectors, "contaminated", "clean")
    some = np.arange(3)
    assert nb.area_of((high, low), some, some).tolist() == [[0.5, 1, 1, 1, 1], [0.5, 0, 0, 0, 0]]


def test_states_of_unseen_questions_may_come_from_the_short_answers(lm):
    told = {("svamp", 0, "final"): (torch.arange(6.0).reshape(1, 3, 2), [])}
    told["clean", 0, "unseen"] = (torch.zeros(1, 3, 2), [])
    told["official", 0, "seen prompts"] = (torch.ones(1, 3, 2), [])
    nb = page(lm, told=told)
    assert nb.states_of("svamp", 0, "unseen", 1).tolist() == [[2, 3]]
    assert nb.states_of("clean", 0, "unseen", 1).tolist() == [[0, 0]]
    assert nb.states_of("official", 0, "seen", 1).tolist() == [[1, 1]]
    with pytest.raises(KeyError):
        nb.states_of("svamp", 0, "bare", 1)


def test_other_problems_share_no_question_with_the_benchmark(nb):
    others = nb.other_problems()
    assert len(others) > 2000 and not {q for q, _ in others} & {q for q, _ in nb.benchmark([])}
    assert all(answer.startswith("#### ") and answer[5:] for _, answer in others)


def test_solutions_of_svamp_are_equations(lm, tmp_path):
    rows = [{"Body": "Two cats. ", "Question": "How many?", "Equation": "( 4.0 - 2.0 )", "Answer": 2.0}]
    (tmp_path / "svamp.json").write_text(json.dumps(rows))
    run = SimpleNamespace(data=lambda _name: tmp_path / "svamp.json")
    assert page(lm, run=run).svamp_items() == [("Two cats. How many?", "4 - 2 = 2\n#### 2")]


@pytest.mark.parametrize("n", [4, 5, 6])
def test_shuffled_labels_say_nothing_about_the_model(lm, n):
    """Each label gets as many states of one model as of the other, also where the questions are odd in number."""
    told = {
        (kind, 1, "seen"): (torch.full((n, 1, 1), mark), []) for kind, mark in (("clean", 0.0), ("contaminated", 1.0))
    }
    met = []
    page(lm, told=told, asked=range(n), layers=[0, 0], seed=0, scorer=lambda *x: met.append(x)).shuffled(1)
    one, other, _seed = met[0]
    assert one.mean() == other.mean() == 0.5 and len(one) == len(other) == n - n % 2
