"""What `helpers` computes on a card: nothing lies on two devices, and the numbers are those of the processor."""

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from card import DEVICE, OnCard, a_card
from tiny import tiny_llama, word_tokenizer
from torch.optim import optimizer
from transformers import BertConfig, BertModel

from helpers import decoders
from helpers.activations import capture, patch
from helpers.cache import Store
from helpers.generation import generate
from helpers.logprobs import response_logprobs, selected_logprobs
from helpers.memory import rows_that_fit
from helpers.models import Encoder, LanguageModel
from helpers.muon import Muon
from helpers.sampling import sample_tokens, stopped

CPU, END, WORDS = torch.device("cpu"), 1, 30
TEXT = ["<pad>", "<eos>", *"abcdefghijklmnop", "."]
PROMPTS = ["a b c", "d", "e f g h i"]
COVERED = {"activations", "cache", "decoders", "generation", "logprobs", "memory", "models", "muon", "sampling"}
NOTHING_THERE = {
    "card": "reads a device's name",
    "kernel": "sets threads and memory",
    "packaged": "reads files",
    "run": "names the device",
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lm_on(device: torch.device) -> LanguageModel:
    tokenizer = word_tokenizer(TEXT)
    model = tiny_llama(tokenizer, num_hidden_layers=3, max_position_embeddings=64, initializer_range=0.3).to(device)
    return LanguageModel(model, tokenizer, "tiny", "test")


def weights_on(device: torch.device) -> decoders.Weights:
    """Random decoders whose greedy texts vary."""
    w = decoders.start_weights(2, WORDS, seeded(), device)
    return {name: value * (8 if name[:-1] in ("write", "down") else 1) for name, value in w.items()}


def texts(*shape: int) -> torch.Tensor:
    return torch.randint(2, WORDS, shape, generator=seeded(1))


def sampled(device: torch.device, **options: Any) -> list:
    """Tokens, log-probabilities and hidden states of a language model's samples."""
    given = {"n_samples": 4, "temperature": [0.0, 1.0, 1.0, 1.0], "generator": seeded(), "max_rows": 8}
    found = generate(lm_on(device), PROMPTS, 6, **(given | options))
    kept = [row for layer in found.hidden.values() for row in layer]
    return [*found.token_ids, *found.logprobs, *found.log_partition, *kept]


def patched(device: torch.device) -> list:
    lm = lm_on(device)
    tokens = torch.tensor([[2, 5, 3]], device=device)
    with patch(lm.model, {"model.layers.0.mlp": lambda x: 2 * x}), capture(lm.model, ["model.layers.1"]) as seen:
        lm.model(tokens)
    return seen["model.layers.1"]


def scored(device: torch.device) -> list:
    lm = lm_on(device)
    pairs = [("a b", "c d"), ("e", "f g h i"), ("a", "b")]
    hidden = torch.randn(5, 32, generator=seeded()).to(device)
    targets = torch.tensor([2, 3, 4, 5, 6], device=device)
    return [*response_logprobs(lm, pairs, token_budget=12), selected_logprobs(lm, hidden, targets, chunk=2)]


def encoded(device: torch.device) -> list:
    tokenizer = word_tokenizer(TEXT)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).eval()
    return [Encoder(model.to(device), tokenizer).encode(PROMPTS, batch_size=2)]


def read(device: torch.device) -> list:
    w, tokens = weights_on(device), texts(2, 3, 8).to(device)
    return [decoders.logprobs(w, tokens), decoders.states(decoders.select(w, [1, 1, 0]), texts(3, 2, 4).to(device))]


def continued(device: torch.device) -> list:
    """Decoders that go on from a text that several rows share, greedy and sampled."""
    w, found = weights_on(device), []
    for generator in (None, seeded(3)):
        shared = decoders.Cache(8)
        decoders.states(w, texts(2, 3, 8).to(device), shared)
        prompts = texts(2, 6, 2).to(device)
        found.append(decoders.generate(w, prompts, 5, END, shared.followed(2, 7), generator))
    return found


def trained(device: torch.device, muon: float) -> list:
    tokens = texts(2, 3, 8).to(device)
    loss = lambda w, step: -decoders.logprobs(w, tokens).mean((1, 2)).sum()  # noqa: E731
    return list(decoders.fit(weights_on(device), loss, 3, lambda share: 1e-3 * share, "test", muon).values())


def stepped(device: torch.device) -> list:
    maps = [torch.randn(2, 6, 3, generator=seeded()).to(device).requires_grad_()]
    maps[0].square().sum().backward()
    Muon(maps).step(0.1)
    return maps


def drawn(device: torch.device) -> list:
    logits, uniform = torch.randn(6, 19, generator=seeded()).to(device), torch.rand(6, generator=seeded(1)).to(device)
    warm = torch.tensor([0.0, 1.0, 1.0, 0.5, 0.0, 2.0], device=device)
    ways: list[dict] = [{}, {"top_k": 3}, {"top_p": 0.7}, {"top_k": 5, "top_p": 0.7}]
    tokens = torch.tensor([[2, 3], [2, 18]], device=device)
    return [
        *(sample_tokens(logits, uniform, warm, **way) for way in ways),
        stopped(word_tokenizer(TEXT), tokens, (".",)),
    ]


