"""Golden numbers of safety neurons' released code on random inputs: `python -m tests.safety_neurons_golden CLONE`.

CLONE is a clone of THU-KEG/SafetyNeuron at 46a5311. Its functions are executed where they lie; only numbers are kept.
"""

import ast
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import tqdm

TARGET = Path(__file__).with_name("chapters") / "safety_neurons_golden.json"
COMMIT, SEED = "46a5311", 5
REQUESTS, ANSWERS = (2, 3, 1), (4, 2, 3)  # tokens of each text


def random_activations(seed: int = SEED) -> dict[str, torch.Tensor]:
    """Activations of two models: three texts of six tokens, two layers of four neurons."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(3, 6, 2, 4, generator=generator) for name in ("first", "second")}


def released(clone: str, file: str, names: set[str], around: dict[str, Any]) -> dict[str, Any]:
    """Definitions of a released file by name, with the globals that they need."""
    command = ["git", "-C", clone, "show", f"{COMMIT}:{file}"]
    source = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    body = [node for node in ast.parse(source).body if getattr(node, "name", None) in names]
    exec(compile(ast.Module(body, []), file, "exec"), around)
    return around


class Cache(dict):
    """Activations by hook name, as the released cache holds them."""

    def to(self, _device: str) -> "Cache":
        return self


def change_scores(clone: str, earlier: int) -> list:
    """Released change scores where the mask lies on the answers' own tokens, or `earlier` places before."""
    names = {"BaseActivationProcessor", "ActivationContrasting"}
    around = {"torch": torch, "tqdm": tqdm.tqdm, "HookedPreTrainedModel": object, "Callable": object}
    code = released(clone, "src/activation_processor.py", names, around)["ActivationContrasting"]("", [], [])
    mask = torch.zeros(3, 6)
    for row, request, answer in zip(mask, REQUESTS, ANSWERS, strict=True):
        row[request - earlier : request + answer - earlier] = 1
    kept = {}
    for name, values in random_activations().items():
        cache = Cache({f"layer {i}": values[:, :, i] for i in range(2)})
        kept[name] = code.read_activation_from_cache(cache, mask)
    return code.metric(kept["first"], kept["second"]).tolist()


class Letters:
    """A tokenizer of letters that puts a first token (1) and pads on the left (0)."""

    pad_token_id = 0

    def __call__(self, text: Any, add_special_tokens: bool = True, **_kwargs: Any) -> Any:
        rows = [[1] * add_special_tokens + [ord(c) for c in t] for t in ([text] if isinstance(text, str) else text)]
        if isinstance(text, str):
            return SimpleNamespace(input_ids=rows[0])
        pads = [[0] * (max(map(len, rows)) - len(row)) for row in rows]
        ids = torch.tensor([pad + row for pad, row in zip(pads, rows, strict=True)])
        return SimpleNamespace(input_ids=ids, attention_mask=(ids > 0).long())

    def batch_decode(self, rows: torch.Tensor, **_kwargs: Any) -> list[str]:
        return ["".join(chr(i) for i in row if i > 1) for row in rows.tolist()]


class Writer:
    """A model that answers ABC to the first request and D to the second."""

    device = SimpleNamespace(type="cpu")

    def generate(self, input_ids: torch.Tensor, **_kwargs: Any) -> torch.Tensor:
        return torch.cat([input_ids, torch.tensor([[65, 66, 67, 0], [68, 0, 0, 0]])], 1)


def mask_of_answers(clone: str) -> tuple[list, list]:
    """Token ids of two requests with their answers, and the released mask of what is contrasted."""
    around = {"torch": torch, "tqdm": tqdm}
    code = released(clone, "src/eval/utils.py", {"generate_completions_and_masks"}, around)
    run = code["generate_completions_and_masks"]
    ids, _, mask = run(Writer(), Letters(), ["ab", "c"], batch_size=2, disable_tqdm=True)
    return ids[0].tolist(), mask[0].tolist()


def main(clone: str) -> None:
    """Write the numbers."""
    ids, mask = mask_of_answers(clone)
    made_by = f"python -m tests.safety_neurons_golden CLONE; THU-KEG/SafetyNeuron {COMMIT}, torch {torch.__version__}"
    scores = {name: change_scores(clone, earlier) for earlier, name in enumerate(("written", "one_earlier"))}
    TARGET.write_text(json.dumps({"made_by": made_by, **scores, "ids": ids, "mask": mask}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
