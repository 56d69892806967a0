"""Chapter gene_meta_learning: parity of the method, its error messages, the studies, the GEO path, and a sabotage."""

import importlib.util
import json
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fake_run import FakeRun
from lift import lift, sabotage
from sklearn.metrics import accuracy_score, average_precision_score, f1_score
from torch import nn
from torch.func import grad, vmap

from helpers.cache import Store
from helpers.models import packaged

FOLDER = "notebooks/gene_meta_learning"
NAMES = (
    *("inner_loop", "Rule", "source_losses", "target_loss", "outer_loss", "plain_outer_loss", "released_loss"),
    *("MLP", "METHODS", "Settings", "batches", "take", "fresh", "source_batches", "train", "fit", "scores"),
    *("make_series", "make_task", "standardise", "stack_tasks", "t_statistics", "agreement", "stratified_folds"),
    *(
        "subset",
        "Option",
        "ALPHAS",
        "PAPER",
        "GRID",
        "INNER",
        "PLAIN",
        "FoldRuns",
        "fold_runs",
        "groups",
        "trained",
        "choose",
        "choices",
        "fit_chosen",
        "FIXED",
        "SHORT",
        "CHOICES",
        "per_fold",
    ),
    *("kept_choices", "kept_scores", "compare", "accuracy", "macro_f1", "average_precision", "paired_gain", "mean_of"),
)


SIZES = {"n_source": 24, "n_seeds": 2, "n_folds": 3, "epochs": 2, "batch_size": 8, "hidden": 6, "ETAS": [4e-4, 0.1]}


class NothingKept:
    """A store that makes every entry anew."""

    def get(self, name, make):
        return {key: torch.as_tensor(np.asarray(values)) for key, values in make().items()}


GIVEN = {"run": FakeRun(), "kept": NothingKept()} | SIZES


@pytest.fixture(scope="module")
def nb():
    return lift(f"{FOLDER}/gene_meta_learning.ipynb", NAMES, GIVEN)


@pytest.fixture(scope="module")
def networks():
    names = (
        "put",
        "NETWORKS",
        "GeneEncoder",
        "EncoderLayer",
        "Norm",
        "gradient_gaps",
        "plain_loss",
        "BatchEncoder",
        "CNN",
        "reachable",
        "mlp",
        "drawn",
        "train",
        "attributions",
        "top_overlap",
        "other_seeds",
        "apart",
        "overlaps",
        "over_seeds",
        "source_batch",
        "fold_scores",
        "outer_loss",
    )
    extra = {"run": FakeRun(), "data": small_series(), "epochs": 2, "batch_size": 8, "hidden": 6, "n_folds": 3}
    return lift(f"{FOLDER}/networks.ipynb", names, extra)


@pytest.fixture(scope="module")
def choosing():
    names = ("start", "logits", "learn", "fold_curves", "readings", "elsewhere", "HALVES")
    extra = {"run": FakeRun(), "epochs": 3, "widths": [4, 6], "batch_sizes": [8], "n_repeats": 2, "learning_rate": 0.01}
    return lift(f"{FOLDER}/choosing_on_test.ipynb", names, extra)


@pytest.fixture(scope="module")
def series_agreement():
    names = (
        "effects",
        "across",
        "within",
        "read_geo",
        "common_genes",
        "contrast",
        "pseudo_values",
        "related",
        "thinned",
        "at_equal_counts",
    )
    return lift(f"{FOLDER}/agreement.ipynb", names, {"run": FakeRun()})


def small_series(n=24, genes=20, names="abc"):
    """Series of noise with half of the patients in each class."""
    rng = np.random.default_rng(0)
    return {name: (rng.normal(size=(n, genes)), (np.arange(n) % 2).astype(np.float32)) for name in names}


@pytest.fixture
def tiny(nb):
    """A tiny perceptron with its weights, a target batch and three source batches."""
    generator = torch.Generator().manual_seed(0)
    net = nb.MLP(20, 6)
    params = {name: value.detach() for name, value in net.named_parameters()}
    x, y = torch.randn(4, 5, 20, generator=generator), (torch.rand(4, 5, generator=generator) < 0.5).float()
    return net, params, (x[0], y[0]), (x[1:], y[1:])


@pytest.mark.parametrize("second_order", [True, False])
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_fast_inner_loop_equals_the_textbook(nb, tiny, steps, second_order):
    net, params, target, sources = tiny
    rule = nb.Rule(steps, 0.1, second_order, alpha=0.3)
    fast, plain = (grad(partial(f, net))(params, target, sources, rule) for f in (nb.outer_loss, nb.plain_outer_loss))
    for name in params:
        torch.testing.assert_close(fast[name], plain[name], atol=1e-5, rtol=1e-4)


def test_first_order_equals_autograd_at_the_adapted_weights(nb, tiny):
    """FOMAML by hand: ordinary autograd on an adapted copy of the module."""
    net, params, _, (xs, ys) = tiny
    found = grad(lambda p: nb.source_losses(net, p, xs[:1], ys[:1], nb.Rule(1, 0.2, False))[0])(params)
    copy = nb.MLP(20, 6)
    copy.load_state_dict(params)
    loss = nn.BCEWithLogitsLoss()
    loss(copy(xs[0]), ys[0]).backward()
    with torch.no_grad():
        for p in copy.parameters():
            p -= 0.2 * p.grad
    copy.zero_grad()
    loss(copy(xs[0]), ys[0]).backward()
    for name, p in copy.named_parameters():
        torch.testing.assert_close(found[name], p.grad, atol=1e-6, rtol=1e-5)


