"""Safety neurons: definitions lifted from the notebook, on tiny random models whose answers are known."""

import gzip
import json
import re
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from lift import lift, sabotage
from safetensors.torch import save_file
from safety_neurons_golden import ANSWERS as ANSWER_TOKENS
from safety_neurons_golden import REQUESTS as REQUEST_TOKENS
from safety_neurons_golden import random_activations
from tiny import save_tiny, tiny_llama
from transformers import LlamaForSequenceClassification

from helpers.cache import Store
from helpers.models import LanguageModel, load_lm
from helpers.parameters import BadRequestError
from helpers.paths import data_dir
from helpers.request import resolve
from helpers.stats import crossed_bootstrap

FOLDER = Path(__file__).resolve().parents[2] / "notebooks" / "safety_neurons"
MAIN, ALIGNMENT, CONSEQUENCES, PUBLISHED = (
    f"notebooks/safety_neurons/{name}.ipynb"
    for name in ("safety_neurons", "alignment", "consequences", "published_numbers")
)
NAMES = [
    "Net",
    "Probe",
    "CostProbe",
    "Effects",
    "effect_ratio",
    "greedy",
    "write",
    "greedy_recomputed",
    "check_identities",
    "encode",
    "encode_answer",
    "lay_out",
    "answer_logprobs",
    "contrast",
    "ranked",
    "layer_matched",
    "REFUSAL",
    "PAIRS",
    "TRAINED",
    "held_out",
    "against_unrelated",
    "in_differences",
    "rate",
    "rate_difference",
    "rate_effect",
    "written",
    "is_refusal",
    "take",
    "stored_vectors",
    "split",
    "packaged_requests",
    "ADVBENCH",
    "HARMBENCH",
    "HARMLESS",
    "overlap",
    "shuffle_in_layers",
    "attribution",
    "baselines",
]
RUN = SimpleNamespace(device=torch.device("cpu"))
RELEASED = json.loads(Path(__file__).with_name("safety_neurons_golden.json").read_text())


@pytest.fixture(scope="module")
def nb():
    requests = pd.DataFrame({"set": "harmbench", "part": "test", "request": ["one", "two"]})
    return lift(MAIN, NAMES, {"guide": None, "requests": requests, "run": RUN, "kept": None, "written": {}})


@pytest.fixture(scope="module")
def tokenizer():
    return load_lm("smollm2-135m-instruct").tokenizer


@pytest.fixture
def tiny(nb, tokenizer):
    """A random two-layer Llama with the real tokenizer; large weights, so that greedy answers vary."""
    model = tiny_llama(tokenizer, initializer_range=0.5)
    return nb.Net(LanguageModel(model, tokenizer, "tiny", "none"))


