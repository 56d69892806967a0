"""ARTE: the loop against plain versions, DPO against TRL's formula, 2PL against other optimisers, errors, sabotage."""

import itertools
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from fake_run import FakeRun
from lift import lift, sabotage
from scipy.optimize import minimize
from scipy.stats import rankdata, spearmanr

from helpers.claims import load_claims
from helpers.decoders import Cache, generate, select, start_weights, states
from helpers.stats import Estimate

FOLDER = Path("notebooks/arte")
MAIN = FOLDER / "arte.ipynb"
NAMES = [
    "WORDS",
    "SPAN",
    "END",
    "solve",
    "question_tokens",
    "rationale_tokens",
    "pack",
    "joined",
    "answer_of",
    "uniform",
]
NAMES += [
    "draw_questions",
    "episodes",
    "told_loss",
    "lessons",
    "fit_2pl",
    "recovery",
    "Pairs",
    "dpo_loss",
    "prompted",
    "sums",
]
NAMES += ["orders", "dpo", "lead", "toy_pairs", "code_of", "distinct", "accuracy", "one_shot", "parse", "new_questions"]
NAMES += [
    "write",
    "style_of",
    "question_pairs",
    "rationale_pairs",
    "of_drafts",
    "make_pairs",
    "like",
    "tune",
    "falling",
]
NAMES += ["guarded", "centred", "rank_correlation", "reliability", "ties", "Data", "examples", "look", "contrast"]
CPU = torch.device("cpu")
RULE = [lambda v: (v + 1) % 7, lambda v: (v - 1) % 7, lambda v: 2 * v % 7, lambda v: -v % 7]
TABLE = torch.tensor([[rule(v) for rule in RULE] for v in range(7)])


@pytest.fixture(scope="module")
def nb() -> SimpleNamespace:
    given = {"run": FakeRun(), "device": CPU, "n_worlds": 2, "n_sets": 1, "n_drafts": 12, "TABLE": TABLE, "ROWS": 37}
    given |= {"FIXED": torch.arange(24) % 4, "POOLS": torch.arange(12).view(4, 3), "found": {}}
    given |= {"meanings": torch.arange(24).expand(2, -1) % 4, "CELLS": {"all": np.zeros(60), "two": np.arange(60) % 2}}
    given |= {"GRID": [0, 1], "results": {"own": {("a", None): np.array([0.3, 0.5]), ("b", 0): np.array([0.1, 0.2])}}}
    given["results"]["own"]["b", 1] = np.array([0.2, 0.5])
    return lift(MAIN, NAMES, given)


def models(nb, generator, runs: int = 2) -> dict[str, torch.Tensor]:
    return start_weights(runs, len(nb.WORDS), generator, CPU)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def some(nb, generator, shape=(2, 4, 6), steps=(1, 3)) -> tuple[torch.Tensor, torch.Tensor]:
    """Random questions of the four tasks, and random rules for each."""
    pool = torch.arange(12).view(4, 3)[:, None].expand(*shape, 3)
    rules = torch.randint(0, 4, (shape[0], 24), generator=generator)
    return nb.draw_questions(pool, steps, generator), rules


def lively(nb, generator) -> dict[str, torch.Tensor]:
    """Random weights whose greedy texts vary."""
    w = models(nb, generator)
    return {name: value * (8 if name[:-1] in ("write", "down") else 1) for name, value in w.items()}


def plain(tokens: torch.Tensor) -> list[int]:
    return [token for token in tokens.tolist() if token]


def slowly(nb, w, run: int, text: list[int], limit: int) -> list[int]:
    """Greedy tokens without a cache, one text at a time."""
    said: list[int] = []
    while len(said) < limit and nb.END not in said:
        out = states(select(w, [run]), torch.tensor([[text + said]]))[0, 0, -1]
        said.append(int((w["embed"][run] @ out).argmax()))
    return said


def test_solutions_equal_plain_arithmetic(nb, generator):
    questions, rules = some(nb, generator, steps=(1, 4))
    values = nb.solve(questions, rules[:, None, None].expand(-1, 4, 6, -1))
    for at in itertools.product(range(2), range(4), range(6)):
        v, *symbols = questions[at].tolist()
        for place, symbol in enumerate(symbols):
            v = RULE[rules[at[0], symbol]](v) if symbol >= 0 else v
            assert values[at][place] == v


