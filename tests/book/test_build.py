"""What the build decides: which runs may be shown, what a card says, and when it refuses."""

import base64
import csv
import json
import re
import shutil
from dataclasses import replace

import pytest
import yaml
from bs4 import BeautifulSoup
from docutils.nodes import Text

from helpers.claims import Claim
from helpers.code import code_hash_of
from helpers.engine.cards import card, failure_notice, picture
from helpers.engine.cells import LONGEST_LINE, find_title, with_short_outputs, with_title
from helpers.engine.charts import Chart, table_of, with_charts
from helpers.engine.launch import buttons, offered
from helpers.engine.loading import load_chapter
from helpers.engine.scoreboard import stale_chip
from helpers.engine.shown import definitions, first_sentence, with_folded_code
from helpers.engine.tally import Tally
from helpers.engine.terms import link_terms
from helpers.record import Outcome
from tests.book.conftest import CHART, COINS, html_output


@pytest.fixture
def run(tmp_path, fixture_checkout):
    """The folder of the good chapter, a copy of its runs, to be damaged, and the committed records."""
    shutil.copytree(fixture_checkout.runs / "good_coin", tmp_path / "runs")
    return fixture_checkout.root / "notebooks" / "good_coin", tmp_path / "runs", fixture_checkout.root / "results"


def status_file(runs, **content):
    (runs / "good_coin.status.json").write_text(json.dumps(content))


def test_a_chapter_knows_its_notebooks_and_which_claim_is_whose(run):
    chapter = load_chapter(*run)
    assert [page.name for page in chapter.pages] == ["good_coin", "second_throw"] and not chapter.faults
    assert {c.id: chapter.page_of(c).name for c in chapter.claims.values()}["C5"] == "second_throw"
    assert list(chapter.main.records) == ["reduced", "public"] and list(chapter.pages[1].records) == ["reduced"]
    assert chapter.best("C1")[0] == "public" and chapter.best("C5")[0] == "reduced"
    assert chapter.main.stability("C1", "reduced") == "4 of 5 seeds" and not chapter.main.stability("C1", "public")


def copied_results(run, tmp_path):
    """The committed records, to be damaged: their folder, and the main notebook's public one with its content."""
    results = shutil.copytree(run[2], tmp_path / "results")
    place = results / "public" / "good_coin" / "good_coin.json"
    return results, place, json.loads(place.read_text())


def test_records_of_other_seeds_say_how_stable_a_verdict_is(run, tmp_path):
    folder, runs, _ = run
    results, first, content = copied_results(run, tmp_path)
    for seed, verdict in ((1, content["claims"]["C1"]["verdict"]), (2, "inconclusive")):
        claims = content["claims"] | {"C1": content["claims"]["C1"] | {"verdict": verdict}}
        other = content | {"claims": claims, "parameters": content["parameters"] | {"seed": seed}}
        first.with_name(f"good_coin.seed-{seed}.json").write_text(json.dumps(other))
    chapter = load_chapter(folder, runs, results)
    assert not chapter.faults and chapter.main.stability("C1", "public") == "2 of 3 seeds"
    assert list(chapter.main.committed) == ["public"]

    other = first.with_name("good_coin.seed-2.json")  # made by other code: it says nothing of this one's verdict
    made = json.loads(other.read_text())
    other.write_text(json.dumps(made | {"card": made["card"] | {"code": "sha256:0"}}))
    assert load_chapter(folder, runs, results).main.stability("C1", "public") == "2 of 2 seeds"

    first.with_name("good_coin.seed-2.json").write_text(json.dumps(content))  # the same seed once more
    assert any("not the run of good_coin.json" in fault for fault in load_chapter(folder, runs, results).faults)
    first.with_name("good_coin.seed-2.json").write_text("{")
    chapter = load_chapter(folder, runs, results)
    assert any("good_coin.seed-2.json: not a complete record" in fault for fault in chapter.faults)
    assert chapter.main.fault("public") is None and "public" in chapter.main.records  # the record itself is good


