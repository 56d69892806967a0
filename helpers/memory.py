"""Batches that follow the memory of a device: sized by what is free, made smaller when it runs out."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from tqdm.auto import tqdm

T = TypeVar("T")
USABLE = 0.5  # of the free memory; the rest is for what a layer needs for a moment


def first(items: Sequence[T], size: int) -> Sequence[T]:
    """Return the first `size` items."""
    return items[:size]


def shrinking(
    items: Sequence[T],
    size: int,
    work: Callable[[Sequence[T]], None],
    *,
    take: Callable[[Sequence[T], int], Sequence[T]] = first,
    progress: str = "",
    unit: str = "it",
    weight: Callable[[T], int] = lambda _: 1,
) -> None:
    """Work through items in batches; when the memory runs out, halve the size, say so, and repeat the batch.

    Args:
        items: what is to be done, in this order.
        size: of a batch, in whatever `take` counts.
        work: does a batch; it may be called again with a part of a batch whose first try ran out of memory.
        take: the batch at the front of the items that are left: at least one item.
        progress: title of a progress bar; none by default.
        unit: what the bar counts.
        weight: how much of it an item is.

    Raises:
        torch.OutOfMemoryError: a single item does not fit.
    """
    with tqdm(total=sum(map(weight, items)), desc=progress, unit=unit, disable=not progress) as bar:
        while items:
            batch = take(items, size)
            if not _fits(work, batch):
                while len(take(batch, size)) == len(batch):
                    size = max(1, size // 2)
                print(f"out of memory with {len(batch)} side by side: batches are half as large from here on")
                continue
            bar.update(sum(map(weight, batch)))
            items = items[len(batch) :]


def rows_that_fit(model: Any, tokens: int, at_most: int) -> int:
    """Return how many rows of a decoder's batch fit the free memory of its GPU, from 1 to `at_most`.

    A row holds keys and values of every layer, and a few copies of its logits in float32. On a CPU it is `at_most`.

    Args:
        model: a decoder of transformers.
        tokens: of the longest row, its answer included.
        at_most: what the caller allows.
    """
    if model.device.type != "cuda":
        return at_most
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    row = 2 * config.num_hidden_layers * heads * width * tokens * model.dtype.itemsize + 4 * 4 * config.vocab_size
    free, _ = torch.cuda.mem_get_info(model.device)
    free += torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
    return int(max(1, min(at_most, USABLE * free // row)))


def hold_to(gigabytes: float) -> None:
    """Let this process take no more of the GPU than it declares (10^9 bytes), so that others beside it can work."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, gigabytes * 1e9 / total))


def _fits(work: Callable[[Sequence[T]], None], batch: Sequence[T]) -> bool:
    """Do a batch; False when the memory ran out, which is raised where nothing smaller can be tried."""
    try:
        work(batch)
        return True
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
    # only here are the tensors of the failed try gone, which the traceback held
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return False
