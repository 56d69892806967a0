"""Chapter arci: released numbers, a plain loop for one patient, the other implementation, errors, presets, a sabotage.

The numbers in GOLDEN were made by executing the released layers (ARCI e0fac8e), the contrastive loss of the same
commit, the measures that it uses, and layers of RETAIN and GAMENet of PyHealth 1.1.6, on the inputs that each entry
states.
"""

import importlib.util
import json
import math
import sys
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from lift import lift, sabotage
from sklearn.metrics import average_precision_score, jaccard_score
from torch import nn

from helpers.parameters import BadRequestError
from helpers.request import resolve

FOLDER = "notebooks/arci"
GOLDEN = json.loads((Path(__file__).parent / "arci_golden.json").read_text())
RIVALS = ("RETAIN", "Transformer", "Memory")
NAMES = (
    *("PLACES", "Linear", "split", "merge", "look_up", "attend", "VisitAttention", "PathAttention", "contrast", "GRU"),
    *("RetainLayer", "Batch", "Dropout", "Levels", "ARCI", "SummedVisits", *RIVALS, "Samples", "build", "code_lists"),
    *("World", "make_world", "generate", "oracle", "average_precision", "jaccard", "recall_at", "ndcg_at", "scores"),
    *("loss_of", "clip", "Task", "own_worlds", "Fit", "Watch", "batches", "learn", "features", "logistic", "fit_of"),
    *("fit_logistic", "fit_popularity", "chosen", "guarded", "permuted", "until", "going_on", "kept"),
    *("exactly_one", "numbered", "chance_of", "copies", "pieces"),
)


class FakeRun:
    """The random sources of `Run`, without a record."""

    device, seed = torch.device("cpu"), 0

    def rng(self, stream=0):
        return np.random.default_rng([7, sum(map(ord, str(stream)))])

    def torch_generator(self, stream=0):
        return torch.Generator().manual_seed(sum(map(ord, str(stream))))


SIZES = {"run": FakeRun(), "n_worlds": 2, "dim": 16, "max_steps": 4, "check": 2, "batch_size": 16}
SIZES |= {
    "cells": {},
    "worlds": [],
    "BUDGETS": [],
    "preset": "reduced",
    "trainings": None,
    "contrast_weight": 0.2,
    "patience": 5,
    "dropout": 0.0,
    "world_patients": 20,
    "world_test": 8,
}


@pytest.fixture(scope="module")
def nb():
    return lift(f"{FOLDER}/arci.ipynb", NAMES, SIZES)


@pytest.fixture(scope="module")
def heads():
    names = (
        "Parts",
        "maps_of",
        "divergence",
        "sharpness",
        "cka",
        "favour",
        "alignment",
        "links",
        "mean_of",
        "going_on",
        "make_world",
    )
    return lift(f"{FOLDER}/heads.ipynb", names, SIZES)


@pytest.fixture(scope="module")
def choosing():
    return lift(f"{FOLDER}/choosing.ipynb", ("optimism", "hit_at"), SIZES)


@pytest.fixture(scope="module")
def demo():
    names = ("visits_of", "checked", "read_folder", "interaction_rate", "toy", "generated_tables", "overlap_of")
    return lift(f"{FOLDER}/demo.ipynb", names, SIZES)


@pytest.fixture(scope="module")
def safety():
    names = ("interaction_term", "gated_term", "pair_counts", "rate", "gate", "make_world", "generate")
    return lift(f"{FOLDER}/safety.ipynb", names, SIZES)


@pytest.fixture(scope="module")
def patients(nb):
    world = nb.make_world(np.random.default_rng(0))
    return world, nb.generate(np.random.default_rng(1), 60, world).visits


# Released numbers


def released_linear(nb, seed, n_in, n_out):
    """A linear layer with the weights that the golden inputs state."""
    state = np.random.RandomState(seed)
    weight, bias = state.randn(n_out, n_in) / 2, state.randn(n_out) / 2
    layer = nb.Linear(1, torch.Generator(), n_in, n_out)
    layer.weight.data = torch.tensor(weight.T[None], dtype=torch.float32)
    layer.bias.data = torch.tensor(bias[None, None], dtype=torch.float32)
    return layer


@pytest.mark.parametrize("case", GOLDEN["attention"]["cases"])
def test_both_attention_levels_equal_the_released_layers(nb, case):
    wanted, generator = GOLDEN["attention"]["cases"][case], torch.Generator()
    table = np.random.RandomState(50).randn(20, 8)
    table = torch.tensor(table[None, 1:], dtype=torch.float32)  # row 0 is padding
    within, across = nb.VisitAttention(1, generator, 8, 2), nb.PathAttention(1, generator, 8, 2, released=True)
    within.query, within.key, within.value = (released_linear(nb, s, 8, 8) for s in (100, 101, 102))
    across.query, across.key, across.now, across.before = (released_linear(nb, s, 8, 8) for s in (103, 104, 105, 106))
    across.join = released_linear(nb, 107, 8, 4)
    outputs, masks = [], []
    for codes in (torch.tensor([[wanted["prev"]]]), torch.tensor([[wanted["cur"]]])):
        outputs.append(within(table, codes))
        masks.append(codes > 0)
    context, C = across(*outputs, *masks)
    for found, name in ((outputs[1], "W_cur"), (context, "context"), (C, "C")):
        np.testing.assert_allclose(found[0, 0].detach(), wanted[name], atol=2e-5)


def released_block(nb):
    """The stacked network as published, with the weights that the golden block states."""
    net = nb.ARCI(1, torch.Generator(), 12, 8, heads=2, released=True).eval()
    within, across = net.levels.within, net.levels.across
    layers = [within.query, within.key, within.value, across.query, across.key, across.now, across.before, across.join]

    def fill(layer, *states):
        parts = [released_linear(nb, s, layer.weight.shape[1], layer.weight.shape[2] // len(states)) for s in states]
        layer.weight.data = torch.cat([part.weight.data for part in parts], 2)
        layer.bias.data = torch.cat([part.bias.data for part in parts], 2)

    for state, layer in enumerate(layers, start=300):
        fill(layer, state)
    fill(net.levels.intent, 310, 311)
    for state, layer in ((320, net.shared), (321, net.combine), (322, net.retain.alpha), (323, net.retain.beta)):
        fill(layer, state)
    draw = lambda s, *shape: torch.tensor(np.random.RandomState(s).randn(*shape) / 2, dtype=torch.float32)  # noqa: E731
    for start, gru in ((330, net.retain.alpha_gru), (340, net.retain.beta_gru)):
        for k, part in enumerate((gru.input, gru.state)):
            part.weight.data, part.bias.data = draw(start + k, 24, 8).T[None], draw(start + 2 + k, 24)[None, None]
    net.levels.codes.data = 2 * draw(350, 12, 8)[None]
    net.out.weight.data = torch.eye(8, 12)[None]  # the block ends before the last layer: look at its input
    net.out.bias.data = torch.zeros(1, 1, 12)
    return net


@pytest.mark.parametrize("case", ["three", "second_alone"])
def test_whole_released_block(nb, case):
    """All branches at once: mask, padding, empty places, order of features, the library's RETAIN layer, contrast."""
    golden = GOLDEN["block"]
    who = golden["patients"] if case == "three" else golden["patients"][1:2]
    net, past = released_block(nb), torch.zeros((len(who), 4, 12), dtype=torch.bool)
    for b, visits in enumerate(who):
        for t, codes in enumerate(visits):
            past[b, t, torch.tensor(codes) - 1] = True
    batch = nb.Batch([c[None] for c in nb.code_lists(past)], past[None].float(), torch.tensor([[len(p) for p in who]]))
    with torch.no_grad():
        found, apart = net(batch)
        right = nb.ARCI(1, torch.Generator(), 12, 8, heads=2).eval()
        right.load_state_dict(net.state_dict())
        assert not torch.allclose(right(batch)[0], found, atol=1e-2)
    np.testing.assert_allclose(found[0, :, :8], golden["out"][case]["block"], atol=2e-5, rtol=1e-4)
    assert float(apart.mean()) == pytest.approx(golden["out"][case]["contrast"], rel=1e-5)


def test_contrast_equals_the_released_loss(nb):
    state = np.random.RandomState(7)
    heads, intents = state.randn(3, 4, 4, 4), state.randn(3, 4, 4, 4)  # batch, visit, head, d_h
    weight, bias = np.random.RandomState(8).randn(4, 16) / 4, np.random.RandomState(9).randn(4) / 4
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])[:, :, None, None]
    project = lambda v: torch.tensor((v * mask).transpose(0, 2, 1, 3).reshape(3, 4, 16) @ weight.T + bias)  # noqa: E731
    found = nb.contrast(project(intents), project(heads))
    wanted = GOLDEN["contrastive"]["out"]
    np.testing.assert_allclose(found, [wanted[f"inner_row{k}"] for k in range(3)], rtol=2e-6)
    assert float(found.mean()) == pytest.approx(wanted["inner"], rel=2e-6)
    assert float(nb.contrast(torch.zeros(4, 4), torch.zeros(4, 4))) == pytest.approx(wanted["zero_vectors"], abs=1e-5)


