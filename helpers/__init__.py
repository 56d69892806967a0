"""Shared tools of *Papers, Executed*: runs, claims, statistics, data, models and figures.

Nothing in this package knows the name of a paper; a method lives in its chapter's notebook.
"""

from helpers.run import Run
from helpers.stats import Estimate

__all__ = ["Estimate", "Run"]
