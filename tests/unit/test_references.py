"""Every work that the book cites can be found: by its DOI, its arXiv number, or where it has neither, its address."""

import re
from pathlib import Path

import pytest
from pybtex.database import parse_file

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted([*ROOT.glob("notebooks/*/references.bib"), *ROOT.glob("helpers/engine/templates/*/references.bib")])
WITHOUT = {  # a blog's article, and a paper of a conference that gives no DOI and that is not on arXiv
    "li2024stylecontrol": "https://lmsys.org/",
    "zhao2025sntune": "https://openreview.net/",
}
DOI = re.compile(r"10\.\d{4,9}/\S+")
ARXIV = re.compile(r"(?:arXiv:|https://arxiv\.org/abs/)(\d{2}(?:0[1-9]|1[0-2])\.\d{4,5})")


@pytest.mark.parametrize("path", [ROOT / "book" / "references.bib", *FILES], ids=lambda path: path.parent.name)
def test_every_entry_has_a_doi_or_an_arxiv_number(path):
    entries = parse_file(path).entries
    assert entries
    lost = []
    for key, entry in entries.items():
        fields = {name: entry.fields.get(name, "") for name in ("doi", "note", "journal", "url", "eprint")}
        found = DOI.fullmatch(fields["doi"]) or any(ARXIV.search(text) for text in fields.values())
        if not found and not (key in WITHOUT and fields["url"].startswith(WITHOUT[key])):
            lost.append(key)
    assert not lost, f"{path.parent.name}: no DOI and no arXiv number: {lost}"
