"""What runs cost: measured numbers come from records, the estimate from budgets."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from helpers.engine.cost import CARDS, fill_cost
from helpers.engine.loading import load_chapter

QUICK = Path(__file__).resolve().parents[1] / "fixtures" / "chapters" / "quick"


def put(folder, preset, name="quick.json", seed=0, **card):
    record = {"paper": "quick", "notebook": "quick", "preset": preset, "parameters": {"seed": seed}, "metrics": {}}
    path = folder / preset / "quick" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record | {"claims": {}, "card": card, "complete": True}))


@pytest.fixture
def page(tmp_path):
    """The page of one chapter, filled, as text."""
    shutil.copytree(QUICK, tmp_path / "notebooks" / "quick")
    results = tmp_path / "results"

    def filled():
        chapter = load_chapter(tmp_path / "notebooks" / "quick", tmp_path / "runs", results)
        return fill_cost("<!-- measured --> and <!-- estimated -->", [chapter], tmp_path / "notebooks"), chapter.faults

    return tmp_path, results, filled


def rows(html):
    found = re.findall(r"<tr>(.*?)</tr>", html)
    return [[re.sub("<[^>]+>", "", cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in found]


def test_measured_numbers_are_grouped_by_machine(page):
    _, results, filled = page
    assert "No record stands here yet." in filled()[0]
    put(results, "public", device="x86 CPU", wall_s=100.2, peak_memory_mb=900)
    put(results, "public", "quick.seed-1.json", 1, device="x86 CPU", wall_s=140.0, peak_memory_mb=950)
    put(results, "gpu", device="NVIDIA <H200>", wall_s=4.0, peak_memory_mb=2000, peak_gpu_memory_mb=1500)
    html, _ = filled()
    assert rows(html)[1:3] == [
        ["quick", "public", "x86 CPU", "2", "100 to 140", "900 to 950", ""],
        ["quick", "gpu", "NVIDIA &lt;H200&gt;", "1", "4", "2,000", "1,500"],
    ]
    assert "No record of a GPU" not in html


def test_the_estimate_scales_the_budget_and_says_where_a_card_is_too_small(page):
    folder, _, filled = page
    assert "No chapter has a preset `full` yet." in filled()[0]
    path = folder / "notebooks" / "quick" / "presets.yaml"
    content = yaml.safe_load(path.read_text())
    content |= {"full": {}, "budgets": content["budgets"] | {"full": {"wall_s": 7200, "memory_gb": 60}}}
    path.write_text(yaml.safe_dump(content))
    table = rows(filled()[0])
    assert table[0][2:] == [card.name for card in CARDS]
    assert table[1] == ["quick", "60", "2.0", "1.4 to 2.0", "3.3 to 6.3", "too small"]
    assert table[2][2] == "2.0" and table[2][0].startswith("all of them")