def test_a_committed_record_of_other_code_is_marked_everywhere(run, tmp_path):
    folder, runs, _ = run
    results, place, content = copied_results(run, tmp_path)
    for code, outdated in ((code_hash_of(folder / "good_coin.ipynb"), False), ("sha256:0", True), (None, True)):
        place.write_text(json.dumps(content | {"card": content["card"] | {"code": code}}))
        chapter = load_chapter(folder, runs, results)
        page = chapter.main
        assert page.outdated("public") is outdated and not page.outdated("reduced") and not page.outdated("full")
        assert ("earlier code" in card(page, chapter, {})) is outdated
        assert ("earlier code" in stale_chip(page, "public")) is outdated and not stale_chip(page, "reduced")
        assert ("! study: earlier code<" in stale_chip(replace(page, name="study"), "public")) is outdated


def test_a_failed_run_is_not_covered_up_and_a_changed_run_speaks_for_no_preset(run):
    runs = run[1]
    record = json.loads((runs / "good_coin.json").read_text())
    (runs / "good_coin.json").write_text(json.dumps(record | {"changed": {"n": 3}}))
    chapter = load_chapter(*run)
    assert chapter.main.run.shown and list(chapter.main.records) == ["public"]
    status_file(runs, status="killed", preset="public")
    chapter = load_chapter(*run)
    assert not chapter.main.records and chapter.main.fault("public")[0] == "run failed: killed"


def entry(evidence="measured", ours=False, **rule):
    base = {"id": "C1", "statement": "Long enough.", "source": "table 1", "paper_value": "", "unit": "", "threshold": 0}
    base |= {"estimand": "long enough", "direction": "less", "presets": ["reduced", "public", "full"]}
    return Claim.model_validate(base | {"evidence": evidence, "ours": ours} | rule)


@pytest.mark.parametrize(
    ("claims", "sentence"),
    [
        (["reproduced"], "1 of 1 claim measured: 1 reproduced."),
        (["reproduced", "contradicted"], "2 of 2 claims measured: 1 reproduced and 1 contradicted."),
        (["inconclusive", "not testable here", None], "1 of 3 claims measured: 1 inconclusive."),
        (
            ["reproduced", ("reproduced", "recomputed"), ("contradicted", "derived"), ("reproduced", "measured", True)],
            "1 of 3 claims measured: 1 reproduced. "
            "Not counted: 2 claims recomputed or derived and 1 statement of ours.",
        ),
        ([("not testable here", "derived", True)], "No claim of the paper."),
        ([("reproduced", "derived", True)], "No claim of the paper, 1 statement of ours."),
    ],
)
def test_only_what_was_measured_and_is_the_papers_is_counted(claims, sentence):
    claims = [c if isinstance(c, tuple) else (c,) for c in claims]
    outcomes = {str(i): Outcome(verdict=verdict) for i, (verdict, *_) in enumerate(claims) if verdict}
    assert Tally.of({str(i): entry(*kind) for i, (_, *kind) in enumerate(claims)}, outcomes).sentence() == sentence


def test_a_failure_notice_is_one_html_block(run):
    message = "<script>alert(1)</script>\n\n# heading\r\n{{ x }}"
    status_file(run[1], status="killed", error={"type": "E", "message": message}, last_cell=None, seed=0)
    notice = failure_notice(load_chapter(*run).main)
    assert "\n" not in notice and "\r" not in notice and "<script" not in notice


def printed(*texts, name="stdout"):
    return [{"output_type": "stream", "name": name, "text": text} for text in texts]


def test_a_long_line_is_cut_also_when_it_came_in_pieces():
    cells = [{"cell_type": "code", "source": "", "outputs": printed(*["x" * 8000] * 3, "\nshort\n")}]
    cells += [{"cell_type": "code", "source": "", "outputs": printed("1 %\r2 %\rdone\r\n", "end\r")}]
    shown, cut = with_short_outputs({"cells": cells})
    [long], [bar] = (cell["outputs"] for cell in shown["cells"])
    assert cut == 1 and long["text"].startswith("x" * LONGEST_LINE + " [... 14,000 more characters")
    assert long["text"].endswith("\nshort\n") and bar["text"] == "done\nend"
    assert len(cells[0]["outputs"]) == 4  # the run's own notebook is not changed


