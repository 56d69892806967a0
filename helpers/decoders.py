"""Small decoders that are trained and sampled side by side: the first axis of every weight is the run.

One batched product serves all runs, and no run touches another. A decoder is pre-norm with rotary positions; before
attention each input is mixed with the three before it, by learned weights. Output and input share the embedding; there
are no biases and no gains. Token 0 is padding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from helpers.muon import Muon
from helpers.sampling import sample_tokens

Weights = dict[str, Tensor]
PAD, HEAD = 0, 16  # the token of padding, the width of a head


def start_weights(
    runs: int, vocabulary: int, generator: torch.Generator, device: torch.device, *, width: int = 64, layers: int = 2
) -> Weights:
    """Draw `runs` decoders on the generator's device and move them; maps keep the scale of their input."""

    def drawn(n_in: int, n_out: int, spread: float) -> Tensor:
        return torch.randn(runs, n_in, n_out, generator=generator).to(device) * spread

    w, root = {"embed": drawn(vocabulary, width, 0.5)}, width**-0.5
    mix = torch.tensor([0.1, 0.25, 0.5, 1.0], device=device)  # three tokens back, ..., this one
    for i in range(layers):
        w[f"mix{i}"] = mix[:, None].expand(runs, 4, width).clone()
        w[f"read{i}"], w[f"up{i}"] = drawn(width, 3 * width, root), drawn(width, 4 * width, root)
        w[f"write{i}"] = drawn(width, width, 0.3 * root)
        w[f"down{i}"] = drawn(4 * width, width, 0.15 * root)
    return w


def select(w: Weights, chosen: Tensor | Sequence[int]) -> Weights:
    """Return the weights of some runs, in this order; a run may come several times."""
    rows = torch.as_tensor(chosen, device=w["embed"].device)
    return {name: value.detach()[rows] for name, value in w.items()}


