"""A finished book on paper, as pictures and in numbers: `python -m tests.press pdf BOOK FILE`, `... shots BOOK FOLDER`,
`... measure BOOK`.

All need headless Chromium and nothing else; the pages are read from disk. The PDF is one document with an outline and
page numbers. A picture is made of every page in light and dark on a desktop, and of every page on a phone. Measured are
the time until a page has loaded and its height, on a desktop; measure on a quiet machine.
"""

import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

from bs4 import BeautifulSoup
from playwright.sync_api import Page, sync_playwright

SANDBOX = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
LOOKS = {"light": ("light", 1280), "dark": ("dark", 1280), "phone": ("light", 390)}
TALLEST = 16_000  # pixels: Chromium cannot make a picture that is higher
FOOTER = (
    '<div style="font-size:8px;width:100%;text-align:center">'
    '<span class="pageNumber"></span> / <span class="totalPages"></span></div>'
)
# Equations are set when they come near; here all of them are.
TYPESET = "window.MathJax?.startup?.promise.then(() => MathJax.startup.document.lazyTypesetAll())"

# Images and charts come when they come near.
EVERY_PICTURE = """async () => {
  for (const chart of document.querySelectorAll(".explore")) {
    chart.scrollIntoView();
    const drawn = () => chart.querySelector("[data-at]");
    for (let tries = 0; tries < 50 && !drawn(); tries++) await new Promise(requestAnimationFrame);
  }
  scrollTo(0, 0);
  await Promise.all([...document.querySelectorAll("img[loading]")].map((image) => {
    image.loading = "eager";
    return image.checkVisibility() && image.decode();
  }));
}"""


@contextmanager
def tab(**look) -> Iterator[Page]:
    """A tab of headless Chromium that reaches no network."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, "Chromium must be on PATH"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=SANDBOX)
        page = browser.new_context(offline=True, **look).new_page()
        page.set_default_timeout(600_000)
        yield page
        browser.close()


def pages_in_order(book: Path) -> list[Path]:
    """The book's pages as its side bar lists them, the preface first."""
    home = book / "book" / "index.html"
    bar = BeautifulSoup(home.read_text(encoding="utf-8"), "html.parser").select(".bd-sidebar-primary nav.bd-links a")
    hrefs = [unquote(link["href"]).split("#")[0] for link in bar if not re.match(r"\w+:", link["href"])]
    found = [home, *((home.parent / href).resolve() for href in hrefs if href)]
    return list(dict.fromkeys(path for path in found if path.suffix == ".html"))


def as_one_page(book: Path, pages: list[Path]) -> str:
    """One HTML page with the articles of all pages; every id is unique, and a link between pages stays a link.

    Args:
        book: folder of the book; addresses in the page count from there.
        pages: in order; the head of the first is kept.
    """
    names = {path: f"p{number}-" for number, path in enumerate(pages)}
    whole = BeautifulSoup(pages[0].read_text(encoding="utf-8"), "html.parser")
    for one in whole.head.select("[href], [src]"):
        for attribute in ("href", "src"):
            if attribute in one.attrs:
                one[attribute] = _from_root(one[attribute], pages[0], book)
    whole.html["data-content_root"] = "./"
    whole.body.clear()
    for path in pages:
        article = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser").select_one("article.bd-article")
        for image in article.select("img[loading]"):
            del image["loading"]
        for unseen in article.select("script, .explore, .headerlink, .card-buttons, a.figure-data, details.hide"):
            unseen.decompose()
        known: set[str] = set()
        for one in article.find_all(id=True):
            name = one.attrs.pop("id")
            if name not in known:  # a figure that a page shows twice has its name at the first place alone
                one["id"] = names[path] + name
            known.add(name)
        for one in article.select("[href], [src]"):
            attribute = "href" if "href" in one.attrs else "src"
            one[attribute] = _in_one(one[attribute], path, names, book)
        for one in article.select("[aria-labelledby], [aria-describedby], [for]"):
            for attribute in ("aria-labelledby", "aria-describedby", "for"):
                if attribute in one.attrs:
                    one[attribute] = names[path] + one[attribute]
        article["id"] = names[path] + "top"
        article["style"] = "break-before: page"
        whole.body.append(article)
    return str(whole)


def _from_root(address: str, page: Path, book: Path) -> str:
    if re.match(r"\w+:|//", address):
        return address
    path, _, fragment = address.partition("#")
    target = (page.parent / unquote(path.partition("?")[0])).resolve()
    return target.relative_to(book.resolve()).as_posix() + (f"#{fragment}" if fragment else "")


def _in_one(address: str, page: Path, names: dict[Path, str], book: Path) -> str:
    """An address of a page as it must be in the one page."""
    if re.match(r"\w+:|//", address):
        return address
    path, _, fragment = address.partition("#")
    target = (page.parent / unquote(path)).resolve() if path else page
    if target in names:
        return f"#{names[target]}{fragment or 'top'}"
    return _from_root(address, page, book)


def pdf(book: Path, out: Path) -> None:
    """Print the whole book to one PDF."""
    book = book.resolve()
    with tempfile.NamedTemporaryFile("w", suffix=".html", dir=book, encoding="utf-8") as whole:
        whole.write(as_one_page(book, pages_in_order(book)))
        whole.flush()
        with tab() as page:
            page.goto(Path(whole.name).as_uri())
            page.evaluate("document.documentElement.dataset.theme = 'light'")
            page.evaluate(TYPESET)
            page.pdf(
                path=out,
                format="A4",
                outline=True,
                tagged=True,
                display_header_footer=True,
                header_template="<span></span>",
                footer_template=FOOTER,
                margin={"top": "15mm", "bottom": "18mm", "left": "15mm", "right": "15mm"},
            )


def shots(book: Path, folder: Path) -> list[Path]:
    """Make a picture of every page in every look; a page that is too tall gives several, from top to bottom."""
    made = []
    for look, (mode, width) in LOOKS.items():
        (folder / look).mkdir(parents=True, exist_ok=True)
        with tab(viewport={"width": width, "height": 900}) as page:
            for path in pages_in_order(book.resolve()):
                page.goto(path.as_uri())
                page.evaluate(f"document.documentElement.dataset.theme = '{mode}'")
                page.evaluate(TYPESET)
                page.evaluate(EVERY_PICTURE)
                height = page.evaluate("document.documentElement.scrollHeight")
                for part, top in enumerate(range(0, height, TALLEST)):
                    place = folder / look / f"{path.stem}{f'-{part + 1}' if height > TALLEST else ''}.png"
                    clip = {"x": 0, "y": top, "width": width, "height": min(TALLEST, height - top)}
                    page.screenshot(path=place, full_page=True, clip=clip)
                    made.append(place)
    return made


def measure(book: Path) -> None:
    """Print how long every page takes to load, in milliseconds, and how high it is, in pixels."""
    with tab(viewport={"width": 1280, "height": 900}) as page:
        for path in pages_in_order(book.resolve()):
            page.goto(path.as_uri())
            loaded = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
            page.evaluate(TYPESET)
            height = page.evaluate("document.documentElement.scrollHeight")
            print(f"{path.parent.name}/{path.stem}: {loaded:.0f} ms, {height} px", flush=True)


def main() -> None:
    """Do what the words after the name of this module ask for."""
    what, book, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[-1])
    if what == "measure":
        measure(book)
    elif what == "pdf":
        pdf(book, out)
        print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
    else:
        print(f"{out}: {len(shots(book, out))} pictures")


if __name__ == "__main__":
    main()