def test_margin_and_interaction_losses_equal_the_released(nb, safety):
    p, wanted = torch.tensor(GOLDEN["margin"]["prob"]), GOLDEN["margin"]
    targets = torch.tensor([[0, 2, -1, -1], [1, -1, -1, -1]])
    found = nn.functional.multilabel_margin_loss(p, targets, reduction="none")
    np.testing.assert_allclose(found, wanted["per_row"], atol=1e-6)
    ddi = GOLDEN["ddi_loss"]
    for times, name in ((1, "value"), (2, "same_rows_twice")):
        term = safety.interaction_term(torch.tensor(ddi["P"]).repeat(times, 1), torch.tensor(ddi["A"]).float())
        assert float(term) == pytest.approx(ddi[name], abs=1e-6)


def golden_inputs():
    """Labels, scores and interactions that the golden measures state."""
    state = np.random.RandomState(0)
    y, p = state.rand(40, 12) < 0.25, state.rand(40, 12).round(6)
    upper = np.triu(state.rand(12, 12) < 0.2, 1)
    return y, p, upper | upper.T


def test_measures_equal_the_released(nb, safety, choosing):
    y, p, pairs = golden_inputs()
    given = {
        "base": (y, p),
        "all_equal_.3": (y, np.full(p.shape, 0.3)),
        "at_threshold_.5": (y, np.where(y, 0.5, 0.2)),
        "popularity_rows": (y, np.tile(y.mean(0).round(3), (40, 1))),
        "five_empty_rows": (np.where(np.arange(40)[:, None] < 5, False, y), p),
    }
    assert set(given) == set(GOLDEN["metrics"]["out"])
    for name, (labels, score) in given.items():
        wanted, labels, score = GOLDEN["metrics"]["out"][name], torch.tensor(labels), torch.tensor(score)
        assert float(nb.average_precision(score, labels).mean()) == pytest.approx(wanted["AUCPR"], abs=2e-6)
        for cut, key in ((0.3, "03"), (0.5, "05")):
            found = float(nb.jaccard(score > cut, labels).double().mean())
            assert found == pytest.approx(wanted[f"Jaccard_{key}"], abs=2e-6)
            ddi = safety.rate(safety.pair_counts(score >= cut, torch.tensor(pairs).double()).numpy())
            assert ddi == pytest.approx(wanted[f"DDI_{key}"], abs=2e-6)
        if name in ("base", "five_empty_rows"):  # elsewhere ties decide
            for k in (1, 3, 5):
                found = float(choosing.hit_at(score, labels, k, strict=True).mean())
                assert found == pytest.approx(wanted[f"Hit@{k}"], abs=2e-6)


def test_samples_equal_the_released_builder(nb):
    letters = "ABCDEFG"
    for name, case in GOLDEN["samples"].items():
        hot = torch.tensor([[[letter in visit for letter in letters] for visit in case["visits"]]])
        found = nb.build(hot, new=True)
        write = lambda row: sorted(letters[i] for i in row.nonzero()[:, 0].tolist())  # noqa: E731
        mine = [([write(v) for v in past if v.any()], write(y)) for past, y in zip(found.past, found.y, strict=True)]
        assert mine == [(one["hist"], one["label"]) for one in case["mimic"]], name


# A plain loop for one patient


def plain_arci(net, visits, vocab, tau=0.1):
    """Logits and contrast of one patient, in float64, with Python loops over visits, heads and codes."""
    get = lambda layer: (layer.weight[0].double(), layer.bias[0, 0].double())  # noqa: E731
    use = lambda layer, x: x @ get(layer)[0] + get(layer)[1]  # noqa: E731
    levels, H = net.levels, net.levels.heads
    emb, d = levels.codes[0].double(), levels.codes.shape[-1]
    each, T = d // H, 4
    part = lambda x, h: x[h * each : (h + 1) * each]  # noqa: E731

    def look(rows, columns, values, h):
        out = []
        for row in rows:
            score = torch.stack([part(row, h) @ part(c, h) for c in columns]) / math.sqrt(each)
            weight = torch.exp(score - score.max())
            out.append(sum(w * part(v, h) for w, v in zip(weight / weight.sum(), values, strict=True)))
        return out

    W_sum, ctx_sum, C_sum, intents, C = [], [], [], [], None
    for visit in visits:
        e = [emb[c - 1] for c in visit]
        q, k, v = ([use(f, x) for x in e] for f in (levels.within.query, levels.within.key, levels.within.value))
        heads = [look(q, k, v, h) for h in range(H)]
        W = [torch.cat([heads[h][i] for h in range(H)]) for i in range(len(visit))]
        if C is None:
            context = ahead = W
        else:
            a = levels.across
            k2, now = [use(a.key, x) for x in W], [use(a.now, x) for x in W]
            q2, before = [use(a.query, x) for x in C], [use(a.before, x) for x in C]
            by_head = [look(k2, q2, before, h) for h in range(H)]
            context = [torch.cat([by_head[h][i] for h in range(H)]) for i in range(len(visit))]
            ahead = [
                torch.cat([use(a.join, torch.cat([part(c, h), part(n, h)])) for h in range(H)])
                for c, n in zip(context, now, strict=True)
            ]
        C = ahead
        for sums, found in ((W_sum, W), (ctx_sum, context), (C_sum, C)):
            sums.append(sum(found))
        intents.append(use(levels.intent, sum(e)))

    def retain(xs):
        layer = net.retain

        def run(gru):
            h, out = torch.zeros(d, dtype=torch.double), []
            for x in reversed(xs):
                gi, gh = use(gru.input, x), use(gru.state, h)
                r, z = (torch.sigmoid(gi[s : s + d] + gh[s : s + d]) for s in (0, d))
                n = torch.tanh(gi[2 * d :] + r * gh[2 * d :])
                h = (1 - z) * n + z * h
                out.append(h)
            return out

        alpha = torch.stack([use(layer.alpha, h)[0] for h in run(layer.alpha_gru)]).softmax(0)
        beta = [torch.tanh(use(layer.beta, h)) for h in run(layer.beta_gru)]
        return sum(w * b * x for w, b, x in zip(alpha, beta, reversed(xs), strict=True))

    logits = use(net.out, use(net.combine, torch.cat([retain(C_sum), retain(intents)])))

    def project(xs, h):
        joined = [part(x, h) for x in xs] + [torch.zeros(each, dtype=torch.double)] * (T - len(xs))
        return use(net.shared, torch.cat(joined))

    cos = lambda a, b: float(a @ b / a.norm() / b.norm())  # noqa: E731
    loss = 0.0
    for sums in (W_sum, ctx_sum):
        A, I = ([project(xs, h) for h in range(H)] for xs in (sums, intents))  # noqa: E741
        for h in range(H):
            own = math.exp(cos(I[h], A[h]) / tau)
            others = [math.exp(cos(I[h], X[g]) / tau) for X in (A, I) for g in range(H) if g != h]
            loss -= math.log(own / (own + sum(others)))
    return logits, loss


def test_network_equals_a_loop_over_patients(nb):
    rng, V = np.random.default_rng(0), 30
    patients = [
        [sorted(rng.choice(V, rng.integers(1, 7), replace=False) + 1) for _ in range(t)] for t in (4, 3, 2, 1, 1)
    ]
    net = nb.ARCI(2, torch.Generator().manual_seed(3), V, 16).eval()
    past = torch.zeros((5, 4, V), dtype=torch.bool)
    for b, visits in enumerate(patients):
        for t, codes in enumerate(visits):
            past[b, t, torch.tensor(codes) - 1] = True
    visits = torch.tensor([len(p) for p in patients])
    none = torch.zeros((5, V), dtype=torch.bool)
    data = nb.Samples(nb.code_lists(past), past, visits, none, none, torch.arange(5), torch.zeros(5))
    with torch.no_grad():
        logits, loss = net(data.batch(torch.arange(5).expand(2, -1)))
        single = nb.ARCI(1, torch.Generator(), V, 16).eval()
        single.load_state_dict({name: value[:1] for name, value in net.state_dict().items()})
        for b, patient in enumerate(patients):
            wanted, contrast = plain_arci(single, patient, V)
            torch.testing.assert_close(logits[0, b].double(), wanted, atol=1e-5, rtol=1e-5)
            assert float(loss[0, b]) == pytest.approx(contrast, abs=1e-4)


def test_order_and_company_do_not_matter(nb, patients):
    data = nb.build(torch.as_tensor(patients[1]), new=True)
    net = nb.ARCI(2, torch.Generator().manual_seed(1), 132, 16).eval()
    rows = torch.arange(20).expand(2, -1)
    with torch.no_grad():
        together = net(data.batch(rows))[0]
        for b in (0, 7, 19):
            alone = net(data.batch(rows[:, b : b + 1]))[0]
            torch.testing.assert_close(alone[:, 0], together[:, b], atol=1e-5, rtol=1e-5)
        turned = [c.flip(1) for c in data.codes]  # real codes the other way round, padding still behind
        turned = [c.gather(1, (c == 0).int().argsort(dim=1, stable=True)) for c in turned]
        turned = nb.Samples(turned, *(getattr(data, k) for k in list(vars(data))[1:]))
        torch.testing.assert_close(net(turned.batch(rows))[0], together, atol=1e-5, rtol=1e-5)


