"""Chapter ecg_vae: golden values, parity with packages and with plain loops, error messages, both studies, sabotage."""

import importlib.util
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fake_run import FakeRun
from lift import lift
from sklearn.decomposition import PCA

from helpers.stats import auroc

FOLDER = "notebooks/ecg_vae"
MAIN = (
    *(
        "kl_normal",
        "misfit",
        "elbo_beta",
        "beta_schedule",
        "principal",
        "pca_rebuilt",
        "Arm",
        "Stack",
        "encode",
        "TIME",
    ),
    *("decode", "convolved", "weights_of", "train", "prepare", "World", "draw_patients", "twelve", "crossing"),
    *("predict", "first", "train_cnn", "two_classes", "compare", "chosen", "SeedCNN", "encodings", "KINDS", "DOWER"),
)
LUDB = (
    *(
        "read_counts",
        "read_marks",
        "check_leads",
        "limb_leads",
        "band",
        "r_peaks",
        "cut_beats",
        "typical",
        "noises",
        "level",
    ),
    *("matches", "f1", "KORS", "INVERSE_DOWER", "frank_agreement", "own_cohort", "EIGHT", "principal", "pca_rebuilt"),
    *("beta_schedule", "kl_normal", "Stack", "generated_ecgs", "ARMS", "Cohort", "sum_errors"),
)
F_POINTS = [0, 0.1, 0.125, 0.2, 0.25, 0.3, 0.5, 0.8, 0.9, 1.0]
SCHEDULES = {  # golden values of the pilot's schedules at ten points, beta 1
    "A-down": [1.0, 0.875, 0.84375, 0.75, 0.6875, 0.625, 0.375, 0.0, 0.0, 0.0],
    "A-up": [0.0, 0.2, 0.25, 0.4, 0.5, 0.6, 1.0, 1.0, 1.0, 1.0],
    "C": [0.0, 0.8, 1.0, 1.0, 0.0, 0.4, 0.0, 0.4, 1.0, 0.0],
}
DATA = Path(os.environ.get("REPRODUCTIONS_DATA", "")) / "ecg_vae"
with_data = pytest.mark.skipif(not (DATA / "ludb-1.0.1").is_dir(), reason="the public data are not in the cache")


def needs(package):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package}: the extra `peers`")


SIZES = {
    **{"latents": 4, "hidden": 8, "encoder": "perceptron", "steps": 40, "batch_size": 16, "learning_rate": 2e-3},
    **{"n_seeds": 2, "n_boosts": 1, "CNN_STEPS": 30, "tqdm": lambda x, **_: x},
}


@pytest.fixture(scope="module")
def nb():
    return lift(f"{FOLDER}/ecg_vae.ipynb", MAIN, {"run": FakeRun()} | SIZES)


@pytest.fixture(scope="module")
def ludb():
    return lift(f"{FOLDER}/ludb.ipynb", LUDB, {"run": FakeRun(), "UNIT": "counts", "cohort": ""} | SIZES)


# Losses and schedules


@pytest.mark.parametrize("kind", SCHEDULES)
def test_schedules_equal_the_golden_values(nb, ludb, kind):
    for module in (nb, ludb):
        found = [module.beta_schedule(kind, f, 1.0) for f in F_POINTS]
        np.testing.assert_allclose(found, SCHEDULES[kind], atol=1e-12)
        assert module.beta_schedule("SAE", 0.3, 5.0) == 0 and module.beta_schedule("beta-VAE", 0.3, 5.0) == 5


def test_loss_terms_equal_the_golden_values(nb):
    """Made once with NumPy: r = RandomState(1); x, xhat = randn(4, 6); mu, logvar = randn(4, 3)."""
    r = np.random.RandomState(1)
    x, xhat, mu, logvar = (torch.as_tensor(r.randn(*s)) for s in ((4, 6), (4, 6), (4, 3), (4, 3)))
    assert float(nb.kl_normal(mu, logvar).sum(-1).mean()) == pytest.approx(2.104709937006813, abs=1e-12)
    assert float(nb.misfit(x, xhat, 0.5).mean()) == pytest.approx(20.146312587621587, abs=1e-12)


