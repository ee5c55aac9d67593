import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clone_rl.errors import BadValueError
from clone_rl.evaluation.statistics import ratio_interval, resamples, wilson


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    [(5, 100, 0.0215, 0.1118), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (1, 1, 0.2065, 1.0), (50, 100, 0.4038, 0.5962)],
)
def test_wilson_golden_values(hits, trials, low, high):
    assert wilson(hits, trials) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 10**6), st.floats(0, 1))
def test_wilson_contains_the_rate_and_stays_a_probability(trials, share):
    hits = round(share * trials)
    low, high = wilson(hits, trials)
    assert 0 <= low <= hits / trials + 1e-12
    assert hits / trials - 1e-12 <= high <= 1


@given(st.integers(0, 20), st.integers(20, 1000))
def test_wilson_narrows_with_more_trials(hits, trials):
    (low, high), (more_low, more_high) = wilson(hits, trials), wilson(4 * hits, 4 * trials)
    assert more_high - more_low < high - low


@pytest.mark.parametrize("trials", [0, -1])
def test_wilson_needs_a_trial(trials):
    with pytest.raises(BadValueError, match="trials"):
        wilson(0, trials)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 2**31))
def test_resamples_keep_the_number_of_each_stratum(strata, seed):
    strata = np.array(strata)
    samples = resamples(strata, 7, seed)
    assert samples.shape == (7, len(strata))
    for sample in samples:
        assert (np.bincount(strata[sample], minlength=5) == np.bincount(strata, minlength=5)).all()


def test_resamples_depend_on_the_seed_alone_and_reach_everyone():
    strata = np.arange(40) % 3
    first, again, other = (resamples(strata, 50, seed) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()
    assert set(first.ravel()) == set(range(40))


@given(st.integers(0, 2**31), st.integers(20, 80))
def test_a_ratio_interval_contains_the_estimate(seed, count):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 50, count).astype(float)
    energy = tokens * rng.normal(5, 1, count)
    low, high = ratio_interval(energy, tokens, resamples(np.arange(count) % 2, 500, seed))
    assert low < energy.sum() / tokens.sum() < high


def test_a_ratio_without_spread_has_an_interval_without_width():
    tokens = np.arange(1.0, 11.0)
    interval = ratio_interval(3 * tokens, tokens, resamples(np.zeros(10, int), 100, 0))
    assert interval == pytest.approx((3.0, 3.0))


def test_about_95_percent_of_intervals_cover_the_truth():
    rng, covered = np.random.default_rng(0), 0
    for trial in range(200):
        tokens = rng.integers(5, 20, 60).astype(float)
        energy = tokens * rng.normal(2.0, 0.5, 60)
        low, high = ratio_interval(energy, tokens, resamples(np.zeros(60, int), 200, trial))
        covered += low <= 2.0 <= high
    assert 0.88 <= covered / 200 <= 0.99
