"""The glossary's terms: linked at their first use in a chapter. An extension of Sphinx, named in `_config.yml`."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.transforms import SphinxTransform

from helpers.engine.contents import read_terms

if TYPE_CHECKING:
    from sphinx.application import Sphinx

# words of everyday English, or with another sense (a standard deviation, a threshold of a detector): not linked unasked
PLAIN = {"control", "deviation", "evidence", "margin", "record", "status", "study", "threshold"}
ELSEWHERE = (nodes.literal, nodes.literal_block, nodes.reference, pending_xref, nodes.title, nodes.math, nodes.raw)


class LinkTerms(SphinxTransform):
    """Makes a link of the first use of every term in a chapter's text; titles, code and links stay as they are."""

    default_priority: ClassVar[int | None] = 800

    def apply(self, **kwargs: Any) -> None:
        """Change the page that is being read."""
        if not self.env.docname.startswith("notebooks/"):
            return
        source = (Path(self.app.srcdir) / "book" / "glossary.md").read_text(encoding="utf-8")
        terms = {term.lower(): term for term in read_terms(source) if term not in PLAIN}
        for said in list(self.document.findall(nodes.Text)):
            if terms and not _is_elsewhere(said):
                said.parent.replace(said, list(link_terms(said.astext(), terms)))


def _is_elsewhere(said: nodes.Text) -> bool:
    """Whether a text is no running text of a section: code, a title, a link, or what stands above the first section."""
    parent, sections = said.parent, 0
    while parent is not None:
        if isinstance(parent, ELSEWHERE) or "cell" in getattr(parent, "attributes", {}).get("classes", ()):
            return True
        sections += isinstance(parent, nodes.section)
        parent = parent.parent
    return sections < 2


def link_terms(said: str, terms: dict[str, str]) -> list[nodes.Node]:
    """Return a text in pieces, its first uses of terms as links.

    Args:
        said: the text.
        terms: by their lower case; what is linked is taken out.
    """
    pieces: list[nodes.Node] = []
    words = "|".join(map(re.escape, sorted(terms, key=len, reverse=True)))
    end = 0
    for found in re.finditer(rf"(?<![\w-])({words})s?(?![\w-])", said, re.IGNORECASE):
        if term := terms.pop(found[1].lower(), None):
            link = pending_xref(refdomain="std", reftype="term", reftarget=term, refexplicit=True, refwarn=True)
            link += nodes.inline(found[0], found[0], classes=["std", "std-term"])
            pieces += [nodes.Text(said[end : found.start()]), link]
            end = found.end()
    return [*pieces, nodes.Text(said[end:])]


def setup(app: "Sphinx") -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_transform(LinkTerms)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
