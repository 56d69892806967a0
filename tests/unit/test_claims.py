"""Verdicts follow from intervals; a claim without a complete rule is refused."""

import pytest
import yaml

from helpers.claims import Claim, claims_table, format_number, load_claims
from helpers.record import Outcome
from helpers.stats import Estimate

BASE = {
    "id": "C1",
    "statement": "Easy is easier than hard.",
    "source": "section 4",
    "paper_value": "89.0 vs 46.6",
    "estimand": "easy minus hard accuracy",
    "unit": "points",
    "direction": "greater",
    "threshold": 0.0,
    "presets": ["reduced", "public", "full"],
    "evidence": "measured",
}


@pytest.mark.parametrize(
    ("rule", "low", "high", "verdict"),
    [
        ({"direction": "greater"}, 0.1, 1, "reproduced"),
        ({"direction": "greater"}, -1, -0.1, "contradicted"),
        ({"direction": "greater"}, -1, 1, "inconclusive"),
        ({"direction": "greater"}, 0, 1, "inconclusive"),
        ({"direction": "less"}, -1, -0.1, "reproduced"),
        ({"direction": "less"}, 0.1, 1, "contradicted"),
        ({"direction": "less"}, -1, 1, "inconclusive"),
        ({"direction": "equivalent", "margin": 0.5}, -0.2, 0.3, "reproduced"),
        ({"direction": "equivalent", "margin": 0.5}, -0.6, 0.3, "inconclusive"),
        ({"direction": "equivalent", "margin": 0.5}, 0.6, 0.9, "contradicted"),
        ({"direction": "equivalent", "margin": 0.5}, -0.9, -0.6, "contradicted"),
        ({"direction": "equivalent", "margin": 0.5}, -2, 2, "inconclusive"),
    ],
)
def test_verdict(rule, low, high, verdict):
    assert Claim(**(BASE | rule)).verdict(Estimate((low + high) / 2, low, high, 10)) == verdict


def write(tmp_path, entries):
    path = tmp_path / "claims.yaml"
    path.write_text(entries if isinstance(entries, str) else yaml.safe_dump(entries))
    return path


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ("- id: [", "not valid YAML"),
        ([], "a list of claims"),
        ({"id": "C1"}, "a list of claims"),
        (["text"], "number 1"),
        ([BASE | {"direction": "bigger"}], "C1: direction"),
        ([BASE | {"direction": "equivalent"}], "margin"),
        ([BASE | {"margin": 1.0}], "margin"),
        ([BASE | {"presets": ["reduced"]}], "why_not"),
        ([BASE | {"treshold": 1.0}], "treshold"),
        ([{k: v for k, v in BASE.items() if k != "evidence"}], "evidence"),
        ([BASE, BASE], "stands there twice"),
        ([{k: v for k, v in BASE.items() if k != "threshold"}], "threshold"),
    ],
)
def test_a_wrong_file_gets_one_clear_line(tmp_path, entries, words):
    with pytest.raises(ValueError, match=r"claims\.yaml") as caught:
        load_claims(write(tmp_path, entries))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        load_claims(tmp_path / "claims.yaml")


def test_the_table_escapes_text_and_shows_every_state(tmp_path):
    claims = load_claims(
        write(tmp_path, [BASE | {"statement": "<script>alert(1)</script> is text"}, BASE | {"id": "C2"}])
    )
    outcome = Outcome(verdict="reproduced", value=0.51234, low=0.4, high=0.6, n=7)
    page = claims_table(
        claims, {"this run": {"C1": outcome, "C2": Outcome(verdict="not testable here", reason="a & b")}}
    )
    assert "<script>" not in page and "&lt;script&gt;" in page and "a &amp; b" in page
    assert (
        "verdict-reproduced" in page and "verdict-not-testable" in page and "0.512 [0.4, 0.6], n&nbsp;=&nbsp;7" in page
    )
    assert "not run" in claims_table(claims, {"full": {}})


def test_a_notebook_judges_its_own_claims_and_gpu_counts_as_public(tmp_path):
    study = BASE | {"id": "C2", "notebook": "study", "presets": ["reduced"], "why_not": {"public": "a", "full": "b"}}
    path = write(tmp_path, [BASE, study])
    assert list(load_claims(path)) == ["C1", "C2"]
    assert list(load_claims(path, "study")) == ["C2"]
    assert list(load_claims(path, tmp_path.name)) == ["C1"]
    assert "gpu" in load_claims(path)["C1"].presets
    assert load_claims(path)["C2"].why_not["gpu"] == "a"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.12345, "0.123"),
        (-0.0001, "-0.0001"),
        (7.45e-9, "7.45 × 10⁻⁹"),
        (-2e-10, "-2 × 10⁻¹⁰"),
        (0.0, "0"),
        (999.4, "999"),
        (999.7, "1,000"),
        (-12345.6, "-12,346"),
        (float("nan"), "nan"),
    ],
)
def test_a_number_is_written_for_people(value, said):
    assert format_number(value) == said


def test_a_rule_is_written_for_people():
    assert Claim.model_validate(BASE | {"direction": "less", "threshold": 1e-6}).rule() == "less than 1 × 10⁻⁶ points"