def test_meta_gradient_on_a_quadratic(nb):
    A = torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64))
    start = {"theta": torch.tensor([1.0, -2.0], dtype=torch.float64)}
    loss = lambda p: 0.5 * p["theta"] @ A @ p["theta"]  # noqa: E731
    got = grad(lambda p: loss(nb.inner_loop(loss, p, 0.1, 2)))(start)["theta"]
    shrink = torch.linalg.matrix_power(torch.eye(2, dtype=torch.float64) - 0.1 * A, 2)
    torch.testing.assert_close(got, shrink @ A @ shrink @ start["theta"], atol=1e-12, rtol=0)


def test_anil_moves_the_head_only(nb, tiny):
    net, params, _, (xs, ys) = tiny
    adapted = {}

    def loss(p):
        adapted.update(p)
        return nb.target_loss(net, p, xs[0], ys[0])

    move = lambda name, g: g if name.startswith("head") else torch.zeros_like(g)  # noqa: E731
    moved = nb.inner_loop(loss, params, 0.5, 1, move=move)
    by_rule = nb.source_losses(net, params, xs[:1], ys[:1], nb.Rule(1, 0.5, True, head_only=True))[0]
    torch.testing.assert_close(by_rule, nb.target_loss(net, moved, xs[0], ys[0]))
    assert {name for name in params if not torch.equal(params[name], moved[name])} == {"head.weight", "head.bias"}


@pytest.mark.parametrize("weight", [0.1, 0.9])
def test_released_loss_ignores_the_sources(nb, tiny, weight):
    net, params, target, sources = tiny
    wanted = grad(partial(nb.target_loss, net))(params, *target)
    for scale in (1.0, 100.0):
        g = grad(partial(nb.released_loss, net))(
            params, target, (scale * sources[0], sources[1]), nb.Rule(alpha=weight)
        )
        for name in params:
            torch.testing.assert_close(g[name], weight * wanted[name], atol=1e-7, rtol=0)


def test_every_method_trains(nb):
    tasks = [nb.make_task(0.5, 8, np.random.default_rng(s), 6, 20) for s in range(2)]
    target, test, sources = nb.stack_tasks(tasks, "cpu")
    settings = nb.Settings(8, 4, 1, 10, 1e-2)
    for method in nb.METHODS:
        net, params = nb.fit(method, target, sources, settings, "s", nb.Rule(2, 0.1))
        assert np.isfinite(nb.scores(net, params, test[0])).all()


def test_stacked_training_equals_single_trainings(nb):
    """Run r of a stack ends at the weights that it reaches alone, with the same batches."""
    tasks = [nb.make_task(0.5, 6, np.random.default_rng(s), 6, 20) for s in range(3)]
    target, _, sources = nb.stack_tasks(tasks, "cpu")
    net, rule = nb.MLP(20, 6), nb.Rule(1, 0.1, True)
    start = nb.fresh(partial(nb.MLP, 20, 6), 3, torch.Generator().manual_seed(1), "cpu")
    settings = nb.Settings(6, 100, 4, 100, 1e-2)  # whole-series batches, so that their order does not matter
    together = nb.train(net, start, target, sources, rule, settings, np.random.default_rng(0))
    for r in range(3):
        row = lambda pair, r=r: tuple(v[r : r + 1] for v in pair)  # noqa: E731
        one = {k: v[r : r + 1] for k, v in start.items()}
        alone = nb.train(net, one, row(target), [row(s) for s in sources], rule, settings, np.random.default_rng(5))
        for name in alone:
            torch.testing.assert_close(together[name][r], alone[name][0], atol=1e-4, rtol=1e-3)


def test_an_inner_step_of_its_own_for_each_run(nb, tiny):
    net, params, _, (xs, ys) = tiny
    etas = torch.tensor([0.0, 0.3])
    loss = lambda e: nb.source_losses(net, params, xs[:1], ys[:1], nb.Rule(1, e))[0]  # noqa: E731
    torch.testing.assert_close(vmap(loss)(etas), torch.stack([loss(0.0), loss(0.3)]))


def test_batches_are_equal_and_cover(nb):
    plan = list(nb.batches(69, 32, 2, 100, 3, np.random.default_rng(0)))
    assert [rows.shape for rows in plan] == [(3, 23)] * 6
    for r in range(3):
        assert sorted(np.concatenate([rows[r] for rows in plan[:3]])) == list(range(69))


def test_generated_effects_agree_as_asked(nb):
    rng = np.random.default_rng(0)
    W, shared = 0.4 * rng.normal(size=(4000, 12)), rng.normal(size=4000) * (rng.random(4000) < 0.15)
    shared /= np.linalg.norm(shared)
    for rho in (-0.6, 0.0, 0.9):
        (a, ya), (b, yb) = (
            nb.make_series(400, r, W, shared, np.random.default_rng(s)) for s, r in ((1, abs(rho)), (2, rho))
        )
        found = nb.agreement((a, ya), [(b, yb)])
        assert abs(found) < 0.1 if rho == 0 else np.sign(found) == np.sign(rho) and abs(found) < abs(rho) + 0.1