def test_a_title_is_found_outside_code_and_made_when_there_is_none():
    text = {"cell_type": "markdown", "source": "```\n# no title\n```\n## Low\n"}
    assert find_title({"cells": [text]}) is None
    assert with_title({"cells": [text]}, "a_b <i>")["cells"][0]["source"] == "# a\\_b \\<i\\>"
    title = {"cell_type": "markdown", "source": "# `<b>` and $a<b$ and <b>\n"}
    assert with_title({"cells": [text, title]}, "")["cells"][0]["source"] == "# `<b>` and $a<b$ and \\<b>\n"


def page_of(book, paper):
    return BeautifulSoup((book / "notebooks" / paper / f"{paper}.html").read_text(), "html.parser")


@pytest.mark.parametrize(
    ("paper", "title", "message"),
    [
        (
            "killed_coin",
            "This page's run failed: killed",
            "<script>alert(1)</script>\n\n# not a heading {{ x }} `y`",
        ),
        ("wrong_coin", "This page's run failed: error", "bad coin"),
        ("new_coin", "This page's notebook has not been run", None),
    ],
)
def test_a_failed_page_says_so_and_shows_code_without_results(fixture_book, paper, title, message):
    page = page_of(fixture_book, paper)
    notice = page.select_one(".run-failed[role=alert]")
    assert notice.select_one(".run-failed-title").text == title
    assert (notice.pre.text if notice.pre else None) == message
    assert "assert p > 0.5" in page.select_one("article").text
    assert page.h1.text.startswith("Coins") and "An Exception was encountered" not in page.text
    assert not page.select("figure.repro-figure, .chapter-card, .cell_output")
    if message:
        after = page.select_one(".run-stopped").find_next("div", class_="cell")
        assert "p = 0.7" in after.text


def test_the_card_is_filled_and_its_buttons_lead_to_the_source(fixture_book, fixture_checkout):
    page = page_of(fixture_book, "good_coin")
    card = page.select_one(".chapter-card")
    first = card.find()
    assert first["class"] == ["findings"] and "The coin falls on heads <too> often. ✓ reproduced" in first.text
    assert (
        "0.71 [0.62, 0.79]" in first.text
        and "greater than 0.5" in first.text
        and "(public, earlier code)" in first.text
    )
    assert first.svg["aria-label"] == "interval 0.62 to 0.79; reproduced is greater than 0.5"
    assert first.svg["role"] == "img" and len(first.select("li")) == 1
    assert card.select_one(".card-reading").text == "Reading time: 1 minute, without the code."
    counted = (
        "1 of 3 claims measured: 1 reproduced. Not counted: 1 claim recomputed or derived and 1 statement of ours."
    )
    assert [p.text for p in card.select(".card-verdict")] == [
        f"reduced (this page) {counted}",
        f"public (earlier code) {counted}",
    ]
    study = card.select_one(".card-studies a")
    assert (study.text, study["href"]) == ("A second throw", "second_throw.html")
    assert "1 of 1 claim measured: 1 inconclusive." in card.select_one(".card-studies").text
    links = {a.text: a["href"] for a in page.select(".card-button")}
    url = yaml.safe_load((fixture_checkout.root / "_config.yml").read_text())["repository"]["url"]
    place = "notebooks/good_coin/good_coin.ipynb"
    colab = url.replace("https://github.com", "https://colab.research.google.com/github")
    assert links["Open in Colab"] == f"{colab}/blob/gh-pages/_sources/{place}"  # the very file that is offered
    assert links["Source"] == f"{url}/blob/main/{place}" and not page.select(".dropdown-launch-buttons a")
    downloaded = fixture_book / "_sources" / "notebooks" / "good_coin" / "good_coin.ipynb"
    source = fixture_checkout.root / "notebooks" / "good_coin" / "good_coin.ipynb"
    assert json.loads(downloaded.read_text()) == offered(json.loads(source.read_text()), url, "")