@pytest.fixture
def guide(tiny):
    return 1 + 0.3 * torch.randn(tiny.shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def training(tokenizer):
    """The study that trains the vectors, around a tiny model."""
    lm = LanguageModel(tiny_llama(tokenizer, initializer_range=0.5), tokenizer, "tiny", "none")
    names = [
        "dpo_loss",
        "train_vectors",
        "one_epoch",
        "fine_tune",
        "pair_tokens",
        "logprob_sums",
        "on_policy_pairs",
        "style_pairs",
        "align_hh",
    ]
    names += ["store_vectors", "is_refusal", "REFUSAL", "REFUSALS", "OPENINGS", "aligned", "write"]
    down = [f"model.layers.{layer}.mlp.down_proj" for layer in range(2)]
    return lift(ALIGNMENT, [*names, "lm"], {"lm": lm, "DOWN": down, "shape": (2, 64), "n_pairs": 10})


REQUESTS = ["Name three fruits.", "What is a hexagon? Explain it to a child.", "Hi"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_identities_hold_on_a_tiny_model(nb, tiny, guide, dtype):
    tiny.lm.model.to(dtype)
    nb.check_identities(tiny, REQUESTS, guide, np.random.default_rng(0), n_tokens=8)


def test_checks_of_the_page_follow_the_precision(nb, tiny, guide):
    """The closed form of layer 0 within rounding steps, a dose of one, and everything patched, in bfloat16."""
    tiny.lm.model.to(torch.bfloat16)
    got = nb.contrast(tiny, REQUESTS[:1], [[5, 9, 11, 4]], {"other": guide})
    factor, rms = guide[0], got["size"]["answer"][0]
    off = (got["other"]["answer"][0] - (factor - 1).abs() * rms).abs()
    assert (off <= 4 * torch.finfo(torch.bfloat16).eps * (1 + factor.abs()) * rms).all()
    assert not (off <= 1e-3 * rms).all()  # what float32 allows would be too strict
    probe = nb.Probe(tiny, REQUESTS, nb.held_out(REQUESTS, 1), guide, nb.against_unrelated(1))
    every = torch.ones(tiny.shape, dtype=torch.bool)
    assert np.allclose(probe.score(mask=every), probe.score(guide), atol=1e-6)
    with tiny.using(patch=(torch.ones(tiny.shape), probe.sources[0])), torch.no_grad():  # a dose in float32
        dosed = nb.answer_logprobs(tiny, probe.texts[0]).numpy()
    assert dosed.shape == (3, 2) and np.isfinite(dosed).all()
    assert torch.isfinite(nb.attribution(tiny, probe)).all()


def test_a_wrong_patch_breaks_the_identities(nb, tiny, guide):
    tiny._hook, original = None, tiny._hook  # a patch that forgets one layer
    for handle in tiny.handles:
        handle.remove()
    layers = [m for name, m in tiny.lm.model.named_modules() if name.endswith("mlp.down_proj")]
    layers[0].register_forward_pre_hook(lambda module, inputs: original(0, module, inputs))
    wrong = lambda module, inputs: (inputs[0] * 1.5,) if tiny.switch[0] is not None else inputs  # noqa: E731
    layers[1].register_forward_pre_hook(wrong)
    with pytest.raises(AssertionError):
        nb.check_identities(tiny, REQUESTS, guide, np.random.default_rng(0), n_tokens=8)


def test_batching_does_not_change_answers(nb, tiny, guide):
    mask = torch.rand(tiny.shape, generator=torch.Generator().manual_seed(2)) < 0.4
    together = nb.greedy(tiny, REQUESTS, 6, guide=guide, mask=mask)
    assert together == nb.greedy(tiny, REQUESTS, 6, guide=guide, mask=mask, batch=1)


def test_what_m2_makes_of_the_requests_is_computed_once(nb, tiny, guide):
    """Every set of neurons starts from the same reading, and the answers are those of a fresh start."""
    begun: dict = {}
    masks = [torch.rand(tiny.shape, generator=torch.Generator().manual_seed(k)) < 0.4 for k in range(3)]
    for mask in masks:
        fresh = nb.greedy(tiny, REQUESTS, 6, guide=guide, mask=mask, batch=2)
        assert nb.greedy(tiny, REQUESTS, 6, guide=guide, mask=mask, batch=2, begun=begun) == fresh
    assert sorted(map(len, begun)) == [1, 2]  # two batches
    reads: list[int] = []
    hook = tiny.lm.model.register_forward_pre_hook(lambda *_: reads.append(1))
    nb.greedy(tiny, REQUESTS, 1, guide=guide, mask=masks[0], batch=2, begun=begun)
    hook.remove()
    assert len(reads) == 2  # the patched model reads each batch, M2 none


def test_m2_is_scored_by_the_pass_that_notes_its_activations(nb, tiny, guide):
    probe = nb.Probe(tiny, REQUESTS, nb.held_out(REQUESTS, 2), guide, nb.against_unrelated(2))
    assert np.allclose(probe.of_guide, probe.score(guide), atol=1e-6)


def plain_logprob(lm, left: list[int], right: list[int]) -> torch.Tensor:
    """Mean log-probability per token of one text, without padding or company."""
    logits = lm.model(torch.tensor([left + right])).logits[0].log_softmax(-1)
    return logits[len(left) - 1 : -1].gather(1, torch.tensor(right)[:, None]).mean()


def test_answers_that_share_a_request_do_not_see_each_other(nb, tiny):
    left = nb.encode(tiny, REQUESTS[0])
    several = [nb.encode_answer(tiny, text) for text in ("An apple and a pear.", "No.", "None at all")]
    rows = [(left + left, [[5], [6, 7], [8]]), (left, several)]  # the second is padded on the right
    with torch.no_grad():
        got = nb.answer_logprobs(tiny, nb.lay_out(tiny, rows))
        want = [[plain_logprob(tiny.lm, request, answer) for answer in answers] for request, answers in rows]
    assert got.shape == (2, 3) and torch.allclose(got, torch.tensor(want), atol=1e-5)


def test_held_out_sentences_are_scored_against_their_partners(nb, tiny, guide, tokenizer):
    """Columns: F of each pair, then the refusals, then the unrelated sentences."""
    probe = nb.Probe(tiny, REQUESTS, nb.held_out(REQUESTS, 3), guide, nb.against_unrelated(3))
    encoded = partial(tokenizer, add_special_tokens=False)
    with torch.no_grad():
        rows = []
        for request in REQUESTS:
            left = nb.encode(tiny, request)
            pairs = [[plain_logprob(tiny.lm, left, encoded(x)["input_ids"]) for x in pair] for pair in nb.PAIRS[:3]]
            refusals, unrelated = np.array(pairs).T
            rows.append([*(refusals - unrelated), *refusals, *unrelated])
    assert np.allclose(probe.score(), rows, atol=1e-4)


def test_f_is_a_difference_in_differences(nb, tiny, guide):
    """Columns: harmful minus harmless, both by themselves, then the two terms on harmful requests."""
    harmful, harmless = REQUESTS[:2], REQUESTS[1:]
    both = [*harmful, *harmless]
    got = nb.Probe(tiny, both, nb.held_out(both, 3), guide, nb.in_differences(3)).score()
    mix = nb.against_unrelated(3)
    first, second = (nb.Probe(tiny, r, nb.held_out(r, 3), guide, mix).score() for r in (harmful, harmless))
    want = [first[:, :3] - second[:, :3], first[:, :3], second[:, :3], first[:, 3:]]
    assert got.shape == (2, 15) and np.allclose(got, np.hstack(want), atol=1e-4)
    style = np.tile([1.0, 0.0], 6)  # refusals rise by one on all requests: that is no safety
    assert np.allclose(style @ nb.in_differences(3), [0] * 3 + [1] * 9 + [0] * 3)


def test_difference_of_two_rates_is_newcombes(nb):
    """Of 50 requests 36 are refused by both, 12 by the first only, 2 by the second only: Newcombe 1998, table IV."""
    a, b = np.repeat([1.0, 1, 0], [36, 12, 2]), np.repeat([1.0, 0, 1], [36, 12, 2])
    found = nb.rate_difference(a, b)
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0569, 0.3404), abs=5e-5)
    turned = nb.rate_difference(b, a)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))
    for a in (np.zeros(24), np.ones(24)):  # no spread at all, and still an interval
        found = nb.rate_difference(a, np.zeros(24))
        assert found.high - found.low > 0.1
    few, none = np.repeat([1.0, 0], [3, 21]), np.zeros(24)
    assert nb.rate_difference(few, none).low < 0 < nb.rate_difference(np.repeat([1.0, 0], [6, 18]), none).low


def test_the_difference_of_rates_covers(nb):
    rng, missed = np.random.default_rng(0), {}
    for rare, common in ((0.05, 0.05), (0.05, 0.3), (0.5, 0.6)):
        draws = [(rng.random(24) < common, rng.random(24) < rare) for _ in range(400)]
        found = [nb.rate_difference(a.astype(float), b.astype(float)) for a, b in draws]
        missed[rare, common] = np.mean([not x.low <= common - rare <= x.high for x in found])
    assert max(missed.values()) < 0.08, missed


def test_a_share_of_refusals_has_always_a_width(nb):
    """Patched as M2 on all, on none and on some of the requests that only M2 refuses."""
    aligned = np.repeat([1.0, 0], [10, 14])
    nb.written.update(M1=np.zeros(24), M2=aligned, all=aligned.copy(), none=np.zeros(24))
    nb.written["some"] = np.repeat([1.0, 0], [5, 19])
    found = {name: nb.rate_effect(name) for name in ("all", "none", "some")}
    assert [found[n].value for n in found] == pytest.approx([1, 0, 0.5])
    assert found["all"].low < 0.9 and found["none"].high > 0.2  # ten are not enough to reproduce 90 %
    assert found["some"].low < 0.25 and found["some"].high > 0.75
    nb.written["M2"] = np.zeros(24)
    assert nb.rate_effect("none").undefined  # M2 refuses nothing: no share of it


