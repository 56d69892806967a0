"""Intervals over the unit that was sampled: bootstrap (paired, clustered, in strata, crossed with seeds), proportions.

The bootstrap intervals are *expanded percentile* intervals (Hesterberg 2015, "What Teachers Should Know About the
Bootstrap"). A plain percentile interval is too short where units are few: for a mean of eight units a 95 % interval
covers the truth 88 times in 100. The expanded one reaches further out in the same draws, as a t interval does.

Coverage of 95 % intervals (simulated, tests/unit/test_stats.py): .94 for means and paired differences of eight units,
.93 to .96 for clusters from eight on, for strata, for proportions from .2 to .8 and for an AUROC of .5 to .7 with eight
units of each class. Too short: five units (.92); eight to twenty skewed ones, such as exponential times (.90); ten
strata of two units (.92); a correlation of twelve pairs (.90); with eight units of a class an AUROC of .8 (.90 to .93),
.9 (.82 to .89) or .95 (.71), which twenty of each class bring to .95, .94 and .88. A sample without spread (an AUROC of
1, a share of 0) gets an interval of no width: for shares there is `proportion`. Too wide: `crossed_bootstrap` where
chance of a seed with a unit outweighs both (.98 to .99).
"""

from collections.abc import Sequence
from typing import Any, TypedDict, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats as scipy_stats

from helpers.draws import Statistic, cluster_members, groups_of, picks, statistic_of_units, tail_of, value_of
from helpers.estimate import Estimate

RARE = 0.05  # share of resamples in which a statistic may be undefined without making the interval undefined


class Options(TypedDict, total=False):
    """What `paired_bootstrap` and `crossed_bootstrap` take as `bootstrap` does."""

    clusters: ArrayLike | None
    strata: ArrayLike | None
    macro: bool
    vectorized: bool
    n_resamples: int
    level: float
    rng: np.random.Generator | None


