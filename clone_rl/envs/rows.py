"""Many requests side by side: the kernel over the rows of a state array."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
from numba import typeof, types
from numba.experimental import structref
from numpy.typing import NDArray

from clone_rl.code_cache import kept
from clone_rl.envs.compiling import compiled, entry, inlined
from clone_rl.envs.figures import FIGURES, KPIS, write_figures, write_kpis
from clone_rl.envs.kernel import World, hold, layer_step, reset, token_step
from clone_rl.envs.observation import N_OBS, observe
from clone_rl.envs.pointer import Pointer, PointerType
from clone_rl.envs.row_records import RowRecords
from clone_rl.envs.state import AMOUNTS, PROPAGATE, STATE

_MACHINE = ["world", "state", "missing", "pending", "ended", "last_observation", "figures", "kpis"]


@structref.register
class _MachineType(PointerType):
    """Numba's type of a ``Machine``."""


class Machine(Pointer):
    """World and rows as compiled code holds them: one pointer to pass, where arrays would be taken apart at every call.

    Attributes:
        world: Constants.
        state: (N,) records of ``STATE``.
        missing: (N, L) tokens whose keys and values each layer lacks; (N, 1) where none can.
        pending: (N, 2, heads) the action in force and the one that a decision delay holds back, of token control.
        ended, last_observation, figures, kpis: (N, ...) of which the first K tell of the episodes that the last step ended.
    """


structref.define_proxy(Machine, _MachineType, _MACHINE)


class Outcome(NamedTuple):
    """What one step of N rows gave; every array is fresh.

    Attributes:
        observation: (N, width) float32, of the new episode where a row was reset.
        reward: (N,) float64.
        terminated, truncated: (N,) bool; true of a row that is over until it is reset.
        ended: (N,) bool, whether this step ended the episode.
        amounts: (N, len(AMOUNTS)) float64, see ``state.AMOUNTS``.
        episodes: How many episodes this step ended.
    """

    observation: NDArray[np.float32]
    reward: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    ended: NDArray[np.bool_]
    amounts: NDArray[np.float64]
    episodes: int


class Finals(NamedTuple):
    """The K episodes that a step ended.

    Attributes:
        rows: (K,) theirs, ascending.
        last_observation: (K, width) float32, of which there is no other copy where the next episode has begun.
        figures, kpis: Records of ``FIGURES`` and ``KPIS`` of those rows.
    """

    rows: NDArray[np.int64]
    last_observation: NDArray[np.float32]
    figures: RowRecords
    kpis: RowRecords


@inlined
def begin(s: Any, missing: Any, pending: Any, world: World, seed: int, episode: int, document: int, observation: Any) -> None:
    """Start the row's next request and observe it."""
    reset(s, missing, world, seed, episode, document)
    hold(pending, world.prices.at.shape[1])
    observe(s, missing, world, observation)


@compiled
def _reset_all(
    state: Any, missing: Any, pending: Any, world: World, seeds: Any, episodes: Any, documents: Any, chosen: Any, out: Any
) -> None:
    for i in range(len(state)):
        if chosen[i]:
            begin(state[i], missing[i], pending[i], world, seeds[i], episodes[i], documents[i], out[i])
        else:
            observe(state[i], missing[i], world, out[i])


@inlined
def step_row(s: Any, missing: Any, pending: Any, world: World, action: Any, amounts: Any) -> float:
    """One decision of the row, of layer control where ``action`` has one component, else of token control."""
    if len(action) == 1:
        return layer_step(s, missing, world, action[0], amounts)
    return token_step(s, missing, world, action, pending, amounts)


@compiled
def _tell(s: Any, reference_j: float, observation: Any, last_observation: Any, figures: Any, kpis: Any) -> None:
    write_figures(s, reference_j, figures)
    write_kpis(s, reference_j, kpis)
    for j in range(len(observation)):
        last_observation[j] = observation[j]


@compiled
def _step_all(
    state: Any, missing: Any, pending: Any, world: World, actions: Any, limit: int, autoreset: bool,
    observation: Any, reward: Any, ends: Any, amounts: Any,
    ended: Any, last_observation: Any, figures: Any, kpis: Any,
) -> int:  # fmt: skip
    count = 0
    for i in range(len(state)):
        s = state[i]
        over = s.done == 1 or (limit > 0 and s.step >= limit)
        if over:
            reward[i] = 0.0
            for j in range(amounts.shape[1]):
                amounts[i, j] = 0.0
        else:
            reward[i] = step_row(s, missing[i], pending[i], world, actions[i], amounts[i])
        terminated = s.done == 1
        truncated = not terminated and limit > 0 and s.step >= limit
        observe(s, missing[i], world, observation[i])
        ends[0, i], ends[1, i], ends[2, i] = terminated, truncated, (terminated or truncated) and not over
        if ends[2, i]:
            ended[count] = i
            _tell(s, world.prices.reference_j[s.variant], observation[i], last_observation[count], figures[count], kpis[count])
            count += 1
            if autoreset:
                begin(s, missing[i], pending[i], world, s.seed, s.episode + 1, -1, observation[i])
    return count


@compiled
def _step_first(state: Any, missing: Any, world: World, action: int, observation: Any, amounts: Any) -> float:
    reward = layer_step(state[0], missing[0], world, action, amounts)
    observe(state[0], missing[0], world, observation)
    return reward


@compiled
def _write_all(state: Any, reference_j: Any, figures: Any, kpis: Any) -> None:
    for i in range(len(state)):
        write_figures(state[i], reference_j[state[i].variant], figures[i])
        write_kpis(state[i], reference_j[state[i].variant], kpis[i])


# What a machine holds is taken apart here, once a call.


