"""DICE, main page: definitions lifted from the notebook, on tiny random models and the release's numbers."""

import json
import math
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lift import lift
from tiny import tiny_llama

from helpers.models import LanguageModel, load_lm
from helpers.paths import data_dir
from helpers.stats import seed_interval

FOLDER = Path(__file__).resolve().parents[2] / "notebooks" / "dice"
PAGE, STUDY = (str(FOLDER / f"{name}.ipynb") for name in ("dice", "published_numbers"))
GOLDEN = json.loads(Path(__file__).with_name("dice_golden.json").read_text())
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
    "over_models",
    "jackknife",
    "mode",
    "area",
    "across",
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
    "number_logprob",
    "gain",
    "same_place",
    "known",
    "reworded",
    "position",
    "areas",
    "states_of",
    "KINDS",
    "final_answer",
    "svamp_items",
    "other_problems",
    "whole_states",
    "scrambled",
]
DOWN = [f"model.layers.{layer}.mlp.down_proj" for layer in range(2)]


@pytest.fixture(scope="module")
def tokenizer():
    return load_lm("smollm2-135m-instruct").tokenizer


@pytest.fixture
def lm(tokenizer):
    return LanguageModel(tiny_llama(tokenizer, initializer_range=0.3), tokenizer, "tiny", "none")


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
    first, second = (nb.fine_tune(ITEMS * 16, dice(), 2e-2) for _ in range(2))
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


def test_scorer_takes_a_constant_column_and_refuses_nan(nb):
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
        areas.append(nb.area(score(one[40:240]), score(one[240:])))
    assert abs(np.mean(areas) - 0.5) < 0.08


def test_area_counts_ties_as_half(nb):
    assert nb.area(np.ones(3), np.ones(4)) == 0.5 and nb.area(np.array([2.0]), np.array([1.0])) == 1


def test_across_leaves_the_own_pair_out(nb):
    assert nb.across(np.array([[9.0, 1, 3], [1, 9, 2], [0, 4, 9]])) == [2, 1.5, 2]


def test_intervals_over_models(nb):
    same = nb.over_models([1.0] * 5, 10)
    assert same.n == 10 and same.high == 1 and 0.7 < same.low < 0.75
    assert nb.over_models([0.0] * 5, 10).low == 0
    values = [0.1, 0.2, 0.4, 0.3, 0.2]
    assert nb.over_models(values, 10) == seed_interval(values)
    mean = nb.jackknife(lambda kept: float(np.mean([values[i] for i in kept])))
    want = seed_interval(values)
    assert (mean.value, mean.low, mean.high) == pytest.approx((want.value, want.low, want.high))


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
    scores = np.random.default_rng(0).random((5, len(nb.KINDS), 5))
    kept = [0, 1, 3]
    mean = [np.mean([scores[i, k, j] for i in kept for j in kept if i != j]) for k in range(len(nb.KINDS))]
    assert nb.off(scores[:, 2], kept) == pytest.approx(mean[2])
    by_kind = dict(zip(nb.KINDS, mean, strict=True))
    whole = by_kind["contaminated"] - by_kind["clean"]
    assert nb.position(scores, "svamp", kept) == pytest.approx((by_kind["svamp"] - by_kind["clean"]) / whole)
    assert nb.position(scores, "contaminated") == 1 and nb.position(scores, "clean") == 0


def test_interval_on_other_models_covers_where_models_differ(nb):
    """Rows and columns that vary both; a t interval over rows covers half of the time here."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(300):
        rows, columns = rng.standard_normal((2, 5))
        one = nb.on_others(0.3 * rows[:, None] + columns + 0.3 * rng.standard_normal((5, 5)))
        hits += one.low <= 0 <= one.high
    assert 0.9 < hits / 300 < 0.99


def test_a_table_without_spread_gets_an_interval_over_models(nb):
    table = np.ones((5, 5)) - np.eye(5) / 2  # the own pairs do not count
    one = nb.on_others(table)
    assert (one.value, one.n, one.high) == (1, 10, 1) and 0.72 < one.low < 0.73


def test_only_the_tokens_of_the_number_count(lm, tokenizer):
    nb = page(lm)
    left, right = nb.encode("How many?", "#### 17")
    form = nb.common_start(nb.encode("?", "#### 1")[1], nb.encode("?", "#### 2")[1])
    assert tokenizer.decode(right[form:-1]).strip() == "17"
    told = {("clean", 0, "final"): (None, nb.read([(left, right), nb.encode("And?", "#### 2")])[1])}
    told["contaminated", 0, "final"] = (None, [values + 1 for values in told["clean", 0, "final"][1]])
    made = page(lm, told=told)
    want = torch.cat([values[form:-1, 0] for values in told["clean", 0, "final"][1]]).mean()
    assert made.number_logprob("clean", 0, "final") == pytest.approx(want.item())
    assert made.gain("final", 0, "clean") == pytest.approx(1)


def test_same_place_counts_clean_pairs_among_the_models(lm):
    def one(index):
        return {"last token": torch.eye(4)[[index, index]]}

    nb = page(lm, null={(1, 0): one(2), (2, 0): one(2), (2, 1): one(3)}, common=2)
    assert (
        nb.same_place([0, 1]) == 1 and nb.same_place([1, 2]) == 0 and nb.same_place([0, 1, 2]) == pytest.approx(2 / 3)
    )


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


def test_areas_compare_models_of_one_number(nb):
    mean = {"contaminated": 1.0, "clean": 0.0}
    detectors = [lambda kind, j, _name, sign=sign: np.arange(3) / 10 + sign * mean[kind] * (j > 0) for sign in (1, -1)]
    got = nb.areas(detectors, "contaminated", "clean")
    assert got.tolist() == [[0.5, 1, 1, 1, 1], [0.5, 0, 0, 0, 0]]


def test_states_of_unseen_questions_may_come_from_the_short_answers(lm):
    told = {("svamp", 0, "final"): (torch.arange(6.0).reshape(1, 3, 2), [])}
    told["clean", 0, "unseen"] = (torch.zeros(1, 3, 2), [])
    nb = page(lm, told=told)
    assert nb.states_of("svamp", 0, "unseen", 1).tolist() == [[2, 3]]
    assert nb.states_of("clean", 0, "unseen", 1).tolist() == [[0, 0]]
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
