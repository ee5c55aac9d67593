"""What a piece of work costs at an operating point: the one compiled cost function that everything calls.

The constants and their sources stand in the chip files. Time is a roofline of array, SRAM and DRAM with double buffering;
energy a sum of terms that scale with the regulator's law, of DRAM, and of leakage that grows with voltage and temperature.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from clone_rl.code_cache import kept

CHIP = np.dtype(
    [
        ("sram_bytes_per_cycle", "f8"),
        ("dram_bytes_per_s", "f8"),  # achievable; infinite without DRAM
        ("dram_latency_s", "f8"),
        ("stream_bytes", "f8"),  # one half of the double buffer that DRAM streams into; 0: no double buffering
        ("kv_tokens", "f8"),  # positions of the K/V cache that stay in SRAM; infinite where all do
        ("kv_block", "f8"),  # rows of a prefill that share one read of a cached key
        ("sfu_lanes", "f8"),
        ("overlap_power", "f8"),  # of the norm that joins a host's time and the device's; see board.py
        ("sram_j_per_byte", "f8"),  # at the reference voltage, as are all dynamic energies
        ("wire_j_per_byte", "f8"),  # activations between tiles
        ("element_j", "f8"),
        ("softmax_j", "f8"),
        ("sfu_mac_j", "f8"),
        ("clock_j_per_cycle", "f8"),
        ("clock_gated", "f8"),  # share of it that a stalled cycle still takes
        ("dram_read_j_per_byte", "f8"),
        ("dram_write_j_per_byte", "f8"),
        ("dram_active_w", "f8"),  # transferring, refresh included
        ("dram_waiting_w", "f8"),  # between transfers, refresh included
        ("dram_elsewhere", "f8"),  # share of the DRAM's energy that does not warm the die
        ("leakage_per_kelvin", "f8"),
        ("leakage_reference_c", "f8"),
        ("idle_w", "f8"),  # at the reference temperature
        ("idle_dram_w", "f8"),
        ("wake_s", "f8"),  # from idling
        ("wake_j", "f8"),
        ("relock_s", "f8"),
        ("slew_s_per_v", "f8"),
        ("domain_f", "f8"),
        ("ambient_c", "f8"),
        ("throttle_c", "f8"),
        ("limit_c", "f8"),
        ("die_r", "f8"),
        ("die_per_s", "f8"),  # 1 / time constant
        ("package_r", "f8"),
        ("package_per_s", "f8"),
    ]
)
"""Constants of a chip loaded with a model that do not depend on the operating point."""

POINT = np.dtype(
    [
        ("voltage_v", "f8"),
        ("frequency_hz", "f8"),
        ("dynamic_scale", "f8"),  # of energies at the reference voltage, regulator included
        ("leakage_w", "f8"),  # at the reference temperature, regulator included
    ]
)
"""One operating point."""

WORK = np.dtype(
    [
        ("macs_per_row", "f8"),  # linear layers, per token
        ("macs_per_score", "f8"),  # attention, per token and position attended to
        ("mac_j_per_row", "f8"),
        ("mac_j_per_score", "f8"),
        ("vector_cycles_per_row", "f8"),  # matrix-vector mode
        ("vector_cycles_per_score", "f8"),
        ("vector_cycles_per_read", "f8"),  # per cached position that is read, where reading is the engine's work
        ("array_cycles_per_block", "f8"),  # systolic mode: one block of ``block_rows`` rows through all products
        ("array_cycles_per_row", "f8"),
        ("array_cycles_saved", "f8"),  # one per product
        ("block_rows", "f8"),
        ("serial_cycles", "f8"),  # overlapped with nothing
        ("weight_bytes", "f8"),  # read once, whatever the number of rows
        ("dram_bytes", "f8"),  # the part of weight_bytes that is not resident in SRAM
        ("activation_bytes_per_row", "f8"),
        ("kv_bytes_per_row", "f8"),  # cache written per token
        ("kv_bytes_per_position", "f8"),  # cache read per position
        ("window", "f8"),  # positions that attention sees; infinite without a sliding window
        ("elements_per_row", "f8"),  # norm, rotary, activation
        ("softmax_per_score", "f8"),
        ("sfu_macs_per_row", "f8"),  # probe and controller run on the special-function unit
        ("lpu_cycles_per_row", "f8"),  # LoRA beside the array
        ("lpu_j_per_row", "f8"),
        ("lpu_stream_s", "f8"),  # adapter read from eNVM
        ("lpu_stream_j", "f8"),
        ("floor_s", "f8"),  # a host's time, which runs beside the device
    ]
)
"""One schedulable piece of work: a decoder layer, the head, a probe. Zero where a term does not apply."""


@kept
def attended(tokens: float, window: float) -> float:
    """Positions that the first ``tokens`` tokens of a text attend to: sum of min(i, window) for i = 1 .. tokens."""
    if tokens <= window:
        return 0.5 * tokens * (tokens + 1.0)
    return 0.5 * window * (window + 1.0) + (tokens - window) * window


@kept
def positions(chip: Any, work: Any, rows: float, context: float, causal: bool) -> Any:
    """Attention of a piece of work: ``(scores, cached positions read, those of them that lie in DRAM)``."""
    if not causal:
        seen = min(context, work.window)
        return rows * seen, rows * seen, rows * max(0.0, seen - chip.kv_tokens)
    end, inside = context + rows, min(work.window, chip.kv_tokens)
    scores = attended(end, work.window) - attended(context, work.window)
    block = min(rows, chip.kv_block)
    read = (scores + 0.5 * rows * (block - 1.0)) / block
    held = attended(end, inside) - attended(context, inside)
    return scores, read, read * (scores - held) / scores


@kept
def work_parts(chip: Any, work: Any, rows: float, context: float, causal: bool) -> Any:
    """What does not depend on the operating point.

    Args:
        chip, work: Records of ``CHIP`` and ``WORK``.
        rows: Tokens processed at once (1 in decoding, the prompt in prefill).
        context: Positions that each row attends to; if ``causal``, positions cached before the first row.
        causal: The rows are consecutive tokens of one text; else each row is a sequence of its own.

    Returns:
        ``(scores, cycles, serial cycles, SRAM bytes, DRAM bytes read, DRAM bytes written, DRAM seconds)``.
    """
    scores, read, spilled = positions(chip, work, rows, context, causal)
    # The array is used where it beats the vector mode, which a single row never lets it do; attention is vector work.
    blocks = max(1.0, math.ceil(rows / work.block_rows))
    array = blocks * work.array_cycles_per_block + rows * work.array_cycles_per_row - work.array_cycles_saved
    engine = min(array, rows * work.vector_cycles_per_row)
    engine += scores * work.vector_cycles_per_score + read * work.vector_cycles_per_read
    sfu = rows * (work.elements_per_row + work.sfu_macs_per_row) + scores * work.softmax_per_score
    last = min(context + rows if causal else context, work.window)
    written = min(rows, max(0.0, last - chip.kv_tokens)) * work.kv_bytes_per_row
    dram_read = work.dram_bytes + spilled * work.kv_bytes_per_position
    sram = (
        work.weight_bytes
        + dram_read  # what is streamed is written into the buffer before the array reads it
        + rows * (work.kv_bytes_per_row + work.activation_bytes_per_row)
        + read * work.kv_bytes_per_position
    )
    cycles = max(max(engine, sram / chip.sram_bytes_per_cycle), rows * work.lpu_cycles_per_row)
    serial = work.serial_cycles + sfu / chip.sfu_lanes
    dram_s = 0.0
    if dram_read + written > 0.0:
        dram_s = (dram_read + written) / chip.dram_bytes_per_s + chip.dram_latency_s
    return scores, cycles, serial, sram, dram_read, written, dram_s


@kept
def latency_of(chip: Any, work: Any, frequency_hz: float, parts: Any) -> float:
    """Seconds of a piece of work whose ``work_parts`` are known, when nothing else disturbs it.

    With n tiles through a double buffer, transfer d and computation c take max(c, d) + min(c, d) / n: the first tile's
    transfer and the last one's computation are exposed. Without a double buffer n = 1, and they add up. Nothing hides the
    first access's own latency.
    """
    _, cycles, serial, _, dram_read, written, dram_s = parts
    body_s = max(cycles / frequency_hz, work.lpu_stream_s)
    if dram_s > 0.0:
        tiles = max(1.0, (dram_read + written) / chip.stream_bytes) if chip.stream_bytes > 0.0 else 1.0
        transfer_s = dram_s - chip.dram_latency_s
        body_s = chip.dram_latency_s + max(body_s, transfer_s) + min(body_s, transfer_s) / tiles
    if work.floor_s > 0.0:
        later_s, earlier_s = max(body_s, work.floor_s), min(body_s, work.floor_s)
        body_s = later_s * (1.0 + (earlier_s / later_s) ** chip.overlap_power) ** (1.0 / chip.overlap_power)
    return float(body_s + serial / frequency_hz)


@kept
def work_latency(chip: Any, point: Any, work: Any, rows: float, context: float, causal: bool) -> float:
    """Seconds of a piece of work when nothing else disturbs it; arguments as in ``work_cost``."""
    return float(latency_of(chip, work, point.frequency_hz, work_parts(chip, work, rows, context, causal)))


@kept
def work_cost(
    chip: Any, point: Any, work: Any, rows: float, context: float, causal: bool, celsius: float, slowdown: float
) -> Any:
    """Cost of one piece of work.

    Args:
        chip, point, work: Records of ``CHIP``, ``POINT`` and ``WORK``.
        rows, context, causal: As in ``work_parts``.
        celsius: Die temperature.
        slowdown: >= 1, stretches the whole latency (a co-runner's stalls); stalled cycles leak, their clock is gated.

    Returns:
        ``(latency_s, mac_j, sram_j, sfu_j, clock_j, lpu_j, dram_j, leakage_j)``.
    """
    parts = work_parts(chip, work, rows, context, causal)
    scores, cycles, serial, sram, dram_read, written, dram_s = parts
    latency_s = latency_of(chip, work, point.frequency_hz, parts) * slowdown
    scale = point.dynamic_scale
    stalled = max(0.0, latency_s * point.frequency_hz - cycles - serial)
    elements_j = rows * (work.elements_per_row * chip.element_j + work.sfu_macs_per_row * chip.sfu_mac_j)
    return (
        latency_s,
        (rows * work.mac_j_per_row + scores * work.mac_j_per_score) * scale,
        (sram * chip.sram_j_per_byte + rows * work.activation_bytes_per_row * chip.wire_j_per_byte) * scale,
        (elements_j + scores * work.softmax_per_score * chip.softmax_j) * scale,
        (cycles + serial + stalled * chip.clock_gated) * chip.clock_j_per_cycle * scale,
        rows * work.lpu_j_per_row * scale + work.lpu_stream_j,
        dram_read * chip.dram_read_j_per_byte
        + written * chip.dram_write_j_per_byte
        + dram_s * chip.dram_active_w
        + (latency_s - dram_s) * chip.dram_waiting_w,
        latency_s * point.leakage_w * leakage_growth(chip, celsius),
    )


@kept
def _decay(x: float) -> float:
    """exp(-x); a layer is much shorter than the time constants, and six terms of the series are exact there, and faster."""
    if abs(x) < 1.0 / 128.0:
        return 1.0 - x * (1.0 - x * (1.0 / 2.0 - x * (1.0 / 6.0 - x * (1.0 / 24.0 - x * (1.0 / 120.0)))))
    return math.exp(-x)


@kept
def leakage_growth(chip: Any, celsius: float) -> float:
    """Factor on leakage at a die temperature, relative to the reference temperature."""
    return math.exp(chip.leakage_per_kelvin * (celsius - chip.leakage_reference_c))


@kept
def leakage_ratio(chip: Any, kelvin: float) -> float:
    """What a change of temperature multiplies leakage with."""
    return _decay(-chip.leakage_per_kelvin * kelvin)


@kept
def switch_stall(chip: Any, old: Any, new: Any) -> float:
    """Seconds that a change of operating point stalls the chip: the relock, and on the way up the voltage's ramp."""
    return float(chip.relock_s + max(0.0, new.voltage_v - old.voltage_v) * chip.slew_s_per_v)


@kept
def switch_parts(chip: Any, old: Any, new: Any) -> Any:
    """A change of operating point without its leakage: ``(stall_s, energy_j, leakage_w at the reference temperature)``.

    The chip waits at the lower of the two points; moving the domain's charge takes C |V2^2 - V1^2| / 2.
    """
    stall_s = switch_stall(chip, old, new)
    charge_j = 0.5 * chip.domain_f * abs(new.voltage_v**2 - old.voltage_v**2)
    return stall_s, charge_j + stall_s * chip.dram_waiting_w, min(old.leakage_w, new.leakage_w)


@kept
def switch_cost(chip: Any, old: Any, new: Any, celsius: float) -> Any:
    """Cost of a change of operating point: ``(stall_s, energy_j)``.

    ``switch_parts`` with the leakage at the die's temperature.
    """
    stall_s, energy_j, leakage_w = switch_parts(chip, old, new)
    return stall_s, energy_j + stall_s * leakage_w * leakage_growth(chip, celsius)


@kept
def idle_power(chip: Any, celsius: float) -> float:
    """Power between requests (W): weights retained in SRAM at its retention voltage, logic gated, DRAM in self-refresh."""
    return float(chip.idle_w * leakage_growth(chip, celsius) + chip.idle_dram_w)


@kept
def idle_heat(chip: Any, celsius: float) -> float:
    """The part of ``idle_power`` that warms the die."""
    return float(idle_power(chip, celsius) - chip.dram_elsewhere * chip.idle_dram_w)


@kept
def warm(chip: Any, die_c: float, package_c: float, power_w: float, seconds: float) -> Any:
    """Temperatures of die and package after ``seconds`` at constant power: ``(die_c, package_c)``.

    The die relaxes exponentially to its quasi-static value above the package (its pole is some hundred times faster).
    """
    settled_c = chip.ambient_c + power_w * chip.package_r
    package = settled_c + (package_c - settled_c) * _decay(seconds * chip.package_per_s)
    above_c = power_w * chip.die_r
    above = above_c + (die_c - package_c - above_c) * _decay(seconds * chip.die_per_s)
    return package + above, package


@kept
def highest_allowed(chip: Any, top: int, celsius: float) -> int:
    """Highest operating point that thermal throttling allows: all below ``throttle_c``, only the lowest at ``limit_c``."""
    if celsius <= chip.throttle_c:
        return top
    share = (celsius - chip.throttle_c) / (chip.limit_c - chip.throttle_c)
    return int(max(0, top - math.ceil(share * top)))


@kept
def cost_table(
    chip: Any, points: Any, work: Any, rows: float, contexts: Any, causal: bool, celsius: float, slowdown: float, out: Any
) -> None:
    """``work_cost`` of every record of ``work``, point and context into ``out`` (works, points, contexts, 8)."""
    for i in range(len(work)):
        for k in range(len(points)):
            for j in range(len(contexts)):
                cost = work_cost(chip, points[k], work[i], rows, contexts[j], causal, celsius, slowdown)
                for term in range(8):
                    out[i, k, j, term] = cost[term]