def test_gains_of_perfect_scores(nb):
    y = np.array([0, 1] * 20)
    a, b = np.tile(y, (2, 1)).astype(float), np.zeros((2, 40))
    estimate = nb.paired_gain(nb.average_precision, y, a, b + np.linspace(1, 0, 40))
    assert estimate.value > 0.4 and estimate.low > 0
    assert nb.paired_gain(nb.accuracy, y, a, a).value == 0


def test_mean_of_independent_estimates(nb):
    from helpers.stats import Estimate

    mean = nb.mean_of([Estimate(0.0, -3.0, 1.0, 5), Estimate(2.0, -2.0, 2.0, 7)])
    assert (mean.value, mean.low, mean.high, mean.n) == (1.0, 1.0 - 5 / 2, 1.5, 12)


# The studies


def test_top_overlap(networks):
    same = np.tile(np.arange(100.0), (3, 1))
    assert np.allclose(networks.top_overlap(same, same), 1) and np.allclose(networks.top_overlap(same, -same), 0)
    share = networks.top_overlap(same, np.stack([same[0], -same[0], -same[0]]))
    assert np.allclose(share, [[1, 0, 0]] * 3) and networks.other_seeds(share) == pytest.approx(2 / 6)


def overlap_study(one, two):
    """The functions of the study on attributions of our own."""
    extra = {"run": FakeRun(), "n_seeds": len(one), "explained": {"a": {"one": one, "two": two}}}
    return lift(f"{FOLDER}/networks.ipynb", ["apart", "over_seeds", "overlaps"], extra)


def test_kinds_that_are_apart_and_kinds_that_are_not():
    rng = np.random.default_rng(0)
    one, two = (rng.normal(size=300) + 0.3 * rng.normal(size=(6, 300)) for _ in "ab")
    same = one[0] + 0.3 * rng.normal(size=(6, 300))
    study = overlap_study(one, two)
    found = study.over_seeds(partial(study.apart, "one", "two"))
    assert found.low > 0.2 and found.value == pytest.approx(study.apart("one", "two", np.arange(6)))
    study = overlap_study(one, same)
    assert abs(study.over_seeds(partial(study.apart, "one", "two")).value) < 0.15


def test_the_jackknife_covers():
    """Pairs share seeds: the t interval of the pseudo-values covers an overlap as often as it says."""
    rng, inside = np.random.default_rng(1), 0
    base = rng.normal(size=(2, 120))
    draw = lambda n: [b + rng.normal(size=(n, 120)) * rng.uniform(0.3, 1.2, (n, 1)) for b in base]  # noqa: E731
    large = overlap_study(*draw(150))
    truth = large.apart("one", "two", np.arange(150), 20)
    one, two = draw(5)
    study = overlap_study(one, two)
    for _ in range(120):
        one[:], two[:] = draw(5)  # in place: the study sees them
        found = study.over_seeds(lambda rows: study.apart("one", "two", rows, 20))
        inside += found.low <= truth <= found.high
    assert inside >= 104  # .87; below it with probability .0003 if the coverage is .95


def test_an_auroc_within_folds_takes_no_pair_across_them(nb):
    y, test = np.array([0, 1, 0, 1, 0, 1]), [np.array([0, 1]), np.array([2, 3]), np.array([4, 5])] * 2
    score = np.array([[0, 1, 5, 6, 9, 8], [1, 0, 1, 0, 1, 0.0]])
    assert nb.per_fold(score, y, test) == pytest.approx([2 / 3, 0])


def test_transfer_with_equal_steps_takes_as_many_as_the_others(nb, monkeypatch):
    taken = []
    spied = lift(
        f"{FOLDER}/gene_meta_learning.ipynb",
        NAMES,
        GIVEN | {"train": lambda net, p, target, sources, rule, settings, *_: taken.append((target, settings)) or p},
    )
    tasks = [nb.make_task(0.5, 8, np.random.default_rng(s), 6, 20) for s in range(2)]
    target, _, sources = nb.stack_tasks(tasks, "cpu")
    spied.fit(spied.SHORT, target, sources, spied.Settings(6, 4, 3, 100, 1e-2), "s")
    assert [settings.max_steps for _, settings in taken] == [3, 3]  # 3 epochs of two batches: 6 steps in all
    assert [len(x[0]) for (x, _), _ in taken] == [72, 8]


def test_attributions_find_the_only_gene_that_matters(networks):
    net = networks.drawn(lambda: networks.mlp(20), "s").requires_grad_(False)
    net[0].weight[:, :3] = net[0].weight[:, 4:] = 0
    found = networks.attributions(net, torch.randn(9, 20, generator=torch.Generator().manual_seed(1)))
    assert found.argmax() == 3 and np.allclose(np.delete(found, 3), 0)


@pytest.mark.parametrize("second_order", [True, False, None])
def test_both_implementations_have_one_gradient(nb, networks, tiny, second_order):
    """The textbook loss of the study against the fast loss of the main notebook."""
    net, params, target, sources = tiny
    found = grad(lambda p: networks.outer_loss(net, p, target, sources, second_order))(params)
    rule = nb.Rule(0) if second_order is None else nb.Rule(1, 4e-4, second_order)
    wanted = grad(partial(nb.outer_loss, net))(params, target, sources, rule)
    for name in params:
        torch.testing.assert_close(found[name], wanted[name], atol=1e-6, rtol=1e-4)


