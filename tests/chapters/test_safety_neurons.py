"""Safety neurons: definitions lifted from the notebook, on tiny random models whose answers are known."""

import copy
import gzip
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from tiny import save_tiny, tiny_llama
from transformers import LlamaForSequenceClassification

from helpers.engine.lift import lift, sabotage
from helpers.models import LanguageModel, load_lm
from helpers.paths import data_dir

NOTEBOOK = "notebooks/safety_neurons/safety_neurons.ipynb"
FOLDER = Path(__file__).resolve().parents[2] / "notebooks" / "safety_neurons"
NAMES = [
    "Net",
    "Probe",
    "CostProbe",
    "Effects",
    "effect_ratio",
    "greedy",
    "greedy_recomputed",
    "check_identities",
    "check_packed",
    "encode",
    "encode_answer",
    "pack",
    "answer_logprobs",
    "contrast",
    "ranked",
    "layer_matched",
    "anywhere",
    "unconstrained",
    "size_matched",
    "REFUSAL",
    "is_refusal",
    "dpo_loss",
    "train_vectors",
    "pack_pairs",
    "take",
    "on_policy_pairs",
    "style_pairs",
    "align_hh",
    "stored_vectors",
    "store_vectors",
    "split",
    "packaged_requests",
    "agreement",
    "held_out_correct",
    "shuffle_in_layers",
    "attribution",
]


@pytest.fixture(scope="module")
def nb():
    requests = pd.DataFrame({"set": "harmbench", "part": "test", "request": ["one", "two"]})
    lm = SimpleNamespace(name="tiny", digest="none")
    globals_of_a_run = {"guide": None, "sets": None, "lm": lm, "requests": requests}
    return lift(NOTEBOOK, NAMES, globals_of_a_run)


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


REQUESTS = ["Name three fruits.", "What is a hexagon? Explain it to a child.", "Hi"]


def test_identities_hold_on_a_tiny_model(nb, tiny, guide):
    nb.check_identities(tiny, REQUESTS, guide, np.random.default_rng(0), n_tokens=8)


def test_a_wrong_patch_breaks_the_identities(nb, tiny, guide):
    tiny._hook, original = None, tiny._hook  # a patch that forgets one layer
    for handle in tiny.handles:
        handle.remove()
    layers = [m for name, m in tiny.lm.model.named_modules() if name.endswith("mlp.down_proj")]
    layers[0].register_forward_pre_hook(lambda module, inputs: original(0, module, inputs))
    layers[1].register_forward_pre_hook(lambda module, inputs: (inputs[0] * 1.5,) if tiny.scale is not None else inputs)
    with pytest.raises(AssertionError):
        nb.check_identities(tiny, REQUESTS, guide, np.random.default_rng(0), n_tokens=8)


def test_batching_does_not_change_answers(nb, tiny, guide):
    mask = torch.rand(tiny.shape, generator=torch.Generator().manual_seed(2)) < 0.4
    together = nb.greedy(tiny, REQUESTS, 6, guide=guide, mask=mask)
    assert together == nb.greedy(tiny, REQUESTS, 6, guide=guide, mask=mask, batch=1)


def test_answers_side_by_side_score_as_alone(nb, tiny):
    nb.check_packed(tiny)


def test_answer_logprobs_match_transformers(nb, tiny):
    left, right = nb.encode(tiny, REQUESTS[0]), nb.encode_answer(tiny, "An apple and a pear.")
    got = nb.answer_logprobs(tiny, nb.pack(tiny, [left], [[right]]))
    logits = tiny.lm.model(torch.tensor([left + right])).logits[0].log_softmax(-1)
    want = logits[len(left) - 1 : -1].gather(1, torch.tensor(right)[:, None]).mean()
    assert torch.isclose(got[0, 0], want, atol=1e-5)


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
    assert nb.effect_ratio(np.zeros((2, 4))) == 0  # M2 scores like M1


