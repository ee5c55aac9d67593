"""Emulation of a 28 nm accelerator: chips, workloads, and what a layer costs at an operating point.

Depends on NumPy and Numba only.

>>> from clone_rl.hw_emulator import Emulator, ModelShape, load_chip
>>> emulator = Emulator(load_chip("asic28-sram"), ModelShape(layers=10, hidden_size=256, heads=4, kv_heads=2, ff_size=768))
>>> slow, fast = (emulator.layer(point=k, context=64) for k in (0, 7))
>>> slow.latency_s > fast.latency_s and slow.dynamic_j < fast.dynamic_j
True
"""

from clone_rl.hw_emulator.chip import Chip, chip_names, load_chip
from clone_rl.hw_emulator.emulator import Emulator, LayerCost
from clone_rl.hw_emulator.switching import MECHANISMS, Mechanism
from clone_rl.hw_emulator.systolic import systolic_cycles
from clone_rl.hw_emulator.workload import ModelShape

__all__ = [
    "MECHANISMS",
    "Chip",
    "Emulator",
    "LayerCost",
    "Mechanism",
    "ModelShape",
    "chip_names",
    "load_chip",
    "systolic_cycles",
]