@pytest.mark.parametrize(
    ("launch", "repository", "hidden"),
    [
        ({}, {"url": "https://github.com/a/b"}, {"Open in Colab"}),
        ({"colab": "https://c", "published": None}, {"url": "https://github.com/a/b"}, {"Open in Colab"}),
        ({"colab": "https://c", "published": "p"}, {"url": "https://example.org/a/b"}, {"Open in Colab"}),
        ({"colab": "https://c", "published": "p"}, {}, {"Open in Colab", "Source"}),
        ({"colab": "https://c", "published": "p"}, {"url": "https://github.com/a/b/"}, set()),
    ],
)
def test_a_button_without_an_address_is_hidden(run, launch, repository, hidden):
    every = {"Open in Colab", "Download notebook", "Source", "Download record", "Scoreboard"}
    found = buttons(load_chapter(*run).main, {"launch": launch, "repository": repository})
    assert every - found.keys() == hidden
    place = "_sources/notebooks/good_coin/good_coin.ipynb"
    assert found.get("Open in Colab", "") in ("", f"https://c/github/a/b/blob/p/{place}")


def test_a_card_shows_the_figure_that_sums_up_and_what_to_know_before(fixture_book):
    page = page_of(fixture_book, "good_coin")
    said = page.select_one(".chapter-card .card-before")
    assert said.get_text() == "Know before: bootstrap, coins <of any kind>."
    assert said.a["href"] == "../../book/glossary.html#term-bootstrap" and len(said.select("a")) == 1
    figure = page.select_one(".chapter-card a.card-figure")
    assert (
        figure["href"] == "#figure-coins"
        and [one["alt"] for one in figure.select("img")] == ["a bar at 0.7 for heads"] * 2
    )
    home = BeautifulSoup((fixture_book / "book" / "index.html").read_text(), "html.parser").select(
        "#the-chapters ol li"
    )
    assert [item.get_text().rpartition("Know before: ")[2] for item in home[:2]] == [
        "bootstrap; coins <of any kind>.",
        "Coins {{ that }} are biased.",
    ]


def test_a_guide_is_checked(run, tmp_path):
    folder = tmp_path / "good_coin"
    shutil.copytree(run[0], folder)
    (folder / "guide.yaml").write_text("before: [bootstrap]\nlevel: hard\n")
    chapter = load_chapter(folder, *run[1:])
    assert chapter.faults == ["good_coin/guide.yaml: level: Extra inputs are not permitted"]
    assert chapter.guide.before == [] and chapter.main.run.shown


def test_a_chart_that_cannot_be_drawn_is_named_and_costs_nothing_else():
    figure = '<figure class="repro-figure" id="figure-coins"><a href="data:text/csv;base64,{}">data</a></figure>'
    data = base64.b64encode(COINS.encode()).decode()
    cell = {"cell_type": "code", "outputs": [{"data": {"text/html": figure.format(data)}}]}
    for change, said in (
        ({"figure": "dice"}, "the chart of 'dice': there is no such figure"),
        ({"slider": "sides"}, "the chart of 'coins': 'sides'"),
        ({"where": {"coin": "lost"}}, "the chart of 'coins': no row of the data is left"),
    ):
        notebook, faults = with_charts({"cells": [cell]}, [Chart.model_validate(CHART | change)])
        assert faults == [said] and notebook["cells"] == [cell]


@pytest.mark.parametrize(
    ("columns", "rows"),
    [
        ({"slider": "n", "row": "rho"}, [[10, 0, "0.5", 1], [30, 1, "0.5", 3], [10, 0, "-0.5", 2], [30, 1, "-0.5", 4]]),
        (
            {"slider": "rho", "row": "n"},
            [["0.5", 0, "10", 1], ["0.5", 0, "30", 3], ["-0.5", 1, "10", 2], ["-0.5", 1, "30", 4]],
        ),
    ],
)
def test_columns_can_be_spread_to_the_rows_or_to_the_slider(columns, rows):
    wide = base64.b64encode(b"n,0.5,-0.5,odd\n10,1,2,x\n20,1,2,y\n30,3,4,x\n").decode()
    chart = Chart(figure="f", title="t", label="l", value="gain", axis="g", where={"odd": ["x"]}, spread=[], **columns)
    table = table_of(f'<a href="data:text/csv;base64,{wide}">', chart)
    assert table[["at", "slot", "row", "value"]].to_numpy().tolist() == rows


