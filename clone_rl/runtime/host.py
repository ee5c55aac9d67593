"""What a request has to know of its host to reckon the observation: rules, service levels, what layers take."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clone_rl.agents.controller import Controller
from clone_rl.agents.origin import trained_scenario
from clone_rl.agents.rollout import charged_scenario
from clone_rl.envs.control import workload_of
from clone_rl.envs.kernel import World
from clone_rl.envs.live import LiveControl
from clone_rl.envs.prices import POINT, PRICE, SWITCH, Prices
from clone_rl.envs.scenario import Scenario
from clone_rl.envs.trace import SIGNALS, blank_trace, load_traces
from clone_rl.envs.world import build_emulators, rules_of
from clone_rl.errors import BadValueError
from clone_rl.hw_emulator.cost import CHIP, WORK
from clone_rl.hw_emulator.cost import POINT as CHIP_POINT
from clone_rl.hw_emulator.workload import Workload
from clone_rl.runtime.measurements import Measurements, check_slowdown

_CONTEXT = 256
"""Tokens that the first tables hold, where they can grow."""

Tables = Callable[[int], World]
"""The kernel's constants, for contexts of so many tokens."""


class HostTables:
    """A host as one controller finds it.

    Args:
        scenario: Rules, with this controller's own overheads.
        build: Makes the constants.
        reach: Longest context that they can be made for; None is any.

    Attributes:
        scenario, reach: As given.
    """

    def __init__(self, scenario: Scenario, build: Tables, reach: int | None) -> None:
        self.scenario, self.reach, self._build = scenario, reach, build
        self._lock, self._longest = threading.Lock(), 0

    def world(self, longest: int = _CONTEXT) -> World:
        """The constants, for contexts of so many tokens at least, or up to ``reach``; made anew where they do not reach."""
        with self._lock:
            if self._longest == 0 or (self._longest < longest and self.reach is None):  # one that doubles is seldom built
                self._longest = self.reach or max(_CONTEXT, 1 << (longest - 1).bit_length())
                self._world = self._build(self._longest)
            return self._world


class Host:
    """A machine that runs a model under a controller; ``emulated_host`` and ``measured_host`` describe one.

    Args:
        scenario: Rules, service levels by name, co-runner; a controller's own overheads are charged.
        points: Operating points.
        tables: Makes ``HostTables`` of a charged scenario.
        reach: As of ``HostTables``.

    Attributes:
        scenario, points: As given.
    """

    def __init__(
        self, scenario: Scenario, points: int, tables: Callable[[Scenario], Tables], reach: int | None = None
    ) -> None:
        self.scenario, self.points, self._tables, self._reach = scenario, points, tables, reach

    def charged(self, controller: Controller) -> HostTables:
        """The same with this controller's overheads and signals.

        Raises:
            CloneRLError: The model does not fit the chip.
        """
        signals = tuple(getattr(controller, "signals", ()))
        scenario = replace(charged_scenario(self.scenario, controller), signals=signals)
        return HostTables(scenario, self._tables(scenario), self._reach)


def emulated_host(
    scenario: str | Scenario = "default", workload: Workload | None = None, probe_dots: int | None = None
) -> Host:
    """A chip that the emulator knows.

    Where the scenario randomises, it is its own chip, and a busy co-runner slows that down by the middle of the range.

    Args:
        scenario: Chip and rules, by name, path or as it is.
        workload: The model; None is the one that the scenario's traces were recorded from.
        probe_dots: Dot products with the residual that its exit probe takes at a boundary; None is as in those traces, or
            two with another workload.

    Raises:
        CloneRLError: A name, a file or a value is wrong.
    """
    loaded = Scenario.load(scenario)
    if workload is None:
        traces = load_traces(loaded.traces)
        workload, recorded = workload_of(loaded, traces), traces.probe_dots
    else:
        recorded = len(SIGNALS)
    model, dots = workload, recorded if probe_dots is None else probe_dots

    def tables(charged: Scenario) -> Tables:
        live = LiveControl(charged, build_emulators(charged, model, dots)[0])

        def build(longest: int) -> World:
            return _bare(live.of(blank_trace(model.layers, 1, longest - 1)).world)

        return build

    return Host(loaded, len(loaded.load_chip().operating_points), tables)


def trained_host(controller: Any) -> Host:
    """The host that a policy was trained for, emulated.

    Raises:
        BadValueError: It does not say.
        CloneRLError: What its card names is not here.
    """
    scenario = trained_scenario(getattr(controller, "card", {}))
    if scenario is None:
        raise BadValueError(
            f"controller {controller.name!r} does not say which host it was made for",
            "give RuntimeController host=emulated_host(scenario) or measured_host(...), or decide on an array",
        )
    return emulated_host(scenario)


