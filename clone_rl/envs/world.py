"""From a scenario to the arrays that the kernel runs on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clone_rl.envs.bounds import check_bounds
from clone_rl.envs.kernel import World
from clone_rl.envs.observation import OBSERVATION
from clone_rl.envs.prices import Prices, price_list
from clone_rl.envs.randomise import variants
from clone_rl.envs.scenario import DEADLINES, DEFAULT_GROUPS, GRANULARITIES, MOST_GROUPS, Scenario
from clone_rl.envs.signals import EXTRA_SIGNALS
from clone_rl.envs.state import RULES
from clone_rl.envs.trace import HIDDEN, SIGNALS, TraceSet
from clone_rl.errors import BadValueError
from clone_rl.hw_emulator.chip import Chip
from clone_rl.hw_emulator.emulator import Emulator
from clone_rl.hw_emulator.ledger import KV
from clone_rl.hw_emulator.workload import Workload

_MAX_LENGTH = 128.0


def observation_names(scenario: Scenario) -> tuple[str, ...]:
    """Names of the observation's scalars, in order: ``observation.OBSERVATION``, then the scenario's extra signals."""
    return (*OBSERVATION, *scenario.signals)


def build_emulators(
    scenario: Scenario, workload: Workload, probe_dots: int = len(SIGNALS)
) -> tuple[Emulator, tuple[Emulator, ...]]:
    """The scenario's chip loaded with a model of this shape, and the chips that episodes draw from.

    A statistic of the residual costs about as much as a dot product, so each one asked for is charged as one more of the
    probe's.

    Args:
        scenario: Chip, switching mechanism, controller, signals and randomisation.
        workload: The model.
        probe_dots: Dot products with the residual that the model's probe takes at a boundary.
    """
    chip = scenario.load_chip()
    signals = probe_dots + sum(name in HIDDEN for name in scenario.signals)

    def loaded(each: Chip) -> Emulator:
        return Emulator(each, workload, scenario.switching or None, signals=signals, policy_macs=scenario.policy_macs)

    drawn = variants(chip, scenario.randomise)
    own = loaded(chip)
    return own, (own,) if drawn == (chip,) else tuple(loaded(each) for each in drawn)


def build_prices(emulators: tuple[Emulator, ...], traces: TraceSet) -> Prices:
    """Tables long enough for a trace set."""
    ends = traces.prompt_tokens + np.diff(traces.offset)
    return price_list(emulators, int(traces.prompt_tokens.max()), int(ends.max()))


def build_world(scenario: Scenario, traces: TraceSet, split: str, workload: Workload, prices: Prices) -> World:
    """Arrays for the kernel.

    Args:
        scenario: Rules and distributions.
        traces: What to replay; its depth must be the model's.
        split: Which documents to draw from.
        workload: The model.
        prices: What the chips take for the model's work.

    Raises:
        BadValueError: The traces are of a model of another depth, it has fewer layers than groups, the split is empty, or a
            request could last endlessly or overheat its chip, see ``bounds``.
        BadFileError: A value of the traces is not finite.
        UnknownNameError: Unknown split.
    """
    if traces.layers != workload.layers:
        raise BadValueError(
            f"the traces have {traces.layers} layers and the model {workload.layers}",
            "record traces of this model with clone-rl record",
        )
    seen, outcome = traces.packed
    wanted, decision_s = set(scenario.signals), _decision_s(scenario, prices)
    layer_s = prices.layer["latency_s"].copy()
    for phase, places in enumerate((slice(prices.prefill[0], None), slice(prices.prefill[0]))):
        layer_s[:, :, places] += decision_s[:, None, None, phase]
    world = World(
        prices=prices,
        rules=rules_of(scenario, workload.layers, workload.context, prices.at.shape[1]),
        decision_s=decision_s[:, 1].copy(),
        layer_s=layer_s,
        slo=np.array([(c.ttft_s, c.tpot_s) for c in scenario.slo]),
        documents=traces.documents(split),
        offset=traces.offset,
        prompt=traces.prompt_tokens,
        length=traces.mean_tokens()[traces.kind],
        seen=seen,
        outcome=outcome,
        hidden=traces.read("hidden", slice(None if wanted & set(HIDDEN) else 0)),
        margin=traces.read("margin", slice(None if "margin" in wanted else 0)),
        entropy=traces.read("entropy", slice(None if "entropy" in wanted else 0)),
        chosen=np.array([EXTRA_SIGNALS.index(name) for name in scenario.signals], np.int64),
    )
    check_bounds(world, scenario.name)
    return world


def _groups(scenario: Scenario, layers: int) -> int:
    most = min(MOST_GROUPS, layers)
    if scenario.groups is None:
        return min(DEFAULT_GROUPS, most)
    if scenario.groups > most:
        raise BadValueError(f"{scenario.groups} layer groups", f"1 to {most}")
    return scenario.groups


def rules_of(scenario: Scenario, layers: int, context: int, points: int) -> NDArray[np.void]:
    """(1,) record of ``RULES``.

    Args:
        scenario: Rules and distributions.
        layers: Of the model.
        context: Its longest, in tokens.
        points: Operating points of the chip.

    Raises:
        BadValueError: It has fewer layers than groups.
    """
    other, ranges = scenario.interference, scenario.randomise
    idle_s, busy_s = other.mean_idle_s, other.mean_busy_s
    rules = np.zeros(1, RULES)
    for name, value in {
        "layers": layers,
        "groups": _groups(scenario, layers),
        "slack_low": scenario.slack_low,
        "slack_high": scenario.slack_high,
        "target_low": ranges.targets[0],
        "target_high": ranges.targets[1],
        "slowdown_low": other.slowdown * ranges.slowdown[0],
        "slowdown_high": other.slowdown * ranges.slowdown[1],
        "slot_s": other.slot_s,
        "idle_low_s": idle_s * ranges.mean_idle[0],
        "idle_high_s": idle_s * ranges.mean_idle[1],
        "busy_low_s": busy_s * ranges.mean_busy[0],
        "busy_high_s": busy_s * ranges.mean_busy[1],
        "per_token": DEADLINES.index(scenario.deadline),
        "granularity": GRANULARITIES.index(scenario.granularity),
        "delay": scenario.decision_delay,
        "probe": scenario.probe,
        "policy": scenario.policy_macs > 0,
        "kv": KV.index(scenario.kv),
        "late": scenario.weights.late,
        "disagree": scenario.weights.disagree,
        "kl": scenario.weights.kl,
        "max_ttft_s": scenario.scale.ttft_s,
        "max_tpot_s": scenario.scale.tpot_s,
        "max_length": _MAX_LENGTH,
        "layer_share": 1.0 / layers,
        "point_share": 1.0 / (points - 1),
        "context_share": 1.0 / context,
        "token_share": 1.0 / _MAX_LENGTH,
    }.items():
        rules[0][name] = value
    return rules


def _decision_s(scenario: Scenario, prices: Prices) -> NDArray[np.float64]:
    """(V, 2, P) seconds that probe and controller hold up a layer, in prefill (which reads no probe) and in decoding."""
    timed = scenario.policy_macs > 0 and not scenario.decision_delay
    policy_s = prices.at["policy"]["latency_s"] * timed
    return np.stack([policy_s, policy_s + prices.at["probe"]["latency_s"] * scenario.probe], 1)
