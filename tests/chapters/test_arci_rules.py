"""Chapter arci, from measures to verdicts: each claim reads its own numbers, and its rule is the one that it states.

The cells that judge are executed on made-up values in which every model, measure and world has a number of its own. So
two claims that were swapped, or a gate that looks at another model, give other numbers.
"""

import json
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from fake_run import FakeRun

from helpers.stats import Estimate, crossed_bootstrap, seed_interval

FOLDER = Path("notebooks/arci")
TOOLS = {"np": np, "pd": pd, "torch": torch, "product": product, "partial": partial, "replace": replace}
TOOLS |= {"Estimate": Estimate, "seed_interval": seed_interval, "crossed_bootstrap": crossed_bootstrap}
TOOLS |= {"Tensor": torch.Tensor, "Fit": SimpleNamespace, "Parts": None, "preset": "public"}
W = 4  # worlds
SPREAD = 1e-4 * np.arange(W)[:, None]  # of a value from world to world


class Noted(FakeRun):
    """A run that notes what it is told."""

    changed = False

    def __init__(self):
        self.metrics, self.claims = {}, {}

    def metric(self, name, value, **_):
        self.metrics[name] = value

    def claim(self, name, found):
        self.claims[name] = found


def judge(notebook, cells, /, space=None, **given):
    """The run after cells (by id) of a notebook were executed with these values; `space` gets what they define."""
    by_id = {c["id"]: "".join(c["source"]) for c in json.loads((FOLDER / f"{notebook}.ipynb").read_text())["cells"]}
    space = {} if space is None else space
    space |= {"run": Noted()} | TOOLS | given
    for name in cells:
        exec(compile(by_id[name], f"{notebook}[{name}]", "exec"), space)
    return space["run"]


def level(value, n=3):
    """Values (worlds, n) about a level."""
    return np.full((W, n), float(value)) + SPREAD


def point(value):
    """An estimate of almost no width."""
    return Estimate(float(value), value - 1e-4, value + 1e-4, W)


def undecided(run):
    """Claims whose interval holds zero."""
    return {name for name, e in run.claims.items() if e.low <= 0 <= e.high}


def near(found, value, low=None, high=None):
    """Whether an estimate is this number with these ends; an end that is not given lies at the number."""
    ends = (found.value, found.low, found.high)
    return ends == pytest.approx((value, value if low is None else low, value if high is None else high), abs=2e-3)


# The main page

MEASURES = ("average precision", "recall at 5", "Jaccard")
RIVALS = ("RETAIN", "transformer", "memory")
MODELS = {"ARCI": 0.5, "ARCI, twin": 0.2, "popularity": 0.1, "logistic": 0.33}
MODELS |= {"RETAIN": 0.41, "transformer": 0.42, "memory": 0.44}


def main_page(case="", name="", measure="", value=0.0, reach=None):
    """Verdicts of the main page, with one other level where a world, a model and a measure are given."""
    values, found = {}, {}
    for (c, world), (model, base) in product(enumerate(("sums", "switches")), MODELS.items()):
        shifts = [(0.02 * m + 0.05 * c) * (model == "ARCI") for m in range(len(MEASURES))]
        apart = [-0.03, 0.03] if model == "ARCI" else [0.0]  # two trainings in each world, whose mean counts
        each = {one: base + shift for one, shift in zip(MEASURES, shifts, strict=True)}
        values[world, model] = {one: np.stack([level(v + start) for start in apart]) for one, v in each.items()}
        found[world, model] = [SimpleNamespace(held=torch.full((2, W), 0.1))]
    if case:
        values[case, name][measure] = level(value)[None]
    for r, model in enumerate((*RIVALS, "RETAIN")):  # the strongest by validation is another in each world
        held = torch.full((2, W), 0.1)
        held[0, r] = 0.9
        found["sums", model] = [*found["sums", model], SimpleNamespace(held=held)]
    moves = {("sums", 2): (0.1, 0.2), ("sums", 4): (0.3, 0.1), ("switches", 2): (9, 0), ("switches", 4): (0, 0)}
    cells = {(c, "all", b): {"A1": point(a1), "A7": point(a7)} for (c, b), (a1, a7) in moves.items()}
    given = {"values": values, "found": found, "cells": cells, "BUDGETS": [1, 2, 4], "reach": reach or point(0.05)}
    names = ["estimates", "gates", "gates-here", "rivals", "claims-of-models-here", "judged", "starts"]
    given |= {"NETWORKS": dict.fromkeys(("ARCI", *RIVALS)), "tasks": ("sums", "switches"), "n_worlds": W}
    return judge("arci", names, **given)


