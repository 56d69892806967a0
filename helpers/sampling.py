"""What decides a generated token: how it is drawn, and whether it completes a stop string."""

from functools import lru_cache
from typing import Any

import torch


def sample_tokens(
    logits: torch.Tensor,
    uniform: torch.Tensor,
    temperature: torch.Tensor,
    top_k: int = 0,
    top_p: float = 1.0,
    warm: bool | None = None,
) -> torch.Tensor:
    """Draw one token per row by inverting the cumulative distribution; returns ids `(rows,)`.

    Args:
        logits: `(rows, vocab)`.
        uniform: `(rows,)` numbers in [0, 1).
        temperature: `(rows,)`; 0 means the most likely token.
        top_k: keep only the k most likely tokens; 0 keeps all.
        top_p: of those, keep the smallest set that holds this probability.
        warm: whether a temperature is above 0; None looks, for which the processor waits on a GPU.
    """
    greedy = logits.argmax(-1)
    if not (bool((temperature > 0).any()) if warm is None else warm):
        return greedy
    scaled, ids = logits / torch.where(temperature > 0, temperature, 1.0)[:, None], None
    if 0 < top_k < scaled.shape[-1]:
        scaled, ids = scaled.topk(top_k)
    elif top_p < 1:
        scaled, ids = scaled.sort(-1, descending=True)
    probability = scaled.double().softmax(-1)
    cumulative = probability.cumsum(-1)
    if top_p < 1:
        cumulative = (probability * (cumulative - probability < top_p)).cumsum(-1)
    target = uniform.double()[:, None] * cumulative[:, -1:]
    pick = torch.searchsorted(cumulative, target, right=True).clamp(max=cumulative.shape[-1] - 1)
    drawn = pick if ids is None else ids.gather(1, pick)
    return torch.where(temperature > 0, drawn[:, 0], greedy)


@lru_cache(maxsize=32)
def _may_stop(tokenizer: Any, stop: tuple[str, ...]) -> torch.Tensor:
    """Which tokens can complete a stop string: those whose text holds the last character of one; bool `(vocab,)`.

    A space may belong to any token: many tokenizers add it only when tokens are joined.
    """
    if any(end[-1] == " " for end in stop):
        return torch.ones(len(tokenizer), dtype=torch.bool)
    pieces = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    return torch.tensor([any(end[-1] in piece for end in stop) for piece in pieces])


def stopped(tokenizer: Any, tokens: torch.Tensor, stop: tuple[str, ...]) -> torch.Tensor:
    """Tell which rows of generated tokens hold a stop string in their text; bool `(rows,)`.

    Args:
        tokenizer: decodes the rows; texts are made only where the last token may have completed a stop string.
        tokens: `(rows, tokens)`.
        stop: the strings; none means that no row is stopped.
    """
    done = torch.zeros(len(tokens), dtype=torch.bool)
    if stop:
        known = _may_stop(tokenizer, stop)
        last = tokens[:, -1].cpu().clamp(max=len(known) - 1)  # some models have more outputs than tokens
        for row in known[last].nonzero()[:, 0].tolist():
            text = tokenizer.decode(tokens[row], skip_special_tokens=True)
            done[row] = any(end in text for end in stop)
    return done.to(tokens.device)