def test_kl_equals_torch_and_both_notebooks_agree(nb, ludb):
    g = torch.Generator().manual_seed(0)
    mu, logvar = torch.randn(50, 3, generator=g), torch.randn(50, 3, generator=g)
    one = torch.distributions.Normal(mu, (0.5 * logvar).exp())
    wanted = torch.distributions.kl_divergence(one, torch.distributions.Normal(0.0, 1.0))
    for module in (nb, ludb):
        torch.testing.assert_close(module.kl_normal(mu, logvar), wanted, atol=1e-5, rtol=1e-5)


@needs("pythae")
def test_loss_equals_pythae(nb):
    from pythae.models import VAE, VAEConfig

    g = torch.Generator().manual_seed(0)
    x, rebuilt = torch.randn(5, 12, generator=g), torch.randn(5, 12, generator=g)
    mu, logvar = torch.randn(5, 3, generator=g), torch.randn(5, 3, generator=g)
    net = VAE(VAEConfig(input_dim=(12,), latent_dim=3, reconstruction_loss="mse"))
    total, error, nats = net.loss_function(rebuilt, x, mu, logvar, mu)
    torch.testing.assert_close(nb.misfit(x, rebuilt, 1.0).mean(), error)
    torch.testing.assert_close(nb.kl_normal(mu, logvar).sum(-1).mean(), nats)
    torch.testing.assert_close((nb.misfit(x, rebuilt, 1.0) + nb.kl_normal(mu, logvar).sum(-1)).mean(), total)


def test_beta_of_other_conventions(nb):
    golden = {("sum", "sum", 100): 12.5, ("mean", "mean", 100): 1175.0, ("mean", "sum", 100): 18800.0}
    golden |= {("sum", "sum", 1000): 1250.0, ("mean", "sum", 1000): 1880000.0}
    for (error, kl, unit), wanted in golden.items():
        assert nb.elbo_beta(1, error, kl, unit, 1504, 16) == pytest.approx(wanted)


def test_converted_beta_has_the_same_optimum(nb):
    """Brute force: the gradients of both losses point the same way."""
    g = torch.Generator().manual_seed(3)
    x, w, mu = torch.randn(1, 8, generator=g) * 80, torch.randn(2, 8, generator=g) * 50, torch.randn(1, 2, generator=g)
    mu.requires_grad_()
    kl = nb.kl_normal(mu, torch.zeros(1, 2))
    other = ((x - mu @ w) / 100).square().mean() + 0.3 * kl.mean()
    beta = nb.elbo_beta(0.3, "mean", "mean", 100, 8, 2)
    ours = nb.misfit(x, mu @ w).sum() + beta * kl.sum()
    a, b = (torch.autograd.grad(loss, mu, retain_graph=True)[0] for loss in (other, ours))
    torch.testing.assert_close(a / a.norm(), b / b.norm(), atol=1e-5, rtol=1e-4)


# PCA and the stack


@pytest.mark.parametrize("n", [3, 20, 90])
def test_pca_equals_scikit_learn(nb, ludb, n):
    x = torch.randn(n, 40, generator=torch.Generator().manual_seed(n)) * torch.linspace(3, 0.1, 40)
    reference = PCA(2).fit(x.numpy())
    wanted = reference.inverse_transform(reference.transform(x.numpy()))
    for module in (nb, ludb):
        np.testing.assert_allclose(module.pca_rebuilt(x, *module.principal(x), 2), wanted, atol=1e-4)


def plain(stack, arm_index, arm, x):
    """One arm by itself, written out."""
    w = {name: value[0, arm_index] for name, value in stack.w.items()}
    inner = F.gelu(x @ w["in"] + w["in_bias"])
    mu, bent = w["mean_bias"].expand(len(x), -1), 0
    if arm.kind != "linear":
        mu = mu + inner @ w["mean"]
    if arm.start == "PCA" or arm.kind == "linear":
        mu = mu + x @ w["straight_in"]
    if arm.kind != "linear":
        bent = F.gelu(mu @ w["hide"] + w["hide_bias"]) @ w["out"]
    out = bent + w["out_bias"]
    if arm.start == "PCA" or arm.kind == "linear":
        out = out + mu @ w["straight_out"]
    return mu, (inner @ w["logvar"] + w["logvar_bias"]).clamp(-14, 4), out


