"""Chapter gene_meta_learning: parity of the method, its error messages, the GEO path, and a sabotage."""

import importlib.util
from functools import partial
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import accuracy_score, average_precision_score, f1_score
from torch import nn
from torch.func import grad, vmap

from helpers.engine.lift import lift, sabotage
from helpers.models import packaged

NOTEBOOK = "notebooks/gene_meta_learning/gene_meta_learning.ipynb"
NAMES = (
    *("inner_loop", "Rule", "source_losses", "target_loss", "outer_loss", "plain_outer_loss", "released_loss"),
    *("MLP", "CNN", "BatchEncoder", "GeneEncoder", "NETWORKS", "METHODS", "Settings", "batches", "take", "fresh"),
    *("source_batches", "train", "fit", "scores", "auroc", "make_series", "make_task", "standardise", "stack_tasks"),
    *("t_statistics", "agreement", "read_series", "read_geo", "common_genes", "stratified_folds", "subset"),
    *("PAPER", "RELEASED", "INNER", "PLAIN", "FoldRuns", "fold_runs", "groups", "choose", "fit_chosen", "compare"),
    *("gain_draws", "from_draws", "measures", "top_overlap", "attributions"),
)


class FakeRun:
    """The two random sources of `Run`, without a record."""

    device = torch.device("cpu")

    def rng(self, stream=0):
        return np.random.default_rng([7, sum(map(ord, str(stream)))])

    def torch_generator(self, stream=0):
        return torch.Generator().manual_seed(sum(map(ord, str(stream))))


CHOICES = {"epochs": 2, "batch_size": 8, "hidden": 6, "ETAS": [4e-4, 0.1]}


@pytest.fixture(scope="module")
def nb():
    return lift(NOTEBOOK, NAMES, {"run": FakeRun(), "n_source": 24, "n_seeds": 2, "n_folds": 3} | CHOICES)


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


@pytest.mark.parametrize("network", ["MLP", "CNN", "transformer (batch)", "transformer (genes)"])
def test_second_order_training_runs_for_every_network(nb, network):
    target, test, sources = nb.stack_tasks(
        [nb.make_task(0.5, 8, np.random.default_rng(s), 6, 20) for s in range(2)], "cpu"
    )
    settings = nb.Settings(8, 4, 1, 10, 1e-2, 0.5)
    for method in nb.METHODS:
        net, params = nb.fit(method, target, sources, settings, "s", nb.Rule(2, 0.1), network)
        assert np.isfinite(nb.scores(net, params, test[0])).all()


def test_stacked_training_equals_single_trainings(nb):
    """Run r of a stack ends at the weights that it reaches alone, with the same batches."""
    tasks = [nb.make_task(0.5, 6, np.random.default_rng(s), 6, 20) for s in range(3)]
    target, _, sources = nb.stack_tasks(tasks, "cpu")
    net, rule = nb.MLP(20, 6), nb.Rule(1, 0.1, True)
    start = nb.fresh(partial(nb.MLP, 20, 6), 3, torch.Generator().manual_seed(1))
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
    assert [rows.shape for _, rows in plan] == [(3, 23)] * 6
    assert [epoch for epoch, _ in plan] == [0, 0, 0, 1, 1, 1]
    for r in range(3):
        assert sorted(np.concatenate([rows[r] for _, rows in plan[:3]])) == list(range(69))


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


def test_top_overlap_and_gain_draws(nb):
    same = np.tile(np.arange(100.0), (3, 1))
    assert np.allclose(nb.top_overlap(same, same), 1) and np.allclose(nb.top_overlap(same, -same), 0)
    y = np.array([0, 1] * 20)
    a, b = np.tile(y, (2, 1)).astype(float), np.zeros((2, 40))
    estimate = nb.from_draws(nb.gain_draws(y, a, b, np.random.default_rng(0), 20), 40)
    assert estimate.value == estimate.low == estimate.high == 0.5


def test_attributions_find_the_only_gene_that_matters(nb):
    net = nb.MLP(20, 6)
    params = nb.fresh(partial(nb.MLP, 20, 6), 2, torch.Generator().manual_seed(0))
    params["first.weight"][:, :, :3] = 0
    params["first.weight"][:, :, 4:] = 0
    found = nb.attributions(net, params, torch.randn(2, 9, 20, generator=torch.Generator().manual_seed(1)))
    assert (found.argmax(1) == 3).all() and np.allclose(np.delete(found, 3, 1), 0)