def test_transformer_equals_the_one_of_pytorch(nb):
    """PyTorch's attention and normalisation with the same weights, on patients of one to four visits."""
    net, visits = nb.Transformer(1, torch.Generator().manual_seed(0), 9, 8, dropout=0.0).eval(), [4, 3, 2, 1]
    real = torch.arange(4) < torch.tensor(visits)[:, None]
    x = torch.randn((4, 4, 8), generator=torch.Generator().manual_seed(1)) * real[..., None]
    theirs, linears = nn.MultiheadAttention(8, 4, batch_first=True), (net.query, net.key, net.value)
    theirs.in_proj_weight.data = torch.cat([part.weight[0].T for part in linears])
    theirs.in_proj_bias.data = torch.cat([part.bias[0, 0] for part in linears])
    theirs.out_proj.weight.data, theirs.out_proj.bias.data = torch.eye(8), torch.zeros(8)
    found = net.read(x[None], nb.Batch([], None, torch.tensor([visits])))[0]
    for b, n in enumerate(visits):
        rows = (x[b, :n] + net.place[0, :n].flip(0))[None]  # the last visit has place 0
        rows = nn.functional.layer_norm(rows + theirs(rows, rows, rows)[0], (8,))
        dense = (rows @ net.wide.weight + net.wide.bias).relu() @ net.narrow.weight + net.narrow.bias
        wanted = nn.functional.layer_norm(rows + dense, (8,))[0, -1]
        torch.testing.assert_close(found[b], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["ARCI", *RIVALS])
def test_runs_do_not_touch_each_other(nb, patients, name):
    data = nb.build(torch.as_tensor(patients[1]), new=True)
    net = getattr(nb, name)(2, torch.Generator().manual_seed(1), 132, 16, dropout=0.0)
    rows = torch.stack([torch.arange(8), torch.arange(20, 28)])
    found = []
    for other in (rows[1], torch.arange(40, 48)):
        net.zero_grad()
        both = torch.stack([rows[0], other])
        nb.loss_of(net, data.batch(both), data.y[both], 0.2).backward()
        found.append([None if p.grad is None else p.grad[0].clone() for p in net.parameters()])
    for a, b in zip(*found, strict=True):
        assert a is None or torch.allclose(a, b, atol=1e-6)


def test_retain_layer_equals_the_library(nb):
    """PyHealth's order and softmax behind `released`; the right ones differ where visits are missing."""
    wanted = torch.tensor(GOLDEN["retain_layer"]["out"])
    draw = lambda s, *shape: torch.tensor(np.random.RandomState(s).randn(*shape) / 2, dtype=torch.float32)  # noqa: E731
    visits = torch.tensor([4, 3, 2, 1])
    x = draw(220, 4, 4, 4) * (torch.arange(4) < visits[:, None])[..., None]
    found = {}
    for released in (True, False):
        layer = nb.RetainLayer(1, torch.Generator(), 4, released)
        for start, name, out in ((200, "alpha", 1), (210, "beta", 4)):
            gru, linear = getattr(layer, f"{name}_gru"), getattr(layer, name)
            for k, part in enumerate((gru.input, gru.state)):
                part.weight.data = draw(start + k, 12, 4).T[None]
                part.bias.data = draw(start + 2 + k, 12)[None, None]
            linear.weight.data = draw(start + 4, out, 4).T[None]
            linear.bias.data = draw(start + 5, out)[None, None]
        found[released] = layer(x[None], visits[None])[0].detach()
    torch.testing.assert_close(found[True], wanted, atol=2e-6, rtol=1e-5)
    assert not torch.allclose(found[False], wanted, atol=1e-2)


def test_memory_layer_equals_the_library(nb, monkeypatch):
    """GAMENet's layer with a bank in place of its graphs, on patients whose four places are filled."""
    draw = lambda s, *shape: torch.tensor(np.random.RandomState(s).randn(*shape) / 2, dtype=torch.float32)  # noqa: E731
    net = nb.Memory(1, torch.Generator(), 6, 4, dropout=0.0)
    net.bank.data = draw(300, 6, 4)[None]
    net.out.weight.data, net.out.bias.data = draw(302, 6, 12).T[None], draw(303, 6)[None, None]
    monkeypatch.setattr(net.gru, "forward", lambda _: draw(301, 5, 4, 4)[None])
    past = (draw(304, 5, 4, 6) > 0.1).float()
    with torch.no_grad():
        found = net(nb.Batch([], past[None], torch.full((1, 5), 4)))[0][0].sigmoid()
    torch.testing.assert_close(found, torch.tensor(GOLDEN["memory_layer"]["out"]), atol=2e-6, rtol=1e-5)


def plain_states(gru, rows):
    """States of a recurrent unit over rows (dim,), with loops, in float64."""
    use = lambda part, x: x @ part.weight[0].double() + part.bias[0, 0].double()  # noqa: E731
    d, states = len(rows[0]), [torch.zeros(len(rows[0]), dtype=torch.double)]
    for x in rows:
        r, z, n = use(gru.input, x).split(d)
        hr, hz, hn = use(gru.state, states[-1]).split(d)
        update, new = torch.sigmoid(z + hz), torch.tanh(n + torch.sigmoid(r + hr) * hn)
        states.append(update * states[-1] + (1 - update) * new)
    return states[1:]


def plain_memory(net, sums, given):
    """What the memory reads for one patient: query, bank, own visits; sums (t, dim), given (t, vocab)."""
    states, bank = plain_states(net.gru, sums), net.bank[0].double()
    query, own = states[-1], torch.zeros(len(bank), dtype=torch.double)
    known = sum(w * row for w, row in zip((bank @ query).softmax(0), bank, strict=True))
    if len(sums) > 1:
        weights = torch.stack([state @ query for state in states[:-1]]).softmax(0)
        own = sum(w * later for w, later in zip(weights, given[1:], strict=True))
    return torch.cat([query, known, own @ bank])


def plain_retain(net, sums, _):
    """RETAIN's vector of one patient: both recurrent networks run from the last visit to the first."""
    layer, back = net.layer, sums.flip(0)
    use = lambda part, x: x @ part.weight[0].double() + part.bias[0, 0].double()  # noqa: E731
    alpha = torch.stack([use(layer.alpha, h)[0] for h in plain_states(layer.alpha_gru, back)]).softmax(0)
    beta = [torch.tanh(use(layer.beta, h)) for h in plain_states(layer.beta_gru, back)]
    return sum(a * b * x for a, b, x in zip(alpha, beta, back, strict=True))


@pytest.mark.parametrize(("name", "plain"), [("Memory", plain_memory), ("RETAIN", plain_retain)])
def test_simpler_networks_equal_a_loop_over_patients(nb, name, plain):
    """Patients of one to four visits, each by itself in float64; the golden values have four visits throughout."""
    net = getattr(nb, name)(1, torch.Generator().manual_seed(0), 12, 8, dropout=0.0).eval()
    past = torch.rand((9, 4, 12), generator=torch.Generator().manual_seed(1)) < 0.3
    visits = torch.tensor([4, 3, 2, 1, 1, 2, 3, 4, 2])
    past &= (torch.arange(4) < visits[:, None])[..., None]
    with torch.no_grad():
        logits = net(nb.Batch([], past[None].float(), visits[None]))[0][0]
        for row, given, n in zip(logits, past.double(), visits.tolist(), strict=True):
            read = plain(net, given[:n] @ net.weight[0].double(), given[:n])
            wanted = read @ net.out.weight[0].double() + net.out.bias[0, 0].double()
            torch.testing.assert_close(row.double(), wanted, atol=1e-5, rtol=1e-5)


def test_ranks_equal_the_released_ones_on_visits_with_enough_drugs(nb, choosing):
    """The release counts only visits with k true drugs; here all count, so the others are left out for once."""
    y, p, _ = golden_inputs()
    y, p = torch.tensor(y).bool(), torch.tensor(p)
    for name, empty in (("base", 0), ("five_empty_rows", 5)):
        wanted, true = GOLDEN["metrics"]["out"][name], y.clone()
        true[:empty] = False
        for k in (1, 3, 5):
            some = true.sum(1) >= k
            assert float(nb.ndcg_at(p, true, k)[some].mean()) == pytest.approx(wanted[f"NDCG@{k}"], abs=2e-6)
            assert float(choosing.hit_at(p, true, k, True).mean()) == pytest.approx(wanted[f"Hit@{k}"], abs=2e-6)
            usual = [bool(row[score.topk(k).indices].any()) for row, score in zip(true[some], p[some], strict=True)]
            assert float(choosing.hit_at(p, true, k, False).mean()) == pytest.approx(np.mean(usual))
        found = nb.recall_at(p, true, 3)[true.sum(1) >= 3].mean()
        assert float(found) == pytest.approx(wanted["Recall@3"], abs=2e-6)


def test_knobs_of_the_generator(nb):
    """Without kappa all profile drugs of a visit are pulled alike; without ladders the last visit changes nothing."""
    world = nb.make_world(np.random.default_rng(0))
    own, now = world.owner >= 0, np.random.default_rng(1).random((6, len(world.owner))) < 0.3
    for kappa, alike in ((0.0, True), (1.0, False)):
        pull = nb.generate(np.random.default_rng(2), 20, world, kappa=kappa).pull[..., own]
        assert bool(np.allclose(pull, pull[..., :1])) is alike
    habit, need, pull = np.zeros(now.shape), np.zeros((6, 1)), np.where(own, 1.0, 0.0)
    for ladder, alike in ((0.0, True), (0.2, False)):
        found = [nb.chance_of(world, habit, need, pull, one, ladder) for one in (now, ~now)]
        assert bool(np.allclose(*found)) is alike


def test_a_diverged_run_scores_nothing_and_harms_no_other(nb, patients):
    data = nb.build(torch.as_tensor(patients[1]), new=True)
    net, rows = nb.RETAIN(2, torch.Generator().manual_seed(1), 132, 16).eval(), torch.arange(8).expand(2, -1)
    before = nb.scores(net, data, rows)
    net.weight.data[0] = torch.nan
    found = nb.scores(net, data, rows)
    assert (found[0] == 0).all() and torch.equal(found[1], before[1])


