"""What a policy sees in its own scenario: what exports are fitted to and compared on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clone_rl.agents.fit import Place, check_fit
from clone_rl.agents.origin import trained_scenario
from clone_rl.agents.policy import Policy
from clone_rl.agents.rollout import charged_for
from clone_rl.envs.control import Control, load_control
from clone_rl.envs.rows import Rows
from clone_rl.errors import BadValueError

_ROWS = 256
DEVIATE = 0.2
"""Share of random actions in every second rollout; the others are the policy's own."""


def own_control(policy: Policy, scenario: str = "", chip: str = "", traces: str = "") -> Control:
    """The scenario that a policy was trained in, as its card says.

    Args:
        policy: Whose card it is.
        scenario, chip, traces: What to take instead; empty takes what the card says.

    Raises:
        BadValueError: The card names no scenario, and none is given.
        MisfitError: The chip has another number of operating points, or the scenario of layer groups.
        CloneRLError: Scenario, chip or traces are not there.
    """
    chosen = scenario or trained_scenario(policy.card)
    if not chosen:
        raise BadValueError(f"policy {policy.name!r} does not say in which scenario it was trained", "give --scenario")
    changes = {name: value for name, value in (("chip", chip), ("traces", traces)) if value}
    control = load_control(policy.kind, chosen, "train", **changes)
    check_fit(policy, policy.name, Place(control.emulator.chip, groups=control.groups))
    return control


def collect(
    control: Control, policy: Policy, split: str, count: int, seed: int, deviate: float = DEVIATE
) -> NDArray[np.float32]:
    """Observations along rollouts of a policy; in every second row of requests some actions are random.

    Args:
        control: The scenario.
        policy: Who decides, charged for its own overheads.
        split: Whose requests are replayed.
        count: Observations.
        seed: Of requests and random actions.
        deviate: Share of random actions, which show states that the policy alone would not reach.

    Returns:
        (count, width) float32; even ones are of rollouts without random actions.
    """
    own = charged_for(control, policy, split)
    rows, rng = Rows(own.world, _ROWS, len(own.heads)), np.random.default_rng(seed)
    chance = np.where(np.arange(_ROWS) % 2, deviate, 0.0)[:, None]
    observation = rows.reset(seed + np.arange(_ROWS), np.zeros(_ROWS, np.int64))
    seen = []
    for _ in range(-(-count // _ROWS)):
        seen.append(observation)
        action = policy.act(observation)
        random = rng.integers(0, own.heads, size=action.shape)
        taken = np.where(rng.random((_ROWS, 1)) < chance, random, action)
        observation = rows.step(taken, autoreset=True).observation
    return np.concatenate(seen)[:count]
