"""What figures are of: one line above a table, and the same as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

from clone_rl.envs.control import Control
from clone_rl.envs.scenario import Limits

_SHIELD = {False: "no shield", True: "under the shield", None: "without and with the shield"}
_MODE = {"replay": "replayed", "live": "the model in the loop"}


def limits_line(limits: Limits) -> str:
    """Limits in words.

    >>> limits_line(Limits(0.01, 0.02, 0.02))
    'limits: 1 % late, 2 % differ, dNLL 0.02'
    """
    return f"limits: {100 * limits.miss:g} % late, {100 * limits.disagree:g} % differ, dNLL {limits.dnll:g}"


@dataclass(frozen=True)
class Setting:
    """Where, on what and how controllers were judged.

    Attributes:
        scenario, chip, split: Names.
        requests: Of each evaluation seed.
        seeds: Evaluation seeds.
        limits: What was to be held.
        mode: ``replay`` or ``live``.
        shield: Whether there was one; None where each was judged without and with it.
    """

    scenario: str
    chip: str
    split: str
    requests: int
    seeds: int
    limits: Limits
    mode: str = "replay"
    shield: bool | None = False

    @classmethod
    def of(cls, control: Control, split: str, requests: int, seeds: int, limits: Limits, mode: str = "replay") -> Self:
        """Of a scenario that was made ready, without a shield."""
        return cls(control.scenario.name, control.emulator.chip.name, split, requests, seeds, limits, mode)

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def __str__(self) -> str:
        """One line for people.

        >>> print(Setting("hot", "asic28-sram", "test", 200, 4, Limits(0.01, 0.02, 0.02)))
        hot on asic28-sram; test split, 200 requests x 4 seeds; replayed, no shield; limits: 1 % late, 2 % differ, dNLL 0.02
        """
        seeds = f"{self.seeds} seed{'s' if self.seeds != 1 else ''}"
        return (
            f"{self.scenario} on {self.chip}; {self.split} split, {self.requests} requests x {seeds}; "
            f"{_MODE[self.mode]}, {_SHIELD[self.shield]}; {limits_line(self.limits)}"
        )
