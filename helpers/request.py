"""The request of a run: presets and budgets, the chapter's own cross-checks, and what a run may be called.

Everything is checked before anything is computed; a bad request is one line for the person who asked.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from helpers.claims import load_claims
from helpers.parameters import FIXED, BadRequestError, check_values, hint, parse, schema
from helpers.paths import notebooks_of, read_yaml
from helpers.record import first_fault
from helpers.rules import Rule, rules_of
from helpers.sizes import Sizes
from helpers.verify import load_expected


class Budget(BaseModel):
    """What one run may use: wall time of the run and of its longest cell in seconds, memory in GB (10^9 bytes)."""

    model_config = ConfigDict(extra="forbid")

    wall_s: float = Field(gt=0)
    memory_gb: float = Field(gt=0)
    cell_s: float | None = Field(default=None, gt=0)


class Presets(BaseModel):
    """A chapter's `presets.yaml`, as far as one notebook is concerned."""

    values: dict[str, dict[str, Any]]  # of the parameters that this notebook declares
    budgets: dict[str, Budget]
    rules: list[Rule]
    sizes: Sizes

    def named(self, preset: str) -> dict[str, Any]:
        """Return the values of a preset; raise BadRequestError when there is none of that name."""
        if preset not in self.values:
            known = ", ".join(self.values)
            raise BadRequestError(f"unknown preset '{preset}'{hint(preset, self.values)}; known: {known}")
        return self.values[preset]


class Request(BaseModel):
    """A checked request.

    Attributes:
        values: every parameter.
        injected: those that differ from the notebook's defaults.
        changed: those that differ from the named preset; such a run is a trial and speaks for no preset.
    """

    paper: str
    notebook: str
    preset: str
    seed: int
    values: dict[str, Any]
    injected: dict[str, Any]
    changed: dict[str, Any]
    budget: Budget


def load_presets(notebook: Path) -> Presets:
    """Read and check the `presets.yaml` beside a notebook.

    A value counts for those notebooks of the chapter that declare the parameter.

    Raises:
        BadRequestError: the file is missing or wrong; the message names preset and field.
    """
    path, model = notebook.parent / "presets.yaml", schema(notebook)
    if not path.is_file():
        raise BadRequestError(f"presets.yaml: no such file beside the notebook of '{notebook.parent.name}'")
    try:
        content = read_yaml(path)
    except ValueError as error:
        raise BadRequestError(str(error)) from None
    if not isinstance(content, dict) or not all(isinstance(content.get(k), dict) for k in content if k != "requires"):
        raise BadRequestError("presets.yaml: a mapping of presets to values is needed (an empty preset is '{}')")
    limits, sources, rules = content.pop("budgets", {}), content.pop("sources", {}), content.pop("requires", None) or []
    sizes = content.pop("scale", {})
    if not isinstance(rules, list):
        raise BadRequestError("presets.yaml: requires: a list of rules is needed")
    if "reduced" not in content:
        raise BadRequestError("presets.yaml: the preset 'reduced' is missing")
    studies = {path.stem for path in notebooks_of(notebook.parent)}
    for kind, names in (("budgets", limits.keys() - studies), ("sources", sources.keys())):
        if unknown := names - content.keys():
            raise BadRequestError(f"presets.yaml: {kind} of an unknown preset: {', '.join(sorted(unknown))}")
    if not all(isinstance(entry, dict) for entry in limits.values()):
        raise BadRequestError("presets.yaml: budgets: a mapping is needed for every preset and notebook")
    limits = limits | limits.get(notebook.stem, {})
    elsewhere = _other_names(notebook)
    values, budgets = {}, {}
    for preset, given in content.items():
        mine = {k: _number_text(model, k, v) for k, v in given.items() if k in model.model_fields or k not in elsewhere}
        try:
            check_values(model, {"preset": preset} | mine)
            if mine.get("preset", preset) != preset:
                raise BadRequestError(f"its value of 'preset' is '{mine['preset']}'")
            budgets[preset] = Budget.model_validate(limits.get(preset, {}))
        except BadRequestError as error:
            raise BadRequestError(f"presets.yaml: preset '{preset}': {error}") from None
        except ValidationError as error:
            raise BadRequestError(f"presets.yaml: {first_fault(error, 'budgets', preset)}") from None
        values[preset] = {"preset": preset} | mine
    return Presets(
        values=values, budgets=budgets, rules=rules_of(rules, model, elsewhere), sizes=_sizes(sizes, model, elsewhere)
    )


