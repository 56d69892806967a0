"""The finished book as a reader meets it: headless Chromium on `file://` pages, no network."""

import re
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from bs4 import BeautifulSoup

from helpers.engine.light import CODE
from tests.press import TYPESET

pytestmark = pytest.mark.browser
EXTERNAL = re.compile(r"^(https?:)?//", re.IGNORECASE)
LOADED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
}
HOME, HEAVIEST = 1e6, 3e6  # bytes that the first page, and any other, may load
CDN = re.compile(r"unpkg\.com|jsdelivr|cdnjs|googleapis|gstatic|cloudflare", re.IGNORECASE)


@pytest.fixture(scope="module")
def paths(book):
    """All pages of the book, the large ones first; the start page only forwards."""
    found = [p for p in book.rglob("*.html") if p != book / "index.html" and "_static" not in p.parts]
    assert len(found) > 7
    return sorted(found, key=lambda path: -path.stat().st_size)


@pytest.fixture(scope="module")
def pages(paths):
    """All pages of the book, parsed without their code, which has no links."""
    return {path: BeautifulSoup(CODE.sub("", path.read_text()), "html.parser") for path in sorted(paths)}


@contextmanager
def new_tab(browser):
    """A new tab that notes what goes wrong and cannot reach a network."""
    context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900})
    context.set_default_timeout(120_000)  # a busy machine is slow and not wrong
    page = context.new_page()
    page.problems, page.left, page.loaded = [], [], set()
    page.on("console", lambda m: m.type in ("error", "warning") and page.problems.append(m.text))
    page.on("pageerror", lambda e: page.problems.append(str(e)))
    page.on("requestfailed", lambda r: page.problems.append(f"failed: {r.url[:200]}"))
    page.on("request", lambda r: r.url.startswith("file:") and page.loaded.add(r.url.partition("?")[0]))
    page.on("request", lambda r: r.url.startswith(("file:", "data:", "blob:")) or page.left.append(r.url))
    page.on("dialog", lambda d: (page.problems.append(f"dialog: {d.message}"), d.dismiss()))
    yield page
    context.close()


@pytest.fixture
def tab(browser):
    """A new tab for one test."""
    with new_tab(browser) as page:
        yield page


def visit(tab, path):
    tab.goto(Path(path).as_uri())
    tab.evaluate(TYPESET)


# What is wider than its box on a phone, or than the phone, and neither scrolls nor says so. What lies in code or in an
# equation is as wide as these say themselves.
CUT = """() => {
  const hinted = (box) => {
    const style = getComputedStyle(box);
    const scrolls = /auto|scroll/.test(style.overflowX) && box.tabIndex === 0;
    return scrolls && box.matches(".scrolls") && style.boxShadow !== "none";
  };
  const inside = ":is(pre, svg, mjx-container, select, table.stacks thead) *";
  return [...document.querySelectorAll(`.bd-article *:not(${inside})`)].filter((box) => {
    if (box.clientWidth < 2 || !box.checkVisibility()) return false;
    const { left, right } = box.getBoundingClientRect();
    const end = box.matches("pre") ? Math.max(right, left + box.scrollWidth) : right;
    const outside = left < -1 || (end > innerWidth + 1 && !box.closest(".scrolls"));  // nothing scrolls to the left
    const clips = box.scrollWidth > box.clientWidth + 1 && getComputedStyle(box).overflowX !== "visible";
    return outside || (clips && !hinted(box));
  }).map((box) => `${box.tagName}.${box.className} ${box.scrollWidth}: ${box.textContent.trim().slice(0, 60)}`);
}"""
SIDEWAYS = """() => [...document.querySelectorAll(".bd-article [class*=highlight-]:not(.output) pre")]
  .filter((box) => box.checkVisibility() && box.scrollWidth > box.clientWidth + 1)
  .map((box) => `code scrolls sideways: ${box.textContent.slice(0, 60)}`)"""


def settle(tab, width):
    """Give the window another width, and the page the time to see it: the change comes to the page with a delay."""
    tab.set_viewport_size({"width": width, "height": 900})
    tab.wait_for_function("width => innerWidth === width", arg=width)
    tab.evaluate("document.fonts.ready")
    tab.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def name(path, book):
    return str(path.relative_to(book))