def bootstrap(
    x: ArrayLike,
    statistic: Statistic = np.mean,
    *,
    clusters: ArrayLike | None = None,
    strata: ArrayLike | None = None,
    macro: bool = False,
    vectorized: bool = False,
    n_resamples: int = 2000,
    level: float = 0.95,
    rng: np.random.Generator | None = None,
) -> Estimate:
    """Expanded percentile bootstrap of `statistic` (Efron 1979; Hesterberg 2015), resampling rows or whole clusters.

    Args:
        x: (n,) or (n, k) observations; a row is one unit.
        statistic: maps an array like `x` to a number; NaN where it is undefined.
        clusters: (n,) labels; rows with one label are drawn together. None: every row is its own unit.
        strata: (n,) labels; units are drawn within their stratum, whose size stays. Without clusters, row i of a draw
            comes from the stratum of row i, so a statistic may go by the place of a row.
        macro: take the statistic in each stratum by itself and average the strata with equal weight.
        vectorized: the statistic maps many draws (draws, n, ...) at once to (draws,); not together with clusters.
        n_resamples: number of bootstrap resamples.
        level: confidence level.
        rng: random generator; a fixed one (seed 0) by default, so that the interval is reproducible.

    Returns:
        The statistic of `x`, its interval, and n = the number of units that were resampled. Undefined where the
        statistic of `x` is NaN, or that of one resample in twenty or more; fewer are left out.

    Raises:
        ValueError: fewer than two units (in a stratum), labels that do not match the rows or cross each other.
    """
    x, rng = np.asarray(x), rng if rng is not None else np.random.default_rng(0)
    vectorized = vectorized and statistic is not np.mean
    if vectorized and clusters is not None:
        raise ValueError("clusters differ in size: a statistic of many draws at once cannot be taken")
    members = cluster_members(len(x), clusters)
    groups = groups_of(members, len(x), strata)
    value = value_of(x, statistic, strata if macro else None, vectorized)
    if np.isnan(value):
        return Estimate(np.nan, np.nan, np.nan, len(members), level)
    parts = groups if macro else [slice(None)]
    of = statistic_of_units(x, statistic, None if clusters is None else members, parts, vectorized)
    step = max(1, 4_000_000 // (len(members) * (x[:1].size if vectorized else 1)))  # draws at once

    def resample(drawn: list[NDArray], draws: int, rng: np.random.Generator) -> NDArray:
        done = [of(picks(drawn, len(members), min(step, draws - i), rng)) for i in range(0, draws, step)]
        return np.concatenate(done)

    draws = resample(groups, n_resamples, rng)
    lost = np.isnan(draws)
    if lost.mean() >= RARE:
        return Estimate(np.nan, np.nan, np.nan, len(members), level)
    alone = [resample([group], 200, np.random.default_rng(0)) for group in groups] if len(groups) > 1 else [draws]
    tail = tail_of(level, [len(group) for group in groups], [np.nanvar(part) for part in alone])
    low, high = np.quantile(draws[~lost], [tail, 1 - tail])
    return Estimate(value, float(low), float(high), len(members), level)


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, statistic: Statistic = np.mean, **options: Unpack[Options]
) -> Estimate:
    """Bootstrap of `statistic(a) - statistic(b)` where row i of `a` and `b` belong to the same unit.

    Options and errors are those of `bootstrap`; `a` and `b` need the same shape.
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.shape != b.shape:
        raise ValueError(f"paired arrays need one shape, got {a.shape} and {b.shape}")
    if statistic is np.mean:
        return bootstrap(a - b, **options)
    return bootstrap(np.stack([a, b], -1), lambda both: statistic(both[..., 0]) - statistic(both[..., 1]), **options)


def crossed_bootstrap(values: ArrayLike, statistic: Statistic = np.mean, **options: Unpack[Options]) -> Estimate:
    """Interval over seeds and units at once, where every seed met every unit.

    Units are resampled with all seeds in place, seeds with all units in place, and the distances of the two intervals
    from the estimate are added in squares (Zou and Donner 2008). Of two to five seeds no draw lies outside what was
    seen; so the seeds' part is the t interval of the jackknife's pseudo-values (Tukey 1958), which for a mean over
    seeds are the seeds' own values.

    Args:
        values: (n_seeds, n_units, ...). One seed: the interval is over units alone, as for a method without chance.
        statistic: maps an array like `values` to a number; `vectorized`: (draws, n_seeds, n_units, ...) to (draws,).
        options: those of `bootstrap`; the labels are those of the units.

    Returns:
        The statistic of `values`, its interval, and n = the number of units.

    Raises:
        ValueError: as `bootstrap`, or `values` without the two axes.
    """
    values = np.asarray(values)
    if values.ndim < 2 or len(values) == 0:
        raise ValueError(f"values need the axes (seeds, units), got shape {values.shape}")
    axes = (1, 2) if options.get("vectorized") and statistic is not np.mean else (0, 1)

    def by_units(rows: NDArray) -> Any:
        return statistic(np.moveaxis(rows, *axes))

    rows, k, of = np.moveaxis(values, 1, 0), len(values), np.mean if statistic is np.mean else by_units
    whole = bootstrap(rows, of, **options)  # rows (n_units, n_seeds, ...)
    if k == 1 or whole.undefined:
        return whole
    strata = options.get("strata") if options.get("macro") else None
    left = [value_of(np.delete(rows, i, 1), of, strata, axes == (1, 2)) for i in range(k)]
    pseudo = [k * whole.value - (k - 1) * one for one in left]
    seeds = seed_interval(pseudo, whole.level)
    if seeds.undefined:
        return seeds
    half = (seeds.high - seeds.low) / 2
    low, high = np.hypot(whole.value - whole.low, half), np.hypot(whole.high - whole.value, half)
    return Estimate(whole.value, float(whole.value - low), float(whole.value + high), whole.n, whole.level)


def seed_interval(values: ArrayLike, level: float = 0.95) -> Estimate:
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


def span(estimates: Sequence[Estimate]) -> Estimate:
    """What holds whichever of several estimates is taken: from the lowest end of all to the highest.

    A claim judged by it is decided only where every one of them gives the same answer, so that its verdict does not
    hang on one measure, weight or arm. It is never shorter than one of them, and covers no less.

    Args:
        estimates: at least one, of one level.

    Returns:
        The mean of the values, the lowest and the highest end, and the smallest n. Undefined if one of them is.

    Raises:
        ValueError: no estimate, or estimates of different levels.
    """
    if len({e.level for e in estimates}) != 1:
        raise ValueError(f"a span needs estimates of one level, got {sorted({e.level for e in estimates})}")
    n, level = min(e.n for e in estimates), estimates[0].level
    if any(e.undefined for e in estimates):
        return Estimate(np.nan, np.nan, np.nan, n, level)
    low, high = min(e.low for e in estimates), max(e.high for e in estimates)
    return Estimate(float(np.mean([e.value for e in estimates])), low, high, n, level)


def proportion(successes: int, n: int, level: float = 0.95) -> Estimate:
    """Wilson score interval of a proportion; unlike the bootstrap it stays honest at 0 and 1.

    Raises:
        ValueError: n is not positive, `successes` is outside 0..n (raised by scipy), or one is no whole number.
    """
    if successes != int(successes) or n != int(n):
        raise ValueError(f"whole numbers are needed, got {successes} of {n}")
    interval = scipy_stats.binomtest(int(successes), int(n)).proportion_ci(level, method="wilson")
    return Estimate(successes / n, float(interval.low), float(interval.high), int(n), level)


def auroc(score: ArrayLike, positive: ArrayLike) -> Any:
    """Area under the ROC curve: the share of (positive, negative) pairs in the right order, ties one half.

    Computed from ranks (Mann and Whitney 1947), so it takes infinite scores.

    Args:
        score: (..., n) larger for positives.
        positive: (..., n) or (n,) 1 or True for positives, else 0.

    Returns:
        (...) a float for one row; NaN where a class is absent.

    Raises:
        ValueError: a score is NaN, a label is neither 0 nor 1, or the shapes do not fit.
    """
    score, positive = np.asarray(score, float), np.asarray(positive)
    if np.isnan(score).any():
        raise ValueError(f"{int(np.isnan(score).sum())} of {score.size} scores are NaN: a rank needs a number")
    if not ((positive == 0) | (positive == 1)).all():
        raise ValueError("labels must be 0 or 1 (or False and True)")
    positive = np.broadcast_to(positive.astype(bool), score.shape)
    ones = positive.sum(-1)
    pairs = ones * (score.shape[-1] - ones)
    if score.ndim == 1:  # the same number at a tenth of the time, for the thousands of calls of a bootstrap
        rivals = np.sort(score[~positive])
        wins = sum(rivals.searchsorted(score[positive], side).sum() for side in ("left", "right")) / 2
    else:
        wins = np.where(positive, scipy_stats.rankdata(score, axis=-1), 0).sum(-1) - ones * (ones + 1) / 2
    found = np.divide(wins, pairs, out=np.full(np.shape(pairs), np.nan), where=pairs > 0)
    return found if found.ndim else float(found)
