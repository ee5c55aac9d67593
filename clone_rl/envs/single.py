"""The Gymnasium environments, one request at a time. Their docstrings are their specification."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from clone_rl.envs.control import load_control
from clone_rl.envs.kernel import energy_j, may_exit
from clone_rl.envs.rows import Rows
from clone_rl.envs.world import figures
from clone_rl.errors import BadValueError

_SEEDS = 2**31


class _ControlEnv(gym.Env[NDArray[np.float32], Any]):
    """Steps one row of the kernel."""

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 4}  # noqa: RUF012
    _kind: ClassVar[str]

    def __init__(
        self,
        scenario: str = "default",
        split: str = "train",
        groups: int | None = None,
        render_mode: str | None = None,
        **changes: Any,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise BadValueError(f"render_mode {render_mode!r}", "None or 'ansi'")
        self.control = load_control(self._kind, scenario, split, groups, **changes)
        self.observation_space: Any = self.control.observation_space
        self.action_space = self.control.action_space
        self.render_mode = render_mode
        self._rows = Rows(self.control.world, 1, len(self.control.heads))
        self._seed: int | None = None
        self._episode = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start a request; ``options={"document": d}`` replays document d of the trace set."""
        super().reset(seed=seed)
        if seed is not None or self._seed is None:
            self._seed = int(self.np_random.integers(_SEEDS)) if seed is None else seed
            self._episode = 0
        else:
            self._episode += 1
        document = -1 if not options else options.get("document", -1)
        if not -1 <= document < len(self.control.traces.prompt_tokens):
            raise BadValueError(f"document {document}", f"0 to {len(self.control.traces.prompt_tokens) - 1}")
        observation = self._rows.reset(np.array([self._seed]), np.array([self._episode]), np.array([document]))
        return observation[0], {"cost": np.zeros(3)}

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Take one decision."""
        out = self._rows.step(self.control.check(action, 1))
        info: dict[str, Any] = {"cost": out.cost[0]}
        terminated = bool(out.terminated[0])
        if terminated:
            info["figures"] = {name: value[0].item() for name, value in figures(self._rows.state).items()}
        return out.observation[0], float(out.reward[0]), terminated, False, info

    def action_masks(self) -> NDArray[np.bool_]:
        """Which actions are allowed now, flat over the components (the convention of sb3-contrib's MaskablePPO)."""
        masks = np.ones(sum(self.control.heads), np.bool_)
        if self._kind == "layer":
            masks[-1] = may_exit(self._rows.state[0])
        return masks

    def render(self) -> str | None:
        """One line about the request in flight, with ``render_mode="ansi"``."""
        if self.render_mode is None:
            return None
        s = self._rows.state[0]
        point = self.control.world.points[s["point"]]
        return (
            f"token {s['token']}/{s['tokens']} layer {s['layer']}/{self.control.traces.layers} "
            f"{point['voltage_v']:.2f} V {point['frequency_hz'] / 1e6:.0f} MHz {s['die_c']:.1f} C "
            f"due in {(s['due_s'] - s['clock_s']) * 1e3:+.3f} ms {energy_j(s) * 1e6:.1f} uJ late {s['late']:.0f}"
        )


class LayerControlEnv(_ControlEnv):
    """Choose V/f for every decoder layer of every token, or let the token exit.

    ### Action space
    ``Discrete(n + 1)`` for a chip with n operating points: 0 to n - 1 runs the next layer at that point (0 is the lowest),
    n exits now. An exit counts as the current point where none is allowed: in prefill, and before layer 1 of a token.
    ``action_masks()`` tells.

    ### Observation space
    ``Box(-1, 1, (16,), float32)``: ``clone_rl.envs.kernel.OBSERVATION`` names the scalars; the scenario's ``signals`` add one
    each (``clone_rl.envs.signals.EXTRA_SIGNALS``). All bounds are physical constants; no statistics need to be carried along.

    ### Reward
    Minus the energy of the step over that of one full-depth token at the top point, minus the scenario's weights times
    late tokens, disagreements with full depth, and KL(full || exit).
    ``info["cost"]`` is ``[late, disagree, dNLL]`` of the step; the last info of an episode has ``info["figures"]``.

    ### Starting state
    A request drawn from the split: a document of the trace set, a class of service, a slack, the co-runner's state; the
    chip is at ambient temperature and its top point.

    ### Episode end
    ``terminated`` when the response has ended; ``truncated`` only by a time limit.

    ### Arguments
    ``scenario`` (name or TOML path), ``split`` (train, validation, test), ``render_mode`` (None, "ansi") and any field of
    ``clone_rl.envs.scenario.Scenario``, such as ``switching="pmic"``.

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


class TokenControlEnv(_ControlEnv):
    """Choose V/f for each group of layers and the depth, once per token.

    ### Action space
    ``MultiDiscrete([n] * groups + [groups])``: an operating point for each group of layers, then the depth: g runs groups
    0 to g (``groups - 1`` is full depth). Prefill, the first step, runs at full depth whatever is asked.

    ### Observation space, reward, starting state, episode end
    As in ``LayerControlEnv``; the observation is taken before the token's first layer, so the exit signals are those of
    the token before (the extra signals ``norm``, ``change`` and ``cosine`` are 0).

    ### Arguments
    As in ``LayerControlEnv``, and ``groups`` (1 to 8).

    ### Version history
    v0: first version.

    >>> import gymnasium as gym
    >>> env = gym.make("clone_rl:clone_rl/TokenControl-v0", groups=2)
    >>> observation, info = env.reset(seed=0)
    >>> env.action_space
    MultiDiscrete([8 8 2])
    """

    _kind = "token"
