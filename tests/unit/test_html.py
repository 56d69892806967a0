"""Tables: foreign text cannot become HTML, made HTML stays, and the structure is one that a screen reader can read."""

from html.parser import HTMLParser

from helpers.html import Raw, table, text


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen, self.words = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


FOREIGN = "<script>alert(\"1\")</script> & 'x'"


def test_every_text_is_escaped_and_comes_back_as_it_was():
    page = Tags(table([FOREIGN, "b"], [[FOREIGN, FOREIGN]], '"><b'))
    assert {tag for tag, _ in page.seen} == {"div", "table", "thead", "tbody", "tr", "th", "td"}
    assert page.words == [FOREIGN, "b", FOREIGN, FOREIGN]
    assert page.seen[1] == ("table", {"class": '"><b'})


def test_made_html_and_finished_tables_are_put_in_unchanged():
    inner = table([], [["a", 1]], "inner", scroll=False)
    assert f"<td>{inner}</td>" in table(["", "x"], [["row", inner]], "outer")
    assert text(text("a & b")) == "a &amp; b"
    assert not isinstance(Raw("<b>") + "<i>", Raw)  # what is joined must be marked again


def test_a_blank_line_does_not_end_the_block():
    assert "\n" not in table(["a\n\nb"], [["c\r\n\n d", "e\u2028f"]], "x")
    assert text("c\r\n\n d") == "c d"


def test_headers_of_columns_and_rows_are_marked_and_a_head_is_optional():
    page = Tags(table(["claim", "value"], [["C1", 2.5], ["C2", None]], "claims"))
    headers = [attrs["scope"] for tag, attrs in page.seen if tag == "th"]
    assert headers == ["col", "col", "row", "row"] and page.words == ["claim", "value", "C1", "2.5", "C2", "None"]
    assert "thead" not in table([], [["a", "b"]], "run-card")


def test_the_box_that_scrolls_can_be_reached_by_keyboard():
    assert table(["a"], [], "x").startswith('<div class="table-scroll" tabindex="0"><table class="x">')
    assert table(["a"], [], "x", scroll=False).startswith('<table class="x">')
