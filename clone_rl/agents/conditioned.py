"""Training one policy for many limits: every episode draws how tight they are, and is rewarded at prices that hold them."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from clone_rl.agents.constraints import Multiplier
from clone_rl.agents.family import LOOSEST, TIGHTEST, PolicyFamily, shown, times
from clone_rl.agents.heuristics.pace import tune_pace
from clone_rl.agents.judge import Judge
from clone_rl.agents.ppo import VALUE_ONLY, Training, aimed_at
from clone_rl.agents.sb3 import Sb3VecEnv
from clone_rl.agents.warm_start import demonstrations
from clone_rl.bars import Bar
from clone_rl.code_cache import kept
from clone_rl.envs.randomness import uniform
from clone_rl.envs.state import DISAGREE, ENERGY, KL, LATE

LEVELS = tuple(float(scale) for scale in np.geomspace(TIGHTEST, LOOSEST, 5))
"""Factors on the limits at which a policy is judged, each with prices of its own; in between they are interpolated."""

_STREAM = 4  # beside those of ``envs.randomness``
_PRICED = (("miss", LATE), ("disagree", DISAGREE), ("dnll", KL))


@kept
def _draws(seeds: Any, episodes: Any, out: Any) -> None:
    for i in range(len(out)):
        out[i] = 2.0 * uniform(seeds[i], episodes[i], _STREAM, 0) - 1.0


class _Priced:
    """The reward of N rows, each at prices of its own."""

    terms = ("energy", "late", "disagree", "kl")

    def __init__(self, rows: int) -> None:
        self.prices = np.zeros((rows, len(_PRICED)))

    def __call__(self, amounts: NDArray[np.float64]) -> NDArray[np.float64]:
        priced = self.prices[: len(amounts)] * amounts[:, [which for _, which in _PRICED]]
        return -np.concatenate([amounts[:, ENERGY : ENERGY + 1], priced], 1)


class ConditionedVecEnv(Sb3VecEnv):
    """The native vector environment with one more scalar behind its observation: how tight the limits of an episode are.

    It is drawn from the seed and number of the episode, as everything about a request is: nothing but the rows has to be kept.

    Args:
        env: The native environment, of layer control.
        reward_scale: As of ``Sb3VecEnv``.
    """

    def __init__(self, env: Any, reward_scale: float) -> None:
        super().__init__(env, reward_scale)
        self._priced = _Priced(self.num_envs)
        self._table = np.zeros((len(LEVELS), len(_PRICED)))
        self._drawn = np.zeros(self.num_envs)
        env._reward, env._sums = self._priced, np.zeros((self.num_envs, len(_Priced.terms)))
        low, high = (np.append(bound, np.float32(end)) for bound, end in zip(_bounds(env), (-1.0, 1.0), strict=True))
        self.observation_space = Box(low, high, dtype=np.float32)

    def set_prices(self, table: NDArray[np.float64]) -> None:
        """Prices (levels, 3) of a late token, a disagreement and a nat at each of ``LEVELS``, from the next step on."""
        self._table[:] = table
        self._price()

    def _price(self) -> None:
        levels = [shown(scale) for scale in LEVELS]
        for which in range(len(_PRICED)):
            self._priced.prices[:, which] = np.interp(self._drawn, levels, self._table[:, which])

    def _draw(self) -> None:
        state = self.env._rows.state
        _draws(state["seed"], state["episode"], self._drawn)
        self._price()

    def reset(self) -> NDArray[np.float32]:
        """Observations of new episodes."""
        observation = super().reset()
        self._draw()
        return with_limits(observation, self._drawn)

    def step_wait(self) -> Any:
        """Step; the reward is at the prices of the episode that the step was part of."""
        observation, reward, done, infos = super().step_wait()
        if done.any():
            for i in np.flatnonzero(done):
                infos[i]["terminal_observation"] = np.append(infos[i]["terminal_observation"], np.float32(self._drawn[i]))
            self._draw()
        return with_limits(observation, self._drawn), reward, done, infos

    def set_state(self, state: dict[str, NDArray[Any]]) -> None:
        """Go on from what ``get_state`` gave."""
        super().set_state(state)
        self._draw()


def _bounds(env: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return env.single_observation_space.low, env.single_observation_space.high


def with_limits(observations: NDArray[np.float32], drawn: Any) -> NDArray[np.float32]:
    """(N, width + 1) observations with how tight the limits are, (N,) or one number."""
    column = np.zeros((len(observations), 1), np.float32)
    column[:, 0] = drawn
    return np.concatenate([observations, column], 1)


class ConditionedTraining(Training):
    """A training run whose policy takes the limits as an input.

    Every level of tightness has a judge and multipliers; the best policy holds the limits of every level, with the least
    energy in the mean over levels.
    """

    judge_every = 4  # five runs instead of one

    def _adapted(self, reward_scale: float) -> Sb3VecEnv:
        return ConditionedVecEnv(self.env, reward_scale)

    def _priced(self) -> dict[str, Multiplier]:
        self._judges = [Judge(self.env.control, times(self.limits, scale), self.config.seed) for scale in LEVELS]
        return {f"{name}/{scale:g}": aimed_at(times(self.limits, scale), name) for scale in LEVELS for name, _ in _PRICED}

    def _table(self) -> NDArray[np.float64]:
        return np.array([m.value for m in self.multipliers.values()]).reshape(len(LEVELS), len(_PRICED))

    def apply_multipliers(self) -> None:
        """Hand the prices of every level to the environment."""
        assert isinstance(self.adapter, ConditionedVecEnv)
        table = self._table()
        self.adapter.set_prices(table)
        _, *quality = table[len(LEVELS) // 2]
        self.foresight.price(*quality)

    def judge(self) -> dict[str, float]:
        """Run the policy at every level; move its multipliers; keep it if it is the best so far.

        Returns:
            Means per token on the training split, at the limits themselves.
        """
        family = self.policy()
        assert isinstance(family, PolicyFamily)
        excess, energy_j, shown_figures = 0.0, 0.0, {}
        for scale, judge in zip(LEVELS, self._judges, strict=True):
            found = judge(family.at(scale))
            excess += found.excess
            energy_j += found.figures["energy_per_token_j"] / len(LEVELS)
            if scale == LEVELS[len(LEVELS) // 2]:
                shown_figures = found.figures
            if self.updates >= VALUE_ONLY:
                for name, _ in _PRICED:
                    self.multipliers[f"{name}/{scale:g}"].update(getattr(found.measured, name))
        self.apply_multipliers()
        if self._best is None or (excess, energy_j) < self._best[0]:
            self._best = ((excess, energy_j), family)
        return shown_figures

    def _demonstrations(self, steps: int) -> tuple[NDArray[np.float32], NDArray[np.int64], dict[str, Any]]:
        """What pacing does that is tuned for each level."""
        bar = partial(Bar, desc="warm start: tune pacing", unit="setting")
        seen, done, described = [], [], {}
        for at, scale in enumerate(LEVELS):
            pace = tune_pace(self.env.control, times(self.limits, scale), self.config.seed, bar)
            observations, actions = demonstrations(self.env, pace, steps // len(LEVELS), self.config.seed + at)
            seen.append(with_limits(observations, shown(scale)))
            done.append(actions)
            described[f"{scale:g}"] = pace.describe()
        return np.concatenate(seen), np.concatenate(done), described

    def policy(self, name: str = "policy") -> PolicyFamily:
        """The actor as it stands, for all limits."""
        layers = self._weights()
        return PolicyFamily(layers, self.env.control.heads, self._card(name), name, signals=self.env.control.scenario.signals)
