"""Which scenario a command runs in: the one that is asked for, else the one that its policies were trained in."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clone_rl.envs.scenario import Scenario
from clone_rl.errors import BadValueError

if TYPE_CHECKING:
    from clone_rl.envs.control import Control

DEFAULT = "default"


def scenario_of(options: argparse.Namespace, controllers: Sequence[str]) -> str | Scenario:
    """The scenario of a command with controllers.

    Args:
        options: With ``scenario``, empty where none was given.
        controllers: As they were named.

    Raises:
        BadValueError: Policies of several scenarios, and none was given.
        CloneRLError: A policy's file is damaged, or its scenario is not there any more.
    """
    if options.scenario:
        return str(options.scenario)
    from clone_rl.agents.lut import load_policy
    from clone_rl.agents.origin import trained_scenario
    from clone_rl.agents.policy import names_policy

    found: dict[str, Scenario] = {}
    for name in controllers:
        if names_policy(name) and (scenario := trained_scenario(load_policy(name).card)) is not None:
            found[name] = scenario
    if not found:
        return DEFAULT
    (first, chosen), *others = found.items()
    for name, scenario in others:
        if scenario.self_contained() != chosen.self_contained():
            raise BadValueError(
                f"{first} was trained in scenario {_named(chosen)} and {name} in {_named(scenario)}",
                f"say where to run them: --scenario {chosen.name}, or another",
            )
    if chosen.name != DEFAULT:
        print(f"clone-rl: scenario {_named(chosen)}, in which {first} was trained; --scenario takes another", file=sys.stderr)
    return chosen


def _named(scenario: Scenario) -> str:
    return f"{scenario.name!r} on {scenario.chip_name}"


def control_of(options: argparse.Namespace, controllers: Sequence[str], split: str) -> Control:
    """The scenario of a command made ready, with the chip and the traces that its options name.

    Raises:
        CloneRLError: As ``scenario_of`` and ``load_control``.
    """
    from clone_rl.envs.control import load_control

    changes = {name: value for name in ("chip", "traces") if (value := getattr(options, name, ""))}
    return load_control("layer", scenario_of(options, controllers), split, **changes)
