"""The weekly check of links tells what is gone from who refuses to answer; no network."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests import links


class Answers(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(int(self.path.strip("/")))
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def address():
    server = HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def write(folder: Path, *hrefs: str) -> Path:
    (folder / "a.html").write_text("".join(f'<a href="{href}">x</a>' for href in hrefs))
    return folder


def test_what_is_gone_fails_and_who_refuses_does_not(tmp_path, address, capsys):
    assert links.main(write(tmp_path, f"{address}/200#part", f"{address}/403", "b.html", "#x")) == 0
    assert f"refused: 403: {address}/403 (a.html)" in capsys.readouterr().out
    assert links.main(write(tmp_path, f"{address}/200", f"{address}/404", "http://127.0.0.1:9/")) == 1
    said = capsys.readouterr().out
    assert f"gone: 404: {address}/404" in said and "gone: ConnectionError" in said and "3 addresses, 2 gone" in said


def test_a_book_without_addresses_is_no_book(tmp_path):
    assert links.main(write(tmp_path, "b.html")) == 1