def test_stack_equals_plain_networks(nb):
    g = torch.Generator().manual_seed(0)
    arms = [nb.Arm("linear"), nb.Arm("AE", start="random"), nb.Arm("AE"), nb.Arm("C", 1)]
    stack = nb.Stack(arms, torch.rand(1, 10, generator=g) + 0.5, torch.eye(10)[None], g)
    for value in stack.w.values():  # away from the start
        value.data += 0.1 * torch.randn(value.shape, generator=g)
    x = torch.randn(7, 10, generator=g)
    mu, logvar = nb.encode(stack, x[None, None])
    out = nb.decode(stack, mu)
    for i, arm in enumerate(arms):
        for found, wanted in zip((mu, logvar, out), plain(stack, i, arm, x), strict=True):
            torch.testing.assert_close(found[0, i], wanted, atol=1e-5, rtol=1e-4)


def test_stacks_start_at_pca(nb, ludb):
    x = torch.randn(60, 200, generator=torch.Generator().manual_seed(0)) * torch.linspace(300, 1, 200)
    for module, k in ((nb, 64), (ludb, 128)):
        mean, axes = module.principal(x, k)
        inside = (x - mean) @ axes / 100
        scale, g = inside.square().mean(0).sqrt()[None], torch.Generator().manual_seed(0)
        if module is nb:
            stack = nb.Stack([nb.Arm("SAE")], scale, axes[None], g)
            out = nb.decode(stack, nb.encode(stack, inside[None, None])[0])[0, 0]
        else:
            stack = ludb.Stack(scale, g)
            out = stack.decode(stack.encode(inside[None, None])[0])[0, 0]
        wanted = module.pca_rebuilt(x, mean, axes, 4)
        torch.testing.assert_close(out @ axes.mT * 100 + mean, wanted, atol=1e-2, rtol=1e-4)


def test_grouped_convolutions_equal_single_ones():
    conv = lift(f"{FOLDER}/ecg_vae.ipynb", MAIN, {"run": FakeRun()} | SIZES | {"encoder": "convolution"})
    g = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(2, 752, 64, generator=g))[0]
    stack = conv.Stack([conv.Arm("AE"), conv.Arm("SAE")], torch.ones(2, 64), axes, g)
    x = torch.randn(2, 1, 3, 64, generator=g)
    found = conv.convolved(x, conv.weights_of(stack, None))
    for p in range(2):
        for a in range(2):
            beat = (x[p, 0] @ axes[p].mT).reshape(3, 8, 94)
            h = F.gelu(F.conv1d(beat, stack.w["conv1"][p, a], stride=2))
            h = F.gelu(F.conv1d(h, stack.w["conv2"][p, a], stride=2)).flatten(1)
            torch.testing.assert_close(found[p, a], h, atol=1e-5, rtol=1e-4)
    beats = [torch.randn(60, 752, generator=g) * 50 for _ in range(2)]  # the preset gpu, scaled down
    fitted = conv.train(beats, [conv.Arm("AE"), conv.Arm("C", 1)], "tiny")
    assert torch.isfinite(fitted.validation).all() and fitted.codes(beats[0], 0)[0].shape == (2, 60, 4)


def test_convolutional_network_equals_conv1d(nb):
    g = torch.Generator().manual_seed(0)
    net, x = nb.SeedCNN(2, 5, g), torch.randn(2, 3, 8, 94, generator=g)
    summary, found = torch.randn(2, 3, 5, generator=g), None
    found = net(x, summary)
    for r in range(2):
        h = x[r]
        for name, size in (("one", 7), ("two", 5), ("three", 3)):
            assert net.w[name].shape[-1] == size
            h = F.gelu(F.conv1d(h, net.w[name][r], stride=2))
        pooled = torch.cat([h.mean(-1), h.amax(-1), summary[r]], -1)
        torch.testing.assert_close(
            found[r], (pooled @ net.w["head"][r]).squeeze(1) + net.w["bias"][r], atol=1e-4, rtol=1e-4
        )


def test_training_with_bends_beats_pca_and_without_does_not(nb):
    """A curve in the plane of two components: one latent is enough for a bent code, not for a straight one."""
    t = np.random.default_rng(0).uniform(-1, 1, 400)
    x = torch.zeros(400, 752)
    x[:, 0], x[:, 1] = torch.as_tensor(300 * t), torch.as_tensor(300 * t**2)
    x += torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    one = lift(f"{FOLDER}/ecg_vae.ipynb", MAIN, {"run": FakeRun()} | SIZES | {"latents": 1, "steps": 300, "hidden": 16})
    fitted = one.train([x], [one.Arm("linear"), one.Arm("AE")], "curve")
    by_pca = float((one.pca_rebuilt(x, *one.principal(x), 1) - x).abs().mean())
    linear, bent = fitted.validation[0].tolist()
    assert bent < 0.95 * by_pca and linear > 0.95 * by_pca


