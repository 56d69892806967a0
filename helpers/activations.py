"""Record or change what goes into or out of a module, by forward hooks that always go away again."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

Output = torch.Tensor | tuple


def _tensor(output: Output) -> torch.Tensor:
    """Return the hidden states of a module's output; decoder blocks may return a tuple that starts with them."""
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def _hooks(model: nn.Module, hooks: Mapping[str, Callable], inputs: bool) -> Iterator[None]:
    """Set hooks of submodules, by name; a hook gets the inputs, or inputs and output, after the module."""
    with ExitStack() as stack:
        for name, hook in hooks.items():
            module = model.get_submodule(name)
            register = module.register_forward_pre_hook if inputs else module.register_forward_hook
            stack.callback(register(hook).remove)
        yield


@contextmanager
def capture(model: nn.Module, modules: Sequence[str], inputs: bool = False) -> Iterator[dict[str, list[torch.Tensor]]]:
    """Record the outputs of submodules, one tensor per forward pass.

    Args:
        model: any module; `modules` are names as in `model.get_submodule`, such as `model.layers.14.mlp`.
        modules: names of the submodules to record.
        inputs: record the first input instead, after the patches of inputs that were set earlier.

    Yields:
        Lists of tensors by module name, filled as the model runs. Tensors are detached.

    Raises:
        AttributeError: the model has no submodule of that name.
    """
    records: dict[str, list[torch.Tensor]] = {name: [] for name in modules}

    def hook_for(name: str) -> Callable:
        def hook(_module: nn.Module, *ends: Output) -> None:  # (inputs) or (inputs, output)
            records[name].append(_tensor(ends[-1]).detach())

        return hook

    with _hooks(model, {name: hook_for(name) for name in modules}, inputs):
        yield records


@contextmanager
def patch(
    model: nn.Module, changes: Mapping[str, Callable[[torch.Tensor], torch.Tensor]], inputs: bool = False
) -> Iterator[None]:
    """Replace the outputs of submodules by a function of them.

    Args:
        model: any module.
        changes: by submodule name, a function that maps an output `(batch, seq, d)` to one of the same shape.
        inputs: replace the first input instead.

    Raises:
        AttributeError: the model has no submodule of that name.
        ValueError: a function changed the shape.
    """

    def hook_for(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable:
        def hook(_module: nn.Module, *ends: Output) -> Output:  # (inputs) or (inputs, output)
            before = _tensor(ends[-1])
            after = change(before)
            if after.shape != before.shape:
                raise ValueError(f"patch of {name}: shape {tuple(before.shape)} became {tuple(after.shape)}")
            return (after, *ends[-1][1:]) if isinstance(ends[-1], tuple) else after

        return hook

    with _hooks(model, {name: hook_for(name, change) for name, change in changes.items()}, inputs):
        yield
