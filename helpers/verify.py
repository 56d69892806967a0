"""The regression gate: what a chapter's `expected.yaml` says, and a record against it."""

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from helpers.paths import read_yaml
from helpers.record import Metric, Record, Verdict, first_fault

UNCALIBRATED = ("seed",)
K = 4  # tolerance in units of the spread over seeds
RELATIVE_FLOAT_NOISE = 1e-6
OPPOSITE = {"reproduced": "contradicted", "contradicted": "reproduced"}


class RegressionError(AssertionError):
    """A metric left its tolerance, or a claim's verdict turned round."""


class Expectation(BaseModel):
    """Mean, spread (sample standard deviation over seeds) and tolerance of one metric."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    mean: float
    spread: float = Field(ge=0)
    tolerance: float = Field(gt=0)
    null: float | None = None

    def accepts_null(self) -> bool:
        """Whether chance, or no effect, would pass."""
        return self.null is not None and abs(self.mean - self.null) <= self.tolerance

    def problem(self, name: str, metric: Metric) -> str | None:
        """Return what is wrong with a measured value, or None."""
        value = metric.value
        if self.tolerance > 1.001 * max(K * self.spread, metric.floor, RELATIVE_FLOAT_NOISE * abs(self.mean)):
            return f"{name}: its tolerance {self.tolerance:.3g} is wider than calibration writes it"
        if value is not None and abs(value - self.mean) <= self.tolerance:  # written so that NaN fails
            return None
        got = "undefined" if value is None else f"{value:.6g}"
        return f"{name}: {got} is not within {self.mean:.6g} ± {self.tolerance:.3g}"


class Expected(BaseModel):
    """The content of `expected.yaml`; only calibration writes it.

    Attributes:
        claims: for every claim that was judged, its verdict with each of `seeds`.
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    schema_: Literal[1] = Field(default=1, alias="schema")
    paper: str
    notebook: str | None = None
    preset: Literal["reduced"] = "reduced"
    k: Literal[4]  # tolerance in units of the spread over seeds
    seeds: list[int] = Field(min_length=5)
    parameters: dict[str, Any]
    metrics: dict[str, Expectation] = Field(min_length=1)
    claims: dict[str, list[Verdict]] = {}

    def file_name(self) -> str:
        """Return the name of the file that holds this."""
        return expected_name(self.paper, self.notebook or self.paper)

    def not_about(self, preset: str, parameters: dict[str, Any]) -> str | None:
        """Return None when this speaks of such a run, else the reason why it does not."""
        if preset != self.preset:
            return f"expected values are for the {self.preset} preset"
        ours = {k: v for k, v in parameters.items() if k not in UNCALIBRATED}
        changed = [k for k in sorted(ours.keys() | self.parameters) if ours.get(k) != self.parameters.get(k)]
        return f"changed parameters: {', '.join(changed)}" if changed else None


def expected_name(paper: str, notebook: str) -> str:
    """Return the file name of a notebook's expected values."""
    return "expected.yaml" if notebook == paper else f"{notebook}.expected.yaml"


def load_expected(folder: Path, notebook: str) -> Expected | None:
    """Return a notebook's expected values, or None when it was never calibrated.

    Raises:
        ValueError: the file is there and wrong; one line that names file, field and problem.
    """
    path = folder / expected_name(folder.resolve().name, notebook)
    if not path.is_file():
        return None
    try:
        expected = Expected.model_validate(read_yaml(path))
    except ValidationError as error:
        raise ValueError(f"{path.name}: {first_fault(error)}; calibrate again") from None
    about = (expected.paper, expected.notebook or expected.paper)
    if about != (folder.resolve().name, notebook):
        raise ValueError(f"{path.name}: it speaks of {'/'.join(about)}; calibrate again")
    if lax := [name for name, metric in expected.metrics.items() if metric.accepts_null()]:
        raise ValueError(f"{path.name}: a tolerance accepts the null value: {', '.join(lax)}; calibrate again")
    return expected


def expected_of(folder: Path, notebook: str, preset: str, parameters: dict[str, Any]) -> tuple[Expected | None, str]:
    """Return the expected values that speak of such a run, or None and why there are none; errors: `load_expected`."""
    expected = load_expected(folder, notebook)
    if os.environ.get("REPRODUCTIONS_CALIBRATE"):
        return None, "not compared (calibration run)"
    if expected is None:
        return None, "not compared (never calibrated)"
    reason = expected.not_about(preset, parameters)
    return (None, f"not compared ({reason})") if reason else (expected, "")


def compare(record: Record, expected: Expected) -> list[str]:
    """Return one line per metric or claim that is missing, new or not what it was; empty means a pass."""
    wanted = expected.metrics
    got = {name: metric for name, metric in record.metrics.items() if metric.gate}
    problems = [f"{name}: expected but not measured" for name in sorted(wanted.keys() - got)]
    problems += [f"{name}: measured but not calibrated (run calibrate)" for name in sorted(got.keys() - wanted)]
    problems += [said for name in sorted(wanted.keys() & got) if (said := wanted[name].problem(name, got[name]))]
    for name, verdicts in expected.claims.items():
        now = record.claims[name].verdict if name in record.claims else "missing"
        if now == "missing" or (now in OPPOSITE and set(verdicts) == {OPPOSITE[now]}):
            problems.append(f"claim {name}: {now}, but {verdicts[0]} with all {len(verdicts)} calibrated seeds")
    return problems
