"""Intervals over the unit that was sampled: bootstrap (paired, clustered), seeds, proportions, calibration."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats as scipy_stats

Statistic = Callable[[NDArray], float]


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    Attributes:
        value: the point estimate.
        low, high: ends of the interval at `level`.
        n: how many units were sampled (prompts, patients, seeds ...).
        level: confidence level of the interval.
    """

    value: float
    low: float
    high: float
    n: int
    level: float = 0.95

    def __post_init__(self) -> None:
        """Reject what is not an interval; a NaN would otherwise pass every later comparison as "inside"."""
        if not np.all(np.isfinite([self.value, self.low, self.high])) or self.low > self.high:
            raise ValueError(f"not an interval: value {self.value}, low {self.low}, high {self.high}")

    def __str__(self) -> str:
        """Write the estimate as `value [low, high]`."""
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def bootstrap(
    x: ArrayLike,
    statistic: Statistic = np.mean,
    *,
    clusters: ArrayLike | None = None,
    n_resamples: int = 2000,
    level: float = 0.95,
    rng: np.random.Generator | None = None,
) -> Estimate:
    """Percentile bootstrap of `statistic` (Efron 1979), resampling rows or whole clusters.

    Args:
        x: (n,) or (n, k) observations; a row is one unit.
        statistic: maps an array like `x` to a number.
        clusters: (n,) labels; rows with one label are drawn together. None: every row is its own unit.
        n_resamples: number of bootstrap resamples.
        level: confidence level.
        rng: random generator; a fixed one (seed 0) by default, so that the interval is reproducible.

    Returns:
        The statistic of `x`, its interval, and n = the number of units that were resampled.

    Raises:
        ValueError: fewer than two units, or labels that do not match the rows.
    """
    x = np.asarray(x)
    rng = rng if rng is not None else np.random.default_rng(0)
    members = _cluster_members(len(x), clusters)
    if len(members) < 2:
        raise ValueError(f"a bootstrap needs at least two units, got {len(members)}")
    if clusters is None and statistic is np.mean:  # the common case, without a Python loop
        draws = np.concatenate([_resampled_means(x, rows, rng) for rows in _chunks(n_resamples, len(x))])
    else:
        picks = rng.integers(len(members), size=(n_resamples, len(members)))
        draws = np.array([statistic(x[np.concatenate([members[i] for i in pick])]) for pick in picks])
    tail = (1 - level) / 2
    low, high = np.nanquantile(draws, [tail, 1 - tail])
    return Estimate(float(statistic(x)), float(low), float(high), len(members), level)


def paired_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    statistic: Statistic = np.mean,
    *,
    clusters: ArrayLike | None = None,
    n_resamples: int = 2000,
    level: float = 0.95,
    rng: np.random.Generator | None = None,
) -> Estimate:
    """Bootstrap of `statistic(a) - statistic(b)` where row i of `a` and `b` belong to the same unit.

    Args and errors are those of `bootstrap`; `a` and `b` need the same shape.
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.shape != b.shape:
        raise ValueError(f"paired arrays need one shape, got {a.shape} and {b.shape}")
    both = np.stack([a, b], axis=-1)  # (n, ..., 2)
    if statistic is np.mean and a.ndim == 1:
        return bootstrap(a - b, clusters=clusters, n_resamples=n_resamples, level=level, rng=rng)

    def difference(rows: NDArray) -> float:
        return float(statistic(rows[..., 0]) - statistic(rows[..., 1]))

    return bootstrap(both, difference, clusters=clusters, n_resamples=n_resamples, level=level, rng=rng)


def seed_interval(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Student t interval for the mean over seeds.

    Args:
        values: one number a seed, at least two.
        level: confidence level.

    Raises:
        ValueError: fewer than two seeds.
    """
    values = np.asarray(values, dtype=float)
    if values.size < 2:
        raise ValueError(f"an interval over seeds needs at least two, got {values.size}")
    mean, error = values.mean(), values.std(ddof=1) / np.sqrt(values.size)
    half = error * scipy_stats.t.ppf((1 + level) / 2, values.size - 1)
    return Estimate(float(mean), float(mean - half), float(mean + half), int(values.size), level)


def proportion(successes: int, n: int, level: float = 0.95) -> Estimate:
    """Wilson score interval of a proportion; unlike the bootstrap it stays honest at 0 and 1.

    Raises:
        ValueError: n is not positive or `successes` is outside 0..n (raised by scipy).
    """
    interval = scipy_stats.binomtest(int(successes), int(n)).proportion_ci(level, method="wilson")
    return Estimate(successes / n, float(interval.low), float(interval.high), int(n), level)


def expected_calibration_error(confidence: ArrayLike, correct: ArrayLike, bins: int = 10) -> float:
    """Expected calibration error with equal-width bins (Naeini et al. 2015; Guo et al. 2017).

    Args:
        confidence: (n,) predicted probability of the chosen answer, in [0, 1].
        correct: (n,) 1 where the answer was right, else 0.
        bins: number of equal-width bins on [0, 1].

    Returns:
        Sum over bins of (share of examples) x |mean confidence - accuracy|, in [0, 1].
    """
    confidence, correct = np.asarray(confidence, float), np.asarray(correct, float)
    index = np.clip((confidence * bins).astype(int), 0, bins - 1)
    gaps = np.bincount(index, confidence - correct, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def _cluster_members(n: int, clusters: ArrayLike | None) -> list[NDArray]:
    """Row numbers of every unit."""
    if clusters is None:
        return list(np.arange(n)[:, None])
    clusters = np.asarray(clusters)
    if clusters.shape != (n,):
        raise ValueError(f"{n} rows need {n} cluster labels, got shape {clusters.shape}")
    order = np.argsort(clusters, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(np.unique(clusters, return_inverse=True)[1][order])) + 1)


def _chunks(n_resamples: int, n: int, cells: int = 4_000_000) -> list[int]:
    """Split resamples so that one index matrix stays under `cells` entries."""
    step = max(1, cells // n)
    return [min(step, n_resamples - start) for start in range(0, n_resamples, step)]


def _resampled_means(x: NDArray, rows: int, rng: np.random.Generator) -> NDArray:
    return x[rng.integers(len(x), size=(rows, len(x)))].mean(axis=tuple(range(1, x.ndim + 1)))