def test_a_label_that_is_never_true(nb):
    """The regression and popularity give it next to no chance, and no NaN."""
    x, y = torch.rand((1, 30, 4), generator=torch.Generator().manual_seed(0)), torch.zeros((1, 30, 2))
    y[0, ::2, 1] = 1.0
    weight, bias = nb.logistic(x, y, 1.0)
    chance = (x @ weight + bias).sigmoid()
    assert (chance[..., 0] < 0.05).all() and chance.isfinite().all()


# PyHealth, where it is installed


@pytest.fixture
def pyhealth(monkeypatch):
    """Modules of PyHealth by path, executed by themselves: its package imports readers of raw data that we do not need.

    It is no extra of this book: PyHealth 1.1.6 asks for pandas below 2 and urllib3 up to 1.26.15, so no resolver finds
    it beside our pins. `pip install --no-deps pyhealth==1.1.6` is enough for these tests; they were passed with it.
    """
    found = importlib.util.find_spec("pyhealth")
    if found is None:
        pytest.skip("PyHealth is not installed: its pandas < 2 excludes the one of this book (use pip --no-deps)")
    names = {"pyhealth": {"BASE_CACHE_PATH": ""}, "pyhealth.medcode": {"ATC": None}}
    names |= {"pyhealth.datasets": {"SampleEHRDataset": None, "SampleBaseDataset": None}}
    names |= {"pyhealth.models": {"BaseModel": nn.Module}, "pyhealth.metrics": {"ddi_rate_score": None}}
    for name, values in names.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)

    def load(path):
        name = f"pyhealth.{path.replace('/', '.')}"
        spec = importlib.util.spec_from_file_location(name, Path(found.submodule_search_locations[0], f"{path}.py"))
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        setattr(sys.modules[name.rpartition(".")[0]], name.rpartition(".")[2], module)
        return module

    return load


def stack_of(linear, layer):
    """Give a linear layer of the library the weights of the first of our stacked ones."""
    linear.weight.data, linear.bias.data = layer.weight[0].detach().T.contiguous(), layer.bias[0, 0].detach()


def test_retain_equals_pyhealth(nb, pyhealth):
    """The library's layer on rows of one to four visits, ours behind `released`, the same weights."""
    ours = nb.RetainLayer(1, torch.Generator().manual_seed(0), 6, released=True)
    theirs = pyhealth("models/retain").RETAINLayer(6, dropout=0.0)
    for name in ("alpha", "beta"):
        gru, mine = getattr(theirs, f"{name}_gru"), getattr(ours, f"{name}_gru")
        for key, part in (("ih", mine.input), ("hh", mine.state)):
            getattr(gru, f"weight_{key}_l0").data = part.weight[0].detach().T.contiguous()
            getattr(gru, f"bias_{key}_l0").data = part.bias[0, 0].detach()
        stack_of(getattr(theirs, f"{name}_li"), getattr(ours, name))
    visits = torch.tensor([4, 2, 1, 3])
    mask = torch.arange(4) < visits[:, None]
    x = torch.randn((4, 4, 6), generator=torch.Generator().manual_seed(1)) * mask[..., None]
    torch.testing.assert_close(ours(x[None], visits[None])[0], theirs(x, mask), atol=1e-6, rtol=1e-5)


