"""The distillation chapter: exact parity of losses, stacks and stores, survival of kills, a red gate when broken."""

import ast
import contextlib
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import torch.nn.functional as F
from lift import lift, sabotage
from tiny import save_tiny
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedTokenizerFast

from helpers import Estimate
from helpers.cache import Store
from helpers.claims import load_claims
from helpers.parameters import BadRequestError
from helpers.request import resolve
from helpers.stats import crossed_bootstrap

PAPER = "pretraining_distillation"
NOTEBOOK = f"notebooks/{PAPER}/{PAPER}.ipynb"
STUDY = f"notebooks/{PAPER}/real_teacher.ipynb"
CPU = {"device": torch.device("cpu")}
ROOT = Path(__file__).resolve().parents[2]
TINY = {"student_tokens": 3200, "teacher_tokens": 10_000, "n_test": 20, "n_seeds": 2, "top_k": 20}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sorted_probs(tokens: int, vocab: int, k: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Dense probabilities and their k best ids and values, float64."""
    dense = torch.randn(tokens, vocab, generator=generator(seed), dtype=torch.float64).mul(2).softmax(-1)
    best, ids = dense.topk(k, -1)
    return dense, ids, best


@pytest.fixture(scope="module")
def losses() -> SimpleNamespace:
    return lift(NOTEBOOK, ["truncate", "temper", "sparse_nll", "sparse_kld", "sparse_mse", "MixedCrossEntropy"])


# ---- truncation, temperature, losses


@pytest.mark.parametrize(("p", "k"), [(0.5, 30), (0.95, 30), (0.95, 3), (1.0, 30), (0.05, 7)])
def test_truncation_is_top_p_then_top_k(losses, p, k):
    _, _, best = sorted_probs(40, 30, 30)
    got = losses.truncate(best, p, k)
    for row, out in zip(best.tolist(), got.tolist(), strict=True):
        n, mass = 0, 0.0
        while mass < p and n < len(row):  # the fewest entries that reach p
            mass, n = mass + row[n], n + 1
        n = min(n, k)
        assert out == row[:n] + [0.0] * (len(row) - n)


@pytest.mark.parametrize("tau", [0.3, 1.0, 4.0])
def test_temper_is_softmax_of_kept_logits(losses, tau):
    logits = torch.randn(9, 25, generator=generator(), dtype=torch.float64).mul(3).sort(-1, descending=True).values
    kept = losses.truncate(logits.softmax(-1), 0.9, 10)
    wanted = torch.softmax(logits.masked_fill(kept == 0, -torch.inf) / tau, -1)
    torch.testing.assert_close(losses.temper(kept, tau), wanted, atol=1e-12, rtol=0)


def reference_target(probs: list[float], tau: float) -> list[float]:
    """F of one row in float64, by its limits where they are limits; the plainest version."""
    kept = [i for i, value in enumerate(probs) if value > 0]
    if not kept:
        return [0.0] * len(probs)
    best = max(math.log(probs[i]) for i in kept)
    powers = {i: 1.0 if math.isinf(tau) else math.exp(max((math.log(probs[i]) - best) / tau, -1e4)) for i in kept}
    return [powers.get(i, 0.0) / sum(powers.values()) for i in range(len(probs))]


EDGES = {
    "flat and small": [0.01] * 50,
    "nearly equal": [0.01, 0.0099, 0.0098] + [0.0] * 3,
    "one entry": [0.3, 0.0, 0.0],
    "one certain entry": [1.0, 0.0, 0.0],
    "smallest numbers": [6e-8, 1e-30, 1e-38],
    "none": [0.0, 0.0],
}


@pytest.mark.parametrize("tau", [1e-30, 0.01, 0.05, 0.5, 1.0, 5.0, 100.0, math.inf])
@pytest.mark.parametrize("row", EDGES)
def test_temper_is_finite_and_right_at_every_temperature(losses, row, tau):
    """In float32, by powers: tau = 0.05 underflowed to NaN, tau = inf revived what was dropped."""
    got = losses.temper(torch.tensor([EDGES[row]], dtype=torch.float32), tau)[0]
    kept32 = torch.tensor(EDGES[row], dtype=torch.float32).tolist()
    wanted = torch.tensor(reference_target(kept32, tau))
    assert got.isfinite().all() and (got[torch.tensor(kept32) == 0] == 0).all()
    assert torch.allclose(got, wanted, atol=2e-5 / min(tau, 1) if tau > 1e-3 else 1e-6)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
def test_temper_refuses_what_is_no_temperature(losses, bad):
    with pytest.raises(ValueError, match="must be positive"):
        losses.temper(torch.tensor([0.5, 0.5]), bad)
    with pytest.raises(ValueError, match="must be positive"):
        losses.temper(torch.tensor([[0.5, 0.5]] * 2), torch.tensor([[1.0], [bad]]))


@pytest.mark.parametrize("vocab", [30, 20_000])
def test_a_mass_of_one_drops_nothing(losses, vocab):
    """The running sum passes one by rounding long before a long tail ends."""
    probs = torch.randn(4, vocab, generator=generator()).mul(2).softmax(-1).sort(-1, descending=True).values
    assert torch.equal(losses.truncate(probs, 1.0, vocab), probs)
    kept = lift(STUDY, ["kept_entries"]).kept_entries(probs.log(), 1.0, vocab)[1]
    assert (kept > 0).all()


@pytest.mark.parametrize("bad", [(0.0, 5), (1.5, 5), (0.9, 0)])
def test_truncation_refuses_what_keeps_nothing(losses, bad):
    with pytest.raises(ValueError, match="top_p must lie"):
        losses.truncate(torch.tensor([0.6, 0.4]), *bad)


def test_sparse_losses_equal_dense_ones(losses):
    _, ids, best = sorted_probs(12, 80, 20)
    target = losses.temper(losses.truncate(best, 0.9, 20), 2.0)
    dense = torch.zeros(12, 80, dtype=torch.float64).scatter(-1, ids, target)
    z = torch.randn(12, 80, generator=generator(1), dtype=torch.float64).requires_grad_()
    pairs = [
        (losses.sparse_nll(z, ids, target), F.cross_entropy(z, dense, reduction="none")),
        (losses.sparse_kld(z, ids, target), F.kl_div(z.log_softmax(-1), dense, reduction="none").sum(-1)),
        (losses.sparse_mse(z, ids, target, "probs"), (z.softmax(-1) - dense).square().sum(-1)),
    ]
    for sparse, full in pairs:
        torch.testing.assert_close(sparse, full, atol=1e-6, rtol=0)
        gradients = [torch.autograd.grad(loss.sum(), z)[0] for loss in (sparse, full)]
        torch.testing.assert_close(*gradients, atol=1e-6, rtol=0)


def test_nll_and_kld_have_one_gradient_and_top_1_is_pseudo_labelling(losses):
    dense, ids, best = sorted_probs(12, 80, 20)
    z = torch.randn(12, 80, generator=generator(1), dtype=torch.float64).requires_grad_()
    target = losses.temper(best)
    one, other = (torch.autograd.grad(f(z, ids, target).sum(), z)[0] for f in (losses.sparse_nll, losses.sparse_kld))
    torch.testing.assert_close(one, other, atol=1e-12, rtol=0)
    hard = losses.temper(losses.truncate(best, 0.95, 1))
    pseudo = F.cross_entropy(z, dense.argmax(-1), reduction="none")
    torch.testing.assert_close(losses.sparse_nll(z, ids, hard), pseudo, atol=1e-12, rtol=0)


def test_mse_on_logits_ignores_a_constant_and_refuses_other_operands(losses):
    _, ids, best = sorted_probs(5, 30, 6)
    target = losses.temper(best)
    z = torch.zeros(5, 30, dtype=torch.float64).scatter(-1, ids, target.log() + 7.0)
    assert losses.sparse_mse(z, ids, target, "logits").abs().max() < 1e-12
    with pytest.raises(ValueError, match="operands"):
        losses.sparse_mse(z, ids, target, "ranks")


@pytest.mark.parametrize("uniform", [0.0, 0.2])
def test_one_pass_loss_equals_autograd(losses, uniform):
    _, ids, best = sorted_probs(7, 40, 8)
    z = torch.randn(2, 7, 40, generator=generator(2), dtype=torch.float64).requires_grad_()
    ids = torch.stack([torch.cat([ids[:, :1], ids], -1)] * 2)  # the label repeats the first kept id
    weights = torch.stack(
        [torch.cat([torch.full((7, 1), a, dtype=torch.float64), (1 - a) * best], -1) for a in (0.3, 1)]
    )
    mass = torch.tensor([uniform, uniform], dtype=torch.float64)
    logp = z.log_softmax(-1)
    plain = -(weights * logp.gather(-1, ids)).sum(-1).mean(-1) - mass * logp.mean(-1).mean(-1)
    fused = losses.MixedCrossEntropy.apply(z, ids, weights, mass)
    torch.testing.assert_close(fused, plain, atol=1e-9, rtol=0)
    scale = torch.tensor([1.0, 0.5], dtype=torch.float64)
    gradients = [torch.autograd.grad((loss * scale).sum(), z)[0] for loss in (plain, fused)]
    torch.testing.assert_close(*gradients, atol=1e-9, rtol=0)


# ---- schedules and temperatures per token


def test_schedules_have_their_shapes():
    chapter = lift(NOTEBOOK, ["lr_at", "alpha_at"])
    assert chapter.lr_at(0.1, "cosine") == chapter.lr_at(0.1, "wsd") == chapter.lr_at(0.89, "wsd") == 1.0
    assert chapter.lr_at(0.999, "cosine") < 0.11 and chapter.lr_at(0.999, "wsd") < 0.11
    assert chapter.lr_at(0.5, "cosine") < chapter.lr_at(0.5, "wsd")
    grid = np.linspace(0, 0.9999, 500)
    mean = {k: np.mean([chapter.alpha_at(s, k, 1.0) for s in grid]) for k in ("increase", "decrease", "period")}
    assert mean == pytest.approx({"increase": 0.5, "decrease": 0.5, "period": 0.5}, abs=0.01)
    beta = [chapter.alpha_at(s, "wsd", 0.9) + chapter.alpha_at(s, "wsd_beta", 0.9) for s in grid]
    assert beta == pytest.approx([1.0] * 500)
    with pytest.raises(KeyError):
        chapter.lr_at(0.5, "linear")
    with pytest.raises(KeyError):
        chapter.alpha_at(0.5, "zigzag", 1.0)


def test_adaptive_temperatures_are_finite_and_bounded():
    chapter = lift(NOTEBOOK, ["adaptive_temperature", "truncate"])
    _, _, best = sorted_probs(50, 30, 20)
    best[0] = F.one_hot(torch.tensor(0), 20)  # a token with one kept entry
    for kind in ("normkd", "ada_sd", "ada_h"):
        tau = chapter.adaptive_temperature(chapter.truncate(best, 0.9, 20), kind)
        assert tau.shape == (50, 1) and tau.isfinite().all() and tau.min() >= 0.25 and tau.max() <= 4
    with pytest.raises(KeyError):
        chapter.adaptive_temperature(best, "other")


def test_adaptive_temperatures_are_finite_where_every_token_keeps_one_entry():
    """So it is with top_p = 0.05: the entropy of every token is zero, and so is their mean."""
    chapter = lift(NOTEBOOK, ["Design", "kd_target"])
    for kind in ("normkd", "ada_sd", "ada_h", "wttm"):
        target, weight = chapter.kd_target(chapter.Design("x", adaptive=kind, top_k=1), sorted_probs(9, 30, 20)[2])
        assert (
            target.isfinite().all()
            and weight.isfinite().all()
            and torch.equal(target.sum(-1), torch.ones_like(target[:, 0]))
        )


@pytest.mark.parametrize("kind", ["normkd", "ada_sd", "ada_h"])
def test_adaptive_temperatures_equal_plain_loops_on_edge_cases(kind):
    """One kept entry everywhere, none in a row, all alike, and all of these together."""
    adaptive = lift(NOTEBOOK, ["adaptive_temperature"]).adaptive_temperature
    one, none, alike, usual = [0.4, 0, 0], [0.0, 0, 0], [0.2, 0.2, 0.2], [0.7, 0.2, 0.01]
    for rows in ([one] * 3, [none, one], [alike] * 2, [one, none, alike, usual, usual]):
        measures = []
        for row in rows:
            logs = [math.log(p) for p in row if p > 0]
            mean = sum(logs) / max(len(logs), 1)
            spread = math.sqrt(sum((x - mean) ** 2 for x in logs) / max(len(logs), 1))
            shares = [p / sum(row) for p in row if p > 0]
            measures.append(-sum(p * math.log(p) for p in shares) if kind == "ada_h" else spread)
        scale = 1.0 if kind == "normkd" else max(sum(measures) / len(measures), 1e-6)
        low, high = (0.25, 4.0) if kind == "normkd" else (0.5, 2.0)
        wanted = [[min(max(m / scale, low), high)] for m in measures]
        got = adaptive(torch.tensor(rows, dtype=torch.float64), kind)
        torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64), atol=1e-6, rtol=0)
        assert adaptive(torch.tensor(rows), kind).isfinite().all()


# ---- the measure


def test_four_choice_accuracy_equals_counting_all_draws_of_three():
    four_choice = lift(NOTEBOOK, ["four_choice"]).four_choice
    rng = np.random.default_rng(0)
    for _ in range(60):
        vocab = int(rng.integers(2, 6))
        z, share = rng.integers(0, 3, vocab).astype(float), rng.dirichlet(np.ones(vocab))  # many ties
        for gold in range(vocab):
            wanted = 0.0
            for trio in itertools.product(range(vocab), repeat=3):
                chance = math.prod(share[v] for v in trio)
                best = all(z[v] <= z[gold] for v in trio)
                wanted += chance * best / (1 + sum(z[v] == z[gold] for v in trio))
            got = four_choice(torch.tensor(z)[None], torch.tensor([gold]), torch.tensor(share))
            assert float(got) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("knows", ["frequencies", "which tokens occur", "nothing", "something wrong"])
def test_who_does_not_look_at_the_context_chooses_at_chance(knows):
    """Exactly, on the text that the distractors come from; without a way to gain by knowing frequencies."""
    four_choice = lift(NOTEBOOK, ["four_choice"]).four_choice
    zipf = 1 / torch.arange(1.0, 400, dtype=torch.float64)
    gold = torch.multinomial(zipf, 2_000, replacement=True, generator=generator())
    share = torch.bincount(gold, minlength=399) / gold.numel()
    known = {"frequencies": share, "which tokens occur": (share > 0).double(), "nothing": torch.zeros(399)}
    logits = known.get(knows, -share).expand(len(gold), -1)
    assert float(four_choice(logits, gold, share.double()).mean()) == pytest.approx(0.25, abs=1e-7)


def test_both_notebooks_measure_and_temper_alike():
    main, study = lift(NOTEBOOK, ["four_choice", "temper", "truncate"]), lift(STUDY, ["four_choice", "target_of"])
    logits, share = torch.randn(40, 30, generator=generator()), torch.rand(30, generator=generator(1))
    gold, share = torch.randint(30, (40,), generator=generator(2)), share / share.sum()
    assert torch.equal(main.four_choice(logits, gold, share), study.four_choice(logits, gold, share))
    probs = logits.softmax(-1).sort(-1, descending=True).values
    for p, k, tau in itertools.product((0.3, 0.95, 1.0), (1, 5, 30), (0.05, 1.0, 7.0, math.inf)):
        target = main.temper(main.truncate(probs, p, k), tau)[:, :k]
        torch.testing.assert_close(study.target_of(probs, p, k, tau), target, atol=1e-6, rtol=0)


CLAIMS = load_claims((ROOT / NOTEBOOK).with_name("claims.yaml"))
KD_GAINS = {"choice": 8.0, "top1": 2.0, "nll": 0.25}
Ends = tuple[float, float, float]


def gap(*ends: float) -> np.ndarray:
    """Differences (seeds, docs) that `interval` below reads as this value and interval."""
    return np.array([ends])


def interval(values: np.ndarray) -> Estimate:
    """Stands in for the bootstrap: a value with its ends, in order."""
    value, low, high = values[0]
    return Estimate(float(value), float(min(low, high)), float(max(low, high)), 9)


def judging(notebook: str, names: list[str], known: dict[str, Any], kd: dict[str, float] = KD_GAINS) -> SimpleNamespace:
    """The cells that judge, with KD's gains over LM given and free of error."""
    given = {"run": SimpleNamespace(claims=CLAIMS), "crossed_bootstrap": interval}
    given |= {"ahead": lambda better, worse="LM", measure="choice": gap(*3 * [kd[measure]])}
    return lift(notebook, names, given | known)


@pytest.mark.parametrize("notebook", [NOTEBOOK, STUDY])
def test_an_interval_that_ends_within_rounding_decides_nothing(notebook):
    in_unit = judging(notebook, ["in_unit"], {}).in_unit
    rounded = in_unit("C9", "choice", gap(0.3, 0.0049, 0.6041))
    assert (rounded.value, rounded.low, rounded.high, rounded.n) == (0.3, 0.0, 0.61, 9)
    assert in_unit("C9", "nll", gap(-0.3, -0.6, -0.0001)).high == 0.0
    assert in_unit("C9", "choice", gap(0.0, -1.1, 1.1)) == Estimate(0.0, -1.1, 1.1, 9)  # what is rounded stays


def noisy(rng: np.random.Generator, kd: float, other: float, spread: float = 3.0) -> dict[str, np.ndarray]:
    """Scores (seeds, docs) of LM, KD and one more design: seeds, documents and cells differ by chance."""
    means = {"LM": 0.0, "KD": kd, "other": other}
    return {
        name: mean + 0.15 * rng.normal(size=(5, 1)) + spread * rng.normal(size=(1, 100)) + rng.normal(size=(5, 100))
        for name, mean in means.items()
    }


def shares(notebook: str, scores: dict[str, np.ndarray]) -> Estimate:
    known = {"ahead": lambda better, worse="LM", measure="choice": scores[better] - scores[worse]}
    in_unit = judging(notebook, ["in_unit"], known | {"crossed_bootstrap": crossed_bootstrap}).in_unit
    return in_unit("C2", "choice", scores["KD"] - scores["other"])


@pytest.mark.parametrize("notebook", [NOTEBOOK, STUDY])
def test_an_equivalence_is_counted_in_shares_of_the_gain_of_distillation(notebook):
    scores = noisy(np.random.default_rng(0), 8.0, 6.0)
    got = shares(notebook, scores)
    wanted = (scores["KD"] - scores["other"]).mean() / (scores["KD"] - scores["LM"]).mean()
    assert got.value == pytest.approx(wanted) and got.low < wanted < got.high
    scores["other"] = scores["LM"]
    assert (shares(notebook, scores).low, shares(notebook, scores).high) == (1.0, 1.0)  # one gain, whatever it is


def test_the_margin_is_random_and_its_error_counts():
    """The interval is that of the ratio: wider than the difference's own where KD's noise adds to it."""
    rng, edge, wider = np.random.default_rng(1), 0, []
    for _ in range(40):
        scores = noisy(rng, 8.0, 8.0 + 0.33 * 8.0)
        got, alone = shares(NOTEBOOK, scores), crossed_bootstrap(scores["KD"] - scores["other"])
        edge += CLAIMS["C2"].verdict(got) != "inconclusive"
        wider.append((got.high - got.low) * 8.0 / (alone.high - alone.low))
    assert edge <= 5 and np.mean(wider) > 1.05  # .05 of 40 are two; more than five happen once in 70


@pytest.mark.parametrize("notebook", [NOTEBOOK, STUDY])
@pytest.mark.parametrize("kd", [0.0, -4.0])
def test_without_a_gain_of_distillation_there_is_no_scale(notebook, kd):
    got = shares(notebook, noisy(np.random.default_rng(2), kd, kd - 3.0))
    assert CLAIMS["C2"].verdict(got) == "inconclusive" and got.low <= -99 and got.high >= 99
    undefined = judging(notebook, ["in_unit"], {}, dict.fromkeys(KD_GAINS, 0.0)).in_unit("C2", "choice", gap(1, 1, 1))
    assert CLAIMS["C2"].verdict(undefined) == "inconclusive"  # a gain of exactly nothing


OF_ALL = [  # parts (value, low, high) as the rule has them, direction, which one decides, verdict
    ([(3, 2.5, 3.5), (2, -0.4, 4.4), (1, 0.6, 1.4)], "greater", 1, "inconclusive"),  # not the smallest point
    ([(3, 2.5, 3.5), (2, 0.4, 4.4), (1, 0.6, 1.4)], "greater", 1, "reproduced"),
    ([(3, 2.5, 3.5), (-0.2, -0.3, -0.1), (0, -9, 9)], "greater", 1, "contradicted"),  # one is enough
    ([(0.5, 0.33, 1.2), (0.45, 0.38, 0.5)], "equivalent", 1, "contradicted"),  # the first ends within rounding
    ([(0.45, 0.38, 0.5), (0.1, -0.8, 0.7)], "equivalent", 0, "contradicted"),  # though the other reaches further
    ([(-0.45, -0.5, -0.38), (0.1, -0.8, 0.7)], "equivalent", 0, "contradicted"),
    ([(0.02, 0.01, 0.03), (-0.03, -0.31, 0.03)], "equivalent", 1, "reproduced"),
    ([(0.02, 0.01, 0.03), (0.03, -0.1, 0.34)], "equivalent", 1, "inconclusive"),
]


@pytest.mark.parametrize("notebook", [NOTEBOOK, STUDY])
@pytest.mark.parametrize(("parts", "direction", "which", "verdict"), OF_ALL)
def test_the_comparison_that_decides_is_judged(notebook, parts, direction, which, verdict):
    """A claim about all parts: contradicted where one is, reproduced where all are."""
    name = {"greater": "C9", "equivalent": "C2"}[direction]
    parts, rule = [Estimate(part[0], part[1], part[2], 9) for part in parts], CLAIMS[name].verdict
    assert judging(notebook, ["decides"], {}).decides(name, parts) == which and rule(parts[which]) == verdict
    each = {rule(part) for part in parts}
    assert verdict == next((v for v in ("contradicted", "inconclusive") if v in each), "reproduced")


def judge(notebook: str, name: str, parts: list[tuple[Ends, Ends]]) -> tuple[dict[str, str], dict[str, Estimate]]:
    """Judge comparisons given as (by four choices, by top-1); NLL decides nothing. Returns the row and the metrics."""
    judged, metrics = {}, {}
    run = SimpleNamespace(claims=CLAIMS, claim=lambda name, e: CLAIMS[name].verdict(e))
    run.metric = lambda name, e, **_: metrics.update({name: e})
    units = {"choice": "points", "top1": "points", "nll": "nats/token"}
    known = {"run": run, "judged": judged, "UNITS": units, "BEFORE": {}}

    def in_unit(name: str, measure: str, values: np.ndarray) -> Estimate:  # KD's gain is exact here
        unit = KD_GAINS[measure] if CLAIMS[name].direction == "equivalent" else 1.0
        return interval(values / unit)

    made = [lambda m, two=two: gap(*{"choice": two[0], "top1": two[1], "nll": (0, -9, 9)}[m]) for two in parts]
    judging(notebook, ["judge", "ACCURACIES"], known | {"in_unit": in_unit}).judge(name, made)
    return judged[name], metrics


BOTH = [  # name, by four choices, by top-1, verdict
    ("C1", (7, 6, 8), (2, 1, 3), "reproduced"),
    ("C1", (7, 6, 8), (2, -1, 5), "inconclusive"),
    ("C1", (7, 6, 8), (-2, -3, -1), "inconclusive"),  # the two say the opposite
    ("C1", (-7, -8, -6), (-2, -3, -1), "contradicted"),
    ("C2", (0.1, -1, 1), (0.0, -0.5, 0.5), "reproduced"),
    ("C2", (10, 9, 11), (0.0, -0.5, 0.5), "inconclusive"),
    ("C2", (10, 9, 11), (3.0, 2.5, 3.5), "contradicted"),
    ("C2", (0.1, -1, 1), (0.0, -0.7, 0.7), "inconclusive"),
]


@pytest.mark.parametrize("notebook", [NOTEBOOK, STUDY])
@pytest.mark.parametrize(("name", "choice", "top1", "verdict"), BOTH)
def test_a_verdict_needs_both_accuracies(notebook, name, choice, top1, verdict):
    name = name if notebook == NOTEBOOK else {"C1": "C1b", "C2": "C2r"}[name]
    row, metrics = judge(notebook, name, [(choice, top1)])
    assert row["verdict"] == verdict and metrics[f"{name}_by_top1"] == Estimate(top1[0], top1[1], top1[2], 9)
    alone = {row[m].split(", ")[-1] for m in ("choice", "top1")}
    assert verdict == (alone.pop() if len(alone) == 1 else "inconclusive")


@pytest.mark.parametrize("notebook", [NOTEBOOK, STUDY])
def test_contradictions_of_an_equivalence_on_opposite_sides_cancel(notebook):
    """A mixture of head and tail, as a benchmark asks for, may then see no difference: the span holds the margin."""
    row, _ = judge(notebook, "C2" if notebook == NOTEBOOK else "C2r", [((10, 9, 11), (-3.0, -3.5, -2.5))])
    assert row["verdict"] == "inconclusive"
    assert all(row[m].endswith("contradicted") for m in ("choice", "top1"))


@pytest.mark.parametrize("notebook", [NOTEBOOK, STUDY])
def test_two_comparisons_cannot_contradict_together_what_neither_does(notebook):
    """Each accuracy once chose its own member: k = 1 by four choices and k = 5 by top-1 made "contradicted"."""
    same, other = (0.0, -0.4, 0.4), (3.0, 2.5, 3.5)
    parts = [((10, 9, 11), same), ((0.1, -1, 1), other)]
    row, _ = judge(notebook, "C2" if notebook == NOTEBOOK else "C2r", parts)
    assert row["verdict"] == "inconclusive"
    row, _ = judge(notebook, "C2" if notebook == NOTEBOOK else "C2r", [*parts, ((10, 9, 11), other)])
    assert row["verdict"] == "contradicted"


@pytest.mark.parametrize("notebook", [NOTEBOOK, STUDY])
def test_an_undefined_prediction_is_no_wrong_answer(notebook):
    """Comparisons with NaN are false, so a student that diverged once had 0 points."""
    four_choice = lift(notebook, ["four_choice"]).four_choice
    logits = torch.tensor([[math.nan] * 4, [1.0, 2, 3, 4]])
    got = four_choice(logits, torch.tensor([2, 3]), torch.full((4,), 0.25))
    assert got[0].isnan() and got[1] > 0.5


def test_the_tokens_that_begin_a_document_are_no_questions():
    """A student that knows the template alone, here the first four tokens, is at chance."""
    parts = lift(NOTEBOOK, ["evaluate", "LEAD"], CPU)
    gold = torch.randint(9, (40, 13), generator=generator())
    gold[:, : 1 + parts.LEAD] = torch.arange(1 + parts.LEAD)
    asked = gold[:, 1 + parts.LEAD :].flatten()
    share = torch.bincount(asked, minlength=9) / len(asked)
    logits = torch.zeros(1, 40, 12, 9)
    logits[0, :, : parts.LEAD] = 9.0 * F.one_hot(gold[:, 1 : 1 + parts.LEAD], 9)
    parts.evaluate.__wrapped__.__globals__["stack_logits"] = lambda weights, tokens: logits.flatten(1, 2)
    weights = {"embed": torch.zeros(1, 9, 16)}
    scores = parts.evaluate(weights, gold, share)
    assert torch.allclose(scores["choice"], torch.tensor(25.0), atol=1e-4) and scores["nll"].max() < 2


def test_storage_arithmetic():
    storage_bytes = lift(STUDY, ["storage_bytes"]).storage_bytes
    assert storage_bytes(1e11, 150_000, 0, 4) == 6e16
    assert storage_bytes(1e11, 18.75, 4, 4) == 15e12
    with pytest.raises(ValueError, match="positive"):
        storage_bytes(0, 1, 2, 2)


# ---- the stack against an ordinary model


class Reference(nn.Module):
    """One student as an ordinary module, written independently of the chapter."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        w, seq = self.weights, tokens.shape[1]
        x = w["embed"][tokens] + w["position"][:seq]
        d = x.shape[-1]
        mask = torch.ones(seq, seq).triu(1).bool()
        for layer in range(2):
            h = x / (x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt()
            q, k, v = (h @ w[f"qkv{layer}"]).split(d, -1)
            heads = []
            for i in range(0, d, 16):
                s = q[..., i : i + 16] @ k[..., i : i + 16].transpose(1, 2) / 4.0
                heads.append(s.masked_fill(mask, -torch.inf).softmax(-1) @ v[..., i : i + 16])
            x = x + torch.cat(heads, -1) @ w[f"out{layer}"]
            h = x / (x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt()
            x = x + (h @ w[f"up{layer}"]).relu() ** 2 @ w[f"down{layer}"]
        x = x / (x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt()
        return x @ w["embed"].T


def test_a_stack_gives_each_student_what_it_gets_alone():
    chapter = lift(NOTEBOOK, ["new_stack", "stack_logits"], CPU)
    stack = chapter.new_stack([3, 4, 3], 32, 2, 50, 12)
    assert all(torch.equal(w[0], w[2]) for w in stack.values()), "weights depend on the seed only"
    stack = {k: v + 0.1 * torch.randn(v.shape, generator=generator(5)) for k, v in stack.items()}
    tokens = torch.randint(50, (3, 4, 12), generator=generator(6))
    got = chapter.stack_logits(stack, tokens).view(3, 4, 12, 50)
    for i in range(3):
        alone = Reference({k: v[i] for k, v in stack.items()})(tokens[i])
        torch.testing.assert_close(got[i], alone, atol=2e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="multiple of 16"):
        chapter.new_stack([0], 20, 1, 50, 12)


def test_stacked_adamw_equals_torch():
    adamw_step = lift(NOTEBOOK, ["adamw_step"]).adamw_step
    start = torch.randn(2, 5, 3, generator=generator())
    weight, moments = start.clone(), [torch.zeros(2, 5, 3) for _ in range(2)]
    peers = [nn.Parameter(start[i].clone()) for i in range(2)]
    rates = (0.01, 0.03)
    optimisers = [
        torch.optim.AdamW([p], lr=r, betas=(0.9, 0.95), weight_decay=0.1) for p, r in zip(peers, rates, strict=True)
    ]
    for step in range(1, 6):
        grad = torch.randn(2, 5, 3, generator=generator(step))
        adamw_step([weight], [grad.clone()], moments, torch.tensor(rates), step)
        for peer, optimiser, one in zip(peers, optimisers, grad, strict=True):
            peer.grad = one.clone()
            nn.utils.clip_grad_norm_([peer], 1.0)
            optimiser.step()
    torch.testing.assert_close(weight, torch.stack([p.data for p in peers]), atol=1e-5, rtol=1e-4)


# ---- the stores


def test_store_of_the_grid_joins_blocks_in_order():
    parts = lift(NOTEBOOK, ["top_probs", "as_store"], {"context": 5})
    logits = [torch.randn(10, 90, generator=generator(i)) * 3 for i in range(3)]  # two blocks each
    ids, probs = parts.as_store([parts.top_probs(z, 0.9, 20) for z in logits])
    assert ids.shape == probs.shape == (6, 5, 20) and ids.dtype == torch.int16
    wanted_ids, wanted = parts.top_probs(logits[2], 0.9, 20)
    torch.testing.assert_close(probs[4:].flatten(0, 1).float(), wanted, atol=5e-4, rtol=1e-3)
    assert torch.equal(ids[4:].flatten(0, 1).long(), wanted_ids)


@pytest.mark.parametrize("vocab", [90, 2**16, 2**17])
def test_ragged_store_returns_what_was_written(vocab):
    parts = lift(STUDY, ["kept_entries", "pack", "join", "unpack"])
    entries = [parts.kept_entries(torch.randn(2, 5, 90, generator=generator(i)) * 3, 0.9, 20) for i in range(3)]
    entries = [(ids + vocab - 90, probs) for ids, probs in entries]
    store = parts.join([parts.pack(*entry, vocab) for entry in entries])
    assert store["ids"].dtype == (np.uint16 if vocab <= 2**16 else np.int32)
    ids, probs = parts.unpack(store, np.array([5, 0]))
    for row, (part, block) in enumerate([(2, 1), (0, 0)]):
        n, (wanted_ids, wanted) = probs.shape[-1], (part_[block] for part_ in entries[part])
        torch.testing.assert_close(probs[row], wanted[:, :n], atol=5e-4, rtol=1e-3)
        assert torch.equal(ids[row][probs[row] > 0], wanted_ids[:, :n][probs[row] > 0])
    assert store["counts"].sum() == len(store["ids"]) == len(store["probs"]) == store["ends"][-1]


def test_a_teacher_without_numbers_is_an_error_not_a_store():
    """NaN is not above zero, so a token was stored with no entry, and a student learned nothing from it."""
    parts = lift(STUDY, ["kept_entries", "pack"])
    logits = torch.randn(2, 5, 90, generator=generator())
    logits[1, 3] = math.nan
    with pytest.raises(FloatingPointError, match="keeps no entry"):
        parts.pack(*parts.kept_entries(logits, 0.95, 20), 90)


def test_both_notebooks_cut_alike():
    top_probs, kept = lift(NOTEBOOK, ["top_probs"]).top_probs, lift(STUDY, ["kept_entries"]).kept_entries
    logits = torch.randn(50, 90, generator=generator()) * 3
    for p, k in ((0.05, 5), (0.5, 20), (0.95, 50), (1.0, 200)):
        assert all(torch.equal(a, b) for a, b in zip(top_probs(logits, p, k), kept(logits, p, k), strict=True))


def test_a_changed_parameter_or_function_changes_the_key():
    run = SimpleNamespace(parameters={"seed": 0, "resume": True})
    text = SimpleNamespace(x=torch.zeros(3), validation=torch.zeros(2), test=torch.zeros(2), share=torch.ones(3))
    inputs = lift(NOTEBOOK, ["inputs"], {"run": run, "text": text}).inputs
    key = inputs((generator, sorted_probs))
    assert inputs((generator, sorted_probs)) == key != inputs((generator,))
    run.parameters["resume"] = False
    assert inputs((generator, sorted_probs)) == key, "resume does not enter the key"
    text.test = torch.ones(2)
    assert inputs((generator, sorted_probs)) != key, "an edited tokenizer gives another text"
    text.test = torch.zeros(2)
    run.parameters["seed"] = 1
    assert inputs((generator, sorted_probs)) != key


@pytest.mark.parametrize(
    ("notebook", "roots", "named"),
    [
        (NOTEBOOK, ["train_teacher"], ["TEACHER_CODE"]),
        (NOTEBOOK, ["train_stack", "read_again", "keep_top", "draw_sampled"], ["TEACHER_CODE", "STUDENT_CODE"]),
        (STUDY, ["read_blocks", "texts_of", "stream_of"], ["READING"]),
        (STUDY, ["train_student", "read_blocks", "point"], ["READING", "CODE"]),
    ],
)
def test_the_key_of_kept_work_names_every_function_that_does_it(notebook, roots, named):
    """All functions that the work calls, directly or not, stand in the tuple that its key is made from."""
    functions, listed = {}, set()
    for cell in json.loads((ROOT / notebook).read_text())["cells"]:
        for node in ast.walk(ast.parse("".join(cell["source"]))) if cell["cell_type"] == "code" else []:
            if isinstance(node, ast.FunctionDef):
                functions[node.name] = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
            elif isinstance(node, ast.Assign | ast.AugAssign):
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                if isinstance(target, ast.Name) and target.id in named:
                    listed |= {n.id for n in ast.walk(node.value) if isinstance(n, ast.Name)}
    needed, queue = set(), list(roots)
    while queue:
        name = queue.pop()
        if name in functions and name not in needed:
            needed.add(name)
            queue += functions[name]
    assert needed - {"forward", "backward", "one", "absent"} <= listed


# ---- training survives a kill


@pytest.fixture
def trainer(tmp_path):
    """The chapter's training functions on a small random corpus with one store."""
    settings = {"context": 8, "batch_blocks": 2, "student_layers": 1, "lr_cosine": 0.01, "lr_wsd": 0.01}
    settings |= CPU | {"tqdm": lambda items, **_: items, "kept_students": Store(tmp_path / "kept", {})}
    tokens = torch.randint(40, (48, 9), generator=generator())
    share = torch.full((40,), 1 / 40)
    text = lift(NOTEBOOK, ["Corpus"]).Corpus(tokens[:, :-1], tokens[:, 1:], tokens[:5], tokens[5:15], 40, 48, share)
    parts = lift(NOTEBOOK, ["top_probs", "as_store"], settings)
    store = parts.as_store([parts.top_probs(torch.randn(384, 40, generator=generator(1)), 0.9, 10)])
    settings |= {"text": text, "stores": {"offline": store}}
    parts = lift(NOTEBOOK, ["Design", "train_stack", "run_designs"], settings)
    designs = [
        parts.Design("LM"),
        parts.Design("KD", alpha=0.9, tau=2.0),
        parts.Design("MSE", alpha=1.0, loss="mse_probs"),
    ]
    return SimpleNamespace(parts=parts, designs=designs)


def test_finished_students_are_not_trained_again(trainer):
    first = trainer.parts.run_designs(trainer.designs, [0, 1])

    def never(*args: object) -> None:
        raise AssertionError("trained again")

    trainer.parts.run_designs.__globals__["train_stack"] = never
    again = trainer.parts.run_designs(trainer.designs, [0, 1])
    assert all(np.array_equal(first[name]["nll"], again[name]["nll"]) for name in first)
    followed = {"curve nll", "curve choice", "validation nll"}
    assert followed <= first["LM"].keys() and not followed & first["MSE"].keys()
    assert first["LM"]["curve choice"].shape == first["LM"]["curve nll"].shape == (2, 3, 10)
    with pytest.raises(AssertionError, match="again"):
        trainer.parts.run_designs(trainer.designs, [2])
    with pytest.raises(ValueError, match="different names"):
        trainer.parts.run_designs([trainer.designs[0]] * 2, [0])


def test_designs_of_one_seed_are_paired(trainer):
    design = trainer.parts.Design
    scores = trainer.parts.run_designs([design("LM"), design("again", alpha=0.0)], [3, 4])
    assert np.array_equal(scores["LM"]["nll"], scores["again"]["nll"])
    assert not np.array_equal(scores["LM"]["nll"][0], scores["LM"]["nll"][1])


def test_a_trial_of_learning_rates_is_judged_on_validation_documents(trainer):
    trial = trainer.parts.Design("LM, rate x 2", lr=0.02)
    scores = trainer.parts.run_designs([trial], [0])["LM, rate x 2"]
    assert scores["validation nll"].shape == scores["validation top1"].shape == (1, 5) and "curve nll" not in scores


@pytest.mark.parametrize(
    ("change", "says"), [({"tau": 0.05}, "sharp"), ({"adaptive": "ada_h", "top_k": 1}, "one entry"), ({}, "plain")]
)
def test_students_of_extreme_temperatures_stay_finite(trainer, change, says):
    scores = trainer.parts.train_stack([trainer.parts.Design(says, alpha=1.0, **change)], [0], None)
    assert scores["nll"].isfinite().all() and scores["choice"].min() >= 0 and scores["choice"].max() <= 100


def test_a_student_that_diverges_is_named(trainer):
    designs = [trainer.parts.Design("fine"), trainer.parts.Design("hot", alpha=math.nan)]
    with pytest.raises(FloatingPointError, match="student 7 of hot diverged"):
        trainer.parts.train_stack(designs, [3, 7], None)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ([("top_k", "5")], "cut further than the store"),
        ([("top_p", "0.5")], "cut further than the store"),
        ([("top_k", "20"), ("kept_k", "[3, 21]")], "more than the store holds"),
        ([("kept_p", "[0.7, 1.0]")], "more than the store holds"),
    ],
)
def test_values_that_make_a_claim_true_by_construction_are_refused(change, says):
    """With top_k = 5, `k = 5` was vanilla distillation itself: equivalent, interval [0, 0]."""
    with pytest.raises(BadRequestError, match=says):
        resolve(ROOT / NOTEBOOK, "reduced", 0, change)


