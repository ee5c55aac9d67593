"""Domain randomisation: chips, targets and co-runners that differ from episode to episode, so that one policy serves many."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import numpy as np

from clone_rl.errors import BadValueError, UnknownNameError
from clone_rl.hw_emulator.chip import Chip, check_chip

Range = tuple[float, float]

_MOST_VARIANTS = 1024
_FIXED = ("thermal.ambient_c",)
"""What has a range of its own: a factor on degrees Celsius means nothing."""


@dataclass(frozen=True)
class Randomise:
    """Ranges that episodes draw from, uniformly. A range of (1, 1) leaves things as they are.

    Chips are drawn beforehand, ``variants`` of them, and every episode takes one: each is priced exactly, and a policy
    meets the same ones whatever the seed of its training.

    Attributes:
        variants: Chips to draw; 1 draws one, which is the scenario's own where ``chip`` and ``ambient_c`` have no ranges.
        seed: Of the chips.
        chip: Factors on constants of the chip, by section and key of its file, such as
            ``{"compute.mac_energy_j": (0.8, 1.2)}``; ``operating_points.frequency_hz`` moves all points.
        ambient_c: Ambient temperature, Celsius; None keeps the scenario's.
        targets: Factor on both targets of a service level.
        slowdown, mean_idle, mean_busy: Factors on those fields of the interference.

    Raises:
        BadValueError: A range is not two positive, ascending numbers, or ``variants`` is not 1 to 1,024.
    """

    variants: int = 1
    seed: int = 0
    chip: Mapping[str, Range] = field(default_factory=dict)
    ambient_c: Range | None = None
    targets: Range = (1.0, 1.0)
    slowdown: Range = (1.0, 1.0)
    mean_idle: Range = (1.0, 1.0)
    mean_busy: Range = (1.0, 1.0)

    def __post_init__(self) -> None:
        if not 1 <= self.variants <= _MOST_VARIANTS:
            raise BadValueError(f"randomise.variants is {self.variants}", f"1 to {_MOST_VARIANTS}")
        if self.seed < 0:
            raise BadValueError(f"randomise.seed is {self.seed}", "0 or more")
        for name in ("targets", "slowdown", "mean_idle", "mean_busy"):
            object.__setattr__(self, name, _range(f"randomise.{name}", getattr(self, name)))
        if self.ambient_c is not None:
            object.__setattr__(self, "ambient_c", _range("randomise.ambient_c", self.ambient_c, lowest=-273.15))
        if not isinstance(self.chip, Mapping):
            raise BadValueError(f"randomise.chip is {self.chip!r}", "a table of ranges by constant")
        ranges = {name: _range(f"randomise.chip: {name}", values) for name, values in self.chip.items()}
        object.__setattr__(self, "chip", ranges)
        if self.variants == 1 and (self.chip or self.ambient_c):
            raise BadValueError("randomise moves the chip and variants is 1", "say how many chips to draw, such as 16")


def _range(name: str, values: Any, lowest: float = 0.0) -> Range:
    if isinstance(values, str) or not isinstance(values, Sequence) or len(values) != 2:
        raise BadValueError(f"{name} is {values!r}", "two numbers: from, to")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not lowest < value < math.inf:
            raise BadValueError(f"{name} is {list(values)}", f"finite numbers above {lowest:g}")
    if values[0] > values[1]:
        raise BadValueError(f"{name} is {list(values)}", "from the smaller to the larger")
    return float(values[0]), float(values[1])


def constants(chip: Chip) -> list[str]:
    """Names of the constants of a chip that a factor can move: numbers, by section and key."""
    names = ["operating_points.voltage_v", "operating_points.frequency_hz"]
    for section in fields(chip):
        part = getattr(chip, section.name)
        if not is_dataclass(part):
            continue
        for key in fields(part):
            value = getattr(part, key.name)
            if isinstance(value, float) or (isinstance(value, dict) and key.name != "macs_per_pe"):
                names.append(f"{section.name}.{key.name}")
    return sorted(set(names) - set(_FIXED))


def moved(chip: Chip, factors: Mapping[str, float]) -> Chip:
    """The same chip with constants multiplied.

    Raises:
        UnknownNameError: The chip has no such constant.
        BadFileError: The constants no longer go together.
    """
    known = constants(chip)
    for name, factor in factors.items():
        if name not in known:
            raise UnknownNameError(f"constant of {chip.name}", name, known)
        section, key = name.split(".")
        if section == "operating_points":
            points = [replace(point, **{key: getattr(point, key) * factor}) for point in chip.operating_points]
            chip = replace(chip, operating_points=tuple(points))
            continue
        part = getattr(chip, section)
        value = getattr(part, key)
        value = {name: each * factor for name, each in value.items()} if isinstance(value, dict) else value * factor
        chip = replace(chip, **{section: replace(part, **{key: value})})
    check_chip(chip, f"{chip.name} as moved by randomise")
    return chip


def variants(chip: Chip, ranges: Randomise) -> tuple[Chip, ...]:
    """The chips that episodes draw from.

    Raises:
        UnknownNameError, BadFileError: As ``moved``.
    """
    if not (ranges.chip or ranges.ambient_c):
        return (chip,)
    rng, drawn = np.random.default_rng(ranges.seed), []
    for _ in range(ranges.variants):
        factors = {name: float(rng.uniform(*limits)) for name, limits in sorted(ranges.chip.items())}
        other = chip
        if ranges.ambient_c:
            other = replace(chip, thermal=replace(chip.thermal, ambient_c=float(rng.uniform(*ranges.ambient_c))))
        drawn.append(moved(other, factors))
    return tuple(drawn)
