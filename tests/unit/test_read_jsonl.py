"""JSON lines: what is read, and the one line that says what is wrong where."""

import gzip
import json

import pytest

from helpers.data import read_jsonl

ROWS = [{"text": "a\u2028b\x85c", "n": 1}, {"text": "ü"}]
LINES = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)


@pytest.mark.parametrize("content", [LINES, LINES + "\n", LINES.replace("\n", "\r\n"), "\ufeff" + LINES])
def test_one_object_a_line_plain_or_gzipped(content, tmp_path):
    plain, packed = tmp_path / "a.jsonl", tmp_path / "a.jsonl.gz"
    plain.write_bytes(content.encode())
    packed.write_bytes(gzip.compress(content.encode()))
    assert read_jsonl(plain) == read_jsonl(packed) == ROWS


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"a": 1}\n\n{"a": \n', "a.jsonl, line 3: Expecting value"),
        (b'{"a": 1}\n{"a": "\xfc"}\n', "a.jsonl, line 2: 'utf-8' codec can't decode byte 0xfc"),
        (b'{"a": 1}\n[1]\n', "a.jsonl, line 2: an object is needed, got list"),
        (b'{"a": 1} {"a": 2}\n', "a.jsonl, line 1: Extra data"),
    ],
)
def test_a_bad_line_is_named(content, said, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_jsonl(path)
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


def test_a_damaged_archive_is_one_line(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    whole = gzip.compress((LINES + "\n").encode() * 50)
    for content in (whole[:-12], b"no archive", whole[:20] + b"\xff\xff\xff" + whole[23:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"^a\.jsonl\.gz") as caught:
            read_jsonl(path)
        assert "\n" not in str(caught.value)