def test_networks_side_by_side_end_where_they_end_alone(networks):
    """Run r of a stack sees the batches of its stream, with sources and without."""
    data, rng = small_series(12), np.random.default_rng(0)
    sources = [networks.put(x, y) for x, y in list(data.values())[1:]]
    x, y = networks.put(rng.normal(size=(2, 12, 20)), rng.integers(0, 2, (2, 12)))
    for used in (sources, []):
        both = networks.train(lambda: networks.mlp(20), (x, y), used, True, ["one", "two"])
        alone = networks.train(lambda: networks.mlp(20), (x[1:], y[1:]), used, True, ["two"])[0]
        for p, q in zip(both[1].parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("network", ["MLP", "CNN", "transformer (batch)", "transformer (genes)"])
@pytest.mark.parametrize("eta", [4e-4, 0.5])
def test_second_derivatives_of_every_network(networks, network, eta):
    """Nested `grad` under `vmap` against plain autograd and a finite difference, in double precision."""
    net = networks.drawn(lambda: networks.NETWORKS[network](20), "s").double()
    generator = torch.Generator().manual_seed(2)
    x, y = torch.randn(3, 6, 20, generator=generator).double(), torch.rand(3, 6, generator=generator) < 0.5
    gap, off = networks.gradient_gaps(net, x, y.double(), eta)
    assert gap < 1e-6 and off < 1e-4


def test_own_layers_have_the_values_of_the_built_in_ones(networks):
    own, x = networks.EncoderLayer(), torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(3))
    built_in = nn.TransformerEncoderLayer(6, 1, 24, dropout=0.0, batch_first=True)
    built_in.load_state_dict(own.state_dict())
    torch.testing.assert_close(own(x), built_in(x), atol=1e-6, rtol=1e-5)
    norm, fused = networks.Norm(6), nn.LayerNorm(6)
    torch.testing.assert_close(norm(7 * x + 2), fused(7 * x + 2), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("network", ["MLP", "CNN", "transformer (batch)", "transformer (genes)"])
def test_every_network_scores_every_patient(networks, network):
    assert all(np.isfinite(networks.fold_scores(network, "a", kind, 0)).all() for kind in ("alone", "MAML"))


def test_uneven_gene_groups(networks):
    with pytest.raises(ValueError, match="do not split"):
        networks.GeneEncoder(21)


def test_stacked_folds_equal_single_folds(choosing):
    x, y = (torch.as_tensor(v, dtype=torch.float32) for v in small_series()["a"])
    rows = np.stack([np.arange(16), np.arange(8, 24)])
    together = [[w.detach().clone() for w in weights] for weights in choosing.learn(x, y, rows, 4, 100, "s")]
    generator, alone = FakeRun().torch_generator("s"), nn.Sequential(nn.Linear(20, 4), nn.LeakyReLU(), nn.Linear(4, 2))
    alone = alone.append(nn.LeakyReLU()).append(nn.Linear(2, 1))
    for p, drawn in zip(alone.parameters(), choosing.start(20, 4, 2, generator), strict=True):
        p.data = drawn[0].detach().T.reshape(p.shape).clone()
    adam = torch.optim.Adam(alone.parameters(), lr=0.01)
    for weights in together:
        adam.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(alone(x[:16]).squeeze(-1), y[:16]).backward()
        adam.step()
        for p, w in zip(alone.parameters(), weights, strict=True):
            torch.testing.assert_close(p.data, w[0].T.reshape(p.shape), atol=1e-5, rtol=1e-4)


def test_curves_and_what_is_read_off_them(choosing):
    curves = choosing.fold_curves(*small_series(40)["a"], "s")
    assert curves.shape == (4, 10, 3) and ((curves >= 0) & (curves <= 1)).all()
    flat = np.full((2, 10, 3), 0.5)
    assert set(choosing.readings(flat).values()) == set(choosing.elsewhere(flat).values()) == {0.5}
    lucky = flat.copy()
    lucky[0, 0, 1] = 1.0  # good on one of the folds only
    assert choosing.readings(lucky)["best on test"] == 0.55 and choosing.elsewhere(lucky)["best on test"] == 0.5
    assert choosing.elsewhere(lucky)["best on half"] == pytest.approx(0.55)  # in every second halving .6
    better = flat.copy()
    better[0, :, 1] = 1.0  # good on every fold
    assert choosing.readings(better)["best on test"] == choosing.elsewhere(better)["best on test"] == 1


def test_contrast_of_groups(series_agreement):
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(300, 1))
    alike, unlike = (pd.DataFrame(k * shared + rng.normal(size=(300, 5))).corr().to_numpy() for k in (3, 0))
    found = series_agreement.contrast(alike, unlike)
    assert 0.75 < found.low < 0.85 < found.value < 0.95 and found.n == 10
    mean = [(table.sum() - 5) / 20 for table in (alike, unlike)]
    assert found.value == pytest.approx(mean[0] - mean[1])  # pairs count once each
    values = series_agreement.pseudo_values(alike)
    for s in range(5):  # the definition: five times the whole minus four times the rest
        rest = np.delete(np.delete(alike, s, 0), s, 1)
        assert values[s] == pytest.approx(5 * mean[0] - 4 * (rest.sum() - 4) / 12)


def test_small_classes_shrink_agreement(series_agreement):
    rng = np.random.default_rng(0)
    made = dict(zip("abcd", series_agreement.related(200, rng), strict=True))
    assert made["a"][0].shape == (200, 695) and made["a"][1].mean() == 0.5
    x, y = series_agreement.thinned(made["a"], 8, 60, rng)
    assert len(x) == 68 and y.sum() == 8
    large = series_agreement.effects(made).corr().to_numpy()
    small = series_agreement.at_equal_counts(made, rng, 3)
    assert small.shape == (4, 4) and small.mean() < 0.85 * large.mean()