def test_problems_of_different_size_do_not_mix(nb):
    """The padded rows of a small problem are never drawn: its result does not depend on the large one."""
    g = torch.Generator().manual_seed(0)
    small, large = torch.randn(30, 752, generator=g) * 50, torch.randn(90, 752, generator=g) * 50
    mean, _, inside, sizes, held_out = nb.prepare([small, large])
    assert sizes.tolist() == [24, 72] and [len(x) for x in held_out] == [6, 18]
    assert not inside[0, 24:].any()
    torch.testing.assert_close(mean[0], small[:24].mean(0))


def test_chosen_arm_is_the_best_of_its_kind(nb):
    arms = [nb.Arm("AE", start="random"), nb.Arm("AE"), nb.Arm("A-up", 1), nb.Arm("A-down", 1)]
    seen = SimpleNamespace(arms=arms, validation=torch.tensor([[0.1, 3.0, 2.0, 1.0]]))
    assert nb.chosen(seen, 0, ["AE"]) == 1 and nb.chosen(seen, 0, ["A-up", "A-down"]) == 3


# Generator


def test_knobs_of_the_generator(nb):
    def draw(world):
        return nb.draw_patients(4000, world, np.random.default_rng(0))

    def link(values, d):
        return abs(np.corrcoef(values, d)[0, 1])

    whole, blind, printed = draw(nb.World()), draw(nb.World(d_effect=0)), draw(nb.World(in_summary_only=True))
    axis = {
        w: link(p.summary[:, 4], p.factors["d"]) for w, p in (("whole", whole), ("blind", blind), ("printed", printed))
    }
    assert axis["whole"] > 0.2 and axis["printed"] > 0.2 and axis["blind"] < 0.05
    shape = {w: link(p.factors["r_gain"], p.factors["d"]) for w, p in (("whole", whole), ("printed", printed))}
    assert shape["whole"] > 0.2 and shape["printed"] < 0.05
    assert link(printed.summary[:, 0], 80 * printed.factors["width"]) < 0.05  # another heart: no shared nuisance
    assert link(whole.summary[:, 0], 80 * whole.factors["width"]) > 0.8
    flat = draw(nb.World(warp=0)).beats
    assert float((flat - nb.pca_rebuilt(flat, *nb.principal(flat), 18)).std()) < 5.1


def test_twelve_leads_obey_the_sums(nb, ludb):
    beat = torch.randn(3, 752, generator=torch.Generator().manual_seed(0))
    leads = nb.twelve(beat)
    np.testing.assert_allclose(leads[:, 2], leads[:, 1] - leads[:, 0], atol=1e-6)
    np.testing.assert_allclose(leads[:, 3] + leads[:, 4] + leads[:, 5], 0, atol=1e-5)
    eight = np.moveaxis(beat.numpy().reshape(3, 8, 94), 1, 2)
    np.testing.assert_allclose(np.moveaxis(leads, 1, 2), ludb.limb_leads(eight), atol=1e-6)


def test_crossing(nb):
    import pandas as pd

    part = pd.DataFrame({"n": [100, 200, 400], "gap": [1.0, -1.0, -2.0]})
    assert nb.crossing(part) == pytest.approx(np.sqrt(100 * 200))
    assert np.isnan(nb.crossing(part.assign(gap=[1.0, 1.0, 0.5])))


def test_predictors_on_a_small_world(nb):
    known, test = (nb.draw_patients(n, nb.World(), np.random.default_rng(n)) for n in (300, 400))
    fitted = nb.train([known.beats], [nb.Arm("SAE")], "small")
    found = nb.predict(fitted, 0, known, test, ["PCA", "SAE"])
    assert {"S", "PCA + S", "SAE + S", "SAE alone", "SAE permuted + S", "Gaussian + S", "SAE + S, logistic"} <= set(
        found
    )
    assert all(0 <= value <= 1 for value in found.values())
    assert nb.encodings(fitted, 0, test.beats, "SAE").shape == (400, 4)
    logits = nb.train_cnn([known, nb.first(known, 300)], [test, test])
    assert logits.shape == (2, 400) and np.isfinite(logits).all()
    one_class = nb.first(known, 300)
    one_class.label[:] = 0
    assert nb.predict(fitted, 0, one_class, test, ["SAE"]) == {}


