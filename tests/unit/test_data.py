"""The registry of public data: hashes decide, messages help, nothing half-written stays."""

import hashlib
import http.server
import threading

import pytest
import yaml

from helpers import data
from helpers.data import DataCorruptedError, DataUnavailableError, fetch

CONTENT = b"one,two\n1,2\n"
BLOB = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()
ENTRY = {"licence": "CC0 1.0", "citation": "Nobody (2020)", "bytes": len(CONTENT)}


@pytest.fixture
def server(tmp_path):
    """A real web server on this machine."""
    folder = tmp_path / "web"
    folder.mkdir()
    (folder / "table.csv").write_bytes(CONTENT)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


@pytest.fixture
def register(tmp_path, monkeypatch):
    folder = tmp_path / "chapters" / "toy"
    folder.mkdir(parents=True)
    (folder / "claims.yaml").write_text("[]")
    monkeypatch.setenv("REPRODUCTIONS_CHAPTERS", str(folder.parent))
    monkeypatch.setenv("REPRODUCTIONS_DATA", str(tmp_path / "cache"))

    def write(**entry):
        (folder / "data.yaml").write_text(yaml.safe_dump({"files": {"table.csv": ENTRY | entry}}))
        return tmp_path / "cache" / "toy" / "table.csv"

    return write


@pytest.mark.parametrize("digest", [{"sha256": hashlib.sha256(CONTENT).hexdigest()}, {"git_blob": BLOB}])
def test_download_once_then_from_the_cache(register, server, digest):
    path = register(url=f"{server}/table.csv", **digest)
    assert fetch("toy/table.csv") == path and path.read_bytes() == CONTENT
    register(url="http://127.0.0.1:9/gone.csv", **digest)
    assert fetch("toy/table.csv").read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["table.csv"]


def test_a_download_with_the_wrong_hash_is_kept_aside_and_not_used(register, server):
    path = register(url=f"{server}/table.csv", sha256="0" * 64)
    with pytest.raises(DataCorruptedError, match="registered hash"):
        fetch("toy/table.csv")
    assert [p.name for p in path.parent.iterdir()] == ["table.csv.wrong-hash"]


def test_a_corrupted_cached_file_is_put_aside_and_downloaded_again(register, server):
    path = register(url=f"{server}/table.csv", git_blob=BLOB)
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT + b"x")
    with pytest.raises(DataCorruptedError, match="wrong-hash"):
        fetch("toy/table.csv")
    assert fetch("toy/table.csv").read_bytes() == CONTENT


def test_without_network_the_message_says_everything(register):
    path = register(url="http://127.0.0.1:9/table.csv", git_blob=BLOB)
    with pytest.raises(DataUnavailableError) as caught:
        fetch("toy/table.csv")
    message = str(caught.value)
    for part in ("toy/table.csv", "0.0 MB", "CC0 1.0", "Nobody (2020)", "http://127.0.0.1:9/table.csv", str(path)):
        assert part in message
    assert "\n" not in message and not path.exists()


def test_a_derived_file_has_no_address(register):
    register(url=None, git_blob=BLOB)
    with pytest.raises(DataUnavailableError, match="no download address"):
        fetch("toy/table.csv")


def test_a_registry_that_changes_is_read_anew(register):
    register(url=None, git_blob=BLOB)
    known = data.registry("toy")
    known.clear()  # the caller's own
    assert data.source("toy/table.csv").digest == f"git-blob:{BLOB}"
    register(url=None, git_blob=BLOB[::-1])
    assert data.source("toy/table.csv").digest == f"git-blob:{BLOB[::-1]}"


def test_a_registry_is_parsed_once_however_many_files_are_asked_for(register, monkeypatch):
    register(url=None, git_blob=BLOB)
    parsed, parse = [], data.read_yaml
    monkeypatch.setattr(data, "read_yaml", lambda path: (parsed.append(path), parse(path))[1])
    for _ in range(5):
        data.source("toy/table.csv")
    assert len(parsed) == 1


def test_unknown_names_and_wrong_registries(register):
    register(url=None, git_blob=BLOB)
    with pytest.raises(KeyError, match=r"toy/other.csv: not registered; toy/data.yaml has table.csv"):
        fetch("toy/other.csv")
    register(url=None)
    with pytest.raises(ValueError, match="sha256 or git_blob"):
        data.registry("toy")