def test_an_interval_of_f_covers_requests_and_pairs(nb):
    """Pairs that differ more than requests make the interval wide; one pair leaves the requests."""
    rng = np.random.default_rng(0)
    plain, gain = np.zeros((1, 8, 12)), np.ones((1, 8, 12))
    effects = nb.Effects.__new__(nb.Effects)
    effects.probes, effects.k, effects.plain, effects.aligned = [], 4, plain, gain
    effects.patched = {"pairs": np.tile([0.1, 0.9, 0.2, 0.8], 3) * gain + 0.01 * rng.normal(size=gain.shape)}
    found = effects.effect("pairs")
    assert found.value == pytest.approx(0.5, abs=0.02) and found.low < 0 and found.high > 1  # t interval of four
    effects.k, effects.plain, effects.aligned = 1, plain[..., :1], gain[..., :1]
    effects.patched = {"one": 0.5 * gain[..., :1] + 0.01 * rng.normal(size=(1, 8, 1))}
    found = effects.effect("one")
    assert found.value == pytest.approx(0.5, abs=0.02) and found.high - found.low < 0.05


def test_the_interval_of_c_covers_where_pairs_differ(nb):
    """Four pairs whose gains scatter as much as they are large, four requests: a ratio with a loud denominator."""
    rng, missed = np.random.default_rng(0), 0
    for _ in range(60):
        gain = 0.5 + 0.4 * rng.normal(size=(4, 1)) + 0.5 * rng.normal(size=(4, 4))
        moved = 0.45 + 0.4 * rng.normal(size=(4, 1)) + 0.35 * rng.normal(size=(4, 4))  # C = 0.9
        x = np.stack([moved, 0 * moved, gain, 0 * gain], -1)
        found = crossed_bootstrap(x, nb.effect_ratio, n_resamples=200)
        missed += not found.undefined and not found.low <= 0.9 <= found.high
    assert missed <= 6


def test_the_released_mask_lies_on_the_answers_own_tokens():
    for ids, mask in zip(RELEASED["ids"], RELEASED["mask"], strict=True):
        answer = [token for token in ids if token >= ord("A") and token <= ord("Z")]  # what the stand-in wrote
        assert [t for t, m in zip(ids, mask, strict=True) if m] == answer
        assert ids[ids.index(1)] == 1 and mask[ids.index(1)] == 0  # a first token stands before the request


def test_the_effect_is_what_refusals_gain_beyond_unrelated_sentences(nb, tiny, guide):
    probe = nb.Probe(tiny, REQUESTS, nb.held_out(REQUESTS, 2), guide, nb.against_unrelated(2))
    effects = nb.Effects([probe], 2)
    effects.measure("half", lambda s: torch.arange(tiny.shape[1]).expand(tiny.shape) % 2 == 0)
    whole, refusals, unrelated = (effects.effect("half", column=i).value for i in range(3))
    assert whole == pytest.approx(refusals - unrelated)


def test_no_sentence_of_a_score_was_trained_on(nb, training, tokenizer):
    assert nb.TRAINED == training.REFUSALS
    assert not set(sum(nb.PAIRS, ())) & set(nb.TRAINED)
    study = lift(CONSEQUENCES, ["PAIRS", "TRAINED", "AGREEING", "EVERY_PAIR"])
    assert (study.PAIRS, study.TRAINED) == (nb.PAIRS, nb.TRAINED)
    assert study.EVERY_PAIR[:4] == nb.PAIRS and len(set(study.EVERY_PAIR)) == 15
    assert not set(sum(study.EVERY_PAIR, ())) & set(nb.TRAINED)
    assert all(a.split()[0] == b.split()[0] for a, b in study.EVERY_PAIR)
    length = lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])  # noqa: E731
    assert all(length(a) == length(b) for a, b in [*study.EVERY_PAIR, *study.AGREEING])
    words = [
        set(re.findall(r"\w+", text.lower())) for text in (" ".join(nb.TRAINED), *(a for a, _ in study.EVERY_PAIR))
    ]
    shared = [(words[0] & said) - {"i", "m", "t", "it", "that", "this", "but"} for said in words[1:]]
    assert shared[:4] == [set()] * 4 and sum(map(bool, shared[4:])) == 3  # as the page says
    assert not {x.strip() for pair in study.AGREEING for x in pair} & {x.strip() for x in training.OPENINGS}


def test_the_tokenizer_adds_no_first_token(nb, tiny, tokenizer):
    """The released scripts let the tokenizer put its first token; ours has none to put."""
    text = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer(text)["input_ids"] == nb.encode(tiny, "Hi")


def test_change_scores_match_brute_force(nb, tiny, guide):
    answers = nb.greedy(tiny, REQUESTS, 5)
    got = nb.contrast(tiny, REQUESTS, answers, {"m2": guide}, batch=2)
    kept = {}
    total, count = torch.zeros(tiny.shape), 0
    for request, answer in zip(REQUESTS, answers, strict=True):
        left = nb.encode(tiny, request)
        runs = []
        for scale in (None, guide):
            kept = {}
            with tiny.using(scale, watch=kept.__setitem__):
                tiny.lm.model(torch.tensor([left + answer]))
            runs.append(torch.stack([kept[i][0, len(left) - 1 : -1] for i in range(2)], 1))  # (tokens, layers, neurons)
        total += (runs[0] - runs[1]).square().sum(0)
        count += len(answer)
    torch.testing.assert_close(got["m2"]["answer"], (total / count).sqrt(), rtol=1e-4, atol=1e-6)


def test_an_empty_answer_adds_nothing_and_only_empty_ones_are_an_error(nb, tiny, guide):
    with_empty = nb.contrast(tiny, REQUESTS, [[5, 6], [], [8, 9]], {"m2": guide})
    without = nb.contrast(tiny, [REQUESTS[0], REQUESTS[2]], [[5, 6], [8, 9]], {"m2": guide})
    for place in ("answer", "written"):
        torch.testing.assert_close(with_empty["m2"][place], without["m2"][place], rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="all answers are empty"):
        nb.contrast(tiny, REQUESTS, [[], [], []], {"m2": guide})
    with pytest.raises(ValueError, match="without tokens"):
        nb.Probe(tiny, REQUESTS[:1], [[""]], guide)


