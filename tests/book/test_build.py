"""What the build decides: which runs may be shown, what a card says, and when it refuses."""

import csv
import json
import shutil

import pytest
import yaml
from bs4 import BeautifulSoup
from cards import failure_notice, verdict_sentence
from chapters import load_page


@pytest.fixture
def run(tmp_path, fixture_checkout):
    """The paths of the good chapter's notebook and of a copy of its run, to be damaged."""
    folder = tmp_path / "run"
    shutil.copytree(fixture_checkout.runs / "good_coin", folder)
    return fixture_checkout.root / "notebooks" / "good_coin" / "good_coin.ipynb", folder / "good_coin"


def status_file(run, **content):
    run.with_name(f"{run.name}.status.json").write_text(json.dumps(content))


def test_a_complete_record_is_enough(run):
    page = load_page(*run)
    assert page.ok and not page.stale and page.record["paper"] == "good_coin"


@pytest.mark.parametrize("status", ["error", "timeout", "killed"])
def test_the_status_file_has_the_last_word(run, status):
    status_file(run[1], status=status)
    page = load_page(*run)
    assert page.status == status and page.record is None


@pytest.mark.parametrize(
    ("suffix", "content", "status"),
    [
        (".json", None, "no record"),
        (".json", '{"complete": false}', "no record"),
        (".json", '{"complete": tr', "no record"),
        (".ipynb", '{"cells": [', "unreadable"),
        (".ipynb", None, "unreadable"),
        (".status.json", "{", "error"),
    ],
)
def test_what_is_not_clearly_complete_counts_as_failed(run, suffix, content, status):
    path = run[1].with_name(run[1].name + suffix)
    path.unlink(missing_ok=True) if content is None else path.write_text(content)
    assert load_page(*run).status == status


def test_nothing_at_all_is_not_run(run):
    source, place = run
    for path in place.parent.iterdir():
        path.unlink()
    assert load_page(source, place).status == "not run"


def test_an_error_output_counts_even_when_the_status_says_ok(run):
    source, place = run
    executed = json.loads(place.with_name("good_coin.ipynb").read_text())
    error = {"output_type": "error", "ename": "ValueError", "evalue": "\x1b[31mbad\x1b[0m\ncoin", "traceback": []}
    executed["cells"][3]["outputs"] = [error]
    place.with_name("good_coin.ipynb").write_text(json.dumps(executed))
    status_file(place, status="ok")
    page = load_page(source, place)
    assert page.status == "error" and page.details["last_cell"]["id"] == "experiment"
    assert page.details["error"] == {"type": "ValueError", "message": "bad coin"}


def test_a_changed_notebook_makes_the_page_stale_but_injected_parameters_do_not(run):
    source, place = run
    path = place.with_name("good_coin.ipynb")
    executed = json.loads(path.read_text())
    injected = executed["cells"][1] | {"id": "x", "source": "seed = 1", "metadata": {"tags": ["injected-parameters"]}}
    executed["cells"].insert(2, injected)
    path.write_text(json.dumps(executed))
    assert not load_page(source, place).stale
    executed["cells"][4]["source"] = "p = 0.6"
    path.write_text(json.dumps(executed))
    assert load_page(source, place).stale


@pytest.mark.parametrize(
    ("verdicts", "sentence"),
    [
        (["reproduced"], "1 of 1 claim reproduced."),
        (["reproduced", "contradicted"], "1 of 2 claims reproduced, 1 contradicted."),
        (
            ["inconclusive", "not testable here", "contradicted"],
            "0 of 3 claims reproduced, 1 contradicted, 1 inconclusive and 1 not testable at this size.",
        ),
    ],
)
def test_the_verdict_sentence_is_counted(verdicts, sentence):
    assert verdict_sentence({"claims": {str(i): {"verdict": v} for i, v in enumerate(verdicts)}}) == sentence


def test_a_failure_notice_is_one_html_block(run):
    message = "<script>alert(1)</script>\n\n# heading\r\n{{ x }}"
    status_file(run[1], status="killed", error={"type": "E", "message": message}, last_cell=None, seed=0)
    notice = failure_notice(load_page(*run))
    assert "\n" not in notice and "\r" not in notice and "<script" not in notice


def page_of(book, paper):
    return BeautifulSoup((book / "notebooks" / paper / f"{paper}.html").read_text(), "html.parser")


