"""Presets and budgets of a chapter, and the check of a whole request before a kernel starts."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from helpers.claims import load_claims
from helpers.parameters import FIXED, BadRequestError, Parameter, hint, lookup, schema
from helpers.paths import read_yaml


class Budget(BaseModel):
    """What one run may use: wall time of the run and of its longest cell in seconds, memory in GB (10^9 bytes)."""

    model_config = ConfigDict(extra="forbid")

    wall_s: float = Field(gt=0)
    memory_gb: float = Field(gt=0)
    cell_s: float | None = Field(default=None, gt=0)


@dataclass(frozen=True)
class Request:
    """A checked request: every parameter's value, those that differ from the notebook's defaults, and the budget."""

    values: dict[str, Any]
    changed: dict[str, Any]
    budget: Budget


def load_presets(folder: Path, known: Mapping[str, Parameter]) -> tuple[dict[str, dict[str, Any]], dict[str, Budget]]:
    """Read and check `presets.yaml`: every preset's values and every preset's budget.

    Raises:
        BadRequestError: the file is missing or wrong; the message names preset and field.
    """
    path = folder / "presets.yaml"
    if not path.is_file():
        raise BadRequestError(f"presets.yaml: no such file beside the notebook of '{folder.name}'")
    try:
        content = read_yaml(path)
    except ValueError as error:
        raise BadRequestError(str(error)) from None
    if not isinstance(content, dict) or not all(isinstance(v, dict) for v in content.values()):
        raise BadRequestError("presets.yaml: a mapping of presets to values is needed (an empty preset is '{}')")
    limits, sources = content.pop("budgets", {}), content.pop("sources", {})
    if "reduced" not in content:
        raise BadRequestError("presets.yaml: the preset 'reduced' is missing")
    for kind, names in (("budgets", limits), ("sources", sources)):
        if unknown := names.keys() - content.keys():
            raise BadRequestError(f"presets.yaml: {kind} of an unknown preset: {', '.join(sorted(unknown))}")
    presets, budgets = {}, {}
    for preset, values in content.items():
        try:
            checked = {name: lookup(known, name).check(_yaml_float(known, name, v)) for name, v in values.items()}
            presets[preset] = {"preset": known["preset"].check(preset)} | checked
            if presets[preset]["preset"] != preset:
                raise BadRequestError(f"its value of 'preset' is '{checked['preset']}'")
            budgets[preset] = Budget.model_validate(limits.get(preset, {}))
        except BadRequestError as error:
            raise BadRequestError(f"presets.yaml: preset '{preset}': {error}") from None
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(["budgets", preset, *(str(part) for part in first["loc"])])
            raise BadRequestError(f"presets.yaml: {field}: {first['msg']}") from None
    return presets, budgets


def resolve(notebook: Path, preset: str, seed: int, overrides: Iterable[tuple[str, str]] = ()) -> Request:
    """Check a request: the notebook's defaults, then the preset, then the seed, then `overrides` (name, text).

    Raises:
        BadRequestError: one line that says what is wrong with the request.
    """
    known = schema(notebook)
    presets, budgets = load_presets(notebook.parent, known)
    try:
        load_claims(notebook.parent / "claims.yaml")
    except ValueError as error:
        raise BadRequestError(str(error)) from None
    if preset not in presets:
        raise BadRequestError(f"unknown preset '{preset}'{hint(preset, presets)}; known: {', '.join(presets)}")
    values = {name: parameter.default for name, parameter in known.items()} | presets[preset]
    values["seed"] = known["seed"].check(seed)
    for name, text in overrides:
        if name in FIXED:
            raise BadRequestError(f"parameter '{name}': give it as --{name}")
        values[name] = lookup(known, name).parse(text)
    changed = {name: value for name, value in values.items() if value != known[name].default}
    return Request(values, changed, budgets[preset])


def _yaml_float(known: Mapping[str, Parameter], name: str, value: Any) -> Any:
    """YAML 1.1 reads `1e-4` as text; take it for the number that its author meant."""
    if isinstance(value, str) and name in known and known[name].type == "float":
        return known[name].parse(value)
    return value