# Recorded beats


def test_lead_checks(ludb):
    good = np.random.default_rng(0).normal(size=(100, 12)) * 300
    assert ludb.check_leads(good, "a") is good
    for spoil, said in (
        (lambda x: x[:, :11], "12 leads are needed"),
        (lambda x: np.where(np.arange(12) == 3, np.nan, x), "not a number in lead aVR"),
        (lambda x: np.where(np.arange(12) == 6, 5.0, x), "lead V1 is flat"),
        (lambda x: x / 1000, "microvolts are expected"),
        (lambda x: x * 1000, "microvolts are expected"),
    ):
        with pytest.raises(ValueError, match=said):
            ludb.check_leads(spoil(good), "a")


def test_half_a_file(ludb, tmp_path):
    path = tmp_path / "a.dat"
    path.write_bytes(b"\0" * 50)
    with pytest.raises(ValueError, match="25 numbers are not whole samples of 12 leads"):
        ludb.read_counts(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="0 numbers"):
        ludb.read_counts(path)


def test_marks_with_a_long_interval_and_text(ludb, tmp_path):
    words = [
        (1 << 10) | 100,
        (59 << 10),
        0,
        5000,
        (1 << 10) | 7,
        (63 << 10) | 3,
        0,
        0,
        (24 << 10) | 9,
        (1 << 10) | 1,
        0,
    ]
    path = tmp_path / "a.ii"
    path.write_bytes(np.array(words, dtype="<u2").tobytes())
    assert ludb.read_marks(path).tolist() == [100, 5107, 5117]


def test_matching_equals_brute_force(ludb):
    rng = np.random.default_rng(0)
    for _ in range(200):
        marks = np.cumsum(rng.integers(150, 400, 6)) + 300
        found = np.unique(np.r_[marks + rng.integers(-60, 61, 6), rng.integers(0, 3000, 3)])
        inside = [p for p in found if marks[0] - 38 <= p <= marks[-1] + 38]
        free, hits = list(inside), 0
        for m in marks:
            near = [p for p in free if abs(p - m) <= 38]
            if near:
                free.remove(near[0])
                hits += 1
        assert ludb.matches(found, marks) == (hits, len(inside) - hits, len(marks) - hits)


def test_noises_equal_loops(ludb):
    raw = np.random.default_rng(0).normal(size=(5, 20, 3))
    found = ludb.noises(raw)

    def flat(beat):
        return np.stack([beat[:, lead] - beat[:10, lead].mean() for lead in range(3)], 1)

    others = [flat(np.median([raw[j] for j in range(5) if j != i], axis=0)) for i in range(5)]
    assert found["to others"] == pytest.approx(np.mean([abs(flat(raw[i]) - others[i]).mean() for i in range(5)]))
    assert found["to next"] == pytest.approx(np.mean([abs(flat(raw[i]) - flat(raw[i + 1])).mean() for i in range(4)]))
    middle = flat(np.median(raw, axis=0))
    assert found["to median"] == pytest.approx(np.mean([abs(flat(b) - middle).mean() for b in raw]))
    halves = flat(np.median(raw[[0, 2, 4]], axis=0)) - flat(np.median(raw[[1, 3]], axis=0))
    assert found["halves"] == pytest.approx(abs(halves).mean() / 2)
    assert set(ludb.noises(np.repeat(raw[:1], 4, 0)).values()) == {0.0}


def test_beats_without_a_typical_one_are_kept(ludb):
    beats = np.random.default_rng(0).normal(size=(6, 50, 2))
    assert len(ludb.typical(beats, least=0.99)) == 6
    with pytest.raises(ValueError, match="no whole beat"):
        ludb.cut_beats(np.zeros((100, 12)), np.array([10, 90]))


