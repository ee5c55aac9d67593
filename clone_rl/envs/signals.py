"""Exit signals that a scenario may add to the observation, and the fixed bounds that scale them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from clone_rl.envs.trace import HIDDEN

EXTRA_SIGNALS = (*HIDDEN, "margin", "entropy", "depth")
"""What ``Scenario.signals`` may name.

``norm``, ``change`` and ``cosine`` are read with the probe at the current boundary and are 0 where it is not: in prefill,
before layer 1, and so in all of token control. ``margin``, ``entropy`` and ``depth`` tell of the token before, at the depth
where it left, and are 0 before the first token; they are free, as the head ran anyway.
"""

BOUNDS = (3.0, 2.0, 1.0, 10.0, 12.0, 1.0)
"""Each signal is divided by its bound and clipped to [-1, 1]: RMS of 1e-3 to 1e3, a change of twice the norm, a cosine, a
margin of 10 nats (the other token has 1 chance in 22,000), 12 nats (163,000 tokens alike), full depth."""

_READ = len(HIDDEN)
_MARGIN, _ENTROPY = EXTRA_SIGNALS.index("margin"), EXTRA_SIGNALS.index("entropy")


class Signals(NamedTuple):
    """Columns of the traces that extra signals are read from, and ``chosen``: indices into ``EXTRA_SIGNALS``."""

    hidden: NDArray[np.float32]
    margin: NDArray[np.float32]
    entropy: NDArray[np.float32]
    chosen: NDArray[np.int64]


@njit(cache=True)
def _raw(s: Any, rules: Any, signals: Signals, which: int) -> float:
    """Value of a signal before scaling; ``depth`` as a share of the layers."""
    if which < _READ:
        if s.token == 0 or s.layer == 0 or not rules.probe:
            return 0.0
        return float(signals.hidden[s.row + s.token, s.layer - 1, which])
    if s.token == 0:
        return 0.0
    before = s.row + s.token - 1
    if which == _MARGIN:
        return float(signals.margin[before, s.left - 1])
    if which == _ENTROPY:
        return float(signals.entropy[before, s.left - 1])
    return float(s.left / rules.layers)


@njit(cache=True)
def observe_signals(s: Any, rules: Any, signals: Signals, out: Any) -> None:
    """Write the chosen signals of a state into the last scalars of ``out``.

    Args:
        s, rules: Records of ``kernel.STATE`` and ``kernel.RULES``.
        signals: What to read, and which.
        out: (width,) the observation.
    """
    first = len(out) - len(signals.chosen)
    for i in range(len(signals.chosen)):
        which = signals.chosen[i]
        out[first + i] = min(1.0, max(-1.0, _raw(s, rules, signals, which) / BOUNDS[which]))