# Pages have thousands of elements that look alike, and the same bars: a block is left out when all that is in it was
# seen twice before, on this page or on those of which the counts are given.
FEWER = """(counts) => {
  const kinds = new Map(Object.entries(counts));
  const style = (one) => (one.closest("mjx-container") ? "" : one.className.baseVal ?? one.className);  // a glyph each
  const kind = (one) => [one.tagName, style(one), !one.textContent.trim(),
    ...[...one.attributes].map((attribute) => attribute.name)].join(" ");
  const blocks = "p, li, tr, dl.py, .cell, mjx-container, div.highlight span[class]";
  for (const block of document.querySelectorAll(`:is(.bd-article, nav) :is(${blocks})`)) {
    if (!block.isConnected || block.closest("summary, a, button, label")) continue;
    if (block.querySelector("img, input, select, iframe")) continue;
    const inside = [kind(block.parentElement) + " > " + kind(block), ...[...block.querySelectorAll("*")].map(kind)];
    if (inside.every((one) => kinds.get(one) >= 2)) block.remove();
    else for (const one of new Set(inside)) kinds.set(one, (kinds.get(one) ?? 0) + 1);
  }
  document.head.insertAdjacentHTML("beforeend", "<style>* { transition: none !important }</style>");
  return Object.fromEntries(kinds);
}"""
AXE = """async ([mode, options]) => {
  document.documentElement.dataset.theme = mode;
  const found = await axe.run(document, { resultTypes: ["violations"], preload: false, ...options });
  return found.violations.filter((one) => one.impact !== "minor").map((one) =>
    `${mode}: ${one.id} (${one.impact}), ${one.nodes.length} times: ${one.nodes[0].html.slice(0, 200)}`);
}"""
EVERY_RULE = {"rules": {"label-content-name-mismatch": {"enabled": True}}}
# In each theme a figure shows the image made for it, and nothing of another colour lies behind it.
FIGURES = """async (mode) => {
  document.documentElement.dataset.theme = mode;
  const wanted = [...document.images].filter((image) => image.checkVisibility());
  for (const image of wanted) image.loading = "eager";
  const late = wanted.filter((image) => !image.complete);
  await Promise.all(late.map((image) => new Promise((done) => (image.onload = image.onerror = done))));
  const seen = (image) => getComputedStyle(image).display !== "none" && image.complete && image.naturalWidth > 0;
  const bright = getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).every((part) => part > 200);
  return [...document.querySelectorAll("figure.repro-figure")].filter((figure) => {
    const right = [...figure.querySelectorAll("img")].every((image) => seen(image) === image.matches(`.only-${mode}`));
    const box = getComputedStyle(figure.closest(".output") ?? figure).backgroundColor;  // or on a page of prose
    const told = figure.querySelector("figcaption")?.checkVisibility() ?? true;
    return !right || !told || box !== "rgba(0, 0, 0, 0)" || bright !== (mode === "light");
  }).map((figure) => `${mode}: ${figure.id}`);
}"""


BROKEN = "mjx-merror, mjx-container [style*='color: red']"  # a macro that MathJax does not know is red


def look(tab, path, known):
    """What is wrong on a page, by kind; one load of it serves every check; `known` is that of `barriers`."""
    visit(tab, path)
    wrong = {"loading": [*tab.problems, *(f"request to {url}" for url in tab.left)]}
    wrong["loading"] += [] if tab.locator("h1").count() else ["no title"]
    drawn, broken = tab.locator("mjx-container").count(), tab.locator(BROKEN).count()
    if broken or drawn < tab.locator(".math").count():
        wrong["loading"].append(f"math: {drawn} drawn, {broken} bad")
    settle(tab, 390)
    width = tab.evaluate("document.documentElement.scrollWidth")
    wrong["width"] = [f"{width} px wide on a phone of 390"] if width > 390 else []
    wrong["width"] += [f"cut on a phone: {said}" for said in tab.evaluate(CUT)]
    settle(tab, 1440)
    wrong["width"] += tab.evaluate(SIDEWAYS)
    wrong["figures"] = tab.evaluate(FIGURES, "light")
    weight = sum(Path(unquote(urlsplit(url).path)).stat().st_size for url in tab.loaded)  # with one theme's figures
    allowed = HOME if path.name == "index.html" else HEAVIEST
    wrong["weight"] = [f"{weight / 1e6:.2f} MB of {allowed / 1e6:.0f}"] if weight >= allowed else []
    wrong["figures"] += tab.evaluate(FIGURES, "dark")
    wrong["axe"] = barriers(tab, known)
    for noted in (tab.problems, tab.left, tab.loaded):
        noted.clear()
    return wrong


