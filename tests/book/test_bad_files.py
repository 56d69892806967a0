"""One bad file never costs the book: its page is shown as failed or without the part, and the summary names it."""

import json

import pytest
from bs4 import BeautifulSoup


@pytest.fixture(scope="module")
def faults(bad_book):
    """What the build said is wrong, by the chapter that it names."""
    lines = [line.strip() for line in bad_book.done.stderr.splitlines()]
    assert all(sum(paper in line for paper in bad_book.papers) == 1 for line in lines), bad_book.done.stderr
    return {paper: [line for line in lines if paper in line] for paper in bad_book.papers}


@pytest.fixture
def page(bad_book):
    """A chapter's page, parsed."""
    html = bad_book.html / "notebooks"
    return lambda paper: BeautifulSoup((html / paper / f"{paper}.html").read_text(), "html.parser")


@pytest.fixture(scope="module")
def board(bad_book):
    """The scoreboard's rows by chapter."""
    board = BeautifulSoup((bad_book.html / "book" / "scoreboard.html").read_text(), "html.parser")
    rows = board.select("table.scoreboard tbody tr")
    return {row.a["href"].split("/")[2]: row.get_text(" ", strip=True) for row in rows}


def test_the_exit_code_says_that_something_is_wrong_and_nothing_else_is(bad_book, faults, board, page):
    assert bad_book.done.returncode == 1
    assert [paper for paper, lines in faults.items() if not lines] == ["good_coin", "hidden_files", "script_title"]
    assert all(len(lines) == 1 for paper, lines in faults.items() if lines and paper != "bad_bib"), faults
    assert list(board) == list(bad_book.papers)
    assert "! run failed" not in board["good_coin"] and page("good_coin").select_one(".chapter-card")


@pytest.mark.parametrize(("paper", "fault"), [("empty_record", ""), ("list_record", ""), ("stub_record", "paper: ")])
def test_a_record_that_is_none(faults, board, page, paper, fault):
    start = f"{paper}/{paper}: no record: {paper}.json: not a complete record: {fault}"
    assert faults[paper][0].startswith(start)
    assert "no record" in page(paper).select_one(".run-failed").text and not page(paper).select(".repro-figure")
    assert "! run failed: no record" in board[paper]


def test_a_committed_record_that_is_none(faults, board, page):
    assert faults["bad_results"][0].startswith("results/public/bad_results/bad_results.json: not a complete record")
    assert "! record unreadable" in board["bad_results"] and page("bad_results").select_one(".chapter-card")


@pytest.mark.parametrize(
    ("paper", "fault"),
    [("bad_claims", "claims.yaml: not valid YAML"), ("bad_expected", "expected.yaml: schema: Input should be 1")],
)
def test_rules_that_cannot_be_read(faults, board, page, paper, fault):
    assert faults[paper][0].startswith(f"{paper}/{fault}")
    assert "! run failed: refused" in board[paper]
    assert fault in page(paper).select_one(".run-failed").text and not page(paper).select(".repro-figure")


def test_hidden_files_are_no_pages(bad_book, page):
    assert page("hidden_files").select(".chapter-card")
    assert not [path for path in bad_book.html.rglob("*") if path.stem in ("._x", "y", "z", "._reading")]


def test_a_code_cell_in_first_place(faults, page):
    assert faults["code_first"] == ["code_first/code_first.ipynb: the first cell is not the title, so it was put first"]
    article = page("code_first").article
    assert article.h1.text.startswith("Coins") and article.select_one(".chapter-card")
    assert article.select("h1 ~ .cell, .cell") and "assert p > 0.5" in article.select_one(".cell").text


def test_a_line_of_200_000_characters(faults, page, bad_book):
    assert faults["long_line"] == ["long_line/long_line.ipynb: 1 over-long output(s) cut"]
    said = page("long_line").select(".cell_output")[-1].text
    assert 10_000 < len(said) < 11_000 and "[... 190,000 more characters; the executed notebook" in said
    button = page("long_line").find("a", string="Download executed notebook")
    whole = bad_book.html / "notebooks" / "long_line" / button["href"]
    assert "x" * 20_000 in json.loads(whole.read_text())["cells"][-1]["outputs"][0]["text"]


def test_a_bibliography_that_is_broken_or_missing(faults, page):
    assert faults["bad_bib"][0].startswith("bad_bib/references.bib: ")
    assert any("lost_bad_bib" in line and "WARNING" in line for line in faults["bad_bib"][1:])
    assert "lost_no_bib" in faults["no_bib"][0] and faults["no_bib"][0].startswith(
        "notebooks/no_bib/no_bib.ipynb, cell"
    )
    assert all(page(paper).select_one(".chapter-card") for paper in ("bad_bib", "no_bib"))


def test_a_script_in_a_title_or_a_claim_is_text_everywhere(faults, bad_book, page):
    assert faults["script_title"] == []
    for path in bad_book.html.rglob("*.html"):
        parsed = BeautifulSoup(path.read_text(), "html.parser")
        assert not [s for s in parsed.find_all("script") if s.text.strip() == "alert(1)"], path
        assert not parsed.select("[onerror]"), path
    for name in ("book/index.html", "book/scoreboard.html", "notebooks/script_title/script_title.html"):
        text = BeautifulSoup((bad_book.html / name).read_text(), "html.parser").text
        assert text.count("<script>alert(1)</script>") >= 2, name  # in the side bar and on the page
    card = page("script_title").select_one(".chapter-card")
    assert "<img src=x onerror=alert(1)> </div>{{ text }} ✓ reproduced" in card.text
    board = BeautifulSoup((bad_book.html / "book" / "scoreboard.html").read_text(), "html.parser")
    claims = board.select_one("#score-script-title").find_next("table", class_="claims")
    assert claims.text.count("</div>{{ text }}") == 4  # statement, the paper's value, source, and a reason


def test_a_source_that_is_not_json(faults, board, page):
    assert faults["not_json"] == ["not_json/not_json: unreadable: not_json.ipynb: not JSON"]
    assert "not_json.ipynb: not JSON" in page("not_json").select_one(".run-failed").text
    assert "! run failed: unreadable" in board["not_json"]
