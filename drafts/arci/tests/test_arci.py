"""Chapter arci: released numbers, a plain loop for one patient, the other implementation, errors, presets, a sabotage.

The numbers in GOLDEN were made by executing the released layers (ARCI e0fac8e), the contrastive loss of the same
commit, the measures that it uses, and PyHealth 1.1.6's RETAIN layer, on the inputs that each entry states.
"""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fake_run import FakeRun
from lift import lift, sabotage
from sklearn.metrics import average_precision_score, jaccard_score
from torch import nn

FOLDER = "notebooks/arci"
GOLDEN = json.loads((Path(__file__).parent / "arci_golden.json").read_text())
RIVALS = ("RETAIN", "Transformer", "Memory")
NAMES = (
    *("PLACES", "Linear", "split", "merge", "attend", "VisitAttention", "PathAttention", "contrast", "GRU"),
    *("RetainLayer", "Batch", "Dropout", "Levels", "ARCI", "SummedVisits", *RIVALS, "Samples", "build", "code_lists"),
    *("World", "make_world", "generate", "average_precision", "jaccard", "recall_at", "hit_at", "scores", "loss_of"),
    *("clip", "Task", "make_task", "Fit", "epoch", "learn", "features", "logistic", "fit_of", "fit_logistic"),
    *("fit_popularity", "one_width", "inflation", "chosen"),
)


SIZES = {"run": FakeRun(), "n_seeds": 2, "dim": 16, "epochs": 2, "batch_size": 16, "dropout": 0.0}
SIZES |= {"contrast_weight": 0.2, "n_patients": 30}


@pytest.fixture(scope="module")
def nb():
    return lift(f"{FOLDER}/arci.ipynb", NAMES, SIZES)


@pytest.fixture(scope="module")
def heads():
    names = ("Variant", "Network", "divergence", "cka", "favour", "alignment", "build", "Samples", "contrast", "links")
    return lift(f"{FOLDER}/heads.ipynb", names, SIZES)


@pytest.fixture(scope="module")
def demo():
    names = ("Network", "visits_of", "checked", "read_folder", "interaction_rate", "toy", "generated_tables", "jaccard")
    return lift(f"{FOLDER}/demo.ipynb", names, SIZES)


@pytest.fixture(scope="module")
def safety():
    return lift(
        f"{FOLDER}/safety.ipynb", ("interaction_term", "pair_counts", "rate", "gate", "Network", "build"), SIZES
    )


@pytest.fixture(scope="module")
def patients(nb):
    world = nb.make_world(np.random.default_rng(0))
    return world, nb.generate(np.random.default_rng(1), 60, world)[0]


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
        past = (nn.functional.one_hot(codes, 20).sum(2) > 0)[..., 1:].float()
        outputs.append(within(table, past, codes))
        masks.append(codes > 0)
    context, C = across(*outputs, *masks)
    for found, name in ((outputs[1], "W_cur"), (context, "context"), (C, "C")):
        np.testing.assert_allclose(found[0, 0].detach(), wanted[name], atol=2e-5)


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


def test_measures_equal_the_released(nb, safety):
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
                found = float(nb.hit_at(score, labels, k, strict=True).mean())
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
    data = nb.Samples(nb.code_lists(past), past, visits, none, none, torch.arange(5))
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
        turned = nb.Samples([c.flip(1) for c in data.codes], *(getattr(data, k) for k in list(vars(data))[1:]))
        torch.testing.assert_close(net(turned.batch(rows))[0], together, atol=1e-5, rtol=1e-5)


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


# The other implementations


def weights_for_plain(net, plain):
    """Copy run 0 of the stacked network into a plain one."""
    levels = net.levels
    pairs = [(levels.intent, plain.intent), (net.shared, plain.shared), (net.combine, plain.combine)]
    pairs += [(net.out, plain.out), (net.retain.alpha, plain.retain.alpha), (net.retain.beta, plain.retain.beta)]
    pairs += [(getattr(levels.within, k), getattr(plain.levels, k)) for k in ("query", "key", "value")]
    pairs += [(getattr(levels.across, k), getattr(plain.levels, k)) for k in ("before", "now", "join")]
    pairs += [(getattr(levels.across, k), getattr(plain.levels, f"path_{k}")) for k in ("query", "key")]
    for mine, theirs in pairs:
        theirs.weight.data, theirs.bias.data = mine.weight[0].detach().T.contiguous(), mine.bias[0, 0].detach()
    for name in ("alpha_gru", "beta_gru"):
        mine, theirs = getattr(net.retain, name), getattr(plain.retain, name)
        for end, part in (("ih", mine.input), ("hh", mine.state)):
            getattr(theirs, f"weight_{end}_l0").data = part.weight[0].detach().T.contiguous()
            getattr(theirs, f"bias_{end}_l0").data = part.bias[0, 0].detach()
    plain.levels.codes.weight.data[1:] = levels.codes[0].detach()


