"""DICE, published numbers: the page's definitions against the released functions, and their special cases.

`dice_golden.json` holds what the functions of THU-KEG/DICE (commit 8efb0d55) gave on inputs that it states.
"""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from dice_pages import GOLDEN, STUDY
from lift import lift
from tiny import tiny_llama, word_tokenizer

from helpers.models import LanguageModel
from helpers.paths import data_dir

NAMES = [
    "distances",
    "located",
    "jittered",
    "prompt",
    "states",
    "detector",
    "fit",
    "r_squared",
    "two_sided",
    "released_number",
    "last_number",
    "seen_half",
    "best_match",
    "clouds",
    "TEMPLATE",
]


@pytest.fixture(scope="module")
def nb():
    return lift(STUDY, NAMES)


@pytest.fixture
def tiny():
    tokenizer = word_tokenizer(["<pad>", "<end>", "###", "Input:", "Response:", *"abcdefgh"])
    return LanguageModel(tiny_llama(tokenizer), tokenizer, "tiny", "none")


def generic() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal((5, 1, 6, 8)).astype(np.float32)[:, 0] for _ in range(2))


def spike() -> tuple[np.ndarray, np.ndarray]:
    con, unc = generic()
    con[2:, 0, 0] += 1000
    return con, unc


def tie() -> tuple[np.ndarray, np.ndarray]:
    con, unc = np.zeros((4, 3, 2), np.float32), np.zeros((4, 3, 2), np.float32)
    con[1, 0, 0] = con[3, 2, 1] = 3
    return con, unc


def one_nan() -> tuple[np.ndarray, np.ndarray]:
    con, unc = tie()
    con[3, 0, 0] = np.nan
    return con, unc


@pytest.mark.parametrize(
    ("case", "make"),
    [
        ("locate_generic", generic),
        ("locate_first_token_spike", spike),
        ("locate_tie", tie),
        ("locate_identical_models", lambda: (np.zeros((4, 3, 2)), np.zeros((4, 3, 2)))),
        ("locate_nan_layer", one_nan),
    ],
)
def test_locating_is_the_released_one(nb, case, make):
    want = GOLDEN["locate"][case]
    con, unc = map(torch.from_numpy, make())
    got = nb.distances(con, unc)["all tokens"]
    np.testing.assert_allclose(got.numpy(), np.array(want["distances"], float), rtol=1e-5)
    assert nb.located(got) == want["printed_argmax"] == want["returned"][0] + 1


def test_last_token_locates_elsewhere(nb):
    want = GOLDEN["locate"]["locate_generic"]
    got = nb.distances(*map(torch.from_numpy, generic()))["last token"]
    np.testing.assert_allclose(got.numpy(), want["paper_last_token"], rtol=1e-5)
    assert nb.located(got) == want["paper_argmax"] != want["printed_argmax"]


def test_nothing_is_located_where_every_distance_is_nan(nb):
    assert GOLDEN["locate"]["locate_all_nan"]["returned"] == "TypeError"
    with pytest.raises(ValueError, match="every distance is NaN"):
        nb.located(torch.full((4,), torch.nan))


