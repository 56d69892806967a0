"""The page on the package `helpers`, from docstrings as they are written, with the pages that use each part."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from helpers.code import source_of
from helpers.engine.pages import Chapter

PLACE = "<!-- api -->"
Named = ast.FunctionDef | ast.ClassDef


def fill_api(template: str, package: Path, chapters: Iterable[Chapter]) -> str:
    """Return the page: the committed text with every public function and class at the placeholder.

    Args:
        template: the committed text.
        package: folder of the package; its subpackages are left out.
        chapters: whose notebooks are searched for imports.
    """
    users = used_by(chapters)
    parts = []
    for path in sorted(package.glob("[!_]*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        public = [one for one in module.body if isinstance(one, Named) and one.name[0] != "_"]
        entries = [_entry(one, users[path.stem, one.name]) for one in public]
        text = "\n\n".join([f".. py:module:: helpers.{path.stem}", *entries])
        parts.append(f"## {path.stem}\n\n{ast.get_docstring(module)}\n\n```{{eval-rst}}\n{text}\n```")
    return template.replace(PLACE, "\n\n".join(parts))


def used_by(chapters: Iterable[Chapter]) -> dict[tuple[str, str], list[str]]:
    """Return links to the pages that import a name, by module and name."""
    users: dict[tuple[str, str], list[str]] = defaultdict(list)
    for page in (page for chapter in chapters for page in chapter.pages if page.run.source):
        words = re.sub(r"[<>`\\]", "", page.title)
        link = f":doc:`{words} </{page.docname}>`"
        for name in sorted(set().union(*map(_imported, _code(page.run.source)))):
            users[name].append(link)
    return users


def _code(notebook: dict | None) -> list[str]:
    return [source_of(cell) for cell in (notebook or {"cells": []})["cells"] if cell["cell_type"] == "code"]


def _imported(source: str) -> set[tuple[str, str]]:
    """Module and name of everything that a cell imports from the package; nothing where it is no Python."""
    homes = {"Run": "run", "Estimate": "stats"}  # what the package itself passes on
    try:
        nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    except SyntaxError:
        return set()
    said = [((node.module or "").split("."), alias.name) for node in nodes for alias in node.names]
    ours = [(module, name) for module, name in said if module[0] == "helpers"]
    return {(module[1] if module[1:] else homes.get(name, name), name) for module, name in ours}


def _entry(node: Named, users: list[str], kind: str = "function") -> str:
    """A function or a class with its public methods, in the words of Sphinx."""
    from sphinx.ext.napoleon import Config  # of the extra "book"
    from sphinx.ext.napoleon.docstring import GoogleDocstring

    said = re.sub(r"(?<!`)`([^`\n]+)`(?!`)", r"``\1``", ast.get_docstring(node) or "")
    settings: Any = Config(napoleon_use_rtype=False, napoleon_use_ivar=True)  # not the class that the hint names
    lines = GoogleDocstring(said, settings).lines()
    if users:
        lines += ["", f"Used by {', '.join(users)}."]
    if isinstance(node, ast.ClassDef):
        methods = [one for one in node.body if isinstance(one, ast.FunctionDef) and one.name[0] != "_"]
        lines += ["", *"\n\n".join(_entry(one, [], "method") for one in methods).splitlines()]
        head = f".. py:class:: {node.name}"
    else:
        result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        head = f".. py:{kind}:: {node.name}({ast.unparse(node.args)}){result}"
    return "\n".join([head, "", *(f"   {line}".rstrip() for line in lines)])