@pytest.mark.parametrize(
    ("paper", "title", "message"),
    [
        (
            "killed_coin",
            "This chapter's run failed: killed",
            "<script>alert(1)</script>\n\n# not a heading {{ x }} `y`",
        ),
        ("wrong_coin", "This chapter's run failed: error", "bad coin"),
        ("new_coin", "This chapter has not been run", None),
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
    said = page.select_one(".chapter-card").text
    assert "1 of 2 claims reproduced and" not in said
    assert said.count("1 of 2 claims reproduced, 1 not testable at this size.") == 2  # this page and public
    links = {a.text: a["href"] for a in page.select(".card-button")}
    url = yaml.safe_load((fixture_checkout.root / "_config.yml").read_text())["repository"]["url"]
    place = "main/notebooks/good_coin/good_coin.ipynb"
    colab = url.replace("https://github.com", "https://colab.research.google.com/github")
    assert links["Open in Colab"] == f"{colab}/blob/{place}" and links["Source"] == f"{url}/blob/{place}"
    launch = {a["href"] for a in page.select(".dropdown-launch-buttons a")}
    assert launch == {links["Open in Colab"]}
    downloaded = fixture_book / "_sources" / "notebooks" / "good_coin" / "good_coin.ipynb"
    source = fixture_checkout.root / "notebooks" / "good_coin" / "good_coin.ipynb"
    assert json.loads(downloaded.read_text()) == json.loads(source.read_text())


def test_the_scoreboard_has_a_column_per_preset_and_hides_no_failure(fixture_book):
    board = BeautifulSoup((fixture_book / "book" / "scoreboard.html").read_text(), "html.parser")
    table = board.select_one("table.scoreboard")
    assert [th.text for th in table.select("thead th")] == ["Chapter", "reduced", "public", "full"]
    rows = [[c.get_text(" ", strip=True) for c in row.find_all("td")] for row in table.select("tbody tr")]
    chips = "1 ✓ reproduced 1 – not testable here"
    assert rows == [
        [chips, chips, "not run"],
        ["! run failed: killed", "not run", "not run"],
        ["! run failed: error", "not run", "not run"],
        ["not run", "not run", "not run"],
    ]
    claims = board.select_one("table.claims")
    assert "tails & <others>" in claims.text and "0.71 [0.62, 0.79]" in claims.text and "no 2nd coin" in claims.text
    lines = list(csv.DictReader((fixture_book / "records" / "scoreboard.csv").open()))
    assert [(r["paper"], r["preset"], r["claim"]) for r in lines] == [
        ("good_coin", preset, claim) for preset in ("reduced", "public") for claim in ("C1", "C2")
    ]


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


def test_refuses_two_works_under_one_key(build, copied_checkout, tmp_path):
    (copied_checkout.root / "notebooks/killed_coin/references.bib").write_text("@misc{coin, title={Other}}\n")
    refused(build, copied_checkout, tmp_path / "out", "bibliography key 'coin' has two titles")


def test_refuses_a_missing_runs_folder_and_a_foreign_output_folder(build, fixture_checkout, tmp_path):
    nothing = type(fixture_checkout)(root=fixture_checkout.root, runs=tmp_path / "nothing")
    refused(build, nothing, tmp_path / "out", "run the chapters first")
    (tmp_path / "thesis.txt").write_text("mine")
    refused(build, fixture_checkout, tmp_path, "holds something that is not a book")
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_warning_fails_the_build_and_keeps_the_old_book(build, copied_checkout, tmp_path):
    out = tmp_path / "html"
    out.mkdir()
    (out / "objects.inv").write_text("an older book")
    page = copied_checkout.root / "book" / "reading.md"
    page.write_text(page.read_text() + "\nSee {ref}`no-such-place`.\n")
    done = build(copied_checkout.runs, out, copied_checkout.root)
    assert done.returncode == 1 and "no-such-place" in done.stderr and "book/reading.md" in done.stderr
    assert [p.name for p in out.iterdir()] == ["objects.inv"]
    assert not list(tmp_path.glob(".book-*"))


def test_every_notebook_installs_from_the_repository_of_the_book(repository):
    url = yaml.safe_load((repository / "_config.yml").read_text())["repository"]["url"]
    for path in repository.glob("notebooks/*/*.ipynb"):
        setup = next((c for c in json.loads(path.read_text())["cells"] if c["id"] == "setup"), None)
        assert setup is None or f'"git+{url}"' in "".join(setup["source"]), f"{path.name}: setup cell names another URL"
