"""Control of a request whose tokens are generated while it runs: the kernel keeps the account, a source makes the tokens."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clone_rl.envs.control import Control
from clone_rl.envs.figures import as_dict
from clone_rl.envs.kernel import may_exit
from clone_rl.envs.keywords import check_keywords
from clone_rl.envs.prices import price_list
from clone_rl.envs.randomness import REQUEST, uniform
from clone_rl.envs.reward import Cost, Reward
from clone_rl.envs.rows import Rows
from clone_rl.envs.scenario import Scenario, ServiceLevel
from clone_rl.envs.single import ControlEnv, Step
from clone_rl.envs.source import TokenSource
from clone_rl.envs.state import AMOUNTS
from clone_rl.envs.trace import TraceSet, blank_trace
from clone_rl.envs.trace import scaled_signal as scaled_signal
from clone_rl.envs.world import build_emulators, build_world
from clone_rl.errors import BadValueError, UnknownNameError
from clone_rl.hw_emulator.emulator import Emulator
from clone_rl.hw_emulator.ledger import Ledger
from clone_rl.hw_emulator.workload import Workload

_CONTEXT = 256
"""Tokens that the first price tables hold."""

_SLOTS = 10_000_000
"""Slots of the co-runner that a request may span; the kernel walks them one by one, a tenth of a second for so many."""

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


def service_level(scenario: Scenario, slo: ServiceLevel | str) -> ServiceLevel:
    """A service level as it is, or one of a scenario's classes by name.

    Raises:
        UnknownNameError: The scenario has no class of this name.
        BadValueError: Neither a name nor a service level.
    """
    if isinstance(slo, ServiceLevel):
        return slo
    if not isinstance(slo, str):
        raise BadValueError(f"service level {slo!r}", "the name of a class, or ServiceLevel(name, ttft_s, tpot_s)")
    classes = {level.name: level for level in scenario.slo}
    if slo not in classes:
        raise UnknownNameError("service level", slo, classes)
    return classes[slo]


class LiveRequest:
    """One request in flight; the same kernel, observations and charges as on a trace.

    Args:
        live: The scenario, made ready.
        source: Where the tokens come from.
        document: Which of its prompts.
        seed, episode: Key of the service level and the interference, and of what the source draws.
        slo: A service level whose targets hold as they are, or the name of one of the scenario's classes; None draws one of
            them and the slack on its targets.
        waited_s: How long the request has waited already. Its clock starts there, and so TTFT and due times count it; no
            energy is charged for it.

    Attributes:
        slo: The service level; its targets are those in force, slack included.
        waited_s: As given.
        prompt_tokens: Length of the prompt.
        control: What is stepped.
        rows: The state, of one row.
        observation: What the controller sees now.
        done: Whether the response has ended.
        reward: Of the last step.
        amounts: (7,) of the last step, see ``state.AMOUNTS``.
        points: For each token, the operating point of each layer that ran, -1 elsewhere; (longest response, layers).
        emitted_s, due_s: For each token, when it left and when it was due.

    Raises:
        BadValueError: A negative or endless wait, or targets beyond what the co-runner's slots are followed for.
        UnknownNameError: The scenario has no such service level.
    """

    def __init__(
        self,
        live: LiveControl,
        source: TokenSource,
        document: int = 0,
        seed: int = 0,
        episode: int = 0,
        slo: ServiceLevel | str | None = None,
        waited_s: float = 0.0,
    ) -> None:
        self._given = live, source, document, seed, episode, slo, waited_s
        self._actions: list[int] = []
        level = None if slo is None else service_level(live.scenario, slo)
        trace = source.start(document, seed + episode * _EPISODES_APART)
        self.source, self.control = source, live.of(trace)
        self._trace, self._world = trace, self.control.world
        self._rules, self.rows = self._world.rules[0], Rows(self._world, 1)
        self._delays, self._probes, self._decides = (bool(self._rules[name]) for name in ("delay", "probe", "policy"))
        self._extras = [name for name in ("hidden", "margin", "entropy") if len(getattr(self._world, name))]
        self.layers, self.exit_action = trace.layers, self.control.points
        keys = np.array([seed]), np.array([episode]), np.array([0])
        self.observation: NDArray[np.float32] = self.rows.reset(*keys)[0]
        self._state = self.rows.state[0]
        fields = "token", "layer", "point", "due_s", "last_s", "clock_s", "energy_j"
        # A column's own item takes a tenth of the time of a record's.
        self._token, self._layer, self._point, self._due_s, self._last_s, self._clock_s, self._energy_j = (
            self.rows.state[name].item for name in fields
        )
        self._state["document"] = document  # the trace holds this one alone
        self.waited_s = self._checked(waited_s, level)
        if level is not None:
            self._promise(level, live.scenario)
        if waited_s:
            self._wait(waited_s)
        if level is not None or waited_s:
            self.observation = self.rows.reset(*keys, chosen=np.array([False]))[0]  # starts nothing anew, only observes
        state = self._state
        name = live.scenario.slo[state["slo"]].name if level is None else level.name
        self.slo = ServiceLevel(name, float(state["ttft_s"]), float(state["tpot_s"]))
        self.prompt_tokens = int(trace.prompt_tokens[0])
        self.done = False
        self._kv, self._log = live.scenario.kv, list[tuple[int, int, int, bool]]()
        self.points = np.full((int(trace.offset[-1]), self.layers), -1)
        self.emitted_s: list[float] = []
        self.due_s: list[float] = []
        self.reward, self.amounts = 0.0, np.zeros(len(AMOUNTS))

    def __reduce__(self) -> tuple[Any, ...]:
        """What a model keeps between two layers is not copied: the same decisions of the same request are taken again."""
        return _again, (type(self), self._given, self._actions)

    def _checked(self, waited_s: float, level: ServiceLevel | None) -> float:
        """The wait, if the kernel can follow the co-runner for so long."""
        if isinstance(waited_s, bool) or not isinstance(waited_s, int | float) or not 0 <= waited_s < math.inf:
            raise BadValueError(f"waited_s is {waited_s!r}", "a finite number of seconds, 0 or more")
        longest_s = _SLOTS * float(self._rules["slot_s"])
        due_s = 0.0 if level is None else level.ttft_s + self._trace.offset[-1] * level.tpot_s
        if max(waited_s, due_s) > longest_s:
            what = f"a wait of {waited_s:g} s" if waited_s > longest_s else f"a last token that is due after {due_s:g} s"
            raise BadValueError(what, f"at most {longest_s:g} s in this scenario")
        return float(waited_s)

    def _promise(self, level: ServiceLevel, scenario: Scenario) -> None:
        """Put these targets in the place of those that were drawn."""
        state, rules = self._state, self._rules
        state["slo"] = scenario.slo.index(level) if level in scenario.slo else -1
        state["ttft_s"], state["tpot_s"], state["due_s"] = level.ttft_s, level.tpot_s, level.ttft_s
        state["ttft_shown"] = min(1.0, level.ttft_s / rules["max_ttft_s"])
        state["tpot_shown"] = min(1.0, level.tpot_s / rules["max_tpot_s"])

    def _wait(self, seconds: float) -> None:
        """Start the clock late; the co-runner is met in the slot of that time, busy or not as it was drawn."""
        state, slot_s = self._state, float(self._rules["slot_s"])
        state["clock_s"] += seconds
        state["slot"] = int(seconds / slot_s)
        state["slot_end_s"] = (int(seconds / slot_s) + 1) * slot_s

    @property
    def ledger(self) -> Ledger:
        """What ran so far, as shapes; made anew each time, from the steps that were taken."""
        ledger = Ledger(self.layers, self._kv)
        ledger.start(self.prompt_tokens)
        for step, (layer, point, now, leaves) in enumerate(self._log):
            if self._probes and layer > 0 and step >= self.layers:  # after the prompt, which runs at full depth
                ledger.probe(point)
            if self._decides:
                ledger.policy(point)
            if now != point:
                ledger.switch(point, now)
            if leaves:
                ledger.leave(layer, now)
            else:
                ledger.layer(layer, now)
            if leaves or layer == self.layers - 1:
                ledger.head(now)
        return ledger

    @property
    def targets(self) -> dict[str, float]:
        """``ttft_s`` and ``tpot_s`` in force, seconds, slack included."""
        return {"ttft_s": self.slo.ttft_s, "tpot_s": self.slo.tpot_s}

    @property
    def may_exit(self) -> bool:
        """Whether an exit would be taken now."""
        return may_exit(self._state)

    @property
    def clock_s(self) -> float:
        """Seconds since the request was made."""
        return self._clock_s()  # type: ignore[no-any-return]

    @property
    def energy_j(self) -> float:
        """Joules since the request's start."""
        return self._energy_j()  # type: ignore[no-any-return]

    def figures(self) -> dict[str, Any]:
        """Totals, see ``clone_rl.envs.figures.FIGURES``."""
        return as_dict(self.rows.figures()[0])

    def _take_in(self, token: int, layer: int, leaves: bool) -> None:
        """What the source has just written about a boundary or an exit, where the kernel reads it."""
        trace, world = self._trace, self._world
        if leaves:
            at = token, layer - 1
            world.outcome[at] = 1.0 - trace.agree[at], trace.dnll[at], trace.kl[at]
        elif self._probes and token > 0 and layer < self.layers - 1:
            world.seen[token, layer] = scaled_signal(*trace.signal[token, layer].tolist())
        for name in self._extras:
            getattr(world, name)[token] = getattr(trace, name)[token]

    def step(self, action: int) -> None:
        """Take one decision: let the source run the layer or emit the token, then let the kernel account for it."""
        self._actions.append(action)
        token, layer, point, due_s = self._token(), self._layer(), self._point(), self._due_s()
        reads = token > 0 and layer > 0  # as ``kernel.may_exit``
        taken = int(self._state["pending"]) if self._delays else action
        leaves = taken == self.exit_action and reads
        if leaves:
            self.source.leave(layer)
        else:
            self.source.run(layer)
        self._take_in(token, layer, leaves)
        if self.source.ended:
            self._state["tokens"] = token + 1
        self.observation, self.reward, self.done, self.amounts = self.rows.step_one(action)
        now = self._point()
        self._log.append((layer, point, now, leaves))
        if not leaves:
            self.points[token, layer] = now
        if leaves or layer == self.layers - 1:
            self.due_s.append(due_s)
            self.emitted_s.append(self._last_s())


def _again(kind: type[LiveRequest], given: tuple[Any, ...], actions: list[int]) -> LiveRequest:
    """A copy of a request, brought to where it was."""
    request = kind(*given)
    for action in actions:
        request.step(action)
    return request


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
        check_keywords(type(self), changes)
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

    def __getstate__(self) -> dict[str, Any]:
        shared = ("control", "_rows") if "request" in vars(self) else ()  # with the request
        return {name: value for name, value in vars(self).items() if name not in shared}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if "request" in state:
            self.control, self._rows = self.request.control, self.request.rows

    def close(self) -> None:
        """Let go of the source."""
        self.source.close()