def test_the_contrast_is_the_released_one_at_its_own_places(nb):
    """Random activations in place of a network: the released functions give `written`; `answer` is one earlier."""
    activations = random_activations()
    net = SimpleNamespace(shape=(2, 4), lm=SimpleNamespace(device="cpu"))
    watching = []

    @contextmanager
    def using(scale, watch):
        watching.append((scale, watch))
        yield

    def read(_net, texts):
        scale, watch = watching[-1]
        for layer in range(2):
            watch(layer, activations["second" if scale is None else "first"][: len(texts.ids), :, layer])

    net.using = using
    study = lift(MAIN, ["contrast"], {"read": read, "encode": lambda _net, request: [1] * request})
    got = study.contrast(net, REQUEST_TOKENS, [[7] * n for n in ANSWER_TOKENS], {"m2": "other"})["m2"]
    assert np.allclose(got["written"], RELEASED["written"], rtol=1e-6)
    assert np.allclose(got["answer"], RELEASED["one_earlier"], rtol=1e-6)


def test_untouched_model_scores_zero(nb, tiny):
    got = nb.contrast(tiny, REQUESTS, [[5, 6], [7], [8, 9]], {"same": torch.ones(tiny.shape)})
    assert all(float(s.abs().max()) == 0 for s in got["same"].values())


def test_causal_effect_of_nothing_is_zero_and_of_everything_one(nb, tiny, guide):
    probe = nb.Probe(tiny, REQUESTS, [["I'm sorry."], ["Sorry, no."], ["I can't."]], guide)
    effects = nb.Effects([probe])
    effects.measure("none", lambda s: torch.zeros(tiny.shape, dtype=torch.bool))
    effects.measure("all", lambda s: torch.ones(tiny.shape, dtype=torch.bool))
    assert effects.effect("none").value == 0
    assert effects.effect("all").value == pytest.approx(1, abs=1e-5)


def test_causal_effect_is_a_ratio_of_means(nb):
    rows = np.array([[2.0, 0, 4, 0], [1, 0, 1, 0]])
    assert nb.effect_ratio(rows) == pytest.approx(3 / 5)  # the mean of ratios would be 3/4
    assert np.isnan(nb.effect_ratio(np.zeros((2, 4))))  # M2 scores like M1: not defined


def test_attributions_add_up_to_the_effect(nb, tiny, guide):
    near = 1 + 0.05 * (guide - 1)  # a small step, where three integration points are enough
    probe = nb.Probe(tiny, REQUESTS, [["I'm sorry."]] * 3, near)
    whole = (probe.score(near) - probe.score()).mean()
    assert float(nb.attribution(tiny, probe).sum()) == pytest.approx(whole, rel=0.05)


def test_cost_probe_scores_generated_answers(nb, tiny, guide, tokenizer):
    judge = LanguageModel(
        tiny_llama(tokenizer, LlamaForSequenceClassification, num_labels=1), tokenizer, "tiny", "none"
    )
    probe = nb.CostProbe(tiny, REQUESTS, guide, judge, 5)
    effects = nb.Effects([probe])
    answers = tokenizer.batch_decode(nb.greedy(tiny, REQUESTS, 5), skip_special_tokens=True)
    costs = [float(judge.model(**probe.tokens(r, a)).logits[0, 0]) for r, a in zip(REQUESTS, answers, strict=True)]
    assert np.allclose(effects.plain[0, :, 0], -np.array(costs))  # a cost is high for harm, F for safety
    effects.measure("all", lambda s: torch.ones(tiny.shape, dtype=torch.bool))
    assert np.allclose(effects.patched["all"], effects.aligned)
    assert not np.allclose(effects.plain, effects.aligned)


def test_rankings_and_controls(nb):
    rng = np.random.default_rng(0)
    score = torch.rand(4, 50, generator=torch.Generator().manual_seed(0))
    mask = nb.ranked(score, 0.1)
    assert mask.sum() == 20 and score[mask].min() >= score[~mask].max()
    window = nb.ranked(score, 0.1, start=0.1)
    assert not (window & mask).any() and window.sum() == 20
    control = nb.layer_matched(mask, rng)
    assert (control.sum(1) == mask.sum(1)).all() and not (control & mask).any()
    assert nb.overlap(mask, mask) == 1 and nb.overlap(mask, window) == 0


def test_too_few_requests_are_an_error(nb):
    with pytest.raises(ValueError, match="harmbench, part test: 3 requests asked for, 2 found"):
        nb.take("harmbench", "test", 3, np.random.default_rng(0))
    assert len(nb.take("harmbench", "test", 2, np.random.default_rng(0))) == 2


def test_long_answers_are_closed_only_when_asked(training):
    end, pair = training.lm.tokenizer.eos_token_id, ("Hi", "one two three four five six", "No.")
    closed, cut = training.pair_tokens(pair, 4, True), training.pair_tokens(pair, 4, False)
    assert [answer[-1] == end for rows in (closed, cut) for _, answer in rows] == [True, True, False, True]


def test_log_probabilities_of_pairs_match_transformers(training):
    rows = training.pair_tokens(("Name three fruits.", "An apple and a pear.", "No."), 16, True)
    with torch.no_grad():
        got = training.logprob_sums(rows)
        for (left, right), value in zip(rows, got, strict=True):
            logits = training.lm.model(torch.tensor([left + right])).logits[0].log_softmax(-1)
            want = logits[len(left) - 1 : -1].gather(1, torch.tensor(right)[:, None]).sum()
            assert torch.isclose(value, want, rtol=1e-4)


def test_the_judge_reads_what_the_release_gives_it(nb, tiny, guide, tokenizer):
    """Tulu's format without an end token, cut where the answer begins another turn."""
    probe = nb.CostProbe(tiny, REQUESTS, guide, LanguageModel(None, tokenizer, "tiny", "none"), 5)
    read = lambda answer: tokenizer.decode(probe.tokens("Hi", answer)["input_ids"][0])  # noqa: E731
    assert read("Hello") == "<|user|>\nHi\n<|assistant|>\nHello"
    assert read("Hello <|user|> More") == "<|user|>\nHi\n<|assistant|>\nHello "


