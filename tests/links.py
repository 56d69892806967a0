"""Ask every address outside a rendered book whether it is still there: `python -m tests.links _build/reduced/html`.

Exit code 1 when one is gone. Who refuses machines (401, 403, 429, 999) or is slow is named and does not count.
"""

import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urldefrag

import requests
from bs4 import BeautifulSoup

REFUSED = {401, 403, 405, 429, 503, 999}


def addresses(html: Path) -> dict[str, str]:
    """Every address outside the book, and a page that leads there."""
    found: dict[str, str] = {}
    for page in sorted(html.rglob("*.html")):
        for link in BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser").find_all("a", href=True):
            if re.match(r"https?://", link["href"]):
                found.setdefault(urldefrag(link["href"])[0], str(page.relative_to(html)))
    return found


def ask(address: str) -> str:
    """What an address answers: "" when it is there, "refused: ..." or "gone: ..."."""
    try:
        headers = {"User-Agent": "Mozilla/5.0 (link check)"}
        with requests.get(address, headers=headers, timeout=30, stream=True) as answer:
            status = answer.status_code
    except requests.Timeout:
        return "refused: no answer within 30 s"
    except requests.RequestException as error:
        return f"gone: {type(error).__name__}"
    if status in REFUSED:
        return f"refused: {status}"
    return f"gone: {status}" if status >= 400 else ""


def main(html: Path) -> int:
    """Ask all, name those that do not answer well; returns the exit code."""
    found = addresses(html)
    with ThreadPoolExecutor(8) as pool:
        answers = dict(zip(found, pool.map(ask, found), strict=True))
    for address, said in sorted(answers.items()):
        if said:
            print(f"{said}: {address} ({found[address]})")
    gone = sum(said.startswith("gone") for said in answers.values())
    print(f"{len(found)} addresses, {gone} gone")
    return bool(gone) or not found


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
