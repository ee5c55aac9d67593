"""An accelerator loaded with a model: its parts turned into the records that the cost function reads."""

from __future__ import annotations

import math
from dataclasses import dataclass

from clone_rl.errors import BadValueError
from clone_rl.hw_emulator.chip import Asic, bank_energy
from clone_rl.hw_emulator.systolic import systolic_terms
from clone_rl.hw_emulator.voltage import dynamic_scale, leakage_scale, regulator_gain
from clone_rl.hw_emulator.workload import Workload

POLICY_INPUTS = 16
"""Scalars that a lookup-table controller turns into an address."""


@dataclass(frozen=True)
class Placement:
    """Where weights and caches of a model lie.

    Attributes:
        resident: Share of the weights that stays in SRAM.
        kv_tokens: Positions of the K/V cache that stay in SRAM; infinite without DRAM.
        lora_in_buffer: Whether the active adapters of all layers fit the LoRA unit's buffer.
    """

    resident: float
    kv_tokens: float
    lora_in_buffer: bool


def place(chip: Asic, workload: Workload, context: int) -> Placement:
    """Share out the SRAM: stream buffers first, then K/V for ``context`` positions, then weights.

    Raises:
        BadValueError: Something does not fit and the chip has no DRAM, or adapters do not fit the eNVM.
    """
    kv_bytes = workload.kv_bytes_per_token * sum(min(context, workload.window_of(i)) for i in range(workload.layers))
    weight_bytes = workload.weight_bytes
    beside = chip.lpu is not None and workload.lora_rank > 0
    lora_bytes = workload.adapter_bytes
    if chip.lpu is not None and lora_bytes > chip.lpu.envm_bytes:
        raise BadValueError(
            f"the adapters take {lora_bytes / 2**20:.2f} MiB and the eNVM of {chip.name} holds "
            f"{chip.lpu.envm_bytes / 2**20:.2f} MiB",
            "a lower lora_rank, fewer lora_targets or adapters, or a larger envm_bytes",
        )
    if not beside:
        weight_bytes += lora_bytes
    in_buffer = chip.lpu is not None and lora_bytes <= chip.lpu.buffer_bytes
    if chip.dram is None:
        stored_bytes = weight_bytes + (0.0 if workload.tied else workload.head_bytes)  # the embedding's own table
        if stored_bytes + kv_bytes > chip.sram.size_bytes:
            raise BadValueError(
                f"{workload.name} needs {(stored_bytes + kv_bytes) / 2**20:.1f} MiB at {workload.precision.name} with a "
                f"context of {context} and {chip.name} has {chip.sram.size_bytes / 2**20:.1f} MiB of SRAM and no DRAM",
                "use a chip with a [dram] table, more SRAM, fewer weight bits, or a shorter context",
            )
        return Placement(1.0, math.inf, in_buffer)
    free_bytes = float(chip.sram.size_bytes)
    if weight_bytes + kv_bytes > free_bytes:
        free_bytes -= chip.buffers_bytes
    kv_tokens = float(context) if kv_bytes <= free_bytes else _positions_that_fit(workload, free_bytes)
    return Placement(min(1.0, max(0.0, free_bytes - kv_bytes) / weight_bytes), kv_tokens, in_buffer)


def _positions_that_fit(workload: Workload, free_bytes: float) -> float:
    """Positions n of which every layer can hold min(n, its window)."""
    left, windows = free_bytes / workload.kv_bytes_per_token, sorted(workload.window_of(i) for i in range(workload.layers))
    for index, window in enumerate(windows):
        share = left / (len(windows) - index)
        if share <= window:
            return share
        left -= window
    return math.inf


