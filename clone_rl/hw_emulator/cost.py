"""What a piece of work costs at an operating point: the one compiled cost function that everything calls.

The constants and their sources stand in the chip files; time is a roofline of compute, SRAM and
DRAM with double buffering, energy a sum of terms that scale with the regulator's law and of leakage that grows with
voltage and temperature.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

CHIP = np.dtype(
    [
        ("macs_per_cycle", "f8"),
        ("gemv_macs_per_cycle", "f8"),
        ("sram_bytes_per_cycle", "f8"),
        ("dram_bytes_per_s", "f8"),  # achievable; 0 without DRAM
        ("dram_latency_s", "f8"),
        ("sfu_lanes", "f8"),
        ("mac_j", "f8"),  # at the reference voltage, as are all dynamic energies
        ("sram_j_per_byte", "f8"),
        ("element_j", "f8"),
        ("softmax_j", "f8"),
        ("control_j_per_cycle", "f8"),
        ("dram_read_j_per_byte", "f8"),
        ("dram_active_w", "f8"),
        ("leakage_per_kelvin", "f8"),
        ("leakage_reference_c", "f8"),
        ("idle_w", "f8"),  # at the reference temperature
        ("idle_dram_w", "f8"),
        ("relock_s", "f8"),
        ("slew_s_per_v", "f8"),
        ("domain_f", "f8"),
        ("ambient_c", "f8"),
        ("limit_c", "f8"),
        ("die_r", "f8"),
        ("die_c", "f8"),
        ("package_r", "f8"),
        ("package_c", "f8"),
    ]
)
"""Constants of a chip that do not depend on the operating point."""

POINT = np.dtype(
    [
        ("voltage_v", "f8"),
        ("frequency_hz", "f8"),
        ("dynamic_scale", "f8"),  # of energies at the reference voltage, regulator included
        ("leakage_w", "f8"),  # at the reference temperature, regulator included
    ]
)
"""One operating point."""


@njit(cache=True)
def sram_traffic(work: Any, rows: float, context: float) -> float:
    """Bytes read from and written to SRAM: weights once, caches and activations per row."""
    per_row = work.kv_bytes_per_row + work.activation_bytes_per_row + context * work.kv_bytes_per_score
    return float(work.weight_bytes + rows * per_row)


@njit(cache=True)
def work_cycles(chip: Any, work: Any, rows: float, context: float) -> Any:
    """Cycles of a piece of work: ``(array, special functions)``; the first already waits for the SRAM."""
    scores = rows * context
    sram_bytes = sram_traffic(work, rows, context)
    # The array is used where it beats the vector mode, which a single row never lets it do; attention is vector work.
    array_cycles = work.array_cycles + rows * work.array_cycles_per_row
    vector_cycles = rows * work.macs_per_row / chip.gemv_macs_per_cycle
    cycles = min(array_cycles, vector_cycles) + scores * work.macs_per_score / chip.gemv_macs_per_cycle
    sfu_cycles = (rows * work.elements_per_row + scores * work.softmax_per_score) / chip.sfu_lanes
    return max(cycles, sram_bytes / chip.sram_bytes_per_cycle), sfu_cycles


@njit(cache=True)
def work_latency(chip: Any, point: Any, work: Any, rows: float, context: float) -> float:
    """Seconds of a piece of work when nothing else disturbs it; arguments as in ``work_cost``."""
    cycles, sfu_cycles = work_cycles(chip, work, rows, context)
    dram_s = 0.0
    if work.dram_bytes > 0.0:
        dram_s = work.dram_bytes / chip.dram_bytes_per_s + chip.dram_latency_s
    return float(max(cycles / point.frequency_hz, dram_s) + sfu_cycles / point.frequency_hz)


@njit(cache=True)
def work_cost(chip: Any, point: Any, work: Any, rows: float, context: float, celsius: float, slowdown: float) -> Any:
    """Cost of one piece of work.

    Args:
        chip, point, work: Records of ``CHIP``, ``POINT`` and ``WORK``.
        rows: Tokens processed at once (1 in decoding, the prompt in prefill).
        context: Mean number of positions that each row attends to.
        celsius: Die temperature.
        slowdown: >= 1, stretches the whole latency (a co-runner's stalls); stalled cycles burn leakage and clock.

    Returns:
        ``(latency_s, mac_j, sram_j, sfu_j, control_j, dram_j, leakage_j)``.
    """
    scores = rows * context
    cycles, sfu_cycles = work_cycles(chip, work, rows, context)
    latency_s = work_latency(chip, point, work, rows, context) * slowdown
    leakage_w = point.leakage_w * math.exp(chip.leakage_per_kelvin * (celsius - chip.leakage_reference_c))
    scale = point.dynamic_scale
    return (
        latency_s,
        (rows * work.macs_per_row + scores * work.macs_per_score) * chip.mac_j * scale,
        sram_traffic(work, rows, context) * chip.sram_j_per_byte * scale,
        (rows * work.elements_per_row * chip.element_j + scores * work.softmax_per_score * chip.softmax_j) * scale,
        (cycles + sfu_cycles) * slowdown * chip.control_j_per_cycle * scale,
        work.dram_bytes * chip.dram_read_j_per_byte + latency_s * chip.dram_active_w,
        latency_s * leakage_w,
    )


@njit(cache=True)
def switch_cost(chip: Any, old: Any, new: Any, celsius: float) -> Any:
    """Cost of a change of operating point: ``(stall_s, energy_j)``.

    The chip waits at the lower of the two points; moving the domain's charge takes C |V2^2 - V1^2| / 2.
    """
    rise_v = max(0.0, new.voltage_v - old.voltage_v)
    stall_s = chip.relock_s + rise_v * chip.slew_s_per_v
    leakage_w = min(old.leakage_w, new.leakage_w) * math.exp(chip.leakage_per_kelvin * (celsius - chip.leakage_reference_c))
    charge_j = 0.5 * chip.domain_f * abs(new.voltage_v**2 - old.voltage_v**2)
    return stall_s, charge_j + stall_s * (leakage_w + chip.dram_active_w)


@njit(cache=True)
def idle_power(chip: Any, celsius: float) -> float:
    """Power between requests (W): weights retained in SRAM at its retention voltage, logic gated, DRAM in self-refresh."""
    return float(chip.idle_w * math.exp(chip.leakage_per_kelvin * (celsius - chip.leakage_reference_c)) + chip.idle_dram_w)


@njit(cache=True)
def warm(chip: Any, die_c: float, package_c: float, power_w: float, seconds: float) -> Any:
    """Temperatures of die and package after ``seconds`` at constant power: ``(die_c, package_c)``.

    The die relaxes exponentially to its quasi-static value (its pole is a thousand times faster than the package's).
    """
    settled_c = package_c + power_w * chip.die_r
    die = settled_c + (die_c - settled_c) * math.exp(-seconds / (chip.die_r * chip.die_c))
    settled_c = chip.ambient_c + power_w * chip.package_r
    package = settled_c + (package_c - settled_c) * math.exp(-seconds / (chip.package_r * chip.package_c))
    return die, package
