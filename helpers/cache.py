"""A store for results that are expensive to make: keyed, hashed, shared between runs; never a pickle.

An entry is one safetensors file: arrays, and in its header a JSON text for everything else. It counts only if the key,
the name and the hash of its content agree, so that an entry that is half written, damaged or made from something else
is made again and never used.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from helpers.paths import clear_abandoned

Array = NDArray | Tensor


@dataclass(frozen=True)
class Entry:
    """What is stored under one name.

    Attributes:
        arrays: by name, in the form in which they came: NumPy arrays, or tensors (on the CPU, without gradients).
        about: anything that JSON holds, such as texts and settings.
    """

    arrays: dict[str, Array]
    about: Any = None


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
        self.key = _json(dict(key), "the key of a store")
        self.folder = Path(folder) / hashlib.sha256(self.key.encode()).hexdigest()[:16]
        self._told: set[str] = set()

    def path(self, name: str) -> Path:
        """Return the file of an entry, whether it is there or not."""
        readable = re.sub(r"[^\w.=+-]+", "_", name)[:60]
        return self.folder / f"{readable}.{hashlib.sha256(name.encode()).hexdigest()[:8]}.safetensors"

    def get(self, name: str, make: Callable[[], Mapping[str, Array] | Entry]) -> Entry:
        """Return an entry; make and keep it where there is none.

        Args:
            name: any text.
            make: returns the arrays, or an `Entry` with something to say about them. Called only if needed; two
                processes at once may both call it, and the later one's file stays.
        """
        found = self.load(name)
        if found is None:
            made = make()
            found = self.save(name, *((made.arrays, made.about) if isinstance(made, Entry) else (made,)))
        return found

    def load(self, name: str) -> Entry | None:
        """Return an entry, or None where there is none that is whole.

        The arrays are mapped from the file: they take memory only where they are read, and may be written to (the file
        stays as it is).
        """
        path = self.path(name)
        try:
            before = _version(path)
            with safe_open(path, "pt") as file:
                said, tensors = file.metadata() or {}, {array: file.get_tensor(array) for array in file.keys()}  # noqa: SIM118
            numpy, about = json.loads(said["numpy"]), json.loads(said["about"])
            if said != self._label(name, tensors, said["about"], numpy):
                if _version(path) != before:  # replaced between the reading of header and arrays: another file by now
                    return self.load(name)
                return self._tell(f"{path.name} is damaged and is made again")
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            return self._tell(f"{path.name} cannot be read and is made again ({_line(error)})")
        return Entry({array: t.numpy() if array in numpy else t for array, t in tensors.items()}, about)

    def save(self, name: str, arrays: Mapping[str, Array], about: Any = None) -> Entry:
        """Keep an entry in one step, in the place of an older one; return it as it will be read.

        Where the folder cannot be written to (read-only, disk full), that is said once and the work goes on.

        Raises:
            ValueError: an array of text or of Python objects, or something in `about` that JSON does not hold.
        """
        if odd := [array for array in arrays if not isinstance(array, str) or array == "__metadata__"]:
            raise ValueError(f"{name}: {odd[0]!r} is no name of an array")
        numpy, tensors = sorted(n for n, a in arrays.items() if not isinstance(a, Tensor)), {}
        for array, content in arrays.items():
            try:
                tensors[array] = _whole(content)
            except (TypeError, RuntimeError):
                raise ValueError(f"{name}: '{array}' is not a dense array of numbers; texts go into `about`") from None
        text = _json(about, f"{name}: what is said about the arrays")
        path = self.path(name)
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            clear_abandoned(self.folder, f".{path.name}.*.part", hours=1)
            with part.open("xb") as empty:
                mode = os.fstat(empty.fileno()).st_mode  # what the umask gives; safetensors makes files of its own mode
            save_file(tensors, part, self._label(name, tensors, text, numpy))
            part.chmod(mode & 0o777)
            os.replace(part, path)
        except (OSError, SafetensorError) as error:
            self._tell(f"{self.folder} cannot be written to ({_line(error)}); the work goes on without keeping results")
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
        return Entry({n: t.numpy() if n in numpy else t for n, t in tensors.items()}, json.loads(text))

    def _label(self, name: str, tensors: Mapping[str, Tensor], about: str, numpy: list[str]) -> dict[str, str]:
        """The header of an entry, with the hash of all that is in it."""
        label = {"key": self.key, "name": name, "about": about, "numpy": json.dumps(numpy)}
        digest = hashlib.sha256(json.dumps(label, sort_keys=True).encode())
        for array, tensor in sorted(tensors.items()):
            digest.update(f"{array} {tensor.dtype} {tuple(tensor.shape)} ".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return label | {"sha256": digest.hexdigest()}

    def _tell(self, message: str) -> None:
        """Say something once."""
        if message not in self._told:
            print(f"cache: {message}", file=sys.stderr)
        self._told.add(message)


def _whole(content: Array) -> Tensor:
    """A copy of an array as safetensors takes it: on the CPU, contiguous, of a type that it knows."""
    if not isinstance(content, Tensor):
        content = torch.from_numpy(np.array(content, order="C"))  # a copy already
    elif content.layout == torch.strided:
        content = content.detach().cpu().clone(memory_format=torch.contiguous_format)
    if content.dtype == torch.complex128 or content.layout != torch.strided:
        raise TypeError
    return content


def _version(path: Path) -> tuple[int, int, int]:
    """What changes when a file is replaced; not the time of access, which reading changes."""
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _json(content: Any, what: str) -> str:
    try:
        return json.dumps(content, sort_keys=True, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} must be plain values: {_line(error)}") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
