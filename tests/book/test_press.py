"""The whole book as one page, for paper: no name stands twice, and a link between pages leads to the place in it."""

import zipfile

import pytest
from bs4 import BeautifulSoup

from tests.ebook import for_pandoc, write_epub
from tests.press import as_one_page, pages_in_order


def test_the_one_page_has_unique_names_and_whole_links(fixture_book):
    pages = pages_in_order(fixture_book)
    assert [page.stem for page in pages][:5] == ["index", "reading", "running", "scoreboard", "good_coin"]
    assert {page.name for page in fixture_book.glob("notebooks/*/*.html")} <= {page.name for page in pages}
    whole = BeautifulSoup(as_one_page(fixture_book, pages), "html.parser")
    names = [one["id"] for one in whole.find_all(id=True)]
    assert len(names) == len(set(names)) > 100
    inside = [link["href"][1:] for link in whole.select("body a[href^='#']")]
    assert inside and not set(inside) - set(names)
    assert any(link.endswith("term-verdict") for link in inside)  # of a chapter, to the glossary
    assert not whole.select("body script, .explore, .card-buttons")
    lost = [one["src"] for one in whole.select("img[src]") if not (fixture_book / one["src"]).is_file()]
    styles = [one["href"] for one in whole.select("link[rel=stylesheet]")]
    lost += [one for one in styles if not (fixture_book / one).is_file()]
    assert not lost and styles


def test_the_page_for_an_epub_is_flat_and_needs_no_style_of_the_book(fixture_book):
    whole = BeautifulSoup(for_pandoc(fixture_book), "html.parser")
    titles = whole.select("body > h1[id], body > span + h1[id]")
    assert len(titles) == len(whole.select("h1")) == len(pages_in_order(fixture_book))
    names = [one["id"] for one in whole.find_all(id=True)]
    assert len(names) == len(set(names))
    assert not {link["href"][1:] for link in whole.select("a[href^='#']")} - set(names)
    assert not whole.select("style, script, .only-dark") and whole.select("img.only-light")
    assert {part["style"] for part in whole.select("svg .dot")} == {"fill:#1f2328"}


def test_an_epub_has_a_chapter_for_every_page_and_equations_as_mathml(fixture_book, tmp_path):
    pytest.importorskip("pypandoc", reason="the extra 'epub' is not installed")
    write_epub(fixture_book, tmp_path / "book.epub")
    with zipfile.ZipFile(tmp_path / "book.epub") as book:
        parts = [name for name in book.namelist() if "/ch" in name]
        text = b"".join(map(book.read, parts)).decode()
    assert len(parts) == len(pages_in_order(fixture_book)) and list(tmp_path.iterdir()) == [tmp_path / "book.epub"]
    equations = len(BeautifulSoup(for_pandoc(fixture_book), "html.parser").select(".math"))
    assert text.count("<math") == equations > 10 and "zymurgical" in text
