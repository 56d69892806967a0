"""The parameters of a notebook: names, types, ranges and defaults as its parameters cell declares them."""

import ast
import difflib
import logging
import math
import operator
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import papermill

TYPES: dict[str, Any] = {"str": str, "int": int, "float": int | float, "bool": bool, "list": list}
RANGE = re.compile(r"\[([^\[\],]+),([^\[\],]+)\]\s*$")
CHOICES = re.compile(r"\{([^{}]+)\}\s*$")
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
OPERATORS |= {ast.Pow: operator.pow}
FIXED = ("preset", "seed")  # set by --preset and --seed


class BadRequestError(ValueError):
    """A request that cannot be run; the message is one line for the person who asked."""


@dataclass(frozen=True)
class Parameter:
    """One line of the parameters cell: `name: type = default  # help [low, high]` or `... {choice, choice}`."""

    name: str
    type: str
    default: Any
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] | None = None

    def parse(self, text: str) -> Any:
        """Turn the text of a command line into a checked value.

        Raises:
            BadRequestError: not a value of this type, or out of range.
        """
        try:
            value = {"str": str, "int": int, "float": float, "bool": _boolean, "list": _list}[self.type](text)
        except (ValueError, SyntaxError):
            raise BadRequestError(f"parameter '{self.name}': '{text}' is not of type {self.type}") from None
        return self.check(value)

    def check(self, value: Any) -> Any:
        """Return `value` when type and range are right (an int is a float too).

        Raises:
            BadRequestError: wrong type, not finite, out of range or not among the choices.
        """
        if isinstance(value, bool) != (self.type == "bool") or not isinstance(value, TYPES[self.type]):
            got = f"{value!r} is of type {type(value).__name__}"
            raise BadRequestError(f"parameter '{self.name}': {got}, not {self.type}")
        if self.type == "float":
            value = float(value)
        for part in value if self.type == "list" else [value]:
            self._check_range(part)
        return value

    def _check_range(self, value: Any) -> None:
        if self.choices is not None and str(value) not in self.choices:
            raise BadRequestError(f"parameter '{self.name}': {value!r} is not one of {', '.join(self.choices)}")
        if isinstance(value, float) and not math.isfinite(value):
            raise BadRequestError(f"parameter '{self.name}': {value} is not a finite number")
        if self.low is not None and not (isinstance(value, int | float) and self.low <= value <= self.high):
            limits = f"[{self.low:g}, {self.high:g}]"
            raise BadRequestError(f"parameter '{self.name}': {value!r} is out of range {limits}")


def schema(notebook: Path) -> dict[str, Parameter]:
    """Read the parameters of a notebook, by name.

    Raises:
        BadRequestError: no such notebook, no parameters cell or more than one, or a line that is not
            `name: type = literal  # help`, with its range or choices understood.
    """
    cells = [c for c in _cells(notebook) if "parameters" in c.metadata.get("tags", [])]
    if len(cells) != 1:
        raise BadRequestError(f"{notebook.name}: one cell tagged 'parameters' is needed, found {len(cells)}")
    try:
        statements = ast.parse(cells[0].source).body
    except SyntaxError as error:
        raise BadRequestError(f"{notebook.name}: parameters cell, line {error.lineno}: {error.msg}") from None
    logging.getLogger("papermill").setLevel(logging.ERROR)
    inspected = papermill.inspect_notebook(notebook)
    found = {}
    for line in statements:
        if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name) or line.value is None:
            raise BadRequestError(
                f"{notebook.name}: parameters cell, line {line.lineno}: not of the form 'name: type = value  # help'"
            )
        name = line.target.id
        if name not in inspected:  # papermill skips a line with a second '=', also in its comment
            raise BadRequestError(
                f"{notebook.name}: papermill cannot read parameter '{name}' (a second '=' in its line?)"
            )
        found[name] = _parameter(notebook.name, name, inspected[name], line.value)
    if missing := [name for name in FIXED if name not in found]:
        raise BadRequestError(f"{notebook.name}: the parameters cell lacks {' and '.join(missing)}")
    return found


def _cells(notebook: Path) -> list[nbformat.NotebookNode]:
    if not notebook.is_file():
        raise BadRequestError(f"{notebook}: no such notebook")
    try:
        return nbformat.read(notebook, as_version=4).cells
    except Exception as error:  # nbformat raises many kinds
        raise BadRequestError(f"{notebook.name}: not a notebook ({type(error).__name__})") from None


def _parameter(where: str, name: str, inspected: Mapping[str, str], value: ast.expr) -> Parameter:
    """Build one Parameter from what papermill read and from the literal itself."""
    kind, text = inspected["inferred_type_name"].split("[")[0], inspected["help"]
    if kind not in TYPES:
        raise BadRequestError(f"{where}: parameter '{name}': type {kind} is not one of {', '.join(TYPES)}")
    try:
        default = ast.literal_eval(value)
        limits = {}
        if match := RANGE.search(text):
            limits = {"low": _number(match[1]), "high": _number(match[2])}
        elif match := CHOICES.search(text):
            limits = {"choices": tuple(choice.strip() for choice in match[1].split(","))}
    except (ValueError, SyntaxError, KeyError):
        raise BadRequestError(f"{where}: parameter '{name}': its default or range is not a plain literal") from None
    parameter = Parameter(name, kind, default, text, **limits)
    try:
        parameter.check(default)
    except BadRequestError as error:
        raise BadRequestError(f"{where}: default of {error}") from None
    return parameter


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


def _boolean(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()] if text.lower() in ("true", "false") else _fail(text)


def _list(text: str) -> list:
    value = ast.literal_eval(text)
    return value if isinstance(value, list) else _fail(text)


def _fail(text: str) -> Any:
    raise ValueError(text)


def lookup(known: Mapping[str, Parameter], name: str) -> Parameter:
    """Return a parameter by name.

    Raises:
        BadRequestError: unknown; the message offers the nearest name.
    """
    if name not in known:
        raise BadRequestError(f"unknown parameter '{name}'{hint(name, known)}; known: {', '.join(known)}")
    return known[name]


def hint(name: str, known: Iterable[str]) -> str:
    """Return ", did you mean ...?" when one of `known` is close to `name`, else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean '{close[0]}'?" if close else ""