def test_claims_of_the_main_page_read_their_own_numbers():
    """A1 rose by .2 with the last doubling, A7 fell by .1, A7c stood still."""
    run, rival = main_page(), np.mean([0.41, 0.42, 0.44, 0.41])
    for claim, own in (("A1", 0.5), ("A1b", 0.52), ("A1c", 0.54)):
        found = run.claims[claim]
        assert found.value == pytest.approx(own - rival, abs=1e-3) and 0 < found.low < found.value, claim
        assert found.high == pytest.approx(run.metrics[f"{claim} as measured"].high + 0.2, abs=1e-3), claim
    assert near(run.claims["A7"], 0.17, low=0.07) and near(run.claims["A7c"], 0.22)
    assert near(run.metrics["ARCI minus logistic"], 0.17)
    for name, value in (("ARCI", 0.4), ("memory", 0.34), ("RETAIN", 0.31), ("transformer", 0.32)):
        assert near(run.metrics[f"gain over popularity {name}"], value)
    assert near(run.metrics["sums: memory minus logistic"], 0.11)
    assert near(run.metrics["switches: ARCI minus logistic"], 0.22)
    assert near(run.metrics["sums: ARCI minus logistic, start 0"], 0.14)
    assert near(run.metrics["switches: ARCI minus logistic, start 1"], 0.25)
    unsure = main_page(reach=Estimate(0.05, -0.01, 0.11, W))  # the products may be worth nothing
    assert unsure.metrics["A7c: lower end of the gate"] == pytest.approx(-0.01)
    gates = {claim: run.metrics[f"{claim}: lower end of the gate"] for claim in run.claims}
    assert gates == pytest.approx({"A1": 0.3, "A1b": 0.32, "A1c": 0.34, "A7": 0.3, "A7c": 0.05}, abs=1e-3)


@pytest.mark.parametrize(
    ("case", "name", "measure", "closed"),
    [
        ("sums", "ARCI, twin", "average precision", {"A1", "A7"}),
        ("sums", "popularity", "recall at 5", {"A1b"}),
        ("sums", "popularity", "Jaccard", {"A1c"}),
        ("switches", "popularity", "average precision", {"A7c"}),
    ],
)
def test_each_gate_has_its_own_measure_and_world(case, name, measure, closed):
    """A floor is made better than ARCI by one measure in one world: only the claims about it are left open."""
    assert undecided(main_page()) == set()
    assert undecided(main_page(case, name, measure, 0.9)) == closed


# What the parts do

HEADS = {"contrast 0.2": 0.60, "placebo": 0.57, "no contrast": 0.55, "no intents": 0.48, "no paths": 0.40}
HEADS |= {"one head": 0.31}


def parts_page(gained, half=0.0):
    """Verdicts about parts; samples without a path have other values, which A3c must leave out."""
    path = np.array([True, True, False, False])
    values = {}
    for when, shift in (("whole", 0.0), ("half", half)):
        one = {name: level(base - shift * (name == "contrast 0.2"), 4) for name, base in HEADS.items()}
        one["no paths"][:, ~path] = 0.9
        values[when] = {("profiles", name): value for name, value in one.items()}
    test = SimpleNamespace(visits=torch.tensor([2, 3, 1, 1]))
    tasks = {"profiles": SimpleNamespace(test=test, tested=torch.arange(4).expand(W, -1))}
    given = {"values": values, "tasks": tasks, "REAL": "contrast 0.2", "WHENS": ("whole", "half"), "gained": gained}
    return judge("heads", ["worth", "worths", "going-on", "guard", "claims-of-parts"], **given)


def test_claims_about_parts_read_their_own_variants():
    run = parts_page(point(0.1))
    wanted = {"A3": 0.05, "A3b": 0.07, "A3c": 0.15, "A3d": 0.24, "A3e": 0.05}
    assert set(run.claims) == set(wanted) and all(near(run.claims[c], value) for c, value in wanted.items())
    names = {"contrast": 0.05, "intents": 0.07, "paths": 0.15, "four heads": 0.24}
    assert all(near(run.metrics[f"worth of {name}"], value) for name, value in names.items())


def test_parts_that_still_move_or_learned_nothing_are_left_open():
    moving = parts_page(point(0.1), half=-0.2)  # the contrast was worth .25 after half of the steps
    assert near(moving.claims["A3"], 0.05, low=-0.15) and near(moving.claims["A3b"], 0.07)
    closed = parts_page(Estimate(0.1, -0.01, 0.2, W))
    assert undecided(closed) == set(closed.claims)
    assert closed.claims["A3e"].low <= -0.01 and closed.claims["A3e"].high >= 0.01  # both ends of its margin