WORK: dict[str, Callable[[torch.device], list]] = {
    "generation": sampled,
    "generation with states": lambda device: sampled(device, hidden_layers=[0, "model.layers.1.mlp"], stop=["."]),
    "generation with a forced end": lambda device: sampled(
        device, force_eos=True, hidden_layers=[1], hidden_last_only=True, prefix="p o n", share=False
    ),
    "truncated generation": lambda device: sampled(device, top_p=0.8, top_k=5),
    "activations": patched,
    "logprobs": scored,
    "models": encoded,
    "decoders": read,
    "decoders that generate": continued,
    "decoders that learn": lambda device: trained(device, 0.0),
    "decoders that learn with Muon": lambda device: trained(device, 3.0),
    "muon": stepped,
    "sampling": drawn,
}

LEARNING = {"decoders that learn", "decoders that learn with Muon", "muon"}


@pytest.fixture
def card(monkeypatch):
    """A card, for whose tensors PyTorch's fused Adam is there as on a GPU."""
    known = optimizer._get_fused_kernels_supported_devices
    monkeypatch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: [*known(), DEVICE.type])
    with a_card() as card:
        yield card


def values(x: Any) -> np.ndarray:
    """The numbers of a result, wherever it lies."""
    return x if isinstance(x, np.ndarray) else x.detach().cpu().numpy()


@pytest.mark.parametrize("name", WORK)
def test_work_on_a_card_gives_the_numbers_of_the_processor(card, name):
    want = [y for x in WORK[name](CPU) for y in (x if isinstance(x, list) else [x])]
    with torch.inference_mode(name not in LEARNING):
        got = [y for x in WORK[name](card.device) for y in (x if isinstance(x, list) else [x])]
    assert len(got) == len(want) > 0 and sum(card.launches.values()) > 10
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(values(one), values(other), rtol=1e-4, atol=1e-5)


def test_what_is_kept_comes_back_on_the_processor(card, tmp_path):
    made = lambda: {"x": texts(2, 3).to(card.device), "y": torch.ones(2, device=card.device)}  # noqa: E731
    found = Store(tmp_path, {"key": 1}).get("one", made)
    assert torch.equal(found["x"], texts(2, 3)) and torch.equal(found["y"], torch.ones(2))
    assert not any(isinstance(one, OnCard) for one in found.values())


def test_the_device_of_a_model_is_told(card):
    lm = lm_on(card.device)
    assert lm.device == card.device and rows_that_fit(lm.model, 10, 7) == 7


def test_no_module_with_tensors_is_left_out():
    """A module of the package that imports torch is tried above, or does not compute."""
    found = set()
    for path in (Path(__file__).resolve().parents[2] / "helpers").glob("[!_]*.py"):
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import)]
        if any(alias.name.split(".")[0] == "torch" for node in nodes for alias in node.names):
            found.add(path.stem)
    assert found == COVERED | NOTHING_THERE.keys()


def test_a_step_of_generation_waits_four_times(card):
    """For the samples that go on, for those that agree, for the order of the rows, and for transformers' own mask."""
    with torch.inference_mode():
        lm = lm_on(card.device)
        how = {"n_samples": 8, "generator": seeded()}
        ends = []
        for tokens in (4, 5):
            card.forget()
            generate(lm, PROMPTS, tokens, **how)
            ends.append(card.waits.total())
    assert ends[1] - ends[0] == 4, dict(card.waits)


# The card itself


@pytest.mark.parametrize(
    "mixed",
    [
        lambda card, here: card + here,
        lambda card, here: here + card,
        lambda card, here: card @ here,
        lambda card, here: torch.where(here > 0, card, card),
        lambda card, here: torch.cat([card, here]),
        lambda card, here: here[card.argmax(0)],
        lambda card, here: card.gather(0, here.long()),
        lambda card, here: here.index_select(0, card.argmax(0)),
        lambda card, here: torch.nn.functional.embedding(here.long().abs(), card),
        lambda card, here: card.masked_fill(here > 0, 0.0),
        lambda card, here: card.index_put((torch.tensor([0]),), here[:1]),
        lambda card, here: here.add_(card),
    ],
)
def test_an_operation_on_two_devices_is_refused(card, mixed):
    with pytest.raises(RuntimeError, match="tensors on two devices"):
        mixed(torch.randn(3, 3, device=card.device), torch.randn(3, 3))


def test_what_a_gpu_allows_is_allowed(card):
    x, here = torch.arange(6.0, device=card.device).view(2, 3), torch.tensor([1, 0])
    assert (x * torch.tensor(2.0)).sum().item() == 30 and x[here].cpu().tolist() == [[3, 4, 5], [0, 1, 2]]
    x[here] = 1.0
    x[0].copy_(torch.zeros(3))
    assert x.cpu().tolist() == [[0, 0, 0], [1, 1, 1]]
    back = torch.zeros(3)
    back.copy_(x[1])
    assert back.tolist() == [1, 1, 1] and not isinstance(back, OnCard)
    with pytest.raises((RuntimeError, TypeError)):
        x.numpy()


def test_launches_and_waits_are_counted(card):
    x = torch.ones(4, device=card.device)
    card.forget()
    y = x * 2
    y.view(2, 2)[0].add_(1)
    assert card.launches == {"mul": 1, "add_": 1} and not card.waits
    assert float(y.sum()) == 10 and bool((y > 0).any()) and len(y[y > 2]) == 2 and torch.equal(y, y)
    y.tolist(), y.cpu()
    assert card.waits == {"_local_scalar_dense": 2, "index": 1, "equal": 1, "_to_copy": 2}
    assert not card.sent
    torch.tensor([1, 2], device=card.device)
    assert card.sent == {"_to_copy": 1}
