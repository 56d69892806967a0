"""Where things are: the checkout (if there is one), a chapter's files, runs and caches."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pooch
import yaml

PACKAGE = Path(__file__).resolve().parent


def checkout() -> Path | None:
    """Return the root of the source checkout, or None when the package was installed from a wheel."""
    root = PACKAGE.parent
    return root if (root / "pyproject.toml").is_file() and (root / "notebooks").is_dir() else None


def chapter_dir(paper: str) -> Path:
    """Return the folder with a chapter's YAML files.

    A copy that stands beside the running notebook wins (a staged or edited chapter), then `REPRODUCTIONS_CHAPTERS`,
    then the checkout, then the files that the wheel carries.

    Raises:
        FileNotFoundError: no such chapter; the message lists where it was looked for.
    """
    here = Path.cwd()
    candidates = [here] if here.name == paper and (here / "claims.yaml").is_file() else []
    if extra := os.environ.get("REPRODUCTIONS_CHAPTERS"):
        candidates.append(Path(extra) / paper)
    if root := checkout():
        candidates.append(root / "notebooks" / paper)
    candidates.append(PACKAGE / "chapters" / paper)
    for folder in candidates:
        if (folder / "claims.yaml").is_file():
            return folder
    raise FileNotFoundError(f"chapter '{paper}': no claims.yaml in " + " or ".join(str(c) for c in candidates))


def results_dir() -> Path:
    """Return the folder of committed records (`<preset>/<paper>.json`)."""
    root = checkout()
    return root / "results" if root else PACKAGE / "results"


def data_dir() -> Path:
    """Return the cache of public data: `REPRODUCTIONS_DATA`, or the user's cache folder."""
    return Path(os.environ.get("REPRODUCTIONS_DATA") or Path(pooch.os_cache("reproductions")) / "data")


def models_dir() -> Path:
    """Return the cache of converted model weights: `REPRODUCTIONS_MODELS`, or the user's cache folder."""
    return Path(os.environ.get("REPRODUCTIONS_MODELS") or Path(pooch.os_cache("reproductions")) / "models")


def record_path(paper: str, preset: str, seed: int) -> Path:
    """Return where a run's record goes: `REPRODUCTIONS_RECORD`, or a place under `REPRODUCTIONS_RUNS`."""
    if exact := os.environ.get("REPRODUCTIONS_RECORD"):
        return Path(exact)
    runs = os.environ.get("REPRODUCTIONS_RUNS")
    base = Path(runs) if runs else (checkout() or Path.cwd()) / "runs"
    return base / preset / f"seed-{seed}" / paper / f"{paper}.json"


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    Path(handle.name).chmod(0o644)
    os.replace(handle.name, path)


def read_yaml(path: Path) -> Any:
    """Read a YAML file with the safe loader.

    Raises:
        ValueError: the file is not valid YAML; the message names the file, line and problem.
    """
    try:
        return yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name}: not valid YAML: {' '.join(str(error).split())}") from None


def read_record(path: Path) -> dict[str, Any] | None:
    """Return the record at `path`, or None when there is none or it is not complete."""
    if not path.is_file():
        return None
    record = json.loads(path.read_text())
    return record if record.get("complete") is True else None