def test_a_figure_has_a_number_a_caption_and_files_of_its_own(fixture_book):
    page = page_of(fixture_book, "good_coin")
    figure = page.select_one("figure.repro-figure")
    assert figure.figcaption.get_text() == "Figure 1. a bar at 0.7 for heads. data (CSV)"
    folder = fixture_book / "notebooks" / "good_coin"
    assert [(folder / image["src"]).read_bytes()[:4] for image in figure.select("img")] == [b"\x89PNG"] * 2
    assert not page.select("img[src^='data:']")


def test_a_term_is_linked_at_its_first_use_in_a_chapter(fixture_book):
    page = page_of(fixture_book, "good_coin")
    linked = page.select("a[href*='glossary.html#term-'] .std-term")
    assert [one.get_text() for one in linked] == ["record", "verdict", "interval"]  # the first by hand
    assert not page.select("h1 .std-term, h2 .std-term, .cell .std-term")


@pytest.mark.parametrize(
    ("said", "linked"),
    [
        ("two claims of a claim", ["claims"]),
        ("Claim: a preclaim", ["Claim"]),
        ("top-p sampling, not top-p sampling-free", ["top-p sampling"]),
        ("no such word", []),
    ],
)
def test_what_counts_as_a_use_of_a_term(said, linked):
    pieces = link_terms(said, {"claim": "claim", "top-p sampling": "top-p sampling"})
    assert [one.astext() for one in pieces if not isinstance(one, Text)] == linked
    assert "".join(one.astext() for one in pieces) == said


@pytest.mark.parametrize(
    ("source", "folded"),
    [
        ("import a\nfrom b import c", True),
        ("import a\nimport b\nb.set_verbosity(1)", True),
        ("run.metric('m', value)", True),
        ("for k in range(3):\n    run.claim(k, value)", True),
        ("run.figure(draw, 'f')\nassert value > 0", False),
        ("path.write_text('x')", True),
        ("value = method(3)\nrun.metric('m', value)", False),
        ("def method(n):\n    return n", False),
        ("", False),
        ("%matplotlib inline", False),
    ],
)
def test_code_beside_the_method_is_folded(source, folded):
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": "## The method"},
        {"cell_type": "code", "metadata": {"tags": ["mine"]}, "source": source},
        {"cell_type": "markdown", "metadata": {}, "source": "## The data"},
        {"cell_type": "code", "metadata": {}, "source": source},
        {"cell_type": "markdown", "metadata": {}, "source": "An answer."},
        {"cell_type": "code", "metadata": {"tags": ["hide-cell"]}, "source": source},
    ]
    shown = [cell["metadata"].get("tags") for cell in with_folded_code({"cells": cells})["cells"]]
    assert shown == [None, ["mine", "hide-input"] if folded else ["mine"], None, ["hide-input"], None, ["hide-cell"]]
    assert cells[3]["metadata"] == {}  # the run's own notebook is not changed


def test_folded_code_that_shows_nothing_joins_the_fold_that_follows():
    def code(source, *tags, outputs=()):
        return {"cell_type": "code", "metadata": {"tags": list(tags)}, "source": source, "outputs": list(outputs)}

    shown = [html_output("<p>1</p>")]
    cells = [code("import a"), code("import b"), code("a.show()", "hide-input", outputs=shown), code("import c")]
    cells += [code("d = 1"), code("f = 1", "hide-cell"), code("answer", "hide-cell")]
    found = with_folded_code({"cells": cells})["cells"]
    assert [cell["source"] for cell in found] == [
        "import a\n\n\nimport b\n\n\na.show()",
        "import c",
        "d = 1",
        "f = 1\n\n\nanswer",
    ]
    assert [cell["outputs"] for cell in found] == [shown, [], [], []]


