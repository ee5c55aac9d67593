"""The native vector environments: all rows in one compiled loop, row i bit for bit the single environment with seed + i."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from clone_rl.envs.control import load_control
from clone_rl.envs.keywords import check_keywords
from clone_rl.envs.randomness import check_seed
from clone_rl.envs.reward import Cost, Reward, check_cost, check_reward, costs_of
from clone_rl.envs.rows import Outcome, Rows
from clone_rl.envs.scenario import Scenario
from clone_rl.envs.single import SEEDS
from clone_rl.envs.state import AMOUNTS
from clone_rl.errors import BadValueError, UnknownNameError
from clone_rl.hw_emulator.workload import is_count

_MODES = {mode.value: mode for mode in (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED)}


class _ControlVectorEnv(VectorEnv[NDArray[np.float32], Any, NDArray[Any]]):
    """N rows of the kernel with a time limit of their own.

    Args:
        num_envs: Rows, >= 1.
        max_episode_steps: Steps after which an episode is truncated; None means never.
        autoreset_mode: ``"SameStep"``, or ``"Disabled"``: a row that is over stays as it is, with reward 0, until
            ``reset(options={"reset_mask": mask})`` starts its next request.
        scenario, split, reward, cost, **changes: As in the single environments.

    Raises:
        CloneRLError: A name, a file or a value is wrong.
    """

    _kind: ClassVar[str]

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.SAME_STEP,
        scenario: str | dict[str, Any] | Scenario = "default",
        split: str = "train",
        reward: str | Reward | None = None,
        cost: str | Cost | None = None,
        **changes: Any,
    ) -> None:
        check_keywords(type(self), changes, "make_vec")
        if not is_count(num_envs) or num_envs < 1:
            raise BadValueError(f"num_envs is {num_envs!r}", "a whole number, at least 1")
        if max_episode_steps is not None and (not is_count(max_episode_steps) or max_episode_steps < 1):
            raise BadValueError(f"max_episode_steps is {max_episode_steps!r}", "a whole number, at least 1, or None")
        if render_mode is not None:
            raise BadValueError(f"render_mode {render_mode!r}", "a vector environment does not render")
        mode = autoreset_mode.value if isinstance(autoreset_mode, AutoresetMode) else autoreset_mode
        if not isinstance(mode, str) or mode not in _MODES:
            unknown = UnknownNameError("autoreset mode", str(mode), _MODES)
            if mode in (each.value for each in AutoresetMode):  # no name that was mistyped
                unknown.hint = "there are 'SameStep', the default, and 'Disabled' with reset(options={'reset_mask': mask})"
            raise unknown
        self.metadata = {"render_modes": [], "autoreset_mode": _MODES[mode]}
        self._autoreset = _MODES[mode] is AutoresetMode.SAME_STEP
        self.control = load_control(self._kind, scenario, split, **changes)
        self.num_envs = num_envs
        self.render_mode = None
        self.single_observation_space = self.control.observation_space
        self.single_action_space = self.control.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._reward = None if reward is None else check_reward(reward)
        self._cost = None if cost is None else check_cost(cost)
        self._rows = Rows(self.control.world, num_envs, len(self.control.heads))
        self._limit = max_episode_steps or 0
        self._seeds: NDArray[np.int64] | None = None
        self._sums = np.zeros((num_envs, len(self._reward.terms) if self._reward else 0))

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start a request in every row; an integer seed gives row i seed + i.

        In a list, a row whose seed is None begins its next request, as without seeds; its first one gets a seed that is drawn.
        Without autoreset, ``options={"reset_mask": mask}``, (N,) bool, starts only the rows that it names.

        Raises:
            BadValueError: Seeds or mask are not one for each row, or there are other options.
        """
        mask = self._mask(options)
        seeds, seeded = self._given_seeds(seed)
        begun = self._rows.state["tokens"] > 0
        if not (begun | mask).all():
            raise BadValueError("rows have not been started", "reset without a mask first")
        if isinstance(seed, int | np.integer):
            super().reset(seed=int(seed))
        if self._seeds is None:
            self._seeds = seeds if seeded.all() else int(self.np_random.integers(SEEDS)) + np.arange(self.num_envs)
        self._seeds = np.where(mask & seeded, seeds, self._seeds)
        episodes = np.where(begun & ~seeded, self._rows.state["episode"] + 1, 0)
        self._sums[mask] = 0.0
        observation = self._rows.reset(self._seeds, episodes, chosen=mask)
        return observation, {"cost": costs_of(self._cost, np.zeros((self.num_envs, len(AMOUNTS))))}

    def _given_seeds(self, seed: int | list[int | None] | None) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(N,) the seed of each row, and (N,) whether it was given."""
        if isinstance(seed, list):
            if len(seed) != self.num_envs:
                raise BadValueError(f"{len(seed)} seeds", f"an integer, or {self.num_envs} of them")
            seeds = [0 if each is None else check_seed(each) for each in seed]
            return np.array(seeds, np.int64), np.array([each is not None for each in seed])
        first = 0 if seed is None else check_seed(seed, self.num_envs)
        return first + np.arange(self.num_envs), np.full(self.num_envs, seed is not None)

    def _mask(self, options: dict[str, Any] | None) -> NDArray[np.bool_]:
        unknown = set(options or {}) - {"reset_mask"}
        if unknown:
            raise BadValueError(f"reset options {sorted(unknown)}", "reset_mask is the only one")
        if not options:
            return np.ones(self.num_envs, np.bool_)
        if self._autoreset:
            raise BadValueError("reset_mask with autoreset_mode 'SameStep'", "rows restart by themselves; use 'Disabled'")
        mask = options["reset_mask"]
        if not isinstance(mask, np.ndarray) or mask.shape != (self.num_envs,) or mask.dtype != np.bool_ or not mask.any():
            raise BadValueError(f"reset_mask {mask!r}", f"a bool array of {self.num_envs} with at least one true")
        return mask

    def step(
        self, actions: Any
    ) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Take one decision in every row.

        Raises:
            BadValueError: Not actions of the space, or the environment was never reset.
        """
        if self._seeds is None:
            raise BadValueError("no episode is running", "call reset")
        out = self._rows.step(self.control.check(actions, self.num_envs), self._limit, self._autoreset)
        reward, cost = out.reward, costs_of(self._cost, out.amounts)
        if self._reward:
            terms = np.asarray(self._reward(out.amounts))
            self._sums += terms
            reward = terms.sum(1)
        info: dict[str, Any] = {"cost": cost}
        if out.episodes:
            info |= self._finals(out, cost)
        return out.observation, reward, out.terminated, out.truncated, info

    def _finals(self, out: Outcome, cost: NDArray[np.float64]) -> dict[str, Any]:
        """What the infos of episodes that just ended add, in Gymnasium's form: arrays, and masks of who has a value."""
        ended, finals = out.ended, self._rows.finals(out.episodes)
        final: dict[str, Any] = {"figures": finals.figures, "_figures": ended, "kpis": finals.kpis, "_kpis": ended}
        if self._reward:
            sums = np.where(ended[:, None], self._sums, 0.0)
            final |= {"reward_terms": dict(zip(self._reward.terms, sums.T, strict=True)), "_reward_terms": ended}
            self._sums[ended] = 0.0
        if not self._autoreset:
            return final
        observation = np.empty(self.num_envs, object)  # of None
        for row, last in zip(finals.rows.tolist(), finals.last_observation, strict=True):
            observation[row] = last
        return {
            "final_obs": observation,
            "_final_obs": ended,
            "final_info": {"cost": cost, "_cost": ended, **final},
            "_final_info": ended,
        }

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

    def set_outcome(self, outcome: NDArray[np.float32]) -> None:
        """Score exits by other figures than what happened: ``World.outcome``, its shape and order; reset afterwards.

        Raises:
            BadValueError: It has another shape or type.
        """
        world = self.control.world
        if outcome.shape != world.outcome.shape or outcome.dtype != world.outcome.dtype:
            raise BadValueError(f"outcome {outcome.shape} {outcome.dtype}", f"{world.outcome.shape} {world.outcome.dtype}")
        self.control = replace(self.control, world=world._replace(outcome=outcome))
        self._rows, self._seeds = Rows(self.control.world, self.num_envs, len(self.control.heads)), None


class LayerControlVectorEnv(_ControlVectorEnv):
    """N ``LayerControlEnv`` in one loop."""

    _kind = "layer"


class TokenControlVectorEnv(_ControlVectorEnv):
    """N ``TokenControlEnv`` in one loop."""

    _kind = "token"
