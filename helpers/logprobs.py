"""Log-probabilities of responses given prompts, batched under a token budget."""

from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from helpers.memory import shrinking
from helpers.models import LanguageModel


def encode_pair(lm: LanguageModel, prompt: str, response: str, max_length: int = 2048) -> tuple[list[int], list[int]]:
    """Tokenise prompt and response apart, so that the boundary between them is exact.

    Returns:
        Token ids of the prompt and of the response; when both exceed `max_length`, the prompt loses tokens on its
        left, then the response on its right.

    Raises:
        ValueError: the prompt or the response has no tokens.
    """
    left = lm.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    right = lm.tokenizer(response, add_special_tokens=False)["input_ids"][: max_length - 1]
    left = left[-max(1, max_length - len(right)) :]
    if not left or not right:
        raise ValueError(f"{'prompt' if not left else 'response'} without tokens: {(prompt, response)!r:.80}")
    return left, right


def token_budget_batches(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Yield index lists, longest first, whose padded size (count x longest) stays within `token_budget`.

    Sorting puts equal lengths together, so that little is padded; a single item above the budget is its own batch.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while order:
        batch = order[: rows_within(lengths[order[0]], token_budget)]
        yield batch
        order = order[len(batch) :]


def rows_within(longest: int, token_budget: int) -> int:
    """Return how many rows of this many tokens fit a budget, at least one."""
    return max(1, token_budget // longest)


@torch.inference_mode()
def response_logprobs(
    lm: LanguageModel,
    pairs: Sequence[tuple[str, str]],
    *,
    token_budget: int = 2048,
    max_length: int = 2048,
    progress: bool = False,
) -> list[np.ndarray]:
    """Return the log-probability of every response token given the prompt and the tokens before it, in nats.

    The padding stands on the right, where a causal model cannot see it; the output layer is applied only to positions
    that predict a response token.

    Args:
        lm: language model.
        pairs: (prompt, response) texts; chat templates are the caller's business.
        token_budget: padded tokens per batch; halved where the memory runs out.
        max_length: see `encode_pair`.
        progress: show a progress bar.

    Returns:
        One float64 array a pair, one value a response token, in the order of `pairs`.
    """
    encoded = [encode_pair(lm, prompt, response, max_length) for prompt, response in pairs]
    lengths = [len(left) + len(right) for left, right in encoded]
    out: list[np.ndarray] = [np.empty(0)] * len(pairs)

    def score(rows: Sequence[int]) -> None:
        for i, values in zip(rows, _batch_logprobs(lm, [encoded[i] for i in rows]), strict=True):
            out[i] = values

    shrinking(
        sorted(range(len(pairs)), key=lambda i: -lengths[i]),
        token_budget,
        score,
        take=lambda rows, budget: rows[: rows_within(lengths[rows[0]], budget)],
        progress="log-probabilities" if progress else "",
        unit="tok",
        weight=lambda i: lengths[i],
    )
    return out


def _batch_logprobs(lm: LanguageModel, batch: list[tuple[list[int], list[int]]]) -> list[np.ndarray]:
    rows = [torch.tensor(left + right) for left, right in batch]
    ids = pad_sequence(rows, True, cast(int, lm.tokenizer.pad_token_id)).to(lm.device)  # (batch, seq)
    mask = pad_sequence([torch.ones_like(row) for row in rows], True).to(lm.device)
    # position t predicts token t + 1
    predicts = [torch.tensor([0] * (len(left) - 1) + [1] * len(right) + [0]) for left, right in batch]
    predicts = pad_sequence(predicts, True).bool().to(lm.device)
    hidden = lm.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    targets = ids.roll(-1, dims=1)[predicts]
    values = selected_logprobs(lm, hidden[predicts], targets).double().cpu().numpy()
    return np.split(values, np.cumsum([len(right) for _, right in batch])[:-1])


def selected_logprobs(lm: LanguageModel, hidden: Tensor, targets: Tensor, chunk: int = 512) -> Tensor:
    """Return log p(target) for hidden states, without holding all logits at once.

    Args:
        lm: language model.
        hidden: (n, d_model) outputs of the last layer (after the final norm).
        targets: (n,) token ids.
        chunk: rows per matrix product with the vocabulary.

    Returns:
        (n,) float32 log-probabilities in nats.

    Raises:
        ValueError: see `LanguageModel.logits`.
    """
    parts = []
    for states, wanted in zip(hidden.split(chunk), targets.split(chunk), strict=True):
        logits = lm.logits(states)  # (chunk, vocab)
        wanted = wanted.to(logits.device)  # a model on several devices has its output layer on another
        parts.append(logits.gather(1, wanted[:, None])[:, 0] - logits.logsumexp(-1))
    return torch.cat(parts)