def barriers(tab, known):
    """What axe finds on the page of a tab, in both themes; the page loses what is alike.

    Args:
        tab: the page.
        known: how often every kind of element was looked at; it is brought up to date.
    """
    known.update(tab.evaluate(FEWER, known))
    tab.evaluate(AXE_SCRIPT)
    modes = (("light", EVERY_RULE), ("dark", {"runOnly": ["color-contrast"]}))
    return [said for mode in modes for said in tab.evaluate(AXE, list(mode))]


@pytest.fixture(scope="module", params=["every other page", "the rest"])
def seen(request, browser, book, paths):
    """What is wrong on the pages, by kind: one line each. Two processes can look at half of them each."""
    found = {kind: [] for kind in ("loading", "width", "weight", "figures", "axe")}
    known = {}
    with new_tab(browser) as tab:
        for path in paths[request.param == "the rest" :: 2]:
            for kind, wrong in look(tab, path, known).items():
                found[kind] += [f"{name(path, book)}: {said}" for said in wrong]
    return found


def test_the_start_page_leads_to_the_preface(tab, book):
    tab.goto((book / "index.html").as_uri(), wait_until="commit")
    tab.wait_for_url("**/book/index.html")
    assert tab.inner_text("h1").startswith("Papers, Executed")


def test_pages_load_quietly_from_disk_with_math(seen):
    assert not seen["loading"], "\n".join(seen["loading"])


def test_no_code_scrolls_sideways_and_nothing_is_cut_on_a_phone(seen):
    assert not seen["width"], "\n".join(seen["width"])


def test_axe_finds_nothing_on_any_page_in_light_or_dark(seen):
    assert not seen["axe"], "\n".join(seen["axe"])


def test_no_page_is_heavy(seen):
    assert not seen["weight"], "\n".join(seen["weight"])


PLANTED = """() => {
  const article = document.querySelector(".bd-article > section");
  article.insertAdjacentHTML("beforeend", "<p>plain</p>".repeat(5) + "<p><em>plain</em></p>".repeat(5));
  article.insertAdjacentHTML("beforeend", "<p>no <a href='#x'></a> name</p><p><img src='x.png'></p><button></button>");
  article.insertAdjacentHTML("beforeend", "<div class='pale' style='color: #999; background: #aaa'><p>pale</p></div>");
}"""


def test_axe_still_finds_what_is_planted_among_blocks_that_look_alike(tab, fixture_book):
    known = {}
    for page in ("scoreboard", "running"):
        visit(tab, fixture_book / "book" / f"{page}.html")
        assert not barriers(tab, known)
    visit(tab, fixture_book / "book" / "reading.html")
    everything = tab.locator("*").count()
    tab.evaluate(PLANTED)
    found = "\n".join(barriers(tab, known))
    assert tab.locator("*").count() < everything * 2 / 3
    for rule in ("light: link-name", "light: image-alt", "light: button-name", "light: color-contrast"):
        assert rule in found, found
    assert "dark: color-contrast" in found and found.count("\n") == 4, found


def test_an_equation_is_set_when_it_comes_near_and_boxes_are_not_measured_twice(tab, fixture_book):
    path = fixture_book / "notebooks" / "good_coin" / "good_coin.html"
    tab.set_viewport_size({"width": 1280, "height": 200})
    tab.goto(path.as_uri())
    equation = tab.locator("#deviations div.math")
    tab.wait_for_selector("#deviations div.math mjx-lazy", state="attached")
    equation.scroll_into_view_if_needed()
    tab.wait_for_selector("#deviations div.math mjx-math")
    assert not tab.locator("pre[tabindex='-1']").count()  # the mark of the theme's slow way
    settle(tab, 390)
    assert "scrolls" in equation.get_attribute("class").split()


