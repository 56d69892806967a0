"""What the book changes in how a notebook looks: code beside the method is folded, figures get their captions."""

import ast
import base64
import hashlib
import io
import re
from collections.abc import Iterator, Set
from html import unescape
from pathlib import Path

from PIL import Image

from helpers.code import Notebook, source_of
from helpers.html import text

FIGURE = re.compile(
    r'(<figure class="repro-figure" id="figure-([^"]+)">)(.*?)(<a class="figure-data".*?</a>)?</figure>', re.DOTALL
)
EMBEDDED = re.compile(r'src="data:image/(png|webp);base64,([^"]+)"')
ALT = re.compile(r'alt="([^"]*)"')
# sections whose code is not the method
BESIDE = {"The data", "The experiment", "Claims", "What would make it fail", "Run card"}
FILES = {"write_text", "write_bytes", "savez", "savez_compressed", "save_file", "rmtree"}
WIDE = 800  # pixels of an image, five inches: on a phone its words would be too small to read
LONGEST_CAPTION = 200  # characters; after a name in small letters a list of numbers may follow
DEFINITION = ast.FunctionDef | ast.ClassDef
NOTES = {"metric", "claim", "figure"}  # methods of a run that note a number; what was computed stands above them


def with_folded_code(notebook: Notebook, known: Set[str] = frozenset()) -> Notebook:
    """Return the notebook with the tag `hide-input` on code beside the method, such as imports and stored files.

    What is folded and shows nothing goes into the fold that follows it, so that a reader meets one and not ten.

    Args:
        notebook: executed or not; it is not changed.
        known: `definitions` of the chapter's main page; they are folded where they are repeated.
    """
    cells, section = [], ""
    for cell in notebook["cells"]:
        source = source_of(cell)
        if cell["cell_type"] == "markdown":
            section = ([section, *re.findall(r"(?m)^## +(.*?)[ \t]*$", source)])[-1]
        elif cell["cell_type"] == "code" and (section in BESIDE or is_apparatus(source) or _repeats(source, known)):
            cell = _folded(cell)
        if cells and _is_folded(cell) and _is_folded(cells[-1]) and not cells[-1].get("outputs"):
            cell = cell | {"source": f"{source_of(cells.pop())}\n\n\n{source_of(cell)}"}
        cells.append(cell)
    return notebook | {"cells": cells}


def _is_folded(cell: dict) -> bool:
    return cell["cell_type"] == "code" and not {"hide-input", "hide-cell"}.isdisjoint(cell["metadata"].get("tags", []))


def _folded(cell: dict) -> dict:
    tags = cell["metadata"].get("tags", [])
    if any(tag.startswith(("hide-", "remove-", "parameters", "injected-")) for tag in tags):
        return cell
    return cell | {"metadata": cell["metadata"] | {"tags": [*tags, "hide-input"]}}


def definitions(notebook: Notebook) -> set[str]:
    """Return the functions and classes of a notebook, each as its syntax tree says it."""
    code = [source_of(cell) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return {ast.dump(one) for source in code for one in _statements(source) if isinstance(one, DEFINITION)}


def _repeats(source: str, known: Set[str]) -> bool:
    statements = _statements(source)
    return bool(statements) and all(ast.dump(one) in known for one in statements)


def _statements(source: str) -> list[ast.stmt]:
    """The statements of a cell; none where a line is for IPython."""
    try:
        return ast.parse(source).body
    except SyntaxError:
        return []


def is_apparatus(source: str) -> bool:
    """Return whether code imports, keeps files or notes numbers, and does nothing else that a reader looks for."""
    statements = _statements(source)
    nodes = [node for one in statements for node in ast.walk(one)]
    if any(isinstance(node, ast.Assert) for node in nodes):
        return False  # a check belongs to the method
    imports = [one for one in statements if isinstance(one, ast.Import | ast.ImportFrom)]
    files = any(isinstance(node, ast.Attribute) and node.attr in FILES for node in nodes)
    return files or 2 * len(imports) > len(statements) or (bool(statements) and all(map(_notes, statements)))


def _notes(statement: ast.stmt) -> bool:
    """Whether a statement notes numbers and does nothing else; a loop does when all of its statements do."""
    if isinstance(statement, ast.For):
        return all(map(_notes, statement.body))
    call = getattr(statement, "value", None)
    return isinstance(statement, ast.Expr) and getattr(getattr(call, "func", None), "attr", "") in NOTES


def with_captions(notebook: Notebook, folder: Path, address: str) -> tuple[Notebook, dict[str, str]]:
    """Give every figure a number and a caption, and its images files of their own, which pages can share.

    Args:
        notebook: an executed notebook; it is not changed.
        folder: where the images are put.
        address: of that folder, from the page.

    Returns:
        The notebook, and the HTML of every figure's images by the figure's name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    images: dict[str, str] = {}

    def stored(found: re.Match[str]) -> str:
        content = base64.b64decode(found[2])
        name = f"{hashlib.sha256(content).hexdigest()[:16]}.{found[1]}"
        (folder / name).write_bytes(content)
        width, height = Image.open(io.BytesIO(content)).size
        wide = " data-wide" if width > WIDE else ""
        return f'src="{address}/{name}" width="{width}" height="{height}" loading="lazy"{wide}'

    def captioned(found: re.Match[str]) -> str:
        start, name, body, link = found.groups("")
        images[name] = EMBEDDED.sub(stored, body)
        alt = ALT.search(body)
        said = first_sentence(unescape(alt[1])) if alt else ""
        caption = f"<figcaption><b>Figure {len(images)}.</b> {text(said)} {link}</figcaption>"
        return f"{start}<div>{images[name]}</div>{caption}</figure>"  # the theme hides a caption beside an unseen image

    cells = list(notebook["cells"])
    for index, output, html in _html_outputs(notebook):
        changed = output | {"data": output["data"] | {"text/html": FIGURE.sub(captioned, html)}}
        outputs = [changed if one is output else one for one in cells[index]["outputs"]]
        cells[index] = cells[index] | {"outputs": outputs}
    return notebook | {"cells": cells}, images


def first_sentence(said: str) -> str:
    """Return a text up to the end of its first sentence, with a full stop; a long one ends at the first full stop."""
    first = re.split(r"(?<=[a-z)%])\. (?=[A-Z0-9])", said, maxsplit=1)[0]
    return (first if len(first) <= LONGEST_CAPTION else first.split(". ")[0]).rstrip(".") + "."


def _html_outputs(notebook: Notebook) -> Iterator[tuple[int, dict, str]]:
    for index, cell in enumerate(notebook["cells"]):
        for output in cell.get("outputs", []):
            if "repro-figure" in (html := "".join(output.get("data", {}).get("text/html", ""))):
                yield index, output, html
