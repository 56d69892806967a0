"""Which commit of the code runs: that of the checkout, or the one that a package was installed from."""

import json
import os
import subprocess
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from helpers.paths import checkout

PACKAGE = "papers-executed"


def source_commit(root: Path | None = None) -> str:
    """Return the commit of the code that runs, marked when files differ from it; else why it is not known.

    Without a checkout it is the commit that the package was installed from, which pip notes (PEP 610), or the version.

    A checkout unpacked inside another repository, or variables such as `GIT_DIR`, must not lend it a foreign commit.
    """
    root = root or checkout()
    if root is None:
        return installed_commit()[:12] or f"package {version_of(PACKAGE)}"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*args: str) -> str:
        command = ["git", "-C", str(root), "-c", "core.quotePath=false", *args]
        return subprocess.run(command, env=clean, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return "unknown (the checkout is no repository of its own)"
        return git("rev-parse", "--short=12", "HEAD") + (" with changes" if git("status", "--porcelain") else "")
    except OSError:
        return "unknown (git is not installed)"
    except subprocess.CalledProcessError as error:
        return "unknown (git: " + (error.stderr.strip().splitlines() or ["failed"])[0].split("; ")[0][:80] + ")"


def installed_commit(package: str = PACKAGE) -> str:
    """Return the commit that pip installed a package from, in full; "" when it came from elsewhere."""
    try:
        origin = json.loads(distribution(package).read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return ""
    return str(origin.get("vcs_info", {}).get("commit_id", ""))


def version_of(package: str) -> str:
    """Return the version of an installed package, or that it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
