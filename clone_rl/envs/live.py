"""Control of a request whose tokens are generated while it runs: the kernel keeps the account, a source makes the tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clone_rl.envs.control import Control
from clone_rl.envs.figures import as_dict
from clone_rl.envs.kernel import may_exit
from clone_rl.envs.prices import price_list
from clone_rl.envs.randomness import REQUEST, uniform
from clone_rl.envs.reward import Cost, Reward
from clone_rl.envs.rows import Rows
from clone_rl.envs.scenario import Scenario
from clone_rl.envs.single import ControlEnv, Step
from clone_rl.envs.source import TokenSource
from clone_rl.envs.state import AMOUNTS
from clone_rl.envs.trace import TraceSet, blank_trace, scaled_signals
from clone_rl.envs.world import build_emulators, build_world
from clone_rl.errors import BadValueError
from clone_rl.hw_emulator.emulator import Emulator
from clone_rl.hw_emulator.ledger import Ledger
from clone_rl.hw_emulator.workload import Workload

_CONTEXT = 256
"""Tokens that the first price tables hold."""

_EPISODES_APART = 1_000_003
"""Between the seeds of what a source draws in one episode and in the next; odd, as generators take 32 bits of a seed."""


class LiveControl:
    """A scenario made ready for one request after another; their traces are written while they run.

    Args:
        scenario: Rules; its overheads must be those of the controller.
        emulator: The scenario's own chip loaded with the source's model.
        emulators: The chips that episodes draw from; its own alone where there are none.
    """

    def __init__(self, scenario: Scenario, emulator: Emulator, emulators: tuple[Emulator, ...] = ()) -> None:
        self.scenario, self.emulator, self.emulators = scenario, emulator, emulators or (emulator,)
        self._longest, self._prices = _CONTEXT, price_list(self.emulators, _CONTEXT, _CONTEXT)

    def of(self, trace: TraceSet) -> Control:
        """Control of the request that a trace is being written of.

        Raises:
            BadValueError: The trace is of a model of another depth.
        """
        longest = int(trace.prompt_tokens[0] + trace.offset[-1])
        if longest > self._longest:  # a table that doubles is seldom built
            self._longest = 1 << longest.bit_length()
            self._prices = price_list(self.emulators, self._longest, self._longest)
        world = build_world(self.scenario, trace, "train", self.emulator.workload, self._prices)
        if "expected_tokens" in trace.card:
            world = world._replace(length=np.array([float(trace.card["expected_tokens"])]))
        return Control("layer", self.scenario, trace, self.emulator, self.emulators, world)


class LiveRequest:
    """One request in flight; the same kernel, observations and charges as on a trace.

    Args:
        live: The scenario, made ready.
        source: Where the tokens come from.
        document: Which of its prompts.
        seed, episode: Key of the service level and the interference, and of what the source draws.

    Attributes:
        control: What is stepped.
        rows: The state, of one row.
        observation: What the controller sees now.
        ledger: What ran, as shapes.
        reward: Of the last step.
        amounts: (7,) of the last step, see ``state.AMOUNTS``.
        points: For each token, the operating point of each layer that ran, -1 elsewhere; (longest response, layers).
        emitted_s, due_s: For each token, when it left and when it was due.
    """

    def __init__(self, live: LiveControl, source: TokenSource, document: int = 0, seed: int = 0, episode: int = 0) -> None:
        trace = source.start(document, seed + episode * _EPISODES_APART)
        self.source, self.control = source, live.of(trace)
        self._trace, self._world = trace, self.control.world
        self._rules, self.rows = self._world.rules[0], Rows(self._world, 1)
        self.layers, self.exit_action = trace.layers, self.control.points
        self.observation: NDArray[np.float32] = self.rows.reset(np.array([seed]), np.array([episode]), np.array([0]))[0]
        self._state = self.rows.state[0]
        self._state["document"] = document  # the trace holds this one alone
        self.ledger = Ledger(self.layers, live.scenario.kv)
        self.ledger.start(int(trace.prompt_tokens[0]))
        self.points = np.full((int(trace.offset[-1]), self.layers), -1)
        self.emitted_s: list[float] = []
        self.due_s: list[float] = []
        self.reward, self.amounts = 0.0, np.zeros(len(AMOUNTS))

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
        return as_dict(self.rows.figures()[0])

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
        self.observation, self.reward, _, self.amounts = self.rows.step_one(action)
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


class LiveLayerControlEnv(ControlEnv):
    """Choose V/f for every decoder layer of every token that a source makes while it is controlled.

    The decision process of ``clone_rl.envs.single.LayerControlEnv`` with a model in the place of the trace.
    ``clone_rl.llm.env.ModelLayerControlEnv``, which ``gymnasium.make`` makes, loads a model and is the specification.

    Args:
        source: Where the tokens come from, such as a ``clone_rl.llm.source.ModelSource``.
        workload: What its model asks of the chip.
        scenario: Name, TOML path, plain data or ``Scenario``; its ``traces`` and ``model`` are not looked at.
        reward, cost, render_mode: As in ``LayerControlEnv``.
        **changes: Fields of ``Scenario``.

    Attributes:
        source: As given.
        request: The one in flight; none before the first reset.

    Raises:
        BadValueError: The source and the workload, or the source and the scenario, are not of one kind.
        CloneRLError: A name or a value is wrong, or the model does not fit the chip.
    """

    request: LiveRequest

    def __init__(
        self,
        source: TokenSource,
        workload: Workload,
        scenario: str | dict[str, Any] | Scenario = "default",
        reward: str | Reward | None = None,
        cost: str | Cost | None = None,
        render_mode: str | None = None,
        **changes: Any,
    ) -> None:
        loaded = Scenario.load(scenario, **changes)
        if source.layers != workload.layers:
            raise BadValueError(f"the source has {source.layers} layers and the workload {workload.layers}", "give its own")
        if source.kv != loaded.kv:
            raise BadValueError(f"the source keeps kv {source.kv!r} and the scenario charges {loaded.kv!r}", "use one")
        self.source = source
        self._live = LiveControl(loaded, *build_emulators(loaded, workload, source.probe_dots))
        super().__init__(self._live.of(blank_trace(source.layers, 1, 1)), len(source), reward, cost, render_mode)

    def _begin(self, seed: int, episode: int, document: int) -> NDArray[np.float32]:
        if document < 0:  # the draw of a replay: the same prompts in the same order are the same requests
            document = int(uniform(seed, episode, REQUEST, 0) * len(self.source))
        self.request = LiveRequest(self._live, self.source, document, seed, episode)
        self.control, self._rows = self.request.control, self.request.rows
        return self.request.observation

    def _advance(self, action: Any) -> Step:
        self.request.step(int(self.control.check(action, 1)[0, 0]))
        return self.request.observation, self.request.reward, self.request.done, self.request.amounts

    def close(self) -> None:
        """Let go of the source."""
        self.source.close()