def points(chip: Asic, adapters: bool = False) -> list[dict[str, float]]:
    """Fields of ``cost.POINT`` for each operating point; the LoRA unit is power-gated where no adapter is in use."""
    power, found = chip.power, []
    leakage_w = _sram_leakage_w(chip) + _logic_leakage_w(chip)
    if adapters and chip.lpu is not None:
        leakage_w += chip.lpu.buffer_bytes * chip.sram.leakage_w_per_byte
        leakage_w += chip.lpu.macs * chip.compute.mac_area_mm2 * power.logic_leakage_w_per_mm2
    for point in chip.operating_points:
        gain = _gain(chip, point.voltage_v)
        found.append(
            {
                "voltage_v": point.voltage_v,
                "frequency_hz": point.frequency_hz,
                "dynamic_scale": dynamic_scale(point.voltage_v, power.reference_voltage_v, gain),
                "leakage_w": leakage_w * _leakage(chip, point.voltage_v) * gain,
            }
        )
    return found


def _gain(chip: Asic, voltage_v: float) -> float:
    power = chip.power
    return regulator_gain(power.regulator, power.regulator_efficiency, power.input_voltage_v, voltage_v)


def _leakage(chip: Asic, voltage_v: float) -> float:
    return leakage_scale(voltage_v, chip.power.reference_voltage_v, chip.power.leakage_per_volt)


def _sram_leakage_w(chip: Asic) -> float:
    return chip.sram.leakage_w_per_byte * chip.sram.size_bytes


def _logic_leakage_w(chip: Asic) -> float:
    return chip.power.logic_leakage_w_per_mm2 * chip.compute.area_mm2


def idle_states(chip: Asic, resident_bytes: float) -> dict[str, tuple[float, float, float]]:
    """What the chip can do between requests.

    Args:
        chip: The chip.
        resident_bytes: Weights that switching the SRAM off loses.

    Returns:
        By state, ``(power_w at 25 C without DRAM, wake_s, wake_j)``: ``clock-gated`` (all powered at the lowest point),
        ``retention`` (logic off, SRAM at its retention voltage) and, where DRAM can refill it, ``off``.
    """
    low = chip.operating_points[0].voltage_v
    gain = _gain(chip, low)
    power, growth = chip.power, _leakage(chip, low)
    sram_w, logic_w = _sram_leakage_w(chip) * growth, _logic_leakage_w(chip) * growth
    clock_w = chip.compute.clock_gated_fraction * _clock_j(chip) * chip.operating_points[0].frequency_hz
    clock_w *= dynamic_scale(low, power.reference_voltage_v, 1.0)
    gated_w = logic_w * power.gated_leakage_fraction
    retained_w = _sram_leakage_w(chip) * _leakage(chip, chip.sram.retention_voltage_v)
    wake_j = power.wake_s * (sram_w + logic_w) * gain
    states = {
        "clock-gated": ((sram_w + logic_w + clock_w) * gain, 0.0, 0.0),
        "retention": ((retained_w + gated_w) * gain, power.wake_s, wake_j),
    }
    if chip.dram:
        reload_s = resident_bytes / (chip.dram.bandwidth_bytes_per_s * chip.dram.achievable)
        reload_j = resident_bytes * (chip.dram.read_energy_j_per_byte + chip.sram.energy_j_per_byte * gain)
        reload_j += reload_s * chip.dram.active_w
        off_w = (sram_w * power.gated_leakage_fraction + gated_w) * gain
        states["off"] = (off_w, power.wake_s + reload_s, wake_j + reload_j)
    return states


def _clock_j(chip: Asic) -> float:
    """Clock and control energy of an active cycle."""
    return chip.compute.clock_energy_j_per_pe * chip.compute.elements


