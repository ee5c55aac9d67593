"""From a scenario to the arrays that the kernel runs on, and from a finished state to figures."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clone_rl.envs.kernel import ENERGY_TERMS, MAX_LAYERS, OBSERVATION, PROPAGATE, RULES, World
from clone_rl.envs.scenario import DEADLINES, GRANULARITIES, Scenario
from clone_rl.envs.signals import EXTRA_SIGNALS, Signals
from clone_rl.envs.trace import HIDDEN, SIGNALS, TraceSet
from clone_rl.errors import BadValueError
from clone_rl.hw_emulator.chip import load_chip
from clone_rl.hw_emulator.emulator import HEAD, POLICY, PROBE, Emulator
from clone_rl.hw_emulator.ledger import KV
from clone_rl.hw_emulator.workload import Workload

REFERENCE_CONTEXT = 64.0
"""Context (tokens) at which the reference energy of the reward is taken."""

_MAX_LENGTH = 128.0


def observation_names(scenario: Scenario) -> tuple[str, ...]:
    """Names of the observation's scalars, in order: ``kernel.OBSERVATION``, then the scenario's extra signals."""
    return (*OBSERVATION, *scenario.signals)


def build_emulator(scenario: Scenario, workload: Workload, probe_dots: int = len(SIGNALS)) -> Emulator:
    """The scenario's chip loaded with a model of this shape.

    A statistic of the residual costs about as much as a dot product, so each one asked for is charged as one more of the
    probe's.

    Args:
        scenario: Chip, switching mechanism, controller and signals.
        workload: The model.
        probe_dots: Dot products with the residual that the model's probe takes at a boundary.
    """
    signals = probe_dots + sum(name in HIDDEN for name in scenario.signals)
    return Emulator(
        load_chip(scenario.chip), workload, scenario.switching or None, signals=signals, policy_macs=scenario.policy_macs
    )


def build_world(scenario: Scenario, traces: TraceSet, split: str, emulator: Emulator) -> World:
    """Arrays for the kernel.

    Args:
        scenario: Rules and distributions.
        traces: What to replay; its depth must be the model's.
        split: Which documents to draw from.
        emulator: The chip with the model.

    Raises:
        BadValueError: The traces are of a model of another depth, the split is empty, or the model is too deep for this
            way with skipped keys and values.
        UnknownNameError: Unknown split.
    """
    if traces.layers != emulator.workload.layers:
        raise BadValueError(
            f"the traces have {traces.layers} layers and the model {emulator.workload.layers}",
            "record traces of this model with clone-rl record",
        )
    kv = KV.index(scenario.kv)
    if kv != PROPAGATE and traces.layers > MAX_LAYERS:
        raise BadValueError(f"kv {scenario.kv!r} with {traces.layers} layers", f"at most {MAX_LAYERS}, or kv 'propagate'")
    other = scenario.interference
    rules = np.zeros(1, RULES)
    for name, value in {
        "layers": emulator.workload.layers,
        "slack_low": scenario.slack_low,
        "slack_high": scenario.slack_high,
        "slowdown": other.slowdown,
        "slot_s": other.slot_s,
        "to_busy": min(1.0, other.slot_s / other.mean_idle_s),
        "to_idle": min(1.0, other.slot_s / other.mean_busy_s),
        "per_token": DEADLINES.index(scenario.deadline),
        "granularity": GRANULARITIES.index(scenario.granularity),
        "delay": scenario.decision_delay,
        "probe": scenario.probe,
        "policy": scenario.policy_macs > 0,
        "kv": kv,
        "reference_j": emulator.token_energy_j(emulator.top, REFERENCE_CONTEXT),
        "late": scenario.weights.late,
        "disagree": scenario.weights.disagree,
        "kl": scenario.weights.kl,
        "context": emulator.workload.context,
        "max_ttft_s": max(c.ttft_s for c in scenario.slo) * scenario.slack_high,
        "max_tpot_s": max(c.tpot_s for c in scenario.slo) * scenario.slack_high,
        "max_length": _MAX_LENGTH,
    }.items():
        rules[0][name] = value

    points = range(len(emulator.points))

    def decision_s(point: int, phase: int) -> float:
        probe = emulator.cost(PROBE, point).latency_s if scenario.probe and phase else 0.0
        timed = scenario.policy_macs and not scenario.decision_delay
        return probe + (emulator.cost(POLICY, point).latency_s if timed else 0.0)

    return World(
        constants=emulator.constants,
        points=emulator.points,
        work=emulator.work,
        classes=np.array(emulator.classes, np.int64),
        remaining=emulator.remaining,
        head_s=np.array([emulator.cost(HEAD, k).latency_s for k in points]),
        decision_s=np.array([[decision_s(k, phase) for k in points] for phase in (0, 1)]),
        rules=rules,
        slo=np.array([(c.ttft_s, c.tpot_s) for c in scenario.slo]),
        documents=traces.documents(split),
        offset=traces.offset,
        prompt=traces.prompt_tokens,
        length=traces.mean_tokens()[traces.kind],
        signal=traces.signal,
        agree=traces.agree,
        kl=traces.kl,
        dnll=traces.dnll,
        signals=Signals(
            traces.hidden,
            traces.margin,
            traces.entropy,
            np.array([EXTRA_SIGNALS.index(name) for name in scenario.signals], np.int64),
        ),
    )


def figures(states: NDArray[np.void]) -> dict[str, NDArray[Any]]:
    """What finished (or cut) requests amounted to; one array entry per record of ``STATE``.

    Returns:
        ``energy_j`` and its terms, ``time_s`` (with idling), ``ttft_s``, ``tpot_s`` (mean after the first token; 0 for a
        single token), and sums over tokens: ``tokens``, ``late``, ``disagree``, ``dnll`` (nats), ``kl`` (nats), ``depth``
        (layers), ``switches``; the reward's terms; ``document`` and ``slo``.
    """
    tokens = states["token"]
    return {
        "document": states["document"].copy(),
        "slo": states["slo"].copy(),
        "tokens": tokens.copy(),
        "energy_j": sum(states[term] for term in ENERGY_TERMS),
        **{term: states[term].copy() for term in ENERGY_TERMS},
        "time_s": states["clock_s"].copy(),
        "ttft_s": states["first_s"].copy(),
        "tpot_s": (states["last_s"] - states["first_s"]) / np.maximum(tokens - 1, 1),
        "late": states["late"].copy(),
        "disagree": states["disagree"].copy(),
        "dnll": states["dnll"].copy(),
        "kl": states["kl_sum"].copy(),
        "depth": states["depth"].copy(),
        "switches": states["switches"].copy(),
        **{name: states[name].copy() for name in ("reward_energy", "reward_late", "reward_disagree", "reward_kl")},
    }