def test_vector_matrices_equal_the_golden_values(ludb):
    leads = np.random.RandomState(0).randn(8, 3)
    kors = [[0.821338, 0.671713, -0.060647], [2.023058, 2.03799, -0.709635], [-0.759629, -0.283005, 0.319211]]
    dower = [[0.430534, 0.382672, -0.674792], [1.589785, 1.515032, -1.305366], [-0.197903, 0.111626, -0.822171]]
    np.testing.assert_allclose(ludb.KORS @ leads, kors, atol=1e-6)
    np.testing.assert_allclose(ludb.INVERSE_DOWER @ leads, dower, atol=1e-6)


def write_cohort(folder, n=40):
    """A small cohort in the layout that the full preset reads; returns its labels."""
    rng, label = np.random.default_rng(0), np.arange(n) % 2
    pulse = np.exp(-0.5 * ((np.arange(5000) % 400 - 200) / 8.0) ** 2)
    gains = rng.uniform(500, 1500, (n, 8)) * np.where(label[:, None], 1.3, 1.0)
    eight = gains[:, None] * pulse[:, None] + 5 * rng.normal(size=(n, 5000, 8))
    one, two = eight[..., :1], eight[..., 1:2]
    leads = np.concatenate([one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2, eight[..., 2:]], -1)
    np.save(folder / "waveforms.npy", leads.swapaxes(1, 2).astype(np.float32))
    rows = [f"{y},{80 + rng.normal():.2f},{'' if i == 3 else 400}" for i, y in enumerate(label)]
    (folder / "labels.csv").write_text("label,qrs,qt\n" + "\n".join(rows) + "\n")
    return label


def test_a_cohort_of_ones_own(ludb, tmp_path):
    label = write_cohort(tmp_path)
    found = ludb.own_cohort(tmp_path)
    assert len(found.ecgs) == 40 and found.ecgs[0].shape == (5000, 12) and (found.label == label).all()
    assert np.isfinite(found.summary).all() and found.summary.shape == (40, 2)
    text = (tmp_path / "labels.csv").read_text()
    for changed, said in (
        (text.replace("label", "lvef"), "a column `label`"),
        (text.replace("\n1,", "\n0,"), "both present"),
        ("\n".join(text.splitlines()[:-1]), "39 labels"),
    ):
        (tmp_path / "labels.csv").write_text(changed)
        with pytest.raises(ValueError, match=said):
            ludb.own_cohort(tmp_path)


def test_the_labels_of_a_cohort_are_predicted():
    """The full preset's last step, scaled down: a code that holds the label beats its permuted copy and few labels."""
    y = np.arange(100) % 2
    rng, test = np.random.default_rng(0), np.arange(0, 100, 5)
    code = np.c_[y + 0.3 * rng.normal(size=100), rng.normal(size=100)]
    rest = np.setdiff1d(np.arange(100), test)
    eight = torch.as_tensor(rng.normal(size=(100, 3000)) + 2 * y[:, None], dtype=torch.float32)
    given = {
        **{"problems": [SimpleNamespace(test_rows=test)], "rests": [rest], "n_repeats": 1, "eight": eight},
        **{"people": SimpleNamespace(label=y, summary=rng.normal(size=(100, 3)))},
        "sae_codes": lambda p, rows: code[rows],
    }
    names = ["label_scores", "gain", "network", "boosted"]
    ludb = lift(f"{FOLDER}/ludb.ipynb", names, {"run": FakeRun()} | SIZES | given)
    found = ludb.label_scores(0)
    assert set(found) == {"SAE + S", "permuted + S", "CNN"} and all(len(v) == 20 for v in found.values())
    assert auroc(found["SAE + S"], y[test]) > 0.9 and auroc(found["CNN"], y[test]) > 0.9
    assert len(ludb.label_scores(0, 0.05)["SAE + S"]) == 20


def test_generated_ecgs_obey_the_sums(ludb):
    one, two = ludb.generated_ecgs(2)
    assert one.shape == (5000, 12) and not np.allclose(one, two)
    assert ludb.sum_errors(one).max() < 1e-9 and len(ludb.r_peaks(one)) >= 6


# Parity on the public files (skipped without them)