def test_relative_distances_have_the_clean_norm_below(nb):
    con, unc = map(torch.from_numpy, generic())
    got = nb.distances(con, unc)
    for index in range(5):
        below = unc[index].double().square().sum().sqrt()
        assert math.isclose(got["all tokens, relative"][index], got["all tokens"][index] / below, rel_tol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_distances_take_other_dtypes_and_strided_states(nb, dtype):
    con, unc = (torch.from_numpy(x).to(dtype) for x in generic())
    plain = nb.distances(con, unc)["all tokens"]
    strided = nb.distances(con.mT.contiguous().mT, unc.mT.contiguous().mT)["all tokens"]
    assert torch.equal(plain, strided) and plain.dtype == torch.float64
    np.testing.assert_allclose(plain.numpy(), GOLDEN["locate"]["locate_generic"]["distances"], rtol=2e-2)


def golden_net(nb):
    """The net and features of the golden case `forward`."""
    rng = np.random.default_rng(3)
    net = nb.detector(16)
    linear = [module for module in net.modules() if isinstance(module, torch.nn.Linear)]
    with torch.no_grad():
        for layer, (out, width) in zip(linear, [(2048, 16), (1024, 2048), (512, 1024), (1, 512)], strict=True):
            weight = (rng.standard_normal((out, width)) * math.sqrt(2 / width)).astype(np.float32)
            bias = (rng.standard_normal(out) * 0.1).astype(np.float32)
            layer.weight.copy_(torch.from_numpy(weight))
            layer.bias.copy_(torch.from_numpy(bias))
    return net, torch.from_numpy(rng.standard_normal((5, 16)).astype(np.float32))


def test_net_is_the_released_one(nb):
    want = GOLDEN["classifier"]
    net, x = golden_net(nb)
    np.testing.assert_allclose(net(x)[:, 0].detach().numpy(), want["forward"]["outputs"], rtol=1e-5)
    assert sum(p.numel() for p in net.parameters()) == want["init"]["params"]


def test_initial_weights_are_the_released_ones(nb):
    want = GOLDEN["classifier"]["init"]["abs_max"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        got = [p.abs().max().item() for p in nb.detector(16).parameters()]
    np.testing.assert_allclose(got, list(want.values()), rtol=1e-6)


@pytest.mark.parametrize("step", ["5e-08", "1e-06", "0.001"])
def test_steps_of_adam_are_the_released_ones(nb, step):
    net, x = golden_net(nb)
    y = torch.tensor([1.0, 0, 1, 1, 0])
    optimiser, losses = torch.optim.Adam(net.parameters(), lr=float(step)), []
    for _ in range(4):
        loss = torch.nn.functional.binary_cross_entropy(net(x)[:, 0], y)
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    np.testing.assert_allclose(losses, GOLDEN["classifier"]["adam_steps"][step], rtol=2e-4)


def released_clouds(scale: float) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Features and labels of the golden cases `training`, and which rows are for training."""
    rng = np.random.default_rng(4)
    axis = rng.standard_normal(64)
    x = rng.standard_normal((800, 64)).astype(np.float32)
    x[400:] += (3 * axis / np.linalg.norm(axis)).astype(np.float32)
    return torch.from_numpy(x * np.float32(scale)), torch.arange(800) >= 400, np.arange(800) % 400 < 200


@pytest.mark.parametrize("row", [2, 3, 4, 16], ids=["1e-6", "1e-6 seed 1", "1e-3", "1e-3 collapses"])
def test_training_is_the_released_one(nb, row):
    """AUROC and mean scores after training, with the seed and the order of the release's loader."""
    want = GOLDEN["classifier"]["training"]["rows"][row]
    x, y, train = released_clouds(want["scale"])
    net = nb.fit(x[train], y[train], want["lr"], want["epochs"], want["seed"])
    with torch.inference_mode():
        scores = net(x[~train])[:, 0]
    assert scores[:200].mean().item() == pytest.approx(want["mean0"], abs=0.01)
    assert scores[200:].mean().item() == pytest.approx(want["mean1"], abs=0.01)


def test_training_refuses_what_the_release_stops_at(nb):
    x = torch.randn(33, 4, generator=torch.Generator().manual_seed(0))
    y = torch.arange(33) % 2
    assert GOLDEN["classifier"]["last_batch_of_1"]["loss"] == "ValueError"
    for rows, labels in ((x, y), (x[:32], torch.zeros(32)), (x[:32] * torch.nan, y[:32])):
        with pytest.raises(ValueError, match="both classes are needed"):
            nb.fit(rows, labels, 1e-3, 1, 0)


def test_training_leaves_the_shared_generator_alone(nb):
    x, y = nb.clouds(np.random.default_rng(0), n=16, width=4)
    before = torch.get_rng_state()
    nb.fit(x, y, 1e-3, 1, 0)
    assert torch.equal(before, torch.get_rng_state())


def test_r_squared_is_the_released_one(nb):
    small = GOLDEN["r2"]["small"]
    assert nb.r_squared(np.stack([small["x"], small["y"]], 1)) == pytest.approx(small["r2"], rel=1e-8)
    assert math.isnan(nb.r_squared(np.stack([small["x"], np.ones(5)], 1)))


def test_r_squared_of_the_released_table(nb):
    table = lift(STUDY, ["ACCURACY", "SCORE", "OTHER_SCORE", "SETS", "MODELS", "table_of"])
    accuracy, score = (table.table_of(text, table.MODELS) for text in (table.ACCURACY, table.SCORE))
    with_other = score.copy()
    with_other.loc[table.MODELS[5:9]] = table.table_of(table.OTHER_SCORE, table.MODELS[5:9])
    for name, want in GOLDEN["r2"]["released"].items():
        got = [nb.r_squared(np.stack([accuracy[name], one[name]], 1)) for one in (score, with_other)]
        assert got == pytest.approx([want["all10"], want["first_table_values"]], abs=1e-8)
        halves = [np.stack([accuracy[name], score[name]], 1)[rows] for rows in (slice(5), slice(5, None))]
        assert list(map(nb.r_squared, halves)) == pytest.approx([want["rows_0_4"], want["rows_5_9"]], abs=1e-8)


def test_two_sided(nb):
    assert nb.two_sided(np.array([14.7, 50.0, 91.7])) == pytest.approx([85.3, 50.0, 91.7])


def test_parser_is_the_released_one(nb):
    want = GOLDEN["parse_answer"]
    got = [nb.released_number(text) for text in want["inputs"]]
    assert [-10000000 if number is None else number for number in got] == want["outputs"]


@pytest.mark.parametrize(
    ("text", "number"),
    [("The answer is -3", -3.0), ("3 and 4.", 4.0), ("1,234.5", 1234.5), ("no number", None), ("", None), ("$.5", 0.5)],
)
def test_last_number(nb, text, number):
    assert nb.last_number(text) == number


def test_best_match_takes_duplicates_empty_and_unknown_text(nb):
    texts = ["red apples and pears", "red apples and pears", "a farmer milks cows"]
    assert nb.best_match(["apples and pears", "", "quantum"], texts).tolist() == [0, -1, -1]


def test_prompt_refuses_what_is_no_question(nb):
    assert nb.prompt("2+2?") == "### Input:\n2+2?\n\n### Response:\n"
    for nothing in ("", "  \n", None, float("nan")):
        with pytest.raises(ValueError, match="needs text"):
            nb.prompt(nothing)


def test_states_of_a_model(nb, tiny):
    h = nb.states(tiny, "a b c")
    assert h.shape == (3, 3, 32) and h.dtype == torch.float32
    norm = tiny.model.base_model.norm
    out = tiny.model.base_model(torch.tensor([[5, 6, 7]]))
    assert torch.allclose(h[-1], out.last_hidden_state[0], atol=1e-6)
    assert norm.weight.shape == (32,)
    with pytest.raises(ValueError, match="exceed the model's window"):
        nb.states(tiny, "a " * (tiny.model.config.max_position_embeddings + 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_noise_goes_away_again(nb, tiny, dtype):
    tiny.model.to(dtype)
    blocks = tiny.model.base_model.layers
    before, weights = nb.states(tiny, "a b c"), {k: v.clone() for k, v in tiny.model.state_dict().items()}
    with nb.jittered(blocks, 0.1, torch.Generator().manual_seed(0)):
        during = nb.states(tiny, "a b c")
    assert torch.equal(nb.states(tiny, "a b c"), before) and not torch.equal(during[-1], before[-1])
    assert torch.equal(during[0], before[0])  # embeddings stay
    assert all(torch.equal(v, weights[k]) for k, v in tiny.model.state_dict().items())


def test_noise_goes_away_after_an_error(nb, tiny):
    before = nb.states(tiny, "a b c")
    with pytest.raises(KeyError), nb.jittered(tiny.model.base_model.layers, 0.1, torch.Generator()):
        raise KeyError
    assert torch.equal(nb.states(tiny, "a b c"), before)


def test_noise_has_the_stated_size(nb, tiny):
    block = tiny.model.base_model.layers[0]
    matrix = block.mlp.down_proj.weight
    old = matrix.detach().clone()
    with nb.jittered([block], 0.05, torch.Generator().manual_seed(0)):
        change = (matrix - old).square().mean().sqrt() / old.square().mean().sqrt()
    assert change.item() == pytest.approx(0.05, rel=0.05)


def test_order_of_the_benchmark_is_the_released_one(nb):
    want = GOLDEN["order_of_the_1314_prompts"]
    seen, unseen = nb.seen_half(pd.Series([f"question {i}" for i in range(1319)]))
    assert (seen + unseen)[:8] == want["first_rows"] and len(seen) == want["seen"]
    assert sorted(set(range(1319)) - set(seen + unseen)) == want["left_out"]


RELEASED_FILES = ["dice_gsm8k_original.csv", "dice_gsm8k_rephrased1.csv", "dice_GSM8K_Contamination.json"]


@pytest.mark.skipif(
    not all((data_dir() / "dice" / file).is_file() for file in RELEASED_FILES), reason="public files are not cached"
)
def test_paraphrases_are_of_both_halves():
    run = SimpleNamespace(data=lambda name: data_dir() / name)
    got = lift(STUDY, ["paraphrase_study"], {"run": run}).paraphrase_study()
    want = GOLDEN["paraphrase_overlap"]["first_657_rows_of_file"]
    assert abs(got["of the seen half"][0] - want["in_seen_half"]) <= 10
    assert abs(got["of the unseen half"][0] - want["in_unseen_half"]) <= 10
    assert abs(got["of the seen half"][1] - want["matched"]) <= 15
