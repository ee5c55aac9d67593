"""What an architect asks of a chip: its derived figures, a whole request by operating point, and how it scales with tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from clone_rl.errors import BadValueError
from clone_rl.hw_emulator.chip import Asic, Board, Chip
from clone_rl.hw_emulator.cost import leakage_growth, work_parts
from clone_rl.hw_emulator.emulator import HEAD, LAYER, TERMS, Emulator, LayerCost, Steady
from clone_rl.hw_emulator.precision import Precision
from clone_rl.hw_emulator.voltage import regulator_gain
from clone_rl.hw_emulator.workload import Workload

_CHUNK = 4096
"""Contexts that are costed at once, which bounds the memory of a long response."""

COLD_C, HOT_C = 25.0, 85.0
"""Die temperatures at which leakage is stated."""


@dataclass(frozen=True)
class RequestCost:
    """One request at one operating point: a prefill, then decode steps.

    Attributes:
        point: Operating point.
        tokens: Decode steps.
        prefill: Cost of the prompt, which yields the first token.
        decode: Cost of all decode steps.
        steady: Where the die settles if such requests follow each other without a pause.
    """

    point: int
    tokens: int
    prefill: LayerCost
    decode: LayerCost
    steady: Steady

    @property
    def ttft_s(self) -> float:
        """Time to the first token."""
        return self.prefill.latency_s

    @property
    def per_token(self) -> LayerCost:
        """Mean cost of a decode step."""
        return self.decode * (1 / self.tokens)

    @property
    def total(self) -> LayerCost:
        """Prefill and decode."""
        return self.prefill + self.decode


def check_request(workload: Workload, prompt: int, tokens: int) -> None:
    """Refuse a request that the model cannot take.

    Raises:
        BadValueError: No prompt, no decode step, or more positions than the model's context.
    """
    for name, value in (("prompt", prompt), ("tokens", tokens)):
        if value < 1:
            raise BadValueError(f"{name} is {value}", "at least 1 token")
    if prompt + tokens > workload.context:
        raise BadValueError(
            f"a prompt of {prompt} and {tokens} tokens are {prompt + tokens} positions",
            f"the context of {workload.name} is {workload.context}",
        )


def _decode(emulator: Emulator, prompt: int, tokens: int, depth: int, celsius: float | None) -> list[LayerCost]:
    """Sum of the decode steps by operating point: their contexts are ``prompt + 1`` to ``prompt + tokens``."""
    names = ("latency_s", *TERMS)
    totals = np.zeros((len(names), len(emulator.points)))
    contexts = np.arange(prompt + 1, prompt + tokens + 1, dtype=np.float64)
    for start in range(0, tokens, _CHUNK):
        table = emulator.table(context=contexts[start : start + _CHUNK].tolist(), temperature_c=celsius)
        totals += np.array([table[name][:depth].sum((0, 2)) for name in names])
    costs = [LayerCost(*column) for column in totals.T.tolist()]
    skipped = emulator.workload.layers - depth
    for k in range(len(costs)):
        costs[k] += emulator.cost(HEAD, k, temperature_c=celsius) * tokens
        if skipped:
            fill = emulator.kv_fill_row(skipped)
            costs[k] += LayerCost.total(emulator.cost(fill, k, c, temperature_c=celsius) for c in contexts)
    return costs


def request_costs(
    emulator: Emulator,
    prompt: int,
    tokens: int,
    points: Sequence[int] | None = None,
    depth: int | None = None,
    temperature_c: float | None = None,
) -> list[RequestCost]:
    """A request at each operating point.

    Args:
        emulator: A chip loaded with a model.
        prompt: Tokens of the prompt, which runs at full depth.
        tokens: Decode steps after it.
        points: Operating points; None is all of them.
        depth: Layers of each decode step; the caches of the others are filled from the exit state. None is all of them.
        temperature_c: Die temperature; None is the one at which the chip file states leakage.

    Raises:
        BadValueError: A number is out of range.
    """
    check_request(emulator.workload, prompt, tokens)
    depth = emulator.workload.layers if depth is None else depth
    if not 1 <= depth <= emulator.workload.layers:
        raise BadValueError(f"exit layer {depth}", f"{emulator.workload.name} has layers 1 to {emulator.workload.layers}")
    chosen = range(len(emulator.points)) if points is None else points
    prefills = {k: emulator.token("prefill", 0, prompt, k, temperature_c=temperature_c) for k in chosen}
    decodes = _decode(emulator, prompt, tokens, depth, temperature_c)
    if temperature_c is None:
        defaults = [prefills[k] + decodes[k] for k in chosen]
    else:
        at_default = _decode(emulator, prompt, tokens, depth, None)
        defaults = [emulator.token("prefill", 0, prompt, k) + at_default[k] for k in chosen]
    return [
        RequestCost(k, tokens, prefills[k], decodes[k], emulator.steady(cost))
        for k, cost in zip(chosen, defaults, strict=True)
    ]


def knee(latencies_s: Sequence[float], energies_j: Sequence[float]) -> int | None:
    """Where a sweep bends most: farthest from the chord of its fastest and its cheapest point, both axes scaled to 0..1.

    Points that another one beats in both latency and energy are no trade-off and are left out.

    Returns:
        An index, or None where fewer than three points are left.

    >>> knee([4.0, 2.0, 1.0, 0.9], [2.0, 1.0, 1.1, 2.0]), knee([2.0, 1.0], [1.0, 2.0])
    (2, None)
    """
    pairs = list(zip(latencies_s, energies_j, strict=True))
    front = [i for i, (t, e) in enumerate(pairs) if not any((u < t and f <= e) or (u <= t and f < e) for u, f in pairs)]
    if len(front) < 3:
        return None
    curve = np.array([pairs[i] for i in front])
    curve = (curve - curve.min(0)) / np.ptp(curve, axis=0)
    return front[int(np.argmin(curve.sum(1)))]


def placement(emulator: Emulator, context: int) -> dict[str, Any]:
    """What lies where: bytes in SRAM, and bytes that one full-depth decode step moves over DRAM.

    Args:
        emulator: A chip loaded with a model.
        context: Positions that the step attends to.
    """
    workload, constants = emulator.workload, emulator.constants[0]
    works = [emulator.work[LAYER + i] for i in range(workload.layers)] + [emulator.work[HEAD]]
    parts = [work_parts(constants, work, 1.0, float(context), False) for work in works]
    spilled = emulator.kv_tokens < context
    streams = any(float(work["lpu_stream_s"]) > 0 for work in works)
    beside = isinstance(emulator.chip, Asic) and emulator.chip.lpu is not None
    return {
        "weight_bytes": workload.weight_bytes,
        "resident_share": emulator.resident,
        "resident_bytes": emulator.resident * workload.weight_bytes,
        "streamed_weight_bytes_per_token": float(sum(work["dram_bytes"] for work in works)),
        "dram_bytes_per_token": float(sum(part[4] + part[5] for part in parts)),
        "kv_bytes": workload.kv_bytes_per_token * sum(min(context, workload.window_of(i)) for i in range(workload.layers)),
        "kv_positions_in_sram": emulator.kv_tokens if spilled else context,
        "adapter_bytes": emulator.adapter_bytes,
        "adapters": None if not workload.lora_rank else "eNVM" if streams else "LoRA buffer" if beside else "with the weights",
    }


def scaling(
    chip: Asic, workload: Workload, tiles: Sequence[int], prompt: int, tokens: int, vf: int | None = None
) -> list[dict[str, Any]]:
    """The same chip with other numbers of tiles: area, peak, and what a decode step takes.

    Args:
        chip: Its SRAM stays as it is; special-function lanes and SRAM ports come with the tiles.
        workload: What it runs.
        tiles: Numbers of tiles.
        prompt, tokens: The request whose mean decode step is stated.
        vf: Operating point; None is the top one.

    Returns:
        One row per number of tiles; ``best_`` keys are of the operating point with the lowest energy per token.

    Raises:
        BadValueError: A number is out of range.
    """
    rows = []
    for count in tiles:
        made = chip.with_tiles(count)
        emulator = Emulator(made, workload, context=prompt + tokens)
        costs = request_costs(emulator, prompt, tokens)
        emulator.layer(vf=vf)  # refuses a point that the chip lacks
        at = costs[emulator.top if vf is None else vf]
        best = min(costs, key=lambda cost: cost.decode.energy_j)
        rows.append(
            {
                "tiles": count,
                **_area(made),
                "peak_ops_per_s": 2 * made.macs_per_cycle(workload.precision.multiplier("weights"))
                * made.operating_points[-1].frequency_hz,
                "point": at.point,
                "voltage_v": made.operating_points[at.point].voltage_v,
                "frequency_hz": made.operating_points[at.point].frequency_hz,
                "latency_s": at.per_token.latency_s,
                "energy_j": at.per_token.energy_j,
                "power_w": at.decode.power_w,
                "leakage_w": at.decode.leakage_j / at.decode.latency_s,
                "over_limit": at.decode.power_w > made.limit_w,
                "best_point": best.point,
                "best_latency_s": best.per_token.latency_s,
                "best_energy_j": best.per_token.energy_j,
                "best_power_w": best.decode.power_w,
            }
        )  # fmt: skip
    return rows


def _area(chip: Asic) -> dict[str, float]:
    lpu = chip.lpu.area_mm2 if chip.lpu else 0.0
    return {
        "area_mm2": chip.area_mm2,
        "logic_area_mm2": chip.compute.area_mm2,
        "sram_area_mm2": chip.area_mm2 - chip.compute.area_mm2 - lpu,
        "lora_unit_area_mm2": lpu,
    }


def _formats(chip: Chip) -> list[str]:
    if isinstance(chip, Asic):
        return list(chip.compute.macs_per_pe)
    assert isinstance(chip, Board)
    return chip.board.formats


def peak_ops_per_s(chip: Chip) -> dict[str, float]:
    """Operations per second (two per multiply-accumulate) at the top operating point, by number format.

    Of an ASIC the peak of its multipliers; of a board the measured rate of large products, the same in every format.
    """
    clock_hz = chip.operating_points[-1].frequency_hz
    if isinstance(chip, Asic):
        return {number: 2 * chip.macs_per_cycle(number) * clock_hz for number in _formats(chip)}
    assert isinstance(chip, Board)
    return dict.fromkeys(_formats(chip), 2 * chip.board.gemm_macs_per_cycle * clock_hz)


def summary(chip: Chip) -> dict[str, Any]:
    """A chip in one row."""
    low, high = chip.operating_points[0], chip.operating_points[-1]
    formats = peak_ops_per_s(chip)
    fastest = max(formats, key=lambda number: formats[number])
    return {
        "name": chip.name,
        "kind": type(chip).__name__.lower(),
        "description": chip.description,
        "points": len(chip.operating_points),
        "lowest_voltage_v": low.voltage_v,
        "highest_voltage_v": high.voltage_v,
        "lowest_frequency_hz": low.frequency_hz,
        "highest_frequency_hz": high.frequency_hz,
        "sram_bytes": chip.sram.size_bytes if isinstance(chip, Asic) else None,
        "dram_bytes_per_s": chip.dram.bandwidth_bytes_per_s if chip.dram else None,
        "peak_ops_per_s": formats[fastest],
        "peak_format": fastest,
        "area_mm2": chip.area_mm2 if isinstance(chip, Asic) else None,
        "limit_w": chip.limit_w,
    }


def describe(chip: Chip) -> dict[str, Any]:
    """Derived figures of a chip: operating points, compute, memories, idle states, switching, thermal network.

    Leakage is stated at ``COLD_C`` and ``HOT_C``; of a board it is the static power of the whole. Idle states are those of
    the chip alone, with nothing resident to be loaded again.
    """
    number = _formats(chip)[0]
    # Next to nothing loaded: what depends on the chip alone is the same for every model.
    empty = Emulator(chip, Workload(1, 1, 1, 1, 1, 1, precision=Precision(number, number, number, number), context=1))
    constants = empty.constants[0]
    cold, hot = (float(leakage_growth(constants, celsius)) for celsius in (COLD_C, HOT_C))
    return {
        **{key: value for key, value in summary(chip).items() if key != "peak_ops_per_s"},
        "operating_points": [
            {
                "voltage_v": float(point["voltage_v"]),
                "frequency_hz": float(point["frequency_hz"]),
                "dynamic_scale": float(point["dynamic_scale"]),
                "leakage_at_25c_w": float(point["leakage_w"]) * cold,
                "leakage_at_85c_w": float(point["leakage_w"]) * hot,
            }
            for point in empty.points
        ],
        "peak_ops_per_s": peak_ops_per_s(chip),
        **(_parts(chip) if isinstance(chip, Asic) else {"laws": asdict(chip.board) if isinstance(chip, Board) else {}}),
        "dram": _dram(chip),
        "idle_states": {name: asdict(state) for name, state in empty.idle_states().items()},
        "switching": _switching(empty),
        "thermal": _thermal(chip),
    }


def _parts(chip: Asic) -> dict[str, Any]:
    compute, power, clock_hz = chip.compute, chip.power, chip.operating_points[-1].frequency_hz
    ports = chip.sram.bytes_per_cycle_per_tile * compute.tiles
    voltages = [chip.operating_points[0].voltage_v, chip.operating_points[-1].voltage_v]
    gains = [regulator_gain(power.regulator, power.regulator_efficiency, power.input_voltage_v, v) for v in voltages]
    return {
        "area": _area(chip),
        "compute": {
            "tiles": compute.tiles,
            "array_rows": compute.array_rows,
            "array_columns": compute.array_columns,
            "dataflow": compute.dataflow,
            "macs_per_cycle": {number: chip.macs_per_cycle(number) for number in compute.macs_per_pe},
            "mac_energy_j": compute.mac_energy_j,
            "gemv_utilisation": compute.gemv_utilisation,
        },
        "sram": {
            "size_bytes": chip.sram.size_bytes,
            "bank_bytes": chip.sram.bank_bytes,
            "bytes_per_cycle": ports,
            "top_bytes_per_s": ports * clock_hz,
            "energy_j_per_byte": chip.sram.energy_j_per_byte,
            "buffers_bytes": chip.buffers_bytes,
            "retention_voltage_v": chip.sram.retention_voltage_v,
        },
        "lora_unit": asdict(chip.lpu) if chip.lpu else None,
        "regulator": {
            "kind": power.regulator,
            "reference_voltage_v": power.reference_voltage_v,
            "input_voltage_v": power.input_voltage_v if power.regulator == "ldo" else None,
            "efficiency_at_lowest": 1 / gains[0],
            "efficiency_at_highest": 1 / gains[1],
        },
    }


def _dram(chip: Chip) -> dict[str, Any] | None:
    if chip.dram is None:
        return None
    return {
        **asdict(chip.dram),
        "achievable_bytes_per_s": chip.dram.bandwidth_bytes_per_s * chip.dram.achievable,
        "read_j_per_bit": chip.dram.read_energy_j_per_byte / 8,
        "write_j_per_bit": chip.dram.write_energy_j_per_byte / 8,
    }


def _switching(emulator: Emulator) -> dict[str, Any]:
    top, constants = emulator.top, emulator.constants[0]
    pairs = {
        "up_to_highest": (top - 1, top),
        "down_from_highest": (top, top - 1),
        "lowest_to_highest": (0, top),
        "highest_to_lowest": (top, 0),
    }
    costs = {name: emulator.switch(old, new) for name, (old, new) in pairs.items()}
    return {
        "mechanism": emulator.switching,
        "relock_s": float(constants["relock_s"]),
        "slew_s_per_v": float(constants["slew_s_per_v"]),
        "domain_capacitance_f": emulator.chip.switching.domain_capacitance_f,
        "changes": {name: {"stall_s": stall_s, "energy_j": energy_j} for name, (stall_s, energy_j) in costs.items()},
    }


def _thermal(chip: Chip) -> dict[str, float]:
    thermal = chip.thermal
    rise_k_per_w = thermal.die_resistance_k_per_w + thermal.package_resistance_k_per_w
    return {
        **asdict(thermal),
        "die_pole_s": thermal.die_resistance_k_per_w * thermal.die_capacity_j_per_k,
        "package_pole_s": thermal.package_resistance_k_per_w * thermal.package_capacity_j_per_k,
        "rise_at_limit_k": chip.limit_w * rise_k_per_w,
        "throttles_above_w": (thermal.throttle_c - thermal.ambient_c) / rise_k_per_w,
    }


def split(cost: LayerCost) -> dict[str, float]:
    """A cost as plain data: latency, energy, and each term."""
    return {"latency_s": cost.latency_s, "energy_j": cost.energy_j, **{name: getattr(cost, name) for name in TERMS}}