# Errors


@pytest.fixture
def csv(tmp_path):
    def write(**columns):
        path = tmp_path / "series.csv"
        pd.DataFrame(columns).to_csv(path)
        return path

    return write


def test_missing_probe_columns(nb, csv):
    with pytest.raises(ValueError, match=r"series\.csv: 1 of 2 probe columns are missing, for example ILMN_2"):
        nb.read_series(csv(ILMN_1=[1.0, 2.0], y=[0, 1]), ["ILMN_1", "ILMN_2"])


def test_values_that_are_not_numbers(nb, csv):
    with pytest.raises(ValueError, match=r"1 expression values are not numbers, the first is 'high' in column ILMN_2"):
        nb.read_series(csv(ILMN_1=[1.0, 2.0], ILMN_2=["3", "high"], y=[0, 1]))
    with pytest.raises(ValueError, match="not numbers"):
        nb.read_series(csv(ILMN_1=[1.0, None], y=[0, 1]))
    with pytest.raises(ValueError, match="2 expression values are not numbers, the first is 'high' in column ILMN_2"):
        nb.read_series(csv(ILMN_1=["1", "low"], ILMN_2=["high", "2"], y=[0, 1]))


@pytest.mark.parametrize("columns", [{"ILMN_1": [1.0]}, {"ILMN_1": [1.0], "y": [2]}])
def test_labels_must_be_zero_and_one(nb, csv, columns):
    with pytest.raises(ValueError, match="labels 0 and 1"):
        nb.read_series(csv(**columns))


def test_single_class_folds(nb):
    y = np.r_[np.zeros(87), np.ones(8)]
    with pytest.raises(ValueError, match="8 patients in the smaller class do not fill 10 folds"):
        nb.stratified_folds(y, 10, np.random.default_rng(0))
    with pytest.raises(ValueError, match="one class only"):
        nb.auroc(np.arange(4.0), np.zeros(4))
    folds = nb.stratified_folds(y, 8, np.random.default_rng(0))
    assert len({len(train) for train, _ in folds}) == 1 and all(y[test].sum() == 1 for _, test in folds)
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(95))


def test_comparison_on_small_series(nb):
    """All methods, with the inner rule chosen in the fold: one finite score per patient and seed."""
    rng = np.random.default_rng(0)
    data = {n: (rng.normal(size=(24, 20)), (np.arange(24) % 2).astype(np.float32)) for n in ("a", "b", "c")}
    found = nb.compare(data, "b")
    assert list(found) == list(nb.METHODS)
    assert all(score.shape == (2, 24) and np.isfinite(score).all() for score in found.values())
    assert not np.allclose(found["MAML"], found["target-only"])
    runs = nb.fold_runs(data, "b", 8)
    assert runs.target[0].shape == (6, 8, 20)
    assert torch.allclose(runs.target[0].mean(1), torch.zeros(6, 20), atol=1e-5)  # scaled by its own training patients


def test_comparison_with_the_grid_of_the_paper():
    """The `full` preset's path: batch size, width and alpha are chosen in the fold as well, for every method."""
    extra = {"run": FakeRun(), "n_source": 24, "n_seeds": 2, "n_folds": 3, "grid": "paper"} | CHOICES | {"epochs": 1}
    whole = lift(NOTEBOOK, NAMES, extra)
    assert len(whole.PLAIN) == 30 and len(whole.INNER) == 120
    nb = lift(NOTEBOOK, NAMES, extra | {"RELEASED": whole.PAPER[::13]})  # three of the thirty: all widths and batches
    rng = np.random.default_rng(0)
    data = {n: (rng.normal(size=(18, 20)), (np.arange(18) % 2).astype(np.float32)) for n in ("a", "b")}
    found = nb.compare(data, "a")
    assert all(score.shape == (2, 18) and np.isfinite(score).all() for score in found.values())


