"""The parameters of a notebook as its parameters cell declares them: a pydantic model, made from the cell's lines."""

import ast
import difflib
import io
import json
import math
import re
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model
from simpleeval import InvalidExpression, simple_eval

TYPES: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool, "list": list}
RANGE = re.compile(r"\[([^\[\],]+),([^\[\],]+)\]\s*$")
CHOICES = re.compile(r"\{([^{}]+)\}\s*$")
PLAIN = (bool, int, float, str, list)
FIXED = ("preset", "seed")  # set by --preset and --seed


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
                raise ValueError(f"{part!r:.60} is out of range [{self.low:g}, {self.high:g}]")
        return value


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
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
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
    except (ValueError, SyntaxError, TypeError, ArithmeticError, InvalidExpression):
        raise BadRequestError(f"{where}: parameter '{name}': its default or range is not a plain literal") from None
    return Annotated[TYPES[kind], AfterValidator(limits)], Field(default, description=comment)


def limits_of(model: type[BaseModel], name: str) -> Limits:
    """Return what the parameters cell allows for a parameter."""
    return model.model_fields[name].metadata[0].func


def _number(text: str) -> float:
    """Evaluate the end of a range: numbers and arithmetic only."""
    value = simple_eval(text.strip(), functions={}, names={})
    if not isinstance(value, int | float):
        raise ValueError(text)
    return value


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
    return f"parameter '{name}': {value!r:.60} is of type {type(value).__name__}, not {kind}"


def values_of(namespace: Mapping[str, Any], declared: Iterable[str]) -> dict[str, Any]:
    """Return the declared parameters with whatever values they have, and all other annotated globals of plain values.

    An annotated name that is not declared is a mistyped one, and the check of the values says so.

    Args:
        namespace: a notebook's `globals()`.
        declared: names in its parameters cell.

    Raises:
        BadRequestError: a declared parameter has no value.
        ValueError: `preset` or `seed` is missing.
    """
    if missing := [name for name in declared if name not in namespace]:
        raise BadRequestError(f"the chapter's parameters cell sets {', '.join(missing)}, this notebook does not")
    names = [k for k in namespace.get("__annotations__", {}) if k in namespace and k[0] != "_"]
    found = {name: namespace[name] for name in declared}
    found |= {k: namespace[k] for k in names if isinstance(namespace[k], PLAIN)}
    if not isinstance(found.get("preset"), str) or not isinstance(found.get("seed"), int):
        raise ValueError("the parameters cell must define `preset: str` and `seed: int` with annotations")
    return found


def parse(model: type[BaseModel], name: str, text: str) -> Any:
    """Turn the text of a command line into a value of the parameter's type.

    Raises:
        BadRequestError: no such parameter, or not a value of its type.
    """
    if name not in model.model_fields:
        check_values(model, {name: text})
    kind = model.model_fields[name].annotation
    try:
        text.encode()  # what is not UTF-8 on a command line could not be written into a notebook
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        value = ast.literal_eval(text) if kind is list else kind(text)  # type: ignore[misc]
        if not isinstance(value, kind):  # type: ignore[arg-type]
            raise ValueError(text)
    except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError):
        named = getattr(kind, "__name__", kind)
        said = text.encode(errors="replace").decode()[:60]
        raise BadRequestError(f"parameter '{name}': '{said}' is not of type {named}") from None
    return value


def hint(name: str, known: Iterable[str]) -> str:
    """Return ", did you mean ...?" when one of `known` is close to `name`, else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean '{close[0]}'?" if close else ""
