"""What a controller is: a deterministic map from what a request has shown so far to actions, and a price."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from clone_rl.agents.rule import act_on

Observations = NDArray[np.float32]
Actions = NDArray[np.int64]


@dataclass(frozen=True)
class Decision:
    """What to do at a layer boundary: leave the model here, or run the next layer at an operating point."""

    operating_point: int
    exit: bool = False


class LayerCost(NamedTuple):
    """What a decision and the step that it chose took, as a host measured it or an emulator says.

    Attributes:
        latency_s: Seconds from the decision to the next layer boundary.
        energy_j: Joules.
    """

    latency_s: float
    energy_j: float = 0.0


class Controller(Protocol):
    """Anything that decides from what it sees now.

    Attributes:
        name: Shown in results.
        kind: ``layer`` or ``token``: which action space it speaks.
        macs: Multiply-accumulates of one decision, charged to its energy account.
        probes: Whether it reads the exit probe, which is then charged at every boundary.

    It may have ``signals`` and ``scale`` as well: the extra scalars, and the targets observed as 1, that it was made for. It
    observes by them in every scenario, else by the scenario's.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def kind(self) -> str: ...  # noqa: D102

    @property
    def macs(self) -> int: ...  # noqa: D102

    @property
    def probes(self) -> bool: ...  # noqa: D102

    def act(self, observations: Observations) -> Actions:
        """Actions (N, heads) for observations (N, 16)."""
        ...

    def describe(self) -> dict[str, Any]:
        """Settings that reproduce the controller, as plain data."""
        ...


class RuleController:
    """A controller whose rule is compiled, as everything that ships is: it is evaluated without leaving compiled code."""

    name: str

    @property
    def rule(self) -> Any:
        """Named tuple of a class that was registered with ``clone_rl.agents.rule.rule``."""
        raise NotImplementedError

    @property
    def components(self) -> int:
        """Components of an action: 1 in layer control."""
        return 1

    def memory(self, rows: int) -> NDArray[np.float64]:
        """(rows, M) what the rule keeps during a request, as it is at the start, with what it needs to compute in."""
        return np.zeros((rows, 1))

    def act(self, observations: Observations, memory: NDArray[np.float64] | None = None) -> Actions:
        """Actions (N, components) for observations (N, width).

        Args:
            observations: One row for each request.
            memory: (N, M) of the same requests so far, changed in place; None where they begin.
        """
        memory = self.memory(len(observations)) if memory is None else memory
        return act_on(self.rule, observations, memory, self.components)
