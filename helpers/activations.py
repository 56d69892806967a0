"""Record or change what a module of a model puts out, by forward hooks that always go away again."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

Output = torch.Tensor | tuple


def _tensor(output: Output) -> torch.Tensor:
    """Return the hidden states of a module's output; decoder blocks may return a tuple that starts with them."""
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def capture(
    model: nn.Module, modules: Sequence[str], keep: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> Iterator[dict[str, list[torch.Tensor]]]:
    """Record the outputs of submodules, one tensor per forward pass.

    Args:
        model: any module; `modules` are names as in `model.get_submodule`, such as `model.layers.14.mlp`.
        modules: names of the submodules to record.
        keep: picks what is kept of an output `(batch, seq, d)`, so that the rest can be freed; default: all of it.

    Yields:
        Lists of tensors by module name, filled as the model runs. Tensors are detached.

    Raises:
        AttributeError: the model has no submodule of that name.
    """
    records: dict[str, list[torch.Tensor]] = {name: [] for name in modules}

    def hook_for(name: str) -> Callable:
        def hook(_module: nn.Module, _inputs: tuple, output: Output) -> None:
            kept = _tensor(output).detach()
            records[name].append(kept if keep is None else keep(kept))

        return hook

    handles = []
    try:
        for name in modules:
            handles.append(model.get_submodule(name).register_forward_hook(hook_for(name)))
        yield records
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def patch(model: nn.Module, changes: Mapping[str, Callable[[torch.Tensor], torch.Tensor]]) -> Iterator[None]:
    """Replace the outputs of submodules by a function of them.

    Args:
        model: any module.
        changes: by submodule name, a function that maps an output `(batch, seq, d)` to one of the same shape.

    Raises:
        AttributeError: the model has no submodule of that name.
        ValueError: a function changed the shape.
    """

    def hook_for(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable:
        def hook(_module: nn.Module, _inputs: tuple, output: Output) -> Output:
            before = _tensor(output)
            after = change(before)
            if after.shape != before.shape:
                raise ValueError(f"patch of {name}: shape {tuple(before.shape)} became {tuple(after.shape)}")
            return (after, *output[1:]) if isinstance(output, tuple) else after

        return hook

    handles = []
    try:
        for name, change in changes.items():
            handles.append(model.get_submodule(name).register_forward_hook(hook_for(name, change)))
        yield
    finally:
        for handle in handles:
            handle.remove()