LOOKS = {"contrast 0.2": 0.5, "placebo": 0.38, "no contrast": 0.35}


def inside_page(sharp=0.2, gained=None, half=0.0, **changed):
    """Verdicts about heads; each measure has numbers of its own, `changed` those of the placebo."""
    measures = {"divergence": 0.1, "cka": 0.2, "alignment": 0.05, "intent alignment": 0.01}

    def look(at, name):
        base = {k: at + m for k, m in measures.items()} | {"cka": 1.2 - 2 * at}
        base |= changed if name == "placebo" else {}
        one = {k: np.full(W, v) + SPREAD[:, 0] for k, v in base.items()}
        return one | {"sharpness": np.full(W, sharp) + SPREAD[:, 0], "cosines": np.full((W, 4, 4), 0.3 - at / 10)}

    seen = {("profiles", name): look(at, name) for name, at in LOOKS.items()}
    before = {key: {k: v - half for k, v in one.items()} for key, one in seen.items()}
    before["profiles", "contrast 0.2"] = seen["profiles", "contrast 0.2"]
    given = {"seen": seen, "seen_half": before, "REAL": "contrast 0.2", "n_worlds": W}
    return judge("heads", ["going-on", "guard", "weaker", "distinct", "meaning"], gained=gained or point(0.1), **given)


def test_claims_about_heads_read_their_own_measures():
    run = inside_page()
    wanted = {"A2": 0.12, "A2b": 0.24, "A4": 0.55, "A4b": 0.12, "A4c": 0.51}
    assert set(run.claims) == set(wanted) and all(near(run.claims[c], value) for c, value in wanted.items())
    assert near(run.metrics["cosine without minus with the contrast"], 0.015)
    assert near(run.metrics["sharpness of maps"], 0.2)


def test_heads_are_judged_behind_their_gates():
    """The placebo counts where it does more than no contrast; blunt maps leave all but the intents open."""
    for changed, claim in (({"divergence": 0.9}, "A2"), ({"cka": 0.1}, "A2b"), ({"alignment": 0.9}, "A4b")):
        run = inside_page(**changed)
        assert run.claims[claim].value < 0 and undecided(run) == set()
    assert undecided(inside_page(sharp=0.04)) == {"A2", "A2b", "A4", "A4b"}
    assert undecided(inside_page(gained=Estimate(0.1, -0.01, 0.2, W))) == {"A2", "A2b", "A4", "A4b", "A4c"}


# All drugs

SETTINGS = {"none": (0.08, 0.6), "released": (0.07, 0.597), "weight 10": (0.02, 0.5)}  # rate, precision
SETTINGS |= {"placebo": (0.075, 0.52), "released placebo": (0.078, 0.59)}


def safety_page(opened=0.9, learned=0.2, **changed):
    """Verdicts of the page on all drugs; `changed` holds other (rate, precision) of settings."""

    def scores(name):
        rate, precision = changed.get(name.replace(" ", "_"), SETTINGS[name])
        return {"rate": rate + SPREAD[:, 0], "precision": level(precision)}

    names = {"ARCI": 0.3 + learned, "popularity": 0.3, "copy": 0.45, "logistic": 0.56}
    levels = {name: value + SPREAD[:, 0] for name, value in names.items()}
    given = {"level": levels, "half_level": levels["ARCI"] - 0.01, "n_worlds": W, "opened": point(opened)}
    given |= {"own": 0.47 + SPREAD[:, 0], "copied": 0.4 + 2 * SPREAD[:, 0], "sooner": 0.46 + SPREAD[:, 0]}
    given |= {"rates_of": lambda p: p["rate"], "precision": lambda p: p["precision"], "STRONG": "weight 10"}
    given |= {"CLAIMED": ("none", "released", "released placebo"), "lists_of": {k: scores(k) for k in SETTINGS}}
    given["halves"] = {name: {"scores": scores(name)} for name in given["CLAIMED"]}
    return judge("safety", ["guard", "going-on", "claims-of-models", "measures-here", "bought"], **given)


def test_claims_about_all_drugs_read_their_own_numbers():
    """The released term buys .008 and costs .003; ARCI is ahead of a copy and behind the regression."""
    run = safety_page()
    assert set(run.claims) == {"A5", "A5b", "A8", "A8b"}
    assert near(run.claims["A5"], -0.003) and near(run.claims["A5b"], 0.008)
    assert near(run.claims["A8"], 0.07, high=0.08) and near(run.claims["A8b"], -0.06, high=-0.05)