def test_the_styles_say_what_they_should(nb):
    question, rules = torch.tensor([3, 0, 2, -1, -1]), torch.tensor([0, 1, 2] + [0] * 21)
    said = [
        " ".join(nb.WORDS[t] for t in plain(nb.rationale_tokens(question, rules, torch.tensor(s)))) for s in range(4)
    ]
    assert said == [
        "3 s0 inc 4 s2 dbl 1 answer 1 end",
        "3 s0 inc' 4 s2 dbl' 1 answer 1 end",
        "3 4 1 answer 1 end",
        "answer 1 end",
    ]


def test_packing_keeps_order_and_takes_others_along(nb):
    tokens, told = torch.tensor([[0, 5, 0, 6], [7, 0, 0, 8]]), torch.tensor([[0, 1, 0, 0], [0, 0, 0, 1]])
    right, moved = nb.pack(tokens, told)
    assert right.tolist() == [[5, 6], [7, 8]] and moved.tolist() == [[1, 0], [0, 1]]
    left = nb.pack(torch.tensor([[0, 5, 0, 6], [0, 0, 0, 8]]), left=True)[0]
    assert left.tolist() == [[5, 6], [0, 8]]


def test_answers_are_read_after_the_first_mark(nb):
    mark, three, end = (nb.WORDS.index(word) for word in ("answer", "3", "end"))
    rows = [
        [mark, three, end],
        [three, mark, three],
        [end, end, mark],
        [mark, end, three],
        [0, 0, 0],
        [mark, mark, three],
    ]
    assert nb.answer_of(torch.tensor(rows)).tolist() == [3, 3, -1, -1, -1, -1]


@pytest.mark.parametrize(
    "text", ["3 s0", "Q 3 A end", "Q 3 s0 s1 s2 s0 A end", "Q 3 s3 A end", "Q s0 s0 A end", "Q 3 s0 A"]
)
def test_malformed_questions_are_refused(nb, text):
    said = torch.zeros(1, 4, 1, 8, dtype=torch.long)
    said[0, 0, 0, : len(text.split())] = torch.tensor([nb.WORDS.index(word) for word in text.split()])
    assert not nb.parse(said)[1][0, 0, 0]


def test_a_written_question_is_read_back(nb, generator):
    questions, _ = some(nb, generator)
    tokens = torch.nn.functional.pad(nb.question_tokens(questions), (0, 1), value=nb.WORDS.index("end"))
    packed = nb.pack(tokens)[0]
    got, good = nb.parse(torch.nn.functional.pad(packed, (0, 8 - packed.shape[-1])))
    assert good.all() and torch.equal(got, questions)


def test_one_shot_scores_equal_a_loop_over_items(nb, generator):
    w = lively(nb, generator)
    questions, rules = some(nb, generator)
    items = some(nb, generator, (2, 4, 5), (4, 4))[0]
    style = torch.randint(0, 4, (2, 4, 6), generator=generator)
    solved = nb.rationale_tokens(questions, rules[:, None, None].expand(2, 4, 6, -1), style)
    demos = torch.cat([nb.question_tokens(questions), solved], -1)
    left, asked = nb.pack(demos, left=True)[0], nb.question_tokens(items)
    shared = Cache(left.shape[-1])
    states(w, left.flatten(1, 2), shared)
    rows = asked[:, :, None].expand(2, 4, 6, 5, -1).flatten(1, 3)
    fast = generate(w, rows, 9, nb.END, shared.followed(5, 16)).unflatten(1, (4, 6, 5))
    got, differs = nb.one_shot(w, left, items, rules), set()
    for r, t, d, i in itertools.product(range(2), (0, 3), range(0, 6, 2), range(0, 5, 2)):
        said = slowly(nb, w, r, plain(demos[r, t, d]) + plain(asked[r, t, i]), nb.SPAN)
        assert said[:9] == fast[r, t, d, i].tolist()[: len(said)]
        differs.add(tuple(said))
        right = nb.answer_of(torch.tensor(said)) == nb.solve(items[r, t, i], rules[r])[-1]
        assert bool(right) == bool(got[r, t, d, i])
    assert len(differs) > 3