@dataclass
class Cache:
    """What decoders keep of the tokens that they have seen.

    Attributes:
        room: the most tokens that it will hold.
        shared: another cache, each row of which several rows of this one continue; it is read once for all of them.
        seen: number of tokens so far.
        real: `(runs * rows, room)`, which of them are not padding.
        layers: keys and values `(runs * rows, heads, room, HEAD)` of each layer.
        last: the last three inputs of each layer.
    """

    room: int
    shared: Self | None = None
    seen: int = 0
    real: Tensor | None = None
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    last: dict[int, Tensor] = field(default_factory=dict)

    def followed(self, n: int, room: int) -> "Cache":
        """Return a cache of `n` continuations of every row, of at most `room` tokens each."""
        return Cache(room, self, last={i: x.repeat_interleave(n, 1) for i, x in self.last.items()})

    def notice(self, now: Tensor) -> None:
        """Note which of the next tokens `(runs, rows, t)` are real."""
        if self.real is None:
            self.real = now.new_zeros(now.shape[0] * now.shape[1], self.room)
        self.real[:, self.seen : self.seen + now.shape[2]] = now.flatten(0, 1)

    def keep(self, i: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values `(runs * rows, heads, t, HEAD)` of the next tokens; return all so far."""
        shape, end = (*k.shape[:2], self.room, HEAD), self.seen + k.shape[2]
        if i not in self.layers:
            self.layers[i] = k.new_zeros(shape), k.new_zeros(shape)
        keys, values = self.layers[i]
        keys[:, :, self.seen : end], values[:, :, self.seen : end] = k, v
        return keys[:, :, :end], values[:, :, :end]


def states(w: Weights, tokens: Tensor, cache: Cache | None = None) -> Tensor:
    """Return outputs `(runs, rows, t, width)` of tokens `(runs, rows, t)`, padded on the right.

    With a cache, which is filled, the tokens go on from what it holds, and padding may stand on the left of the first.
    """
    runs, rows, t = tokens.shape
    vocabulary = w["embed"].shape[1]
    start = torch.arange(runs, device=tokens.device)[:, None, None] * vocabulary
    x = F.embedding(tokens + start, w["embed"].flatten(0, 1)).flatten(1, 2)  # (runs, rows * t, width)
    real = tokens != PAD
    if cache is not None:
        cache.notice(real)
    for i in range(sum(name.startswith("read") for name in w)):
        into = F.layer_norm(x, x.shape[2:]).view(runs, rows, t, -1) * real[..., None]
        x = x + _attention(w, i, into, cache)
        hidden = F.gelu(torch.bmm(F.layer_norm(x, x.shape[2:]), w[f"up{i}"]))
        x = x + torch.bmm(hidden, w[f"down{i}"])
    if cache is not None:
        cache.seen += t
    return F.layer_norm(x, x.shape[2:]).view(runs, rows, t, -1)


def _attention(w: Weights, i: int, x: Tensor, cache: Cache | None) -> Tensor:
    """Layer i's attention over x `(runs, rows, t, width)`, each mixed with the three before it."""
    (runs, rows, t, width), start = x.shape, 0
    far = F.pad(x, (0, 0, 3, 0))
    if cache is not None:
        start = cache.seen + (cache.shared.seen if cache.shared else 0)
        far = torch.cat([cache.last[i], x], 2) if i in cache.last else far
        cache.last[i] = far[:, :, -3:]
    mix = w[f"mix{i}"][:, :, None, None]
    x = sum((mix[:, j] * far[:, :, j : j + t] for j in range(4)), start=torch.zeros((), device=x.device))
    parts = torch.bmm(x.flatten(1, 2), w[f"read{i}"]).view(runs * rows, t, 3, -1, HEAD)
    q, k, v = (part.transpose(1, 2) for part in parts.unbind(2))
    at = torch.arange(start, start + t, device=x.device)
    q, k = _rotate(q, at), _rotate(k, at)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True) if cache is None else _recall(q, k, v, i, cache)
    return torch.bmm(y.transpose(1, 2).reshape(runs, rows * t, width), w[f"write{i}"])


