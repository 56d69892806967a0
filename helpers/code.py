"""The code of a notebook: what two runs must have in common before their numbers can be compared."""

import hashlib
import json
from pathlib import Path
from typing import Any

Notebook = dict[str, Any]


def source_of(cell: dict[str, Any]) -> str:
    """Return a cell's source as one string."""
    return "".join(cell["source"])


def code_of(notebook: Notebook) -> list[str]:
    """Return the sources of the code cells, without the cell that papermill injects."""
    cells = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    return [source_of(c) for c in cells if "injected-parameters" not in c["metadata"].get("tags", [])]


def code_hash(content: str | bytes) -> str:
    """Return the hash of the code cells of a notebook's file; prose and outputs do not count.

    Raises:
        ValueError: it is no notebook.
    """
    try:
        cells = code_of(json.loads(content))
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a notebook ({type(error).__name__})") from None
    return "sha256:" + hashlib.sha256(json.dumps(cells).encode()).hexdigest()[:16]


def code_hash_of(notebook: Path) -> str | None:
    """Return the hash of a notebook's code cells, or None where there is no such notebook."""
    try:
        return code_hash(notebook.read_bytes())
    except (OSError, ValueError):
        return None
