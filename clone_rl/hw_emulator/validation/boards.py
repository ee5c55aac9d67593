"""V10 and V11: Jetson boards under MLC and llama.cpp."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from clone_rl.hw_emulator.chip import Board, OperatingPoint
from clone_rl.hw_emulator.emulator import Emulator
from clone_rl.hw_emulator.validation.check import Check, within
from clone_rl.hw_emulator.validation.published import published
from clone_rl.hw_emulator.validation.stored import stored
from clone_rl.hw_emulator.workload import Workload


def nano_workloads() -> list[Workload]:
    """The models that were run on the Orin Nano, in the order of the published rows."""
    table = published()["orin_nano"]
    return [Workload.from_config(row["model"], stored(table["bits"])) for row in table["rows"]]


def agx_workload(format_name: str = "q4_k_m") -> Workload:
    """The model that was run on the AGX Orin, in a llama.cpp format."""
    table = published()["orin_agx"]
    return Workload.from_config(table["model"], stored(table[f"{format_name}_bits"]))


def check_nano() -> list[Check]:
    """V10: tokens per second of the Orin Nano; its faster mode follows from bandwidth and clock alone."""
    table, chip = published()["orin_nano"], Board.load("orin-nano")
    assert chip.dram is not None
    faster = replace(
        chip,
        dram=replace(chip.dram, bandwidth_bytes_per_s=table["super_bandwidth_bytes_per_s"]),
        operating_points=(replace(chip.operating_points[-1], frequency_hz=table["super_clock_hz"]),),
    )
    checks = []
    for mode, key, board, held_out in (
        ("15 W", "tokens_per_s", chip, False),
        ("Super", "super_tokens_per_s", faster, True),
    ):
        for row, workload in zip(table["rows"], nano_workloads(), strict=True):
            ours = 1 / Emulator(board, workload).token().latency_s
            name = f"V10 Orin Nano {mode} {row['model']}, tokens/s"
            checks.append(within(name, row[key], ours, 0.06, table["source"], held_out))
    return checks


def halved(chip: Board) -> Board:
    """The AGX Orin in its 30 W mode: half the cores, a lower clock at the voltage that the shipped curve gives it."""
    mode, laws = published()["orin_agx"]["halved"], chip.board
    clocks = [point.frequency_hz for point in chip.operating_points]
    voltage_v = float(np.interp(mode["clock_hz"], clocks, [point.voltage_v for point in chip.operating_points]))
    board = replace(
        laws,
        static_w=mode["idle_w"],
        idle_w=mode["idle_w"],
        cycle_energy_j=laws.cycle_energy_j * mode["cores"],
        stream_bytes_per_cycle=laws.stream_bytes_per_cycle * mode["cores"],
        gemm_macs_per_cycle=laws.gemm_macs_per_cycle * mode["cores"],
    )
    # The top point stays: voltages are relative to it.
    return replace(
        chip, board=board, operating_points=(OperatingPoint(voltage_v, mode["clock_hz"]), chip.operating_points[-1])
    )


def check_agx() -> list[Check]:
    """V11: energy and speed of the AGX Orin; only the first cell is fitted, and the sign between modes must hold."""
    table, chip = published()["orin_agx"], Board.load("orin-agx")
    modes = {
        "maxn": ("MAXN Q4_K_M", Emulator(chip, agx_workload()), None, 0.0),
        "mode_30w": ("30 W Q4_K_M", Emulator(halved(chip), agx_workload()), 0, 0.0),
        "iq4_xs": ("MAXN IQ4_XS", Emulator(chip, agx_workload("iq4_xs")), None, 0.0),
        "long": ("MAXN Q4_K_M after 16 Ki tokens", Emulator(chip, agx_workload()), None, float(table["long"]["context"])),
    }
    checks, joules = [], {}
    for mode, (title, emulator, point, context) in modes.items():
        cost, held_out, source = emulator.token(context=context, vf=point), mode != "maxn", table["source"]
        joules[mode] = cost.energy_j
        checks += [
            within(f"V11 {title}, J/token", table[mode]["joules_per_token"], cost.energy_j, 0.15, source, held_out),
            within(f"V11 {title}, tokens/s", table[mode]["tokens_per_s"], 1 / cost.latency_s, 0.15, source, held_out),
        ]
        if "prompt_tokens_per_s" in table[mode]:
            tokens = table["prompt_tokens"]
            ours = tokens / emulator.token("prefill", tokens=tokens, vf=point).latency_s
            name = f"V11 {title}, prompt tokens/s"
            checks.append(within(name, table[mode]["prompt_tokens_per_s"], ours, 0.15, source, held_out))
    reference = table["mode_30w"]["joules_per_token"] / table["maxn"]["joules_per_token"]
    ours = joules["mode_30w"] / joules["maxn"]
    sign = Check(
        "V11 30 W mode over MAXN, J/token", reference, ours, "> 1", ours > 1, table["source"], ours / reference - 1, True
    )
    return [*checks, sign]
