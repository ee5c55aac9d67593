"""Control of a request whose tokens are generated while it runs: the kernel keeps the account, a source makes the tokens."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from clone_rl.envs.kernel import may_exit
from clone_rl.envs.rows import Rows
from clone_rl.envs.scenario import Scenario
from clone_rl.envs.source import TokenSource
from clone_rl.envs.state import N_COSTS
from clone_rl.envs.trace import scaled_signals
from clone_rl.envs.world import build_emulators, build_prices, build_world, observation_names
from clone_rl.errors import BadValueError
from clone_rl.hw_emulator.emulator import Emulator
from clone_rl.hw_emulator.ledger import Ledger
from clone_rl.hw_emulator.workload import Workload

_SEEDS = 2**31


class LiveRequest:
    """One request in flight; the same kernel, observations and charges as on a trace.

    Args:
        scenario: Rules; its overheads must be those of the controller.
        emulator: The scenario's chip loaded with the source's model.
        source: Where the tokens come from.
        document: Which of its prompts.
        seed, episode: Key of the service level and the interference; ``seed`` also of what the source draws.

    Attributes:
        observation: What the controller sees now.
        ledger: What ran, as shapes.
        reward: Of the last step.
        cost: (3,) late tokens, disagreements and nats of dNLL in the last step.
        points: For each token, the operating point of each layer that ran, -1 elsewhere; (longest response, layers).
        emitted_s, due_s: For each token, when it left and when it was due.
    """

    def __init__(
        self, scenario: Scenario, emulator: Emulator, source: TokenSource, document: int = 0, seed: int = 0, episode: int = 0
    ) -> None:
        trace = source.start(document, seed)
        world = build_world(scenario, trace, "train", emulator.workload, build_prices((emulator,), trace))
        if "expected_tokens" in trace.card:
            world = world._replace(length=np.array([float(trace.card["expected_tokens"])]))
        self.source, self.layers, self.exit_action = source, emulator.workload.layers, len(emulator.points)
        self._trace, self._world = trace, world
        self._rules, self._rows = world.rules[0], Rows(world, 1)
        self.observation = self._rows.reset(np.array([seed]), np.array([episode]), np.zeros(1, np.int64))[0]
        self._state = self._rows.state[0]
        self.ledger = Ledger(self.layers, scenario.kv)
        self.ledger.start(int(trace.prompt_tokens[0]))
        self.points = np.full((int(trace.offset[-1]), self.layers), -1)
        self.emitted_s: list[float] = []
        self.due_s: list[float] = []
        self.reward, self.cost = 0.0, np.zeros(3)

    @property
    def done(self) -> bool:
        """Whether the response has ended."""
        return bool(self._state["done"])

    @property
    def may_exit(self) -> bool:
        """Whether an exit would be taken now."""
        return may_exit(self._state)

    @property
    def clock_s(self) -> float:
        """Seconds since the request's start."""
        return float(self._state["clock_s"])

    @property
    def energy_j(self) -> float:
        """Joules since the request's start."""
        return float(self._state["energy_j"])

    def figures(self) -> dict[str, Any]:
        """Totals, see ``clone_rl.envs.figures.FIGURES``."""
        return {name: values[0].item() for name, values in self._rows.figures().items()}

    def _take_in(self, token: int) -> None:
        """What the source has just written about a token, where the kernel reads it."""
        trace, world = self._trace, self._world
        world.seen[token] = scaled_signals(trace.signal[token])
        world.outcome[token] = np.stack([1.0 - trace.agree[token], trace.dnll[token], trace.kl[token]], 1)
        for name in ("hidden", "margin", "entropy"):
            if len(column := getattr(world, name)):
                column[token] = getattr(trace, name)[token]

    def step(self, action: int) -> None:
        """Take one decision: let the source run the layer or emit the token, then let the kernel account for it."""
        state, ledger = self._state, self.ledger
        token, layer, point, due_s = int(state["token"]), int(state["layer"]), int(state["point"]), float(state["due_s"])
        reads = may_exit(state)
        taken = int(state["pending"]) if self._rules["delay"] else action
        leaves = taken == self.exit_action and reads
        if leaves:
            self.source.leave(layer)
        else:
            self.source.run(layer)
        self._take_in(token)
        if self.source.ended:
            state["tokens"] = token + 1
        self.observation, self.reward, _, amounts = self._rows.step_one(action)
        self.cost = amounts[:N_COSTS]
        now = int(state["point"])
        if self._rules["probe"] and reads:
            ledger.probe(point)
        if self._rules["policy"]:
            ledger.policy(point)
        if now != point:
            ledger.switch(point, now)
        if leaves:
            ledger.leave(layer, now)
        else:
            ledger.layer(layer, now)
            self.points[token, layer] = now
        if int(state["token"]) > token:
            ledger.head(now)
            self.due_s.append(due_s)
            self.emitted_s.append(float(state["last_s"]))


