"""What a governor knows of its chip: the time and power of a layer at every operating point."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clone_rl.envs.compiling import inlined
from clone_rl.envs.control import Control
from clone_rl.envs.scenario import TargetScale
from clone_rl.hw_emulator.emulator import HEAD


class ChipTable(NamedTuple):
    """Tables of the scenario's own chip and model at the mean context of the training split, as a driver would hold them.

    Attributes:
        layer_s: (2, P) seconds of a layer, in prefill and in decoding.
        head_s: (P,) seconds of the head.
        frequency: (P,) share of the top point's.
        power: (P,) power in decoding, share of the top point's.
        layers: Of the model.
        slowdown: What a busy co-runner stretches every latency by.
        ttft_s, tpot_s: Targets that are observed as 1.
    """

    layer_s: NDArray[np.float64]
    head_s: NDArray[np.float64]
    frequency: NDArray[np.float64]
    power: NDArray[np.float64]
    layers: int
    slowdown: float
    ttft_s: float
    tpot_s: float

    @classmethod
    def of(cls, control: Control) -> ChipTable:
        """The table of a scenario."""
        emulator, traces, rules = control.emulator, control.traces, control.world.rules[0]
        prompt = max(1, int(traces.prompt_tokens[traces.documents("train")].mean()))
        context = prompt + int(traces.mean_tokens().mean()) // 2
        prefill, decoding = emulator.table("prefill", tokens=prompt), emulator.table(context=context)
        power = decoding["energy_j"].sum(0) / decoding["latency_s"].sum(0)
        hertz = emulator.points["frequency_hz"]
        return cls(
            layer_s=np.stack([prefill["latency_s"].mean(0), decoding["latency_s"].mean(0)]),
            head_s=np.array([emulator.cost(HEAD, point).latency_s for point in range(control.points)]),
            frequency=hertz / hertz[-1],
            power=power / power[-1],
            layers=traces.layers,
            slowdown=control.scenario.interference.slowdown,
            ttft_s=float(rules["max_ttft_s"]),
            tpot_s=float(rules["max_tpot_s"]),
        )

    @property
    def scale(self) -> TargetScale:
        """The same, for the scenarios that its governor decides in."""
        return TargetScale(self.ttft_s, self.tpot_s)


@inlined
def lowest_point(table: Any, phase: int, pressure: float, share: float) -> int:
    """Lowest point at which work that takes ``pressure`` at the top one, of the time left, takes ``share`` of it at most.

    The top one stands for none.
    """
    top = table.layer_s.shape[1] - 1
    point = 0
    while point < top and pressure * table.layer_s[phase, point] > share * table.layer_s[phase, top]:
        point += 1
    return point
