"""Claims: what a paper says, the rule that tests it, and a verdict that is computed, never typed."""

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from helpers.html import Raw, table
from helpers.paths import read_yaml
from helpers.record import PRESETS, Outcome, Preset, Verdict, first_fault

if TYPE_CHECKING:
    from helpers.stats import Estimate

Evidence = Literal["measured", "recomputed", "derived"]
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class Claim(BaseModel):
    """One claim and its rule, as written in `claims.yaml` before the experiment is run.

    `reproduced` means: the interval lies beyond `threshold` on the side that `direction` names, or, for
    `equivalent`, inside `threshold` +- `margin`.

    Attributes:
        evidence: `measured` (this code ran a model or a method on data), `recomputed` (from outputs or tables that
            others published) or `derived` (arithmetic, theory).
        ours: the paper does not make this statement; it is never counted as the paper's.
        headline: the statement in plain words, for one to three claims of a chapter.
        notebook: which notebook judges it; None is the chapter's main one.
        presets, why_not: where it can be tested, and why not elsewhere; `gpu` counts as `public` does unless named.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    id: str = Field(pattern=r"^[A-Z][A-Za-z0-9]*$")
    statement: str = Field(min_length=10)
    source: str = Field(min_length=3)
    paper_value: str
    estimand: str = Field(min_length=10)
    unit: str
    direction: Literal["greater", "less", "equivalent"]
    threshold: float
    margin: float | None = None
    presets: list[Preset]
    why_not: dict[Preset, str] = {}
    expectation: str | None = None
    evidence: Evidence
    ours: bool = False
    headline: str | None = Field(default=None, min_length=20)
    notebook: str | None = None

    @model_validator(mode="after")
    def _rule_is_complete(self) -> "Claim":
        if (self.direction == "equivalent") != (self.margin is not None and self.margin > 0):
            raise ValueError("margin: a positive number, given exactly when direction is 'equivalent'")
        if "gpu" not in self.presets and "gpu" not in self.why_not:
            if "public" in self.presets:
                self.presets.append("gpu")
            elif "public" in self.why_not:
                self.why_not["gpu"] = self.why_not["public"]
        missing = [p for p in PRESETS if p not in self.presets and not self.why_not.get(p)]
        if missing:
            raise ValueError(f"why_not: a reason is needed for the presets {', '.join(missing)}")
        return self

    def verdict(self, estimate: "Estimate") -> Verdict:
        """Return the verdict for an estimate: the whole interval decides, not the point."""
        if self.direction == "equivalent":
            margin = self.margin or 0.0  # never 0: the rule was checked
            low, high = self.threshold - margin, self.threshold + margin
            if low < estimate.low and estimate.high < high:
                return "reproduced"
            return "contradicted" if estimate.high < low or estimate.low > high else "inconclusive"
        above, below = estimate.low > self.threshold, estimate.high < self.threshold
        if not above and not below:
            return "inconclusive"
        return "reproduced" if above == (self.direction == "greater") else "contradicted"

    def rule(self) -> str:
        """Return the rule in words."""
        unit = f" {self.unit}" if self.unit else ""
        if self.direction == "equivalent":
            return f"within {_with_power(f'{self.threshold:g}')} ± {_with_power(f'{self.margin:g}')}{unit}"
        return f"{self.direction} than {_with_power(f'{self.threshold:g}')}{unit}"


def load_claims(path: Path, notebook: str | None = None) -> dict[str, Claim]:
    """Read and check `claims.yaml`.

    Args:
        path: the file, in the chapter's folder.
        notebook: keep the claims of this notebook only.

    Returns:
        Claims by id, in the file's order.

    Raises:
        ValueError: the file is missing or wrong; one line that names the file, the claim, the field and the problem.
    """
    if not path.is_file():
        raise ValueError(f"{path.name}: no such file in {path.parent}")
    entries = read_yaml(path)
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path.name}: a list of claims is needed, got {type(entries).__name__}")
    claims: dict[str, Claim] = {}
    for position, entry in enumerate(entries, start=1):
        name = entry.get("id", f"number {position}") if isinstance(entry, dict) else f"number {position}"
        try:
            claim = Claim.model_validate(entry)
        except ValidationError as error:
            raise ValueError(f"{path.name}: claim {name}: {first_fault(error)}") from None
        if claim.id in claims:
            raise ValueError(f"{path.name}: claim {claim.id} stands there twice")
        claims[claim.id] = claim
    main = path.resolve().parent.name
    return {k: c for k, c in claims.items() if notebook is None or (c.notebook or main) == notebook}


def all_outcomes(claims: dict[str, Claim], judged: dict[str, Outcome], preset: Preset) -> dict[str, Outcome]:
    """Return the outcomes in the order of `claims.yaml`, with the claims that this preset cannot test."""
    outcomes = {}
    for name, claim in claims.items():
        if name in judged:
            outcomes[name] = judged[name]
        elif preset not in claim.presets:
            outcomes[name] = Outcome(verdict="not testable here", reason=claim.why_not[preset])
    return outcomes


def format_number(value: float) -> str:
    """Return a number for a reader: three significant digits, whole thousands, tiny ones with a power of ten."""
    return _with_power(f"{value:.3g}") if abs(value) < 999.5 else f"{value:,.0f}"


def _with_power(said: str) -> str:
    """Return a number with its exponent as a reader writes it: 7.45e-09 is 7.45 × 10⁻⁹."""
    digits, _, power = said.partition("e")
    return f"{digits} × 10{str(int(power)).translate(SUPERSCRIPTS)}" if power else said


def chip(verdict: str) -> str:
    """Return a verdict as HTML; the symbol carries the meaning without colour."""
    symbol = {"reproduced": "✓", "contradicted": "✗", "inconclusive": "≈"}.get(verdict, "–")
    style = verdict.removesuffix(" here").replace(" ", "-")
    return f'<span class="verdict verdict-{style}">{symbol} {escape(verdict)}</span>'


def outcome_html(outcome: Outcome | None) -> Raw:
    """Return the outcome of a claim as HTML: verdict, then numbers or the reason."""
    if outcome is None:
        return Raw("not run")
    said = escape(outcome.reason or "")
    if outcome.value is not None and outcome.low is not None and outcome.high is not None:
        value, low, high = (format_number(number) for number in (outcome.value, outcome.low, outcome.high))
        said = f"{value} [{low}, {high}], n&nbsp;=&nbsp;{outcome.n}"
    return Raw(f"{chip(outcome.verdict)}<br><small>{said}</small>")


def claims_table(claims: dict[str, Claim], columns: dict[str, dict[str, Outcome]]) -> str:
    """Return the claims table as HTML.

    Args:
        claims: claims by id.
        columns: for every column title the outcomes by claim id, as they stand in a record.
    """
    rows = []
    for claim in claims.values():
        kind = f"{claim.evidence}, not the paper's" if claim.ours else claim.evidence
        said = (
            f"<b>{escape(claim.id)}</b> {escape(claim.statement)}<br><small>{escape(claim.estimand)} ({kind})</small>"
        )
        paper = f"{escape(claim.paper_value)}<br><small>{escape(claim.source)}</small>"
        cells = [outcome_html(outcomes.get(claim.id)) for outcomes in columns.values()]
        rows.append([Raw(said), Raw(paper), claim.rule(), *cells])
    return table(("Claim", "The paper", "Rule", *columns), rows, "claims")
