"""The whole book as one page, for paper: no name stands twice, and a link between pages leads to the place in it."""

from bs4 import BeautifulSoup

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
