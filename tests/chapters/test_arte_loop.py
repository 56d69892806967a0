"""ARTE with language models: pairs, adapters, log-probabilities and scores against plain versions; the loop, tiny."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_run import FakeRun
from lift import lift
from tiny import tiny_llama, word_tokenizer

from helpers.models import LanguageModel

FOLDER = Path("notebooks/arte")
NOTEBOOK = FOLDER / "preferences.ipynb"
WORDS = ["<pad>", "<eos>", "one", "two", "three", "four", "five", "<ans>", "</ans>", "(A)", "(B)", "no"]
NAMES = ["answer_in", "loop_pairs", "new_adapter", "adapted", "answer_logp", "trained", "aligned", "fine_tuned"]
NAMES += ["score_draft", "tested", "deciding", "chat", "NAIVE_PROMPT", "ask_questions"]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    tokenizer = word_tokenizer(WORDS)
    return LanguageModel(tiny_llama(tokenizer), tokenizer, "tiny", "none")


@pytest.fixture(scope="module")
def nb(lm) -> SimpleNamespace:
    given = {"run": FakeRun(), "lm": lm, "lora_rank": 3, "loop_beta": 0.5, "dpo_rate": 3e-2, "sft_rate": 1e-2}
    return lift(NOTEBOOK, NAMES, given)


def test_the_first_marked_answer_counts(nb):
    assert nb.answer_in("a <ans> (B)\n</ans> <ans>x</ans>") == "(B)"
    assert nb.answer_in("no marks") == nb.answer_in("<ans>open") == ""


def test_pairs_prefer_higher_scores_and_leave_ties_out(nb):
    s = np.array([[0.1, 0.9, 0.4, 0.2], [0.3] * 4, [0.0, 0.0, 0.5, 0.1], [0.9, 1.0, 0.8, 0.9]])
    drafted, told = list("abcd"), [[f"{q}{k}" for k in range(4)] for q in "abcd"]
    question, *rationales = nb.loop_pairs("write", drafted, told, s)
    assert question == ("write", "<input>d</input>", "<input>c</input>")
    prompts = [nb.NAIVE_PROMPT.format(q=q) for q in "acd"]
    assert rationales == [(prompts[0], "a1", "a0"), (prompts[1], "c2", "c0"), (prompts[2], "d1", "d2")]


def test_a_new_adapter_changes_nothing_and_another_one_the_weights(nb, lm):
    ids, generator = torch.tensor([[2, 3, 4, 5]]), torch.Generator().manual_seed(0)
    before, adapter = lm.model(ids).logits, nb.new_adapter(lm, generator)
    with nb.adapted(lm, adapter):
        assert torch.equal(lm.model(ids).logits, before)
    adapter = {name: torch.randn(value.shape, generator=generator) for name, value in adapter.items()}
    with nb.adapted(lm, adapter):
        got = lm.model(ids).logits
    assert torch.equal(lm.model(ids).logits, before) and not torch.allclose(got, before)
    other = tiny_llama(lm.tokenizer)
    for name in {name[:-2] for name in adapter}:
        weight = other.get_parameter(f"{name}.weight")
        weight += 2 * adapter[f"{name}.b"] @ adapter[f"{name}.a"]
    assert len(adapter) == 8 and torch.allclose(got, other(ids).logits, atol=1e-4)


def test_an_answer_is_worth_the_sum_of_its_tokens(nb, lm):
    got = nb.answer_logp(lm, "one two", "three four")
    logp = lm.model(torch.tensor([[2, 3, 4, 5, 1]])).logits[0].log_softmax(-1)
    assert got.item() == pytest.approx((logp[1, 4] + logp[2, 5] + logp[3, 1]).item(), abs=1e-4)


def test_alignment_moves_the_teacher_towards_the_chosen_text(nb, lm):
    pairs = [("one", "two three", "four"), ("two", "five", "four four")] * 16

    def lead(given) -> float:
        with torch.no_grad():
            gaps = [nb.answer_logp(lm, p, a) - nb.answer_logp(lm, p, b) for p, a, b in pairs[:2]]
        return float(sum(gaps))

    old = lead(pairs)
    for rows, sign in ((pairs, 1), ([(p, b, a) for p, a, b in pairs], -1)):
        with nb.adapted(lm, nb.aligned(lm, rows, "test")):
            assert sign * (lead(rows) - old) > 0.1
    assert lead(pairs) == old  # without its adapter the model is the old teacher


def test_fine_tuning_changes_a_copy(nb, lm):
    rows = [("one", "two three")] * 64
    prompt, before = nb.NAIVE_PROMPT.format(q="one"), lm.model.lm_head.weight.clone()
    mine = nb.fine_tuned(lm, rows, "test")
    with torch.no_grad():
        assert nb.answer_logp(mine, prompt, "two three") > nb.answer_logp(lm, prompt, "two three") + 0.1
    assert torch.equal(lm.model.lm_head.weight, before) and not mine.model.lm_head.weight.requires_grad


def test_a_draft_is_scored_by_the_students_own_answers(lm, monkeypatch):
    """The student's texts are set; which prompts it sees, and what of its texts counts, is the page's."""
    seen = {}

    def generate(one, prompts, limit, **options):
        seen.update(options, prompts=prompts)
        return SimpleNamespace(texts=[["two <ans>(A)"], ["<ans> (B) "], ["(A)"]])

    score = lift(NOTEBOOK, ["score_draft"], {"generate": generate}).score_draft
    got = score(lm, "five", "because", [("one", "(A)"), ("two", "(A)"), ("three", "(A)")])
    assert got == pytest.approx(1 / 3) and seen["temperature"] == 0 and "because" in seen["prefix"]
    first = seen["prompts"][0]
    assert "five" in seen["prefix"] and "one" in first and "five" not in first


def test_questions_without_marks_are_left_out(lm):
    texts = ["<input> one </input>", "two", "<input></input>", "x <input>three</input> y"]
    given = {"run": FakeRun(), "generate": lambda *_, **__: SimpleNamespace(texts=[texts])}
    ask = lift(NOTEBOOK, ["ask_questions"], given).ask_questions
    assert ask(lm, ["seed"], 3, "test") == (["one", "three", "one"], 0.5)
    texts[:] = ["nothing"] * 4
    assert ask(lm, ["seed"], 2, "test") == (["seed", "seed"], 0.0)


def test_answers_are_told_apart_by_the_first_token_that_differs(lm):
    words = ["<pad>", "<eos>", "(", "A", "B", "C", "no", "yes", "-", "1", "2", "3", "4", "5", "a"]
    tokenizer = word_tokenizer(words)
    other = LanguageModel(tiny_llama(tokenizer), tokenizer, "tiny", "none")
    deciding = lift(NOTEBOOK, ["deciding"], {"lm": other}).deciding
    begin, tokens = deciding(["( A", "( B", "( C", "( A"], np.random.default_rng(0))
    assert begin.strip() == "(" and [words[i] for i in tokens[:, 0]] == ["A", "B", "C", "A"]
    assert [sorted(words[i] for i in row) for row in tokens] == [["A", "B", "C"]] * 4
    begin, tokens = deciding(["1 1", "1 2", "2", "3 a", "4", "5", "- 1"], np.random.default_rng(0))
    assert begin == "" and tokens.shape == (7, 4) and [words[i] for i in tokens[:, 0]] == list("112345-")
    assert all(len(set(row.tolist())) == 4 for row in tokens)


TINY = {"n_examples": 4, "n_items": 5, "n_more": 1, "n_tasks": 2, "teacher": "smollm2-135m-instruct"}
TINY |= {"loop_student": "smollm2-135m-instruct", "n_loop": 4, "n_scored": 1, "n_loop_test": 2}


@pytest.mark.slow
@pytest.mark.skipif("REPRODUCTIONS_DATA" not in os.environ, reason="needs the questions of BIG-Bench Hard")
def test_the_preset_full_on_the_smallest_real_models(execute, tmp_path):
    """SmolLM2-135M teaches itself: every step of the loop, with a few questions and short texts."""
    folder = tmp_path / "notebooks" / "arte"
    shutil.copytree(FOLDER, folder)
    notebook = folder / NOTEBOOK.name
    text = notebook.read_text()
    assert text.count("TOKENS = 200 ") == 1
    notebook.write_text(text.replace("TOKENS = 200 ", "TOKENS = 24 "))
    where = {"REPRODUCTIONS_DATA": os.environ["REPRODUCTIONS_DATA"]}
    done = execute(folder, notebook="preferences", preset="full", parameters=TINY, environment=where, timeout_s=1200)
    assert done.code == 0, done.err[-2000:]
    record = json.loads(done.record.read_text())
    assert {"L1", "L1b", "B4"} <= {n for n, one in record["claims"].items() if one["verdict"] != "not testable here"}
    assert record["metrics"]["loop: pairs"]["value"] >= 2
    assert not list(done.record.parent.glob("*.work"))  # nothing is left to resume