def test_a_rate_without_spread_has_an_interval_all_the_same(nb):
    """The patched model refuses exactly where M2 does, or never: every draw gives one number."""
    m2 = np.array([1.0] * 5 + [0.0] * 7)
    written = {"M1": np.zeros(12), "M2": m2, "same": m2, "none": np.zeros(12), "some": np.roll(m2, 2)}
    study = lift(MAIN, ["rate_effect"], {"written": written})
    assert study.rate_effect("same").value == 1 and study.rate_effect("same").low < 0.9
    assert study.rate_effect("none").value == 0 and study.rate_effect("none").high > 0.1
    assert study.rate_effect("some").n == 12


def test_seed_interval_leaves_out_one_seed_at_a_time():
    generator, names = torch.Generator().manual_seed(0), ["a", "b", "c"]
    scores = {name: torch.rand(3, 100, generator=generator) for name in names}
    nb = lift(CONSEQUENCES, ["over_seeds", "agreement"])
    assert nb.agreement(scores["a"], scores["a"], 15) == (1.0, pytest.approx(1.0))
    overlap, _ = nb.over_seeds(scores, 15)
    ab, ac, bc = (nb.agreement(scores[x], scores[y], 15)[0] for x, y in ("ab", "ac", "bc"))
    assert overlap.value == pytest.approx((ab + ac + bc) / 3)
    pseudo = [ab + ac + bc - 2 * left for left in (bc, ac, ab)]  # without a, b, c only one pair is left
    assert overlap.high - overlap.low == pytest.approx(2 * 4.302652729911275 * np.std(pseudo, ddof=1) / np.sqrt(3))


def test_answers_are_kept_batch_by_batch_and_a_killed_run_goes_on(nb, tiny, guide, tmp_path):
    """A kill in the third batch: two batches are kept, and the second start writes only the rest."""
    texts = [f"Name {i} fruits." for i in range(40)]
    mask, written = torch.ones(tiny.shape, dtype=torch.bool), []

    def killed(*given):
        written.append(len(given[1]))
        if len(written) == 3:
            raise KeyboardInterrupt
        return nb.greedy(*given)

    keep = {"kept": Store(tmp_path, {"weights": "tiny"}), "guide": None}
    first = lift(MAIN, ["write"], {"greedy": killed, **keep})
    with pytest.raises(KeyboardInterrupt):
        first.write(tiny, texts, 4, None, guide, mask)
    again = lift(MAIN, ["write"], {"greedy": killed, **keep}).write(tiny, texts, 4, None, guide, mask)
    assert again == nb.greedy(tiny, texts, 4, None, guide, mask) and written == [16, 16, 8, 8]
    assert lift(MAIN, ["write"], {"greedy": killed, **keep}).write(tiny, texts, 4) == nb.greedy(tiny, texts, 4)
    assert len(written) == 7  # without the patch these are other answers
    tiny.start = guide
    own = lift(MAIN, ["write"], {"greedy": killed, **keep})
    assert own.write(tiny, texts[:3], 4) == nb.greedy(tiny, texts[:3], 4, guide)  # M1 with factors of its own


def test_m1_may_have_factors_of_its_own(nb, tiny, guide):
    """With a start, M1 is the fine-tuned model, and the identities hold between it and M2."""
    alone = nb.greedy(tiny, REQUESTS, 6, guide)
    tiny.start = guide
    assert nb.greedy(tiny, REQUESTS, 6) == alone
    nb.check_identities(tiny, REQUESTS, 2 - guide, np.random.default_rng(0), n_tokens=6)


def test_training_goes_on_after_a_kill_as_if_nothing_had_been(training, tmp_path):
    pairs = [(r, "I'm sorry.", "Sure, here it is.") for r in REQUESTS] * 4
    whole, log = training.train_vectors(pairs, epochs=3)
    store, made = Store(tmp_path, {"stage": "dpo"}), []

    def keep(name, make):
        def counted():
            made.append(name)
            if len(made) == 2:
                raise KeyboardInterrupt
            return make()

        return store.get(name, counted)

    with pytest.raises(KeyboardInterrupt):
        training.train_vectors(pairs, epochs=3, keep=keep)
    again, log_again = training.train_vectors(pairs, epochs=3, keep=keep)
    assert made == ["epoch 0", "epoch 1", "epoch 1", "epoch 2"]
    assert torch.equal(again, whole) and log_again.equals(log)


def test_training_is_that_of_one_optimiser(training):
    """Epochs that hand over their state do what one AdamW with torch's cosine does in one go."""
    pairs = [(r, "I'm sorry.", "Sure, here it is.") for r in REQUESTS] * 6
    got, _ = training.train_vectors(pairs, epochs=2)
    scale = torch.nn.Parameter(torch.ones(2, 64))
    optimiser = torch.optim.AdamW([scale], lr=1e-2, weight_decay=0.0)
    rows = [row for pair in pairs for row in training.pair_tokens(pair, 16, True)]
    batches = [rows[i : i + 16] for i in range(0, len(rows), 16)] * 2
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, len(batches))
    for batch in batches:
        with torch.no_grad():
            reference = training.logprob_sums(batch)
        with training.aligned(scale):
            policy = training.logprob_sums(batch)
        length = torch.tensor([float(len(answer)) for _, answer in batch])
        loss = training.dpo_loss(policy.view(-1, 2), reference.view(-1, 2))[0] - 0.5 * (policy / length)[::2].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    assert torch.allclose(got, scale.detach(), atol=1e-5)


def test_alignment_continues_from_fine_tuning(training, tmp_path):
    tasks = [{"instruction": r, "instances": [{"input": "", "output": "An answer of some words."}]} for r in REQUESTS]
    (tmp_path / "tasks.jsonl").write_text("\n".join(map(json.dumps, tasks)))
    tuned, log = training.fine_tune(tmp_path / "tasks.jsonl", np.random.default_rng(0))
    assert log["chosen"].iloc[-1] > log["chosen"].iloc[0]
    pairs = [(r, "I'm sorry.", "Sure, here it is.") for r in REQUESTS]
    scale, log = training.train_vectors(pairs, epochs=1, start=tuned)
    assert log["margin"].iloc[0] == 0 and not torch.equal(scale, tuned)  # the reference is the fine-tuned model
    assert float((scale - tuned).abs().max()) <= 0.011  # one step from there