def test_padding_on_the_left_changes_nothing(nb, generator):
    w, questions = lively(nb, generator), some(nb, generator)[0]
    got = nb.write(w, questions, nb.WORDS.index("naive"))
    for r, t, d in itertools.product(range(2), range(4), range(0, 6, 3)):
        text = [nb.WORDS.index("naive"), nb.WORDS.index(f"task {t}"), *plain(nb.question_tokens(questions[r, t, d]))]
        said = slowly(nb, w, r, text, nb.SPAN)
        assert said == got[r, t, d].tolist()[: len(said)]


def test_the_loss_is_that_of_each_answer_alone(nb, generator):
    w = models(nb, generator)
    tokens, told = nb.lessons(torch.arange(24).expand(2, -1) % 4, 5, generator)
    got = nb.sums(w, tokens, told)
    for r, n in itertools.product(range(2), range(5)):
        text = plain(tokens[r, n])
        out = states(select(w, [r]), torch.tensor([[text]]))[0, 0] @ w["embed"][r].T
        logp = out.double().log_softmax(-1)
        want = sum(logp[i - 1, text[i]] for i in range(len(text)) if told[r, n, i])
        assert got[r, n].item() == pytest.approx(want.item(), abs=1e-4)


def test_dpo_equals_trls_formula(nb, generator):
    """trl 1.16.0, dpo_trainer.py, loss "sigmoid": -logsigmoid(beta * delta) of the log-ratios to the reference.

    test_arte_peers.py compares with its trainer itself.
    """
    for _ in range(500):
        a, b, c, d = torch.randn(4, 3, generator=generator, dtype=torch.float64).mul(20)
        beta = float(torch.rand(1, generator=generator))
        delta = (a - c) - (b - d)
        want = torch.log1p(torch.exp(-beta * delta))
        assert torch.allclose(nb.dpo_loss(a, b, c, d, beta), want, atol=1e-12)


