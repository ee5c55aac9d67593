"""Many requests side by side: the kernel over the rows of a state array."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from clone_rl.envs import kernel
from clone_rl.envs.kernel import N_OBS, STATE, World
from clone_rl.envs.signals import Signals, observe_signals


class Outcome(NamedTuple):
    """What one step of N rows gave; every array is fresh.

    Attributes:
        observation: (N, width) float32, of the new episode where a row was reset.
        reward: (N,) float64.
        terminated, truncated: (N,) bool.
        cost: (N, 3) late tokens, disagreements, nats of dNLL in this step.
        final_observation: (N, width) float32, the last of the episode; meaningful where it ended.
        final_state: (N,) records of ``STATE`` before the reset; meaningful where the episode ended.
    """

    observation: NDArray[np.float32]
    reward: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    cost: NDArray[np.float64]
    final_observation: NDArray[np.float32]
    final_state: NDArray[np.void]


@njit(cache=True)
def _observe(s: Any, world: World, signals: Signals, out: Any) -> None:
    kernel.observe(s, world, out)
    observe_signals(s, world.rules[0], signals, out)


@njit(cache=True)
def _reset_rows(
    state: Any, world: World, signals: Signals, seeds: Any, episodes: Any, documents: Any, pending: Any, obs: Any
) -> None:
    for i in range(len(state)):
        kernel.reset(state[i], world, seeds[i], episodes[i], documents[i])
        hold(pending[i], world)
        _observe(state[i], world, signals, obs[i])


@njit(cache=True)
def hold(pending: Any, world: World) -> None:
    """The action in force before the first decision takes effect: the top point, full depth."""
    pending[:] = len(world.points) - 1
    pending[-1] = len(pending) - 2


@njit(cache=True)
def _step_rows(
    state: Any, world: World, signals: Signals, actions: Any, pending: Any, limit: int, autoreset: bool, out: Any
) -> None:
    for i in range(len(state)):
        s = state[i]
        if s.done:
            out.terminated[i] = True
            _observe(s, world, signals, out.observation[i])
            continue
        if actions.shape[1] == 1:
            out.reward[i] = kernel.layer_step(s, world, actions[i, 0], out.cost[i])
        else:
            out.reward[i] = kernel.token_step(s, world, actions[i], pending[i], out.cost[i])
        out.terminated[i] = s.done == 1
        out.truncated[i] = s.done == 0 and limit > 0 and s.step >= limit
        _observe(s, world, signals, out.observation[i])
        if autoreset and (out.terminated[i] or out.truncated[i]):
            out.final_observation[i] = out.observation[i]
            out.final_state[i] = s
            kernel.reset(s, world, s.seed, s.episode + 1, -1)
            hold(pending[i], world)
            _observe(s, world, signals, out.observation[i])


class Rows:
    """N requests in flight.

    Args:
        world: Constants.
        count: Number of rows, >= 1.
        action_width: 1 for layer control, layer groups + 1 for token control.

    Attributes:
        state: (N,) records of ``STATE``; the truth about every row.
        width: Scalars of an observation: 16 and the scenario's extra signals.
    """

    def __init__(self, world: World, count: int, action_width: int = 1) -> None:
        self.world, self.count = world, count
        self.state = np.zeros(count, STATE)
        assert isinstance(world.signals, Signals)
        self._signals, self._hot = world.signals, world._replace(signals=())
        self.width = N_OBS + len(self._signals.chosen)
        self._pending = np.zeros((count, max(action_width, 2)), np.int64)

    def reset(
        self, seeds: NDArray[np.int64], episodes: NDArray[np.int64], documents: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32]:
        """Start one request per row.

        Args:
            seeds, episodes: (N,) key of each row's randomness.
            documents: (N,) which document to replay; negative or None draws one of the split.

        Returns:
            (N, width) observations.
        """
        observation = np.empty((self.count, self.width), np.float32)
        chosen = np.full(self.count, -1) if documents is None else documents
        _reset_rows(self.state, self._hot, self._signals, seeds, episodes, chosen, self._pending, observation)
        return observation

    def step(self, actions: NDArray[np.int64], limit: int = 0, autoreset: bool = False) -> Outcome:
        """Advance every row by one decision; a finished row stays as it is unless ``autoreset`` restarts it.

        Args:
            actions: (N, width), already checked.
            limit: Steps after which an episode is truncated; 0 means never.
            autoreset: Begin the next episode in the same step.
        """
        n = self.count
        out = Outcome(
            observation=np.empty((n, self.width), np.float32),
            reward=np.zeros(n),
            terminated=np.zeros(n, np.bool_),
            truncated=np.zeros(n, np.bool_),
            cost=np.zeros((n, 3)),
            final_observation=np.empty((n, self.width), np.float32),
            final_state=np.empty(n if autoreset else 0, STATE),
        )
        _step_rows(self.state, self._hot, self._signals, actions, self._pending, limit, autoreset, out)
        return out