class LiveLayerControlEnv(gym.Env[NDArray[np.float32], Any]):
    """Choose V/f for every decoder layer of every token of a model that generates while it is controlled.

    ### Action space, observation space, reward, starting state, episode end
    As in ``clone_rl.envs.single.LayerControlEnv``, except that the response is made by ``source`` as it goes. Propagated
    keys and values change what later tokens see, which no trace can show: this environment measures it.

    ### Arguments
    ``source`` (a ``clone_rl.envs.source.TokenSource``, such as ``clone_rl.llm.source.ModelSource``), ``workload`` (what its
    model asks of the chip), ``scenario`` (name, TOML path or ``Scenario``) and any field of ``Scenario``.

    ### Version history
    v0: first version.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(self, source: TokenSource, workload: Workload, scenario: str | Scenario = "default", **changes: Any) -> None:
        self.scenario = Scenario.load(scenario, **changes)
        if source.layers != workload.layers:
            raise BadValueError(f"the source has {source.layers} layers and the workload {workload.layers}", "give its own")
        if source.kv != self.scenario.kv:
            raise BadValueError(f"the source keeps kv {source.kv!r} and the scenario charges {self.scenario.kv!r}", "use one")
        self.source, self.emulator = source, build_emulators(self.scenario, workload, source.probe_dots)[0]
        size = len(observation_names(self.scenario))
        self.observation_space: Any = spaces.Box(-1.0, 1.0, (size,), np.float32)
        self.action_space: Any = spaces.Discrete(len(self.emulator.points) + 1)
        self.request: LiveRequest | None = None
        self._seed: int | None = None
        self._episode = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start a request; ``options={"document": d}`` answers prompt d of the source."""
        super().reset(seed=seed)
        if seed is not None or self._seed is None:
            self._seed = int(self.np_random.integers(_SEEDS)) if seed is None else seed
            self._episode = 0
        else:
            self._episode += 1
        document = (options or {}).get("document", -1)
        if document < 0:
            document = int(self.np_random.integers(len(self.source)))
        if document >= len(self.source):
            raise BadValueError(f"document {document}", f"0 to {len(self.source) - 1}")
        self.request = LiveRequest(self.scenario, self.emulator, self.source, document, self._seed, self._episode)
        return self.request.observation, {"cost": np.zeros(3)}

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Take one decision.

        Raises:
            BadValueError: Not an action of the space, or the episode has ended.
        """
        if not self.action_space.contains(action):
            raise BadValueError(f"action {action!r}", f"an integer from 0 to {self.action_space.n - 1}")
        if self.request is None or self.request.done:
            raise BadValueError("no episode is running", "call reset")
        self.request.step(int(action))
        info: dict[str, Any] = {"cost": self.request.cost}
        if self.request.done:
            info["figures"] = self.request.figures()
        return self.request.observation, self.request.reward, self.request.done, False, info

    def action_masks(self) -> NDArray[np.bool_]:
        """Which actions are allowed now (the convention of sb3-contrib's MaskablePPO)."""
        masks = np.ones(self.action_space.n, np.bool_)
        masks[-1] = self.request is not None and self.request.may_exit
        return masks