def constants(chip: Asic, placement: Placement) -> dict[str, float]:
    """Fields of ``cost.CHIP`` besides switching and thermal ones."""
    dram, compute = chip.dram, chip.compute
    idle_w, wake_s, wake_j = idle_states(chip, 0.0)["retention"]
    # A broadcast to the other tiles and a gather from them cross half the die's edge.
    wire_mm = math.sqrt(chip.area_mm2) / 2 * (1 - 1 / compute.tiles)
    values = {
        "sram_bytes_per_cycle": chip.sram.bytes_per_cycle_per_tile * compute.tiles,
        "dram_bytes_per_s": math.inf,
        "kv_tokens": placement.kv_tokens,
        "kv_block": float(compute.array_rows),
        "sfu_lanes": float(chip.sfu.lanes_per_tile * compute.tiles),
        "overlap_power": 1.0,
        "sram_j_per_byte": chip.sram.energy_j_per_byte,
        "wire_j_per_byte": compute.wire_energy_j_per_byte_mm * wire_mm,
        "element_j": chip.sfu.element_energy_j,
        "softmax_j": chip.sfu.softmax_energy_j,
        "sfu_mac_j": chip.sfu.mac_energy_j,
        "clock_j_per_cycle": _clock_j(chip),
        "clock_gated": compute.clock_gated_fraction,
        "leakage_per_kelvin": chip.power.leakage_per_kelvin,
        "leakage_reference_c": 25.0,
        "idle_w": idle_w,
        "wake_s": wake_s,
        "wake_j": wake_j,
    }
    if dram is not None:
        waiting_w = dram.power_down_w if dram.between_transfers == "power-down" else dram.standby_w
        exit_s = dram.power_down_exit_s if dram.between_transfers == "power-down" else 0.0
        values |= {
            "dram_bytes_per_s": dram.bandwidth_bytes_per_s * dram.achievable,
            "dram_latency_s": dram.latency_s + exit_s,
            "stream_bytes": float(chip.sram.buffer_bytes_per_tile * compute.tiles) if chip.sram.double_buffered else 0.0,
            "dram_read_j_per_byte": dram.read_energy_j_per_byte,
            "dram_write_j_per_byte": dram.write_energy_j_per_byte,
            "dram_active_w": dram.active_w + dram.refresh_w,
            "dram_waiting_w": waiting_w + dram.refresh_w,
            "dram_elsewhere": 1 - dram.on_die_fraction,
            "idle_dram_w": dram.self_refresh_w,
        }
    return values