def _sizes(content: dict, model: type[BaseModel], elsewhere: set[str]) -> Sizes:
    """What a smaller run of this notebook makes smaller."""
    try:
        return Sizes.model_validate(content).check(model, elsewhere)
    except ValidationError as error:
        raise BadRequestError(f"presets.yaml: {first_fault(error, 'scale')}") from None


def _other_names(notebook: Path) -> set[str]:
    """Parameters that the chapter's other notebooks declare; one that cannot be read declares none."""
    names: set[str] = set()
    for other in notebooks_of(notebook.parent):
        with suppress(BadRequestError):
            names |= schema(other).model_fields.keys() if other.stem != notebook.stem else set()
    return names


def _number_text(model: type[BaseModel], name: str, value: Any) -> Any:
    """YAML 1.1 reads `1e-4` as text; take it for the number that its author meant."""
    if isinstance(value, str) and name in model.model_fields and model.model_fields[name].annotation is float:
        return parse(model, name, value)
    return value


def resolve(
    notebook: Path,
    preset: str,
    seed: int,
    overrides: Iterable[tuple[str, str]] = (),
    *,
    calibrate: bool = False,
    scale: int = 1,
) -> Request:
    """Check a request: the notebook's defaults, the preset, the seed, its sizes at an Nth, then `overrides`.

    Args:
        notebook: the source notebook, beside its YAML files.
        preset: a preset of presets.yaml.
        seed: random seed.
        overrides: names and texts from a command line.
        calibrate: the run will not be compared, so expected values may speak of another configuration.
        scale: what the sizes of the preset are divided by (see `helpers.sizes`); such a run is a trial.

    Raises:
        BadRequestError: one line that says what is wrong with the request or with the chapter's files.
    """
    model, presets, given = schema(notebook), load_presets(notebook), {}
    named = check_values(model, presets.named(preset) | {"seed": seed})
    for name, text in overrides:
        if name in FIXED:
            raise BadRequestError(f"parameter '{name}': give it as --{name}")
        given[name] = parse(model, name, text)
    smaller = presets.sizes.scaled(model, named, scale) if scale != 1 else {}
    values = check_values(model, named | smaller | given)
    for rule in presets.rules:
        rule.check(values, f"scale {scale}: " if smaller else "")
    defaults = check_values(model, {})
    try:
        load_claims(notebook.parent / "claims.yaml")
        expected = load_expected(notebook.parent, notebook.stem)
    except ValueError as error:
        raise BadRequestError(str(error)) from None
    if expected and not calibrate and (reason := expected.not_about(preset, named)) and preset == expected.preset:
        raise BadRequestError(
            f"{expected.file_name()} was calibrated with other values ({reason}); "
            f"run 'papers calibrate {notebook.parent.name}/{notebook.stem}'"
        )
    return Request(
        paper=notebook.resolve().parent.name,
        notebook=notebook.stem,
        preset=preset,
        seed=seed,
        values=values,
        injected={name: value for name, value in values.items() if value != defaults[name]},
        changed={name: value for name, value in values.items() if value != named[name]},
        budget=presets.budgets[preset],
    )


def changed_from_preset(notebook: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Check the values with which a notebook runs; return those that differ from the preset that it names.

    The engine has done this before; here it serves a notebook that papermill or a person started.

    Raises:
        BadRequestError: as `resolve`, or a preset that is named without its values.
    """
    model, presets = schema(notebook), load_presets(notebook)
    check_values(model, values)
    for rule in presets.rules:
        rule.check(values)
    preset, defaults = values["preset"], check_values(model, {})
    named = defaults | presets.named(preset)
    own = {k: v for k, v in presets.named(preset).items() if k != "preset" and v != defaults[k]}
    if own and all(values[name] == defaults[name] for name in own):
        lines = "; ".join(f"{name} = {value!r}" for name, value in own.items())
        raise BadRequestError(
            f"preset '{preset}' is named without its values: run 'papers run {notebook.parent.name}/{notebook.stem} "
            f"--preset {preset}', or set them too: {lines}"
        )
    expected = load_expected(notebook.parent, notebook.stem)
    if expected and expected.preset == preset:  # a default that was edited in place is a change too
        named |= {k: v for k, v in expected.parameters.items() if k in named}
    return {name: value for name, value in values.items() if name != "seed" and value != named[name]}