def test_what_the_main_page_has_defined_is_folded_where_a_study_repeats_it():
    main = {"cells": [{"cell_type": "code", "source": "def f(x):\n    return x\n\nclass A:\n    pass\na = 1"}]}
    known = definitions(main)
    sources = [
        "def f(x):\n    return x  # the same",
        "def f(x):\n    return -x",
        "class A:\n    pass\na = 1",
        "",
        "a = 1",
    ]
    cells = [{"cell_type": "code", "metadata": {}, "source": source} for source in sources]
    folded = [bool(cell["metadata"]) for cell in with_folded_code({"cells": cells}, known)["cells"]]
    assert folded == [True, False, False, False, False]
    assert not any(cell["metadata"] for cell in with_folded_code({"cells": cells})["cells"])


@pytest.mark.parametrize(
    ("said", "first"),
    [
        ("Bars by network. Longer: 3.5 of 4.", "Bars by network."),
        ("Gain at 0.5 and 1.5 of all", "Gain at 0.5 and 1.5 of all."),
        ("Percent longer: chat: 18; code: 3", "Percent longer: chat: 18; code: 3."),
    ],
)
def test_a_caption_is_the_first_sentence(said, first):
    assert first_sentence(said) == first


def test_the_page_on_the_package_has_every_public_name_and_who_uses_it(fixture_book):
    page = BeautifulSoup((fixture_book / "book" / "api.html").read_text(), "html.parser")
    entries = {one["id"]: one.find_next_sibling("dd") for one in page.select("dl.py > dt[id]")}
    assert {"helpers.run.Run.metric", "helpers.stats.bootstrap", "helpers.figures.forest"} <= entries.keys()
    assert not [name for name in entries if name.rpartition(".")[2].startswith("_")]
    used = {name: [link["href"] for link in said.select("a[href*=notebooks]")] for name, said in entries.items()}
    assert "../notebooks/good_coin/good_coin.html" in used["helpers.stats.bootstrap"]
    assert "../notebooks/new_coin/new_coin.html" in used["helpers.run.Run"] and not used["helpers.figures.forest"]
    assert "Parameters:" in entries["helpers.stats.bootstrap"].get_text()


def test_the_section_on_claims_starts_with_a_picture_of_each(fixture_book):
    page = page_of(fixture_book, "good_coin")
    overview = page.select_one("section#claims > h2").find_next_sibling()
    assert overview["class"] == ["claims-overview"] and len(page.select(".claims-overview")) == 1
    found = [item.get_text(" ", strip=True) for item in overview.select("li")]
    assert [item.split()[0] for item in found] == ["C1", "C2", "C3", "C4"]  # C5 is the other notebook's
    assert "tails & <others>. ✓ reproduced 0.71 [0.62, 0.79]; rule: greater than 0.5 (public, earlier code)" in found[0]
    assert found[1].endswith("– not testable here no 2nd coin (public, earlier code)") and found[2].endswith(
        "(public, recomputed, earlier code)"
    )
    drawn = [[svg["aria-label"] for svg in item.select("svg[role=img]")] for item in overview.select("li")]
    assert [len(one) for one in drawn] == [1, 0, 1, 1]
    assert not page_of(fixture_book, "killed_coin").select(".claims-overview")


@pytest.mark.parametrize(
    ("rule", "ends", "shaded", "bar"),
    [
        ({"direction": "less", "threshold": 0}, (2, 1, 3), (0, 12), "M44.0 8H108.0"),
        ({"direction": "greater", "threshold": 0}, (2, 1, 3), (12, 108), "M44.0 8H108.0"),
        ({"direction": "equivalent", "threshold": 0, "margin": 1}, (0, -0.5, 0.5), (12, 96), "M36.0 8H84.0"),
        ({"direction": "greater", "threshold": 2}, (2, 2, 2), (12, 108), "M12.0 8H12.0"),  # a point on the threshold
    ],
)
def test_a_picture_shades_the_side_on_which_a_claim_is_reproduced(rule, ends, shaded, bar):
    svg = BeautifulSoup(picture(entry(**rule), *ends), "html.parser")
    assert (float(svg.rect["x"]), float(svg.rect["width"])) == shaded and svg.select_one(".bar")["d"] == bar