@with_data
def test_ludb_files_equal_the_golden_values(ludb):
    folder, marks = DATA / "ludb-1.0.1" / "data", 0
    for i in range(1, 201):
        marks += len(ludb.read_marks(folder / f"{i}.ii"))
    assert marks == 1831
    ecg = ludb.read_counts(folder / "1.dat")
    np.testing.assert_allclose(ludb.sum_errors(ecg), [0, 0.5, 0.5, 0.5])
    peaks = ludb.read_marks(folder / "1.ii")
    beat = ludb.level(np.median(ludb.typical(ludb.cut_beats(ludb.band(ecg, 0.5, 100), peaks)), 0))
    at_r = [1210.17, 932.05, -231.22, -1077.83, 729.03, 360.83, -471.53, 904.39, 1624.78, 1790.95, 1747.06, 1229.55]
    np.testing.assert_allclose(beat[125], at_r, atol=0.02)


@with_data
def test_components_of_twelve_leads_equal_the_golden_anchors(ludb):
    """RandomState(s).permutation(200) in 5 parts, s = 0..4; mean-centred PCA of 160 representative beats."""
    folder, middle, noise = DATA / "ludb-1.0.1" / "data", [], []
    for i in range(1, 201):
        ecg, peaks = ludb.read_counts(folder / f"{i}.dat"), ludb.read_marks(folder / f"{i}.ii")
        raw = ludb.typical(ludb.cut_beats(ludb.band(ecg, 0.5, 100), peaks))
        noise.append(ludb.noises(raw) if len(raw) > 1 else {})
        middle.append(ludb.level(np.median(raw, 0)))
    x, errors = torch.as_tensor(np.stack(middle).reshape(200, -1), dtype=torch.float32), []
    for s in range(2):
        for test in np.array_split(np.random.RandomState(s).permutation(200), 5):
            known = ludb.principal(x[np.setdiff1d(np.arange(200), test)], 30)
            errors.append(float((ludb.pca_rebuilt(x[test], *known, 30) - x[test]).abs().mean()))
    assert np.mean(errors) == pytest.approx(29.94, abs=0.5)
    golden = {"to median": 21.34, "to others": 24.68, "to next": 32.71, "halves": 16.91 / 2}
    for name, wanted in golden.items():
        assert np.mean([n[name] for n in noise if n]) == pytest.approx(wanted, rel=0.02)


@with_data
def test_true_vectors(ludb):
    folder = DATA / "ptb_s0010_re"
    ecg, xyz = ludb.read_counts(folder / "s0010_re.dat"), ludb.read_counts(folder / "s0010_re.xyz", 3)
    np.testing.assert_allclose(ludb.frank_agreement(ecg, xyz, ludb.KORS), [0.983, 0.953, 0.727], atol=0.001)
    np.testing.assert_allclose(ludb.frank_agreement(ecg, xyz, ludb.INVERSE_DOWER), [0.956, 0.978, 0.364], atol=0.001)


@with_data
@needs("wfdb")
def test_readers_equal_wfdb(ludb):
    import wfdb

    for i in (1, 8, 77, 200):
        name = str(DATA / "ludb-1.0.1" / "data" / str(i))
        record, marks = wfdb.rdrecord(name, physical=False), wfdb.rdann(name, "ii")
        assert (ludb.read_counts(Path(f"{name}.dat")) == record.d_signal).all()
        normal = [s for s, symbol in zip(marks.sample, marks.symbol, strict=True) if symbol == "N"]
        assert ludb.read_marks(Path(f"{name}.ii")).tolist() == normal
    name = str(DATA / "cinc2021_sample" / "HR06000")
    assert (ludb.read_counts(Path(f"{name}.mat"), skip=24) == wfdb.rdrecord(name, physical=False).d_signal).all()


@with_data
@needs("neurokit2")
def test_r_peaks_against_a_second_detector(ludb):
    import neurokit2

    ours, theirs = [], []
    for i in range(1, 41):
        name = DATA / "ludb-1.0.1" / "data" / str(i)
        ecg, marks = ludb.read_counts(Path(f"{name}.dat")), ludb.read_marks(Path(f"{name}.ii"))
        clean = neurokit2.ecg_clean(ecg[:, 1], sampling_rate=500)
        found = neurokit2.ecg_peaks(clean, sampling_rate=500)[1]["ECG_R_Peaks"]
        ours.append(ludb.matches(ludb.r_peaks(ecg), marks))
        theirs.append(ludb.matches(np.asarray(found), marks))
    assert ludb.f1(np.array(ours)) > 0.98 and ludb.f1(np.array(ours)) >= ludb.f1(np.array(theirs)) - 0.01