def simulated(respondents: int, items: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    a, ability, difficulty = np.exp(0.5 * rng.normal(size=items)), rng.normal(size=respondents), rng.normal(size=items)
    p = 1 / (1 + np.exp(-a * (ability[:, None] - difficulty)))
    return a, rng.random(p.shape) < p


def test_2pl_equals_another_optimiser(nb):
    """The same posterior in float64, maximised by scipy from another start."""
    _, y = simulated(30, 12, 0)

    def loss(x):
        ability, difficulty, log_a = np.split(x, [30, 42])
        z = np.exp(log_a) * (ability[:, None] - difficulty)
        prior = (ability**2).sum() / 2 + (difficulty**2).sum() / 4.5 + (log_a**2).sum() / 0.5
        return np.logaddexp(0, z).sum() - (y * z).sum() + prior

    want = minimize(loss, np.zeros(54), method="BFGS", options={"gtol": 1e-5}).x
    a, difficulty, ability = (part[0].numpy() for part in nb.fit_2pl(torch.as_tensor(y)[None], steps=1000))
    assert np.abs(np.log(a) - want[42:]).max() < 2e-3
    assert np.abs(difficulty - want[30:42]).max() < 5e-3 and np.abs(ability - want[:30]).max() < 5e-3


def test_2pl_equals_girth(nb):
    girth = pytest.importorskip("girth", reason="girth is not installed (extra peers)")
    _, y = simulated(400, 30, 1)
    theirs = girth.twopl_mml(y.T.astype(int))["Discrimination"]
    assert spearmanr(nb.fit_2pl(torch.as_tensor(y)[None])[0][0], theirs).statistic > 0.95


def test_planted_discriminations_are_recovered_from_many_respondents_only(nb):
    """The bar of the chapter: a rank correlation of .8; here with the simulation of the page, fewer of it."""
    many, few = (nb.recovery(n, 0.5, 4).value for n in (100, 20))
    assert many >= 0.8 > few + 0.1
    assert abs(nb.recovery(100, 0.5, 4, mixed=True).value) < 0.35  # the shares of right answers tell a little


def test_items_that_all_or_none_solve_do_not_break_the_fit(nb):
    y = torch.as_tensor(simulated(20, 10, 2)[1])
    y[:, 0], y[:, 1] = True, False
    assert all(torch.isfinite(part).all() for part in nb.fit_2pl(y[None]))
    assert all(torch.isfinite(part).all() for part in nb.fit_2pl(torch.ones(1, 20, 10)))


def test_pairs_prefer_the_higher_score_and_leave_ties_out(nb, generator):
    s = torch.rand(2, 4, 12, 4, generator=generator)
    s[0, 0, 3] = 0.5
    number = nb.question_pairs(s, 9, generator)
    s_q = s.mean(-1)
    assert (s_q.gather(-1, number[0]) > s_q.gather(-1, number[1])).all()
    style, weight = nb.rationale_pairs(s, generator)
    best, worst = (s.gather(-1, one[..., None])[..., 0] for one in style)
    assert (best == s.amax(-1)).all() and (worst == s.amin(-1)).all()
    assert weight[0, 0, 3] == 0 and weight.sum() == weight.numel() - 1
    tied = torch.zeros(1, 1, 4000, 4)
    shares = torch.bincount(nb.rationale_pairs(tied, generator)[0][0].flatten(), minlength=4) / 4000
    assert (shares - 0.25).abs().max() < 0.04


@pytest.fixture
def pairs(nb, generator):
    """Pairs of the loop, with drafts and rationales of random texts."""
    drafts = some(nb, generator, (2, 4, 12))[0]
    fourfold = drafts.repeat(1, 1, 4, 1)
    style = torch.arange(4).repeat_interleave(12).expand(2, 4, -1)
    rules = torch.randint(0, 4, (2, 1, 1, 24), generator=generator).expand(2, 4, 48, -1)
    rationales = nb.pack(nb.rationale_tokens(fourfold, rules, style))[0]
    rationales = torch.nn.functional.pad(rationales, (0, nb.SPAN - rationales.shape[-1]))
    given = {"run": FakeRun(), "device": CPU, "n_drafts": 12, "drafts": drafts, "draft_rationales": rationales}
    make = lift(MAIN, ["make_pairs"], given).make_pairs
    s = torch.zeros(2, 4, 12, 4)
    s[..., 1], s[..., 3] = 1.0, -1.0  # the primed vocabulary is liked, the bare answer is not
    return make(s)


def test_pairs_hold_prompts_and_answers(nb, pairs):
    tokens, told = nb.pack(pairs.tokens, pairs.told)
    words = [[nb.WORDS[t] for t in plain(row)] for row in tokens[:, 1, 30]]
    assert words[0][:2] == words[1][:2] and words[0][0] in ("naive", "new")
    naive = [[nb.WORDS[t] for t in plain(row)] for row in tokens[0, 0] if nb.WORDS[int(row[0])] == "naive"]
    assert len(naive) == 4 * 12 and all(any(word.endswith("'") for word in row) for row in naive)
    assert (tokens * told)[:, :, :, :2].sum() == 0  # nothing of a prompt is learned


def test_swapped_preferences_lead_the_other_way(nb, pairs, generator):
    w = models(nb, generator)
    turn = torch.ones_like(pairs.weight, dtype=torch.bool)
    assert torch.equal(pairs.turned(turn).turned(turn).tokens, pairs.tokens)

    def lead(w) -> float:
        chosen, rejected = (nb.sums(w, *side) for side in zip(*nb.pack(pairs.tokens, pairs.told), strict=True))
        return float((chosen - rejected).mean())

    for given, sign in ((pairs, 1), (pairs.turned(turn), -1)):
        assert sign * (lead(nb.dpo(w, given, 0.1, 3e-3, 2)) - lead(w)) > 0.5


def test_fresh_questions_repeat_as_the_pattern_does(nb, generator):
    source = some(nb, generator, (2, 4, 60))[0]
    pattern = source[:, :, :12].clone()
    pattern[0, 0, 5:] = pattern[0, 0, 4]
    other = nb.like(pattern, source.flip(2))
    count = lambda q: sorted(nb.code_of(q).unique(return_counts=True)[1].tolist())  # noqa: E731
    assert all(count(a) == count(b) for a, b in zip(pattern.flatten(0, 1), other.flatten(0, 1), strict=True))
    assert not torch.equal(other, pattern)


def test_a_teacher_that_writes_nothing_gets_spare_questions(nb, generator):
    questions, good = nb.new_questions(models(nb, generator), 5, "silent")
    assert good.max() < 0.5 and questions.shape == (2, 4, 5, 5)
    assert ((questions[..., 1:] >= 0).sum(-1) >= 1).all()


def test_correlations_are_within_cells(nb):
    rng = np.random.default_rng(0)
    cell = np.repeat([0, 1], 50)
    x = rng.normal(size=100) + 10 * cell
    y = -rng.normal(size=100) + 10 * cell
    assert spearmanr(x, y).statistic > 0.6 > abs(nb.rank_correlation(x, y, cell))
    assert nb.rank_correlation(x, np.ones(100), cell) == 0.0
    a, b = (v - np.where(cell == 0, v[:50].mean(), v[50:].mean()) for v in (x, y))
    assert nb.rank_correlation(x, y, cell) == pytest.approx(np.corrcoef(rankdata(a), rankdata(b))[0, 1], abs=1e-6)


def test_a_closed_gate_leaves_every_claim_undecided(nb):
    surely = Estimate(0.2, 0.1, 0.3, 5)
    assert nb.guarded(surely, True) == surely
    claims = load_claims(FOLDER / "claims.yaml")
    for estimate, claim in itertools.product((surely, Estimate(0.0, 0.0, 0.0, 5)), ("C1", "C3", "C7b")):
        assert claims[claim].verdict(nb.guarded(estimate, False)) == "inconclusive"


def test_ties_are_counted(nb):
    s = torch.tensor([[[0.5, 0.5, 0.1, 0.0], [0.9, 0.1, 0.1, 0.1], [0.3, 0.3, 0.3, 0.3]]])
    assert nb.ties(s) == (pytest.approx(2 / 3), pytest.approx(1 / 3))


def test_a_recipe_of_one_step_is_one_step(nb):
    rates = [nb.falling(2e-3, 1, 1.0), *(nb.falling(2e-3, 40, (step + 1) / 40) for step in range(40))]
    assert rates[0] == 2e-3 and min(rates) > 0 and max(rates) <= 2e-3 and rates[2] > rates[-1]


def test_the_check_of_dpo_knows_its_directions(nb, generator):
    pairs, w = nb.toy_pairs(), models(nb, generator, 1)
    assert torch.equal(pairs.tokens[0, 0], pairs.tokens[1, 1]) and torch.equal(pairs.tokens[1, 0], pairs.tokens[0, 1])
    changed = (pairs.tokens[0, 2] != pairs.tokens[0, 0]).any(-1).float().mean()
    assert 0.3 < changed < 0.7  # the coin
    first = nb.lead(select(w, [0, 0, 0]), pairs)
    assert first[0] == pytest.approx(-first[1], abs=1e-3)


def test_halves_that_agree_are_reliable(nb):
    rng = np.random.default_rng(0)
    true, noise = rng.normal(size=(3, 60, 1)), rng.normal(size=(3, 60, 40))
    assert nb.reliability(np.broadcast_to(true, noise.shape) + 0 * noise, "all") == pytest.approx(1)
    assert abs(nb.reliability(noise, "two")) < 0.4
    expected = 1 / (1 + 4 / 40)  # variance of the truth against that of a mean of forty with noise of variance 4
    assert nb.reliability(true + 2 * noise, "all") == pytest.approx(expected, abs=0.06)


def test_an_arm_without_dpo_is_the_same_at_every_strength(nb):
    first, second = nb.contrast("a", "b")
    assert (first.value, second.value) == (pytest.approx(0.25), pytest.approx(0.05))


def test_examples_learn_the_rationale_only(nb, generator):
    questions, rules = some(nb, generator)
    solved = nb.rationale_tokens(
        questions, rules[:, None, None].expand(2, 4, 6, -1), torch.ones_like(questions[..., 0])
    )
    tokens, told = nb.examples([nb.Data(questions, solved)] * 3)
    assert tokens.shape[:2] == (6, 24) and torch.equal(tokens[:2], tokens[4:])
    row = [(nb.WORDS[t], bool(k)) for t, k in zip(tokens[0, 0], told[0, 0], strict=True) if t]
    start = [word for word, _ in row].index("A") + 1
    assert not any(k for _, k in row[:start]) and all(k for _, k in row[start:])


# The arms: texts that name their writer, and drafts that name themselves


WRITERS = {"teacher": 1, "aligned": 2, "own": 3}


def signed(w: str, questions: torch.Tensor, head: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """A rationale that names its writer, in place of `write`."""
    return torch.full((*questions.shape[:-1], 3), WRITERS[w])


@pytest.fixture
def world(nb, generator) -> SimpleNamespace:
    """Drafts in four styles: the answer is right in one style or in none; style 2 is liked in task 0."""
    many = some(nb, generator, (2, 4, 200))[0]
    drafts = torch.stack([torch.stack([nb.distinct(task, 12) for task in one]) for one in many])
    fourfold = drafts.repeat(1, 1, 4, 1)
    style = torch.arange(4).repeat_interleave(12).expand(2, 4, -1)
    meanings = torch.arange(24).expand(2, -1) % 4
    good = nb.rationale_tokens(fourfold, meanings[:, None, None].expand(2, 4, 48, -1), style)
    at = good == nb.WORDS.index("answer")
    wrong = torch.where(at.roll(1, -1), (good - nb.WORDS.index("0") + 1) % 7 + nb.WORDS.index("0"), good)
    planted = (torch.arange(48) // 12 == torch.arange(48) % 12 % 5).expand(2, 4, -1)  # none where the draft is 4 or 9
    rationales = torch.where(planted[..., None], good, wrong)
    s = torch.rand(2, 4, 12, 4, generator=generator)
    s[:, 0, :, 2] += 1
    given = {"run": FakeRun(), "device": CPU, "n_worlds": 2, "n_drafts": 12, "meanings": meanings, "drafts": drafts}
    given |= {"fourfold": fourfold, "draft_rationales": rationales, "teacher": "teacher", "write": signed}
    given["POOLS"] = torch.arange(12).view(4, 3)
    return SimpleNamespace(given=given, s=s, drafts=drafts, style=style, planted=planted)


def test_arms_without_dpo_hold_what_the_table_says(nb, world):
    spare = some(nb, torch.Generator().manual_seed(9), (2, 4, 60))[0]
    given = world.given | {"new_questions": lambda w, n, stream: (spare, None), "TABLE": TABLE}
    lifted = lift(MAIN, ["fixed_arms", "are_right"], given)
    arms, s, d = lifted.fixed_arms(world.s), world.s, torch.arange(12)
    rows = given["draft_rationales"].unflatten(2, (4, 12))  # (worlds, tasks, styles, drafts, t)

    def styles_of(name: str) -> torch.Tensor:
        same = (rows == arms[name].rationales[:, :, None]).all(-1)
        assert same.any(2).all(), "a rationale of another draft"
        return same.int().argmax(2)

    kept = ("random", "random worked", "correct", "original", "one style")
    assert all(torch.equal(arms[name].questions, world.drafts) for name in kept)
    assert torch.equal(styles_of("original"), s.argmax(-1)) and (styles_of("original")[:, 0] == 2).all()
    assert torch.equal(styles_of("one style"), s.mean(2).argmax(-1)[..., None].expand(2, 4, 12))
    assert styles_of("random worked").max() == 1 and len(set(styles_of("random").flatten().tolist())) == 4
    hit = lifted.are_right(arms["correct"].questions, arms["correct"].rationales)
    assert torch.equal(hit, (d % 5 < 4).expand(2, 4, -1))
    best = s.mean(-1).topk(3).indices
    for r, t in itertools.product(range(2), range(4)):
        top = sorted(map(tuple, world.drafts[r, t][best[r, t]].tolist() * 4))
        assert sorted(map(tuple, arms["filter"].questions[r, t].tolist())) == top
        flat = s[r, t].T.flatten().topk(12).indices
        wanted = sorted(map(tuple, given["draft_rationales"][r, t][flat].tolist()))
        assert sorted(map(tuple, arms["best examples"].rationales[r, t].tolist())) == wanted
    assert (arms["fresh, few"].rationales == WRITERS["teacher"]).all()
    assert (arms["perfect"].questions[..., 1:] >= 0).sum(-1).eq(3).all()
    assert lifted.are_right(arms["perfect"].questions, arms["perfect"].rationales).all()


def test_arms_of_a_strength_have_their_writers(nb, world):
    asked = some(nb, torch.Generator().manual_seed(3), (8, 4, 12))[0]  # four sources, two worlds
    spare = some(nb, torch.Generator().manual_seed(4), (2, 4, 36))[0]
    new = lambda w, n, stream: (asked, torch.ones(8)) if w == "aligned" else (spare, None)  # noqa: E731
    given = world.given | {"new_questions": new, "select": lambda w, rows: "own", "well_formed": {}}
    given["SOURCES"] = dict.fromkeys(("ARTE", "placebo", "swapped", "other's"))
    arms = lift(MAIN, ["strength_arms"], given).strength_arms("aligned", "first")
    for k, name in enumerate(given["SOURCES"]):
        assert torch.equal(arms[name].questions, asked[2 * k : 2 * k + 2])
        assert (arms[name].rationales == WRITERS["aligned"]).all()
    assert (arms["fresh"].rationales == WRITERS["teacher"]).all()
    assert (arms["questions only"].rationales == WRITERS["teacher"]).all()
    assert torch.equal(arms["questions only"].questions, asked[:2])
    assert torch.equal(arms["rationales only"].questions, world.drafts)
    assert (arms["rationales only"].rationales == WRITERS["own"]).all()
    assert given["well_formed"] == {"first": [1.0] * 4}


def test_influence_is_that_of_the_groups_own_examples_on_its_own_task():
    """The tuned student is known by its first token; what it is asked, by the first number of the question."""
    tokens = torch.arange(12).view(2, 6, 1, 1).expand(2, 6, 3, 4)
    task = torch.tensor([0, 1, 2, 3, 0, 1]).expand(2, -1)
    tests = (10 * torch.arange(2)[:, None] + torch.arange(4))[..., None, None].expand(2, 4, 5, 5)
    seen = {}

    def tune(w, tokens, told, rate, batches):
        seen["rows"], seen["recipe"] = tokens[:, 0, 0].tolist(), (rate, len(batches))
        return "tuned"

    def accuracy(w, questions, rules):
        seen.setdefault("asked", []).append(questions[:, 0, 0].tolist())
        return torch.full(questions.shape[:2], w == "tuned")

    given = {"n_worlds": 2, "n_groups": 6, "student": "student", "meanings": torch.zeros(2, 24), "tests": tests}
    given |= {"group_tokens": tokens, "group_told": tokens > 0, "group_task": task, "device": CPU, "IN_GROUP": 3}
    given |= {"one_of": torch.arange(2)[:, None, None], "select": lambda w, rows: w, "tune": tune, "accuracy": accuracy}
    gain = lift(MAIN, ["influence"], given).influence(2e-3, 7)
    assert gain.shape == (2, 6, 5) and (gain == 1).all()
    assert seen["rows"] == list(range(12)) and seen["recipe"] == (2e-3, 7)
    assert seen["asked"][0] == [0, 1, 2, 3, 0, 1, 10, 11, 12, 13, 10, 11]


def test_a_killed_full_run_goes_on_after_its_last_training(tmp_path):
    class FullRun(FakeRun):
        path, parameters = tmp_path / "arte.json", {"preset": "full"}

    kept = lift(MAIN, ["kept"], {"run": FullRun(), "preset": "full", "device": CPU}).kept
    first = kept("students", lambda: {"embed": torch.arange(3.0)})
    again = kept("students", lambda: 1 / 0)
    assert torch.equal(first["embed"], again["embed"])
    with pytest.raises(ZeroDivisionError):
        kept("teachers", lambda: 1 / 0)
    reduced = lift(MAIN, ["kept"], {"run": FullRun(), "preset": "reduced", "device": CPU}).kept
    with pytest.raises(ZeroDivisionError):
        reduced("students", lambda: 1 / 0)


def test_the_gate_opens_only_where_fine_tuning_lifts_and_data_matter():
    def opened(vanilla: float, plain: float, best: float) -> bool:
        rows = {("vanilla", None): vanilla, ("random", None): plain, ("perfect", None): best}
        results = {"own": {key: np.array([value]) for key, value in rows.items()}}
        return lift(MAIN, ["opened"], {"results": results}).opened("own")

    assert opened(0.1, 0.3, 0.8)
    assert not opened(0.1, 0.15, 0.8) and not opened(0.1, 0.3, 0.3)


TINY = {"n_worlds": 2, "n_sets": 1, "n_drafts": 12, "n_test": 50, "student_steps": 20, "teacher_steps": 20}
TINY |= {
    "wide_steps": 20,
    "n_groups": 12,
    "tune_epochs": 1,
    "tune_runs": 2,
    "betas": [0.5],
    "dpo_rates": [1e-4],
    "dpo_epochs": [1],
}
TINY |= {"group_rates": [2e-3], "group_steps": [2]}


@pytest.mark.slow
def test_the_preset_gpu_scaled_down(execute):
    """The whole page with the parameters of `gpu` at the smallest sizes, the student of twice the width with it."""
    done = execute(FOLDER.resolve(), "--calibrate", preset="gpu", parameters=TINY)
    assert done.code == 0, done.err[-2000:]
    record = json.loads(done.record.read_text())
    judged = {name for name, claim in record["claims"].items() if claim["verdict"] != "not testable here"}
    assert {"C1", "C1b", "C1c", "C1f", "C2", "C3", "C3b", "C4b", "C6", "C7", "C7b", "C7c", "C7d"} <= judged
    assert record["claims"]["C1b"]["verdict"] == "inconclusive"  # untrained students learn nothing: the gate is closed
    assert all(math.isfinite(metric["value"]) for metric in record["metrics"].values())


def started(out: Path) -> subprocess.Popen:
    """A run of the smallest `full` of the main page."""
    settings = TINY | {"n_worlds": 2}
    command = [sys.executable, "-m", "helpers.engine.cli", "run", str(MAIN), "--preset", "full", "--out", str(out)]
    command += [word for name, value in settings.items() for word in ("-p", f"{name}={value}")]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("REPRODUCTIONS_")}
    return subprocess.Popen(command, env=clean, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_a_killed_page_goes_on_and_ends_with_the_same_record(tmp_path):
    """A kernel that is killed after three trainings: the second start makes none of them again."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    first = started(whole)
    out, _ = first.communicate()
    assert first.returncode == 0, out
    second, deadline = started(killed), time.monotonic() + 300
    while len(found := sorted(killed.rglob("*.entry"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    kernel = next(p for p in psutil.Process(second.pid).children(True) if "ipykernel" in " ".join(p.cmdline()))
    kernel.kill()
    second.communicate()
    assert second.returncode == 1 and len(found) >= 3 and not list(killed.rglob("arte.json"))
    third, made = started(killed), [path.stat().st_mtime for path in found]
    while third.poll() is None and (left := [path for path in found if path.is_file()]):
        assert [path.stat().st_mtime for path in left] == made, "a training was made again"
        time.sleep(0.2)
    out, _ = third.communicate()
    assert third.returncode == 0 and not list(killed.rglob("*.entry")), out
    records = [json.loads(next(folder.rglob("arte.json")).read_text()) for folder in (whole, killed)]
    assert records[0]["metrics"] == records[1]["metrics"] and records[0]["claims"] == records[1]["claims"]


@pytest.mark.sabotage
def test_exchanged_sides_of_the_pairs_are_noticed():
    """DPO that takes the rejected text for the chosen one."""
    broken = {"sides = list(zip(tokens, told, strict=True))": "sides = list(zip(tokens, told, strict=True))[::-1]"}
    error = sabotage("arte", broken)
    assert error.startswith("RegressionError") and "DPO moves the liked vocabulary where it is chosen" in error


@pytest.mark.sabotage
def test_discriminations_without_abilities_are_noticed():
    """A 2PL whose respondents are all alike."""
    broken = {"log_a.exp()[:, None] * (ability": "log_a.exp()[:, None] * (0 * ability"}
    error = sabotage("arte", broken)
    assert error.startswith("RegressionError") and "recovered discriminations" in error
