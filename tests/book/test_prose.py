"""The prose pages: sentences that can be read in one breath, and words that lead to the glossary."""

import re

import pytest

PAGES = ("index", "reading", "running", "scoreboard", "glossary")
LONGEST = 40  # words of a sentence


@pytest.fixture(scope="module")
def prose(repository):
    """The text of every prose page, without code."""
    fence = r"(?ms)^(```(?:bash|python)|~~~).*?^(```|~~~)"
    return {page: re.sub(fence, "", (repository / "book" / f"{page}.md").read_text()) for page in PAGES}


@pytest.mark.parametrize("page", PAGES)
def test_no_sentence_is_too_long(prose, page):
    text = re.sub(r"(?m)^(#.*|\|.*|\(.*\)=|```.*)$", "", prose[page])
    paragraphs = re.split(r"\n\s*\n|\n(?=[-*] |\d\. )", text)
    sentences = [one for said in paragraphs for one in re.split(r"(?<=[.!?:;])\s+", said.strip())]
    assert not [one for one in sentences if len(one.split()) > LONGEST]


@pytest.mark.parametrize("page", [page for page in PAGES if page != "glossary"])
def test_a_word_of_the_glossary_is_linked_where_a_page_uses_it(prose, page):
    terms = re.findall(r"(?m)^(\S.*)\n  \S", prose["glossary"].split("{glossary}")[1])
    assert "verdict" in terms and "KL divergence" in terms
    linked = set(re.findall(r"\{term\}`(?:[^`<]*<)?([^`>]+)>?`", prose[page]))
    no_prose = r"`[^`]*`|\[[^\]]*\]\([^)]*\)|<[^>]*>|^#.*$|^\(.*\)=$"
    plain = re.sub(no_prose, "", re.sub(r"\{term\}`[^`]*`", "", prose[page]), flags=re.MULTILINE)
    used = {term for term in terms if re.search(rf"(?i)\b{re.escape(term)}s?\b", plain)}
    assert used - linked - COMMON == set()


# Here these are words of everyday English: "the evidence for an error", "a study of notebooks".
COMMON = {"evidence", "study"}
