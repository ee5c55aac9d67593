"""What the single and the vector environments share: the loaded scenario, the spaces and the check of actions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from clone_rl.envs.kernel import World
from clone_rl.envs.scenario import Scenario, load_scenario
from clone_rl.envs.trace import TraceSet, load_traces
from clone_rl.envs.world import build_emulator, build_world, observation_names
from clone_rl.errors import BadValueError
from clone_rl.hw_emulator.emulator import Emulator
from clone_rl.hw_emulator.workload import Workload, stored_workload

DEFAULT_GROUPS = 5
"""Layer groups of token control; the cost of a PPO update grows with the number of heads."""


def traced_workload(traces: TraceSet) -> Workload:
    """What the model that a trace set was recorded from asks of the chip.

    Raises:
        BadFileError: The card does not say.
    """
    return stored_workload(traces.card.get("shape"), traces.source)


@dataclass(frozen=True)
class Control:
    """A scenario made ready to be stepped, with one of the two action spaces.

    Attributes:
        kind: ``layer`` or ``token``.
        scenario, traces, emulator, world: What the kernel runs on.
        groups: Layer groups of token control.
    """

    kind: str
    scenario: Scenario
    traces: TraceSet
    emulator: Emulator
    world: World
    groups: int

    @property
    def heads(self) -> tuple[int, ...]:
        """Choices of each action component."""
        points = len(self.world.points)
        return (points + 1,) if self.kind == "layer" else (*[points] * self.groups, self.groups)

    @property
    def action_space(self) -> spaces.Space[Any]:
        """``Discrete(points + 1)`` or ``MultiDiscrete([points] * groups + [groups])``."""
        return spaces.Discrete(self.heads[0]) if self.kind == "layer" else spaces.MultiDiscrete(list(self.heads))

    @property
    def observation_space(self) -> spaces.Box:
        """16 scalars in [-1, 1], and the scenario's extra signals."""
        return spaces.Box(-1.0, 1.0, (len(observation_names(self.scenario)),), np.float32)

    def check(self, actions: Any, rows: int) -> NDArray[np.int64]:
        """Actions as (rows, heads) int64.

        Raises:
            BadValueError: Wrong shape or type, or out of range, with the first offender named.
        """
        try:
            array = np.asarray(actions)
        except ValueError:
            raise BadValueError(f"action {actions!r}", "rows have one length") from None
        if array.dtype.kind not in "iu":
            raise BadValueError(f"action {actions!r} has type {array.dtype}", "actions are integers")
        shape = tuple(n for n in (rows, len(self.heads)) if n > 1)
        if tuple(n for n in array.shape if n != 1) != shape:
            raise BadValueError(f"actions have shape {array.shape}", f"{rows} row(s) of {len(self.heads)} integer(s)")
        array = array.astype(np.int64).reshape(rows, len(self.heads))
        bad = (array < 0) | (array >= self.heads)
        if bad.any():
            row, head = np.argwhere(bad)[0]
            where = f"component {head}" if self.kind == "token" else "it"
            raise BadValueError(f"action {array[row, head]}", f"{where} is one of 0 to {self.heads[head] - 1}")
        return array


def load_control(
    kind: str, scenario: str = "default", split: str = "train", groups: int | None = None, **changes: Any
) -> Control:
    """Load a scenario for an environment.

    Args:
        kind: ``layer`` or ``token``.
        scenario: Name or path.
        split: Which documents are replayed.
        groups: Layer groups of token control, 1 to 8 and at most the layers of the model; None takes ``DEFAULT_GROUPS``, or as
            many as there are layers.
        **changes: Fields of ``Scenario`` to replace.

    Raises:
        CloneRLError: A name, a file or a value is wrong.
    """
    loaded = load_scenario(scenario, **changes)
    traces = load_traces(loaded.traces)
    workload = traced_workload(traces)
    groups = min(DEFAULT_GROUPS, workload.layers) if groups is None else groups
    if not 1 <= groups <= min(8, workload.layers):
        raise BadValueError(f"{groups} layer groups", f"1 to {min(8, workload.layers)}")
    emulator = build_emulator(loaded, workload, traces.probe_dots)
    return Control(kind, loaded, traces, emulator, build_world(loaded, traces, split, emulator), groups)
