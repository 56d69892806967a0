"""ARTE: the DPO loss against the trainer of TRL, where it is installed (extra peers)."""

from pathlib import Path

import pytest
import torch
from lift import lift
from tiny import tiny_llama, word_tokenizer

trl = pytest.importorskip("trl", reason="trl is not installed (extra peers)")
datasets = pytest.importorskip("datasets", reason="datasets is not installed (trl brings it)")

WORDS = ["<pad>", "<eos>", "ask", "one", "two", "three", "four", "five"]
ROWS = [
    {"prompt": "ask one", "chosen": " two three", "rejected": " four"},
    {"prompt": "ask", "chosen": " five", "rejected": " one one two four"},
    {"prompt": "ask two two", "chosen": " three four five", "rejected": " five two"},
]


def answer_logp(model, tokenizer, prompt: str, answer: str) -> torch.Tensor:
    """log p of an answer and its end token after a prompt, one text at a time, in nats."""
    start, said = (tokenizer(text)["input_ids"] for text in (prompt, answer))
    ids = torch.tensor([start + said + [tokenizer.eos_token_id]])
    logp = model(ids).logits[0].log_softmax(-1)
    return torch.stack([logp[i - 1, ids[0, i]] for i in range(len(start), ids.shape[1])]).sum()


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_the_loss_is_that_of_trls_trainer(tmp_path, beta):
    """TRL tokenizes, pads, reads both models and averages; here each answer is read by itself."""
    tokenizer = word_tokenizer(WORDS)
    model, old = (tiny_llama(tokenizer, seed=seed).requires_grad_(True) for seed in (0, 1))
    settings = {"per_device_train_batch_size": 3, "report_to": "none", "bf16": False, "use_cpu": True}
    args = trl.DPOConfig(str(tmp_path), beta=beta, loss_type="sigmoid", **settings)
    trainer = trl.DPOTrainer(
        model, old, args=args, train_dataset=datasets.Dataset.from_list(ROWS), processing_class=tokenizer
    )
    theirs = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))
    dpo_loss = lift(Path("notebooks/arte/arte.ipynb"), ["dpo_loss"]).dpo_loss
    sides = [
        torch.stack([answer_logp(w, tokenizer, row["prompt"], row[side]) for row in ROWS])
        for w in (model, old)
        for side in ("chosen", "rejected")
    ]
    assert dpo_loss(*sides, beta).mean().item() == pytest.approx(theirs.item(), abs=1e-5)