def test_a_term_that_did_nothing_has_no_low_price():
    """A5 is left open where the term was off, the network learned nothing, or a placebo buys as much."""
    assert undecided(safety_page(opened=0.04)) == {"A5", "A5b"}
    assert undecided(safety_page(learned=0.0)) == {"A5", "A5b", "A8", "A8b"}
    for name, rate in (("released", 0.08), ("released_placebo", 0.06)):
        run = safety_page(**{name: (rate, 0.597)})
        assert run.claims["A5"].low <= -0.01 and run.claims["A5"].high >= 0.01, name
        assert not run.claims["A5b"].low > 0, name


# More patients, and where to stop


def curve(held, test):
    """A training with looks at the steps 1 to 4, the same in every world; held, test (looks,)."""
    every = torch.tensor(test, dtype=torch.double)[:, None, None] + torch.tensor(SPREAD)
    return SimpleNamespace(
        steps=torch.arange(1, 5), held=torch.tensor(held)[:, None].expand(-1, W), test=every.expand(-1, -1, 3)
    )


def sizes_page(popular=0.1):
    """The verdict on more patients; ARCI gains .2 on the regression, .15 of it in the second half of the steps."""
    values = {(s, m): level(v) for s, m, v in ((9, "ARCI", 0.2), (9, "logistic", 0.3), (99, "ARCI", 0.5))}
    values |= {(99, "logistic"): level(0.4), (99, "popularity"): level(popular), (99, "twin"): level(0.15)}
    found = {(9, "ARCI"): [curve([1.0, 2.0, 3.0, 4.0], [0.2] * 4)]}
    found[99, "ARCI"] = [curve([1.0, 2.0, 3.0, 4.0], [0.1, 0.35, 0.4, 0.5])]
    given = {"values": values, "found": found, "sizes": [9, 99], "LARGE": 99, "max_steps": 4, "check": 1}
    given["estimate"] = lambda each: seed_interval(each.mean(1))
    return judge("choosing", ["moved", "until"], **given)


def test_more_patients_are_judged_by_the_gap_and_behind_its_gate():
    run = sizes_page()
    assert near(run.claims["A7b"], 0.2, high=0.35)
    assert near(run.metrics["ARCI minus logistic, 99 patients"], 0.1)
    assert undecided(sizes_page(popular=0.6)) == {"A7b"}


def test_choices_on_test_are_the_mean_of_two_networks_on_groups_of_200():
    gains = {("ARCI", 2): level(0.01), ("RETAIN", 2): level(0.03), ("ARCI", 4): level(0.1), ("RETAIN", 4): level(0.2)}
    given = {"gains": gains, "GROUPS": 2, "CUTS": (2, 4), "NETWORKS": ["ARCI", "RETAIN"], "people": np.zeros((W, 3))}
    given |= {"estimate": lambda each: seed_interval(each.mean(1)), "rising": dict.fromkeys(("ARCI", "RETAIN"), 0.5)}
    run = judge("choosing", ["inflation-claim"], **given)
    assert set(run.claims) == {"A6"} and near(run.claims["A6"], 0.02)
    assert near(run.metrics["optimism, one group in 4 chooses"], 0.15)
    effects = {True: 0.3 + SPREAD[:, 0], False: np.zeros(W)}
    run = judge("choosing", ["batch-mates-claim"], mate_effect=lambda released: effects[released])
    assert near(run.claims["A9"], 0.3)
    with pytest.raises(AssertionError):
        judge("choosing", ["batch-mates-claim"], mate_effect=lambda released: effects[True])


def test_the_seven_released_thresholds_are_chosen_on_test():
    """One of two drugs is true: sets are right from .1 to .3 on validation, from .5 to .7 on test."""
    y = torch.tensor([True, False]).expand(W, 6, 2)
    held, scores = (torch.tensor(p).expand(W, 6, 2) for p in ([0.35, 0.05], [0.75, 0.45]))
    fits = {(99, name): [SimpleNamespace(held_scores=held, scores=scores)] for name in ("logistic", "ARCI")}
    task = SimpleNamespace(train=SimpleNamespace(y=y[0]), held=torch.arange(6).expand(W, -1))
    asked = []

    def optimism(each, people, groups):
        asked.append((each.shape, groups))
        return each[4] - each[3]  # what .5 has over .4

    given = {"tasks": {99: task}, "LARGE": 99, "found": fits, "y": y, "people": None, "GROUPS": 2, "CUTS": (2, 4)}
    given |= {"chosen": lambda trials, part: getattr(trials[0], part), "optimism": optimism}
    given |= {"jaccard": lambda a, b: (a & b).sum(-1) / (a | b).sum(-1)}
    given |= {"estimate": lambda each: seed_interval(each.mean(1))}
    run = judge("choosing", ["released-cuts"], **given)
    assert asked == [((7, W, 6), groups) for groups in (2, 4)] * 2
    for name in ("logistic", "ARCI"):
        assert near(run.metrics[f"optimism of a threshold, {name}"], 0.5)
        assert near(run.metrics[f"best threshold on test, {name}"], 0.5)