def test_one_partition(nb):
    data = {"a": (np.random.default_rng(0).normal(size=(18, 20)), (np.arange(18) % 2).astype(np.float32))}
    runs = nb.fold_runs(data, "a", seeds=1)
    score = np.zeros((3, 18))
    for r, rows in enumerate(runs.test):
        score[r, rows] = rows + 1
    assert np.array_equal(runs.out_of_fold(score), [np.arange(18) + 1.0])


def test_subset_keeps_both_classes(nb):
    y = np.r_[np.zeros(87), np.ones(8)]
    assert y[nb.subset(y, 16, np.random.default_rng(0))].sum() == 2
    with pytest.raises(ValueError, match="between 4 and 95"):
        nb.subset(y, 96, np.random.default_rng(0))
    with pytest.raises(ValueError, match="2 patients of class 1 are needed; 1 are there"):
        nb.subset(np.r_[np.zeros(15), 1.0], 8, np.random.default_rng(0))


def test_a_score_does_not_depend_on_patients_outside_the_test_fold(nb):
    """The released transformer reading attends over the patients that it scores: those of the test fold only."""
    data = {"a": (np.random.default_rng(0).normal(size=(18, 20)), (np.arange(18) % 2).astype(np.float32))}
    runs = nb.fold_runs(data, "a", seeds=1)
    plain = [(nb.Settings(), 1, 4e-4)], np.zeros(3, int), "s", "transformer (batch)"
    before = nb.fit_chosen(runs, "target-only", *plain)
    for r, rows in enumerate(runs.test):
        runs.everyone[r, np.setdiff1d(np.arange(18), rows)] = 100.0
    assert np.isfinite(before).all() and np.array_equal(before, nb.fit_chosen(runs, "target-only", *plain))


def test_released_measures_equal_scikit_learn(nb):
    rng = np.random.default_rng(0)
    y, score, weight = (rng.random(60) < 0.3).astype(float), rng.normal(size=(2, 60)), rng.integers(0, 4, (3, 60))
    found = nb.measures(y, score, weight)
    for (d, w), (s, logit) in product(enumerate(weight), enumerate(score)):
        wanted = {
            "accuracy": accuracy_score(y, logit > 0, sample_weight=w),
            "macro-F1": f1_score(y, logit > 0, average="macro", sample_weight=w),
            "average precision": average_precision_score(y, logit, sample_weight=w),
        }
        assert {kind: value[d, s] for kind, value in found.items()} == pytest.approx(wanted)


def test_uneven_gene_groups(nb):
    with pytest.raises(ValueError, match="do not split"):
        nb.GeneEncoder(21, 8)


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
def test_geo_series_from_a_soft_file(nb, tmp_path):
    from GEOparse import get_GEO

    geo = get_GEO(
        filepath=str(soft(tmp_path / "GSE1_family.soft", ["Lung tumor", "adjacent normal lung"])), silent=True
    )
    values, y = nb.read_geo(geo)
    assert y.tolist() == [1, 0]
    assert np.allclose(values.to_numpy(), [[8] * 4, [9] * 4])  # log2 of 256 and 512
    data = nb.common_genes({"a": (values, y), "b": (values.iloc[:, 1:], y)}, genes=3)
    assert data["a"][0].shape == data["b"][0].shape == (2, 3)
    with pytest.raises(ValueError, match="share 3 probes; 4 are needed"):
        nb.common_genes({"a": (values, y), "b": (values.iloc[:, 1:], y)}, genes=4)
    one_class = get_GEO(filepath=str(soft(tmp_path / "GSE2_family.soft", ["Lung tumor"] * 2)), silent=True)
    with pytest.raises(ValueError, match="one class only in 2 samples"):
        nb.read_geo(one_class)


def test_the_packaged_set_is_the_expected_one():
    labels = pd.concat([pd.read_csv(packaged("ISLP", f"data/Khan_y{half}.csv")) for half in ("train", "test")])
    assert labels.iloc[:, 0].value_counts().to_dict() == {2: 29, 4: 25, 3: 18, 1: 11}


@pytest.mark.sabotage
@pytest.mark.slow
def test_turned_source_labels_are_noticed():
    error = sabotage(
        "gene_meta_learning",
        {"put([t[2][k][1] for t in tasks]))": "put([1 - t[2][k][1] for t in tasks]))"},
    )
    assert error.startswith("RegressionError") and "gain_MAML_rho0.9_n48" in error
