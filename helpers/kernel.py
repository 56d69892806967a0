"""The process of a run: generators, threads, memory and printing, set before the first number is computed."""

import random

import numpy as np
import torch

from helpers.memory import hold_to


def prepare(seed: int, device: torch.device, memory_gb: float | None) -> None:
    """Set this process up for a run.

    Args:
        seed: of Python's, NumPy's and torch's own generators.
        device: on the CPU torch gets one thread, so that its sums do not depend on the machine.
        memory_gb: on a GPU the most that this process may take there; None: all.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    np.set_printoptions(legacy="1.25")  # a reader sees 0.5, not np.float64(0.5)
    if device.type == "cpu":
        torch.set_num_threads(1)
    elif memory_gb:
        hold_to(memory_gb)