def test_figures_follow_the_theme(paths, seen):
    assert any("repro-figure" in path.read_text() for path in paths), "no page of this book has a figure"
    assert not seen["figures"], "\n".join(seen["figures"])


def test_nothing_is_loaded_from_another_host(book, pages):
    found = []
    for path, page in pages.items():
        for tag, attribute in LOADED.items():
            found += [
                f"{name(path, book)}: {t[attribute]}"
                for t in page.find_all(tag)
                if EXTERNAL.match(t.get(attribute, ""))
            ]
        for link in page.find_all("link"):
            loads = {"stylesheet", "icon", "preload", "prefetch", "modulepreload", "preconnect", "dns-prefetch"}
            if loads & set(link.get("rel", [])) and EXTERNAL.match(link.get("href", "")):
                found.append(f"{name(path, book)}: {link['href']}")
        found += [f"{name(path, book)}: {s.text[:80]}" for s in page.find_all("script") if CDN.search(s.text)]
        found += [
            f"{name(path, book)}: style"
            for s in page.find_all("style")
            if re.search(r"url\(['\"]?(https?:)?//", s.text)
        ]
    for path in book.rglob("*.css"):
        text = path.read_text()
        found += [
            f"{name(path, book)}: {m[0]}" for m in re.finditer(r"(@import|url\()\s*['\"]?(https?:)?//[^)]*", text)
        ]
    assert not found, "\n".join(found)


def test_every_image_has_alt_text(book, pages):
    found = [
        f"{name(path, book)}: alt={image.get('alt')!r}"
        for path, page in pages.items()
        for image in page.find_all("img")
        if not image.get("alt", "").strip() or re.search(r"\.(png|svg|jpe?g)$|/", image["alt"])
    ]
    assert not found, "\n".join(found)


def test_internal_links_lead_somewhere(book, pages):
    anchors = {path: {t["id"] for t in page.find_all(id=True)} for path, page in pages.items()}
    broken = []
    for path, page in pages.items():
        for link in page.find_all("a", href=True):
            href, fragment = urldefrag(link["href"])
            if re.match(r"[a-z]+:", link["href"]):
                continue
            target = (path.parent / unquote(href)).resolve() if href else path
            if not target.is_file():
                broken.append(f"{name(path, book)}: {link['href']}")
            elif fragment and target in anchors and unquote(fragment) not in anchors[target]:
                broken.append(f"{name(path, book)}: no #{fragment} in {name(target, book)}")
    assert not broken, "\n".join(sorted(set(broken)))


def test_what_is_too_wide_for_a_phone_stacks_or_scrolls_with_a_hint(tab, fixture_book):
    visit(tab, fixture_book / "notebooks" / "good_coin" / "good_coin.html")
    settle(tab, 390)
    for wide in ("#deviations .math", "#deviations .output.text_html", "#deviations .cell_input pre"):
        assert "scrolls" in tab.locator(wide).first.get_attribute("class").split(), wide
    said = "getComputedStyle(document.querySelector('#deviations .math'), '::before').content"
    assert "scroll sideways" in tab.evaluate(said)
    cell = tab.locator("#deviations table.stacks td").nth(3)
    assert cell.get_attribute("data-label") == "why"
    assert cell.evaluate("cell => getComputedStyle(cell).display") == "block"
    settle(tab, 1280)
    assert not tab.locator("#deviations .math.scrolls").count()


@pytest.mark.parametrize(
    ("anchor", "said"),
    [("term-verdict", "rule says about a run: reproduced"), ("equation-", "Var"), ("bibliography.html#", "Efron")],
)
def test_a_link_shows_what_it_leads_to_by_mouse_and_by_keyboard(tab, fixture_book, anchor, said):
    visit(tab, fixture_book / "notebooks" / "good_coin" / "good_coin.html")
    box, link = tab.locator(".popover.preview"), tab.locator(f".bd-article p a[href*='{anchor}']").first
    link.hover()
    box.wait_for()
    assert box.inner_text().count(said) == 1 and box.get_attribute("id") == link.get_attribute("aria-describedby")
    tab.mouse.move(0, 0)
    box.wait_for(state="detached")
    link.focus()
    box.wait_for()
    tab.keyboard.press("Escape")
    box.wait_for(state="detached")
    assert not tab.problems