def test_every_run_can_have_its_own_source_labels(networks):
    x, y = networks.put(*small_series(12)["a"])
    turned = torch.stack([y, 1 - y])
    rngs = lambda: [np.random.default_rng(s) for s in (0, 1)]  # noqa: E731
    one, own = (networks.source_batch([(x, labels)], 5, rngs()) for labels in (y, turned))
    assert torch.equal(one[0], own[0]) and torch.equal(own[1][0], one[1][0]) and torch.equal(own[1][1], 1 - one[1][1])
    assert one[0].shape == (2, 1, 5, 20) and networks.source_batch([], 5, rngs()) == ()


# Golden numbers of the released code (the command stands in the file)

GOLDEN = json.loads(Path(__file__).with_name("gene_meta_learning_golden.json").read_text())


def filled(net, shapes, seed=1):
    """The network with weights drawn in the order of the released module."""
    rng, weights = np.random.RandomState(seed), list(net.parameters())
    assert [list(w.shape) for w in weights] == shapes
    for w in weights:
        inputs = np.prod(w.shape[1:]) if w.dim() > 1 else 4
        w.data = torch.as_tensor(rng.randn(*w.shape) / np.sqrt(inputs), dtype=torch.float32)
    return net


def golden_batch(seed):
    rng = np.random.RandomState(seed)
    return torch.as_tensor(rng.randn(6, 695), dtype=torch.float32), torch.as_tensor(rng.rand(6) < 0.5).float()


@pytest.fixture
def released_networks():
    """The networks of the study in the size of the golden numbers."""
    names = ["mlp", "CNN", "BatchEncoder"]
    nb = lift(f"{FOLDER}/networks.ipynb", names, {"hidden": 4})
    transformer = nb.BatchEncoder(695)
    transformer.encoder.linear1, transformer.encoder.linear2 = nn.Linear(4, 2048), nn.Linear(2048, 4)
    return {"MLP": nb.mlp(695), "CNN": nb.CNN(695), "Transformer": transformer}


@pytest.mark.parametrize("kind", ["MLP", "CNN", "Transformer"])
def test_networks_equal_the_released_ones(released_networks, kind):
    net = filled(released_networks[kind], GOLDEN[kind]["shapes"])
    found = torch.sigmoid(net(golden_batch(10)[0])).detach().numpy()
    assert np.allclose(found, GOLDEN[kind]["probabilities"], atol=2e-6)


@pytest.mark.parametrize("kind", ["MLP", "CNN"])
@pytest.mark.parametrize("case", list(GOLDEN["MLP"]["meta_loss"]))
def test_the_released_step_is_what_c5_says(released_networks, kind, case):
    """Gradient of the released `meta_loss`: alpha times that of the target loss, whatever the sources."""
    alpha = float(case.split(",")[0].removeprefix("alpha "))
    net, (x, y) = filled(released_networks[kind], GOLDEN[kind]["shapes"]), golden_batch(10)
    (alpha * nn.functional.binary_cross_entropy_with_logits(net(x), y)).backward()
    norms = [float(w.grad.norm()) for w in net.parameters()]
    assert np.allclose(norms, GOLDEN[kind]["meta_loss"][case]["norms"], atol=1e-6, rtol=2e-6)


@pytest.mark.parametrize("case", list(GOLDEN["MLP"]["meta_loss"]))
def test_values_of_the_released_loss(released_networks, networks, case):
    """J and the sum over sources after the inner step, as the released function returns them."""
    golden, net = GOLDEN["MLP"]["meta_loss"][case], filled(released_networks["MLP"], GOLDEN["MLP"]["shapes"])
    alpha, first = float(case.split(",")[0].removeprefix("alpha ")), int(case.split()[-1])
    x, y = map(torch.stack, zip(*[golden_batch(first + i) for i in range(3)], strict=True))
    after = lift(f"{FOLDER}/networks.ipynb", ["outer_loss", "after_step"], {"alpha": alpha})
    p = {k: w.detach() for k, w in net.named_parameters()}
    each = sum(float(after.after_step(net, p, a, b, True)) for a, b in zip(x, y, strict=True))
    assert each == pytest.approx(golden["source"], abs=3e-6)
    assert float(after.outer_loss(net, p, golden_batch(10), (x, y), True)) == pytest.approx(golden["loss"], abs=3e-6)


def directions(gradients):
    """Products of the gradient of each weight with three fixed unit directions, (weights, 3)."""
    rng, out = np.random.RandomState(7), []
    for g in gradients:
        units = [rng.randn(*g.shape) for _ in range(3)]
        out.append([float((g.detach().numpy() * u).sum() / np.linalg.norm(u)) for u in units])
    return np.array(out)


@pytest.mark.parametrize("kind", ["MLP", "CNN", "Transformer"])
@pytest.mark.parametrize("alpha", [0.1, 0.7])
def test_the_released_step_points_where_the_target_loss_does(released_networks, kind, alpha):
    """The direction of the released gradient, not its length alone; a turned gradient has the same norm."""
    net, (x, y) = filled(released_networks[kind].eval(), GOLDEN[kind]["shapes"]), golden_batch(10)
    (alpha * nn.functional.binary_cross_entropy_with_logits(net(x), y)).backward()
    found = directions([w.grad for w in net.parameters()])
    golden = np.array(GOLDEN["directions"][kind]["released"][f"alpha {alpha}"])
    assert np.allclose(found, golden, atol=3e-7, rtol=2e-5) and abs(found).max() > 1e-3


