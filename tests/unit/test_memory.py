"""Batches that shrink: nothing is lost or done twice, and what cannot fit is said."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers import memory
from helpers.generation import generate
from helpers.logprobs import response_logprobs, rows_within
from helpers.memory import rows_that_fit, shrinking

PAIRS = [("a b c", " d e"), ("a", " b"), ("e f g h a b c d", " e"), ("c", " d e f g")]


class Card:
    """A memory that holds so many items at a time."""

    def __init__(self, room: int) -> None:
        self.room, self.done, self.tried = room, [], []

    def __call__(self, batch) -> None:
        self.tried.append(len(batch))
        if sum(batch) > self.room:
            raise torch.OutOfMemoryError("out of memory")
        self.done += batch


def test_everything_is_done_once_and_in_order(capsys):
    card = Card(10)
    shrinking([1] * 25, 64, card)
    assert card.done == [1] * 25 and card.tried == [25, 16, 8, 8, 8, 1]
    assert capsys.readouterr().out.count("half as large") == 2


def test_a_budget_is_halved_until_the_batch_is_smaller():
    card = Card(9)
    shrinking([4, 4, 2, 1, 1], 1000, card, take=lambda rows, size: rows[: rows_within(rows[0], size)])
    assert card.done == [4, 4, 2, 1, 1] and max(card.tried[1:]) < 5


def test_one_item_that_does_not_fit_is_an_error():
    card = Card(3)
    with pytest.raises(torch.OutOfMemoryError):
        shrinking([1, 1, 5], 1, card)
    assert card.done == [1, 1]


def test_other_errors_are_not_retried():
    calls = []

    def broken(batch) -> None:
        calls.append(batch)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        shrinking([1, 2], 2, broken)
    assert len(calls) == 1


def test_log_probabilities_and_samples_survive_a_small_card(tiny_lm, monkeypatch, capsys):
    """The forward pass fails with more than two rows: the numbers are those of a machine with room."""
    prompts = [left for left, _ in PAIRS]

    def numbers():
        texts = generate(tiny_lm, prompts, 4, 2, generator=torch.Generator().manual_seed(0)).token_ids
        return response_logprobs(tiny_lm, PAIRS), [[t.tolist() for t in row] for row in texts]

    (logprobs, texts), forward = numbers(), tiny_lm.model.base_model.forward

    def small(input_ids, **rest):
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return forward(input_ids, **rest)

    monkeypatch.setattr(tiny_lm.model.base_model, "forward", small)
    found, written = numbers()
    assert written == texts
    for one, wanted in zip(found, logprobs, strict=True):
        np.testing.assert_allclose(one, wanted, atol=1e-5)
    assert "half as large" in capsys.readouterr().out


def test_rows_follow_the_free_memory(monkeypatch):
    config = SimpleNamespace(num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, hidden_size=64)
    config.vocab_size, config.get_text_config = 100, lambda: config
    model = SimpleNamespace(config=config, dtype=torch.bfloat16, device=SimpleNamespace(type="cpu"))
    assert rows_that_fit(model, 50, 256) == 256
    model.device.type = "cuda"
    row = 2 * 2 * 2 * 16 * 50 * 2 + 16 * 100
    for free, wanted in ((0, 1), (20 * row, 10), (10**9 * row, 256)):
        monkeypatch.setattr(memory.torch.cuda, "mem_get_info", lambda _, free=free: (free, free))
        monkeypatch.setattr(memory.torch.cuda, "memory_reserved", lambda _: 0)
        monkeypatch.setattr(memory.torch.cuda, "memory_allocated", lambda _: 0)
        assert rows_that_fit(model, 50, 256) == wanted
