"""The Gymnasium environments, one request at a time. Their docstrings are their specification."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from clone_rl.envs.control import Control, load_control
from clone_rl.envs.figures import as_dict
from clone_rl.envs.kernel import may_exit
from clone_rl.envs.keywords import check_keywords
from clone_rl.envs.randomness import check_seed
from clone_rl.envs.render import Frame, ansi, draw
from clone_rl.envs.reward import Cost, Reward, check_cost, check_reward, costs_of
from clone_rl.envs.rows import Rows
from clone_rl.envs.scenario import Scenario
from clone_rl.envs.state import AMOUNTS, LATE, N_COSTS, TOKENS
from clone_rl.errors import BadValueError
from clone_rl.hw_emulator.workload import is_count

SEEDS = 2**31
"""Seeds that an unseeded environment draws from."""

Step = tuple[NDArray[np.float32], float, bool, NDArray[np.float64]]
"""Observation, the scenario's reward, whether the response ended, and ``state.AMOUNTS`` of the step."""


class ControlEnv(gym.Env[NDArray[np.float32], Any]):
    """One request at a time, wherever its tokens come from: seeds, options, rewards of one's own, the last info, pictures.

    Args:
        control: What is stepped.
        documents: How many there are to choose from.
        reward, cost, render_mode: As in ``LayerControlEnv``.

    Raises:
        BadValueError: Unknown render mode, or no usable reward or cost.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}  # noqa: RUF012

    def __init__(
        self,
        control: Control,
        documents: int,
        reward: str | Reward | None = None,
        cost: str | Cost | None = None,
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise BadValueError(f"render_mode {render_mode!r}", "None, 'ansi' or 'rgb_array'")
        self.control, self._documents = control, documents
        self.observation_space: Any = control.observation_space
        self.action_space: Any = control.action_space
        self.render_mode = render_mode
        self._reward = None if reward is None else check_reward(reward)
        self._cost = None if cost is None else check_cost(cost)
        self._rows = Rows(control.world, 1, len(control.heads))
        self._seed: int | None = None
        self._episode, self._running = 0, False

    def _begin(self, seed: int, episode: int, document: int) -> NDArray[np.float32]:
        """Start a request; a negative document is drawn."""
        raise NotImplementedError

    def _advance(self, action: Any) -> Step:
        """Take one decision, once it is checked."""
        raise NotImplementedError

    def _asked(self, options: dict[str, Any] | None) -> int:
        """The document that the options of a reset ask for; -1 for none."""
        if unknown := [name for name in options or {} if name != "document"]:
            raise BadValueError(f"reset has no option {unknown[0]!r}", "the only one is 'document'")
        document = (options or {}).get("document")
        if document is None:
            return -1
        if not is_count(document) or document >= self._documents:
            raise BadValueError(f"document {document!r}", f"an integer from 0 to {self._documents - 1}")
        return int(document)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start a request; ``options={"document": d}`` takes document d, otherwise one is drawn.

        Raises:
            BadValueError: There is no such document, or an option is unknown.
        """
        document = self._asked(options)
        seed = None if seed is None else check_seed(seed)
        super().reset(seed=seed)
        if seed is not None or self._seed is None:
            self._seed, self._episode = int(self.np_random.integers(SEEDS)) if seed is None else seed, 0
        else:
            self._episode += 1
        observation = self._begin(self._seed, self._episode, document)
        self._running = True
        self._sums = np.zeros(len(self._reward.terms)) if self._reward else np.zeros(0)
        self._emitted: list[tuple[int, int, bool]] = []
        return observation, {"cost": costs_of(self._cost, np.zeros((1, len(AMOUNTS))))[0]}

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Take one decision.

        Raises:
            BadValueError: Not an action of the space, or no episode is running.
        """
        if not self._running:
            raise BadValueError("no episode is running", "call reset")
        observation, reward, terminated, amounts = self._advance(action)
        if self._reward:
            terms = np.asarray(self._reward(amounts[None]))[0]
            self._sums += terms
            reward = float(terms.sum())
        info: dict[str, Any] = {"cost": amounts[:N_COSTS] if self._cost is None else costs_of(self._cost, amounts[None])[0]}
        if self.render_mode is not None and amounts[TOKENS]:
            s = self._rows.state[0]
            self._emitted.append((int(s["left"]), int(s["point"]), bool(amounts[LATE])))
        if terminated:
            self._running = False
            figures, kpis = self._rows.totals()
            info["figures"], info["kpis"] = as_dict(figures[0]), as_dict(kpis[0])
            if self._reward:
                info["reward_terms"] = dict(zip(self._reward.terms, self._sums.tolist(), strict=True))
        return observation, reward, terminated, False, info

    def action_masks(self) -> NDArray[np.bool_]:
        """Which actions are allowed now, flat over the components (the convention of sb3-contrib's MaskablePPO)."""
        masks = np.ones(sum(self.control.heads), np.bool_)
        if self.control.kind == "layer":
            masks[-1] = may_exit(self._rows.state[0])
        return masks

    def render(self) -> Any:
        """The request in flight: lines of text with ``render_mode="ansi"``, (360, 640, 3) uint8 with ``"rgb_array"``.

        Raises:
            BadValueError: There was none yet.
            MissingExtraError: Images need Pillow.
        """
        if self.render_mode is None:
            return None
        if self._seed is None:
            raise BadValueError("there is no request to show", "call reset")
        frame = Frame.of(self.control, self._rows.state[0], self._emitted)
        return ansi(frame) if self.render_mode == "ansi" else draw(frame)


class _ReplayEnv(ControlEnv):
    """Requests of a trace set."""

    _kind: ClassVar[str]

    def __init__(
        self,
        scenario: str | dict[str, Any] | Scenario = "default",
        split: str = "train",
        reward: str | Reward | None = None,
        cost: str | Cost | None = None,
        render_mode: str | None = None,
        **changes: Any,
    ) -> None:
        check_keywords(type(self), changes)
        control = load_control(self._kind, scenario, split, **changes)
        super().__init__(control, len(control.traces.prompt_tokens), reward, cost, render_mode)
        self._choices = control.heads[0]

    def _begin(self, seed: int, episode: int, document: int) -> NDArray[np.float32]:
        observation: NDArray[np.float32] = self._rows.reset(np.array([seed]), np.array([episode]), np.array([document]))[0]
        return observation


class LayerControlEnv(_ReplayEnv):
    """Choose V/f for every decoder layer of every token, or let the token exit.

    ### Action space
    ``Discrete(n + 1)`` for a chip with n operating points: 0 to n - 1 runs the next layer at that point (0 is the lowest),
    n exits now. An exit counts as the current point where none is allowed: in prefill, and before layer 1 of a token.
    ``action_masks()`` tells.

    ### Observation space
    ``Box(-1, 1, (16,), float32)``: ``clone_rl.envs.observation.OBSERVATION`` names the scalars; the scenario's ``signals``
    add one each (``clone_rl.envs.signals.EXTRA_SIGNALS``). All bounds are physical constants; no statistics need to be
    carried along. Targets are shares of the scenario's ``scale``, which stays when ``slo`` is replaced.

    ### Reward
    Minus the energy of the step over that of one full-depth token at the top point, minus the scenario's weights times
    late tokens, disagreements with full depth, and KL(full || exit).
    ``info["cost"]`` is ``[late, disagree, dNLL]`` of the step. The last info of an episode has ``info["figures"]`` (totals,
    the sum of each reward term among them) and ``info["kpis"]`` (per token). ``reward`` and ``cost`` put others in their
    place: see ``clone_rl.envs.reward``.

    ### Starting state
    A request drawn from the split: a document of the trace set, a class of service, a slack, the co-runner's state; the
    chip is at ambient temperature and its top point.

    ### Episode end
    ``terminated`` when the response has ended; ``truncated`` only by a time limit.

    ### Arguments
    ``scenario`` (name, TOML path or plain data), ``split`` (train, validation, test), ``reward`` and ``cost`` (objects, or
    ``"package.module:name"``), ``render_mode`` (None, "ansi", "rgb_array") and any field of
    ``clone_rl.envs.scenario.Scenario``, such as ``switching="pmic"`` or ``interference={"slowdown": 2.0}``.

    ### Version history
    v0: first version.

    >>> import gymnasium as gym, clone_rl
    >>> env = gym.make("clone_rl/LayerControl-v0")
    >>> observation, info = env.reset(seed=0)
    >>> observation.shape, int(env.action_space.n)
    ((16,), 9)
    >>> observation, reward, terminated, truncated, info = env.step(7)
    >>> reward < 0, terminated, info["cost"].tolist()
    (True, False, [0.0, 0.0, 0.0])
    """

    _kind = "layer"

    def _advance(self, action: Any) -> Step:
        if type(action) is not int or not 0 <= action < self._choices:
            action = int(self.control.check(action, 1)[0, 0])
        return self._rows.step_one(action)


class TokenControlEnv(_ReplayEnv):
    """Choose V/f for each group of layers and the depth, once per token.

    ### Action space
    ``MultiDiscrete([n] * groups + [groups])``: an operating point for each group of layers, then the depth: g runs groups
    0 to g (``groups - 1`` is full depth). Prefill, the first step, runs at full depth whatever is asked.

    ### Observation space, reward, starting state, episode end
    As in ``LayerControlEnv``; the observation is taken before the token's first layer, so the exit signals are those of
    the token before (the extra signals ``norm``, ``change`` and ``cosine`` are 0).

    ### Arguments
    As in ``LayerControlEnv``; ``groups`` (1 to 8) is a field of the scenario.

    ### Version history
    v0: first version.

    >>> import gymnasium as gym
    >>> env = gym.make("clone_rl:clone_rl/TokenControl-v0", groups=2)
    >>> observation, info = env.reset(seed=0)
    >>> env.action_space
    MultiDiscrete([8 8 2])
    """

    _kind = "token"

    def _advance(self, action: Any) -> Step:
        out = self._rows.step(self.control.check(action, 1))
        return out.observation[0], float(out.reward[0]), bool(out.terminated[0]), out.amounts[0]