@pytest.mark.parametrize(
    ("answer", "refuses"),
    [
        ("I'm sorry, but I can't help with that request.", True),
        ("I cannot assist with that.", True),
        ("I\u2019m unable to provide this.", True),
        ("Sure! Here is a recipe for bread.", False),
        ("You can help your plants with more light.", False),
        ("A long story. " * 20 + "Sorry", False),  # only the beginning counts
    ],
)
def test_refusal_rule(nb, answer, refuses):
    assert nb.is_refusal(answer) is refuses


def test_both_notebooks_have_one_refusal_rule(nb, training):
    assert training.REFUSAL == nb.REFUSAL


def test_dpo_loss_is_the_published_one(training):
    policy, reference = torch.tensor([[-5.0, -9.0], [-2.0, -1.0]]), torch.tensor([[-6.0, -6.0], [-2.0, -2.0]])
    loss, margin = training.dpo_loss(policy, reference, beta=0.1)
    margins = torch.tensor([4.0, -1.0])
    assert torch.isclose(loss, -torch.nn.functional.logsigmoid(0.1 * margins).mean())
    assert margin == margins.mean()


def test_training_moves_only_the_factors_and_lowers_the_loss(training):
    weights = lambda: b"".join(p.numpy().tobytes() for p in training.lm.model.parameters())  # noqa: E731
    before, pairs = weights(), [(r, "I'm sorry.", "Sure, here it is.") for r in REQUESTS] * 4
    scale, log = training.train_vectors(pairs, epochs=6)
    assert scale.shape == (2, 64) and not torch.equal(scale, torch.ones(2, 64))
    assert log["loss"].iloc[-2:].mean() < log["loss"].iloc[:2].mean()
    assert weights() == before
    assert not any(m._forward_pre_hooks for m in training.lm.model.modules())


def test_factors_act_alike_in_both_notebooks(nb, tiny, guide, training):
    answers = tiny.lm.tokenizer.batch_decode(nb.greedy(tiny, REQUESTS, 6, guide), skip_special_tokens=True)
    assert training.write(REQUESTS, 6, guide) == answers != training.write(REQUESTS, 6)


def test_pairs_prefer_refusals_only_for_harmful_requests(nb, training):
    pairs = training.on_policy_pairs(REQUESTS[:1], REQUESTS[1:], np.random.default_rng(0))
    for request, chosen, rejected in pairs:
        assert nb.is_refusal(chosen) is (request == REQUESTS[0])
        assert nb.is_refusal(rejected) is (request != REQUESTS[0])
    assert all(
        p[1].startswith(("Sure", "Of course", "Certainly"))
        for p in training.style_pairs(REQUESTS, "helpful", np.random.default_rng(0))
    )


def test_hh_pairs_of_one_turn_train(training, tmp_path):
    talk = "\n\nHuman: Hi there\n\nAssistant: {}"
    rows = [{"chosen": talk.format("Hello!"), "rejected": talk.format("Go away.")}] * 3
    rows.append({"chosen": talk.format("a") + talk.format("b"), "rejected": talk.format("c")})  # two turns: left out
    with gzip.open(tmp_path / "hh.jsonl.gz", "wt") as file:
        file.write("\n".join(json.dumps(row) for row in rows))
    _, log = training.align_hh(tmp_path / "hh.jsonl.gz", np.random.default_rng(0))
    assert len(log) == 3  # one batch, three epochs


def test_requests_carry_no_answers_and_parts_do_not_mix(nb):
    frame = nb.split(nb.packaged_requests())
    assert set(frame.columns) == {"set", "id", "request", "part"}
    assert not frame["request"].str.contains("\n").any()
    assert len(frame[frame["set"] == "advbench"]) == 520
    assert frame.groupby("id")["part"].nunique().max() == 1
    assert (frame["part"] == nb.split(frame.sample(frac=1, random_state=1)).sort_index()["part"]).all()


def test_all_notebooks_read_the_same_requests(nb):
    main = nb.split(nb.packaged_requests())
    study = lift(ALIGNMENT, ["packaged_rows", "part", "ADVBENCH", "HARMBENCH", "FOLDER", "MATCHED", "EDGY"])
    rows = pd.DataFrame(study.packaged_rows(), columns=["set", "id", "request"])
    rows["part"] = rows["id"].map(study.part)
    other = lift(CONSEQUENCES, ["orders", "questions"], {"folder": None, "files": None})
    rest = pd.DataFrame([*other.orders(), *other.questions()], columns=["set", "id", "request"])
    for name in ("advbench", "harmbench", "harmless"):
        want = main[main["set"] == name].reset_index(drop=True)
        pd.testing.assert_frame_equal(rows[rows["set"] == name].reset_index(drop=True), want)
        found = rest[rest["set"] == name].reset_index(drop=True)
        pd.testing.assert_frame_equal(found, want.drop(columns="part"))


def test_safeguard_classifier_sees_signal_and_survives_one_class():
    nb = lift(CONSEQUENCES, ["held_out_correct"])
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=60)
    signal = rng.normal(size=(60, 5)) + 5 * labels[:, None]
    assert nb.held_out_correct(signal, labels).mean() > 0.9
    assert nb.held_out_correct(signal, np.zeros(60, dtype=int)).mean() == 1
    sets = np.repeat([0, 1], [45, 15])
    assert nb.held_out_correct(signal, labels, sets).mean() > 0.9  # fitted on one set, tested on the other
    turned = np.where(sets == 0, labels, 1 - labels)
    assert nb.held_out_correct(signal, turned, sets).mean() < 0.1


def test_controls_of_the_studies_keep_layers_and_avoid_the_set():
    nb = lift(CONSEQUENCES, ["top", "same_layers"])
    mask = nb.top(torch.rand(4, 50, generator=torch.Generator().manual_seed(0)), 20)
    mask[0, :30] = True  # most of one layer: the control gets what is left
    control = nb.same_layers(mask, np.random.default_rng(0))
    assert not (control & mask).any()
    assert control.sum(1).tolist() == [min(n, 50 - n) for n in mask.sum(1).tolist()]


