"""A store for results that are expensive to make: keyed, hashed, shared between runs; never a pickle.

An entry is one file: a hash, then arrays as safetensors. It counts only if the hash is that of the key, the name and
the arrays, so that an entry that is half written, damaged or made from something else is made again and never used.
"""

import hashlib
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from helpers.paths import clear_abandoned, write_atomically


class Store:
    """Entries by name, in a folder of their own for every key.

    Args:
        folder: where the store lies; it may be shared by runs, chapters and processes.
        key: all that the entries depend on, by name: parameters, model digest, version of the code; plain values. With
            another key the same names are other entries.

    Raises:
        ValueError: the key holds something other than plain values.
    """

    def __init__(self, folder: Path | str, key: Mapping[str, Any]) -> None:
        """Name the folder; nothing is made before something is kept."""
        try:
            self.key = json.dumps(dict(key), sort_keys=True, ensure_ascii=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"the key of a store must be plain values: {_line(error)}") from None
        self.folder = Path(folder) / hashlib.sha256(self.key.encode()).hexdigest()[:16]
        self._told: set[str] = set()

    def path(self, name: str) -> Path:
        """Return the file of an entry, whether it is there or not."""
        readable = re.sub(r"[^\w.=+-]+", "_", name)[:60]
        return self.folder / f"{readable}.{hashlib.sha256(name.encode()).hexdigest()[:8]}.entry"

    def get(self, name: str, make: Callable[[], Mapping[str, NDArray | Tensor]]) -> dict[str, Tensor]:
        """Return an entry; make and keep it where there is none that is whole.

        Where the folder cannot be written to (read-only, disk full), that is said once and the work goes on.

        Args:
            name: any text.
            make: returns the arrays, which come back as tensors on the CPU without gradients. Called only if needed;
                two processes at once may both call it, and the later one's file stays.

        Raises:
            ValueError: an array of text or of Python objects, or a sparse one.
        """
        path = self.path(name)
        try:
            found = path.read_bytes()
            if self._hash(name, found[32:]) == found[:32]:
                return load(found[32:])
            self._tell(f"{path.name} is damaged and is made again")
        except FileNotFoundError:
            pass
        except OSError as error:
            self._tell(f"{path.name} cannot be read and is made again ({_line(error)})")
        made = make()
        try:
            content = save({array: _whole(values) for array, values in made.items()})
            entry = load(content)
        except (TypeError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise ValueError(f"{name}: only dense arrays of numbers can be kept: {_line(error)}") from None
        try:
            clear_abandoned(self.folder, f".{path.name}.*.part", hours=1)
            write_atomically(path, self._hash(name, content) + content)
        except OSError as error:
            self._tell(f"{self.folder} cannot be written to ({_line(error)}); the work goes on without keeping results")
        return entry

    def _hash(self, name: str, content: bytes) -> bytes:
        return hashlib.sha256(json.dumps([self.key, name]).encode() + content).digest()

    def _tell(self, message: str) -> None:
        """Say something once."""
        if message not in self._told:
            print(f"cache: {message}", file=sys.stderr)
        self._told.add(message)


def _whole(values: NDArray | Tensor) -> Tensor:
    """A copy of an array as safetensors takes it: on the CPU, contiguous, sharing nothing."""
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(np.array(values, order="C"))
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
