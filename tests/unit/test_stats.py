"""Intervals: known answers, coverage, and inputs that must be refused."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from helpers.stats import Estimate, bootstrap, expected_calibration_error, paired_bootstrap, proportion, seed_interval


def test_bootstrap_of_a_mean_is_close_to_the_normal_interval():
    x = np.random.default_rng(1).normal(3.0, 2.0, 400)
    estimate = bootstrap(x, rng=np.random.default_rng(2))
    half = 1.96 * x.std(ddof=1) / 20
    assert estimate.value == pytest.approx(x.mean())
    assert estimate.low == pytest.approx(x.mean() - half, abs=0.03)
    assert estimate.high == pytest.approx(x.mean() + half, abs=0.03)
    assert estimate.n == 400


def test_bootstrap_interval_covers_the_truth_about_95_percent_of_the_time():
    rng = np.random.default_rng(3)
    hits = sum(
        (e := bootstrap(rng.exponential(1.0, 60), n_resamples=400, rng=rng)).low <= 1.0 <= e.high for _ in range(300)
    )
    assert 0.88 <= hits / 300 <= 0.98


def test_clustered_bootstrap_resamples_whole_clusters():
    """Ten copies of every value must not narrow the interval."""
    values = np.random.default_rng(4).normal(size=40)
    alone = bootstrap(values, rng=np.random.default_rng(5))
    copied = bootstrap(np.repeat(values, 10), clusters=np.repeat(np.arange(40), 10), rng=np.random.default_rng(5))
    naive = bootstrap(np.repeat(values, 10), rng=np.random.default_rng(5))
    assert copied.n == 40
    assert copied.high - copied.low == pytest.approx(alone.high - alone.low, rel=0.1)
    assert naive.high - naive.low < 0.5 * (alone.high - alone.low)


def test_clusters_need_not_be_sorted_or_equal_in_size():
    x, labels = np.array([1.0, 10.0, 2.0, 20.0, 3.0]), np.array(["b", "a", "b", "a", "b"])
    draws = {bootstrap(x, np.sum, clusters=labels, n_resamples=200).low, bootstrap(x, np.sum, clusters=labels).high}
    assert draws <= {12.0, 36.0, 60.0}  # two b's, one of each, two a's


def test_mean_of_a_table_runs_over_all_cells():
    x = np.arange(12.0).reshape(4, 3)
    assert bootstrap(x).value == pytest.approx(5.5)


def test_paired_bootstrap_uses_the_pairing():
    rng = np.random.default_rng(6)
    base = rng.normal(0, 10, 50)
    estimate = paired_bootstrap(base + 1 + rng.normal(0, 0.1, 50), base)
    assert estimate.low > 0.9 and estimate.high < 1.1


def test_paired_bootstrap_takes_any_statistic():
    a, b = np.arange(20.0) + 5, np.arange(20.0)
    assert paired_bootstrap(a, b, np.median).value == 5.0


def test_seed_interval_is_the_t_interval():
    values = [1.0, 2.0, 4.0]
    low, high = scipy_stats.t.interval(0.95, 2, loc=np.mean(values), scale=scipy_stats.sem(values))
    estimate = seed_interval(values)
    assert (estimate.low, estimate.high) == pytest.approx((low, high))


def test_proportion_is_not_certain_at_the_edge():
    assert proportion(20, 20).low == pytest.approx(0.8389, abs=1e-3)


def test_expected_calibration_error_by_hand():
    # two bins: 0.25 vs 0.5 (2 items), 0.75 vs 1.0 (2 items)
    assert expected_calibration_error([0.25, 0.25, 0.75, 0.75], [0, 1, 1, 1], bins=2) == pytest.approx(0.25)
    assert expected_calibration_error([1.0], [1]) == 0.0


@pytest.mark.parametrize(
    "call",
    [
        lambda: bootstrap([1.0]),
        lambda: bootstrap([1.0, 2.0], clusters=[0]),
        lambda: bootstrap([1.0, 2.0], clusters=[0, 0]),
        lambda: paired_bootstrap([1.0, 2.0], [1.0]),
        lambda: seed_interval([1.0]),
        lambda: Estimate(float("nan"), 0.0, 1.0, 3),
        lambda: Estimate(0.5, 1.0, 0.0, 3),
    ],
)
def test_what_is_no_sample_is_refused(call):
    with pytest.raises(ValueError):
        call()