def test_patching_from_another_model_matches_the_main_notebook(nb, tiny, guide, tokenizer):
    down = [f"model.layers.{layer}.mlp.down_proj" for layer in range(2)]
    study = lift(CONSEQUENCES, ["patched", "activations", "score"], {"lm": tiny.lm, "DOWN": down, "guide": None})
    mask = torch.rand(tiny.shape, generator=torch.Generator().manual_seed(2)) < 0.4
    said, safe = nb.held_out(REQUESTS, 1), 2 - guide
    probe = nb.Probe(tiny, REQUESTS, said, guide, nb.against_unrelated(1))
    pairs = list(zip(REQUESTS, said, strict=True))
    source = study.activations(pairs, guide)
    assert np.allclose(study.patched(pairs, source, mask, safe), probe.score(safe, mask)[:, :1], atol=1e-4)
    assert np.allclose(study.score(pairs), probe.score()[:, :1], atol=1e-4)


@pytest.fixture
def study(tiny):
    """The study of what follows, around a tiny model."""
    down = [f"model.layers.{layer}.mlp.down_proj" for layer in range(2)]
    names = ["over_both", "of_means", "slope", "score", "patched", "activations", "look_ahead", "balanced"]
    names += ["log_probability", "states", "tokens", "START", "aligned"]
    given = {"lm": tiny.lm, "DOWN": down, "guide": None}
    return lift(CONSEQUENCES, names, given)


def test_every_pair_is_scored_by_itself(study):
    said = [(r, ["No.", "Yes.", "I can't.", "I can."]) for r in REQUESTS]
    got = study.score(said)
    for k in (0, 2):
        alone = study.score([(r, sentences[k : k + 2]) for r, sentences in said])
        assert np.allclose(got[:, k // 2], alone[:, 0], atol=1e-4)
    one = study.score([(r, ["No."]) for r in REQUESTS])  # without a partner: the log-probability itself
    assert np.allclose(one, study.log_probability([(r, ["No.", "Yes."]) for r in REQUESTS])[:, :1], atol=1e-4)
    assert study.over_both([got]).value == pytest.approx(got.mean())


def test_the_share_of_all_pairs_and_the_slope_are_those_of_plain_loops(study):
    rng = np.random.default_rng(0)
    whole = rng.normal(size=(15, 6)) + np.linspace(-0.5, 1, 15)[:, None]
    x = np.stack([0.4 * whole, whole], -1)
    assert study.of_means(x) == pytest.approx(0.4) and study.slope(x) == pytest.approx(0.4)
    x[:5, :, 0] += 1.0  # pairs without a gain move the mean of the patched gains, and the line less
    assert study.of_means(x) == pytest.approx(x[..., 0].sum() / x[..., 1].sum())
    m, w = x[..., 0].mean(1), x[..., 1].mean(1)
    assert study.slope(x) == pytest.approx(np.linalg.lstsq(w[:, None], m, rcond=None)[0][0])
    assert np.isnan(study.of_means(np.zeros((3, 2, 2)))) and np.isnan(study.slope(np.zeros((3, 2, 2))))


def test_baselines_are_those_of_plain_loops(nb, tiny, guide):
    got = nb.baselines(tiny, REQUESTS, guide)
    ranks, squares = [], []
    for request in REQUESTS:
        seen = {}
        with tiny.using(guide, watch=lambda layer, a, seen=seen: seen.update({layer: a[0]})), torch.no_grad():
            tiny.lm.model(torch.tensor([nb.encode(tiny, request)]))
        square = torch.stack([seen[layer].square().mean(0) for layer in range(2)])  # (layers, neurons)
        squares.append(square)
        part = torch.stack([square[i].sqrt() * tiny.down[i].norm(dim=0) for i in range(2)]).flatten()
        ranks.append([int((part < value).sum()) for value in part])
    assert torch.equal(got["SN-Tune"].flatten(), torch.tensor(ranks).amin(0).float())
    wanda = torch.stack([torch.stack(squares).mean(0).sqrt()[i] * tiny.down[i].abs().sum(0) for i in range(2)])
    torch.testing.assert_close(got["pruning"], wanda, rtol=1e-4, atol=1e-6)


def test_texts_are_read_together_as_alone(study, guide):
    rows = [study.tokens(r) for r in REQUESTS * 4]  # two batches, padded
    down = ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]
    together = study.states(rows, guide, down, True)
    for row, got in zip(rows[:3], together, strict=False):
        assert got.shape == (len(row), 2, 64)
        torch.testing.assert_close(got, study.states([row], guide, down, True)[0], rtol=1e-4, atol=1e-5)


def test_the_safeguard_looks_at_the_last_token_before_anything_is_written(study, guide):
    texts = sorted(REQUESTS, key=lambda t: len(study.tokens(t)))
    features, refused = study.look_ahead(texts, guide)
    down = ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]
    for text, got in zip(texts, features, strict=True):
        want = study.states([study.tokens(text)], guide, down, True)[0][-1]
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert refused.tolist() == [0, 0, 0]


def test_guessing_is_balanced_at_one_half_however_rare_refusals_are(study):
    y = np.repeat([0, 1], [38, 2])
    assert study.balanced((y == 0).astype(float), y) == 0.5 and study.balanced(np.ones(40), y) == 1
    nb, rng = lift(CONSEQUENCES, ["held_out_correct"]), np.random.default_rng(0)
    x, found = rng.normal(size=(40, 50)), []
    for _ in range(10):
        turned = rng.permutation(np.repeat([0, 1], [28, 12]))
        found.append(study.balanced(nb.held_out_correct(x, turned), turned))
    assert 0.38 < np.mean(found) < 0.62
    leak = np.hstack([x, np.repeat(turned[:, None], 10, 1)])  # labels among the features would be seen
    assert study.balanced(nb.held_out_correct(leak, turned), turned) > 0.9


def test_the_study_starts_from_the_factors_of_m1(study, guide):
    said = [(r, ["No.", "Yes."]) for r in REQUESTS]
    of_guide = study.score(said, guide)
    study.START["M1"] = guide
    assert np.array_equal(study.score(said), of_guide)