def _linear(chip: Asic, workload: Workload, products: list[tuple[int, int]], part: str) -> dict[str, float]:
    """Terms that a set of weight matrices contributes; the columns of each product are split over the tiles.

    The array's cycles are ``systolic_cycles`` of each product on one tile, divided by the packing of the format.
    """
    number = workload.precision.multiplier(part)
    peak = chip.macs_per_cycle(number)
    packing = chip.compute.macs_per_pe[number]
    array = chip.compute.array_rows, chip.compute.array_columns, chip.compute.dataflow
    parameters = sum(k * n for k, n in products)
    terms = [systolic_terms(k, -(-n // chip.compute.tiles), *array) for k, n in products]
    return {
        "array_cycles_per_block": sum(per_block for per_block, _, _ in terms) / packing,
        "array_cycles_per_row": sum(per_row for _, per_row, _ in terms) / packing,
        "block_rows": next((float(block) for _, _, block in terms if block), math.inf),
        "macs_per_row": parameters,
        "mac_j_per_row": parameters * chip.compute.mac_energy_j[number],
        "vector_cycles_per_row": parameters / (peak * chip.compute.gemv_utilisation),
        "array_cycles_saved": len(products) / packing,
        "weight_bytes": parameters * workload.precision.bits(part) / 8,
        "activation_bytes_per_row": sum(k + n for k, n in products) * workload.precision.bits("activations") / 8,
    }


def layer(chip: Asic, workload: Workload, index: int, placement: Placement) -> dict[str, float]:
    """One decoder layer."""
    precision = workload.precision
    query, kv = workload.heads * workload.head_dim, workload.kv_heads * workload.head_dim
    work = _linear(chip, workload, list(workload.products.values()), "weights")
    number = precision.multiplier("kv")
    attention_macs = chip.macs_per_cycle(number) * chip.compute.gemv_utilisation
    kv_bytes = precision.bits("kv") / 8
    work |= {
        "macs_per_score": 2.0 * query,
        "mac_j_per_score": 2.0 * query * chip.compute.mac_energy_j[number],
        "vector_cycles_per_score": 2.0 * query / attention_macs,
        "kv_bytes_per_position": 2.0 * kv * kv_bytes,
        "kv_bytes_per_row": 2.0 * kv * kv_bytes,
        "window": workload.window_of(index),
        "elements_per_row": float(workload.norms * workload.hidden_size + query + kv + workload.ff_size),
        "softmax_per_score": float(workload.heads),
        "dram_bytes": (1 - placement.resident) * work["weight_bytes"],
    }
    if workload.lora_rank:
        _add_lora(chip, workload, placement, work)
    return work


def _add_lora(chip: Asic, workload: Workload, placement: Placement, work: dict[str, float]) -> None:
    """Low-rank matrices: beside the array on the LoRA unit, or else one more set of products on the array."""
    macs, stored = float(workload.lora_parameters), workload.lora_bytes
    work["macs_per_row"] += macs
    if chip.lpu is None:
        extra = _linear(chip, workload, workload.lora_products, "head")
        for name, value in extra.items():
            if name not in ("block_rows", "macs_per_row"):
                work[name] += value
        work["dram_bytes"] += (1 - placement.resident) * stored
        return
    read_j = stored * bank_energy(chip.lpu.buffer_bytes, chip.sram.bank_energy_j_per_byte)
    work["lpu_cycles_per_row"] = macs / chip.lpu.macs
    work["lpu_j_per_row"] = macs * chip.lpu.mac_energy_j + read_j
    if not placement.lora_in_buffer:
        work["lpu_stream_s"] = stored / chip.lpu.envm_bytes_per_s
        work["lpu_stream_j"] = stored * chip.lpu.envm_read_energy_j_per_byte


def head(chip: Asic, workload: Workload, placement: Placement) -> dict[str, float]:
    """The final norm, the head, the choice of a token, and the look-up of its embedding."""
    work = _linear(chip, workload, [(workload.hidden_size, workload.vocab_size)], "head")
    row_bytes = workload.hidden_size * workload.precision.bits("head") / 8
    streamed = (1 - placement.resident) * work["weight_bytes"]
    return work | {
        "elements_per_row": float(workload.hidden_size + workload.vocab_size),
        "dram_bytes": streamed + (row_bytes if streamed else 0.0),
        "activation_bytes_per_row": work["activation_bytes_per_row"] + row_bytes,
    }


def kv_fill(chip: Asic, workload: Workload, skipped: int, placement: Placement) -> dict[str, float]:
    """Keys and values of the last ``skipped`` layers from the exit state: one fused product (CALM's state copy)."""
    kv = workload.kv_heads * workload.head_dim
    if not skipped:
        return {}
    work = _linear(chip, workload, [(workload.hidden_size, 2 * kv * skipped)], "weights")
    return work | {
        "kv_bytes_per_row": 2.0 * kv * skipped * workload.precision.bits("kv") / 8,
        "elements_per_row": float(workload.hidden_size * skipped + kv * skipped),
        "dram_bytes": (1 - placement.resident) * work["weight_bytes"],
    }


def probe(workload: Workload, signals: int) -> dict[str, float]:
    """One read of the exit probe on the special-function unit: a norm of the residual and ``signals`` dot products."""
    macs = float(workload.hidden_size * signals)
    return {
        "macs_per_row": macs,
        "sfu_macs_per_row": macs,
        "elements_per_row": float(workload.hidden_size + signals),
        "weight_bytes": macs,  # 8-bit
    }


def policy(chip: Asic, macs: int, lut_bytes: int) -> dict[str, float]:
    """One decision of the controller on the special-function unit: an MLP with 8-bit weights, or a lookup table.

    A table costs its address (one multiply-accumulate per observed scalar) and one word of a bank of its size.
    """
    if lut_bytes:
        word_bytes = 8 * math.sqrt(lut_bytes / chip.sram.bank_bytes)
        return {"macs_per_row": POLICY_INPUTS, "sfu_macs_per_row": POLICY_INPUTS, "weight_bytes": word_bytes}
    return {"macs_per_row": float(macs), "sfu_macs_per_row": float(macs), "weight_bytes": float(macs)}