def test_a_student_of_a_stack_learns_what_it_learns_alone(trainer):
    together = trainer.parts.train_stack(trainer.designs, [0, 1, 0], None)["nll"]
    alone = trainer.parts.train_stack([trainer.designs[1]], [1], None)["nll"]
    torch.testing.assert_close(together[1:2], alone, atol=1e-4, rtol=1e-4)


def run_notebook(
    out: Path, notebook: str = NOTEBOOK, preset: str = "reduced", settings: dict = TINY
) -> subprocess.Popen:
    command = [sys.executable, "-m", "helpers.engine.cli", "run", str(ROOT / notebook), "--preset", preset]
    command += ["--out", str(out), *(w for name, value in settings.items() for w in ("-p", name, str(value)))]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("REPRODUCTIONS_")}
    return subprocess.Popen(command, cwd=ROOT, env=clean, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def bars(out: Path, cell: str) -> str:
    """What the progress bars of a cell wrote in the executed notebook below `out`."""
    cells = json.loads(next(out.rglob(f"{PAPER}.ipynb")).read_text())["cells"]
    outputs = next(c["outputs"] for c in cells if c["id"] == cell)
    return "".join("".join(o["text"]) for o in outputs if o.get("name") == "stderr")


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_record(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    first = run_notebook(whole)
    out, _ = first.communicate()
    assert first.returncode == 0, out
    assert "teacher of width 64" in bars(whole, "teacher-large")

    second = run_notebook(killed)
    deadline = time.monotonic() + 300
    while len(found := sorted(killed.rglob("*Design*.entry"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    kernels = [p for p in psutil.Process(second.pid).children(recursive=True) if "ipykernel" in " ".join(p.cmdline())]
    kernels[0].send_signal(signal.SIGKILL)
    second.communicate()
    assert second.returncode == 1 and len(found) >= 3 and not list(killed.rglob(f"{PAPER}.json"))

    started = time.time()
    third = run_notebook(killed)
    written = []  # while it runs: a complete run removes what it kept
    while third.poll() is None:
        for file in found:
            with contextlib.suppress(FileNotFoundError):
                written.append(file.stat().st_mtime)
        time.sleep(0.2)
    out, _ = third.communicate()
    assert third.returncode == 0, out
    assert not bars(killed, "teacher-large"), "the teachers were trained again"
    assert written and max(written) < started, "finished students were trained again"
    records = [json.loads(next(folder.rglob(f"{PAPER}.json")).read_text()) for folder in (whole, killed)]
    assert records[0]["metrics"] == records[1]["metrics"] and records[0]["claims"] == records[1]["claims"]


# ---- data, the real teacher


def test_documents_of_one_group_stay_together():
    chapter = lift(NOTEBOOK, ["split_documents"])
    documents = [(str(i // 3), f"text {i}") for i in range(60)]
    train, held_out = chapter.split_documents(documents, 5, np.random.default_rng(0))
    groups = {text: group for group, text in documents}
    assert len(held_out) == 5 == len({groups[t] for t in held_out})
    assert not {groups[t] for t in held_out} & {groups[t] for t in train} and len(train) == 45


def test_texts_by_name(tmp_path):
    texts_of = lift(STUDY, ["texts_of"], {"n_docs": 1, "block": 16}).texts_of
    (tmp_path / "own.jsonl").write_text("".join(f'{{"text": "{i}"}}\n' for i in range(9)))
    train, held_out = texts_of(str(tmp_path / "own.jsonl"), np.random.default_rng(0))
    assert len(held_out) == 4 and sorted(train + held_out) == list("012345678")
    with pytest.raises(ValueError, match="source"):
        texts_of("imaginary", np.random.default_rng(0))
    texts_of.__globals__["find_spec"] = lambda name: None
    with pytest.raises(ImportError, match="pyarrow"):  # before anything is downloaded
        texts_of("org/name@0123abc:file.parquet", np.random.default_rng(0))


def test_mixed_loss_equals_torch():
    parts = lift(STUDY, ["mixed_loss", "kept_entries"])
    logits, labels = torch.randn(30, 90, generator=generator(3)), torch.randint(90, (30,), generator=generator(4))
    ids, probs = parts.kept_entries(torch.randn(30, 90, generator=generator(5)) * 3, 0.9, 20)
    target = probs / probs.sum(-1, keepdim=True)
    soft = F.cross_entropy(logits, torch.zeros(30, 90).scatter(-1, ids, target))
    for alpha, smoothing in ((0.0, 0.0), (0.0, 0.1), (0.9, 0.0), (1.0, 0.0)):
        wanted = (1 - alpha) * F.cross_entropy(logits, labels, label_smoothing=smoothing) + alpha * soft
        got = parts.mixed_loss(logits, labels, ids, target, alpha, smoothing)
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)


def test_schedules_of_both_notebooks_agree():
    main, study = lift(NOTEBOOK, ["wsd", "lr_at"]), lift(STUDY, ["plateau", "lr_share"])
    for progress in np.linspace(0, 0.999, 300):
        assert study.plateau(progress) == pytest.approx(main.wsd(progress), abs=1e-9)
        for kind in ("cosine", "wsd"):
            assert study.lr_share(progress, kind == "wsd") == pytest.approx(main.lr_at(progress, kind), abs=1e-9)


STUDY_PARTS = ["train_student", "add_gradient", "loss_of", "new_student", "Design", "point", "scores_of"]
STUDY_PARTS += ["KD", "PAIR", "MORE", "DESIGNS"]  # made by calls


def study_trainer(folder: Path, vocab: int = 90, save_steps: int = 3, **settings: object) -> SimpleNamespace:
    """The functions that train a student of the study, on random text and random stored predictions."""
    tokens = torch.randint(vocab, (24, 9), generator=generator())
    store = lift(STUDY, ["kept_entries", "pack", "join"])
    logits = torch.randn(24, 8, min(vocab, 300), generator=generator(1)) * 3
    known = CPU | {"x": tokens[:, :-1], "y": tokens[:, 1:], "n_blocks": 24, "n_vocab": vocab, "block": 8}
    known |= {"predictions": store.join([store.pack(*store.kept_entries(logits, 0.95, 20), vocab)])}
    known |= {"docs": torch.randint(vocab, (6, 9), generator=generator(2)), "large": False, "peak_lr": 1e-2}
    known |= {"step_blocks": 2, "per_pass": 2, "save_steps": save_steps, "designs": [], "points": []}
    known |= {"share": torch.full((vocab,), 1 / vocab), "kept_states": Store(folder, {})}
    return lift(STUDY, STUDY_PARTS, known | settings)


def gradients(trainer: SimpleNamespace, design: object, rows: np.ndarray, vocab: int) -> list[torch.Tensor]:
    student = trainer.new_student(vocab, "64x1", 0).double()
    trainer.add_gradient(student, rows, design, 0.7)
    return [weight.grad for weight in student.parameters()]


def test_the_gradient_of_parts_is_that_of_the_whole_step(tmp_path):
    rows, trainer = np.array([3, 11, 7, 20, 1]), study_trainer(tmp_path)
    for change in ({}, {"tau": 2.0, "k": 4}, {"smoothing": 0.1, "shift": 5}):
        found = []
        for per_pass in (1, 2, 5):
            trainer.add_gradient.__globals__["per_pass"] = per_pass
            found.append(gradients(trainer, trainer.Design(alpha=0.7, **change), rows, 90))
        for other in found[1:]:  # the loss itself is taken in float32
            for one, two in zip(found[0], other, strict=True):
                torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-4)


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that an operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else (out,):
            if isinstance(one, torch.Tensor):
                self.numbers = max(self.numbers, one.numel())
        return out


def test_no_array_over_a_large_vocabulary_is_larger_than_one_part(tmp_path):
    """151,936 entries, as in Qwen: a whole step would hold 5 x 8 x 151,936 logits."""
    vocab, rows = 151_936, np.arange(5)
    trainer = study_trainer(tmp_path, vocab, per_pass=1)
    student = trainer.new_student(vocab, "8x1", 0)
    with Largest() as seen:
        trainer.add_gradient(student, rows, trainer.Design(alpha=1.0), 1.0)
        trainer.scores_of(student, trainer.train_student.__globals__["docs"])
    assert seen.numbers <= 8 * vocab


def test_a_student_goes_on_from_its_checkpoint_exactly(tmp_path):
    whole = study_trainer(tmp_path / "whole").train_student("64x1", 4, "KD")
    trainer = study_trainer(tmp_path / "cut")
    step, names = trainer.add_gradient, trainer.train_student.__globals__
    left = iter(range(8))  # of twelve steps: checkpoints after 3 and 6, then the end

    def until_killed(*args: object) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        step(*args)

    names["add_gradient"] = until_killed
    with pytest.raises(KeyboardInterrupt):
        trainer.train_student("64x1", 4, "KD")
    kept = list((tmp_path / "cut").rglob("*.entry"))
    newest = names["kept_states"].path(f"64x1 {trainer.DESIGNS['KD']} 4 at 6")
    assert kept == [newest], "only the newest checkpoint is kept"
    steps = []
    names["add_gradient"] = lambda *args: (steps.append(1), step(*args))
    again = trainer.train_student("64x1", 4, "KD")
    assert len(steps) == 6 and all(np.array_equal(whole[name], again[name]) for name in whole)
    assert not list((tmp_path / "cut").rglob("*.entry")), "a finished student leaves no checkpoint"


def test_an_edited_design_is_another_student(tmp_path):
    """Kept students went by the name of a design; with PAIR's .9 edited to .8, the old ones were read as new."""
    asked = []
    trainer = study_trainer(tmp_path)
    names = trainer.train_student.__globals__
    names["newest"] = lambda label, steps: (asked.append(label), (0, {}))[1]
    trainer.train_student("64x1", 4, "KD")
    names["DESIGNS"] = names["DESIGNS"] | {"KD": replace(names["DESIGNS"]["KD"], alpha=0.8)}
    trainer.train_student("64x1", 4, "KD")
    assert len(set(asked)) == 2


def test_a_damaged_checkpoint_is_not_used(tmp_path):
    trainer = study_trainer(tmp_path)
    names = trainer.train_student.__globals__
    kept = names["kept_states"]
    name = f"64x1 {trainer.DESIGNS['KD']} 4 at 6"
    kept.get(name, lambda: {"weight": torch.zeros(3)})
    path = kept.path(name)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    whole = study_trainer(tmp_path / "whole").train_student("64x1", 4, "KD")
    again = trainer.train_student("64x1", 4, "KD")
    assert all(np.array_equal(whole[name], again[name]) for name in whole)


def test_students_of_one_width_and_other_depth_stay_apart():
    """Scores and kept work go by the whole shape; by width alone 1024x12 and 1024x24 were one."""
    cells = json.loads((ROOT / STUDY).read_text())["cells"]
    source = next("".join(c["source"]) for c in cells if c["id"] == "students-use")
    asked = []

    def get(name: str, make: Callable) -> dict[str, torch.Tensor]:
        asked.append(name)
        number = float(len(asked))
        return {name: torch.full((3,), number) for name in ("choice", "top1", "nll")}

    stub = SimpleNamespace(get=get)
    known = {"Store": lambda *_: stub, "inputs": lambda *_: {}, "work": Path("."), "points": [], "n_students": 2}
    known |= {"run": SimpleNamespace(seed=0), "sizes": ["1024x12", "1024x24"], "DESIGNS": {"LM": 0, "KD": 1}}
    known |= {"CONTROLS": (), "READING": (), "tqdm": lambda items, **_: items, "partial": lambda *_: None, "np": np}
    known |= {name: name for name in re.findall(r"\b[a-z_]+\b", source.split("key =")[0])}
    known |= {"train_student": None, "Tensor": torch.Tensor}
    exec(source, known)
    assert len(set(asked)) == len(asked) == 8
    found = known["scores"]
    assert set(found) == {(shape, name) for shape in ("1024x12", "1024x24") for name in ("LM", "KD")}
    assert len({part["nll"].tobytes() for part in found.values()}) == 4


def test_a_point_of_the_grid_changes_one_thing_and_others_are_refused(tmp_path):
    trainer = study_trainer(tmp_path)
    plain = trainer.DESIGNS["KD"]
    for text in ("k=5", "tau=0.05", "p=0.5", "alpha=0.9"):
        name, value = text.split("=")
        changed = trainer.point(text)
        assert getattr(changed, name) == float(value) and replace(changed, **{name: getattr(plain, name)}) == plain
    for text in ("tau", "tau=0", "wsd=1", "k=0", "alpha=2", "", "p=nan", "tau=warm"):
        with pytest.raises(ValueError, match="points:"):
            trainer.point(text)


@pytest.mark.slow
def test_full_preset_runs_whole_on_tiny_saved_models(tmp_path):
    words = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay", "kite", "lark", "mole", "newt"]
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, 60)) for _ in range(400)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenizer = lift(NOTEBOOK, ["train_tokenizer"]).train_tokenizer(texts, 300)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>")
    save_tiny(tmp_path / "teacher", fast)
    settings = {"source": tmp_path / "own.jsonl", "teacher": tmp_path / "teacher", "sizes": '["64x1", "64x2"]'}
    settings |= {"block": 16, "step_blocks": 4, "tokens": 1024, "n_docs": 20, "top_k": 6, "logit_tokens": 64}
    settings |= {"points": '["k=5", "tau=5", "alpha=0.9"]', "save_steps": 5, "teacher_devices": "all"}
    run = run_notebook(tmp_path / "runs", STUDY, "full", settings)
    out, _ = run.communicate()
    assert run.returncode == 0, out
    record = json.loads(next((tmp_path / "runs").rglob("real_teacher.json")).read_text())
    judged = {name for name, claim in record["claims"].items() if claim["verdict"] != "not testable here"}
    assert judged == {"C11", "C1b", "C1d", "C7c", "C8c", "C2r", "C3r", "C5r", "C6r", "C16r"}
    assert all(np.isfinite(metric["value"]) for metric in record["metrics"].values())


# ---- the gate


@pytest.mark.sabotage
@pytest.mark.skipif(not (ROOT / NOTEBOOK).with_name("expected.yaml").exists(), reason="not calibrated yet")
def test_gate_goes_red_when_the_teacher_is_read_at_the_wrong_text():
    """Every student gets the teacher's predictions for the next block; the first comparison notices."""
    error = sabotage(
        PAPER, {"[part[row].flatten(0, 1) for part in one]": "[part[row - 1].flatten(0, 1) for part in one]"}
    )
    assert error.startswith("RegressionError") and "small_teacher_gain" in error
