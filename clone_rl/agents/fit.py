"""Whether a controller fits where it is to be used: chip, model and scenario. Asked before a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from clone_rl.agents.origin import trained_scenario
from clone_rl.agents.policy import policy_cards
from clone_rl.envs.scenario import Scenario, scenario_names
from clone_rl.errors import MisfitError
from clone_rl.hw_emulator.chip import Chip

_BASELINE = "a baseline such as 'performance'"
"""Suits any chip and model, and needs no probe."""

ANY_MODEL = "--any-model"
"""Option of the command line to try a policy on another model."""

_ANYWAY = "its decisions are about fractions, so it can be tried on others: "


@dataclass(frozen=True)
class Place:
    """Where a controller is to be used.

    Attributes:
        chip: What it controls.
        model, sha256: The model that runs, as messages call it, and its hash; an empty hash is not known, None asks for none.
        groups: Layer groups, which token control has to have as many of; None asks for none.
        scenario: Which it has to be trained on; None leaves that open.
        kind: ``layer`` where every boundary is asked; empty takes both kinds.
    """

    chip: Chip
    model: str = ""
    sha256: str | None = None
    groups: int | None = None
    scenario: Scenario | None = None
    kind: str = ""


def check_fit(controller: Any, name: str, place: Place, anyway: str = "", strict: bool = True) -> list[str]:
    """Refuse a controller for what it was not made for.

    Another number of operating points or layer groups cannot be run. Another model or scenario can, and is refused unless
    ``strict`` is false. Another chip with as many points is told of. A controller that does not say where it comes from fits.

    Args:
        controller: Any; a policy has a ``card``.
        name: As it was asked for.
        place: Where it is to be used.
        anyway: What to write to try it all the same, for the hint.
        strict: Whether another model or scenario is refused.

    Returns:
        What differs and can be run, a sentence each.

    Raises:
        MisfitError: It does not fit.
    """
    card = getattr(controller, "card", None) or {}
    _check_size(controller, name, card, place)
    found = []
    for what, hint in (*_other_model(name, card, place), *_other_scenario(name, card, place)):
        if strict:
            raise MisfitError(what, f"{hint}; {_ANYWAY}{anyway}" if anyway else hint)
        found.append(what)
    if (own := str(card.get("chip") or place.chip.name)) != place.chip.name:
        shipped = _shipped_for(place)
        others = f"; for that there is {', '.join(shipped)}" if shipped else ""
        found.append(f"controller {name!r} was trained for chip {own}, not {place.chip.name}{others}")
    return found


def _check_size(controller: Any, name: str, card: Mapping[str, Any], place: Place) -> None:
    """Refuse another kind of control, another number of operating points, or of layer groups."""
    if place.kind and (kind := getattr(controller, "kind", place.kind)) != place.kind:
        raise MisfitError(
            f"controller {name!r} decides per {kind}", f"here every {place.kind} is decided: use a LayerControl policy"
        )
    heads: Sequence[int] = getattr(controller, "heads", ())
    points = len(place.chip.operating_points)
    own = heads[0] - (controller.kind == "layer") if heads else getattr(controller, "points", points)
    if own != points:
        raise MisfitError(
            f"controller {name!r} was made for {own} operating points and {place.chip.name} has {points}",
            f"train one for this chip{_scenarios_for(place.chip)}, or take {_any_of(_shipped_for(place), _BASELINE)}"
            + (f"; this one is for --chip {card['chip']}" if card.get("chip") else ""),
        )
    groups = len(heads) - 1
    if groups > 0 and place.groups not in (None, groups):
        raise MisfitError(
            f"controller {name!r} was made for {groups} layer groups and there are {place.groups}",
            "take the scenario that it was trained in",
        )


def _other_model(name: str, card: Mapping[str, Any], place: Place) -> list[tuple[str, str]]:
    """Message and hint where the model is another one."""
    own = str(card.get("model_sha256") or "")
    if place.sha256 is None or not own or own == place.sha256:
        return []
    what = f"controller {name!r} was trained on another model than {place.model}"
    hashes = f"sha256 {own[:12]}, not {place.sha256[:12] or 'known'}"
    return [(f"{what}: {hashes}", f"train one on traces of this model, or take {_any_of(_shipped_for(place), _BASELINE)}")]


def _other_scenario(name: str, card: Mapping[str, Any], place: Place) -> list[tuple[str, str]]:
    """Message and hint where the scenario is another one."""
    if place.scenario is None or (own := trained_scenario(card)) is None:
        return []
    here, there = asdict(_whole(place.scenario)), asdict(_whole(own))
    if not (differing := [what for what in here if here[what] != there[what]]):
        return []
    what = f"policy {name!r} was trained on scenario {own.name!r}, not this {place.scenario.name!r}"
    if place.scenario.name == own.name:
        what += f" with another {' and '.join(differing)}"
    return [(what, f"take scenario {own.name!r} as it is")]


def _whole(scenario: Scenario) -> Scenario:
    """The same with its chip in the place of its name."""
    return replace(scenario.self_contained(), chip=scenario.load_chip(), regulator="", ambient_c=None)


def _shipped_for(place: Place) -> list[str]:
    """Shipped policies for a chip, and for a model where one is given."""
    return [
        repr(name)
        for name, card in policy_cards().items()
        if card.get("chip") == place.chip.name and (place.sha256 is None or card.get("model_sha256") == place.sha256)
    ]


def _any_of(names: Sequence[str], other: str) -> str:
    """Names to choose from, and what else there is."""
    return f"{', '.join(names)} or {other}" if names else other


def _scenarios_for(chip: Chip) -> str:
    """Which shipped scenarios have targets for a chip; where none has, that one is to be written."""
    chips = {name: Scenario.load(name).load_chip().name for name in scenario_names()}
    if names := [name for name, own in chips.items() if own == chip.name]:
        return f" (scenario {', '.join(names)})"
    return f" in a scenario with targets for it (the shipped ones are for {', '.join(sorted(set(chips.values())))})"
