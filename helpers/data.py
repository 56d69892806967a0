"""Public data by name: a pinned URL, a hash, a licence; downloaded once, checked at every use, never committed."""

import gzip
import hashlib
import json
import os
import secrets
import shutil
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import pooch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from helpers.paths import chapter_dir, clear_abandoned, data_dir, read_yaml, share


class Source(BaseModel):
    """One file of public data, as registered in a chapter's `data.yaml`.

    `sha256` is the hash of the bytes; `git_blob` is git's own name of the content (SHA-1 over a header and the bytes),
    for files of which only the repository's listing is known. `url` is None for a file derived from another one.
    """

    model_config = ConfigDict(extra="forbid")

    url: str | None
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    git_blob: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$")
    bytes: int | None = None
    licence: str
    citation: str
    note: str | None = None

    @model_validator(mode="after")
    def _has_a_hash(self) -> "Source":
        if not (self.sha256 or self.git_blob):
            raise ValueError("sha256 or git_blob: one of them is needed")
        return self

    def matches(self, path: Path) -> bool:
        """Tell whether the file at `path` has the registered content."""
        if self.sha256:
            return pooch.file_hash(str(path), alg="sha256") == self.sha256
        content = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == self.git_blob

    @property
    def digest(self) -> str:
        """The hash that identifies the file, with its kind."""
        return f"sha256:{self.sha256}" if self.sha256 else f"git-blob:{self.git_blob}"


class DataUnavailableError(RuntimeError):
    """The data set is not in the cache and could not be downloaded."""


class DataCorruptedError(RuntimeError):
    """A file does not have its registered hash; it was put aside and is never used."""


def registry(paper: str, folder: Path | None = None) -> dict[str, Source]:
    """Return the data registered by a chapter (in `folder`, where it does not lie in its place), by file name.

    Raises:
        ValueError: `data.yaml` is missing or wrong.
    """
    path = (folder or chapter_dir(paper)) / "data.yaml"
    if not path.is_file():
        raise ValueError(f"{paper}: the chapter registers no public data (no data.yaml)")
    state = path.stat()
    return dict(_registered(path, paper, (state.st_mtime_ns, state.st_size)))


@lru_cache
def _registered(path: Path, paper: str, _state: tuple[int, int]) -> dict[str, Source]:
    """Entries of a file in this state: a page that reads 650 files would parse it 1,300 times, a minute and more."""
    entries = read_yaml(path)
    try:
        return {name: Source.model_validate(entry) for name, entry in entries["files"].items()}
    except (ValidationError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{paper}/data.yaml: {' '.join(str(error).split())}") from None


def source(name: str) -> Source:
    """Return the registry entry of `<paper>/<file>`.

    Raises:
        KeyError: not registered; the message lists what is.
    """
    paper, _, file = name.partition("/")
    known = registry(paper)
    if file not in known:
        raise KeyError(f"{name}: not registered; {paper}/data.yaml has {', '.join(sorted(known))}")
    return known[file]


def fetch(name: str) -> Path:
    """Return the path of a registered public file, downloading it on first use.

    Args:
        name: `<paper>/<file>` as registered in `notebooks/<paper>/data.yaml`.

    Raises:
        KeyError: the name is not registered.
        DataCorruptedError: the cached or downloaded file has the wrong hash.
        DataUnavailableError: not in the cache and no network; the message says what to put where.
    """
    entry, path = source(name), data_dir() / name
    if path.is_file():
        if entry.matches(path):
            return path
        raise DataCorruptedError(_put_aside(name, entry, path))
    if entry.url is None:
        raise DataUnavailableError(_unavailable(name, entry, path, "it has no download address of its own"))
    return _download(name, entry, path)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read a JSON-lines file, plain or gzipped (`.gz`): one object a line, empty lines left out.

    Lines end with a line feed; U+2028 and its like may stand inside a text.

    Raises:
        ValueError: a line is not UTF-8, not JSON or not an object, or the archive is damaged; names file and line.
    """
    rows, number, path = [], 0, Path(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                    if not isinstance(row, dict):
                        raise ValueError(f"an object is needed, got {type(row).__name__}")
                    rows.append(row)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path.name}: damaged after line {number}: {error}") from None
    except ValueError as error:  # wrong JSON and wrong UTF-8 are ValueErrors
        raise ValueError(f"{path.name}, line {number}: {error}") from None
    return rows


def _download(name: str, entry: Source, path: Path) -> Path:
    """Download beside the file's place, check, then move into place; nothing half-written stays."""
    part = path.with_name(f".download-{secrets.token_hex(4)}")  # a folder of this process
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_abandoned(path.parent, ".download-*")
        got = Path(pooch.retrieve(entry.url or "", known_hash=None, fname=path.name, path=part, progressbar=True))
        target = path if entry.matches(got) else path.with_name(path.name + ".wrong-hash")
        share(got)
        os.replace(got, target)
    except (OSError, ValueError) as error:  # requests' errors are OSErrors
        reason = f"the download failed ({type(error).__name__})"
        if type(error).__module__ == "builtins" and isinstance(error, OSError) and error.errno:  # not of the net
            reason = f"it could not be stored ({os.strerror(error.errno)})"
        raise DataUnavailableError(_unavailable(name, entry, path, reason)) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    if target != path:
        raise DataCorruptedError(
            f"{name}: the file at {entry.url} does not have the registered hash ({entry.digest}). It is kept as "
            f"{target.name} beside its place and is not used."
        )
    return path


def _put_aside(name: str, entry: Source, path: Path) -> str:
    """Rename a corrupted cached file (where the cache can be written) and say what happened."""
    aside = path.with_name(path.name + ".wrong-hash")
    try:
        os.replace(path, aside)
        done = f"It was renamed to {aside.name}"
    except OSError:
        done = "The cache is read-only, so it stays in its place"
    return (
        f"{name}: the cached file {path} does not have the registered hash ({entry.digest}). {done} and is not used. "
        f"Run again to download it anew{f' from {entry.url}' if entry.url else ''}."
    )


def _unavailable(name: str, entry: Source, path: Path, reason: str) -> str:
    size = f"{entry.bytes / 1e6:.1f} MB" if entry.bytes else "size unknown"
    url = entry.url or "none"
    return (
        f"{name}: not in the cache, and {reason}. Data set: {entry.citation}; {size}; licence: {entry.licence}; "
        f"URL: {url}. Put the file at {path} (or set REPRODUCTIONS_DATA to a folder that holds {name})."
        + (f" {entry.note}" if entry.note else "")
    )
