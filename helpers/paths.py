"""Where things are: the checkout (if there is one), a chapter's files, runs and caches."""

import os
import secrets
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pooch
import yaml

try:
    from yaml import CSafeLoader as SafeLoader  # eight times as fast
except ImportError:
    from yaml import SafeLoader

PACKAGE = Path(__file__).resolve().parent


class Loader(SafeLoader):  # pyright: ignore[reportGeneralTypeIssues]
    """The safe loader, which refuses what would be read otherwise than it looks."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
        """Return a mapping; a key that is no text, or that stands there twice, is an error."""
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str" or key.value in seen:
                what = "stands there twice" if key.value in seen else "is not text"
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} {what}", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def checkout() -> Path | None:
    """Return the root of the source checkout, or None when the package was installed from a wheel."""
    root = PACKAGE.parent
    return root if (root / "pyproject.toml").is_file() and (root / "notebooks").is_dir() else None


def notebooks_of(folder: Path) -> list[Path]:
    """Return a chapter's notebooks, the main one first; hidden files and checkpoints are none."""
    found = [path for path in folder.glob("*.ipynb") if not path.name.startswith((".", "_"))]
    return sorted(found, key=lambda path: (path.stem != folder.resolve().name, path.name))


def chapter_dir(paper: str) -> Path:
    """Return the folder with a chapter's YAML files.

    A copy that stands beside the running notebook wins (a staged or edited chapter), then `REPRODUCTIONS_CHAPTERS`,
    then the checkout, then the files that the wheel carries.

    Raises:
        FileNotFoundError: no such chapter; the message lists where it was looked for.
    """
    here = Path.cwd()
    candidates = [here] if here.name == paper and (here / "claims.yaml").is_file() else []
    if extra := _from_environment("REPRODUCTIONS_CHAPTERS"):
        candidates.append(extra / paper)
    if root := checkout():
        candidates.append(root / "notebooks" / paper)
    candidates.append(PACKAGE / "chapters" / paper)
    for folder in candidates:
        if (folder / "claims.yaml").is_file():
            return folder
    raise FileNotFoundError(f"chapter '{paper}': no claims.yaml in " + " or ".join(str(c) for c in candidates))


def results_dir() -> Path:
    """Return the folder of committed records (`<preset>/<paper>/<notebook>.json`)."""
    root = checkout()
    return root / "results" if root else PACKAGE / "results"


def runs_dir() -> Path:
    """Return the folder of all runs: `REPRODUCTIONS_RUNS`, or `runs` in the checkout or the working folder."""
    return _from_environment("REPRODUCTIONS_RUNS") or (checkout() or Path.cwd()) / "runs"


def data_dir() -> Path:
    """Return the cache of public data: `REPRODUCTIONS_DATA`, or the user's cache folder."""
    return _from_environment("REPRODUCTIONS_DATA") or _user_cache() / "data"


def models_dir() -> Path:
    """Return the cache of converted model weights: `REPRODUCTIONS_MODELS`, or the user's cache folder."""
    return _from_environment("REPRODUCTIONS_MODELS") or _user_cache() / "models"


def _from_environment(name: str) -> Path | None:
    """A folder that the environment names, absolute; a relative one counts from the working folder."""
    given = os.environ.get(name)
    return Path(os.path.expanduser(given)).absolute() if given else None  # unlike that of Path it never raises


def _user_cache() -> Path:
    with suppress(RuntimeError):  # no home folder at all
        cache = Path(pooch.os_cache("reproductions"))
        if cache.is_absolute():
            return cache
    raise RuntimeError("no home folder for caches: set HOME, or REPRODUCTIONS_DATA and REPRODUCTIONS_MODELS")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write `content` (a text as UTF-8) to `path` so that a reader sees the old file or the new one, never a part.

    The file gets the mode that the umask gives, so that a shared folder stays shared.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.parent / f".{path.name[:100]}.{secrets.token_hex(4)}.part"
    try:
        with part.open("xb") as handle:
            handle.write(content.encode() if isinstance(content, str) else content)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def clear_abandoned(folder: Path, pattern: str, hours: float = 6.0) -> None:
    """Remove what killed runs have left half-written in a shared folder: nobody has touched it for hours."""
    for path in folder.glob(pattern):
        with suppress(OSError):  # another process may finish or remove it between two of these calls
            # a folder keeps its own time while the files in it grow
            latest = max(each.stat().st_mtime for each in (path, *path.rglob("*")))
            if time.time() - latest > hours * 3600:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def share(path: Path) -> None:
    """Give a file, or a folder and what is in it, the umask's mode: temporary files of libraries are private."""
    probe = path.parent / f".{secrets.token_hex(4)}.probe"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for each in [path, *path.rglob("*")]:
        each.chmod(mode | (mode & 0o444) >> 2 if each.is_dir() else mode)


def read_yaml(path: Path) -> Any:
    """Read a YAML file with the safe loader.

    Raises:
        ValueError: the file is not valid YAML; the message names the file, line and problem.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date such as 2024-13-45 is a ValueError
        raise ValueError(f"{path.name}: not valid YAML: {' '.join(str(error).split())}") from None