def test_attributions_add_up_to_the_effect(nb, tiny, guide):
    near = 1 + 0.05 * (guide - 1)  # a small step, where three integration points are enough
    probe = nb.Probe(tiny, REQUESTS, [["I'm sorry."]] * 3, near)
    whole = (probe.score(near) - probe.score()).mean()
    assert float(nb.attribution(tiny, probe).sum()) == pytest.approx(whole, rel=0.05)


def test_cost_probe_scores_generated_answers(nb, tiny, guide, tokenizer):
    judge = LanguageModel(
        tiny_llama(tokenizer, LlamaForSequenceClassification, num_labels=1), tokenizer, "tiny", "none"
    )
    effects = nb.Effects([nb.CostProbe(tiny, REQUESTS, guide, judge, 5)])
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
    for control in (nb.layer_matched(mask, rng), nb.anywhere(mask, rng)):
        assert control.sum() == mask.sum() and not (control & mask).any()
    assert (nb.layer_matched(mask, rng).sum(1) == mask.sum(1)).all()
    draws = [nb.unconstrained(mask, rng) for _ in range(20)]
    assert {int(d.sum()) for d in draws} == {20} and any((d & mask).any() for d in draws)
    assert nb.agreement(score, score) == (1.0, pytest.approx(1.0))


def test_size_matched_pairs_neurons_of_about_one_size(nb):
    size = torch.rand(3, 400, generator=torch.Generator().manual_seed(3))
    mask = torch.rand(3, 400, generator=torch.Generator().manual_seed(4)) < 0.05
    size[mask.nonzero()[0][0], mask.nonzero()[0][1]] = 9.0  # nothing of its size is free
    kept, partners = nb.size_matched(mask, size, np.random.default_rng(0))
    assert kept.sum() == partners.sum() and not (kept & ~mask).any() and not (partners & mask).any()
    assert 0.8 * mask.sum() <= kept.sum() < mask.sum() and size[kept].max() < 9
    ratio = size[partners].sort().values / size[kept].sort().values
    assert ((ratio - 1).abs() <= 0.11).all()


def test_too_few_requests_are_an_error(nb):
    with pytest.raises(ValueError, match="harmbench, part test: 3 requests asked for, 2 found"):
        nb.take("harmbench", "test", 3, np.random.default_rng(0))
    assert len(nb.take("harmbench", "test", 2, np.random.default_rng(0))) == 2


def test_long_answers_are_closed_only_when_asked(nb, tiny):
    end, pairs = tiny.lm.tokenizer.eos_token_id, [("Hi", "one two three four five six", "No.")]
    closed, cut = nb.pack_pairs(tiny, pairs, 4), nb.pack_pairs(tiny, pairs, 4, close=False)
    assert [int((p.target[p.answer == k] == end).sum()) for p in (closed, cut) for k in (0, 1)] == [1, 1, 0, 1]


def test_the_judge_reads_its_own_template(nb, tiny, guide, tokenizer):
    judge = LanguageModel(None, copy.deepcopy(tokenizer), "tiny", "none")
    probe = nb.CostProbe(tiny, REQUESTS, guide, judge, 5)
    judge.tokenizer.chat_template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    assert tokenizer.decode(probe.tokens("Hi", "Hello")["input_ids"][0]) == "<user>Hi<assistant>Hello"
    judge.tokenizer.chat_template = None
    assert tokenizer.decode(probe.tokens("Hi", "Hello")["input_ids"][0]) == "HiHello"


