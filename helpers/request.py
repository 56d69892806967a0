"""The request of a run: parameters as the notebook's parameters cell declares them, presets, and what both allow.

Everything is checked before anything is computed; a bad request is one line for the person who asked.
"""

import ast
import difflib
import io
import json
import math
import operator
import re
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model

from helpers.claims import load_claims
from helpers.paths import notebooks_of, read_yaml
from helpers.verify import load_expected

TYPES: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool, "list": list}
RANGE = re.compile(r"\[([^\[\],]+),([^\[\],]+)\]\s*$")
CHOICES = re.compile(r"\{([^{}]+)\}\s*$")
OPERATORS: dict[type, Any] = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}
OPERATORS |= {ast.Div: operator.truediv, ast.Pow: operator.pow}
FIXED = ("preset", "seed")  # set by --preset and --seed
FUNCTIONS = {"min": min, "max": max, "len": len, "sum": sum, "all": all, "any": any}  # of a cross-check


class BadRequestError(ValueError):
    """A request that cannot be run; the message is one line for the person who asked."""


@dataclass(frozen=True)
class Limits:
    """What a value, or each element of a list, may be: `[low, high]` or `{choice, choice}` at the comment's end."""

    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] | None = None

    def __call__(self, value: Any) -> Any:
        """Return `value` if it is allowed (pydantic calls this).

        Raises:
            ValueError: out of range, not finite or not among the choices.
        """
        for part in value if isinstance(value, list) else [value]:
            if self.choices is not None and str(part) not in self.choices:
                raise ValueError(f"{part!r} is not one of {', '.join(self.choices)}")
            if isinstance(part, float) and not math.isfinite(part):
                raise ValueError(f"{part} is not a finite number")
            if self.low is None or self.high is None:
                continue
            if isinstance(part, bool) or not isinstance(part, int | float) or not self.low <= part <= self.high:
                raise ValueError(f"{part!r} is out of range [{self.low:g}, {self.high:g}]")
        return value


class Budget(BaseModel):
    """What one run may use: wall time of the run and of its longest cell in seconds, memory in GB (10^9 bytes)."""

    model_config = ConfigDict(extra="forbid")

    wall_s: float = Field(gt=0)
    memory_gb: float = Field(gt=0)
    cell_s: float | None = Field(default=None, gt=0)


class Rule(BaseModel):
    """A cross-check between parameters: an expression that must hold, and why."""

    model_config = ConfigDict(extra="forbid")

    rule: str
    because: str = Field(min_length=10)

    def names(self) -> set[str]:
        """Return the parameters that the expression speaks of."""
        return {node.id for node in ast.walk(ast.parse(self.rule, mode="eval")) if isinstance(node, ast.Name)} - {
            *FUNCTIONS
        }

    def check(self, values: Mapping[str, Any]) -> None:
        """Raise BadRequestError when the rule does not hold."""
        from simpleeval import EvalWithCompoundTypes  # nothing else needs it

        try:
            holds = EvalWithCompoundTypes(names=dict(values), functions=FUNCTIONS).eval(self.rule)
        except Exception as error:
            raise BadRequestError(f"presets.yaml: requires: '{self.rule}': {error}") from None
        if not holds:
            said = ", ".join(f"{name} = {values[name]!r}" for name in sorted(self.names()))
            raise BadRequestError(f"parameters in conflict: {said}: {self.because} (rule: {self.rule})")


class Presets(BaseModel):
    """A chapter's `presets.yaml`, as far as one notebook is concerned."""

    values: dict[str, dict[str, Any]]  # of the parameters that this notebook declares
    budgets: dict[str, Budget]
    rules: list[Rule]


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


def schema(notebook: Path) -> type[BaseModel]:
    """Return the model of a notebook's parameters: types, defaults, limits and help as the parameters cell says.

    Raises:
        BadRequestError: no such notebook, no parameters cell or more than one, or a line that is not
            `name: type = literal  # help`, with its range or choices understood.
    """
    if not notebook.is_file():
        raise BadRequestError(f"{notebook}: no such notebook")
    return _schema(notebook, notebook.stat().st_mtime_ns)


