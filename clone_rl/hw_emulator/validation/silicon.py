"""V5 to V7 and V13: corners of published chips, and the energy of one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from clone_rl.hw_emulator.chip import Asic, OperatingPoint
from clone_rl.hw_emulator.emulator import Emulator, LayerCost
from clone_rl.hw_emulator.validation.check import Check, within, worst
from clone_rl.hw_emulator.validation.published import published
from clone_rl.hw_emulator.voltage import corner_threshold_v, relative_frequency
from clone_rl.hw_emulator.workload import Workload

LEAKAGE_SHARE = 0.101
"""Share of leakage in the power of a 28 nm chip at its highest operating point (``fit``); goes with ``leakage_per_volt``."""

_TINY = Workload(layers=1, hidden_size=64, heads=1, kv_heads=1, ff_size=64)


def check_frequency() -> list[Check]:
    """V5: clocks relative to those at 1 V, and a fast corner as a shift of the threshold."""
    table, chip = published()["frequency"], Asic.load("asic28-sram")
    threshold_v = chip.power.threshold_voltage_v
    checks = [
        within(
            f"V5 f({row['voltage_v']:.2f})/f(1.00) {row['chip']}",
            row["ratio"],
            relative_frequency(row["voltage_v"], threshold_v),
            0.10,
            row["source"],
        )
        for row in table["typical"]
    ]
    fast, known = table["fast"], table["fast"]["calibration"]
    corner_v = corner_threshold_v(known["voltage_v"], known["ratio"])
    voltage_v, ratio = fast["predicted"]["voltage_v"], fast["predicted"]["ratio"]
    name = f"V5 f({voltage_v:.2f})/f(1.00) {fast['chip']}, fast corner"
    checks.append(within(name, ratio, relative_frequency(voltage_v, corner_v), 0.10, fast["source"], True))
    top = chip.operating_points[-1]
    top_ratio = relative_frequency(top.voltage_v, threshold_v)
    pairs = [
        (relative_frequency(point.voltage_v, threshold_v) / top_ratio, point.frequency_hz / top.frequency_hz)
        for point in chip.operating_points
    ]
    source = "clone_rl/hw_emulator/voltage.py; the shipped ones are rounded down to MHz"
    return [*checks, worst("V5 f(V)/f(1.00) of the shipped operating points", pairs, 0.02, source)]


def corner_ratios(low: dict[str, Any], high: dict[str, Any], regulator: str = "ideal") -> tuple[float, float]:
    """Energy per cycle and leakage power at a chip's lowest operating point, relative to its highest.

    Args:
        low, high: ``voltage_v`` and ``frequency_hz``.
        regulator: An LDO's input is at the highest voltage.
    """
    chip = Asic.load("asic28-sram")
    points = tuple(OperatingPoint(point["voltage_v"], point["frequency_hz"]) for point in (low, high))
    power = replace(chip.power, regulator=regulator, input_voltage_v=high["voltage_v"])
    at = Emulator(replace(chip, power=power, operating_points=points), _TINY).points
    dynamic, leakage = (at[name][0] / at[name][1] for name in ("dynamic_scale", "leakage_w"))
    return float(dynamic), float(leakage)


def power_ratios(corner: dict[str, Any]) -> tuple[float, float]:
    """What a chip would take at its lowest operating point without leakage, and with nothing but leakage.

    Both relative to what it does take; the share of leakage at the highest point weighs the two.
    """
    low, high = corner["low"], corner["high"]
    dynamic, leakage = corner_ratios(low, high)
    range_w = high["power_w"] / low["power_w"]
    return range_w * dynamic * low["frequency_hz"] / high["frequency_hz"], range_w * leakage


def check_power() -> list[Check]:
    """V6: power at the lowest operating point from that at the highest.

    With one share of leakage for all chips, and where the chip's SRAM and area are known also with leakage of its own.
    """
    checks = []
    for corner in published()["corners"]:
        dynamic, leakage = power_ratios(corner)
        power_w = corner["low"]["power_w"] * ((1 - LEAKAGE_SHARE) * dynamic + LEAKAGE_SHARE * leakage)
        name, tolerance = f"V6 lowest power {corner['chip']}, W", corner["tolerance"]
        checks.append(within(name, corner["low"]["power_w"], power_w, tolerance, corner["source"], not corner["fitted"]))
        if "sram_bytes" in corner:
            share = own_leakage_w(corner) / corner["high"]["power_w"]
            power_w = corner["low"]["power_w"] * ((1 - share) * dynamic + share * leakage)
            name = f"V6 lowest power {corner['chip']} with its own leakage, W"
            checks.append(within(name, corner["low"]["power_w"], power_w, 0.25, corner["source"], True))
    return checks


def own_leakage_w(corner: dict[str, Any]) -> float:
    """Leakage at a chip's highest operating point from its SRAM, its area and the shipped chip's constants."""
    chip = Asic.load("asic28-sram")
    logic_mm2 = corner["area_mm2"] - corner["sram_bytes"] / 2**20 * chip.sram.area_mm2_per_mib
    compute = replace(chip.compute, tiles=1, array_rows=1, array_columns=1, tile_area_mm2=0.0, fixed_area_mm2=logic_mm2)
    chip = replace(
        chip,
        compute=compute,
        sram=replace(chip.sram, size_bytes=corner["sram_bytes"]),
        power=replace(chip.power, regulator="ideal"),
        operating_points=(OperatingPoint(corner["high"]["voltage_v"], corner["high"]["frequency_hz"]),),
    )
    return float(Emulator(chip, _TINY).points[0]["leakage_w"])


def check_core() -> list[Check]:
    """V7: a core without its memory's leakage: BERT-base in INT8 with weights that stay on the chip."""
    table, chip = published()["trancim"], Asic.load("asic28-sram")
    # An encoder has no head. It attends to all positions, a prompt to half of them: 1 % of the products.
    bert = Workload(12, 768, 12, 12, 3072, vocab_size=1, gated=False, context=512).with_precision("int8")
    point = OperatingPoint(table["voltage_v"], 200e6)
    chip = replace(
        chip,
        sram=replace(chip.sram, size_bytes=2**27),
        power=replace(chip.power, regulator="ideal"),
        operating_points=(point,),
    )
    emulator = Emulator(chip, bert)
    cost = LayerCost.total(emulator.layer(i, "prefill", 0, table["sequence"]) for i in range(bert.layers))
    name = f"V7 TranCIM core at {table['voltage_v']:.2f} V, J/token of BERT-base"
    return [within(name, table["joules_per_token"], cost.dynamic_j / table["sequence"], 0.40, table["source"])]


def check_regulator() -> list[Check]:
    """V13: the energy per cycle between the corners of a chip behind an LDO follows V, not V squared."""
    table = published()["atropos"]
    low, high = table["low"], table["high"]
    measured = high["power_w"] / high["frequency_hz"] / (low["power_w"] / low["frequency_hz"])
    linear, square = (1 / corner_ratios(low, high, regulator)[0] for regulator in ("ldo", "ideal"))
    error = square / measured - 1
    return [
        within("V13 Atropos energy per cycle between corners, LDO", measured, linear, 0.25, table["source"], True),
        Check(
            "V13 Atropos energy per cycle between corners, V squared misses",
            measured, square, "more than 25 % off", abs(error) > 0.25, table["source"], error, True,
        ),
    ]  # fmt: skip
