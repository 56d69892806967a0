"""Batched sampling equals the plain way of doing it: one prompt, one sample, no cache."""

import pytest
import torch
from tiny import tiny_llama, word_tokenizer

from helpers.activations import capture, patch
from helpers.generation import generate
from helpers.models import LanguageModel
from helpers.sampling import sample_tokens, stopped

WORDS = ["<pad>", "<eos>", *"abcdefghijklmnop", "."]
MLP = "model.layers.1.mlp"


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    tokenizer = word_tokenizer(WORDS)
    model = tiny_llama(tokenizer, num_hidden_layers=3, max_position_embeddings=64, initializer_range=0.3)
    return LanguageModel(model, tokenizer, "tiny", "test")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.inference_mode()
def plain(lm, prompt: str, uniform: torch.Tensor, temperature: float, force_eos: bool):
    """One sample without cache, padding or batching: tokens, log-probabilities, MLP vector at the last token."""
    ids, start, logprobs = lm.tokenizer(prompt, return_tensors="pt").input_ids, None, []
    start = ids.shape[1]
    for step, u in enumerate(uniform):
        logits = lm.model(ids).logits[:, -1]
        token = sample_tokens(logits, u[None], torch.tensor([temperature]))
        logprob = logits.log_softmax(-1)[0, token]
        end = step == len(uniform) - 1 or int(token) == 1
        if end and force_eos and int(token) != 1:
            token, logprob = torch.tensor([1]), torch.zeros(1)
        ids, logprobs = torch.cat([ids, token[None]], 1), [*logprobs, logprob]
        if end:
            break
    with capture(lm.model, [MLP]) as seen:
        lm.model(ids)
    return ids[0, start:], torch.cat(logprobs), seen[MLP][0][0, -1]


@pytest.mark.parametrize("prefix", ["", "p o n m . "])
@pytest.mark.parametrize("max_rows", [1000, 5])
@pytest.mark.parametrize("share", [True, False])
def test_equals_the_plain_loop(lm, prefix, max_rows, share):
    prompts, temperatures = ["a b c", "d", "e f g h a b c d e"], [0.0, 1.0, 1.0, 0.7]
    options = {"force_eos": True, "hidden_layers": [MLP], "hidden_last_only": True, "prefix": prefix, "share": share}
    out = generate(lm, prompts, 6, 4, temperatures, generator=seeded(), max_rows=max_rows, **options)
    uniform = torch.rand(3, 4, 6, generator=seeded())
    lengths = set()
    for i, prompt in enumerate(prompts):
        for j, temperature in enumerate(temperatures):
            ids, logprobs, state = plain(lm, prefix + prompt, uniform[i, j], temperature, force_eos=True)
            assert out.token_ids[i][j].tolist() == ids.tolist()
            assert out.token_ids[i][j][-1] == 1
            torch.testing.assert_close(out.logprobs[i][j], logprobs, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(out.hidden[MLP][i][j][0], state, atol=1e-5, rtol=1e-4)
            lengths.add(len(ids))
    assert len(lengths) > 1, "the case needs samples that leave the batch early"


def test_all_hidden_states_and_residual_stream(lm):
    out = generate(lm, ["a b", "c d e"], 4, 2, generator=seeded(1), hidden_layers=[0, MLP])
    for i, prompt in enumerate(["a b", "c d e"]):
        for j in range(2):
            ids = torch.cat([lm.tokenizer(prompt, return_tensors="pt").input_ids[0], out.token_ids[i][j]])[None]
            with torch.inference_mode():
                reference = lm.model(ids, output_hidden_states=True)
            n = len(out.token_ids[i][j])
            states = out.hidden["model.layers.0"][i][j]
            torch.testing.assert_close(states, reference.hidden_states[1][0, -n:], atol=1e-5, rtol=1e-4)
            assert out.hidden[MLP][i][j].shape == (n, 32)
            partition = reference.logits[0, -n - 1 : -1].logsumexp(-1)
            torch.testing.assert_close(out.log_partition[i][j], partition, atol=1e-5, rtol=1e-5)


def test_same_seed_same_samples_and_batch_size_does_not_matter(lm):
    run = lambda rows: generate(lm, ["a b c", "d e"], 5, 8, top_p=0.9, top_k=8, generator=seeded(3), max_rows=rows)  # noqa: E731
    assert run(1000).texts == run(8).texts == run(1).texts


def test_samples_that_agree_so_far_are_one_row(lm):
    """Rows of the model's batch: one a prompt where all samples agree, one a sample where nothing is shared."""
    rows: list[int] = []
    hook = lm.model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    try:
        free = generate(lm, ["a b c", "d"], 4, 3, temperature=0.0, hidden_layers=[MLP])
        shared, rows[:] = list(rows), []
        plain = generate(lm, ["a b c", "d"], 4, 3, temperature=0.0, hidden_layers=[MLP], share=False)
    finally:
        hook.remove()
    assert max(shared) == 2 and max(rows) == 6 and free.texts == plain.texts
    torch.testing.assert_close(free.hidden[MLP], plain.hidden[MLP], atol=1e-5, rtol=1e-4)  # batches of other sizes


def test_sampling_follows_the_distribution():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(20_000, 1)
    uniform = torch.rand(20_000, generator=seeded())
    share = lambda **o: sample_tokens(logits, uniform, torch.ones(20_000), **o).bincount(minlength=4) / 20_000  # noqa: E731
    torch.testing.assert_close(share(), torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.015, rtol=0)
    torch.testing.assert_close(share(top_k=2), torch.tensor([0.625, 0.375, 0, 0]), atol=0.015, rtol=0)
    torch.testing.assert_close(share(top_p=0.7), torch.tensor([0.625, 0.375, 0, 0]), atol=0.015, rtol=0)
    assert (sample_tokens(logits, uniform, torch.zeros(20_000)) == 0).all()


def test_stop_strings_cut_the_text(lm):
    assert stopped(lm.tokenizer, lm.tokenizer("a b . c", return_tensors="pt").input_ids, (". ",)).tolist() == [True]
    assert not stopped(lm.tokenizer, lm.tokenizer("a b c", return_tensors="pt").input_ids, (". ",)).any()
    free = generate(lm, ["a"], 12, 40, generator=seeded(2))
    cut = generate(lm, ["a"], 12, 40, generator=seeded(2), stop=(" c",), force_eos=True)
    assert any(" c" in text for text in free.texts[0])
    for before, after, ids in zip(free.texts[0], cut.texts[0], cut.token_ids[0], strict=True):
        assert " c" not in after and ids[-1] == 1
        assert before.startswith(after.removesuffix(" "))


def test_prompt_as_token_ids(lm):
    ids = lm.tokenizer("a b c").input_ids
    one, two = (generate(lm, [p], 5, temperature=0.0) for p in ("a b c", ids))
    assert one.texts == two.texts


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "no prompts"),
        ([""], {}, "empty prompt"),
        (["a " * 60], {}, "needs 70 tokens"),
        (["a"], {"temperature": 1.0}, "needs a generator"),
        (["a"], {"temperature": [0.0, 0.0]}, "2 temperatures for 1 samples"),
    ],
)
def test_errors(lm, prompts, options, message):
    with pytest.raises(ValueError, match=message):
        generate(lm, prompts, 10, **{"temperature": 0.0, **options})