ORDERS = {"None 0": None, "first 0.0004": False, "first 0.5": False, "second 0.0004": True, "second 0.5": True}


def described(kind, case):
    """The golden numbers of J as described, the inner step's size, and whether it is differentiated."""
    golden, eta = GOLDEN["directions"][kind]["described"][case], float(case.split()[1])
    return golden["loss"], np.array(golden["gradient"]), eta, ORDERS[case]


@pytest.fixture
def double_batches():
    x, y = map(torch.stack, zip(*[golden_batch(s) for s in (10, 11, 12, 13)], strict=True))
    return (x[0].double(), y[0].double()), (x[1:].double(), y[1:].double())


@pytest.mark.parametrize("kind", ["MLP", "CNN", "Transformer"])
@pytest.mark.parametrize("case", list(ORDERS))
def test_the_described_gradient_is_that_of_plain_autograd(released_networks, double_batches, kind, case):
    """Value and direction of the gradient of J for the released classes, without and with the inner step."""
    loss, wanted, eta, second_order = described(kind, case)
    net, (target, sources) = filled(released_networks[kind], GOLDEN[kind]["shapes"]).double(), double_batches
    J = lift(f"{FOLDER}/networks.ipynb", ["outer_loss", "after_step"], {"alpha": 0.3}).outer_loss
    p = {k: w.detach() for k, w in net.named_parameters()}
    assert float(J(net, p, target, sources, second_order, eta)) == pytest.approx(loss, abs=1e-8)
    g = grad(lambda q: J(net, q, target, sources, second_order, eta))(p)
    assert np.allclose(directions(g.values()), wanted, atol=1e-7, rtol=1e-7)
    other = described(kind, case.replace("second", "first"))[1] if second_order and eta > 0.1 else -wanted
    assert abs(wanted - other).max() > 1e-3  # the two orders are told apart


