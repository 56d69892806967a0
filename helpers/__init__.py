"""Shared tools of *Papers, Executed*: runs, claims, statistics, data, models and figures.

Nothing in this package knows the name of a paper; a method lives in its chapter's notebook.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from helpers.run import Run
    from helpers.stats import Estimate

__all__ = ["Estimate", "Run"]


def __getattr__(name: str) -> Any:
    """Import on first use: executing a notebook needs neither torch nor the statistics in the processes around it."""
    homes = {"Run": "helpers.run", "Estimate": "helpers.stats"}
    if name not in homes:
        raise AttributeError(f"module 'helpers' has no attribute '{name}'")
    return getattr(import_module(homes[name]), name)
