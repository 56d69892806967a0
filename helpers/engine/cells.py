"""What the build changes in a notebook: the title in first place, the card, and outputs of a bearable length."""

import re
from typing import Any

from helpers.code import Notebook, source_of

CARD = "<!-- card -->"
CLAIMS = r"^## Claims[ \t]*$"
LONGEST_LINE = 10_000  # characters of printed text; myst-nb needs 20 s for a line of 200,000, and nobody reads it
LONGEST_OUTPUT = 500_000
CUT = " [... {:,} more characters; the executed notebook, see the card, has them]"
WORDS_PER_MINUTE = 220
CODE_OR_MATH = r"(`[^`]*`|\$[^$]*\$)"


def find_title(notebook: Notebook) -> tuple[int, str] | None:
    """Return position and title of the first Markdown cell with a first-level heading."""
    for index, cell in enumerate(notebook["cells"]):
        text = re.sub(r"(?ms)^(```|~~~).*?^\1", "", source_of(cell))
        if cell["cell_type"] == "markdown" and (match := re.search(r"^# +(\S.*?) *$", text, re.MULTILINE)):
            return index, match[1]
    return None


def with_title(notebook: Notebook, name: str) -> Notebook:
    """Return the notebook with its title cell in first place; one is made of `name` when there is none.

    A page needs a title at its start. HTML in it is shown as text, because every page repeats it in its side bar.
    """
    cells = list(notebook["cells"])
    found = find_title(notebook)
    if found is None:
        return notebook | {"cells": [markdown_cell("title", f"# {as_markdown(name)}"), *cells]}
    first = cells.pop(found[0])
    parts = re.split(CODE_OR_MATH, found[1])
    parts[::2] = [re.sub(r"<(?=[A-Za-z/!?])", r"\<", part) for part in parts[::2]]
    return notebook | {"cells": [first | {"source": source_of(first).replace(found[1], "".join(parts), 1)}, *cells]}


def with_html(notebook: Notebook, place: str, html: str) -> Notebook:
    """Return a notebook with HTML after the first match of a pattern in its text, else at the end of the first cell."""
    cells, found = list(notebook["cells"]), re.compile(place, re.MULTILINE)
    texts = [source_of(cell) if cell["cell_type"] == "markdown" else "" for cell in cells]
    index = next((index for index, said in enumerate(texts) if found.search(said)), 0)
    end = match.end() if (match := found.search(texts[index])) else len(texts[index])
    cells[index] = cells[index] | {"source": f"{texts[index][:end]}\n\n{html}\n\n{texts[index][end:]}"}
    return notebook | {"cells": cells}


def reading_minutes(notebook: Notebook) -> int:
    """Return how many minutes the text of a notebook takes to read, without its code."""
    words = sum(len(source_of(cell).split()) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    return max(1, round(words / WORDS_PER_MINUTE))


def without_results(notebook: Notebook, stopped: str | None) -> Notebook:
    """Return text and code of a failed run without outputs, with a mark above the cell in which it stopped."""
    cells = []
    for cell in notebook["cells"]:
        if stopped is not None and cell.get("id") == stopped:
            cells.append(markdown_cell("run-stopped", '<p class="run-stopped">The run stopped in this cell:</p>'))
        cells.append(cell | {"outputs": [], "execution_count": None} if cell["cell_type"] == "code" else cell)
    return notebook | {"cells": cells}


def with_short_outputs(notebook: Notebook) -> tuple[Notebook, int]:
    """Return the notebook with long printed lines and very long outputs cut, and how many were."""
    cells, total = [], 0
    for cell in notebook["cells"]:
        outputs = _joined(cell.get("outputs", []))
        for output in outputs:
            printed = output["output_type"] == "stream"
            place, key = (output, "text") if printed else (output.get("data", {}), "text/plain")
            if key in place:
                place[key], count = _shortened("".join(place[key]))
                total += count
        cells.append(cell | {"outputs": outputs} if outputs else cell)
    return notebook | {"cells": cells}, total


def as_markdown(text: str) -> str:
    """Escape a text so that Markdown shows it as it is."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", text)


def markdown_cell(cell_id: str, text: str) -> dict[str, Any]:
    """Return a notebook cell with Markdown."""
    return {"cell_type": "markdown", "id": cell_id, "metadata": {}, "source": text}


def _joined(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Copies of a cell's outputs, what it printed in one piece: a long line comes from the kernel in many."""
    joined: list[dict[str, Any]] = []
    streams: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for output in outputs:
        printed = output["output_type"] == "stream"
        if not printed or output["name"] not in streams:
            joined.append(output | ({"data": dict(output["data"])} if "data" in output else {}))
        if printed:
            streams.setdefault(output["name"], (joined[-1], []))[1].append("".join(output["text"]))
    for output, parts in streams.values():
        output["text"] = "".join(parts)
    return joined


def _shortened(said: str) -> tuple[str, int]:
    lines = [line.rstrip("\r").rsplit("\r", 1)[-1] for line in said.split("\n")]  # what a terminal would show
    kept = [_cut(line, LONGEST_LINE) for line in lines]
    whole = "\n".join(kept)
    return _cut(whole, LONGEST_OUTPUT), sum(map(str.__ne__, lines, kept)) + (len(whole) > LONGEST_OUTPUT)


def _cut(said: str, limit: int) -> str:
    return said if len(said) <= limit else said[:limit] + CUT.format(len(said) - limit)
