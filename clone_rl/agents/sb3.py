"""The native vector environment as Stable-Baselines3 wants it: thin, without copies of what nobody reads."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv

from clone_rl.envs.figures import as_dict
from clone_rl.errors import BadValueError

_NOTHING: dict[str, Any] = {}


class Sb3VecEnv(VecEnv):
    """Adapter from a Gymnasium ``VectorEnv`` with same-step autoreset.

    Fills ``info["episode"]`` itself and answers for a Monitor, so no wrapper is needed on top; the figures of a finished
    request are in ``info["figures"]``.

    Args:
        env: The native environment.
        reward_scale: Factor on rewards, which keeps the value function's targets near 1.

    Raises:
        BadValueError: The environment resets in another way.
    """

    def __init__(self, env: Any, reward_scale: float = 1.0) -> None:
        if env.metadata.get("autoreset_mode") is not AutoresetMode.SAME_STEP:
            raise BadValueError(f"autoreset mode {env.metadata.get('autoreset_mode')}", "SB3 needs AutoresetMode.SAME_STEP")
        self.env, self.reward_scale = env, reward_scale
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, np.int64)
        self._began = time.time()
        self._actions: Any = None

    def reset(self) -> NDArray[np.float32]:
        """Observations of new episodes."""
        observation, _ = self.env.reset(seed=self._seeds[0], options=self._options[0] or None)
        self._reset_seeds()
        self._reset_options()
        self._returns[:] = 0
        self._lengths[:] = 0
        return np.asarray(observation)

    def get_state(self) -> dict[str, NDArray[Any]]:
        """Arrays that tell where every row stands; put back with ``set_state``, the same actions give the same steps."""
        rows = self.env._rows
        state = {
            "state": rows.state.view(np.uint8).reshape(self.num_envs, -1),
            "missing": rows.missing,
            "pending": rows.pending,
            "returns": self._returns,
            "lengths": self._lengths,
        }
        if self.env._seeds is not None:
            state["seeds"] = self.env._seeds
        return {name: array.copy() for name, array in state.items()}

    def set_state(self, state: dict[str, NDArray[Any]]) -> None:
        """Go on from what ``get_state`` gave, of an environment made in the same way."""
        rows = self.env._rows
        # In place: the compiled loop holds pointers to these arrays.
        rows.state.view(np.uint8).reshape(self.num_envs, -1)[:] = state["state"]
        rows.missing[:], rows.pending[:] = state["missing"], state["pending"]
        self._returns[:], self._lengths[:] = state["returns"], state["lengths"]
        self.env._seeds = state["seeds"].copy() if "seeds" in state else None

    def step_async(self, actions: Any) -> None:
        """Keep the actions for ``step_wait``."""
        self._actions = actions

    def step_wait(self) -> tuple[Any, NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Step; only finished rows get an info of their own."""
        observation, reward, terminated, truncated, info = self.env.step(self._actions)
        done = terminated | truncated
        self._returns += reward
        self._lengths += 1
        infos = [_NOTHING] * self.num_envs
        if done.any():
            ended = info["final_info"]["figures"]
            for i, figures in zip(ended.rows.tolist(), ended.records, strict=True):
                infos[i] = {
                    "terminal_observation": info["final_obs"][i],
                    "TimeLimit.truncated": bool(truncated[i] and not terminated[i]),
                    "episode": {
                        "r": float(self._returns[i]),
                        "l": int(self._lengths[i]),
                        "t": round(time.time() - self._began, 6),
                    },
                    "figures": as_dict(figures),
                }
            self._returns[done] = 0
            self._lengths[done] = 0
        return observation, (reward * self.reward_scale).astype(np.float32), done, infos

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The same attribute of the one environment for every row."""
        return [getattr(self.env, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:  # noqa: ARG002
        """Set an attribute of the environment."""
        setattr(self.env, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Call a batched method once and hand out its rows (``action_masks`` for MaskablePPO)."""
        rows = getattr(self.env, method_name)(*args, **kwargs)
        return [rows[i] for i in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[Any], indices: Any = None) -> list[bool]:
        """Episode statistics are supplied, as by a Monitor."""
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]
