"""An off-the-shelf board loaded with a model: laws of the whole of it under one runtime, fitted to measurements.

Time of a pass over the model: the device takes ``weights / stream_bytes_per_cycle + rows MACs / gemm_macs_per_cycle`` cycles
and never less than DRAM takes for the bytes; a host that launches the kernels works beside it, and the two join by a
p-norm (a maximum with a rounded corner); an overhead of clock cycles is overlapped with nothing. Energy: static power times
time, energy per device cycle times the square of the effective voltage, energy per DRAM byte. What a runtime charges once
per token (host, overhead) is shared out over the layers and the head in proportion to their weights: a host runs ahead of the
device, so only the pass as a whole is bound by the later of the two.
"""

from __future__ import annotations

import math

from clone_rl.errors import BadValueError
from clone_rl.hw_emulator.chip import Board
from clone_rl.hw_emulator.workload import Workload

KERNELS_PER_LAYER = 12
"""Kernels of a decoder layer in an eager runtime (seven products, two norms, rotary, attention, activation): what one small
extra kernel, such as an exit probe, costs of a layer's host time."""


def points(chip: Board) -> list[dict[str, float]]:
    """Fields of ``cost.POINT``: the voltage is effective, relative to the top clock (the maker publishes none)."""
    top = chip.operating_points[-1].voltage_v
    return [
        {
            "voltage_v": point.voltage_v,
            "frequency_hz": point.frequency_hz,
            "dynamic_scale": (point.voltage_v / top) ** 2,
            "leakage_w": chip.board.static_w,
        }
        for point in chip.operating_points
    ]


def constants(chip: Board) -> dict[str, float]:
    """Fields of ``cost.CHIP`` besides switching and thermal ones."""
    laws, dram = chip.board, chip.dram
    assert dram is not None  # parse_chip refuses a board without
    return {
        "sram_bytes_per_cycle": math.inf,
        "dram_bytes_per_s": dram.bandwidth_bytes_per_s * dram.achievable,
        "dram_latency_s": dram.latency_s,
        "stream_bytes": 2**16,
        "kv_tokens": 0.0,
        "kv_block": 64.0,
        "sfu_lanes": math.inf,
        "overlap_power": laws.overlap_power,
        "clock_j_per_cycle": laws.cycle_energy_j,
        "dram_read_j_per_byte": dram.read_energy_j_per_byte,
        "dram_write_j_per_byte": dram.write_energy_j_per_byte,
        "dram_active_w": dram.active_w,
        "dram_waiting_w": dram.standby_w,
        "leakage_per_kelvin": laws.static_per_kelvin,
        "leakage_reference_c": laws.reference_c,
        "idle_w": 0.0,
        "idle_dram_w": laws.idle_w,  # measured as a whole: it does not scale with the die's temperature
    }


def _product(chip: Board, workload: Workload, parameters: float, part: str, share: float) -> dict[str, float]:
    """One matrix product: read once at the streaming rate, multiplied per row at the GEMM rate."""
    laws = chip.board
    number = workload.precision.multiplier(part)
    if number not in laws.formats:
        raise BadValueError(f"{chip.name} has no measured {number} products", f"formats: {', '.join(laws.formats)}")
    stored = parameters * workload.precision.bits(part) / 8
    return {
        "macs_per_row": parameters,
        "array_cycles_per_block": stored / laws.stream_bytes_per_cycle,
        "array_cycles_per_row": parameters / laws.gemm_macs_per_cycle,
        "vector_cycles_per_row": math.inf,
        "weight_bytes": stored,
        "dram_bytes": stored,
        "serial_cycles": laws.overhead_cycles_per_token * share,
        "floor_s": laws.host_s_per_token * share,
    }


def _layer_share(workload: Workload) -> float:
    return workload.layer_bytes / workload.weight_bytes


def layer(chip: Board, workload: Workload, index: int) -> dict[str, float]:
    """One decoder layer, adapters included."""
    work = _product(chip, workload, workload.layer_parameters, "weights", _layer_share(workload))
    if workload.lora_rank:
        extra = _product(chip, workload, workload.lora_parameters, "head", 0.0)
        for name in ("macs_per_row", "array_cycles_per_block", "array_cycles_per_row", "weight_bytes", "dram_bytes"):
            work[name] += extra[name]
    kv_bytes, attention_macs = workload.kv_bytes_per_token, 2.0 * workload.heads * workload.head_dim
    return work | {
        "macs_per_score": attention_macs,
        "vector_cycles_per_score": attention_macs / chip.board.gemm_macs_per_cycle,
        "vector_cycles_per_read": kv_bytes / chip.board.stream_bytes_per_cycle,
        "kv_bytes_per_position": kv_bytes,
        "kv_bytes_per_row": kv_bytes,
        "window": workload.window_of(index),
    }


def head(chip: Board, workload: Workload) -> dict[str, float]:
    """The final norm, the head, and the choice of a token."""
    return _product(chip, workload, workload.head_parameters, "head", workload.head_bytes / workload.weight_bytes)


def kv_fill(chip: Board, workload: Workload, skipped: int) -> dict[str, float]:
    """Keys and values of the last ``skipped`` layers from the exit state, as one fused kernel."""
    if not skipped:
        return {}
    parameters = 2.0 * workload.hidden_size * workload.kv_heads * workload.head_dim * skipped
    share = _layer_share(workload) / KERNELS_PER_LAYER
    return _product(chip, workload, parameters, "weights", share) | {"kv_bytes_per_row": workload.kv_bytes_per_token * skipped}


def small_kernel(chip: Board, workload: Workload, macs: float) -> dict[str, float]:
    """An exit probe or a controller's decision: one more small kernel."""
    share = _layer_share(workload) / KERNELS_PER_LAYER
    return {
        "macs_per_row": macs,
        "array_cycles_per_block": macs / chip.board.stream_bytes_per_cycle,
        "vector_cycles_per_row": math.inf,
        "serial_cycles": chip.board.overhead_cycles_per_token * share,
        "floor_s": chip.board.host_s_per_token * share,
    }
