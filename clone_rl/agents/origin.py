"""What the card of a policy says of where it was trained: the scenario with its chip, and the scale of what it observes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from clone_rl.envs.scenario import Scenario, TargetScale
from clone_rl.errors import CloneRLError

TRAINED_IN, SCALE = "trained_in", "scale"
"""Keys of a card."""


def origin_of(scenario: Scenario) -> dict[str, Any]:
    """The part of a card that says where a policy was trained, whatever becomes of the scenario's files."""
    return {TRAINED_IN: scenario.self_contained().as_dict(), SCALE: asdict(scenario.scale)}


def trained_scenario(card: Mapping[str, Any]) -> Scenario | None:
    """The scenario of a policy's card; None where it names none.

    Raises:
        CloneRLError: It is named and is not there, or what the card holds is damaged. Cards of earlier versions name files.
    """
    if isinstance(table := card.get(TRAINED_IN), Mapping):
        return Scenario.parse(table, f"card of policy {card.get('name', 'without a name')}")
    if not (name := card.get("scenario")):
        return None
    config = card.get("config")
    config = config if isinstance(config, Mapping) else {}
    return Scenario.load(str(name), **{key: config[key] for key in ("chip", "traces") if config.get(key)})


def trained_scale(card: Mapping[str, Any]) -> TargetScale | None:
    """Targets that a policy was trained to observe as 1; None where its card does not tell.

    Raises:
        BadValueError: What the card holds is no scale.
    """
    if isinstance(scale := card.get(SCALE), Mapping):
        return TargetScale(scale.get("ttft_s", 0.0), scale.get("tpot_s", 0.0))
    try:
        scenario = trained_scenario(card)
    except CloneRLError:
        return None
    return scenario.scale if scenario else None
