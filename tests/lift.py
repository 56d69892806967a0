"""Take definitions out of a notebook, and run a notebook whose method was broken on purpose."""

import ast
import itertools
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parents[1]


class Placed(NamedTuple):
    """A statement of a notebook: its number in it, the id of its cell, and itself."""

    order: int
    cell: str
    statement: ast.stmt


def lift(notebook: str | Path, names: Iterable[str], extra_globals: Mapping[str, Any] | None = None) -> SimpleNamespace:
    """Return definitions of a notebook without running it.

    Executes the notebook's top-level imports, then the assignments, functions and classes that are asked for, in the
    notebook's order, with everything they refer to: functions, classes and constants (assignments without a call). Any
    other global that a lifted definition needs, such as `run`, comes from `extra_globals`, which win over the notebook.

    Args:
        notebook: path, relative to the checkout or absolute.
        names: functions, classes or variables defined at the top level of a cell.
        extra_globals: values by name.

    Raises:
        LookupError: the notebook defines no such name.
    """
    path, given, wanted = ROOT / notebook, dict(extra_globals or {}), list(names)
    imports, definitions = _top_level(path, path.stat().st_mtime_ns)
    if missing := [name for name in wanted if name not in definitions and name not in given]:
        raise LookupError(f"{path.name} does not define {', '.join(missing)}; it has {', '.join(sorted(definitions))}")
    needed = _closure(wanted, definitions, given)
    statements = sorted({d.order: d for name in needed for d in definitions[name]}.values())
    namespace: dict[str, Any] = {"__name__": path.stem} | given
    for _, cell, statement in [*imports, *statements]:
        code = compile(ast.Module([statement], []), f"{path.name}[{cell}]", "exec")
        exec(code, namespace)
        namespace |= given
    return SimpleNamespace(**{name: namespace[name] for name in wanted})


@cache
def _top_level(path: Path, _changed_ns: int) -> tuple[list[Placed], dict[str, list[Placed]]]:
    """Return the import statements, and the statements that define each name, of all code cells.

    A notebook is read once for all tests that lift from it, until it changes.
    """
    imports: list[Placed] = []
    definitions: dict[str, list[Placed]] = {}
    order = itertools.count()
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        for statement in ast.parse(cell.source).body:
            placed = Placed(next(order), cell.id, statement)
            if isinstance(statement, ast.Import | ast.ImportFrom):
                imports.append(placed)
            for name in _bound(statement):
                definitions.setdefault(name, []).append(placed)
    return imports, definitions


def _bound(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    if not isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
        return []
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    return [node.id for t in targets for node in ast.walk(t) if isinstance(node, ast.Name)]


def _closure(wanted: list[str], definitions: dict[str, list[Placed]], given: dict[str, Any]) -> set[str]:
    """Names to execute: those wanted and, transitively, the ones they load, as far as they may be executed unasked."""
    needed, queue = set(), [name for name in wanted if name not in given]
    while queue:
        name = queue.pop()
        if name in needed:
            continue
        needed.add(name)
        loads = {n.id for d in definitions[name] for n in ast.walk(d.statement) if isinstance(n, ast.Name)}
        queue += [
            other for other in loads if other in definitions and other not in given and _harmless(definitions[other])
        ]
    return needed


def _harmless(placed: list[Placed]) -> bool:
    """Functions, classes and assignments that call nothing can be executed without having been asked for."""
    definitions = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    calls = (any(isinstance(n, ast.Call) for n in ast.walk(p.statement)) for p in placed)
    return all(isinstance(p.statement, definitions) or not call for p, call in zip(placed, calls, strict=True))


def sabotage(
    paper: str,
    replace: Mapping[str, str],
    folder: Path | None = None,
    timeout_s: int = 900,
    notebook: str | None = None,
) -> str:
    """Run a copy of a notebook with broken code and return its error, "Name: message".

    The gate tells at once: a metric out of tolerance raises where it is noted.

    Args:
        paper: name of the chapter.
        replace: text in the code cells -> text to put there; each must stand in them exactly once.
        folder: the chapter's folder [notebooks/<paper>].
        timeout_s: limit for one cell.
        notebook: stem of the notebook [the chapter's main one].

    Raises:
        LookupError: a replacement does not match exactly once.
        AssertionError: the broken notebook ran to its end; nothing noticed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch, "notebooks", paper)
        shutil.copytree(folder or ROOT / "notebooks" / paper, copy)
        content = nbformat.read(copy / f"{notebook or paper}.ipynb", as_version=4)
        for old, new in replace.items():
            _replace_once(content, old, new)
        settings = {"REPRODUCTIONS_RUNS": str(Path(scratch, "runs")), "REPRODUCTIONS_FAIL_FAST": "1"}
        before = {name: os.environ.get(name) for name in ("REPRODUCTIONS_RECORD", *settings)}
        os.environ.pop("REPRODUCTIONS_RECORD", None)
        os.environ |= settings  # the kernel inherits them
        try:
            NotebookClient(content, timeout=timeout_s, resources={"metadata": {"path": str(copy)}}).execute()
        except CellExecutionError as error:
            if records := [
                p for p in Path(scratch, "runs").rglob("*.json") if json.loads(p.read_text()).get("complete")
            ]:
                raise AssertionError(f"{paper}: failed, yet wrote {records[0].name}") from error
            return re.sub(r"\x1b\[[0-9;]*m", "", f"{error.ename}: {error.evalue}")
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
    raise AssertionError(f"{paper}: ran to its end although {list(replace)} was replaced; the gate did not notice")


def _replace_once(notebook: nbformat.NotebookNode, old: str, new: str) -> None:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and old in cell.source]
    count = sum(cell.source.count(old) for cell in cells)
    if count != 1:
        raise LookupError(f"{old!r} stands {count} times in the code cells, expected once")
    cells[0].source = cells[0].source.replace(old, new)