BARS = """(plot) => [...plot.querySelectorAll("path[aria-roledescription=bar], .mark-rect path")]
  .map((bar) => Math.round(bar.getBoundingClientRect().width))"""


def test_a_chart_follows_its_slider_by_keyboard_and_says_what_it_shows(tab, fixture_book):
    visit(tab, fixture_book / "notebooks" / "good_coin" / "good_coin.html")
    slider, plot = tab.get_by_label("number of throws"), tab.locator(".explore-plot")
    height = tab.locator(".explore").bounding_box()["height"]
    plot.scroll_into_view_if_needed()
    tab.wait_for_selector(".explore-plot[data-at='100']")
    assert tab.locator(".explore").bounding_box()["height"] == height  # nothing below it moves
    first, said = plot.evaluate(BARS), plot.get_attribute("aria-label")
    assert said == 'share of heads. old </script> & "worn": 0.71; new: 0.49' and len(first) == 2
    slider.focus()
    tab.keyboard.press("Home")
    tab.wait_for_selector(".explore-plot[data-at='10']")
    assert tab.locator(".explore output").inner_text() == "10" == slider.get_attribute("aria-valuetext")
    assert plot.get_attribute("aria-label").endswith("new: 0.5") and plot.evaluate(BARS)[0] < first[0]
    tab.keyboard.press("End")
    tab.wait_for_selector(".explore-plot[data-at='100']")
    assert plot.evaluate(BARS) == first
    assert not tab.problems and not tab.left


def test_a_chart_takes_the_ink_of_the_theme_and_is_not_there_without_scripts(browser, tab, fixture_book):
    path = fixture_book / "notebooks" / "good_coin" / "good_coin.html"
    visit(tab, path)
    label = tab.locator(".explore-plot text").first
    seen = {}
    for mode in ("light", "dark"):
        tab.evaluate("mode => (document.documentElement.dataset.theme = mode)", mode)
        tab.locator(".explore").scroll_into_view_if_needed()
        ink = tab.locator(".explore").evaluate("box => getComputedStyle(box).color")
        tab.wait_for_function(
            "ink => getComputedStyle(document.querySelector('.explore-plot text') ?? document.body).fill === ink",
            arg=ink,
        )
        seen[mode] = label.evaluate("text => getComputedStyle(text).fill")
    assert seen["light"] != seen["dark"]
    context = browser.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto(path.as_uri())
    assert not page.locator(".explore").is_visible() and page.locator("#figure-coins img").first.get_attribute("alt")
    context.close()


def test_download_from_disk_saves_a_file(tab, fixture_book):
    visit(tab, fixture_book / "notebooks" / "good_coin" / "good_coin.html")
    for words, place in (("notebook", "_sources/notebooks"), ("record", "records/reduced")):
        suffix = "ipynb" if words == "notebook" else "json"
        with tab.expect_download() as caught:
            tab.get_by_role("link", name=f"Download {words}").click()
        assert caught.value.suggested_filename == f"good_coin.{suffix}"
        saved = Path(caught.value.path()).read_bytes()
        assert saved == (fixture_book / place / "good_coin" / f"good_coin.{suffix}").read_bytes()
    assert not tab.problems


def test_figure_code_is_folded_and_its_figure_is_not(tab, fixture_book):
    visit(tab, fixture_book / "notebooks" / "good_coin" / "good_coin.html")
    cell = tab.locator(".cell.tag_hide-input", has=tab.locator("figure"))
    assert cell.locator("figure").is_visible() and not cell.locator(".cell_input").is_visible()
    cell.locator("summary").click()
    assert cell.locator(".cell_input").is_visible()


