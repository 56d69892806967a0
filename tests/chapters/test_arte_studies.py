"""ARTE, the two studies: questions against plain solvers, shared keys against whole texts, agreement, sums."""

import itertools
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_run import FakeRun
from lift import lift, sabotage
from tiny import tiny_llama, word_tokenizer

from helpers.models import LanguageModel

FOLDER = Path("notebooks/arte")
NAMES = ["boolean", "lies", "navigate", "demonstration", "asked", "margins", "agree", "both_ends", "fit_2pl"]


@pytest.fixture(scope="module")
def nb() -> SimpleNamespace:
    return lift(FOLDER / "preferences.ipynb", NAMES, {"run": FakeRun()})


def drawn(make, n: int = 200) -> list:
    return [make(np.random.default_rng(i)) for i in range(n)]


def test_expressions_are_worth_what_python_says(nb):
    for one in drawn(nb.boolean):
        assert one.answer == str(eval(one.question.removesuffix(" is")))
        assert re.search(rf"is {one.answer}\.$", one.rationales[0]) and one.rationales[3] == ""
    assert {one.answer for one in drawn(nb.boolean)} == {"True", "False"}


def test_lies_are_found_by_trying_both_worlds(nb):
    for one in drawn(nb.lies):
        first, *said = one.question.split(". ")
        honest = {first.split()[0]: "truth" in first}
        for claim in [s for s in said if " says " in s] + re.findall(
            r"\w+ says \w+ (?:lies|tells the truth)\.", said[-1]
        ):
            who, about, truth = re.match(r"(\w+) says (\w+) (lies|tells the truth)", claim).groups()
            honest[who] = honest[about] == (truth != "lies")
        asked = re.search(r"Does (\w+) tell", one.question)[1]
        assert one.answer == ("Yes" if honest[asked] else "No")


def test_moves_are_added_up(nb):
    ways = {"forward": 1j, "backward": -1j, "left": -1, "right": 1}
    answers = []
    for one in drawn(nb.navigate):
        moves = re.findall(r"Take (\d+) steps? (\w+)\.", one.question)
        back = sum(int(n) * ways[way] for n, way in moves) == 0
        answers.append(one.answer)
        assert one.answer == ("Yes" if back else "No")
        assert ("not the start" in one.rationales[0]) != back
    assert 0.3 < np.mean([a == "Yes" for a in answers]) < 0.7


def test_shared_keys_give_what_the_whole_text_gives(nb):
    words = ["<pad>", "<eos>", "Q:", "a", "b", "c", "d", "Yes", "No", "Answer:"]
    tokenizer = word_tokenizer(words)
    lm = LanguageModel(tiny_llama(tokenizer), tokenizer, "tiny", "none")
    head, texts = "Q: a b Answer: Yes", ["Q: c Answer:", "Q: a b c d Answer:", "Q: d d Answer:"]
    got = nb.margins(lm, head, texts, ["Yes", "No"])
    for row, text in zip(got, texts, strict=True):
        ids = torch.tensor([tokenizer(f"{head} {text}")["input_ids"]])
        want = lm.model(ids).logits[0, -1].log_softmax(-1)[[7, 8]]
        assert torch.allclose(row, want, atol=1e-4)


def test_agreement_counts_ties_in_parts(nb):
    x = np.array([[0.5, 0.5, 0.1, 0.0], [0.1, 0.2, 0.3, 0.4]])
    y = np.array([[0.9, 0.1, 0.1, 0.1], [0.0, 0.0, 0.5, 0.5]])
    assert nb.agree(x, y).tolist() == [0.5, 1.0]
    rows = np.zeros((1, 2, 4, 6), bool)
    rows[:, :, 2] = True  # one style is always right
    assert nb.both_ends(rows, np.array([[0, 3]])).tolist() == [[[1.0, 1.0]], [[1.0, 1.0]]]


