"""What a baseline is before it is tuned: parameters, where a search of them starts, and the controller that they make."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from clone_rl.agents.controller import Controller
from clone_rl.envs.control import Control
from clone_rl.envs.scenario import Limits

Parameters = Mapping[str, float]
"""A point of a search space, by name."""


@dataclass(frozen=True)
class Parameter:
    """One dimension of a search space, both ends included.

    Attributes:
        low, high: Its range.
        whole: Integers only; a switch is 0 or 1.
        log: Searched by ratios, not by differences.
    """

    low: float
    high: float
    whole: bool = False
    log: bool = False


class Baseline(ABC):
    """A baseline of ``clone-rl tune``.

    Attributes:
        name: What it is called everywhere.
        source: Paper or kernel document that it follows.
    """

    name: ClassVar[str]
    source: ClassVar[str]

    def space(self, control: Control) -> dict[str, Parameter]:  # noqa: ARG002
        """What a search may change; empty where there is nothing to tune."""
        return {}

    def start(self, control: Control, limits: Limits, seed: int) -> dict[str, float]:  # noqa: ARG002
        """Where the search starts: the rule as its source has it, with bars read off the training traces."""
        return {}

    def fit(self, control: Control, limits: Limits, seed: int, chosen: Parameters) -> dict[str, Any]:  # noqa: ARG002
        """Settings, as plain data, that parameters come to on the training split: tables and networks are fitted here."""
        return dict(chosen)

    @abstractmethod
    def make(self, control: Control, settings: Mapping[str, Any]) -> Controller:
        """The controller that settings describe, for the scenario's chip and model."""


def pacing_space(points: int) -> dict[str, Parameter]:
    """Parameters of ``pace.PaceRule``'s pacing for a chip with so many operating points."""
    return {"boost": Parameter(0, min(2, points - 1), whole=True), "floor": Parameter(0, points - 1, whole=True)}