def test_the_scoreboard_filters_and_sorts_from_disk_by_keyboard(tab, fixture_book):
    visit(tab, fixture_book / "book" / "scoreboard.html")
    shown, first = tab.locator(".score-filter output"), "table.claims tbody tr:visible"
    assert shown.inner_text() == "17 of 17 claims"

    def choose(name):
        return tab.locator(f".score-filter select[name={name}]")

    choose("verdict").focus()
    tab.keyboard.press("ArrowDown")
    assert shown.inner_text() == "2 of 17 claims"
    assert [one.split()[0] for one in tab.locator(first).all_inner_texts()] == ["C1", "C3"]
    assert tab.locator("section:has(> .table-scroll > table.claims):visible").count() == 1
    choose("evidence").select_option("recomputed")
    choose("size").select_option("public")
    assert shown.inner_text() == "1 of 17 claims" and not tab.locator("th:visible", has_text="reduced").count() > 1
    tab.get_by_role("button", name="Show all").click()
    tab.wait_for_function("document.querySelector('.score-filter output').textContent == '17 of 17 claims'")
    choose("sort").select_option("verdict")
    order = [one.split()[0] for one in tab.locator(first).all_inner_texts()]
    assert order[:5] == ["C1", "C3", "C4", "C5", "C2"]  # two reproduced, contradicted, inconclusive, not testable
    choose("paper").select_option(index=2)
    assert shown.inner_text() == "4 of 17 claims"
    assert not tab.problems


def theme(tab, mode):
    tab.evaluate(f"localStorage.setItem('mode', '{mode}'); localStorage.setItem('theme', '{mode}')")
    tab.reload()
    assert tab.evaluate("document.documentElement.dataset.theme") == mode


def test_the_theme_button_switches(tab, book):
    visit(tab, book / "book" / "reading.html")
    seen = set()
    for _ in range(3):
        tab.locator(".theme-switch-button:visible").first.click()
        seen.add(tab.evaluate("document.documentElement.dataset.theme"))
    assert seen == {"light", "dark"}


CONTRAST = """element => {  // ratio of WCAG 2.1
  const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const luminance = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const style = getComputedStyle(element);
  const [dark, light] = [luminance(style.color), luminance(style.backgroundColor)].sort((x, y) => x - y);
  return (light + 0.05) / (dark + 0.05);
}"""


def test_verdicts_are_legible_and_do_not_need_colour(tab, book):
    visit(tab, book / "book" / "reading.html")
    for mode in ("light", "dark"):
        theme(tab, mode)
        chips = tab.locator("table .verdict").all()
        assert len({chip.inner_text() for chip in chips}) == 4
        assert all(chip.evaluate(CONTRAST) >= 4.5 for chip in chips)


def test_search_finds_a_chapter_by_a_word_of_it(tab, book, pages):
    chapter = next(p for p, page in pages.items() if "notebooks" in p.parts and page.select(".chapter-card"))
    words = re.findall(r"\b[a-z]{8,}\b", pages[chapter].select_one("article").text)
    word = "zymurgical" if "zymurgical" in words else max(words, key=len)
    tab.goto((book / "search.html").as_uri() + f"?q={word}")
    tab.wait_for_selector("#search-results li a")
    hits = [a.get_attribute("href").split("?")[0] for a in tab.locator("#search-results li a").all()]
    assert any(hit.endswith(f"{chapter.parent.name}/{chapter.name}") for hit in hits), (word, hits)
    assert not tab.problems and not tab.left


def test_a_folded_answer_opens(tab, book, pages):
    path = next((p for p, page in pages.items() if page.select(".admonition.dropdown")), None)
    if path is None:
        pytest.skip("no folded answer in this book")
    visit(tab, path)
    answer = tab.locator(".admonition.dropdown").first
    text = answer.locator("p:not(.admonition-title)").first
    assert not text.is_visible()
    answer.locator(".toggle-button").click()
    assert text.is_visible()


def test_how_a_claim_is_measured_is_folded_and_opens_by_keyboard(tab, fixture_book):
    visit(tab, fixture_book / "notebooks" / "good_coin" / "good_coin.html")
    row = tab.locator("table.claims tbody tr").first
    tab.locator(".all-runs > summary").focus()
    tab.keyboard.press("Enter")
    said = row.get_by_text("share of heads, mean over throws")
    assert row.get_by_text("Heads are more frequent").is_visible() and not said.is_visible()
    row.locator("summary").focus()
    tab.keyboard.press("Enter")
    assert said.is_visible()


def test_a_failed_page_is_seen_as_failed_and_runs_nothing(tab, fixture_book):
    visit(tab, fixture_book / "notebooks" / "killed_coin" / "killed_coin.html")
    assert tab.get_by_role("alert").first.is_visible()
    assert "This page's run failed: killed" in tab.inner_text("article")
    assert not tab.problems  # the message holds a script with an alert
