"""Random language models of a few thousand weights: real classes, real files, milliseconds on a CPU."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}


def word_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """One token per word; the first word pads, the second ends."""
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token=words[0], eos_token=words[1])


def tiny_llama(
    tokenizer: Any, kind: type[PreTrainedModel] = LlamaForCausalLM, seed: int = 0, **options: Any
) -> PreTrainedModel:
    """A Llama with random weights for this tokenizer. Large weights (`initializer_range`) make greedy answers vary."""
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    config = LlamaConfig(vocab_size=len(tokenizer), **special, **(SIZES | options))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(config).eval().requires_grad_(False)


def save_tiny(folder: Path, tokenizer: Any, *args: Any, **options: Any) -> str:
    """Save `tiny_llama(tokenizer, ...)` and its tokenizer the way a user's model would lie on disk."""
    tiny_llama(tokenizer, *args, **options).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
