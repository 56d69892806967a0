"""Muon (Jordan et al. 2024) for many maps side by side. `torch.optim.Muon` takes matrices, not stacks of them."""

import torch
import torch.nn.functional as F
from torch import Tensor


def orthogonal(g: Tensor) -> Tensor:
    """Return matrices `(runs, m, n)` with the singular vectors of g and singular values of about one.

    Five Newton-Schulz iterations (Jordan et al. 2024).
    """
    x = F.normalize(g.flatten(1), dim=1).view_as(g)
    x = x.mT if g.shape[1] > g.shape[2] else x
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (2.0315 * square @ square - 4.775 * square) @ x
    return x.mT if g.shape[1] > g.shape[2] else x


class Muon:
    """Steps for maps `(runs, m, n)` that have a gradient: momentum .95, weight decay .05."""

    def __init__(self, maps: list[Tensor]) -> None:
        """Start without momentum; the maps are changed in place."""
        self.maps, self.kept = maps, [torch.zeros_like(m) for m in maps]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move every map by `rate` against its gradient."""
        for w, kept in zip(self.maps, self.kept, strict=True):
            assert w.grad is not None  # the caller has gone backward
            kept.lerp_(w.grad, 0.05)
            tall = max(1, w.shape[2] / w.shape[1]) ** 0.5
            w.mul_(1 - 0.05 * rate).sub_(orthogonal(w.grad.lerp(kept, 0.95)), alpha=rate * tall)