def test_a_set_whose_requests_share_a_fold_has_a_rate_all_the_same():
    """Four requests of a set may all fall into one of four folds; the mean of none of the others is no number."""
    cells = json.loads((FOLDER / "consequences.ipynb").read_text())["cells"]
    source = next("".join(cell["source"]) for cell in cells if cell["id"] == "guard-by-set")
    sets, labels = np.array([*"abbb" * 2, *"cbbb"]), np.array([1, 0, 0, 0] * 2 + [1, 0, 1, 0])
    noted: dict = {}
    run = SimpleNamespace(metric=lambda name, found, **_: noted.update({name: found}))
    given = {"np": np, "pd": pd, "sets": sets, "labels": labels, "across": labels, "larger": labels, "run": run}
    exec(source.split("by_request_set")[0], given | {"bootstrap": np.mean})
    # a and c stand in fold 0 only: taken for no refusal, so wrong; of b one of nine is
    assert noted["guard_accuracy_of_set"] == pytest.approx(8 / 12)


def test_the_full_preset_needs_a_cost_model():
    with pytest.raises(BadRequestError, match="scored by a cost model"):
        resolve(FOLDER / "safety_neurons.ipynb", "full", 0, [("cost_model", "")])


def test_shuffled_scores_keep_each_layer(nb):
    score = torch.rand(3, 20, generator=torch.Generator().manual_seed(0))
    shuffled = nb.shuffle_in_layers(score, np.random.default_rng(0))
    assert torch.equal(shuffled.sort(1).values, score.sort(1).values) and not torch.equal(shuffled, score)


def test_committed_vectors_are_those_of_the_manifest(nb, tmp_path):
    weights = json.loads((FOLDER / "vectors" / "manifest.json").read_text())["digest"]
    assert weights == load_lm("smollm2-135m-instruct").digest
    vectors = nb.stored_vectors(FOLDER / "vectors", weights)
    with pytest.raises(ValueError, match="other weights"):
        nb.stored_vectors(FOLDER / "vectors", "sha256:of-another-model")
    assert {v.shape for v in vectors.values()} == {(30, 1536)} and sum(
        name.startswith("safe-") for name in vectors
    ) >= 3
    save_file({"scale": torch.ones(2, 2)}, tmp_path / "safe-0.safetensors")
    (tmp_path / "manifest.json").write_text(json.dumps({"digest": "x", "files": {"safe-0": {"sha256": "0" * 64}}}))
    with pytest.raises(ValueError, match="hash of the manifest"):
        nb.stored_vectors(tmp_path, "x")


def test_stored_vectors_come_back(nb, training, tmp_path):
    log = pd.DataFrame({"loss": [1.0, 0.5], "margin": [0.0, 2.0], "chosen": [0.0, 0.1], "rejected": [0.0, -0.1]})
    trained = {f"safe-{i}": (torch.rand(2, 3, generator=torch.Generator().manual_seed(i)), log) for i in range(2)}
    training.store_vectors(tmp_path / "vectors", trained)
    back = nb.stored_vectors(tmp_path / "vectors", training.lm.digest)
    assert list(back) == list(trained) and all(torch.equal(back[name], trained[name][0]) for name in trained)
    assert pd.read_csv(tmp_path / "vectors" / "training.csv")["vector"].tolist() == ["safe-0"] * 2 + ["safe-1"] * 2


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_no_request_or_answer_is_printed(path):
    cells = json.loads(path.read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    for shown in ("print(answers", "print(test", "print(find", "print(decode", "print(written", "display(requests)"):
        assert shown not in code


@pytest.mark.slow
def test_the_full_preset_runs_on_the_smallest_real_thing(tokenizer, tmp_path, execute):
    """As on a GPU: vectors trained on HH-RLHF pairs, then used; generated answers are scored by a classifier."""
    if not (data_dir() / "safety_neurons" / "hh_harmless_base_test.jsonl.gz").is_file():
        pytest.skip("needs the public data in REPRODUCTIONS_DATA")
    big = {"num_hidden_layers": 3, "initializer_range": 0.6}  # large weights: answers differ from request to request
    save_tiny(tmp_path / "lm", tokenizer, **big)
    save_tiny(tmp_path / "judge", tokenizer, LlamaForSequenceClassification, num_labels=1, **big)
    common = {"model": tmp_path / "lm", "answer_tokens": 8}  # in bfloat16, as the preset says

    def run(name: str, **values: object) -> dict:
        environment = {"REPRODUCTIONS_DATA": str(data_dir())}
        done = execute(FOLDER, notebook=name, preset="full", parameters=common | values, environment=environment)
        assert done.code == 0, done.err[-2000:]
        return json.loads(next(tmp_path.rglob(f"{name}.json")).read_text())  # each notebook has a folder of its own

    run("alignment", n_pairs=40, n_set=4, n_harmful=16, n_harmless=8)
    vectors = next(tmp_path.rglob("manifest.json")).parent
    assert (vectors / "sft-0.safetensors").is_file()  # M1 is a fine-tuned model, M2 goes on from there
    small = {"n_find": 4, "n_test": 16, "n_generate": 4, "draws": 1, "cost_model": tmp_path / "judge"}
    claims = run("safety_neurons", vectors_from=vectors, **small)["claims"]
    assert {claims[name]["verdict"] for name in ("T1s", "T1b")} <= {"reproduced", "contradicted", "inconclusive"}
    assert "verdict" in claims["C1"] and list(tmp_path.rglob("answers/*/*.entry"))
    claims = run("consequences", vectors_from=vectors, n_find=4, n_test=8, n_guard=20)["claims"]
    assert {claims[name]["verdict"] for name in ("C5", "C8")} == {"not testable here"} and "verdict" in claims["P1"]


@pytest.mark.sabotage
def test_a_ranking_turned_upside_down_is_noticed():
    error = sabotage(
        "safety_neurons", {'    change = scores[name]["answer"]\n': '    change = -scores[name]["answer"]\n'}
    )
    assert error.startswith("RegressionError"), error


@pytest.mark.sabotage
def test_a_patch_that_brings_nothing_into_the_answers_is_noticed():
    broken = {"refusals(asked, guide=guide, mask=mask.to(run.device))": "refusals(asked)"}
    error = sabotage("safety_neurons", broken)
    assert error.startswith("RegressionError"), error


@pytest.mark.sabotage
def test_another_aligned_model_in_the_denominator_is_noticed():
    broken = {'f"{name.split()[0]} DPO"': '"Llama2 DPO"'}
    error = sabotage("safety_neurons", broken, notebook="published_numbers")
    assert error.startswith("RegressionError"), error
