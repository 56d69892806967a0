"""What a link shows before it is followed, kept in a script: a page from disk may not read another page."""

import json
from pathlib import Path

SCRIPT = "_static/previews-data.js"
SOURCES = {"book/glossary.html": "dl.glossary > dt[id]", "book/bibliography.html": "div.citation[id]"}


def write_previews(html: Path) -> None:
    """Collect the glossary's definitions and the bibliography's entries of a rendered book into its script.

    Args:
        html: folder of the book; `previews.js` shows what the script holds, as text.
    """
    from bs4 import BeautifulSoup  # of the extra "book"

    found = {}
    for page, selector in SOURCES.items():
        parsed = BeautifulSoup((html / page).read_text(encoding="utf-8"), "html.parser")
        for beside in parsed.select(".headerlink, .label"):
            beside.decompose()
        for target in parsed.select(selector):
            said = target.find_next_sibling("dd") if target.name == "dt" else target
            found[f"{page}#{target['id']}"] = " ".join(said.get_text().split()) if said else ""
    (html / SCRIPT).write_text(f"const PREVIEWS = {json.dumps(found, indent=0)};\n", encoding="utf-8")
