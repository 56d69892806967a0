"""A number with its interval, as measures give it and claims judge it."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    Attributes:
        value: the point estimate; NaN, like both ends, where it is undefined (an AUROC without one of the classes).
        low, high: ends of the interval at `level`.
        n: how many units were sampled (prompts, patients, seeds ...).
        level: confidence level of the interval.
    """

    value: float
    low: float
    high: float
    n: int
    level: float = 0.95

    def __post_init__(self) -> None:
        """Reject what is not an interval; a single NaN would pass every later comparison as "inside"."""
        numbers = [self.value, self.low, self.high]
        if not self.undefined and not (np.all(np.isfinite(numbers)) and self.low <= self.high):
            raise ValueError(f"not an interval: value {self.value}, low {self.low}, high {self.high}")

    @property
    def undefined(self) -> bool:
        """True where there is no number at all."""
        return bool(np.all(np.isnan([self.value, self.low, self.high])))

    def __str__(self) -> str:
        """Write the estimate as `value [low, high]`."""
        return "undefined" if self.undefined else f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Show a notebook's reader what `str` writes; `repr` has every digit."""
        printer.text(str(self))