def measured_host(
    layers: int,
    contexts: ArrayLike,
    decode_s: ArrayLike,
    prompts: ArrayLike,
    prefill_s: ArrayLike,
    head_s: ArrayLike,
    switch_s: ArrayLike = 0.0,
    decide_s: float = 0.0,
    *,
    scenario: str | Scenario = "default",
    context: int | None = None,
    slowdown: float | None = None,
    ambient_c: float | None = None,
    throttle_c: float | None = None,
) -> Host:
    """A host by its own measurements, at P operating points, lowest first; typical times, where a shield takes the longest.

    Keys and values of skipped layers are taken to be filled at once.

    Args:
        layers, contexts, decode_s, prompts, prefill_s, head_s, switch_s, decide_s: As of ``measured_shield``.
        scenario: The one that the controller was made for, by name, path or as it is: the scale of targets, service levels
            by name, deadlines, where the point may change.
        context: Longest context of the model, tokens; None is the last of ``contexts``.
        slowdown: What a busy co-runner multiplies the times with; None is the scenario's.
        ambient_c: Temperature of the die where none is told, Celsius; None is that of the scenario's chip.
        throttle_c: Temperature at which the host begins to throttle; None is that of the scenario's chip.

    Raises:
        BadValueError: A shape or a number is wrong.
        CloneRLError: A name or a file is wrong.

    >>> host = measured_host(
    ...     4, contexts=[128, 512], decode_s=[[2e-3, 1e-3], [3e-3, 2e-3]], prompts=[64, 256],
    ...     prefill_s=[[9e-3, 5e-3], [3e-2, 2e-2]], head_s=[2e-3, 1e-3], switch_s=1e-4,
    ... )
    >>> host.points
    2
    """
    measured = Measurements.of(layers, contexts, decode_s, prompts, prefill_s, head_s, switch_s, decide_s)
    loaded, reach, points = Scenario.load(scenario, kv="propagate"), len(measured.decode) - 1, len(measured.head)
    if points < 2:
        raise BadValueError(f"{points} operating point", "two at least: there is nothing to choose")
    if slowdown is not None:
        other = replace(loaded.interference, slowdown=check_slowdown(slowdown))
        loaded = replace(loaded, interference=other, randomise=replace(loaded.randomise, slowdown=(1.0, 1.0)))
    thermal = loaded.load_chip().thermal
    ambient_c = thermal.ambient_c if ambient_c is None else float(ambient_c)
    throttle_c = thermal.throttle_c if throttle_c is None else float(throttle_c)
    if not -273.15 < ambient_c < throttle_c < np.inf:
        raise BadValueError(f"ambient_c {ambient_c} and throttle_c {throttle_c}", "finite, the first below the second")
    chip = np.zeros(1, CHIP)
    chip["ambient_c"], chip["throttle_c"] = ambient_c, throttle_c
    chip["limit_c"] = throttle_c + thermal.limit_c - thermal.throttle_c

    def tables(charged: Scenario) -> Tables:
        world = _measured_world(measured, rules_of(charged, layers, context or reach, points), charged, chip)
        return lambda _: world

    return Host(loaded, points, tables, reach)


def _bare(world: World) -> World:
    """The same without a trace: a host tells what the probe and the signals read."""
    columns = {name: getattr(world, name)[:0] for name in ("seen", "outcome", "hidden", "margin", "entropy")}
    return world._replace(**columns, chosen=np.zeros(0, np.int64))


def _measured_world(measured: Measurements, rules: NDArray[np.void], scenario: Scenario, chip: NDArray[np.void]) -> World:
    """Of the prices only what an observation reads: times."""
    layers, points, places = int(rules[0]["layers"]), len(measured.head), len(measured.decode)
    prices = Prices(
        chip=chip,
        points=np.zeros((1, points), CHIP_POINT),
        work=np.zeros((1, 1), WORK),
        at=np.zeros((1, points), POINT),
        switch=np.zeros((1, points, points), SWITCH),
        switch_s=measured.switch[None].copy(),
        layer=np.zeros((1, 1, 1, points), PRICE),
        head_s=measured.head[None].copy(),
        fill=np.zeros((1, 1, 1, points), PRICE),
        kind=np.zeros(layers, np.int64),
        remaining=np.arange(layers, -1, -1)[:, None],
        prefill=np.array([places]),
        reference_j=np.zeros(1),
    )
    return World(
        prices=prices,
        rules=rules,
        decision_s=measured.decide[None].copy(),
        layer_s=(np.concatenate([measured.decode, measured.prefill]) + measured.decide)[None, None],
        slo=np.array([(level.ttft_s, level.tpot_s) for level in scenario.slo]),
        documents=np.zeros(1, np.int64),
        offset=np.zeros(2, np.int64),
        prompt=np.zeros(1, np.int64),
        length=np.zeros(1),
        seen=np.zeros((0, layers - 1, 2), np.float32),
        outcome=np.zeros((0, layers - 1, 3), np.float32),
        hidden=np.zeros((0, layers - 1, 3), np.float32),
        margin=np.zeros((0, layers), np.float32),
        entropy=np.zeros((0, layers), np.float32),
        chosen=np.zeros(0, np.int64),
    )