def test_a_study_has_a_page_with_its_own_run_and_stands_below_its_chapter(fixture_book):
    path = fixture_book / "notebooks" / "good_coin" / "second_throw.html"
    page = BeautifulSoup(path.read_text(), "html.parser")
    card = page.select_one(".chapter-card")
    assert "1 of 1 claim measured: 1 inconclusive." in card.text and card.select_one("a[href='good_coin.html']")
    assert page.select_one(".bd-sidebar-primary li.has-children a[href='good_coin.html']")
    assert (fixture_book / "records" / "reduced" / "good_coin" / "second_throw.json").is_file()


def test_the_scoreboard_has_a_column_per_preset_and_hides_no_failure(fixture_book):
    board = BeautifulSoup((fixture_book / "book" / "scoreboard.html").read_text(), "html.parser")
    table = board.select_one("table.scoreboard")
    assert [th.text for th in table.select("thead th")] == ["Chapter", "reduced", "public"]  # no run at gpu or full
    rows = [[c.get_text(" ", strip=True) for c in row.find_all("td")] for row in table.select("tbody tr")]
    assert rows == [
        [
            "2 of 4 measured 1 ✓ reproduced 1 ≈ inconclusive 1 – not testable here and 1 not measured, 1 ours",
            "1 of 4 measured 1 ✓ reproduced 1 – not testable here and 1 not measured, 1 ours ! earlier code",
        ],
        ["! run failed: killed", "not run"],
        ["! run failed: error", "not run"],
        ["not run", "not run"],
    ]
    tiles = {tile.dt.text: tile.dd.text for tile in board.select(".score-totals > div")}
    assert tiles["claims measured"] == "2 of 13" and tiles["reproduced"] == "1 of 2"
    assert tiles["complete runs"] == "3" and tiles["runs failed"] == "2" and tiles["contradicted"] == "0 of 2"
    claims = board.select_one("table.claims")
    assert "tails & <others>" in claims.text and "0.71 [0.62, 0.79]" in claims.text and "no 2nd coin" in claims.text
    said = [
        [cell.get_text(" ", strip=True) for cell in row.find_all(["th", "td"])] for row in claims.select("tbody tr")
    ]
    assert said[0][2].endswith("same with 4 of 5 seeds") and "seeds" not in said[0][3]
    assert said[3][0].endswith("measured ours") and said[4][0].endswith("measured A second throw")
    assert said[4][3] == "not run" and claims.select("tbody tr")[4].a["href"].endswith("second_throw.html")
    lines = list(csv.DictReader((fixture_book / "records" / "scoreboard.csv").open()))
    main = [("good_coin", preset, f"C{number}") for preset in ("reduced", "public") for number in (1, 2, 3, 4)]
    assert [(r["notebook"], r["preset"], r["claim"]) for r in lines] == [*main, ("second_throw", "reduced", "C5")]
    assert (lines[0]["same_verdict"], lines[3]["ours"], lines[2]["evidence"]) == ("4 of 5 seeds", "true", "recomputed")
    assert {(r["preset"], r["code"]) for r in lines} == {("reduced", "this"), ("public", "earlier")}


def test_a_planned_chapter_without_folder_is_left_out(fixture_book):
    assert not (fixture_book / "notebooks" / "planned_coin").exists()


def refused(build, checkout, out, what):
    done = build(checkout.runs, out, checkout.root)
    assert done.returncode == 2 and what in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


@pytest.fixture
def copied_checkout(fixture_checkout, tmp_path):
    """A copy of the small checkout, to be damaged."""
    root = tmp_path / "checkout"
    shutil.copytree(fixture_checkout.root, root)
    return type(fixture_checkout)(root=root, runs=fixture_checkout.runs)


def test_refuses_an_unlisted_chapter(build, copied_checkout, tmp_path):
    shutil.copytree(copied_checkout.root / "notebooks/good_coin", copied_checkout.root / "notebooks/extra_coin")
    (copied_checkout.root / "notebooks/extra_coin/good_coin.ipynb").rename(
        copied_checkout.root / "notebooks/extra_coin/extra_coin.ipynb"
    )
    refused(build, copied_checkout, tmp_path / "out", "_toc.yml does not list notebooks/extra_coin/extra_coin")


