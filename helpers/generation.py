"""Batched sampling from a language model: prompts share a prefix, samples share their prompt.

What samples have in common is computed once: the prompt, and every token until they first differ. Finished samples
leave the batch. Every sample has its own uniform numbers, drawn before the work is cut into batches: up to rounding,
batch sizes do not change what is sampled.
"""

import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch.nn.utils.rnn import pad_sequence

from helpers.activations import capture
from helpers.memory import rows_that_fit, shrinking
from helpers.models import LanguageModel
from helpers.sampling import sample_tokens, stopped

Prompt = str | Sequence[int]
Rows = list[list[torch.Tensor]]


@dataclass
class Generations:
    """What was generated; lists are indexed `[prompt][sample]`, tensors are on the CPU, one entry per token.

    Attributes:
        token_ids: the generated tokens, an end token included.
        texts: without special tokens, cut before a stop string; a token that a forced end replaced still counts.
        logprobs: under the model itself (temperature 1, no truncation), in nats; a token that was forced counts 0.
        log_partition: logsumexp of the logits from which each token was drawn.
        hidden: by module name, `(tokens, d)` per sample, or `(1, d)` when only the last token was asked for.
    """

    token_ids: Rows
    texts: list[list[str]]
    logprobs: Rows
    log_partition: Rows
    hidden: dict[str, Rows] = field(default_factory=dict)


@dataclass
class _Settings:
    """The options of one call of `generate`, as its batches need them."""

    max_new_tokens: int
    temperatures: torch.Tensor  # (samples,)
    top_p: float
    top_k: int
    stop: tuple[str, ...]
    force_eos: bool
    modules: list[str]
    hidden_last_only: bool
    share: bool
    warm: bool  # not everything is greedy


