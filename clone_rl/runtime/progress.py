"""Where a request stands by what was decided: all that a step does to the state, but for the time that it takes."""

from __future__ import annotations

from typing import Any

from clone_rl.envs.compiling import inlined
from clone_rl.envs.kernel import may_change, may_exit
from clone_rl.envs.state import EXACT, PROPAGATE


@inlined
def follow(rules: Any, points: int, allowed: int, s: Any, missing: Any, action: int) -> bool:
    """Take a step as ``clone_rl.envs.kernel`` does; whether a token left with it.

    Args:
        rules: Record of ``state.RULES``.
        points: Operating points.
        allowed: Highest point that the die's temperature allows.
        s: Record of ``state.STATE``; token, layer, point, ``left`` and what layers lack are followed.
        missing: (L,) tokens that each layer lacks.
        action: What takes effect: 0 to the top operating point, or one more to exit.
    """
    if action >= points and may_exit(s):
        depth = s.layer
        if rules.kv != PROPAGATE:
            for layer in range(depth, rules.layers):
                missing[layer] += 1
    else:
        s.point = min(action if action < points and may_change(s, rules) else s.point, allowed)
        if rules.kv == EXACT:
            missing[s.layer] = 0
        s.layer += 1
        depth = s.layer
        if depth < rules.layers:
            return False
    s.token, s.layer, s.left = s.token + 1, 0, depth
    return True