def test_refuses_a_missing_runs_folder_and_a_foreign_output_folder(build, fixture_checkout, tmp_path):
    nothing = type(fixture_checkout)(root=fixture_checkout.root, runs=tmp_path / "nothing")
    refused(build, nothing, tmp_path / "out", "run the chapters first")
    (tmp_path / "thesis.txt").write_text("mine")
    refused(build, fixture_checkout, tmp_path, "holds what this command has not made: thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_book_in_a_repository_of_its_own_is_not_thrown_away(build, fixture_book, fixture_checkout, tmp_path):
    """What a person puts beside a rendered book, as in a folder of published pages, is lost in no render."""
    assert (fixture_book / ".made-by-papers-book").is_file()
    out = tmp_path / "pages"
    shutil.copytree(fixture_book, out)
    (out / "CNAME").write_text("example.org")
    (out / ".git").mkdir()
    refused(build, fixture_checkout, out, "holds what this command has not made: .git, CNAME;")
    assert (out / "CNAME").read_text() == "example.org" and (out / "index.html").is_file()


def test_a_book_is_the_same_by_one_process_and_by_two(build, fixture_book, fixture_checkout, tmp_path):
    build(fixture_checkout.runs, tmp_path / "html", fixture_checkout.root, jobs=1)
    found = [
        {p.relative_to(book): p for p in book.rglob("*") if p.is_file()} for book in (fixture_book, tmp_path / "html")
    ]
    assert found[0].keys() == found[1].keys() and len(found[0]) > 100
    assert not [str(name) for name, path in found[0].items() if path.read_bytes() != found[1][name].read_bytes()]


def test_code_marks_only_what_has_a_colour_of_its_own(fixture_book):
    style = (fixture_book / "_static" / "pygments.css").read_text()
    for mode in ("light", "dark"):
        colours = dict(re.findall(rf'"{mode}"\] \.highlight (?:\.(\w+) )?\{{.*?\bcolor: (#\w+)', style))
        assert {colours[kind] for kind in ("n", "p")} == {colours[""]}
    code = page_of(fixture_book, "good_coin").select_one("#experiment pre, .cell_input pre:-soup-contains('assert')")
    assert code.get_text() == "p = 0.7\nassert p > 0.5\np\n"
    assert [mark["class"] for mark in code.select("span[class]")] == [["o"], ["mf"], ["k"], ["o"], ["mf"]]


def test_a_file_is_no_place_for_a_book(build, fixture_checkout, tmp_path):
    (tmp_path / "file").write_text("mine")
    refused(build, fixture_checkout, tmp_path / "file", "is not a folder that can be replaced")


def test_a_warning_fails_the_build_and_keeps_the_old_book(build, copied_checkout, tmp_path):
    out = tmp_path / "html"
    out.mkdir()
    (out / "objects.inv").write_text("an older book")
    (out / ".made-by-papers-book").write_text("objects.inv\n")
    page = copied_checkout.root / "book" / "reading.md"
    page.write_text(page.read_text() + "\nSee {ref}`no-such-place`.\n")
    done = build(copied_checkout.runs, out, copied_checkout.root)
    assert done.returncode == 1 and "no-such-place" in done.stderr and "book/reading.md" in done.stderr
    assert sorted(p.name for p in out.iterdir()) == [".made-by-papers-book", "objects.inv"]
    assert not list(tmp_path.glob(".book-*"))


def test_every_notebook_installs_from_the_repository_of_the_book(repository):
    url = yaml.safe_load((repository / "_config.yml").read_text())["repository"]["url"]
    for path in repository.glob("notebooks/*/*.ipynb"):
        setup = next((c for c in json.loads(path.read_text())["cells"] if c["id"] == "setup"), None)
        assert setup is None or f'"git+{url}"' in "".join(setup["source"]), f"{path.name}: setup cell names another URL"
