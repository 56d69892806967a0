"""A stand-in for `Run`, for definitions that are lifted out of a notebook."""

import numpy as np
import torch


class FakeRun:
    """The random sources and the device of `Run`, without a record."""

    device, seed = torch.device("cpu"), 0

    def rng(self, stream: int | str = 0) -> np.random.Generator:
        """Return a generator of its own for each stream."""
        return np.random.default_rng([7, sum(map(ord, str(stream)))])

    def torch_generator(self, stream: int | str = 0) -> torch.Generator:
        """Return a torch generator of its own for each stream."""
        return torch.Generator().manual_seed(sum(map(ord, str(stream))))
