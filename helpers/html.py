"""Tables as HTML in which every text is escaped, unless it says that it is HTML already."""

import re
from collections.abc import Iterable
from html import escape


class Raw(str):
    """HTML that is finished; `table` puts it in as it is. Whoever makes one has escaped what is foreign in it."""

    __slots__ = ()


def text(content: object) -> Raw:
    """Escape a text and put it on one line: a blank line inside would end the HTML block in Markdown.

    Args:
        content: anything with a `str`; `Raw` comes back unchanged.
    """
    if isinstance(content, Raw):
        return content
    return Raw(escape(re.sub(r"\s+", " ", str(content)).strip()))


def table(head: Iterable[object], rows: Iterable[Iterable[object]], css_class: str, scroll: bool = True) -> Raw:
    """Return a table; the first cell of a row is the row's header.

    Args:
        head: titles of the columns; none of them: a table without a head, such as the run card.
        rows: for every row its cells. A cell is text, which is escaped, or `Raw`.
        css_class: class of the table.
        scroll: put it into a box that scrolls sideways, also by keyboard, so that a narrow page keeps its width.
    """
    titles = "".join(f'<th scope="col">{text(title)}</th>' for title in head)
    body = "".join(f"<tr>{''.join(map(_cell, range(len(cells)), cells))}</tr>" for cells in map(list, rows))
    top = f"<thead><tr>{titles}</tr></thead>" if titles else ""
    whole = f'<table class="{escape(css_class)}">{top}<tbody>{body}</tbody></table>'
    return Raw(f'<div class="table-scroll" tabindex="0">{whole}</div>' if scroll else whole)


def _cell(column: int, content: object) -> str:
    return f"<td>{text(content)}</td>" if column else f'<th scope="row">{text(content)}</th>'
