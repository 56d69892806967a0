"""Chapter gene_meta_learning: parity of the method, its error messages, the studies, the GEO path, and a sabotage."""

import importlib.util
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from lift import lift, sabotage
from sklearn.metrics import accuracy_score, average_precision_score, f1_score
from torch import nn
from torch.func import grad, vmap

from helpers.models import packaged

FOLDER = "notebooks/gene_meta_learning"
NAMES = (
    *("inner_loop", "Rule", "source_losses", "target_loss", "outer_loss", "plain_outer_loss", "released_loss"),
    *("MLP", "METHODS", "Settings", "batches", "take", "fresh", "source_batches", "train", "fit", "scores"),
    *("make_series", "make_task", "standardise", "stack_tasks", "t_statistics", "agreement", "stratified_folds"),
    *(
        "subset",
        "released",
        "PAPER",
        "GRID",
        "INNER",
        "PLAIN",
        "FoldRuns",
        "fold_runs",
        "groups",
        "choose",
        "fit_chosen",
    ),
    *("compare", "accuracy", "macro_f1", "average_precision", "paired_gain", "mean_of"),
)


class FakeRun:
    """The two random sources of `Run`, without a record."""

    device = torch.device("cpu")

    def rng(self, stream=0):
        return np.random.default_rng([7, sum(map(ord, str(stream)))])

    def torch_generator(self, stream=0):
        return torch.Generator().manual_seed(sum(map(ord, str(stream))))


SIZES = {"n_source": 24, "n_seeds": 2, "n_folds": 3, "epochs": 2, "batch_size": 8, "hidden": 6, "ETAS": [4e-4, 0.1]}


@pytest.fixture(scope="module")
def nb():
    return lift(f"{FOLDER}/gene_meta_learning.ipynb", NAMES, {"run": FakeRun()} | SIZES)


@pytest.fixture(scope="module")
def networks():
    names = (
        "NETWORKS",
        "GeneEncoder",
        "mlp",
        "drawn",
        "train",
        "attributions",
        "top_overlap",
        "fold_scores",
        "outer_loss",
    )
    extra = {"run": FakeRun(), "data": small_series(), "epochs": 2, "batch_size": 8, "hidden": 6, "n_folds": 3}
    return lift(f"{FOLDER}/networks.ipynb", names, extra)


@pytest.fixture(scope="module")
def choosing():
    names = ("start", "logits", "learn", "fold_curves", "readings", "elsewhere")
    extra = {"run": FakeRun(), "epochs": 3, "widths": [4, 6], "batch_sizes": [8], "n_repeats": 2, "learning_rate": 0.01}
    return lift(f"{FOLDER}/choosing_on_test.ipynb", names, extra)


@pytest.fixture(scope="module")
def series_agreement():
    names = ("effects", "across", "within", "read_geo", "common_genes", "contrast")
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
    rule = nb.Rule(steps, 0.1, second_order)
    fast, plain = (
        grad(partial(f, net))(params, target, sources, 0.3, rule) for f in (nb.outer_loss, nb.plain_outer_loss)
    )
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
        g = grad(partial(nb.released_loss, net))(params, target, (scale * sources[0], sources[1]), weight, nb.Rule())
        for name in params:
            torch.testing.assert_close(g[name], weight * wanted[name], atol=1e-7, rtol=0)


def test_every_method_trains(nb):
    tasks = [nb.make_task(0.5, 8, np.random.default_rng(s), 6, 20) for s in range(2)]
    target, test, sources = nb.stack_tasks(tasks, "cpu")
    settings = nb.Settings(8, 4, 1, 10, 1e-2, 0.5)
    for method in nb.METHODS:
        net, params = nb.fit(method, target, sources, settings, "s", nb.Rule(2, 0.1))
        assert np.isfinite(nb.scores(net, params, test[0])).all()


def test_stacked_training_equals_single_trainings(nb):
    """Run r of a stack ends at the weights that it reaches alone, with the same batches."""
    tasks = [nb.make_task(0.5, 6, np.random.default_rng(s), 6, 20) for s in range(3)]
    target, _, sources = nb.stack_tasks(tasks, "cpu")
    net, rule = nb.MLP(20, 6), nb.Rule(1, 0.1, True)
    start = nb.fresh(partial(nb.MLP, 20, 6), 3, torch.Generator().manual_seed(1), "cpu")
    settings = nb.Settings(6, 100, 4, 100, 1e-2, 0.5)  # whole-series batches, so that their order does not matter
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