def test_seed_interval_leaves_out_one_seed_at_a_time():
    generator, names = torch.Generator().manual_seed(0), ["a", "b", "c"]
    scores = {name: {"answer": torch.rand(3, 100, generator=generator)} for name in names}
    nb = lift(NOTEBOOK, ["over_seeds", "agreement"], {"safe_names": names, "scores": scores})
    overlap, _ = nb.over_seeds(lambda s: s)
    ab, ac, bc = (nb.agreement(scores[x]["answer"], scores[y]["answer"])[0] for x, y in ("ab", "ac", "bc"))
    assert overlap.value == pytest.approx((ab + ac + bc) / 3)
    pseudo = [ab + ac + bc - 2 * left for left in (bc, ac, ab)]  # without a, b, c only one pair is left
    assert overlap.high - overlap.low == pytest.approx(2 * 4.302652729911275 * np.std(pseudo, ddof=1) / np.sqrt(3))


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


def test_dpo_loss_is_the_published_one(nb):
    policy, reference = torch.tensor([[-5.0, -9.0], [-2.0, -1.0]]), torch.tensor([[-6.0, -6.0], [-2.0, -2.0]])
    loss, margin = nb.dpo_loss(policy, reference, beta=0.1)
    margins = torch.tensor([4.0, -1.0])
    assert torch.isclose(loss, -torch.nn.functional.logsigmoid(0.1 * margins).mean())
    assert margin == margins.mean()


def test_training_moves_only_the_factors_and_lowers_the_loss(nb, tiny):
    weights = hashlib.sha256(b"".join(p.numpy().tobytes() for p in tiny.lm.model.parameters())).hexdigest()
    pairs = [(r, "I'm sorry.", "Sure, here it is.") for r in REQUESTS] * 4
    scale, log = nb.train_vectors(tiny, pairs, epochs=6, batch=6)
    assert scale.shape == tiny.shape and not torch.equal(scale, torch.ones(tiny.shape))
    assert log["loss"].iloc[-2:].mean() < log["loss"].iloc[:2].mean()
    assert hashlib.sha256(b"".join(p.numpy().tobytes() for p in tiny.lm.model.parameters())).hexdigest() == weights
    assert tiny.scale is None


def test_pairs_prefer_refusals_only_for_harmful_requests(nb, tiny):
    pairs = nb.on_policy_pairs(tiny, REQUESTS[:1], REQUESTS[1:], np.random.default_rng(0))
    for request, chosen, rejected in pairs:
        assert nb.is_refusal(chosen) is (request == REQUESTS[0])
        assert nb.is_refusal(rejected) is (request != REQUESTS[0])
    assert all(
        p[1].startswith(("Sure", "Of course", "Certainly"))
        for p in nb.style_pairs(tiny, REQUESTS, "helpful", np.random.default_rng(0))
    )


def test_hh_pairs_of_one_turn_train(nb, tiny, tmp_path):
    talk = "\n\nHuman: Hi there\n\nAssistant: {}"
    rows = [{"chosen": talk.format("Hello!"), "rejected": talk.format("Go away.")}] * 3
    rows.append({"chosen": talk.format("a") + talk.format("b"), "rejected": talk.format("c")})  # two turns: left out
    with gzip.open(tmp_path / "hh.jsonl.gz", "wt") as file:
        file.write("\n".join(json.dumps(row) for row in rows))
    _, log = nb.align_hh(tiny, 10, tmp_path / "hh.jsonl.gz", np.random.default_rng(0))
    assert len(log) == 3  # one batch, three epochs


def test_requests_carry_no_answers_and_parts_do_not_mix(nb):
    frame = nb.split(nb.packaged_requests())
    assert set(frame.columns) == {"set", "id", "request", "part"}
    assert not frame["request"].str.contains("\n").any()
    assert len(frame[frame["set"] == "advbench"]) == 520
    assert frame.groupby("id")["part"].nunique().max() == 1
    assert (frame["part"] == nb.split(frame.sample(frac=1, random_state=1)).sort_index()["part"]).all()


def test_safeguard_classifier_sees_signal_and_survives_one_class(nb):
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=60)
    signal = rng.normal(size=(60, 5)) + 5 * labels[:, None]
    assert nb.held_out_correct(signal, labels).mean() > 0.9
    assert nb.held_out_correct(signal, np.zeros(60, dtype=int)).mean() == 1