def test_an_interval_over_drafts_and_questions_is_wider_than_over_drafts_alone():
    """Questions differ, drafts hardly: over drafts alone the mean looked certain."""
    rng = np.random.default_rng(0)
    gaps = rng.choice([-1.0, 0.0, 1.0], (3, 1, 20)) + 0.01 * rng.normal(size=(3, 8, 20))
    given = {"n_examples": 8, "item_task": np.repeat([0, 1, 2], 20)}
    found = lift(FOLDER / "preferences.ipynb", ["crossed"], given).crossed(gaps)
    assert found.value == pytest.approx(gaps.mean())
    error = np.sqrt(np.mean([gaps[t].mean(0).var(ddof=1) / 20 for t in range(3)]) / 3)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.15)


def test_the_models_own_drafts_keep_their_questions_and_styles():
    said = (SimpleNamespace(texts=[[f" reason\n{i} "] for i in range(6)]),)
    prompts = []
    given = {"run": FakeRun(), "lm": None, "generate": lambda _, rows, *a, **k: prompts.extend(rows) or said[0]}
    heads = lift(FOLDER / "preferences.ipynb", ["own_heads"], given).own_heads([("q1", "a1"), ("q2", "a2")], "test")
    assert [("q1" in p, "a1" in p) for p in prompts] == [(True, True)] * 3 + [(False, False)] * 3
    assert heads[0] == "Q: q1\nreason 0\nAnswer: a1\n\n" and heads[3] == "Q: q1\nAnswer: a1\n\n"
    assert heads[4] == "Q: q2\nreason 3\nAnswer: a2\n\n" and len(heads) == 8


def test_a_task_is_judged_by_its_options(tmp_path):
    """Ten questions, four asked: the steps draw the right token, the other styles that of (A)."""
    path = tmp_path / "task.json"
    rows = [{"input": f"q{i}", "target": "AB"[i % 2]} for i in range(10)]
    rows[8] = {"input": "q8", "target": "B"}
    path.write_text(json.dumps({"examples": rows}))
    gold, turn = torch.tensor([0, 1, 0, 1]), itertools.count()

    def next_logprobs(lm, head, texts):
        assert texts == [f"Q: q{i}\nAnswer: (" for i in range(4)]
        return torch.nn.functional.one_hot(gold if next(turn) % 4 == 0 else gold * 0, 2).float().log()

    class Run(FakeRun):
        def data(self, name: str) -> Path:
            return path

    tokens = torch.tensor([["AB".index(row["target"]), 1 - "AB".index(row["target"])] for row in rows])
    given = {"run": Run(), "lm": None, "n_items": 4, "n_more": 2, "next_logprobs": next_logprobs}
    given |= {"deciding": lambda answers, rng: (" (", tokens), "own_heads": lambda rows, stream: ["head"] * 8}
    got = lift(FOLDER / "preferences.ipynb", ["on_task"], given).on_task("task")
    assert got["accuracy"] == pytest.approx((1 + 3 * 0.5) / 4) and got["steps minus answer"] == pytest.approx(0.5)
    assert got["usual answer"] == 0.5 and got["best is tied"] == 0


def test_a_lead_has_the_error_of_two_shares():
    lead = lift(FOLDER / "tables.ipynb", ["lead"]).lead
    rng = np.random.default_rng(0)
    gaps = 100 * (rng.binomial(500, 0.6, 4000) - rng.binomial(500, 0.5, 4000)) / 500
    found = lead(60, 50, 500)
    assert found.value == 10 and (found.high - found.low) / 2 == pytest.approx(1.96 * gaps.std(), rel=0.05)


@pytest.mark.sabotage
def test_examples_without_their_answer_are_noticed():
    """The demonstration ends before its answer: nothing can pull the student, and nothing is scored for minutes."""
    error = sabotage("arte", {"Answer: {example.answer}": "Answer:"}, notebook="preferences")
    assert error.startswith("RegressionError") and "pull of the example's answer" in error


@pytest.mark.sabotage
def test_a_wrong_digit_is_noticed():
    """One of the typed numbers is a point too low."""
    error = sabotage("arte", {"53.87, 43.44]": "53.87, 42.44]"}, notebook="tables")
    assert error.startswith("RegressionError") and "lead over vanilla" in error
