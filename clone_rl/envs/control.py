"""What the single and the vector environments share: the loaded scenario, the spaces and the check of actions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from clone_rl.envs.compiling import compiled
from clone_rl.envs.kernel import World
from clone_rl.envs.prices import Prices
from clone_rl.envs.scenario import Scenario
from clone_rl.envs.trace import TraceSet, load_traces
from clone_rl.envs.world import build_emulators, build_prices, build_world, observation_names
from clone_rl.errors import BadValueError
from clone_rl.hw_emulator.emulator import Emulator
from clone_rl.hw_emulator.workload import Workload, stored_workload


def traced_workload(traces: TraceSet) -> Workload:
    """What the model that a trace set was recorded from asks of the chip.

    Raises:
        BadFileError: The card does not say.
    """
    return stored_workload(traces.card.get("shape"), traces.source)


def workload_of(scenario: Scenario, traces: TraceSet) -> Workload:
    """The model that the chip runs, which is the one that the traces are of.

    Raises:
        BadValueError: The scenario names another one.
    """
    recorded = traced_workload(traces)
    if not scenario.model:
        return recorded
    wanted = Workload.from_config(scenario.model, precision=recorded.precision)
    if wanted.layers != recorded.layers:
        raise BadValueError(
            f"traces {scenario.traces!r} have {recorded.layers} layers and model {scenario.model!r} has {wanted.layers}",
            "record traces of this model with clone-rl record",
        )
    here, there = wanted.as_dict(), recorded.as_dict()
    for name in ("hidden_size", "heads", "kv_heads", "ff_size", "vocab_size", "head_dim", "gated"):
        if here[name] != there[name]:
            raise BadValueError(
                f"traces {scenario.traces!r} are not of {scenario.model!r}: {name} is {there[name]}, not {here[name]}",
                "record traces of this model with clone-rl record",
            )
    return wanted


@compiled
def _first_bad(actions: NDArray[np.int64], heads: tuple[int, ...]) -> int:
    """Flat index of the first action out of range, -1 if there is none."""
    for row in range(actions.shape[0]):
        for head in range(actions.shape[1]):
            if actions[row, head] < 0 or actions[row, head] >= heads[head]:
                return int(row * actions.shape[1] + head)
    return -1


@dataclass(frozen=True)
class Control:
    """A scenario made ready to be stepped, with one of the two action spaces.

    Attributes:
        kind: ``layer`` or ``token``.
        scenario, traces, world: What the kernel runs on.
        emulator: The scenario's own chip with the model.
        emulators: The chips that episodes draw from; the same one, unless the scenario randomises.
    """

    kind: str
    scenario: Scenario
    traces: TraceSet
    emulator: Emulator
    emulators: tuple[Emulator, ...]
    world: World

    @classmethod
    def of(cls, kind: str, scenario: Scenario, traces: TraceSet, split: str) -> Self:
        """Make a scenario ready.

        Raises:
            CloneRLError: The model does not fit the chip, the traces are not of the model, or the split has no documents.
        """
        emulator, emulators = build_emulators(scenario, workload_of(scenario, traces), traces.probe_dots)
        world = build_world(scenario, traces, split, emulator.workload, build_prices(emulators, traces))
        return cls(kind, scenario, traces, emulator, emulators, world)

    def serving(self, kind: str, scenario: Scenario, split: str) -> Self:
        """The same traces for a controller with other overheads, signals or actions, or on another split."""
        if scenario == self.scenario:
            world = build_world(scenario, self.traces, split, self.emulator.workload, self.prices)
            return replace(self, kind=kind, world=world)
        return self.of(kind, scenario, self.traces, split)

    @property
    def prices(self) -> Prices:
        """What everything costs."""
        return self.world.prices

    @property
    def points(self) -> int:
        """Operating points of the chip."""
        return len(self.emulator.points)

    @property
    def groups(self) -> int:
        """Layer groups."""
        return int(self.world.rules[0]["groups"])

    @property
    def heads(self) -> tuple[int, ...]:
        """Choices of each action component."""
        return (self.points + 1,) if self.kind == "layer" else (*[self.points] * self.groups, self.groups)

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
        heads = self.heads
        shape = (rows,) if len(heads) == 1 else (rows, len(heads))
        if array.shape != shape and [n for n in array.shape if n != 1] != [n for n in (rows, len(heads)) if n != 1]:
            raise BadValueError(f"actions have shape {array.shape}", f"{rows} row(s) of {len(heads)} integer(s)")
        found = np.ascontiguousarray(array, np.int64).reshape(rows, len(heads))
        bad = _first_bad(found, heads)
        if bad >= 0:
            row, head = divmod(bad, len(heads))
            where = f"component {head}" if self.kind == "token" else "it"
            raise BadValueError(f"action {array.reshape(found.shape)[row, head]}", f"{where} is one of 0 to {heads[head] - 1}")
        return found


def load_control(
    kind: str, scenario: str | Mapping[str, Any] | Scenario = "default", split: str = "train", **changes: Any
) -> Control:
    """Load a scenario for an environment.

    Args:
        kind: ``layer`` or ``token``.
        scenario: Name, path, plain data or ``Scenario``.
        split: Which documents are replayed.
        **changes: Fields of ``Scenario`` to replace.

    Raises:
        CloneRLError: A name, a file or a value is wrong.
    """
    loaded = Scenario.load(scenario, **changes)
    return Control.of(kind, loaded, load_traces(loaded.traces), split)