def _rotate(x: Tensor, at: Tensor) -> Tensor:
    """Rotary positions: turn pairs of x `(..., t, HEAD)` by the position `(t,)` (Su et al. 2021)."""
    speed = 1000 ** (-torch.arange(HEAD // 2, device=x.device) / (HEAD // 2))
    angle = at[:, None] * speed
    a, b = x.chunk(2, -1)
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)


def _recall(q: Tensor, k: Tensor, v: Tensor, i: int, cache: Cache) -> Tensor:
    """Attention over all that a cache holds of layer i; all `(runs * rows, heads, t, HEAD)`.

    What is shared and what is each row's own go through one softmax. For the first, the rows that continue the same
    text are folded into one product.
    """
    k, v = cache.keep(i, k, v)
    t, seen = q.shape[2], cache.seen
    place = torch.arange(seen + t, device=q.device)
    at = place[seen:, None]
    assert cache.real is not None  # `states` has noticed the tokens
    mine = (place <= at) & cache.real[:, None, None, : seen + t] | (place == at)
    q = q * HEAD**-0.5
    score = (q @ k.mT).masked_fill(~mine, -torch.inf)
    if cache.shared is None:
        return score.softmax(-1) @ v
    (old_k, old_v), known = cache.shared.layers[i], cache.shared.real
    assert known is not None  # filled before it was shared
    n = len(q) // len(known)
    far = (_fold(q, n) @ old_k.mT).masked_fill(~known[:, None, None], -torch.inf)
    weight = torch.cat([_unfold(far, n), score], -1).softmax(-1)
    p = old_k.shape[2]
    return _unfold(_fold(weight[..., :p], n) @ old_v, n) + weight[..., p:] @ v


def _fold(x: Tensor, n: int) -> Tensor:
    """`(rows * n, heads, t, ...)` -> `(rows, heads, n * t, ...)`."""
    return x.unflatten(0, (-1, n)).transpose(1, 2).flatten(2, 3)


def _unfold(x: Tensor, n: int) -> Tensor:
    """The way back from `_fold`."""
    return x.unflatten(2, (n, -1)).transpose(1, 2).flatten(0, 1)


def logprobs(w: Weights, tokens: Tensor) -> Tensor:
    """Return log p in nats of every token but the first given those before it, `(runs, rows, t - 1)`."""
    out = states(w, tokens[..., :-1])
    logits = torch.bmm(out.flatten(1, 2), w["embed"].mT)  # (runs, rows * (t - 1), vocabulary)
    loss = F.cross_entropy(logits.flatten(0, 1), tokens[..., 1:].flatten(), reduction="none")
    return -loss.view(*tokens.shape[:2], -1)


def fit(
    w: Weights,
    loss_at: Callable[[Weights, int], Tensor],
    steps: int,
    rate: Callable[[float], float],
    title: str,
    muon: float = 0.0,
) -> Weights:
    """Train all runs side by side and return their new weights; w stays.

    Args:
        w: weights to start from.
        loss_at: `(weights, step)` -> the sum of the losses of the runs. The gradient of each run is shortened to
            norm 1, so runs do not touch each other.
        steps: number of steps.
        rate: Adam's learning rate when this share of the steps is done; betas .9 and .98.
        title: of the progress bar.
        muon: maps are stepped by Muon, at so many times the rate; 0 leaves all to Adam.
    """
    w = {name: value.detach().clone().requires_grad_() for name, value in w.items()}
    mapped = {name for name in w if muon and name.rstrip("0123456789") in ("read", "write", "up", "down")}
    adam = torch.optim.Adam([v for name, v in w.items() if name not in mapped], betas=(0.9, 0.98), fused=True)
    turn = Muon([w[name] for name in w if name in mapped])
    for step in tqdm(range(steps), desc=title):
        now = adam.param_groups[0]["lr"] = rate((step + 1) / steps)
        for value in w.values():
            value.grad = None
        loss_at(w, step).backward()
        grads = [value.grad for value in w.values() if value.grad is not None]
        norm = torch.stack([grad.flatten(1).norm(dim=1) for grad in grads]).norm(dim=0)
        for grad in grads:
            grad.mul_((1 / norm.clamp(min=1)).view(-1, *[1] * (grad.ndim - 1)))
        adam.step()
        turn.step(muon * now)
    return {name: value.detach() for name, value in w.items()}


@torch.inference_mode()
def generate(
    w: Weights,
    prompts: Tensor,
    limit: int,
    end: int,
    cache: Cache | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Continue prompts `(runs, rows, t)`, padded on the left: tokens `(runs, rows, limit)`, padding after `end`.

    Args:
        w: weights.
        prompts: what is continued.
        limit: most tokens of a continuation.
        end: the token after which a row is done; when all are, no more is computed.
        cache: what stands before the prompts; None for nothing.
        generator: on the CPU, for sampling at temperature 1; None takes the likeliest token.
    """
    cache, new, said = cache or Cache(prompts.shape[2] + limit), prompts, []
    going = torch.ones(prompts.shape[:2], dtype=torch.bool, device=prompts.device)
    for _ in range(limit):
        out = states(w, new, cache)[:, :, -1]  # (runs, rows, width)
        logits = torch.bmm(out, w["embed"].mT).flatten(0, 1)
        token = logits.argmax(-1)
        if generator is not None:
            uniform = torch.rand(token.numel(), generator=generator).to(token.device)
            token = sample_tokens(logits, uniform, torch.ones_like(uniform))
        token = torch.where(going, token.view_as(going), PAD)
        said.append(token)
        going &= token != end
        new = token[..., None]
        if not going.any():
            break
    return F.pad(torch.stack(said, -1), (0, limit - len(said)))
