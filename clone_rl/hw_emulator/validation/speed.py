"""V14: how fast the emulator is."""

from __future__ import annotations

import time

from clone_rl.hw_emulator.chip import Chip
from clone_rl.hw_emulator.emulator import Emulator
from clone_rl.hw_emulator.validation.check import Check
from clone_rl.hw_emulator.workload import Workload

GOAL_PER_S = 20_000.0
_CONTEXTS = [float(context) for context in range(0, 2048, 8)]
_TRIES = 3


def check_speed() -> list[Check]:
    """Layer evaluations per second of processor time, best of three."""
    emulator = Emulator(Chip.load("asic28-lpddr4"), Workload.from_config("llama-3.2-1b"))
    emulator.table(context=_CONTEXTS)  # compiles
    fastest_s = min(_table_s(emulator) for _ in range(_TRIES))
    evaluations = emulator.workload.layers * len(emulator.points) * len(_CONTEXTS)
    rate = evaluations / fastest_s
    source = "engineering goal: a training run of an hour on one core is millions of layers"
    return [
        Check("V14 layer evaluations per core second", GOAL_PER_S, rate, f">= {GOAL_PER_S:.0f}", rate >= GOAL_PER_S, source)
    ]


def _table_s(emulator: Emulator) -> float:
    start_s = time.process_time()
    emulator.table(context=_CONTEXTS)
    return time.process_time() - start_s