def test_attributions_find_the_only_gene_that_matters(networks):
    net = networks.drawn(lambda: networks.mlp(20), "s").requires_grad_(False)
    net[0].weight[:, :3] = net[0].weight[:, 4:] = 0
    found = networks.attributions(net, torch.randn(9, 20, generator=torch.Generator().manual_seed(1)))
    assert found.argmax() == 3 and np.allclose(np.delete(found, 3), 0)


@pytest.mark.parametrize("second_order", [True, False])
def test_both_implementations_have_one_gradient(nb, networks, tiny, second_order):
    """The textbook loss of the study, on modules, against the fast loss of the main notebook."""
    net, params, target, sources = tiny
    net.load_state_dict(params)
    loss = networks.outer_loss(net, target, list(zip(*sources, strict=True)), second_order)
    loss.backward()
    rule = nb.Rule(1, 4e-4, second_order)
    wanted = grad(partial(nb.outer_loss, net))(params, target, sources, 0.5, rule)
    for name, p in net.named_parameters():
        torch.testing.assert_close(p.grad, wanted[name], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("network", ["MLP", "CNN", "transformer (batch)", "transformer (genes)"])
def test_every_network_scores_every_patient(networks, network):
    assert all(np.isfinite(networks.fold_scores(network, "a", sources, 0)).all() for sources in (False, True))


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
    lucky[0, ::2, 1] = 1.0  # good on one half of the folds only
    assert choosing.readings(lucky)["best on test"] == 0.75 and choosing.elsewhere(lucky)["best on test"] == 0.5


def test_contrast_of_groups(series_agreement):
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(300, 1))
    alike, unlike = (pd.DataFrame(k * shared + rng.normal(size=(300, 5))) for k in (3, 0))
    found = series_agreement.contrast(alike, unlike)
    assert 0.8 < found.low < found.value < found.high < 1 and found.n == 10


# Errors


def test_folds_hold_both_classes():
    nb = lift(f"{FOLDER}/gene_meta_learning.ipynb", NAMES, {"run": FakeRun()} | SIZES | {"n_folds": 8})
    y = np.r_[np.zeros(87), np.ones(8)]
    folds = nb.stratified_folds(y, np.random.default_rng(0))
    assert len({len(train) for train, _ in folds}) == 1 and all(y[test].sum() == 1 for _, test in folds)
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(95))


def test_comparison_on_small_series(nb):
    """All methods, with the inner rule chosen in the fold: one finite score per patient and seed."""
    data = small_series()
    found = nb.compare(data, "b")
    assert list(found) == list(nb.METHODS)
    assert all(score.shape == (2, 24) and np.isfinite(score).all() for score in found.values())
    assert not np.allclose(found["MAML"], found["target-only"])
    runs = nb.fold_runs(data, "b", 8)
    assert runs.target[0].shape == (6, 8, 20)
    assert torch.allclose(runs.target[0].mean(1), torch.zeros(6, 20), atol=1e-5)  # scaled by its own training patients


def test_a_blood_series_gets_all_its_numbers():
    """The public preset's path on small series: every method, baseline and measure, with its interval."""
    names = [*NAMES, "CLASSIC", "MEASURES", "SHOWN", "compare_series", "few_patients"]
    noted, data = {}, {name: (x.astype(np.float32), y) for name, (x, y) in small_series(36).items()}
    extra = {"blood": data, "note": lambda name, estimate, unit, gate=True: noted.update({name: estimate})}
    nb = lift(f"{FOLDER}/gene_meta_learning.ipynb", names, {"run": FakeRun()} | SIZES | extra)
    assert nb.mean_of([nb.compare_series("a", data["a"][1])["MAML"]] * 3).n == 3 * 36
    assert set(nb.few_patients(16, "a")) == {"MAML", "transfer"}
    assert {"auroc_a_LightGBM", "gain_a_MAML_over_transfer", "macro-F1 gain a joint", "curve_a_MAML_n16"} <= set(noted)
    assert all(np.isfinite([e.value, e.low, e.high]).all() for e in noted.values())


def test_comparison_with_the_grid_of_the_paper(nb):
    """The `full` preset's path: batch size, width and alpha are chosen in the fold as well, for every method."""
    extra = (
        {"run": FakeRun()} | SIZES | {"epochs": 1, "GRID": nb.PAPER[::13]}
    )  # three of thirty: all widths and batches
    whole = lift(f"{FOLDER}/gene_meta_learning.ipynb", NAMES, {"run": FakeRun(), "grid": "paper"} | SIZES)
    assert len(whole.PLAIN) == 30 and len(whole.INNER) == 120
    found = lift(f"{FOLDER}/gene_meta_learning.ipynb", NAMES, extra).compare(small_series(18, names="ab"), "a")
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
        nb.fit("target-only", (x, y), [], nb.Settings(6, 4, 1, 1, 1e-2, 0.5), "s")


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
