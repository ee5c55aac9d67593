"""Emulation of a 28 nm accelerator: chips, workloads, and what a layer costs at an operating point.

Depends on NumPy and Numba only.

>>> from clone_rl.hw_emulator import Chip, Emulator, Workload
>>> emulator = Emulator(Chip.load("asic28-lpddr4"), Workload.from_config("llama-3.2-1b", precision="int4"))
>>> slow, fast = (emulator.layer(layer=0, phase="decode", context=512, vf=k) for k in (0, 7))
>>> slow.dynamic_j < fast.dynamic_j < fast.dram_j
True
"""

from clone_rl.hw_emulator.chip import Asic, Board, Chip, chip_names, load_chip
from clone_rl.hw_emulator.emulator import Emulator, LayerCost
from clone_rl.hw_emulator.families import shape_names
from clone_rl.hw_emulator.precision import PRECISIONS, Precision
from clone_rl.hw_emulator.switching import MECHANISMS, Mechanism
from clone_rl.hw_emulator.systolic import systolic_cycles
from clone_rl.hw_emulator.workload import Workload

__all__ = [
    "MECHANISMS",
    "PRECISIONS",
    "Asic",
    "Board",
    "Chip",
    "Emulator",
    "LayerCost",
    "Mechanism",
    "Precision",
    "Workload",
    "chip_names",
    "load_chip",
    "shape_names",
    "systolic_cycles",
]
