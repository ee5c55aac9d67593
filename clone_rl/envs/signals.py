"""Exit signals that a scenario may add to the observation, and the fixed bounds that scale them."""

from __future__ import annotations

from typing import Any

from clone_rl.envs.compiling import inlined
from clone_rl.envs.kernel import World
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


@inlined
def _raw(s: Any, world: World, which: int) -> float:
    """Value of a signal before scaling; ``depth`` as a share of the layers."""
    rules = world.rules[0]
    if which < _READ:
        if s.token == 0 or s.layer == 0 or not rules.probe:
            return 0.0
        return float(world.hidden[s.row + s.token, s.layer - 1, which])
    if s.token == 0:
        return 0.0
    before = s.row + s.token - 1
    if which == _MARGIN:
        return float(world.margin[before, s.left - 1])
    if which == _ENTROPY:
        return float(world.entropy[before, s.left - 1])
    return float(s.left / rules.layers)


@inlined
def shown(which: int, raw: float) -> float:
    """A signal as it is observed, from its value."""
    return min(1.0, max(-1.0, raw / BOUNDS[which]))


@inlined
def observe_signals(s: Any, world: World, out: Any) -> None:
    """Write the chosen signals of a state into the last scalars of ``out``, an observation."""
    first = len(out) - len(world.chosen)
    for i in range(len(world.chosen)):
        which = world.chosen[i]
        out[first + i] = shown(which, _raw(s, world, which))
