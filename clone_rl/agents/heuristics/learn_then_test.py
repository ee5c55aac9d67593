"""Learn then Test: an exit bar whose disagreement holds a limit with a stated probability.

Fixed-sequence testing (Angelopoulos et al., "Learn then Test", arXiv 2110.01052): bars are tested from the safest on, each
at the full level, until the first whose risk may be too high; all before it hold the limit at once with probability
1 - level, whatever is then chosen among them. CALM (arXiv 2207.07061) calibrates its bar so.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from clone_rl.agents.heuristics.exit_bars import Decoded
from clone_rl.envs.scenario import Limits
from clone_rl.envs.trace import ODDS_SCALE

LEVEL = 0.05
"""Probability that the bar breaks the limit after all; CALM's epsilon in its experiments."""

ODDS = np.linspace(6.5, -1.0, 151)
"""Bars on the probe's log-odds of agreement, from the safest (never passed: 6 is the most that is shown) on."""


class Certificate(NamedTuple):
    """A calibrated bar.

    Attributes:
        odds: Bar on the probe's log-odds of agreement.
        certified: How many bars of ``ODDS`` were certified; 0 where there are too few requests even for full depth.
        risk: Mean over requests of the share of tokens that disagree, in calibration.
        p_value: Of the hypothesis that its risk exceeds the limit.
    """

    odds: float
    certified: int
    risk: float
    p_value: float


def hoeffding_bentkus(mean: float, number: int, limit: float) -> float:
    """p-value of "the true mean is above ``limit``" for the mean of so many independent losses in [0, 1].

    The smaller of Hoeffding's (with the relative entropy) and Bentkus' bound (Bates et al., arXiv 2101.02703, proposition 4).

    >>> round(hoeffding_bentkus(0.0, 100, 0.05), 4)  # 0.95 ** 100
    0.0059
    """
    if limit >= 1.0:
        return 0.0
    if limit <= 0.0 or mean >= limit:
        return 1.0
    kept = (1.0 - mean) * math.log((1.0 - mean) / (1.0 - limit))
    lost = mean * math.log(mean / limit) if mean > 0.0 else 0.0
    hoeffding = math.exp(-number * (kept + lost))
    most = math.ceil(number * mean - 1e-9)
    ways = [
        math.lgamma(number + 1) - math.lgamma(k + 1) - math.lgamma(number - k + 1)
        + k * math.log(limit) + (number - k) * math.log1p(-limit)
        for k in range(most + 1)
    ]  # fmt: skip
    return min(1.0, hoeffding, math.e * math.fsum(map(math.exp, ways)))


def calibrate(decoded: Decoded, limits: Limits, level: float = LEVEL) -> Certificate:
    """The lowest certified bar, of those whose dNLL also stays within its limit by a standard error.

    What is certified is the disagreement per request, averaged over requests that are exchangeable with these. dNLL has no
    bound, and so no such guarantee; choosing among certified bars costs none of the first one.

    Args:
        decoded: Calibration requests.
        limits: On disagreement and dNLL.
        level: Probability with which the guarantee may fail.
    """
    best, certified = Certificate(float(ODDS[0]), 0, 0.0, 1.0), 0
    for odds in ODDS:
        depth = decoded.first(decoded.shown >= odds / ODDS_SCALE)
        losses = decoded.per_document(decoded.wrong, depth) / decoded.emitted
        risk = float(losses.mean())
        p_value = hoeffding_bentkus(risk, len(losses), limits.disagree)
        if p_value > level:
            break
        certified += 1
        if decoded.upper(decoded.per_document(decoded.nats, depth)) <= limits.dnll:
            best = Certificate(float(odds), certified, risk, p_value)
    return best._replace(certified=certified)
