"""What the book is made of beside its pages: the table of contents, the glossary's terms and the list of references."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from helpers.engine.pages import Chapter
from helpers.parameters import BadRequestError

Entry = dict[str, Any]


def table_of_contents(contents: Entry, chapters: list[Chapter], prose: Path) -> Entry:
    """Return the table of contents without the chapters that do not exist yet, studies below their chapter.

    Raises:
        BadRequestError: a chapter or a prose page is not listed, or a listed prose page does not exist.
    """
    there = {page.docname for chapter in chapters for page in chapter.pages}
    there |= {f"book/{path.stem}" for path in prose.glob("*.md") if path.name[0] != "."}
    studies = {c.main.docname: [page.docname for page in c.pages[1:]] for c in chapters}
    try:
        listed = documents(contents)
        if unlisted := sorted(there.difference(listed, *studies.values())):
            raise BadRequestError(f"_toc.yml does not list {', '.join(unlisted)}")
        if missing := sorted(name for name in {*listed} - there if not name.startswith("notebooks/")):
            raise BadRequestError(f"_toc.yml lists {', '.join(missing)}, which does not exist")

        def keep(entries: list[Entry]) -> list[Entry]:
            kept = [entry for entry in entries if entry["file"] in there]
            for entry in kept:
                below = [{"file": name} for name in studies.get(entry["file"], []) if name not in listed]
                entry["sections"] = keep(entry.get("sections", [])) + below
            return [entry if entry["sections"] else {"file": entry["file"]} for entry in kept]

        parts = [part | {"chapters": keep(part["chapters"])} for part in contents["parts"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise BadRequestError(f"_toc.yml: a part, chapter or section is incomplete ({error})") from None
    return contents | {"parts": [part for part in parts if part["chapters"]]}


def documents(contents: Entry) -> list[str]:
    """Return all documents that a table of contents names, in order."""
    names = [contents[key] for key in ("root", "file") if key in contents]
    for key in ("parts", "chapters", "sections"):
        names += [name for entry in contents.get(key, []) for name in documents(entry)]
    return names


def read_terms(glossary: str) -> list[str]:
    """Return the terms of a glossary's source text."""
    return re.findall(r"(?m)^(\S.*)(?=\n(?:\S.*\n)*  \S)", glossary.partition("{glossary}\n")[2])


def anchor(term: str) -> str:
    """Return the anchor of a term on the glossary's page, as Sphinx makes it."""
    return "term-" + re.sub(r"[^A-Za-z0-9]+", "-", term).strip("-")


def join_bibliographies(paths: Iterable[Path]) -> tuple[str, list[str]]:
    """Return the entries of all files, each work once, and one line for every file or entry that cannot be used."""
    from pybtex.database import parse_string
    from pybtex.exceptions import PybtexError

    entries: dict[str, tuple[str, str, str]] = {}
    faults = []
    for path in paths:
        name = f"{path.parent.name}/{path.name}"
        try:
            texts = re.split(r"(?m)^(?=@)", path.read_text(encoding="utf-8"))[1:]
        except (OSError, UnicodeDecodeError) as error:
            faults.append(f"{name}: cannot be read ({error})")
            continue
        for text in texts:
            try:
                [(key, entry)] = parse_string(text, "bibtex").entries.items()
            except (PybtexError, ValueError) as error:
                faults.append(f"{name}: {' '.join(str(error).split())} in {text.splitlines()[0]!r}")
                continue
            title = re.sub(r"[^a-z0-9]", "", entry.fields.get("title", "").lower())
            _, known, where = entries.setdefault(key, (text, title, name))
            if known != title:
                faults.append(f"{name}: the key '{key}' has another title in {where}")
    return "\n".join(text.strip() + "\n" for text, _, _ in entries.values()), faults
