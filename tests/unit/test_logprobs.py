"""Log-probabilities against a plain computation, one example at a time."""

import numpy as np
import pytest
import torch
import transformers
from tiny import word_tokenizer

from helpers.logprobs import encode_pair, response_logprobs, selected_logprobs, token_budget_batches
from helpers.models import LanguageModel, load_lm

PAIRS = [
    ("The capital of France is", " Paris."),
    ("Two plus two equals", " four, as everyone who has been to school should know by heart."),
    ("Hello", " world"),
    ("A long prompt " * 20, " and a short end"),
]


def plain(lm, prompt, response, max_length=2048):
    left, right = encode_pair(lm, prompt, response, max_length)
    with torch.inference_mode():
        logprobs = lm.model(torch.tensor([left + right])).logits[0].double().log_softmax(-1)
    return np.array([logprobs[len(left) - 1 + k, token].item() for k, token in enumerate(right)])


@pytest.mark.parametrize("budget", [1, 40, 10_000])
def test_parity_on_a_tiny_random_model(tiny_lm, budget):
    for got, (prompt, response) in zip(response_logprobs(tiny_lm, PAIRS, token_budget=budget), PAIRS, strict=True):
        np.testing.assert_allclose(got, plain(tiny_lm, prompt, response), atol=1e-5)


SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL |= {"num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


@pytest.mark.parametrize(
    "config",
    [
        transformers.Gemma2Config(**SMALL, vocab_size=300, head_dim=16, final_logit_softcapping=0.1),
        transformers.CohereConfig(**SMALL, vocab_size=300, logit_scale=4.0),
        transformers.GraniteConfig(**SMALL, vocab_size=300, logits_scaling=0.05),
    ],
    ids=lambda config: config.model_type,
)
def test_output_layers_that_scale_or_bound_their_numbers(config):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    lm = LanguageModel(model, None, "tiny", "")  # type: ignore[arg-type]
    ids = torch.randint(3, 300, (1, 9))
    with torch.inference_mode():
        want = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        hidden = model.base_model(ids).last_hidden_state[0, :-1]
        got = selected_logprobs(lm, hidden, ids[0, 1:])
        head_alone = model.lm_head(hidden).log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert (got - head_alone).abs().max() > 0.01


@pytest.mark.parametrize(
    ("config", "known"),
    [
        (transformers.GraniteConfig(**SMALL, vocab_size=300, logits_scaling=4.0), True),
        (transformers.HyperCLOVAXConfig(**SMALL, vocab_size=300, logits_scaling=4.0), False),  # multiplies by it
    ],
    ids=lambda x: getattr(x, "model_type", str(x)),
)
def test_an_output_layer_that_is_not_understood_is_refused(config, known, tmp_path):
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    word_tokenizer([f"w{i}" for i in range(300)]).save_pretrained(tmp_path)
    lm = load_lm(str(tmp_path))
    assert lm.known_output is known
    if not known:
        with pytest.raises(ValueError, match=r"hyperclovax.*would be wrong"):
            response_logprobs(lm, [("w5 w6", "w7")])


@pytest.mark.slow
def test_parity_on_the_packaged_model():
    """Float32 logits of size 25 carry noise of 2e-5, so the bound is relative to a score of tens of nats."""
    lm = load_lm("smollm2-135m-instruct")
    for got, (prompt, response) in zip(response_logprobs(lm, PAIRS), PAIRS, strict=True):
        want = plain(lm, prompt, response)
        assert got.sum() == pytest.approx(want.sum(), rel=1e-5)
        np.testing.assert_allclose(got, want, atol=1e-4)


def test_too_long_texts_lose_the_start_of_the_prompt(tiny_lm):
    left, right = encode_pair(tiny_lm, "one two three four", " five six", max_length=4)
    whole_left, whole_right = encode_pair(tiny_lm, "one two three four", " five six")
    assert len(left) + len(right) == 4
    assert left == whole_left[-len(left) :] and right == whole_right[:3]


def test_empty_texts_are_refused(tiny_lm):
    with pytest.raises(ValueError, match="response without tokens"):
        response_logprobs(tiny_lm, [("a", "")])
    with pytest.raises(ValueError, match="prompt without tokens"):
        response_logprobs(tiny_lm, [("", "a")])


def test_batches_cover_everything_once_within_the_budget():
    lengths = np.random.default_rng(0).integers(1, 50, 200).tolist()
    batches = list(token_budget_batches(lengths, 120))
    assert sorted(i for batch in batches for i in batch) == list(range(200))
    assert all(len(b) * max(lengths[i] for i in b) <= 120 for b in batches)
    padded = sum(len(b) * max(lengths[i] for i in b) for b in batches)
    assert padded <= 1.1 * sum(lengths)