@cache
def _schema(notebook: Path, _changed: int) -> type[BaseModel]:
    source = _parameters_cell(notebook)
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise BadRequestError(f"{notebook.name}: parameters cell, line {error.lineno}: {error.msg}") from None
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    fields: dict[str, Any] = {}
    for line in statements:
        if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name) or line.value is None:
            where = f"{notebook.name}: parameters cell, line {line.lineno}"
            raise BadRequestError(f"{where}: not of the form 'name: type = value  # help'")
        fields[line.target.id] = _field(notebook.name, line, comments.get(line.end_lineno or 0, ""))
    if missing := [name for name in FIXED if name not in fields]:
        raise BadRequestError(f"{notebook.name}: the parameters cell lacks {' and '.join(missing)}")
    config = ConfigDict(extra="forbid", strict=True, validate_default=True)
    model = create_model("Parameters", __config__=config, **fields)
    try:
        model()
    except ValidationError as error:
        raise BadRequestError(f"{notebook.name}: default of {_first(error)}") from None
    return model


def _parameters_cell(notebook: Path) -> str:
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
        found = ["".join(cell["source"]) for cell in tagged]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadRequestError(f"{notebook.name}: not a notebook ({type(error).__name__})") from None
    if len(found) != 1:
        raise BadRequestError(f"{notebook.name}: one cell tagged 'parameters' is needed, found {len(found)}")
    return found[0]


def _field(where: str, line: ast.AnnAssign, comment: str) -> tuple[Any, Any]:
    """Type and default of one line, for pydantic."""
    name, kind = ast.unparse(line.target), ast.unparse(line.annotation).split("[")[0]
    if kind not in TYPES:
        raise BadRequestError(f"{where}: parameter '{name}': type {kind} is not one of {', '.join(TYPES)}")
    limits = Limits()
    try:
        default = ast.literal_eval(line.value) if line.value else None
        if match := RANGE.search(comment):
            limits = Limits(_number(match[1]), _number(match[2]))
        elif match := CHOICES.search(comment):
            limits = Limits(choices=tuple(choice.strip() for choice in match[1].split(",")))
    except (ValueError, SyntaxError, KeyError, TypeError):
        raise BadRequestError(f"{where}: parameter '{name}': its default or range is not a plain literal") from None
    return Annotated[TYPES[kind], AfterValidator(limits)], Field(default, description=comment)


def _number(text: str) -> float:
    """Evaluate the end of a range: numbers with + - * / ** only."""

    def value(node: ast.expr) -> float:
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            return node.value
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -value(node.operand)
        if isinstance(node, ast.BinOp):
            return OPERATORS[type(node.op)](value(node.left), value(node.right))
        raise ValueError(text)

    return value(ast.parse(text.strip(), mode="eval").body)


def limits_of(model: type[BaseModel]) -> dict[str, tuple[type, Limits]]:
    """Return type and limits of every parameter."""
    return {name: (field.annotation, field.metadata[0].func) for name, field in model.model_fields.items()}  # type: ignore[misc]