def test_capture_and_patch_leave_no_hooks(lm):
    ids = torch.tensor([[2, 3, 4]])
    lm.model(ids, output_hidden_states=True)  # transformers keeps hooks of its own
    hooks = sum(len(m._forward_hooks) for m in lm.model.modules())
    with torch.inference_mode():
        before = lm.model(ids).logits
        with (
            patch(lm.model, {MLP: torch.zeros_like}),
            capture(lm.model, [MLP, "model.layers.2"]) as seen,
        ):
            changed = lm.model(ids).logits
        assert seen["model.layers.2"][0].shape == (1, 3, 32)
        assert not torch.allclose(before, changed)
        torch.testing.assert_close(lm.model(ids).logits, before)
        with pytest.raises(ValueError, match="shape"), patch(lm.model, {MLP: lambda h: h[:, :1]}):
            lm.model(ids)
        with pytest.raises(AttributeError), capture(lm.model, ["model.layers.9"]):
            pass
    assert sum(len(m._forward_hooks) for m in lm.model.modules()) == hooks


def test_inputs_are_patched_before_they_are_captured(lm):
    ids, name = torch.tensor([[2, 3, 4]]), "model.layers.1.mlp.down_proj"
    with torch.inference_mode():
        with capture(lm.model, [name], inputs=True) as before:
            lm.model(ids)
        with patch(lm.model, {name: lambda a: 2 * a}, inputs=True), capture(lm.model, [name], inputs=True) as after:
            doubled = lm.model(ids).logits
        with patch(lm.model, {name: lambda y: 2 * y}):
            torch.testing.assert_close(lm.model(ids).logits, doubled)  # the layer is linear
    torch.testing.assert_close(after[name][0], 2 * before[name][0])
    assert not any(m._forward_pre_hooks for m in lm.model.modules())


def test_a_forced_end_takes_no_text_away(lm):
    """The text holds every token that was drawn, cut at the stop; the ids end with the end token all the same."""
    free = generate(lm, ["a", "b c"], 6, 8, generator=seeded(3))
    forced = generate(lm, ["a", "b c"], 6, 8, generator=seeded(3), force_eos=True)
    assert free.texts == forced.texts and any(len(text.split()) == 6 for text in forced.texts[0])
    assert all(ids[-1] == 1 for rows in forced.token_ids for ids in rows)
    stop = (" c", " d")
    cut = generate(lm, ["a", "b c"], 6, 8, generator=seeded(3), force_eos=True, stop=stop)
    for whole, short in zip(free.texts, cut.texts, strict=True):
        assert short == [text.split(" c")[0].split(" d")[0] for text in whole]
