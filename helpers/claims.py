"""Claims: what a paper says, the rule that tests it, and a verdict that is computed, never typed."""

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from helpers.paths import read_yaml

if TYPE_CHECKING:
    from helpers.stats import Estimate

Verdict = Literal["reproduced", "contradicted", "inconclusive", "not testable here"]
PRESETS = ("reduced", "public", "full")
Preset = Literal["reduced", "public", "full"]


class Claim(BaseModel):
    """One claim and its rule, as written in `claims.yaml` before the experiment is run.

    `reproduced` means: the interval lies beyond `threshold` on the side that `direction` names, or, for
    `equivalent`, inside `threshold` +- `margin`.
    """

    model_config = ConfigDict(extra="forbid")

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

    @model_validator(mode="after")
    def _rule_is_complete(self) -> "Claim":
        if (self.direction == "equivalent") != (self.margin is not None and self.margin > 0):
            raise ValueError("margin: a positive number, given exactly when direction is 'equivalent'")
        missing = [p for p in PRESETS if p not in self.presets and not self.why_not.get(p)]
        if missing:
            raise ValueError(f"why_not: a reason is needed for the presets {', '.join(missing)}")
        return self

    def verdict(self, estimate: "Estimate") -> Verdict:
        """Return the verdict for an estimate: the whole interval decides, not the point."""
        if self.direction == "equivalent":
            low, high = self.threshold - self.margin, self.threshold + self.margin
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
            return f"within {self.threshold:g} ± {self.margin:g}{unit}"
        return f"{self.direction} than {self.threshold:g}{unit}"


def load_claims(path: Path) -> dict[str, Claim]:
    """Read and check `claims.yaml`.

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
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"{path.name}: claim {name}: {field + ': ' if field else ''}{first['msg']}") from None
        if claim.id in claims:
            raise ValueError(f"{path.name}: claim {claim.id} stands there twice")
        claims[claim.id] = claim
    return claims


def format_number(value: float) -> str:
    """Return a number for a table: three significant digits, no exponent for everyday sizes."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def chip(verdict: str) -> str:
    """Return a verdict as HTML; the symbol carries the meaning without colour."""
    symbol = {"reproduced": "✓", "contradicted": "✗", "inconclusive": "≈"}.get(verdict, "–")
    style = verdict.removesuffix(" here").replace(" ", "-")
    return f'<span class="verdict verdict-{style}">{symbol} {escape(verdict)}</span>'


def _cell(outcome: dict | None) -> str:
    """One table cell for the outcome of a claim in a record."""
    if outcome is None:
        return "<td>not run</td>"
    if outcome["verdict"] == "not testable here":
        return f"<td>{chip('not testable here')}<br><small>{escape(outcome['reason'])}</small></td>"
    numbers = " ".join(
        [format_number(outcome["value"]), f"[{format_number(outcome['low'])}, {format_number(outcome['high'])}]"]
    )
    return f"<td>{chip(outcome['verdict'])}<br><small>{numbers}, n&nbsp;=&nbsp;{outcome['n']}</small></td>"


def claims_table(claims: dict[str, Claim], columns: dict[str, dict[str, dict]]) -> str:
    """Return the claims table as HTML.

    Args:
        claims: claims by id.
        columns: for every column title the outcomes by claim id, as they stand in a record.
    """
    head = "".join(f"<th>{escape(title)}</th>" for title in ("Claim", "The paper", "Rule", *columns))
    rows = []
    for claim in claims.values():
        cells = "".join(_cell(outcomes.get(claim.id)) for outcomes in columns.values())
        rows.append(
            f"<tr><td><b>{escape(claim.id)}</b> {escape(claim.statement)}<br>"
            f"<small>{escape(claim.estimand)}</small></td>"
            f"<td>{escape(claim.paper_value)}<br><small>{escape(claim.source)}</small></td>"
            f"<td>{escape(claim.rule())}</td>{cells}</tr>"
        )
    return f'<table class="claims"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
