"""How a bootstrap of `helpers.stats` draws: which units, which strata, and the statistic of many draws at once."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats as scipy_stats

Statistic = Callable[[NDArray], Any]


def cluster_members(n: int, clusters: ArrayLike | None) -> list[NDArray]:
    """Row numbers of every unit."""
    if clusters is None:
        return list(np.arange(n)[:, None])
    clusters = np.asarray(clusters)
    if clusters.shape != (n,):
        raise ValueError(f"{n} rows need {n} cluster labels, got shape {clusters.shape}")
    order = np.argsort(clusters, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(np.unique(clusters, return_inverse=True)[1][order])) + 1)


def groups_of(members: list[NDArray], n: int, strata: ArrayLike | None) -> list[NDArray]:
    """Unit numbers of every stratum."""
    groups = [np.arange(len(members))]
    if strata is not None:
        strata = np.asarray(strata)
        if strata.shape != (n,):
            raise ValueError(f"{n} rows need {n} stratum labels, got shape {strata.shape}")
        if any((strata[rows] != strata[rows[0]]).any() for rows in members if len(rows) > 1):
            raise ValueError("a cluster lies in more than one stratum")
        groups = cluster_members(len(members), strata[[rows[0] for rows in members]])
    if min(map(len, groups)) < 2:
        where = " in every stratum" if strata is not None else ""
        raise ValueError(f"a bootstrap needs at least two units{where}, got {min(map(len, groups))}")
    return groups


def value_of(x: NDArray, statistic: Statistic, strata: ArrayLike | None, vectorized: bool) -> float:
    """The statistic of what was seen; with strata their mean."""
    parts = [x] if strata is None else [x[np.asarray(strata) == one] for one in np.unique(np.asarray(strata))]
    return float(np.mean([statistic(part[None])[0] if vectorized else statistic(part) for part in parts]))


def picks(groups: list[NDArray], n_units: int, draws: int, rng: np.random.Generator) -> NDArray:
    """Unit numbers of every draw, (draws, n_units); what lies in none of the groups stays in its place."""
    picks = np.tile(np.arange(n_units), (draws, 1))
    for group in groups:
        picks[:, group] = group[rng.integers(len(group), size=(draws, len(group)))]
    return picks


def statistic_of_units(
    x: NDArray, statistic: Statistic, members: list[NDArray] | None, parts: list, vectorized: bool
) -> Callable[[NDArray], NDArray]:
    """Return the function from draws (draws, n_units) to statistics (draws,), averaged over parts of the units.

    `members`: rows of each unit; None where a row is a unit.
    """
    if statistic is np.mean:  # the common case, without a Python loop
        of_rows = x.reshape(len(x), -1).mean(1)
        sizes = np.array([len(rows) for rows in members] if members else [1] * len(x))
        sums = np.array([of_rows[rows].sum() for rows in members]) if members else of_rows
        return lambda picks: np.mean([sums[picks[:, p]].sum(1) / sizes[picks[:, p]].sum(1) for p in parts], axis=0)
    if vectorized:
        return lambda picks: np.mean([statistic(x[picks[:, p]]) for p in parts], axis=0)

    def of_part(units: NDArray) -> float:
        return statistic(x[np.concatenate([members[i] for i in units]) if members else units])

    def of(picks: NDArray) -> NDArray:
        home, values = np.arange(picks.shape[1]), np.empty((len(parts), len(picks)))
        for value, part in zip(values, parts, strict=True):
            stays = (picks[:, part] == home[part]).all(1)  # nothing drawn: known from one look
            value[stays] = of_part(home[part]) if stays.any() else np.nan
            value[~stays] = [of_part(units) for units in picks[~stays][:, part]]
        return values.mean(0)

    return of


def tail_of(level: float, sizes: ArrayLike, variances: ArrayLike) -> float:
    """Share of the draws beyond each end: as far out as a t interval reaches (Hesterberg 2015).

    A bootstrap of n units has (n - 1) / n of the variance. Several strata: their variances are added up, with the
    degrees of freedom of Welch and Satterthwaite.
    """
    units, seen = np.array(sizes), np.array(variances)
    if not seen.sum() > 0:
        return (1 - level) / 2
    real = seen * units / (units - 1)
    freedom = real.sum() ** 2 / (real**2 / (units - 1)).sum()
    reach = np.sqrt(real.sum() / seen.sum()) * scipy_stats.t.ppf((1 + level) / 2, freedom)
    return float(scipy_stats.norm.cdf(-reach))