def test_the_twin_of_the_page_on_choices_has_other_answers():
    asked = {}

    def fits(name, task, stream, picks=None):
        asked[stream, name] = (task, picks)
        return [SimpleNamespace(held=torch.full((2, W), float(k))) for k in range(2)]

    given = {"tasks": {9: "few", 99: "many"}, "LARGE": 99, "fits": fits, "SETTINGS": ["a", "b"], "penalties": []}
    given |= {"permuted": lambda task: f"other answers of {task}", "fit_popularity": lambda task: None}
    judge("choosing", ["trainings"], **given)
    assert asked["permuted", "ARCI"] == ("other answers of many", ["b"])
    assert asked["9", "ARCI"] == ("few", None) and asked["99", "ARCI"] == asked["99", "RETAIN"] == ("many", None)


def test_heads_are_looked_at_after_half_and_after_all_of_the_budget():
    given = {"REAL": "contrast 0.2", "WHENS": ("whole", "half"), "inside": lambda kind, name, when: (kind, name, when)}
    space = {}
    judge("heads", ["inside-run"], space=space, **given)
    for name in ("contrast 0.2", "no contrast", "placebo"):
        assert space["seen"]["profiles", name][2] == "whole" and space["seen_half"]["profiles", name][2] == "half"
    assert {space["seen"]["null", name] for name in ("contrast 0.2", "no contrast")} == {
        ("null", "contrast 0.2", "whole"), ("null", "no contrast", "whole")}  # fmt: skip
    assert space["seen"]["profiles", "fresh"] == ("profiles", "contrast 0.2", "fresh")


# The open sample


def demo_page(popularity=0.3, sooner=0.5):
    """Verdicts on real records: ARCI .6 against a copy's .4, `sooner` after half of the steps."""
    levels = {"ARCI": 0.6, "copy": 0.4, "popularity": popularity, "logistic": 0.45, "RETAIN": 0.5}
    spread = 1e-4 * np.arange(12)
    values = {(m, k): np.full((3, 12), v + 0.01 * (k == "Jaccard")) + spread for m, v in levels.items() for k in KINDS}
    arci = SimpleNamespace(steps=torch.tensor([1, 2, 3, 4]), held=torch.arange(4.0)[:, None].expand(-1, 3))
    arci.test = torch.tensor([0.1, sooner, 0.55, 0.6])[:, None, None].expand(-1, 3, 12)
    given = {"values": values, "found": {"ARCI": [arci]}, "owner": np.arange(12), "MODELS": list(levels), "task": "all"}
    given |= {"check": 1, "max_steps": 4, "own_fold": lambda each: each, "copied": point(0.07)}
    return judge("demo", ["estimates", "going-on", "until", "claims-here"], **given)


KINDS = ("precision", "Jaccard")


def test_claims_on_the_open_sample_read_their_own_numbers():
    run = demo_page()
    assert near(run.claims["D1"], 0.07) and near(run.claims["D2"], 0.2, high=0.3)
    assert near(run.metrics["ARCI minus RETAIN, precision"], 0.1)
    assert near(run.metrics["logistic minus copy, precision"], 0.05)
    assert near(run.metrics["ARCI minus logistic, precision"], 0.15) and near(run.metrics["Jaccard copy"], 0.41)
    assert undecided(demo_page(popularity=0.65)) == {"D2"}
    assert near(demo_page(sooner=0.9).claims["D2"], 0.2, low=-0.1)


def test_each_page_judges_the_claims_that_name_it():
    claims = yaml.safe_load((FOLDER / "claims.yaml").read_text())
    runs = {"arci": [main_page()], "heads": [parts_page(point(0.1)), inside_page()], "safety": [safety_page()]}
    for notebook, pages in (runs | {"demo": [demo_page()]}).items():
        wanted = {c["id"] for c in claims if c.get("notebook", "arci") == notebook}
        assert wanted == {name for page in pages for name in page.claims}, notebook