@kept
def _reset_rows(machine: Any, seeds: Any, episodes: Any, documents: Any, chosen: Any, out: Any) -> None:
    _reset_all(machine.state, machine.missing, machine.pending, machine.world, seeds, episodes, documents, chosen, out)


@kept
def _step_rows(
    machine: Any, actions: Any, limit: int, autoreset: bool, observation: Any, reward: Any, ends: Any, amounts: Any
) -> int:
    return _step_all(
        machine.state, machine.missing, machine.pending, machine.world, actions, limit, autoreset,
        observation, reward, ends, amounts, machine.ended, machine.last_observation, machine.figures, machine.kpis,
    )  # fmt: skip


@kept
def _step_one(machine: Any, action: int, observation: Any, amounts: Any) -> Any:
    reward = _step_first(machine.state, machine.missing, machine.world, action, observation, amounts)
    return reward, machine.state[0].done == 1


class Rows:
    """N requests in flight.

    Args:
        world: Constants.
        count: Number of rows, >= 1.
        action_width: 1 for layer control, layer groups + 1 for token control.

    Attributes:
        state: (N,) records of ``STATE``; the truth about every row.
        missing, pending: (N, ...) what else a row holds, see ``Machine``.
        width: Scalars of an observation: 16 and the scenario's extra signals.
        machine: What compiled loops take.
    """

    def __init__(self, world: World, count: int, action_width: int = 1) -> None:
        self.world, self.count = world, count
        self.width = N_OBS + len(world.chosen)
        self.state = np.zeros(count, STATE)
        rules = world.rules[0]
        self.missing = np.zeros((count, 1 if rules["kv"] == PROPAGATE else rules["layers"]), np.int64)
        self.pending = np.zeros((count, 2, max(action_width, 2)), np.int64)
        ended, last = np.zeros(count, np.int64), np.zeros((count, self.width), np.float32)
        self._finals: tuple[NDArray[Any], ...] = ended, last, np.zeros(count, FIGURES), np.zeros(count, KPIS)
        self.machine = self._machine()

    def _machine(self) -> Any:
        return Machine(self.world, self.state, self.missing, self.pending, *self._finals)

    def __getstate__(self) -> dict[str, Any]:
        made = "machine", "_advance", "_advance_first"  # pointers of this process
        return {name: value for name, value in vars(self).items() if name not in made}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.machine = self._machine()

    @cached_property
    def _advance(self) -> Callable[..., int]:
        real, truths = types.float64, types.boolean[:, ::1]
        arrays = types.float32[:, ::1], real[::1], truths, real[:, ::1]
        signature = typeof(self.machine), types.int64[:, ::1], types.int64, types.boolean, *arrays
        return partial(entry(_step_rows, *signature), self.machine)

    @cached_property
    def _advance_first(self) -> Callable[..., Any]:
        signature = typeof(self.machine), types.int64, types.float32[::1], types.float64[::1]
        return partial(entry(_step_one, *signature), self.machine)

    def reset(
        self,
        seeds: NDArray[np.int64],
        episodes: NDArray[np.int64],
        documents: NDArray[np.int64] | None = None,
        chosen: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.float32]:
        """Start one request per row.

        Args:
            seeds, episodes: (N,) key of each row's randomness.
            documents: (N,) which document to replay; negative or None draws one of the split.
            chosen: (N,) which rows to start; the others go on. None is all of them.

        Returns:
            (N, width) observations.
        """
        observation = np.empty((self.count, self.width), np.float32)
        documents = np.full(self.count, -1) if documents is None else documents
        chosen = np.ones(self.count, np.bool_) if chosen is None else chosen
        _reset_rows(self.machine, seeds, episodes, documents, chosen, observation)
        return observation

    def step(self, actions: NDArray[np.int64], limit: int = 0, autoreset: bool = False) -> Outcome:
        """Advance every row by one decision; a row that is over stays as it is until it is reset.

        Args:
            actions: (N, width), already checked.
            limit: Steps after which an episode is truncated; 0 means never.
            autoreset: Begin the next episode in the step that ends one.
        """
        observation = np.empty((self.count, self.width), np.float32)
        reward, ends = np.empty(self.count), np.empty((3, self.count), np.bool_)
        amounts = np.empty((self.count, len(AMOUNTS)))
        count = self._advance(actions, limit, autoreset, observation, reward, ends, amounts)
        return Outcome(observation, reward, ends[0], ends[1], ends[2], amounts, count)

    def finals(self, episodes: int) -> Finals:
        """What there is to say of the episodes that the last step ended, ``episodes`` of them."""
        ended, last_observation, figures, kpis = (array[:episodes] for array in self._finals)
        rows = ended.copy()
        return Finals(rows, last_observation.copy(), RowRecords(rows, figures, self.count), RowRecords(rows, kpis, self.count))

    def step_one(self, action: int) -> tuple[NDArray[np.float32], float, bool, NDArray[np.float64]]:
        """Advance row 0 by one decision of layer control: ``(observation, reward, terminated, amounts)``.

        Args:
            action: Already checked, and the request of row 0 goes on: of one that is over, the step is undefined.
        """
        observation, amounts = np.empty(self.width, np.float32), np.empty(len(AMOUNTS))
        reward, done = self._advance_first(action, observation, amounts)
        return observation, reward, done, amounts

    def figures(self) -> NDArray[np.void]:
        """(N,) records of ``figures.FIGURES``, as things stand."""
        return self.totals()[0]

    def totals(self) -> tuple[NDArray[np.void], NDArray[np.void]]:
        """(N,) records of ``figures.FIGURES`` and of ``figures.KPIS``, as things stand."""
        figures, kpis = np.zeros(self.count, FIGURES), np.zeros(self.count, KPIS)
        _write_all(self.state, self.world.prices.reference_j, figures, kpis)
        return figures, kpis
