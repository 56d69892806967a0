"""ARTE, the two studies: questions against plain solvers, shared keys against whole texts, agreement, sums."""

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