def test_shuffled_scores_keep_each_layer(nb):
    score = torch.rand(3, 20, generator=torch.Generator().manual_seed(0))
    shuffled = nb.shuffle_in_layers(score, np.random.default_rng(0))
    assert torch.equal(shuffled.sort(1).values, score.sort(1).values) and not torch.equal(shuffled, score)


def test_committed_vectors_are_those_of_the_manifest(nb, tmp_path):
    vectors = nb.stored_vectors(FOLDER / "vectors")
    assert {v.shape for v in vectors.values()} == {(30, 1536)} and sum(
        name.startswith("safe-") for name in vectors
    ) >= 3
    save_file({"scale": torch.ones(2, 2)}, tmp_path / "safe-0.safetensors")
    (tmp_path / "manifest.json").write_text(json.dumps({"files": {"safe-0": {"sha256": "0" * 64}}}))
    with pytest.raises(ValueError, match="hash of the manifest"):
        nb.stored_vectors(tmp_path)


def test_stored_vectors_come_back(nb, tmp_path):
    log = pd.DataFrame({"loss": [1.0, 0.5], "margin": [0.0, 2.0], "chosen": [0.0, 0.1], "rejected": [0.0, -0.1]})
    trained = {f"safe-{i}": (torch.rand(2, 3, generator=torch.Generator().manual_seed(i)), log) for i in range(2)}
    nb.store_vectors(tmp_path / "vectors", trained)
    back = nb.stored_vectors(tmp_path / "vectors")
    assert list(back) == list(trained) and all(torch.equal(back[name], trained[name][0]) for name in trained)
    assert pd.read_csv(tmp_path / "vectors" / "training.csv")["vector"].tolist() == ["safe-0"] * 2 + ["safe-1"] * 2


def test_no_request_or_answer_is_printed():
    cells = json.loads((FOLDER / "safety_neurons.ipynb").read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    for shown in ("print(answers", "print(test", "print(find", "print(decode", "display(requests)"):
        assert shown not in code


@pytest.mark.slow
def test_the_full_preset_runs_on_the_smallest_real_thing(tokenizer, tmp_path):
    """The whole notebook as on a GPU: HH-RLHF pairs, public requests, generated answers scored by a classifier."""
    if not (data_dir() / "safety_neurons" / "hh_harmless_base_test.jsonl.gz").is_file():
        pytest.skip("needs the public data in REPRODUCTIONS_DATA")
    big = {"num_hidden_layers": 3, "initializer_range": 0.6}  # large weights: answers differ from request to request
    save_tiny(tmp_path / "lm", tokenizer, **big)
    save_tiny(tmp_path / "judge", tokenizer, LlamaForSequenceClassification, num_labels=1, **big)
    small = {
        "model": tmp_path / "lm",
        "cost_model": tmp_path / "judge",
        "dtype": "float32",
        "n_pairs": 40,
        "n_find": 4,
        "n_test": 16,
        "n_generate": 4,
        "answer_tokens": 8,
        "draws": 1,
        "n_guard": 20,
    }
    changes = [text for name, value in small.items() for text in ("-p", name, str(value))]
    command = [
        sys.executable,
        "-m",
        "helpers.engine.execute",
        NOTEBOOK,
        "--preset",
        "full",
        *changes,
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=FOLDER.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads(next(tmp_path.rglob("safety_neurons.json")).read_text())
    assert record["claims"]["C5"]["verdict"] == "not testable here" and "verdict" in record["claims"]["C1"]


@pytest.mark.sabotage
def test_a_ranking_turned_upside_down_is_noticed():
    error = sabotage(
        "safety_neurons", {'    change = scores[name]["answer"]\n': '    change = -scores[name]["answer"]\n'}
    )
    assert error.startswith("RegressionError"), error
