"""Pages load what they show, MathJax where there is an equation, and are read at once.

An extension of Sphinx, named in `_config.yml`.
"""

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

CODE = re.compile(r'<div class="highlight"><pre>.*?</pre>', re.DOTALL)
# names, punctuation and blanks have the colour of the text around them: two thirds of the elements of a page
PLAIN = re.compile(r'<span class="(?:n|p|w)">([^<]*)</span>')


def _without_unused_math(app: "Sphinx", pagename: str, _template: str, context: dict[str, Any], _doctree: Any) -> None:
    """Take MathJax from a page without an equation; Sphinx puts it also on the pages above one that has an equation."""
    if not app.env.get_domain("math").data["has_equations"].get(pagename):
        scripts = context["script_files"]
        scripts[:] = [one for one in scripts if "mathjax" not in str(getattr(one, "filename", ""))]


def _with_plain_code(_app: "Sphinx", _name: str, _template: str, context: dict[str, Any], _doctree: Any) -> None:
    """Take the marks from what code shows in the colour of text."""
    if "body" in context:
        context["body"] = CODE.sub(lambda found: PLAIN.sub(r"\1", found[0]), context["body"])


def setup(app: "Sphinx") -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("html-page-context", _without_unused_math, priority=900)  # after Sphinx has put it there
    app.connect("html-page-context", _with_plain_code)
    # It numbers sections across parts, and none here has a number; it does not say whether pages can be read at once.
    app.extensions["sphinx_multitoc_numbering"].parallel_read_safe = True
    return {"parallel_read_safe": True, "parallel_write_safe": True}
