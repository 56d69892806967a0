"""Many records as one table."""

import csv
import io

import pytest
from typer.testing import CliRunner

from helpers.engine.cli import app
from helpers.record import Record, record_path


def put(out, seed, value, **changed):
    record = Record(
        paper="coin",
        notebook="coin",
        preset="reduced",
        parameters={"seed": seed},
        changed=changed,
        metrics={
            "heads | tails": {"value": value, "interval": (value - 0.1, value + 0.1), "n": 9},
            "gain": {"value": None},
        },
        claims={"C1": {"verdict": "reproduced", "value": value, "low": 0.1, "high": 0.9}},
        card={"device": "abacus"},
    )
    record.write(record_path("coin", "coin", "reduced", seed, changed, out))


@pytest.fixture
def folder(tmp_path):
    put(tmp_path / "a", 0, 0.123456)
    put(tmp_path / "a", 1, 0.5, bias=0.7)
    put(tmp_path / "b", 0, 0.9)
    return tmp_path


def table(*words):
    called = CliRunner().invoke(app, ["table", *map(str, words)])
    return called.exit_code, called.stdout, called.stderr


def test_records_of_several_folders_are_rows_with_all_digits(folder):
    code, out, _ = table(folder / "a", folder / "b", "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0 and len(rows) == 3 * 3
    first = rows[0]
    assert (first["name"], first["value"], first["low"], first["device"]) == (
        "heads | tails",
        "0.123456",
        "0.02345599999999999",
        "abacus",
    )
    assert {row["changed"] for row in rows} == {"{}", '{"bias": 0.7}'}
    assert [row["verdict"] for row in rows if row["kind"] == "claim"] == ["reproduced"] * 3


def test_markdown_is_filtered_by_name_and_escapes_bars(folder):
    code, out, _ = table(folder, "--metric", "heads*", "--metric", "nothing")
    lines = out.splitlines()
    assert code == 0 and len(lines) == 2 + 3
    assert all(line.replace("\\|", "").count("|") == 14 for line in lines)
    assert "| heads \\| tails | 0.1235 |" in lines[2]


def test_a_damaged_record_is_named_and_nothing_to_show_is_said(folder):
    (folder / "a" / "half.json").write_text('{"schema": 1')
    code, out, err = table(folder, "--csv")
    assert code == 1 and "half.json: not a complete record" in err and len(out.splitlines()) == 10
    code, out, err = table(folder / "b", "--metric", "loss")
    assert (code, out) == (2, "") and "nothing of them to show" in err
    code, out, err = table(folder / "c")
    assert (code, out) == (2, "") and "no such record" in err
