"""The native vector environments: all rows in one compiled loop, row i bit for bit the single environment with seed + i."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from clone_rl.envs.control import load_control
from clone_rl.envs.rows import Rows
from clone_rl.envs.single import _SEEDS
from clone_rl.envs.world import figures
from clone_rl.errors import BadValueError


class _ControlVectorEnv(VectorEnv[NDArray[np.float32], Any, NDArray[Any]]):
    """N rows of the kernel with same-step autoreset and a time limit of its own.

    Args:
        num_envs: Rows, >= 1.
        max_episode_steps: Steps after which an episode is truncated; None means never.
        scenario, split, groups, **changes: As in the single environments.

    Raises:
        CloneRLError: A name, a file or a value is wrong.
    """

    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012
    _kind: ClassVar[str]

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        scenario: str = "default",
        split: str = "train",
        groups: int | None = None,
        **changes: Any,
    ) -> None:
        if num_envs < 1:
            raise BadValueError(f"num_envs is {num_envs}", "at least 1")
        if render_mode is not None:
            raise BadValueError(f"render_mode {render_mode!r}", "a vector environment does not render")
        self.control = load_control(self._kind, scenario, split, groups, **changes)
        self.num_envs = num_envs
        self.render_mode = None
        self.single_observation_space = self.control.observation_space
        self.single_action_space = self.control.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._rows = Rows(self.control.world, num_envs, len(self.control.heads))
        self._limit = max_episode_steps or 0
        self._seeds: NDArray[np.int64] | None = None
        self._episodes = np.zeros(num_envs, np.int64)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start a request in every row; an integer seed gives row i seed + i. There are no options."""
        if options:
            raise BadValueError(f"reset options {options}", "only the single environments take any")
        if isinstance(seed, list):
            if len(seed) != self.num_envs or any(s is None for s in seed):
                raise BadValueError(f"{len(seed)} seeds", f"an integer, or {self.num_envs} of them")
            self._seeds = np.array(seed, np.int64)
        elif seed is not None or self._seeds is None:
            super().reset(seed=seed)
            first = int(self.np_random.integers(_SEEDS)) if seed is None else seed
            self._seeds = first + np.arange(self.num_envs)
        if seed is not None or not self._rows.state["tokens"].any():
            self._episodes = np.zeros(self.num_envs, np.int64)
        else:
            self._episodes = self._rows.state["episode"] + 1
        return self._rows.reset(self._seeds, self._episodes), {"cost": np.zeros((self.num_envs, 3))}

    def step(
        self, actions: Any
    ) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Take one decision in every row; finished rows begin their next request in the same step."""
        out = self._rows.step(self.control.check(actions, self.num_envs), self._limit, autoreset=True)
        info: dict[str, Any] = {"cost": out.cost}
        ended = out.terminated | out.truncated
        if ended.any():
            last = np.full(self.num_envs, None, object)
            for row in np.flatnonzero(ended):
                last[row] = out.final_observation[row]
            final = {}
            for name, value in figures(out.final_state[ended]).items():
                final[name] = np.zeros(self.num_envs, value.dtype)
                final[name][ended] = value
            info |= {
                "final_obs": last,
                "_final_obs": ended,
                "final_info": {"cost": out.cost, "_cost": ended, "figures": final, "_figures": ended},
                "_final_info": ended,
            }
        return out.observation, out.reward, out.terminated, out.truncated, info

    def action_masks(self) -> NDArray[np.bool_]:
        """(N, actions) which are allowed now, flat over the components."""
        masks = np.ones((self.num_envs, sum(self.control.heads)), np.bool_)
        if self._kind == "layer":
            masks[:, -1] = (self._rows.state["token"] > 0) & (self._rows.state["layer"] > 0)
        return masks

    def set_weights(self, late: float, disagree: float, kl: float) -> None:
        """Change the reward's weights: how a constraint's multipliers reach the environment."""
        rules = self.control.world.rules[0]
        rules["late"], rules["disagree"], rules["kl"] = late, disagree, kl


class LayerControlVectorEnv(_ControlVectorEnv):
    """N ``LayerControlEnv`` in one loop."""

    _kind = "layer"


class TokenControlVectorEnv(_ControlVectorEnv):
    """N ``TokenControlEnv`` in one loop."""

    _kind = "token"
