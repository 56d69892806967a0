"""Cross-checks between parameters, as `presets.yaml` declares them under `requires`."""

import ast
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from simpleeval import EvalWithCompoundTypes

from helpers.parameters import BadRequestError

FUNCTIONS = {"min": min, "max": max, "len": len, "sum": sum, "all": all, "any": any}  # of a cross-check


class Rule(BaseModel):
    """A cross-check between parameters: an expression that must hold, and why."""

    model_config = ConfigDict(extra="forbid")

    rule: str
    because: str = Field(min_length=10)

    def names(self) -> set[str]:
        """Return the parameters that the expression speaks of."""
        nodes = ast.walk(ast.parse(self.rule, mode="eval"))
        return {node.id for node in nodes if isinstance(node, ast.Name)} - FUNCTIONS.keys()

    def check(self, values: Mapping[str, Any], before: str = "") -> None:
        """Raise BadRequestError, with `before` in front, when the rule does not hold."""
        try:
            holds = EvalWithCompoundTypes(names=dict(values), functions=FUNCTIONS).eval(self.rule)
        except Exception as error:
            raise BadRequestError(f"presets.yaml: requires: '{self.rule}': {error}") from None
        if not holds:
            said = ", ".join(f"{name} = {values[name]!r}" for name in sorted(self.names()))
            raise BadRequestError(f"{before}parameters in conflict: {said}: {self.because} (rule: {self.rule})")


def rules_of(entries: Any, model: type[BaseModel], elsewhere: set[str]) -> list[Rule]:
    """Return the cross-checks of `requires` that speak of one notebook's parameters alone.

    Args:
        entries: mappings of `rule` and `because`, as `presets.yaml` has them.
        model: the notebook's parameters.
        elsewhere: parameters of the chapter's other notebooks.

    Raises:
        BadRequestError: an entry that is no such mapping or no expression, or that speaks of an unknown parameter.
    """
    found = []
    for position, entry in enumerate(entries, start=1):
        try:
            rule = Rule.model_validate(entry)
            names = rule.names()
        except (ValidationError, SyntaxError) as error:
            what = error.errors()[0]["msg"] if isinstance(error, ValidationError) else f"not an expression: {error.msg}"
            raise BadRequestError(f"presets.yaml: requires, number {position}: {what}") from None
        if unknown := names - model.model_fields.keys() - elsewhere:
            raise BadRequestError(f"presets.yaml: requires: unknown parameter '{min(unknown)}' in '{rule.rule}'")
        if names <= model.model_fields.keys():
            found.append(rule)
    return found
