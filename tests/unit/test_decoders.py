"""Decoders side by side equal plain ones: one text, one run, float64, no cache, no batching."""

import math

import numpy as np
import pytest
import torch

from helpers.decoders import HEAD, PAD, Cache, fit, generate, logprobs, select, start_weights, states
from helpers.muon import orthogonal

WORDS, END, CPU = 30, 1, torch.device("cpu")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lively(runs: int = 2, **sizes: int) -> dict[str, torch.Tensor]:
    """Random weights whose greedy texts vary."""
    w = start_weights(runs, WORDS, seeded(), CPU, **sizes)
    return {name: value * (8 if name[:-1] in ("write", "down") else 1) for name, value in w.items()}


def texts(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(2, WORDS, shape, generator=seeded(seed))


def normed(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def turned(x: np.ndarray, at: int) -> np.ndarray:
    """Pairs of a head's numbers turned by a position: a complex product."""
    z = x[: HEAD // 2] + 1j * x[HEAD // 2 :]
    z = z * np.exp(1j * at * 1000.0 ** (-np.arange(HEAD // 2) / (HEAD // 2)))
    return np.concatenate([z.real, z.imag])


def plain_states(w: dict[str, torch.Tensor], run: int, text: list[int]) -> np.ndarray:
    """Outputs (t, width) of one text by one run, word by word and head by head."""
    mine = {name: value[run].double().numpy() for name, value in w.items()}
    x = mine["embed"][text]
    for i in range(sum(name.startswith("read") for name in w)):
        into = normed(x)
        mixed = [sum(mine[f"mix{i}"][3 - b] * into[t - b] for b in range(4) if t >= b) for t in range(len(text))]
        q, k, v = np.split(np.array(mixed) @ mine[f"read{i}"], 3, -1)
        out = np.zeros_like(q)
        for t in range(len(text)):
            for h in range(0, q.shape[1], HEAD):
                part = slice(h, h + HEAD)
                score = np.array([turned(q[t, part], t) @ turned(k[s, part], s) for s in range(t + 1)]) / HEAD**0.5
                weight = np.exp(score - score.max())
                out[t, part] = weight / weight.sum() @ v[: t + 1, part]
        x = x + out @ mine[f"write{i}"]
        hidden = normed(x) @ mine[f"up{i}"]
        gelu = hidden * np.vectorize(lambda u: 0.5 * (1 + math.erf(u / 2**0.5)))(hidden)
        x = x + gelu @ mine[f"down{i}"]
    return normed(x)


def slowly(w: dict[str, torch.Tensor], run: int, text: list[int], limit: int) -> list[int]:
    """Greedy tokens of one text, read whole for every token."""
    said: list[int] = []
    while len(said) < limit and END not in said:
        out = states(select(w, [run]), torch.tensor([[text + said]]))[0, 0, -1]
        said.append(int((w["embed"][run] @ out).argmax()))
    return said


@pytest.mark.parametrize("sizes", [{}, {"width": 32, "layers": 3}])
def test_states_equal_a_plain_decoder(sizes):
    w, tokens = lively(**sizes), texts(2, 3, 9)
    got = states(w, tokens)
    for r, i in np.ndindex(2, 3):
        want = plain_states(w, r, tokens[r, i].tolist())
        assert np.abs(got[r, i].numpy() - want).max() < 1e-4


def test_padding_on_the_right_changes_nothing():
    w, tokens = lively(), texts(2, 3, 9)
    padded = torch.cat([tokens, torch.full((2, 3, 4), PAD)], -1)
    torch.testing.assert_close(states(w, padded)[:, :, :9], states(w, tokens), atol=1e-5, rtol=1e-5)


def test_logprobs_are_those_of_the_softmax():
    w, tokens = lively(), texts(2, 3, 9)
    got = logprobs(w, tokens)
    for r, i in np.ndindex(2, 3):
        text = tokens[r, i].tolist()
        logits = plain_states(w, r, text) @ w["embed"][r].double().numpy().T
        logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        want = [logp[t - 1, text[t]] for t in range(1, 9)]
        assert np.abs(got[r, i].numpy() - want).max() < 1e-3


@pytest.mark.parametrize("shared", [True, False])
def test_a_cache_gives_what_whole_texts_give(shared):
    """Beginnings of several lengths, each with four continuations of several lengths, read once or not at all."""
    w, heads, tails = lively(), texts(2, 3, 7), texts(2, 12, 5, seed=2)
    heads[:, 1, :3], heads[:, 2, :6], tails[:, ::3, :2] = PAD, PAD, PAD
    whole = torch.cat([heads.repeat_interleave(4, 1), tails], -1)
    cache = None
    if shared:
        states(w, heads, first := Cache(7))
        tails = tails.clone()
        tails[:, ::3, :2] = texts(2, 4, 2, seed=3)  # what goes on has no gap at its start
        whole[:, :, 7:], cache = tails, first.followed(4, 5 + 6)
    got = generate(w, tails if shared else whole[:, :, 7:], 6, END, cache)
    seen = set()
    for r, i in np.ndindex(2, 12):
        text = [t for t in (whole if shared else tails)[r, i].tolist() if t != PAD]
        said = slowly(w, r, text, 6)
        assert got[r, i].tolist() == said + [PAD] * (6 - len(said))
        seen.add(tuple(said))
    assert len(seen) > 6


def test_generation_ends_early_and_pads():
    w = lively(1)
    w["embed"][0, END] = 100 * states(w, texts(1, 1, 4))[0, 0, -1]  # the end is always the likeliest
    got = generate(w, texts(1, 1, 4), 5, END)
    assert got.tolist() == [[[END] + [PAD] * 4]]


def test_sampling_follows_the_probabilities():
    w, prompt = start_weights(1, WORDS, seeded(), CPU), texts(1, 1, 4)
    drawn = generate(w, prompt.expand(1, 4000, 4), 1, END, generator=seeded(5))[0, :, 0]
    p = (states(w, prompt)[0, 0, -1] @ w["embed"][0].T).softmax(-1)
    share = torch.bincount(drawn, minlength=WORDS) / 4000
    assert (share - p).abs().max() < 4 * float((p * (1 - p) / 4000).sqrt().max())
    again = generate(w, prompt.expand(1, 4000, 4), 1, END, generator=seeded(5))[0, :, 0]
    assert torch.equal(again, drawn)


@pytest.mark.parametrize("muon", [0.0, 4.0])
def test_runs_do_not_touch_each_other(muon):
    w, tokens = start_weights(3, WORDS, seeded(), CPU), texts(3, 4, 8)
    kept = {name: value.clone() for name, value in w.items()}

    def loss_on(some: torch.Tensor):
        return lambda w, _: -logprobs(w, some).mean((1, 2)).sum()

    together = fit(w, loss_on(tokens), 4, lambda share: 1e-3, "", muon)
    alone = fit(select(w, [1]), loss_on(tokens[1:2]), 4, lambda share: 1e-3, "", muon)
    for name in w:
        torch.testing.assert_close(together[name][1:2], alone[name], atol=2e-5, rtol=1e-4)
        assert torch.equal(w[name], kept[name]) and not torch.equal(together[name], w[name])


@pytest.mark.parametrize("muon", [0.0, 4.0])
def test_training_learns_a_text_by_heart(muon):
    w, tokens = start_weights(2, WORDS, seeded(), CPU), texts(2, 2, 10)
    trained = fit(w, lambda w, _: -logprobs(w, tokens).mean((1, 2)).sum(), 60, lambda share: 5e-3, "", muon)
    assert logprobs(w, tokens).mean() < -2.5 and logprobs(trained, tokens).mean() > -0.3


def test_a_step_is_no_longer_than_its_rate():
    """The gradient is shortened run by run: a run of huge loss does not slow another one."""
    w, tokens = start_weights(2, WORDS, seeded(), CPU), texts(2, 4, 8)
    scale = torch.tensor([1e4, 1.0])
    both = fit(w, lambda w, _: -(logprobs(w, tokens).sum((1, 2)) * scale).sum(), 2, lambda share: 1e-3, "")
    same = fit(w, lambda w, _: -logprobs(w, tokens).sum((1, 2)).sum(), 2, lambda share: 1e-3, "")
    for name in w:
        torch.testing.assert_close(both[name], same[name], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("shape", [(3, 8, 20), (3, 20, 8)])
def test_orthogonal_matrices_have_the_singular_vectors(shape):
    g = torch.randn(shape, generator=seeded(), dtype=torch.float64)
    u, _, v = torch.linalg.svd(g, full_matrices=False)
    inner = u.mT @ orthogonal(g) @ v.mT
    singular = inner.diagonal(dim1=1, dim2=2)
    assert (inner - torch.diag_embed(singular)).abs().max() < 1e-8
    assert singular.min() > 0.6 and singular.max() < 1.3
