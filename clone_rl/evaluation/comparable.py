"""The same scenario on another chip: every time in proportion to the chip's own speed, so that chips can be compared."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from clone_rl.envs.control import traced_workload
from clone_rl.envs.scenario import Scenario
from clone_rl.envs.trace import TraceSet
from clone_rl.envs.world import build_emulators
from clone_rl.hw_emulator.emulator import HEAD, Emulator


@dataclass(frozen=True)
class Speed:
    """What a chip needs at its top point, undisturbed and at full depth, for a trace set's requests.

    Attributes:
        prefill_s: The longest prompt, head included.
        token_s: A decoded token at the mean context, head included.
    """

    prefill_s: float
    token_s: float

    @classmethod
    def of(cls, emulator: Emulator, traces: TraceSet) -> Self:
        """Of a chip that is loaded with the traces' model."""
        head_s, top = emulator.cost(HEAD, emulator.top).latency_s, emulator.top
        context = mean_context(traces)
        prefill = emulator.table("prefill", tokens=int(traces.prompt_tokens.max()))["latency_s"][:, top]
        return cls(float(prefill.sum()) + head_s, float(emulator.table(context=context)["latency_s"][:, top].sum()) + head_s)


def mean_context(traces: TraceSet) -> float:
    """Tokens in the cache at the mean decoded token of a set."""
    lengths = np.diff(traces.offset)
    decoded = np.maximum(lengths - 1, 0)
    inside = traces.prompt_tokens * decoded + 0.5 * decoded * lengths
    return float(np.round(inside.sum() / max(1, decoded.sum())))


def comparable(scenario: Scenario, chip: str, traces: TraceSet) -> Scenario:
    """A scenario on another chip, as hard there as it is on its own.

    Targets of the first token scale with the longest prompt's prefill at the top point, targets of further tokens and the
    co-runner's times with a decoded token. Slack, the mix of classes, the slowdown and the limits stay. What a change of
    operating point takes does not scale: it is the mechanism's, whatever chip hangs on it.

    Args:
        scenario: On its own chip.
        chip: Shipped name or TOML file.
        traces: Of the scenario.

    Raises:
        CloneRLError: The model does not fit the chip, or the scenario's regulator or ambient temperature does not.
    """
    moved = replace(scenario, chip=chip, name=f"{scenario.name} on {chip}")
    workload = traced_workload(traces)
    here, there = (Speed.of(build_emulators(one, workload)[0], traces) for one in (scenario, moved))
    prefill, token = there.prefill_s / here.prefill_s, there.token_s / here.token_s
    other = scenario.interference
    return replace(
        moved,
        slo=tuple(replace(level, ttft_s=level.ttft_s * prefill, tpot_s=level.tpot_s * token) for level in scenario.slo),
        interference=replace(
            other,
            slot_s=other.slot_s * token,
            mean_idle_s=other.mean_idle_s * token,
            mean_busy_s=other.mean_busy_s * token,
        ),
    )
