"""A stand-in for a GPU: tensors with a device of their own and real values, so that a processor finds mixed devices.

    with a_card() as card:
        model.to(card.device)

What a GPU refuses is refused: an operation on tensors of two devices. As there, numbers (tensors without axes) and
indices may lie on the processor, and copies go both ways. `card.launches` counts operations on the card, `card.waits`
those for whose result the processor waits, `card.sent` copies to it. Views and shapes launch nothing.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten: Any = torch.ops.aten
DEVICE = torch.device("meta")  # the only device beside the processor for which autograd needs no driver
COPIES = (aten._to_copy.default, aten.copy_.default)
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
READ = (aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default, aten.masked_select.default)
READ += (aten._unique2.default, aten.unique_consecutive.default, aten.bincount.default, aten.is_nonzero.default)
FREE = {
    "view",
    "_unsafe_view",
    "expand",
    "slice",
    "select",
    "detach",
    "alias",
    "t",
    "transpose",
    "permute",
    "unsqueeze",
}
FREE |= {"squeeze", "split", "split_with_sizes", "unbind", "as_strided", "lift_fresh", "unfold", "diagonal", "empty"}
FREE |= {"_local_scalar_dense", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "_reshape_alias"}


class OnCard(torch.Tensor):
    """A tensor that says it lies on the card; its values are in `inner`."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Self:
        """Wrap a tensor of the processor."""
        about = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, device=DEVICE, **about)
        made.inner = inner
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        """The values, and where they are said to lie."""
        return f"OnCard({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Callable, types: Iterable, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Nothing happens to a tensor of the card after its card has gone."""
        raise RuntimeError(f"{func} outside of the card's context")


class _Sent(TorchFunctionMode):
    """What PyTorch does not hand to a `Card`: numbers of Python's that become tensors there, and the way back."""

    def __torch_function__(self, func: Callable, types: Iterable, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Do one call."""
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if func is torch.Tensor.tolist:
            return args[0].cpu().tolist()
        return func(*args, **kwargs)


class Card(TorchDispatchMode):
    """Run operations on tensors of the card, count them, and refuse those on two devices.

    Attributes:
        device: what to send tensors to.
        launches, waits, sent: numbers by operation.
    """

    device = DEVICE

    def __init__(self) -> None:
        """Start with nothing counted."""
        super().__init__()
        self.launches, self.waits, self.sent = Counter[str](), Counter[str](), Counter[str]()

    def forget(self) -> None:
        """Count from here on."""
        for counter in (self.launches, self.waits, self.sent):
            counter.clear()

    def __torch_dispatch__(self, func: Any, types: Iterable, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Do one operation on the processor; its results lie where a GPU would leave them."""
        kwargs = dict(kwargs or {})
        with self:  # where no gradients are asked for, operations that are made of others arrive whole
            if (found := func.decompose(*args, **kwargs)) is not NotImplemented:
                return found
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        here, there = ([x for x in given if isinstance(x, OnCard) is on] for on in (False, True))
        refuse_mixed(func, args, here, bool(there))
        goes = bool(there) if func is not aten.copy_.default else isinstance(args[0], OnCard)
        if kwargs.get("device") is not None:
            goes, kwargs["device"] = torch.device(kwargs["device"]).type == DEVICE.type, torch.device("cpu")
        self._count(func, args, bool(there), goes, bool(here))
        known = {id(x.inner): x for x in there}
        inner = tree_map(lambda x: x.inner if isinstance(x, OnCard) else x, (args, kwargs))
        found = func(*inner[0], **inner[1])
        if not goes:
            return found
        return tree_map(lambda x: _wrapped(x, known) if isinstance(x, torch.Tensor) else x, found)

    def _count(self, func: Any, args: tuple, was: bool, goes: bool, beside: bool) -> None:
        name = func.overloadpacket.__name__
        copied = func in COPIES
        if copied and beside and goes:
            self.sent[name] += 1
        elif was and ((copied and not goes) or func in READ or (func in INDEXED and chosen_by_mask(args[1]))):
            self.waits[name] += 1
        if (was or goes) and name not in FREE:
            self.launches[name] += 1


def _wrapped(x: torch.Tensor, known: dict[int, OnCard]) -> OnCard:
    """A result on the card; what was changed in place is the tensor that it was."""
    return known[id(x)] if id(x) in known else OnCard(x)


def refuse_mixed(func: Any, args: tuple, here: list[torch.Tensor], there: bool) -> None:
    """Raise RuntimeError, as a GPU does, when an operation has tensors of the card and others than it may."""
    if not there or func in COPIES:
        return
    others = [x for x in here if x.ndim]
    if func in INDEXED and isinstance(args[0], OnCard):  # indices may lie on the processor
        others = [x for x in others if not any(x is index for index in args[1])]
    if others:
        shape = tuple(others[0].shape)
        raise RuntimeError(f"{func}: tensors on two devices, the card and the processor (there: {shape})")


def chosen_by_mask(indices: Iterable[torch.Tensor | None]) -> bool:
    """Whether a mask chooses, so that the size of the result has to be read."""
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)


@contextmanager
def a_card() -> Iterator[Card]:
    """Let there be a card."""
    with _Sent(), Card() as card:
        yield card
