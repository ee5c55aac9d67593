"""What a controller is: a deterministic map from observations to actions, and a price."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Observations = NDArray[np.float32]
Actions = NDArray[np.int64]


@dataclass(frozen=True)
class Decision:
    """What to do at a layer boundary: leave the model here, or run the next layer at an operating point."""

    operating_point: int
    exit: bool = False


class Controller(Protocol):
    """Anything that decides.

    Attributes:
        name: Shown in results.
        kind: ``layer`` or ``token``: which action space it speaks.
        macs: Multiply-accumulates of one decision, charged to its energy account.
        probes: Whether it reads the exit probe, which is then charged at every boundary.
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
