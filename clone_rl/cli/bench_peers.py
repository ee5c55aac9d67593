"""What ``clone-rl bench env`` trains on beside this package's environment, as Stable-Baselines3 wants it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv


class StillEnv:
    """A vector environment in which nothing happens, in no time: what a training on it takes is the agent's own.

    Args:
        env: Whose spaces it has.
    """

    def __init__(self, env: Any) -> None:
        self.num_envs = env.num_envs
        self.single_observation_space, self.single_action_space = env.single_observation_space, env.single_action_space
        self._observation = np.array([self.single_observation_space.sample() for _ in range(self.num_envs)])
        self._reward, self._done = np.zeros(self.num_envs, np.float32), np.zeros(self.num_envs, np.bool_)

    def reset(self, seed: int | None = None) -> tuple[Any, dict[str, Any]]:  # noqa: ARG002
        """The one observation that there is."""
        return self._observation, {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:  # noqa: ARG002
        """The same again."""
        return self._observation, self._reward, self._done, self._done, {}

    def close(self) -> None:
        """There is nothing to close."""


class PeerVecEnv(VecEnv):
    """An environment that resets in the step after the last one; that step's transition, of no action, is trained on as well.

    Args:
        env: The native vector environment.
    """

    def __init__(self, env: Any) -> None:
        self.env = env
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self._actions: Any = None

    def reset(self) -> NDArray[np.float32]:
        """Observations of new episodes."""
        return np.asarray(self.env.reset(seed=self._seeds[0])[0])

    def step_async(self, actions: Any) -> None:
        """Keep the actions for ``step_wait``."""
        self._actions = actions

    def step_wait(self) -> tuple[Any, NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Step; finished rows get the infos that PPO asks for."""
        observation, reward, terminated, truncated, _ = self.env.step(self._actions)
        done = terminated | truncated
        infos: list[dict[str, Any]] = [{}] * self.num_envs
        for i in np.flatnonzero(done):
            infos[i] = {"terminal_observation": observation[i], "TimeLimit.truncated": bool(truncated[i])}
        return observation, reward, done, infos

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The same attribute of the one environment for every row."""
        return [getattr(self.env, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Not asked for by PPO."""
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Not asked for by PPO."""
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: type[Any], indices: Any = None) -> list[bool]:  # noqa: ARG002
        """By no wrapper."""
        return [False] * self.num_envs