def test_memory_equals_pyhealth_without_graphs(nb, pyhealth, monkeypatch):
    """GAMENet's layer with a learned bank in place of its graphs, on patients whose four places are filled."""
    pyhealth("models/utils")
    net = nb.Memory(1, torch.Generator().manual_seed(0), 12, 8, dropout=0.0).eval()
    layer = pyhealth("models/gamenet").GAMENetLayer(8, torch.eye(12), torch.eye(12), dropout=0.0)
    monkeypatch.setattr(layer.ehr_gcn, "forward", lambda: net.bank[0])
    monkeypatch.setattr(layer.ddi_gcn, "forward", lambda: torch.zeros(12, 8))
    layer.beta.data.zero_()
    stack_of(layer.fc, net.out)
    past = torch.rand((5, 4, 12), generator=torch.Generator().manual_seed(1)) < 0.4
    batch = nb.Batch([], past[None].float(), torch.full((1, 5), 4))
    with torch.no_grad():
        states = net.gru(net.visits(batch))[0]
        given = torch.cat([past[:, 1:], past[:, :1]], 1).float()  # the layer leaves the last row out
        wanted = layer(states, given, torch.zeros(5, 12))[1]
        torch.testing.assert_close(net(batch)[0][0].sigmoid(), wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_measures_equal_pyhealth(nb, safety, pyhealth):
    """Average precision, sets and interaction rate, with ties, rows without a true drug, and empty sets."""
    y, p, pairs = golden_inputs()
    p, y = p.round(1), y & (np.arange(40)[:, None] > 3)
    p[10:14] = 0.0
    pyhealth("metrics/calibration")
    names = ["pr_auc_samples", "jaccard_samples", "f1_samples"]
    wanted = pyhealth("metrics/multilabel").multilabel_metrics_fn(y.astype(int), p, names, threshold=0.35)
    score, true = torch.tensor(p), torch.tensor(y)
    J = nb.jaccard(score > 0.35, true).double()
    found = [float(v.double().mean()) for v in (nb.average_precision(score, true), J, 2 * J / (1 + J))]
    assert found == pytest.approx([wanted[name] for name in names], abs=1e-6)
    lists = [np.flatnonzero(row) for row in p > 0.35]
    rate = pyhealth("metrics/drug_recommendation").ddi_rate_score(lists, pairs)
    assert safety.rate(safety.pair_counts(score > 0.35, torch.tensor(pairs)).numpy()) == pytest.approx(rate)


# One text in several notebooks


def test_shared_definitions_are_the_same_text():
    """What stands in several notebooks of the chapter must not drift apart."""
    import ast

    import nbformat

    def sources(name):
        cells = nbformat.read(Path(FOLDER, f"{name}.ipynb"), 4).cells
        nodes = (n for c in cells if c.cell_type == "code" for n in ast.parse(c.source).body)
        return {n.name: ast.dump(n) for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}

    main = sources("arci")
    network = ("Linear", "look_up", "attend", "VisitAttention", "PathAttention", "contrast", "GRU", "RetainLayer")
    network += ("Batch", "Dropout", "Levels", "ARCI", "code_lists", "loss_of", "clip", "average_precision", "Samples")
    network += ("build", "Task", "scores", "batches", "Watch", "going_on", "copies")
    world = ("World", "make_world", "Patients", "chance_of", "generate")
    own = ("Task", "joined", "numbered", "own_worlds")
    fits = ("Fit", "pieces", "learn", "fit_of", "fit_logistic", "features", "logistic", "chosen", "RETAIN")
    fits += ("SummedVisits",)
    for name, shared in (
        ("heads", network + world + own),
        ("choosing", (*network, *world, *own, *fits, "permuted", "fit_popularity", "jaccard")),
        ("safety", (*network, *world, *own, "features", "logistic", "jaccard")),
        ("demo", (*network, *fits, "jaccard")),
    ):
        other = sources(name)
        assert not [one for one in shared if other[one] != main[one]], name
    each = {name: sources(name) for name in ("heads", "safety")}
    for one in ("kept", "stacked"):
        assert each["heads"][one] == each["safety"][one]


def test_parts_leave_out_what_they_say(heads, nb, patients):
    """With all parts a variant is ARCI; without paths nothing passes on; the maps are those of the network."""
    data = nb.build(torch.as_tensor(patients[1]), new=True)
    rows = (data.visits > 1).nonzero()[:24, 0].expand(2, -1)  # with a path
    batch = data.batch(rows)

    def make(**options):
        return heads.Parts(2, torch.Generator().manual_seed(3), 132, 16, dropout=0.0, **options).eval()

    plain = nb.ARCI(2, torch.Generator().manual_seed(3), 132, 16, dropout=0.0).eval()
    with torch.no_grad():
        logits, apart = plain(batch)
        look = make().look(batch)  # a placebo has the intents of the patient before, in the same run
        anchors = look["projected intents"][:, torch.arange(-1, rows.shape[1] - 1)]
        wanted = sum(nb.contrast(anchors, look[f"projected {part}"]) for part in ("W", "context"))
        assert torch.allclose(make(placebo=True)(batch)[1], wanted, atol=1e-4)
        for options, alike in (({}, True), ({"placebo": True}, True), ({"paths": False}, False)):
            found = make(**options)(batch)
            assert torch.allclose(found[0], logits, atol=1e-5) == alike
            assert torch.allclose(found[1], apart, atol=1e-4) == (not options)
        assert float(make(heads=1)(batch)[1].abs().max()) == 0.0  # one head has no negatives
        first = data.batch(rows)
        first.codes[1:] = [torch.zeros_like(codes) for codes in first.codes[1:]]
        net = make(paths=False)
        assert torch.allclose(net.look(first)["C"][:, :, 0], net.look(batch)["C"][:, :, 0], atol=1e-6)
        for attention, codes in zip(heads.maps_of(plain, batch.codes), batch.codes[1:], strict=True):
            real = (codes > 0)[:, :, None].expand(attention.shape[:-1])
            assert torch.allclose(attention.sum(-1), real.float(), atol=1e-5)


@pytest.fixture(scope="module")
def two_worlds(nb):
    """Visits of two worlds, 28 patients each."""
    worlds = [nb.make_world(np.random.default_rng(k)) for k in range(2)]
    return [torch.as_tensor(nb.generate(np.random.default_rng(k + 9), 28, w).visits) for k, w in enumerate(worlds)]


def test_own_worlds_keep_runs_apart(nb, two_worlds):
    task = nb.own_worlds(True, two_worlds, 20, 20)
    first = int((task.rows[0] >= 0).sum())
    assert first == task.rows.shape[1] and task.rows[0].max() < task.rows[1].min()
    assert task.tested[0].max() < task.tested[1].min() and task.rows.max() < len(task.train.y)
    for r in range(2):
        own = task.train.patient[task.rows[r]], task.train.patient[task.held[r]]
        assert not np.intersect1d(*own).size and len(own[1].unique()) <= 4
        alone = nb.build(two_worlds[r][20:], True)
        offset = int(task.tested[r].min()) if r == 0 else len(nb.build(two_worlds[0][20:], True).y)
        assert torch.equal(task.test.y[task.tested[r]], alone.y[task.tested[r] - offset])
    small = nb.own_worlds(True, two_worlds, 10, 20)  # nested sizes: the same test, the first patients
    assert torch.equal(small.tested, task.tested) and small.train.patient.max() < 10


def test_what_is_cut_is_a_random_part(nb, two_worlds):
    """Runs have equally many rows; the late visits must not be the ones that are lost."""
    task = nb.own_worlds(True, two_worlds, 20, 20)
    lost = [n for n in range(len(task.train.y)) if n not in set(torch.cat([*task.rows, *task.held]).tolist())]
    assert lost and min(task.train.when[task.rows.max(1).values]) >= 0
    samples = [SimpleNamespace(y=torch.zeros(400)), SimpleNamespace(y=torch.zeros(100))]
    rows = nb.numbered(samples, [torch.arange(400), torch.arange(100)])
    assert rows.shape == (2, 100) and len(set(rows[0].tolist())) == 100 and rows[1].min() >= 400
    assert rows[0].float().mean() == pytest.approx(200, abs=40)  # not the first hundred
    for rows in (*task.rows, *task.held):
        assert len(rows.unique()) == len(rows) and not torch.equal(rows, rows.sort().values)


# Models, training and choosing


def test_logistic_regression_has_no_gradient_left(nb, patients):
    data = nb.build(torch.as_tensor(patients[1]), new=True)
    x, y = nb.features(data)[None], data.y.float()[None]
    weight, bias = nb.logistic(x, y, 0.1)
    p = torch.baddbmm(bias, x, weight).sigmoid()
    gradient = x[0].T @ (p - y)[0] + weight[0] / 0.1
    assert float(gradient.abs().max()) < 0.05  # of a sum over all samples


def test_every_model_learns_and_bars_what_was_seen(nb, patients):
    visits = torch.as_tensor(patients[1])
    task = nb.own_worlds(True, [visits, visits.flip(0)], 40, 40)
    assert not np.intersect1d(task.train.patient[task.rows[0]], task.train.patient[task.held[0]]).size
    setting = {"rate": 0.01, "dropout": 0.1}
    fits = [nb.learn(getattr(nb, k), task, setting, "s", 0.2) for k in ("ARCI", *RIVALS)]
    assert [fit.steps.tolist() for fit in fits] == [[2, 4]] * 4
    fits += [nb.fit_logistic(task, {"C": 0.1}), nb.fit_popularity(task)]
    for fit in fits:
        assert torch.isfinite(fit.held).all() and torch.isfinite(fit.test).all()
        assert (fit.scores[task.test.barred[task.tested]] == 0).all()
    one = nb.learn(nb.RETAIN, task, setting, "s")
    assert torch.equal(one.scores, fits[1].scores)  # the same stream, the same numbers


def test_a_setting_is_chosen_by_validation(nb):
    """The setting that is better on validation is worse on test, run by run the other way round."""
    held = torch.tensor([[0.3, 0.2]]), torch.tensor([[0.2, 0.4]])
    fits = [nb.Fit(torch.ones(1), one, 1 - one[..., None], *[torch.full((2,), k)] * 3) for k, one in enumerate(held)]
    assert nb.chosen(fits, "scores").tolist() == [0, 1]


def test_measures_keep_starts_and_worlds_apart(nb, two_worlds):
    """Only the second world's first training is right; the threshold is that of validation, though it fails on test."""
    task = nb.own_worlds(True, two_worlds, 20, 20)
    y, answers = (data.y[rows].float() for data, rows in ((task.test, task.tested), (task.train, task.held)))
    found = torch.cat([1 - y, 1 - y])  # runs: start 0 of both worlds, start 1 of both worlds
    found[1] = y[1]
    looks = torch.zeros(1, 4)
    fit = nb.Fit(
        torch.ones(1), looks, looks[..., None], 0.6 + 0.3 * answers.repeat(2, 1, 1), 0.1 + 0.3 * found, looks[0]
    )
    given = SIZES | {"tasks": {"sums": task}, "found": {("sums", "ARCI"): [fit]}, "GRID": torch.arange(0.02, 0.8, 0.02)}
    values = lift(f"{FOLDER}/arci.ipynb", ["measured"], given).measured("sums", "ARCI")
    precision = values["average precision"].mean(2)
    assert precision.shape == (2, 2) and precision[0, 1] == pytest.approx(1)
    assert np.delete(precision.ravel(), 1).max() < 0.5
    assert values["Jaccard"].max() == 0  # nothing on test is above .6


def test_each_run_of_a_stack_has_its_own_dropout(nb):
    """Run 0 keeps all numbers, run 1 loses half of them and doubles the rest; at work nothing is lost."""
    layer = nb.Dropout(torch.tensor([0.0, 0.5]), torch.Generator().manual_seed(0)).train()
    x = torch.ones(2, 40, 30)
    found = layer(x)
    assert torch.equal(found[0], x[0]) and set(found[1].unique().tolist()) == {0.0, 2.0}
    assert float(found[1].mean()) == pytest.approx(1, abs=0.1)
    assert layer.train()(x.bfloat16()).dtype == torch.bfloat16
    assert layer.eval()(x) is x and nb.Dropout(0.0, torch.Generator()).train()(x) is x


def test_a_stack_is_put_together_and_taken_apart(nb, two_worlds):
    """Copies keep the rows of their run; the parts of a stack are its groups of runs, in order."""
    task = nb.own_worlds(True, two_worlds, 20, 20)
    many = nb.copies(task, 3)
    for name in ("rows", "held", "tested"):
        assert torch.equal(getattr(many, name)[4:6], getattr(task, name)) and len(getattr(many, name)) == 6
    fit = nb.learn(nb.RETAIN, many, {"rate": 0.01, "dropout": torch.tensor([0.0, 0.0, 0.1, 0.1, 0.5, 0.5])}, "s")
    parts = nb.pieces(fit, 3)
    for name, axis in (("held", 1), ("test", 1), ("held_scores", 0), ("scores", 0), ("clipped", 0)):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts], axis), getattr(fit, name)), name
    assert [part.scores.shape[0] for part in parts] == [2] * 3 and torch.equal(parts[2].scores, fit.scores[4:])
    assert not torch.equal(parts[0].scores, parts[1].scores)  # starts of their own


