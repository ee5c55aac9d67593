"""Intervals: stratified bootstrap for ratios of sums over requests, Wilson for rates."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clone_rl.errors import BadValueError

_Z = 1.959963984540054  # 97.5 % quantile of the normal distribution

BOOTSTRAP = 2000
"""Samples behind every interval."""


def wilson(hits: float, trials: float) -> tuple[float, float]:
    """95 % Wilson score interval of a rate.

    Raises:
        BadValueError: No trials.

    >>> [round(v, 4) for v in wilson(5, 100)]
    [0.0215, 0.1118]
    """
    if trials <= 0:
        raise BadValueError(f"{trials} trials", "at least one")
    p = hits / trials
    centre = (p + _Z**2 / (2 * trials)) / (1 + _Z**2 / trials)
    half = _Z / (1 + _Z**2 / trials) * math.sqrt(p * (1 - p) / trials + _Z**2 / (4 * trials**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def resamples(strata: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Bootstrap samples of requests that keep the number of each stratum.

    Args:
        strata: (R,) stratum of each request.
        count: Number of samples.
        seed: Of the sampling.

    Returns:
        (count, R) indices of requests.
    """
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(strata == s) for s in np.unique(strata)]
    return np.concatenate([group[rng.integers(0, len(group), (count, len(group)))] for group in groups], 1)


def ratio_interval(
    numerator: NDArray[np.float64], denominator: NDArray[np.float64], samples: NDArray[np.int64]
) -> tuple[float, float]:
    """95 % percentile interval of sum(numerator) / sum(denominator) over bootstrap samples."""
    ratios = numerator[samples].sum(1) / denominator[samples].sum(1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)


class Clusters:
    """Sums of requests by document: draws of one document are not independent, so documents are what is resampled.

    Args:
        documents: (R,) document of each request.
        strata: (R,) request type, which the bootstrap keeps in proportion, where each has two documents or more.
        seed: Of the bootstrap.
    """

    def __init__(self, documents: NDArray[np.int64], strata: NDArray[np.int64], seed: int) -> None:
        _, first, self._which = np.unique(documents, return_index=True, return_inverse=True)
        groups = np.asarray(strata)[first]
        if np.unique(groups, return_counts=True)[1].min() < 2:
            groups = np.zeros_like(groups)  # a type with one document has no spread of its own
        self._samples = resamples(groups, BOOTSTRAP, seed)

    def sums(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """(D,) sums of (R,) values."""
        return np.bincount(self._which, np.asarray(values, np.float64)).astype(np.float64)

    def interval(self, top: NDArray[Any], bottom: NDArray[Any]) -> list[float]:
        """95 % interval of the ratio of the sums of (R,) values."""
        return list(ratio_interval(self.sums(top), self.sums(bottom), self._samples))
