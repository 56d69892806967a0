"""A finished book as EPUB: `python -m tests.ebook BOOK FILE`; needs the extra "epub", which brings pandoc.

Sphinx's own builder leaves equations as TeX, because a reader of EPUB runs no scripts. So the pages are put together as
for paper, and pandoc makes chapters of them, with equations as MathML. What only scripts show is left out.
"""

import re
import sys
from pathlib import Path

from bs4 import BeautifulSoup

from tests.press import as_one_page, pages_in_order

# the small pictures of intervals stand alone in an EPUB, without the book's style
DRAWN = {
    ".goal": "fill:#dcf3e9",
    ".threshold": "stroke:#57606a;stroke-dasharray:3 2",
    ".bar": "stroke:#1f2328;stroke-width:2",
    ".dot": "fill:#1f2328",
}
STYLE = """table { border-collapse: collapse }
td, th { padding: .2em .5em; text-align: left; vertical-align: top }
pre { white-space: pre-wrap }
"""
# pandoc reads HTML with TeX between \( and \), and cuts it at titles
READS, CUTS = "html+tex_math_single_backslash", ["--mathml", "--split-level=1", "--toc", "--toc-depth=1"]


def for_pandoc(book: Path) -> str:
    """One HTML page of the whole book that needs neither its style nor its scripts."""
    whole = BeautifulSoup(as_one_page(book, pages_in_order(book)), "html.parser")
    for unseen in whole.select("head > *, body style, .only-dark, button, colgroup"):
        unseen.decompose()
    for entry in whole.select("[role=doc-biblioentry]"):
        del entry["role"]  # out of use
    for section in whole.select("section"):  # a chapter begins where a title stands below nothing else
        if "id" in section.attrs and (title := section.find(re.compile(r"^h\d$"))):
            title["id"] = section["id"]
        section.unwrap()
    articles = whole.find_all("article")
    first = {f"#{article['id']}": f"#{article.find('h1')['id']}" for article in articles}
    for link in whole.find_all("a", href=first.keys().__contains__):
        link["href"] = first[link["href"]]
    for article in articles:
        article.unwrap()
    for svg in whole.select("svg.interval"):
        for name, style in DRAWN.items():
            for part in svg.select(name):
                part["style"] = style
        svg["xmlns"], svg["viewBox"] = "http://www.w3.org/2000/svg", svg.attrs.pop("viewbox", None) or svg["viewBox"]
    return str(whole)


def write_epub(book: Path, out: Path) -> None:
    """Write the book that lies in a folder of pages to one EPUB.

    Raises:
        RuntimeError: pandoc could not read a part, such as an equation.
    """
    import pypandoc

    book, style = book.resolve(), out.with_suffix(".css")
    title = BeautifulSoup((book / "book" / "index.html").read_text(encoding="utf-8"), "html.parser").h1
    named = re.sub(r"\W*$", "", title.get_text()) if title else book.name
    style.write_text(STYLE, encoding="utf-8")
    words = [*CUTS, f"--metadata=title:{named}", "--metadata=lang:en", f"--css={style}", f"--resource-path={book}"]
    try:
        pypandoc.convert_text(
            for_pandoc(book), "epub3", format=READS, outputfile=str(out), extra_args=[*words, "--fail-if-warnings"]
        )
    finally:
        style.unlink()


if __name__ == "__main__":
    write_epub(Path(sys.argv[1]), Path(sys.argv[2]))
    print(f"{sys.argv[2]}: {Path(sys.argv[2]).stat().st_size / 1e6:.1f} MB")