def test_settings_starts_and_worlds_keep_their_places_in_a_stack(nb, two_worlds):
    """Two rates, two dropout rates, two starts, two worlds: what comes back as a setting was trained with it."""
    settings = [{"rate": rate, "dropout": drop} for rate in (0.01, 0.02) for drop in (0.1, 0.5)]
    task, seen = nb.own_worlds(True, two_worlds, 20, 20), []
    mixed = replace(task, train=replace(task.train))  # the twin's answers

    def kept(name, make):
        _, stack, setting, stream, weight = make.args
        seen.append((name, setting["rate"], weight))
        assert stream == name and torch.equal(stack.rows, task.rows.repeat(len(setting["dropout"]) // 2, 1))
        assert stack.train is (mixed.train if "twin" in name else task.train)
        mark = setting["rate"] * 100 + setting["dropout"]
        looks = torch.zeros(1, len(mark))
        return nb.Fit(torch.ones(1), looks, looks[..., None], mark[:, None, None], mark[:, None, None], mark)

    given = {"SETTINGS": settings, "NETWORKS": {"ARCI": None}, "tasks": {"sums": task, "switches": task}, "found": {}}
    given |= {"kept": kept, "starts": 2, "permuted": lambda one: mixed, "n_worlds": 2}
    page = lift(f"{FOLDER}/arci.ipynb", ["fits"], SIZES | given)
    for case, runs in (("sums", 4), ("switches", 2)):
        trials = given["found"][case, "ARCI"] = page.fits("ARCI", case)
        for one, fit in zip(settings, trials, strict=True):
            assert fit.clipped.tolist() == pytest.approx([one["rate"] * 100 + one["dropout"]] * runs)
    trials[2].held[:] = 1.0  # the best setting by validation: the one of the twin, once in each world
    (twin,) = page.fits("ARCI, twin", "switches")
    assert twin.clipped.tolist() == pytest.approx([2.1, 2.1])
    assert {weight for *_, weight in seen} == {0.2} and len({name for name, *_ in seen}) == 5


@pytest.mark.parametrize("notebook", ["heads", "safety"])
def test_dropout_rates_of_a_stack_meet_every_world(notebook, two_worlds):
    """Runs are dealt rate by rate, worlds in order within a rate; so are the interactions of the worlds."""
    seen = {"pairs": []}
    given = {"term_steps": 2, "variant_steps": 2, "check": 1, "VOCAB": two_worlds[0].shape[2], "n_worlds": 2}
    given |= {"VARIANTS": {"x": ({}, 0.2)}, "clip": lambda net: None}
    P = torch.stack([torch.eye(132), torch.ones(132, 132)])

    def gated_term(logits, weight, gated, pairs):
        seen["pairs"].append(pairs)
        return 5 * logits.sum(), torch.ones(len(logits))

    def rising(p, y):  # each look is better than the last
        seen["looks"] = seen.get("looks", 0) + 1
        return torch.full(y.shape[:2], float(seen["looks"]))

    page = lift(f"{FOLDER}/{notebook}.ipynb", ["own_worlds", "ARCI", "learn", "copies"], SIZES | given | {
        "task": None, "tasks": {}, "SETTINGS": {"x": (0.05, True, P)}, "gated_term": gated_term,
        "batch_size": 8})  # fmt: skip
    space, task = page.learn.__globals__, page.own_worlds(True, two_worlds, 20, 20)
    space |= {"task": task, "tasks": {"k": task}, "average_precision": rising}
    name, made = ("Parts", space["Parts"]) if notebook == "heads" else ("ARCI", space["ARCI"])
    space[name] = lambda *sizes, **options: seen.update(options, runs=sizes[0]) or made(*sizes, **options)
    found = page.learn(*(("k", "x") if notebook == "heads" else ("x",)), 0.01, [0.1, 0.5])
    assert seen["runs"] == 4 and seen["dropout"].tolist() == pytest.approx([0.1, 0.1, 0.5, 0.5])
    assert found["whole steps"].tolist() == [2] * 4 and found["half steps"].tolist() == [1] * 4
    if notebook == "safety":
        assert torch.equal(seen["pairs"][0], torch.cat([P, P]))
        space["SETTINGS"]["none"] = (0.0, True, P)  # the same start and batches without the term
        assert not torch.allclose(
            page.learn("none", 0.01, [0.1, 0.5])["whole scores"], found["whole scores"], atol=0.01
        )


@pytest.mark.parametrize("notebook", ["choosing", "demo"])
def test_settings_keep_their_runs_on_other_pages(nb, two_worlds, notebook):
    task = nb.own_worlds(True, two_worlds, 20, 20)

    def kept(name, make):
        setting, looks = make.args[2], torch.zeros(1, 4)
        assert torch.equal(make.args[1].rows, task.rows.repeat(2, 1))
        return nb.Fit(
            torch.ones(1), looks, looks[..., None], *[setting["dropout"][:, None, None]] * 2, setting["dropout"]
        )

    given = {
        "rates": [0.01],
        "dropouts": [0.1, 0.5],
        "kept": kept,
        "SETTINGS": [{"rate": 0.01, "dropout": d} for d in (0.1, 0.5)],
    }
    if notebook == "choosing":
        trials = lift(f"{FOLDER}/choosing.ipynb", ["fits"], SIZES | given).fits("ARCI", task, "s", given["SETTINGS"])
    else:
        source = {c["id"]: "".join(c["source"]) for c in json.loads(Path(FOLDER, "demo.ipynb").read_text())["cells"]}
        space = vars(lift(f"{FOLDER}/demo.ipynb", ["copies", "pieces", "ARCI", "RETAIN", "learn"], SIZES | given))
        space |= vars(lift(f"{FOLDER}/demo.ipynb", ["copies"], SIZES)) | given | SIZES | {"found": {}, "penalties": []}
        tools = {"product": product, "torch": torch, "partial": partial, "tqdm": lambda plan, **_: plan}
        space |= tools | {"RUNS": [0, 1], "folds": task, "task": "all", "fit_logistic": None}
        exec(source["trainings"], space)
        trials = space["found"]["ARCI"]
    assert [fit.clipped.tolist() for fit in trials] == [pytest.approx([d, d]) for d in (0.1, 0.5)]


def test_copy_and_regression_are_tuned_on_validation(safety):
    """Threshold and penalty that are best on validation and wrong on test are taken."""
    answers = torch.tensor([[[True, False]] * 3])
    given = {"GRID": torch.arange(0.05, 0.8, 0.025), "answers": answers, "truth": answers}
    page = lift(f"{FOLDER}/safety.ipynb", ["set_overlap"], SIZES | given)
    held, scores = (torch.tensor([[p] * 3]) for p in ([0.75, 0.55], [0.45, 0.3]))
    assert page.set_overlap({"held": held, "scores": scores}).tolist() == [0.0]  # above .55 there is nothing on test
    source = {c["id"]: "".join(c["source"]) for c in json.loads(Path(FOLDER, "safety.ipynb").read_text())["cells"]}
    data = SimpleNamespace(y=torch.zeros(4, 2, dtype=torch.bool))
    rows = {"rows": torch.tensor([[0, 1]]), "held": torch.tensor([[0, 1, 2]]), "tested": torch.tensor([[2, 3]])}
    space = {"torch": torch, "np": np, "Tensor": torch.Tensor, "VOCAB": 2, "term_penalties": [0.1, 1.0, 3.0]}
    space |= {"task": SimpleNamespace(train=data, test=data, **rows), "truth": data.y[rows["tested"]]}
    space |= {"features": lambda data: torch.zeros(len(data.y), 4)}
    space["logistic"] = lambda x, y, C: (torch.zeros(1, 4, 2), torch.full((1, 1, 2), C))
    space["average_precision"] = lambda p, y: -(p.logit() - 1).abs().mean(2) if p.shape[1] == 3 else p.mean(2)
    exec(source["simple-models"], space)
    assert torch.allclose(space["simple"]["logistic"].logit(), torch.tensor(1.0))


def test_watch_keeps_the_best_look_before_each_stop(nb, monkeypatch):
    """Run 0 is best at the second look, run 1 at the first; what comes after a stop does not count."""
    rows, now = torch.zeros(2, 3, dtype=torch.long), {}
    part = SimpleNamespace(y=torch.zeros(9, 4))
    watch = nb.Watch(SimpleNamespace(train=part, test=part, rows=rows, held=rows, tested=rows))
    space = nb.Watch.look.__globals__
    monkeypatch.setitem(space, "patience", 2)
    monkeypatch.setitem(space, "scores", lambda *_: torch.full((2, 3, 4), float(now["step"])))
    monkeypatch.setitem(space, "average_precision", lambda *_: torch.tensor(now["held"])[:, None])
    wanted = [[True, True], [True, False], [False, False], [False, False]]
    for step, held in enumerate([[0.1, 0.5], [0.3, 0.4], [0.2, 0.3], [0.2, 0.9]]):
        now |= {"step": step, "held": held}
        assert watch.look(None, step).tolist() == wanted[step]
    assert watch.done.all() and watch.top.tolist() == pytest.approx([0.3, 0.5])
    assert [kept[:, 0, 0].tolist() for kept in watch.kept] == [[1, 0]] * 2
    assert torch.stack(watch.held).argmax(0).tolist() == [1, 0]


def test_popularity_ranks_by_counts(nb, patients):
    visits = torch.as_tensor(patients[1])
    task = nb.own_worlds(False, [visits, visits.flip(0)], 40, 40)
    fit, popular = nb.fit_popularity(task), task.train.y[task.rows[0]].float().mean(0)
    assert popular[fit.scores[0, 0].argmax()] == popular.max()


def test_a_copy_is_the_last_shown_visit(nb):
    """Three visits of five drugs: the second one is copied for the third, whatever the first one had."""
    visits = torch.zeros(2, 3, 5, dtype=torch.bool)
    visits[0, 0, [0, 1]] = visits[0, 1, [1, 2]] = visits[0, 2, [1, 2, 3]] = True
    visits[1, 0, [4]] = visits[1, 1, [0, 4]] = visits[1, 2, [0]] = True
    data = nb.build(visits, new=False)
    for row, (person, when) in enumerate(zip(data.patient.tolist(), data.when.tolist(), strict=True)):
        assert torch.equal(nb.features(data)[row, 5:].bool(), visits[person, when - 1])
        assert torch.equal(nb.features(data)[row, :5].bool(), visits[person, :when].any(0))
    assert sorted(data.when.tolist()) == [1, 1, 2, 2]


def test_copies_and_counts_of_the_demo(nb):
    """The set of a copy is the last visit, the rest follows by popularity; popularity has one set for all."""
    visits = torch.zeros(3, 2, 6, dtype=torch.bool)
    visits[:, :, 0] = visits[0, :, 1] = visits[1, :, 2] = visits[2, 1, 2] = True
    data, one = nb.build(visits, new=False), torch.tensor([[0, 1, 2]])
    given = {"folds": nb.Task(data, data, one, one, one), "data": data, "task": "all", "RUNS": [(0, 0)], "V": 6}
    given |= {"hot": visits.flatten(0, 1).numpy(), "person": np.repeat(np.arange(3), 2), "owner": np.arange(3)}
    page = lift(f"{FOLDER}/demo.ipynb", ("fit_counts",), SIZES | given | vars(nb))
    scores = {copy: page.fit_counts(copy=copy).scores[0] for copy in (True, False)}
    assert torch.equal(scores[True] > 0.495, visits[:, 0])
    assert scores[True][0].argsort(descending=True)[:3].tolist() == [0, 1, 2]
    assert (scores[False] > 0.495).tolist() == [[True, False, True, False, False, False]] * 3  # two a visit, rounded


def test_permuted_answers_keep_what_is_barred(nb, patients):
    visits = torch.as_tensor(patients[1])
    task = nb.own_worlds(True, [visits, visits.flip(0)], 40, 40)
    mixed = nb.permuted(task)
    assert not (mixed.train.y & mixed.train.barred).any() and mixed.test is task.test
    assert torch.equal(mixed.train.past, task.train.past) and not torch.equal(mixed.train.y, task.train.y)
    for one in torch.cat([task.rows, task.held], 1):  # answers stay in their world
        assert torch.equal(mixed.train.y[one].sum(0), task.train.y[one].sum(0))


def test_columns_that_a_sum_cannot_make(nb, monkeypatch):
    """Exactly one of two keys, by the world of each run; a regression that is given them finds a pure product."""
    worlds = [SimpleNamespace(keys=np.array([[0, 1], [2, 3]])), SimpleNamespace(keys=np.array([[3, 0], [1, 2]]))]
    monkeypatch.setitem(nb.exactly_one.__globals__, "worlds", worlds)
    past = torch.zeros(3, 4, 6, dtype=torch.bool)
    past[0, 0, 0] = past[1, 0, 0] = past[1, 2, 1] = past[2, 3, 2] = True
    found = nb.exactly_one(SimpleNamespace(past=past), torch.tensor([[0, 1, 2], [2, 1, 0]]))
    assert found.tolist() == [[[1, 0], [0, 0], [0, 1]], [[0, 1], [1, 1], [1, 0]]]


def test_a_verdict_is_stretched_by_what_still_moves(heads):
    from helpers.stats import Estimate

    for half, low, high in ((0.2, 0.1, 0.3), (0.0, 0.1, 0.5), (0.5, -0.2, 0.3)):  # rose by .2, fell by .3
        found = heads.going_on(Estimate(0.2, 0.1, 0.3, 4), half)
        assert (found.value, found.low, found.high) == pytest.approx((0.2, low, high))


def test_a_closed_gate_decides_nothing(nb):
    from helpers.stats import Estimate

    for low, high in ((0.1, 0.3), (-0.3, -0.1), (-0.1, 0.1)):
        closed = nb.guarded(Estimate((low + high) / 2, low, high, 9), False)
        assert closed.low <= 0 <= closed.high and closed.value == (low + high) / 2
        assert nb.guarded(closed, True) is closed


def test_finished_trainings_are_kept(nb, tmp_path, monkeypatch):
    """A second start takes what the first has finished; other parameters start anew."""
    fit = nb.Fit(*(torch.rand(2, 3) for _ in range(6)))
    for where, makes in (({"a": 1}, 1), ({"a": 1}, 0), ({"a": 2}, 1)):
        made = []
        monkeypatch.setitem(nb.kept.__globals__, "work", tmp_path / "work")
        monkeypatch.setitem(nb.kept.__globals__, "others", where)
        monkeypatch.setitem(nb.kept.__globals__, "preset", "full")
        found = nb.kept("one", lambda: made.append(1) or fit)  # noqa: B023
        assert len(made) == makes and torch.equal(found.test, fit.test)


def test_map_reads_curves_up_to_the_budget(nb):
    held = torch.tensor([[0.1, 0.3], [0.2, 0.1], [0.9, 0.2]])
    test = torch.arange(6.0).view(3, 2, 1)
    fit = nb.Fit(torch.tensor([10, 20, 30]), held, test, *[torch.zeros(2)] * 3)
    other = nb.Fit(fit.steps, held - 0.05, test + 10, *[torch.zeros(2)] * 3)
    for budget, top, score in ((10, [0.1, 0.3], [0, 1]), (20, [0.2, 0.3], [2, 1]), (99, [0.9, 0.3], [4, 1])):
        found = nb.until([other, fit], budget)  # one start in each of two worlds
        assert found[0].shape == (1, 2) and found[1].shape == (1, 2, 1)
        assert found[0][0].tolist() == pytest.approx(top) and found[1][0, :, 0].tolist() == score


def test_measures_against_scikit_learn_with_ties_and_empties(nb):
    rng = np.random.default_rng(0)
    p, y = rng.random((200, 15)).round(1), rng.random((200, 15)) < 0.2
    found = nb.average_precision(torch.tensor(p), torch.tensor(y))
    for row in range(200):
        wanted = average_precision_score(y[row], p[row]) if y[row].any() else 0.0
        assert float(found[row]) == pytest.approx(wanted, abs=1e-6)
    sets = p > 0.6
    wanted = [jaccard_score(a, b, zero_division=0) for a, b in zip(y, sets, strict=True)]
    np.testing.assert_allclose(nb.jaccard(torch.tensor(sets), torch.tensor(y)), wanted, atol=1e-6)
    assert float(nb.recall_at(torch.tensor(p), torch.tensor(y), 15)[y.any(1)].min()) == 1


def test_optimism_of_noise_and_of_nothing(choosing):
    """Of independent looks the best is lucky by the expected maximum; where looks are alike there is no luck."""
    people, rng = np.repeat(np.arange(300), 2), np.random.default_rng(0)
    people = np.broadcast_to(people, (40, 600))
    assert (choosing.optimism(np.ones((5, 2, 600)), people[:2], 2) == 0).all()
    noise = np.repeat(rng.normal(size=(6, 40, 300)), 2, 2)  # both samples of a patient share their luck
    for groups in (2, 4):
        found = choosing.optimism(noise, people, groups).mean()
        assert found == pytest.approx(1.267 / np.sqrt(300 / groups), rel=0.15)
    better = np.stack([np.ones((2, 600)), np.zeros((2, 600))])  # one look is better for everybody
    assert (choosing.optimism(better, people[:2], 2) == 0).all()


def test_oracle_beats_any_sum_where_sums_fail(nb):
    """The chance of the oracle is calibrated, and in the world of switches the keys decide."""
    world = nb.make_world(np.random.default_rng(0))
    for knobs in ({}, {"switches": True}):
        patients = nb.generate(np.random.default_rng(1), 400, world, **knobs)
        chance = nb.oracle(patients, world)
        earlier = np.logical_or.accumulate(patients.visits, 1)
        earlier = np.concatenate([np.zeros_like(earlier[:, :1]), earlier[:, :-1]], 1)
        free = ~earlier & patients.visits.any(2)[..., None] & (world.owner >= 0)
        assert patients.visits[free].mean() == pytest.approx(chance[free].mean(), rel=0.1)
    on = np.logical_xor(*patients.visits[:, 0][:, world.keys.T].transpose(1, 0, 2))
    assert ((patients.pull[:, 1][:, [np.flatnonzero(world.owner == k)[0] for k in range(4)]] > 0) == on).all()
    assert abs(on.mean() - 0.5) < 0.1


def test_planted_interactions_give_a_conflict(safety):
    """In every world prescribed pairs interact more often than pairs at random, and above the released gate."""
    rates = []
    for k in range(6):
        world = safety.make_world(np.random.default_rng(k))
        visits = safety.generate(np.random.default_rng(k + 50), 80, world).visits
        sets = torch.tensor(visits[visits.any(2)])
        rates.append(safety.rate(safety.pair_counts(sets, torch.tensor(world.interact)).numpy()))
        assert rates[-1] > world.interact.sum() / (132 * 131)
    assert 0.045 < np.mean(rates) < 0.075  # the open sample has .059


def test_term_of_a_closed_gate_is_left_out(safety):
    pairs = torch.zeros(2, 4, 4)
    pairs[0, 0, 1] = pairs[0, 1, 0] = 1.0  # run 0 has an interacting pair among its likely drugs, run 1 has none
    logits = torch.tensor([2.0, 2.0, -3.0, -3.0]).expand(2, 3, 4).clone().requires_grad_()
    term, is_open = safety.gated_term(logits, 0.05, True, pairs)
    p = logits[0].sigmoid().detach()
    assert is_open.tolist() == [1, 0]
    assert float(term) == pytest.approx(0.05 * float(safety.interaction_term(p, pairs[0])), rel=1e-5)
    assert safety.gated_term(logits, 0.05, False, pairs)[1].tolist() == [1, 1]


def test_gradients_are_clipped_run_by_run(nb):
    layer = nb.Linear(2, torch.Generator().manual_seed(0), 3, 3)
    x = torch.stack([torch.ones(5, 3), 0.001 * torch.ones(5, 3)])
    (layer(x) ** 2).sum().backward()
    before = [p.grad.clone() for p in layer.parameters()]
    norms = nb.clip(layer)
    wanted = [torch.sqrt(sum((g[r] ** 2).sum() for g in before)) for r in range(2)]
    torch.testing.assert_close(norms, torch.stack(wanted))
    after = [torch.sqrt(sum((p.grad[r] ** 2).sum() for p in layer.parameters())) for r in range(2)]
    assert all(float(a) == pytest.approx(min(float(w), 1.0), rel=1e-5) for a, w in zip(after, wanted, strict=True))


@pytest.mark.parametrize("notebook", ["heads", "safety"])
def test_each_budget_has_its_own_best_setting(notebook):
    """Run 0 is best with the second setting at the end and with the first one after half; run 1 the other way round."""
    tops = {"first": ([1.0, 9.0], [8.0, 1.0]), "second": ([5.0, 2.0], [3.0, 7.0])}  # whole, half

    def kept(name, _):  # one stack for both settings
        both = zip(*tops.values(), strict=True)
        found = {f"{w} top": torch.tensor([*a, *b]) for w, (a, b) in zip(("whole", "half"), both, strict=True)}
        return found | {f"{w} mark": torch.tensor([1.0, 1.0, 2.0, 2.0]) for w in ("whole", "half")}

    settings = [{"rate": 0.01, "dropout": 0.1}, {"rate": 0.01, "dropout": 0.5}]
    grid = {"SETTINGS": settings, "TRIED": settings, "CLAIMED": ("none",), "suits": {}}
    grid |= {"kept": kept, "learn": print, "WHENS": ("whole", "half")}
    chosen = lift(f"{FOLDER}/{notebook}.ipynb", ["chosen"], SIZES | grid).chosen
    found = chosen("profiles", "x") if notebook == "heads" else chosen("none")
    assert found["whole"]["mark"].tolist() == [2, 1] and found["half"]["mark"].tolist() == [1, 2]
    assert found["whole"]["top"].tolist() == [5, 9] and list(grid["suits"].values()) == settings[:1]


def test_measures_of_heads(heads):
    rng = np.random.default_rng(0)
    same = torch.full((2, 3, 4, 2, 5), 0.2)
    codes = [torch.ones(2, 3, 5, dtype=torch.long)]
    assert np.allclose(heads.mean_of(heads.divergence([same])), 0, atol=1e-6)
    assert np.allclose(heads.mean_of(heads.sharpness([same], codes)), 0, atol=1e-6)
    one = nn.functional.one_hot(torch.zeros(2, 3, 4, 2, dtype=torch.long), 5).float()
    assert np.allclose(
        heads.mean_of(heads.sharpness([one], codes)), 1
    )  # weights that underflowed still count as places
    two = torch.tensor([0.999, 0.001, 0, 0, 0]).expand(2, 3, 4, 2, 5)
    wanted = 1 + (0.999 * math.log2(0.999) + 0.001 * math.log2(0.001)) / math.log2(5)
    assert np.allclose(heads.mean_of(heads.sharpness([two], codes)), wanted, atol=1e-5)
    x = torch.tensor(rng.normal(size=(400, 5)))
    assert heads.cka(x, 3 * x) == pytest.approx(1) and heads.cka(x, torch.tensor(rng.normal(size=(400, 5)))) < 0.05
    assert np.isnan(heads.alignment(np.zeros((4, 5)), np.zeros(5), np.zeros(5, int), rng))


# The demo's pipeline


def test_folders_of_both_releases(demo, tmp_path):
    rows, stays, known = demo.toy()
    for folder, name, upper in ((tmp_path / "iv" / "hosp", str.lower, False), (tmp_path / "iii", str.upper, True)):
        folder.mkdir(parents=True)
        for key, table in (("prescriptions", rows), ("admissions", stays)):
            table = table.rename(columns=str.upper) if upper else table
            table.to_csv(folder / f"{name(key)}.csv.gz", index=False)
        root = folder.parent if folder.name == "hosp" else folder
        tables = [demo.read_folder(root, key) for key in ("prescriptions", "admissions")]
        visits, share = demo.visits_of(*tables, known)
        assert len(visits) == 40 and share == 1 and visits.codes.iloc[0] == ["A01A"]
    with pytest.raises(ValueError, match="admissions: neither"):
        demo.read_folder(tmp_path, "admissions")


def test_generated_table_is_in_the_raw_format(demo):
    visits, share = demo.visits_of(*demo.generated_tables(np.random.default_rng(0)))
    assert 0.8 < share < 0.92 and visits.subject_id.nunique() == 46
    assert visits.groupby("subject_id").time.apply(lambda t: t.is_monotonic_increasing).all()


@pytest.mark.parametrize(
    ("table", "change", "said"),
    [
        ("admissions", lambda t: pd.concat([t, t.iloc[:1]]), "stands there twice"),
        ("known", lambda t: t.drop(columns="atc"), "map: columns missing: atc"),
        ("prescriptions", lambda t: t.assign(gsn=None), "only 0% of the rows"),
    ],
)
def test_malformed_tables_are_named(demo, table, change, said):
    tables = dict(zip(("prescriptions", "admissions", "known"), demo.toy(), strict=True))
    with pytest.raises(ValueError, match=said):
        demo.visits_of(**(tables | {table: change(tables[table])}))


def test_interaction_rates_have_one_value(demo, safety):
    y, _, pairs = golden_inputs()
    wanted = safety.rate(safety.pair_counts(torch.tensor(y), torch.tensor(pairs)).numpy())
    assert demo.interaction_rate(y, pairs) == pytest.approx(wanted)


# Larger presets: what they need, and scaled down


def test_the_memory_of_larger_presets_is_counted(nb):
    """The rule's numbers are what is kept for a patient and a training; a request beyond the memory is refused."""
    people = nb.generate(np.random.default_rng(1), 600, nb.make_world(np.random.default_rng(0)))
    data, each = nb.build(torch.as_tensor(people.visits), new=True), vars(people).values()
    twice = 2 * (sum(part.nbytes for part in each) + people.visits.nbytes)  # two kinds of worlds, visits once more
    assert twice / 600 == pytest.approx(16000, rel=0.1)
    curve = len(data.y) / 600 * 4  # a look's precision of each sample
    assert curve == pytest.approx(13, rel=0.15) and curve * data.y.shape[1] == pytest.approx(1640, rel=0.15)
    notebook = Path(FOLDER, "arci.ipynb")
    for preset, more in (("gpu", {"n_patients": "100000", "n_test": "20000"}), ("full", {"n_worlds": "19"})):
        resolve(notebook, preset, 0)
        with pytest.raises(BadRequestError, match="would not fit the memory of the preset"):
            resolve(notebook, preset, 0, more.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("notebook", "preset", "values"),
    [
        (
            "arci",
            "gpu",
            {
                **{"n_patients": 60, "n_test": 40, "n_worlds": 2, "max_steps": 10, "check": 5},
                **{"rates": "[0.01]", "dropouts": "[0.1]", "penalties": "[0.1]", "batch_size": 16, "dim": 8},
            },
        ),
        (
            "heads",
            "gpu",
            {
                **{
                    "world_patients": 60,
                    "world_test": 40,
                    "n_worlds": 2,
                    "variant_steps": 10,
                    "check": 5,
                    "dim": 8,
                },
                **{"rates": "[0.01]", "dropouts": "[0.1]", "weights": "[0.2]", "batch_size": 16},
            },
        ),
        (
            "choosing",
            "gpu",
            {
                **{
                    "sizes": "[60, 64]",
                    "n_choosing": 40,
                    "n_worlds": 2,
                    "max_steps": 10,
                    "choosing_check": 5,
                    "dim": 8,
                },
                **{"rates": "[0.01]", "penalties": "[0.1]", "batch_size": 16},
            },
        ),
        (
            "safety",
            "gpu",
            {
                **{
                    "world_patients": 60,
                    "world_test": 40,
                    "n_worlds": 2,
                    "term_steps": 10,
                    "variant_check": 5,
                    "dim": 8,
                },
                **{"term_rates": "[0.01]", "dropouts": "[0.1]", "strengths": "[1.0]", "term_batch": 16},
            },
        ),
    ],
)
def test_larger_presets_run_on_the_smallest_thing(execute, notebook, preset, values):
    done = execute(Path(FOLDER).resolve(), "--calibrate", notebook=notebook, preset=preset, parameters=values)
    assert done.code == 0, done.err[-2000:]
    record = json.loads(done.record.read_text())
    assert record["complete"] and all("verdict" in claim for claim in record["claims"].values())


# The gate


def calibrated(name):
    """Skip where five seeds of a notebook were not run yet: there is no gate."""
    return pytest.mark.skipif(not Path(FOLDER, name).exists(), reason="not calibrated yet")


@pytest.mark.sabotage
@pytest.mark.slow
def test_a_transposed_mask_is_noticed():
    """The published mask in place of the right one: the first check of the page fails."""
    line = "columns, rows = (here, before & here[..., :1]) if self.released else (before, here)"
    error = sabotage("arci", {line: "columns, rows = here, before & here[..., :1]"})
    assert error.startswith("AssertionError")


@pytest.mark.sabotage
@pytest.mark.slow
@calibrated("safety.expected.yaml")
def test_interactions_without_a_conflict_are_noticed():
    """Interactions among rare drugs only: the gate of the page on safety stops it before any training."""
    broken = "np.where(leads + leads.T > 0, 0.0, np.where(both, 0.0, 0.02))"
    line = "np.where(leads + leads.T > 0, 0.5, np.where(both, 0.08, 0.02))"
    error = sabotage("arci", {line: broken}, notebook="safety")
    assert error.startswith("RegressionError: regression: interaction rate of prescriptions")


@pytest.mark.sabotage
@pytest.mark.slow
@calibrated("expected.yaml")
def test_histories_of_other_patients_are_noticed():
    """The regression reads the histories of other samples: its gain over popularity is gone before any network."""
    line = "return torch.cat([data.past.any(1), last], 1).float()"
    error = sabotage("arci", {line: f"{line}.roll(7, 0)"})
    assert error.startswith("RegressionError") and "logistic minus popularity" in error


@pytest.mark.sabotage
@pytest.mark.slow
@calibrated("demo.expected.yaml")
def test_last_visits_of_other_patients_are_noticed():
    """The demo with every last visit taken from another sample: copying must stop to help."""
    line = "last = features(data)[:, V:].cpu() * 0.5 * copy"
    broken = line.replace("features(data)[:, V:]", "features(data)[:, V:].roll(9, 0)")
    error = sabotage("arci", {line: broken}, notebook="demo")
    assert error.startswith("RegressionError") and "copy minus popularity" in error
