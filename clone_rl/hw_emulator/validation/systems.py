"""V8 and V9: whole systems that stream their weights from LPDDR3."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from clone_rl.hw_emulator.chip import Asic, Chip
from clone_rl.hw_emulator.emulator import Emulator, LayerCost
from clone_rl.hw_emulator.validation.check import Check, within, within_factor
from clone_rl.hw_emulator.validation.published import published
from clone_rl.hw_emulator.validation.stored import stored
from clone_rl.hw_emulator.workload import Workload


def _workload(row: dict[str, Any]) -> Workload:
    return Workload.from_config(row["model"], stored(row.get("bits", 8.0), "int8"))


def _token(workload: Workload, bytes_per_s: float) -> LayerCost:
    """A token of the shipped chip with the SRAM of four Qin chips and LPDDR3; no cached positions."""
    chip = Chip.load("asic28-lpddr4")
    assert isinstance(chip, Asic)
    assert chip.dram is not None
    per_byte_j = 8 * published()["systems"]["lpddr3_j_per_bit"]
    dram = replace(
        chip.dram,
        bandwidth_bytes_per_s=bytes_per_s,
        achievable=1.0,
        read_energy_j_per_byte=per_byte_j,
        write_energy_j_per_byte=per_byte_j,
        # The energy per bit contains standby and refresh.
        active_w=0.0,
        power_down_w=0.0,
        standby_w=0.0,
        refresh_w=0.0,
    )
    sram = replace(chip.sram, size_bytes=published()["qin"]["sram_bytes"])
    return Emulator(replace(chip, dram=dram, sram=sram), workload).token()


def check_bandwidth() -> list[Check]:
    """V8: one bandwidth, read off one model, gives the speed of others of 0.1 to 7 B parameters."""
    table = published()["qin"]
    known = table["calibration"]
    bytes_per_s = _workload(known).weight_bytes * known["tokens_per_s"]
    return [
        within(
            f"V8 Qin {row['model']}, tokens/s from {known['model']}'s bandwidth",
            row["tokens_per_s"],
            1 / _token(_workload(row), bytes_per_s).latency_s,
            0.05,
            table["source"],
            True,
        )
        for row in table["predicted"]
    ]


def check_systems() -> list[Check]:
    """V9: energy of a token with LPDDR3, at the bandwidth that the published speed implies."""
    table = published()["systems"]
    checks = []
    for row in table["rows"]:
        workload = _workload(row)
        cost = _token(workload, workload.weight_bytes * row["tokens_per_s"])
        name = f"V9 {row['chip']} {row['model']} at {row['bits']:g} bits, J/token"
        checks.append(within_factor(name, row["joules_per_token"], cost.energy_j, 1.6, table["source"], True))
    return checks