def check_values(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return all parameters: the defaults with `values` in their place.

    Raises:
        BadRequestError: an unknown name, a wrong type, or a value out of range.
    """
    if unknown := [name for name in values if name not in model.model_fields]:
        known = ", ".join(model.model_fields)
        raise BadRequestError(f"unknown parameter '{unknown[0]}'{hint(unknown[0], model.model_fields)}; known: {known}")
    try:
        return model(**values).model_dump()
    except ValidationError as error:
        raise BadRequestError(_first(error)) from None


def _first(error: ValidationError) -> str:
    """The first fault, in one line."""
    first = error.errors()[0]
    name, value = first["loc"][0], first["input"]
    if first["type"] == "value_error":
        return f"parameter '{name}': {first['msg'].removeprefix('Value error, ')}"
    kind = first["type"].split("_")[0].replace("string", "str")
    return f"parameter '{name}': {value!r} is of type {type(value).__name__}, not {kind}"


def parse(model: type[BaseModel], name: str, text: str) -> Any:
    """Turn the text of a command line into a value of the parameter's type.

    Raises:
        BadRequestError: no such parameter, or not a value of its type.
    """
    if name not in model.model_fields:
        check_values(model, {name: text})
    kind = model.model_fields[name].annotation
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        value = ast.literal_eval(text) if kind is list else kind(text)  # type: ignore[misc]
        if not isinstance(value, kind):  # type: ignore[arg-type]
            raise ValueError(text)
    except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError):
        named = getattr(kind, "__name__", kind)
        raise BadRequestError(f"parameter '{name}': '{text}' is not of type {named}") from None
    return value


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
    if "reduced" not in content:
        raise BadRequestError("presets.yaml: the preset 'reduced' is missing")
    studies = {path.stem for path in notebooks_of(notebook.parent)}
    for kind, names in (("budgets", limits.keys() - studies), ("sources", sources.keys())):
        if unknown := names - content.keys():
            raise BadRequestError(f"presets.yaml: {kind} of an unknown preset: {', '.join(sorted(unknown))}")
    limits = limits | (limits.get(notebook.stem) or {})
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
            field = ".".join(["budgets", preset, *(str(part) for part in error.errors()[0]["loc"])])
            raise BadRequestError(f"presets.yaml: {field}: {error.errors()[0]['msg']}") from None
        values[preset] = {"preset": preset} | mine
    return Presets(values=values, budgets=budgets, rules=_rules(rules, model, elsewhere))


def _rules(entries: Any, model: type[BaseModel], elsewhere: set[str]) -> list[Rule]:
    """The cross-checks that speak of this notebook's parameters alone."""
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


def _other_names(notebook: Path) -> set[str]:
    """Parameters that the chapter's other notebooks declare; one that cannot be read declares none."""
    names: set[str] = set()
    for other in notebooks_of(notebook.parent):
        if other.stem != notebook.stem:
            try:
                names |= schema(other).model_fields.keys()
            except BadRequestError:
                continue
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
) -> Request:
    """Check a request: the notebook's defaults, then the preset, then the seed, then `overrides` (name, text).

    Args:
        notebook: the source notebook, beside its YAML files.
        preset: a preset of presets.yaml.
        seed: random seed.
        overrides: names and texts from a command line.
        calibrate: the run will not be compared, so expected values may speak of another configuration.

    Raises:
        BadRequestError: one line that says what is wrong with the request or with the chapter's files.
    """
    model = schema(notebook)
    presets = load_presets(notebook)
    if preset not in presets.values:
        raise BadRequestError(
            f"unknown preset '{preset}'{hint(preset, presets.values)}; known: {', '.join(presets.values)}"
        )
    named, given = check_values(model, presets.values[preset] | {"seed": seed}), {}
    for name, text in overrides:
        if name in FIXED:
            raise BadRequestError(f"parameter '{name}': give it as --{name}")
        given[name] = parse(model, name, text)
    values = check_values(model, presets.values[preset] | {"seed": seed} | given)
    for rule in presets.rules:
        rule.check(values)
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
    preset = values["preset"]
    if preset not in presets.values:
        raise BadRequestError(
            f"unknown preset '{preset}'{hint(preset, presets.values)}; known: {', '.join(presets.values)}"
        )
    defaults = check_values(model, {})
    named = defaults | presets.values[preset]
    own = {k: v for k, v in presets.values[preset].items() if k != "preset" and v != defaults[k]}
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


def hint(name: str, known: Iterable[str]) -> str:
    """Return ", did you mean ...?" when one of `known` is close to `name`, else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean '{close[0]}'?" if close else ""