@pytest.mark.parametrize("case", list(ORDERS))
def test_the_fast_gradient_has_the_direction_of_plain_autograd(nb, double_batches, case):
    """The main notebook's perceptron with its shortcut, on the weights of the released one."""
    loss, wanted, eta, second_order = described("MLP", case)
    net, (target, sources) = nb.MLP(695, 4).double(), double_batches
    names = ["first.weight", "bias", "middle.weight", "middle.bias", "head.weight", "head.bias"]
    rng, p = np.random.RandomState(1), {}
    for name, shape in zip(names, GOLDEN["MLP"]["shapes"], strict=True):
        inputs = shape[1] if len(shape) > 1 else 4
        p[name] = torch.as_tensor(rng.randn(*shape) / np.sqrt(inputs), dtype=torch.float32).double()
    rule = nb.Rule(0 if second_order is None else 1, eta, bool(second_order), alpha=0.3)
    assert float(nb.outer_loss(net, p, target, sources, rule)) == pytest.approx(loss, abs=1e-8)
    g = grad(lambda q: nb.outer_loss(net, q, target, sources, rule))(p)
    assert np.allclose(directions([g[name] for name in names]), wanted, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("case", list(GOLDEN["batches and how many are drawn"]))
def test_batches_that_the_released_loop_can_draw(networks, case):
    patients, size = map(int, case.split("/"))
    assert list(networks.reachable(patients, size)) == GOLDEN["batches and how many are drawn"][case]


# Scaling


@pytest.mark.parametrize("value", [0.1, 1e-3, 15.0, 1234.567, 77240.3, -6.3])
def test_a_constant_gene_is_centred_only(nb, value):
    """As scikit-learn does; dividing by the rounding of its deviation gave tens of thousands."""
    x = np.random.default_rng(0).normal(size=(69, 3)).astype(np.float32)
    x[:, 1] = value
    fitted, other = nb.standardise(x, x + np.float32([0, 1, 0]))
    assert np.allclose(fitted[:, 1], 0, atol=1e-6) and np.allclose(other[:, 1], 1, rtol=1e-2)
    assert np.allclose(fitted[:, 0].std(), 1, atol=1e-4) and fitted.dtype == np.float32


@pytest.mark.parametrize("value", [0.1, 1234.567, 77240.3])
def test_a_constant_gene_has_no_effect(nb, series_agreement, value):
    x, y = np.random.default_rng(0).normal(size=(83, 3)).astype(np.float32), np.arange(83) % 3 == 0
    x[:, 1] = value
    found = series_agreement.effects({"a": (x, y)})["a"].to_numpy()
    assert nb.t_statistics(x, y)[1] == found[1] == 0 and abs(found).max() < 10
    assert np.allclose(nb.t_statistics(x, y), found, atol=1e-5)


# The weight of the target loss


def test_a_weight_for_each_run(nb):
    """Weight 1 ends where target-only ends, and a stack of weights where each ends alone."""
    tasks = [nb.make_task(0.5, 6, np.random.default_rng(s), 6, 20) for s in range(2)]
    target, _, sources = nb.stack_tasks(tasks, "cpu")
    settings = nb.Settings(6, 4, 3, 100, 1e-2)
    weights = torch.tensor([1.0, 0.3])
    stacked = nb.fit("MAML", target, sources, settings, "s", nb.Rule(1, 0.1, alpha=weights))[1]
    alone = nb.fit("target-only", target, sources, settings, "s")[1]
    single = nb.fit("MAML", target, sources, settings, "s", nb.Rule(1, 0.1, alpha=0.3))[1]
    for name, value in stacked.items():
        torch.testing.assert_close(value[0], alone[name][0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(value[1], single[name][1], atol=1e-5, rtol=1e-4)


def test_part_of_a_stack_sees_the_batches_of_the_whole(nb):
    tasks = [nb.make_task(0.5, 6, np.random.default_rng(s), 6, 20) for s in range(3)]
    target, _, sources = nb.stack_tasks(tasks, "cpu")
    settings, rows = nb.Settings(6, 4, 3, 100, 1e-2), np.array([2, 0])
    part = tuple(v[rows] for v in target), [tuple(v[rows] for v in s) for s in sources]
    whole = nb.fit("target-only", target, sources, settings, "s")[1]
    some = nb.fit("target-only", *part, settings, "s", part=(3, rows))[1]
    for name, value in some.items():
        torch.testing.assert_close(value, whole[name][rows], atol=1e-6, rtol=1e-5)


def test_the_better_option_is_chosen(nb):
    """Sources with turned labels: the weight that leaves them out wins in most runs."""
    rng = np.random.default_rng(1)
    shift = np.r_[np.full(5, 1.5), np.zeros(15)]
    make = lambda turn: (lambda y: (rng.normal(size=(48, 20)) + np.outer(y, shift), abs(turn - y)))(np.arange(48) % 2)  # noqa: E731
    data = {name: make(name != "b") for name in "abc"}
    data = {name: (x.astype(np.float32), y.astype(np.float32)) for name, (x, y) in data.items()}
    extra = GIVEN | {"epochs": 20, "learning_rate": 0.01}
    nb = lift(f"{FOLDER}/gene_meta_learning.ipynb", NAMES, extra)
    runs = nb.fold_runs(data, "b")
    table = [[nb.Option(nb.Settings(), alpha=a)] * 6 for a in (0.1, 1.0)]
    chosen = nb.choose(runs, "FOMAML", table, "s", 100)
    assert np.mean([option.alpha for option in chosen]) > 0.6
    assert nb.choose(runs, "FOMAML", [table[1]], "s", 3) == table[1]


# Errors


def test_folds_hold_both_classes():
    nb = lift(f"{FOLDER}/gene_meta_learning.ipynb", NAMES, GIVEN | {"n_folds": 8})
    y = np.r_[np.zeros(87), np.ones(8)]
    folds = nb.stratified_folds(y, np.random.default_rng(0))
    assert len({len(train) for train, _ in folds}) == 1 and all(y[test].sum() == 1 for _, test in folds)
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(95))


def test_comparison_on_small_series(nb):
    """All methods, with the inner rule chosen in the fold: one finite score per patient and seed."""
    data = small_series()
    found, chosen = nb.compare(data, "b")
    assert list(found) == [*nb.METHODS, "joint, fixed", nb.FIXED]
    assert len(chosen) == 6 and {option.alpha for option in chosen} <= set(nb.ALPHAS)
    assert all(score.shape == (2, 24) and np.isfinite(score).all() for score in found.values())
    assert not np.allclose(found["MAML"], found["target-only"])
    runs = nb.fold_runs(data, "b", 8)
    assert runs.target[0].shape == (6, 8, 20)
    assert torch.allclose(runs.target[0].mean(1), torch.zeros(6, 20), atol=1e-5)  # scaled by its own training patients


def test_a_blood_series_gets_all_its_numbers(tmp_path):
    """The public preset's path on small series: every method, baseline and measure, with its interval."""
    names = [*NAMES, "CLASSIC", "MEASURES", "SHOWN", "compare_series", "WEIGHTS", "few_patients"]
    noted, data = {}, {name: (x.astype(np.float32), y) for name, (x, y) in small_series(36).items()}
    extra = {"blood": data, "note": lambda name, estimate, unit, gate=True: noted.update({name: estimate})}
    extra["kept"] = Store(tmp_path, {})
    nb = lift(f"{FOLDER}/gene_meta_learning.ipynb", names, GIVEN | extra)
    assert nb.mean_of([nb.compare_series("a", data["a"][1])["MAML"]] * 3).n == 3 * 36
    assert set(nb.few_patients(16, "a")) == {"MAML", "transfer", "MAML, alpha 0.1", "MAML, alpha 0.9"}
    entries = len(nb.METHODS) + 2 + 4 + 5  # the comparison, four choices, the five arms with few patients
    assert len(list(Path(tmp_path).rglob("*.entry"))) == entries  # a killed run goes on from here
    again = lift(f"{FOLDER}/gene_meta_learning.ipynb", names, GIVEN | extra | {"fit_chosen": None, "choices": None})
    scores, chosen = again.compare(data, "a")
    assert len(chosen) == 6 and np.isfinite(scores["MAML"]).all()
    assert sum(noted[f"chosen a alpha {a:g}"].value for a in nb.ALPHAS) == pytest.approx(1)
    wanted = {
        "gain_a_MAML_over_transfer",
        "gain_a_MAML_over_transfer, equal steps",
        "gain per fold a MAML",
        "gain_a_MAML, fixed",
    }
    assert wanted | {"macro-F1 gain a joint", "curve_a_MAML_n16", "gain_a_MAML, fixed"} <= set(noted)
    assert all(np.isfinite([e.value, e.low, e.high]).all() for e in noted.values())


def test_comparison_with_the_grid_of_the_paper(nb):
    """The `full` preset's path: batch size, width and alpha are chosen in the fold as well, for every method."""
    extra = GIVEN | {"epochs": 1, "GRID": nb.PAPER[::3]}  # two of six: two widths, both batches
    whole = lift(f"{FOLDER}/gene_meta_learning.ipynb", NAMES, GIVEN | {"grid": "paper"})
    assert len(whole.PLAIN) == 6 and len(whole.INNER) == 24 and len(whole.ALPHAS) == 6
    found, _ = lift(f"{FOLDER}/gene_meta_learning.ipynb", NAMES, extra).compare(small_series(18, names="ab"), "a")
    assert all(score.shape == (2, 18) and np.isfinite(score).all() for score in found.values())


def test_subset_keeps_both_classes(nb):
    y = np.r_[np.zeros(87), np.ones(8)]
    assert y[nb.subset(y, 16, np.random.default_rng(0))].sum() == 2
    assert y[nb.subset(y, 95, np.random.default_rng(0))].sum() == 8


def test_released_measures_equal_scikit_learn(nb):
    rng = np.random.default_rng(0)
    y, score = rng.random((4, 60)) < 0.3, rng.normal(size=(4, 60))
    for i in range(4):
        assert nb.accuracy(score, y)[i] == pytest.approx(accuracy_score(y[i], score[i] > 0))
        assert nb.macro_f1(score, y)[i] == pytest.approx(f1_score(y[i], score[i] > 0, average="macro"))
        assert nb.average_precision(score, y)[i] == pytest.approx(average_precision_score(y[i], score[i]))
    for of in (nb.accuracy, nb.macro_f1, nb.average_precision):
        assert of(score, y[0])[0] == of(score, y)[0]  # one row of labels for all seeds


def test_series_of_one_patient(nb):
    x, y = torch.zeros(1, 1, 20), torch.zeros(1, 1)
    with pytest.raises(ValueError, match="at least two patients"):
        nb.fit("target-only", (x, y), [], nb.Settings(6, 4, 1, 1, 1e-2), "s")


# GEO: the real parser on a small SOFT file

SOFT = """^SERIES = GSE1
!Series_title = tiny
!Series_platform_id = GPL1
^PLATFORM = GPL1
!Platform_title = tiny chip
#ID = probe
!platform_table_begin
ID
{probes}
!platform_table_end
"""
SAMPLE = """^SAMPLE = GSM{i}
!Sample_title = sample {i}
!Sample_source_name_ch1 = {tissue}
!Sample_characteristics_ch1 = age: 60
!Sample_platform_id = GPL1
#ID_REF = probe
#VALUE = signal
!sample_table_begin
ID_REF\tVALUE
{rows}
!sample_table_end
"""


def soft(path, tissues, probes=4):
    """Write a SOFT family file with one sample for each tissue; sample i has the value 2 ** (i + 7) in every probe."""
    names = [f"p{j}" for j in range(probes)]
    text = SOFT.format(probes="\n".join(names))
    for i, tissue in enumerate(tissues, start=1):
        text += SAMPLE.format(i=i, tissue=tissue, rows="\n".join(f"{name}\t{2 ** (i + 7)}" for name in names))
    path.write_text(text)
    return path


@pytest.mark.skipif(
    importlib.util.find_spec("GEOparse") is None, reason="GEOparse comes with the extra for the full preset"
)
def test_geo_series_from_a_soft_file(series_agreement, tmp_path):
    from GEOparse import get_GEO

    geo = get_GEO(
        filepath=str(soft(tmp_path / "GSE1_family.soft", ["Lung tumor", "adjacent normal lung"])), silent=True
    )
    values, y = series_agreement.read_geo(geo)
    assert y.tolist() == [1, 0]
    assert np.allclose(values.to_numpy(), [[8] * 4, [9] * 4])  # log2 of 256 and 512
    data = series_agreement.common_genes({"a": (values, y), "b": (values.iloc[:, 1:], y)}, genes=3)
    assert data["a"][0].shape == data["b"][0].shape == (2, 3)
    with pytest.raises(ValueError, match="share 3 probes; 4 are needed"):
        series_agreement.common_genes({"a": (values, y), "b": (values.iloc[:, 1:], y)}, genes=4)
    one_class = get_GEO(filepath=str(soft(tmp_path / "GSE2_family.soft", ["Lung tumor"] * 2)), silent=True)
    with pytest.raises(ValueError, match="one class only in 2 samples"):
        series_agreement.read_geo(one_class)


def test_the_packaged_set_is_the_expected_one():
    labels = pd.concat([pd.read_csv(packaged("ISLP", f"data/Khan_y{half}.csv")) for half in ("train", "test")])
    assert labels.iloc[:, 0].value_counts().to_dict() == {2: 29, 4: 25, 3: 18, 1: 11}


@pytest.mark.sabotage
@pytest.mark.slow
def test_turned_source_labels_are_noticed():
    error = sabotage(
        "gene_meta_learning",
        {"[y for _, y in k]) for k in kinds]": "[1 - y for _, y in k]) for k in kinds]"},
    )
    assert error.startswith("RegressionError") and "gain_MAML_rho-0.3_n16" in error
