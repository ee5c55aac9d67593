"""Controllers by name: baselines, shipped policies, policy files."""

from __future__ import annotations

from clone_rl.agents.baselines import Fixed
from clone_rl.agents.controller import Controller
from clone_rl.agents.policy import is_policy_path, load_policy, policy_names
from clone_rl.agents.tune import tune_pace
from clone_rl.envs.control import Control
from clone_rl.envs.scenario import Limits
from clone_rl.errors import PolicyFileError, UnknownNameError

BASELINES = ("performance", "powersave", "pace")


def make_controller(name: str, control: Control, limits: Limits | None = None, seed: int = 0) -> Controller:
    """A controller for a scenario; ``pace`` is tuned on its training split.

    Args:
        name: One of ``BASELINES``, a shipped policy, or the path of a policy file or run folder.
        control: The scenario.
        limits: What tuning has to hold; the scenario's if None.
        seed: Of tuning.

    Raises:
        UnknownNameError: Nothing has this name.
        PolicyFileError: The file is damaged, or made for another number of operating points.
    """
    points = control.points
    if name == "performance":
        return Fixed(name, points - 1)
    if name == "powersave":
        return Fixed(name, 0)
    if name == "pace":
        return tune_pace(control, limits, seed)
    if not is_policy_path(name) and name not in policy_names():
        raise UnknownNameError("controller", name, [*BASELINES, *policy_names()])
    policy = load_policy(name)
    made_for = policy.heads[0] - 1 if policy.kind == "layer" else policy.heads[0]
    if made_for != points:
        raise PolicyFileError(
            f"policy {name!r} was made for {made_for} operating points and {control.emulator.chip.name} has {points}",
            "train one for this chip",
        )
    return policy