@torch.inference_mode()
def generate(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    n_samples: int = 1,
    temperature: float | Sequence[float] = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    generator: torch.Generator | None = None,
    stop: Sequence[str] = (),
    force_eos: bool = False,
    hidden_layers: Sequence[int | str] = (),
    hidden_last_only: bool = False,
    prefix: str = "",
    max_rows: int = 256,
    share: bool = True,
    progress: str = "",
) -> Generations:
    """Continue every prompt `n_samples` times.

    Args:
        lm: model and tokenizer; any decoder of transformers with a key/value cache.
        prompts: texts, or token ids (for prompts that a chat template made).
        max_new_tokens: at most so many tokens per sample, the end token included.
        n_samples: continuations per prompt.
        temperature: one number, or one per sample: `[0.0] + [1.0] * 20` is a greedy answer and twenty samples.
        top_p: truncation, see `sample_tokens`.
        top_k: truncation, see `sample_tokens`.
        generator: CPU generator of the uniform numbers; needed unless everything is greedy.
        stop: a sample ends when its text contains one of these.
        force_eos: the last token of every sample becomes the end token, so that each has a hidden state there.
        hidden_layers: decoder blocks (int: the residual stream after it) or modules (name), such as
            `model.layers.14.mlp`, whose outputs at the generated tokens are kept.
        hidden_last_only: keep them at the last token of a sample only.
        prefix: text before every prompt (worked examples), computed once; prompts are then encoded on their own.
        max_rows: at most so many samples side by side; fewer where the memory of a GPU asks for it.
        share: False computes each sample by itself from the start, as a plain batch does (to measure the cost).
        progress: title of a progress bar over prompts; none by default.

    Raises:
        ValueError: no prompts, an empty one, one that does not fit the context, or a missing generator.
    """
    values = [float(temperature)] * n_samples if isinstance(temperature, int | float) else list(temperature)
    if len(values) != n_samples:
        raise ValueError(f"{len(values)} temperatures for {n_samples} samples")
    if generator is None and max(values) > 0:
        raise ValueError("sampling needs a generator")
    head, ids = _encode(lm, prompts, prefix, max_new_tokens)
    modules = [f"model.layers.{layer}" if isinstance(layer, int) else layer for layer in hidden_layers]
    how = (top_p, top_k, tuple(stop), force_eos, modules, hidden_last_only, share, max(values) > 0)
    settings = _Settings(max_new_tokens, torch.tensor(values), *how)
    uniform = torch.rand(len(ids), n_samples, max_new_tokens, generator=generator)
    shared = None  # the cache of the prefix
    if head:
        shared = lm.model(torch.tensor([head], device=lm.device), use_cache=True, logits_to_keep=1)[lm.cache_name]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # similar lengths side by side
    longest = len(head) + max(map(len, ids)) + max_new_tokens
    per_batch = max(1, rows_that_fit(lm.model, longest, max_rows) // n_samples)
    rows: list[list[dict[str, Any]]] = [[] for _ in ids]

    def sample(chosen: Sequence[int]) -> None:
        prompts, numbers = [ids[i] for i in chosen], uniform[list(chosen)].flatten(0, 1)
        batch = _run_batch(lm, prompts, numbers, shared, len(head), settings)
        for position, i in enumerate(chosen):
            rows[i] = batch[position * n_samples : (position + 1) * n_samples]

    shrinking(order, per_batch, sample, progress=progress)

    def column(name: str) -> list[list[Any]]:
        return [[row[name] for row in samples] for samples in rows]

    ids, text, logprobs, log_partition = map(column, ("ids", "text", "logprobs", "log_partition"))
    return Generations(ids, text, logprobs, log_partition, {m: column(m) for m in modules})


def _encode(
    lm: LanguageModel, prompts: Sequence[Prompt], prefix: str, max_new_tokens: int
) -> tuple[list[int], list[list[int]]]:
    """Token ids of the prefix and of the prompts."""
    if not len(prompts):
        raise ValueError("no prompts")
    head = list(lm.tokenizer(prefix).input_ids) if prefix else []
    ids = [list(lm.tokenizer(p, add_special_tokens=not prefix).input_ids if isinstance(p, str) else p) for p in prompts]
    context = getattr(lm.model.config, "max_position_embeddings", None) or 10**9
    for tokens in ids:
        if not tokens:
            raise ValueError("empty prompt")
        if (need := len(head) + len(tokens) + max_new_tokens) > context:
            start = lm.tokenizer.decode(tokens[:12])
            raise ValueError(f"the prompt {start!r}... needs {need} tokens with prefix and answer, not {context}")
    return head, ids


def _prefill(lm: LanguageModel, ids: list[list[int]], shared: Any, n_head: int) -> tuple[torch.Tensor, Any, Any]:
    """Run the prompts once, padded on the left: next-token logits `(n, vocab)`, mask `(n, seq)`, cache."""
    rows = [torch.tensor(prompt) for prompt in ids]
    tokens = pad_sequence(rows, batch_first=True, padding_side="left")
    real = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
    mask = torch.cat([real.new_ones(len(ids), n_head), real], 1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, n_head:]
    cache = copy.deepcopy(shared)
    if cache is not None:
        cache.batch_repeat_interleave(len(ids))
    tokens, mask, positions = tokens.to(lm.device), mask.to(lm.device), positions.to(lm.device)
    inputs = {"attention_mask": mask, "position_ids": positions, lm.cache_name: cache}
    out = lm.model(tokens, **inputs, use_cache=True, logits_to_keep=1)
    return out.logits[:, -1].float(), mask, out[lm.cache_name]


def _run_batch(
    lm: LanguageModel, ids: list[list[int]], uniform: torch.Tensor, shared: Any, n_head: int, settings: _Settings
) -> list[dict[str, Any]]:
    """Sample for a batch of prompts; one result per sample, ordered by prompt, then sample.

    A row of the model's batch is a prompt with a continuation; all samples that have said just this may share it.
    """
    eos, device, steps = cast(int, lm.tokenizer.eos_token_id), lm.device, settings.max_new_tokens
    logits, mask, cache = _prefill(lm, ids, shared, n_head)
    temperature, uniform = settings.temperatures.repeat(len(ids)).to(device), uniform.to(device)
    draw = functools.partial(sample_tokens, top_k=settings.top_k, top_p=settings.top_p, warm=settings.warm)
    live = torch.arange(len(ids) * len(settings.temperatures), device=device)  # samples that are still in the batch
    row = live // len(settings.temperatures)  # of each of them
    tokens = torch.full((len(live), steps), eos, device=device)
    drawn = tokens.clone()  # with the token that a forced end replaces: the texts are made from it
    logprobs, partitions = (torch.zeros(len(live), steps, device=device) for _ in range(2))
    lengths, hidden = torch.zeros_like(live), {}
    for step in range(steps):
        token = draw(logits[row], uniform[live, step], temperature[live])
        partition = logits.logsumexp(-1)[row]
        logprob = logits[row, token] - partition
        tokens[live, step] = drawn[live, step] = token
        done = (token == eos) | stopped(lm.tokenizer, tokens[live, : step + 1], settings.stop) | (step == steps - 1)
        if settings.force_eos:
            logprob = logprob.masked_fill(done & (token != eos), 0.0)
            token = torch.where(done, eos, token)
            tokens[live, step] = token
        logprobs[live, step], partitions[live, step], lengths[live] = logprob, partition, step + 1
        over = not len(left := (~done).nonzero()[:, 0])  # one look: on a GPU every look is a wait
        if over and not settings.modules:
            break
        parent, new = row, token  # of each row of the next step
        row = torch.arange(len(row), device=device)
        if settings.share:
            said, row = (parent * logits.shape[-1] + token).unique(return_inverse=True)
            parent, new = said // logits.shape[-1], said % logits.shape[-1]
        if not torch.equal(parent, torch.arange(len(logits), device=device)):
            cache.reorder_cache(parent)  # also drops and repeats rows, each layer where its keys lie
        mask = torch.cat([mask[parent], mask.new_ones(len(parent), 1)], 1)
        inputs = {"attention_mask": mask, "position_ids": mask.sum(-1, keepdim=True) - 1, lm.cache_name: cache}
        with capture(lm.model, settings.modules) as states:
            out = lm.model(new[:, None], **inputs, use_cache=True)
        for name, (state,) in states.items():
            shape = (len(tokens), 1 if settings.hidden_last_only else steps, state.shape[-1])
            kept = hidden.setdefault(name, torch.zeros(shape, device=device))
            kept[live, 0 if settings.hidden_last_only else step] = state[:, -1].to(device)[row].float()
        if over:
            break
        logits, cache = out.logits[:, -1].float(), out[lm.cache_name]
        live, row = live[left], row[left]
    columns = {"logprobs": logprobs, "log_partition": partitions, **hidden}
    return _split(lm.tokenizer, tokens, drawn, lengths, columns, settings.stop)


def _split(
    tokenizer: Any,
    tokens: torch.Tensor,
    drawn: torch.Tensor,
    lengths: torch.Tensor,
    columns: dict[str, torch.Tensor],
    stop: Sequence[str],
) -> list[dict[str, Any]]:
    """Cut the padded results of a batch into one dict per row, on the CPU."""
    lengths = lengths.cpu()

    def cut(values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        sizes = lengths.clamp(max=values.shape[1])
        return values.cpu()[torch.arange(values.shape[1]) < sizes[:, None]].split(sizes.tolist())

    @functools.cache
    def text_of(ids: tuple[int, ...]) -> str:  # samples often say the same
        text = tokenizer.decode(list(ids), skip_special_tokens=True)
        for end in stop:
            text = text.split(end)[0]
        return text

    said = zip(drawn.tolist(), lengths.tolist(), strict=True)
    parts = {"text": [text_of(tuple(row[:length])) for row, length in said], "ids": cut(tokens)}
    parts |= {name: cut(values) for name, values in columns.items()}
    return [dict(zip(parts, row, strict=True)) for row in zip(*parts.values(), strict=True)]
