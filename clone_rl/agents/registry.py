"""Controllers by name: baselines, shipped policies, policy files, and code of a user's own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clone_rl.agents.controller import Controller
from clone_rl.agents.fit import Place, check_fit
from clone_rl.agents.heuristics import baselines, find_baseline
from clone_rl.agents.lut import load_policy
from clone_rl.agents.own import load_controller, own_controller
from clone_rl.agents.policy import names_policy, policy_names
from clone_rl.agents.tuned import identity, read_tuned, stored_settings, tuned_path
from clone_rl.agents.tuning import tune
from clone_rl.envs.control import Control
from clone_rl.envs.scenario import Limits
from clone_rl.errors import BadFileError, UnknownNameError
from clone_rl.own_code import FORMS, names_code

BASELINES = tuple(baselines())

QUICK_TRIALS = 20
"""Settings tried for a baseline that has none stored: seconds, where ``clone-rl tune`` tries a hundred."""


def _baseline(name: str, control: Control, limits: Limits, seed: int, tuned: Path | None) -> Controller:
    """A baseline with stored settings, if they are for the very same scenario; otherwise quickly tuned."""
    spec = find_baseline(name)
    if not spec.space(control):
        return spec.make(control, spec.fit(control, limits, seed, {}))
    if tuned:
        read_tuned(tuned)  # asked for by name: it has to be there
    stored = stored_settings(tuned or tuned_path(control.scenario.name), name, identity(control, limits))
    if stored.settings is not None:
        return spec.make(control, stored.settings)
    if tuned and stored.others:
        raise BadFileError(f"{tuned} is for {stored.reason}", "tune for this scenario, or leave --tuned out")
    reason = f"what is stored is for {stored.reason}" if stored.others else stored.reason
    print(f"clone-rl: tuning {name} by {QUICK_TRIALS} trials: {reason} ({control.scenario.name})", file=sys.stderr)
    found = tune(name, control, limits, QUICK_TRIALS, seed)
    if not found.within_constraints:
        print(f"clone-rl: {name} does not hold the limits on the training split", file=sys.stderr)
    return found.controller


def controller(
    name: str | Controller | Callable[..., Any],
    control: Control,
    limits: Limits | None = None,
    seed: int = 0,
    tuned: Path | None = None,
) -> Controller:
    """A controller for a scenario; baselines are tuned on its training split, or were.

    Args:
        name: One of ``BASELINES``, a shipped policy, the path of a policy file, a run folder or a look-up table, or code of
            one's own: ``package.module:Class`` or ``file.py:Class``. Also a controller, or a class or function that makes one,
            see ``clone_rl.agents.own``.
        control: The scenario.
        limits: What tuning has to hold; the scenario's if None.
        seed: Of tuning, where nothing is stored.
        tuned: File of ``clone-rl tune``; what ships with the package if None.

    Raises:
        BadFileError: ``tuned`` is no such file, or was made for another scenario, chip, trace set or other limits.
        UnknownNameError: Nothing has this name.
        PolicyFileError: The file is damaged.
        MisfitError: It was made for another number of operating points, or of layer groups.
        BadValueError: Code of one's own does not give a controller.
        MissingExtraError: A baseline has no stored settings and Optuna is not installed.

    >>> from clone_rl.envs.control import load_control
    >>> control = load_control("layer")
    >>> [controller(name, control).name for name in ("pace", "default")]
    ['pace', 'default']
    """
    if not isinstance(name, str):
        return own_controller(name, control)
    if name in BASELINES:
        return _baseline(name, control, limits or control.scenario.limits, seed, tuned)
    if names_code(name):
        return load_controller(name, control)
    if not names_policy(name):
        raise UnknownNameError("controller", name, [*BASELINES, *policy_names()], f"or give a run folder, or {FORMS}")
    policy = load_policy(name, limits)
    check_fit(policy, name, Place(control.emulator.chip, groups=control.groups))
    return policy