def test_all_implementations_have_one_output(nb, heads, demo, safety, patients):
    data = nb.build(torch.as_tensor(patients[1]), new=True)
    net = nb.ARCI(1, torch.Generator().manual_seed(5), 132, 16).eval()
    others = [heads.Network(132, 16, heads.Variant()), demo.Network(132, 16), safety.Network(132, 16)]
    with torch.no_grad():
        logits, apart = net(data.batch(torch.arange(len(data.y))[None]))
        for plain in others:
            weights_for_plain(net, plain.eval())
            found, loss = plain(data.codes, data.visits)
            torch.testing.assert_close(found, logits[0], atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(loss, apart[0], atol=2e-3, rtol=1e-3)


def test_both_builders_have_the_same_samples(nb, heads, safety, patients):
    for new, build in ((True, heads.build), (False, safety.build)):
        mine, theirs = nb.build(torch.as_tensor(patients[1]), new), build(patients[1])
        order = np.lexsort((np.arange(len(mine.y)), mine.patient.numpy()))  # theirs: patient after patient
        assert (mine.patient.numpy()[order] == theirs.patient).all()
        assert torch.equal(mine.y[order], theirs.y) and torch.equal(mine.visits[order], theirs.visits)
        for a, b in zip(mine.codes, theirs.places, strict=True):
            assert torch.equal(a[order], b)


def test_shared_definitions_are_the_same_text():
    """What stands in several notebooks of the chapter must not drift apart."""
    import ast

    import nbformat

    def sources(name):
        cells = nbformat.read(Path(FOLDER, f"{name}.ipynb"), 4).cells
        nodes = (n for c in cells if c.cell_type == "code" for n in ast.parse(c.source).body)
        return {n.name: ast.dump(n) for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}

    main = sources("arci")
    for name, shared in (
        ("heads", ("contrast", "World", "make_world", "generate", "average_precision")),
        ("safety", ("contrast", "World", "make_world", "generate", "average_precision")),
        ("demo", ("contrast", "average_precision")),
    ):
        other = sources(name)
        assert all(other[one] == main[one] for one in shared), name


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
    task = nb.make_task(visits[:40], visits[40:], True, True, np.random.default_rng(0))
    assert not np.intersect1d(task.train.patient[task.rows[0]], task.train.patient[task.held[0]]).size
    fits = [nb.learn(getattr(nb, k), task, {"rate": 0.01, "dropout": 0.1}, "s", 0.2) for k in ("ARCI", *RIVALS)]
    fits += [nb.fit_logistic(task, {"C": 0.1}), nb.fit_popularity(task)]
    for fit in fits:
        assert torch.isfinite(fit.held).all() and torch.isfinite(fit.test).all()
        assert (fit.scores[task.test.barred.expand(2, -1, -1)] == 0).all()
    one = nb.learn(nb.RETAIN, task, {"rate": 0.01, "dropout": 0.1}, "s")
    assert torch.equal(one.scores, fits[1].scores)  # the same stream, the same numbers


def test_popularity_ranks_by_counts(nb, patients):
    visits = torch.as_tensor(patients[1])
    task = nb.make_task(visits[:40], visits[40:], False, False, np.random.default_rng(0))
    fit, copy = nb.fit_popularity(task), nb.fit_popularity(task, copy=True)
    popular = task.train.y[task.rows[0]].float().mean(0)
    assert popular[fit.scores[0, 0].argmax()] == popular.max()
    assert torch.equal(copy.scores[0] > 0.5, nb.features(task.test)[:, 132:] > 0)


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


def test_inflation_of_a_lucky_point(nb):
    held = torch.tensor([[0.2, 0.2], [0.3, 0.3]])  # (epochs, runs): validation chooses the second
    test = torch.zeros(2, 2, 4)
    test[0, :, :2] = 1.0  # the first is good on one half of the test samples, by luck
    test[1, :, 2:] = 0.1
    fit = nb.Fit(held, test, torch.zeros(2, 1, 3), torch.zeros(2, 4, 3))
    found = nb.inflation([fit], np.array([True, True, False, False]))
    assert np.allclose(found["on test"], 0.45) and np.allclose(found["elsewhere"], -0.05)


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


def test_measures_of_heads(heads):
    rng = np.random.default_rng(0)
    same = torch.full((3, 4, 2, 5), 0.2)
    assert np.allclose(heads.divergence([same]), 0, atol=1e-6)
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


# Larger presets, scaled down


@pytest.mark.slow
@pytest.mark.parametrize(
    ("notebook", "preset", "values"),
    [
        ("arci", "gpu", {"sizes": "[60, 70]", "n_test": 40, "n_seeds": 2, "n_trials": 1, "epochs": 1, "dim": 8}),
    ],
)
def test_larger_presets_run_on_the_smallest_thing(execute, notebook, preset, values):
    done = execute(Path(FOLDER).resolve(), "--calibrate", notebook=notebook, preset=preset, parameters=values)
    assert done.code == 0, done.err[-2000:]
    record = json.loads(done.record.read_text())
    assert record["complete"] and all("verdict" in claim for claim in record["claims"].values())


# The gate


@pytest.mark.sabotage
@pytest.mark.slow
def test_answers_of_other_patients_are_noticed():
    """The demo with every last visit taken from another patient: copying must stop to help."""
    line = "last, y, owner = hot[later - 1], hot[later], person[later]"
    broken = line.replace("hot[later - 1]", "np.roll(hot[later - 1], 9, 0)")
    error = sabotage("arci", {line: broken, "epochs: int = 12": "epochs: int = 1"}, notebook="demo")
    assert error.startswith("RegressionError")
