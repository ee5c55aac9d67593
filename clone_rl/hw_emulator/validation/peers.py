"""V1 to V4: other simulators, with their own constants in the emulator's chips."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from functools import cache
from pathlib import Path

from clone_rl.errors import BadFileError
from clone_rl.hw_emulator.chip import Asic, Board, Dram, OperatingPoint
from clone_rl.hw_emulator.emulator import HEAD, Emulator
from clone_rl.hw_emulator.families import shape_names
from clone_rl.hw_emulator.precision import BITS, Precision
from clone_rl.hw_emulator.systolic import DATAFLOWS, systolic_cycles
from clone_rl.hw_emulator.validation.check import Check, all_equal, within, worst
from clone_rl.hw_emulator.validation.published import published
from clone_rl.hw_emulator.validation.reference import Row, read_rows, read_tables
from clone_rl.hw_emulator.workload import Workload

_UNBOUNDED = 2**60
"""Lanes and bytes that never bound anything."""

_SIZES = ("M", "K", "N")


def _product(chip: Asic, k: int, n: int) -> Emulator:
    """A chip whose model's head is one (m x k) by (k x n) product in INT8."""
    shape = Workload(layers=1, hidden_size=k, heads=1, kv_heads=1, ff_size=1, vocab_size=n)
    return Emulator(chip, shape.with_precision("int8"))


def _one_array(rows: int, columns: int, dataflow: str, gemv_utilisation: float) -> Asic:
    """One array at 1 GHz and the reference voltage behind an ideal supply, bounded by nothing around it."""
    chip = Asic.load("asic28-lpddr4")
    compute = replace(
        chip.compute,
        tiles=1,
        array_rows=rows,
        array_columns=columns,
        dataflow=dataflow,
        gemv_utilisation=gemv_utilisation,
        macs_per_pe={"int8": 1.0},
        mac_energy_j={"int8": published()["zigzag"]["mac_energy_j"]},
        clock_energy_j_per_pe=0.0,
        wire_energy_j_per_byte_mm=0.0,
    )
    return replace(
        chip,
        compute=compute,
        sram=replace(chip.sram, size_bytes=_UNBOUNDED, bytes_per_cycle_per_tile=math.inf),
        sfu=replace(chip.sfu, lanes_per_tile=_UNBOUNDED, element_energy_j=0.0),
        power=replace(chip.power, regulator="ideal"),
        dram=None,
        operating_points=(OperatingPoint(chip.power.reference_voltage_v, 1e9),),
    )


def _systolic_equal(rows: int, columns: int, row: Row) -> bool:
    """Whether both the formula and the compiled cost of a product on one array have the row's cycles."""
    m, k, n = (int(row[size]) for size in _SIZES)
    # A vector mode this slow is never taken: SCALE-Sim has none.
    emulator = _product(_one_array(rows, columns, row["dataflow"], gemv_utilisation=1e-12), k, n)
    charged = emulator.cost(HEAD, 0, rows=m).latency_s * 1e9
    return systolic_cycles(m, k, n, rows, columns, row["dataflow"]) == round(charged) == int(row["cycles"])


def _height_width(array: str, path: Path) -> tuple[int, int]:
    height, _, width = array.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise BadFileError(f"{path}: array is {array!r}", "write rows x columns, such as 32x32")
    return int(height), int(width)


def check_systolic(reference: Path | None) -> list[Check]:
    """V1: SCALE-Sim's cycles, every row exactly; one check per array and dataflow."""
    table = published()["scalesim"]
    tables = read_tables(reference, "scalesim*.csv", (*_SIZES, "cycles"), ("array", "dataflow"))
    groups: dict[tuple[str, str, str], list[bool]] = defaultdict(list)
    for path, rows in ({Path("published.toml"): table["rows"]} | tables).items():
        kind = "table" if path in tables else "published"
        for row in rows:
            if row["dataflow"] not in DATAFLOWS:
                raise BadFileError(f"{path}: dataflow is {row['dataflow']!r}", f"one of {', '.join(DATAFLOWS)}")
            equal = _systolic_equal(*_height_width(row["array"], path), row)
            groups[kind, row["array"], row["dataflow"]].append(equal)
    return [
        all_equal(f"V1 SCALE-Sim {dataflow.upper()} {array}, equal rows ({kind})", sum(equal), len(equal), table["source"])
        for (kind, array, dataflow), equal in groups.items()
    ]


def _zigzag(row: Row) -> tuple[float, float]:
    """Cycles and energy (J) of a product that starts and ends in DRAM."""
    m, k, n = (int(row[size]) for size in _SIZES)
    dram = Dram(
        bandwidth_bytes_per_s=row["dram_bits_per_cycle"] / 8 * 1e9,
        achievable=1.0,
        latency_s=0.0,
        read_energy_j_per_byte=8 * published()["zigzag"]["dram_j_per_bit"],
        write_energy_j_per_byte=8 * published()["zigzag"]["dram_j_per_bit"],
    )
    emulator = _product(replace(_one_array(32, 32, "ws", gemv_utilisation=1.0), dram=dram), k, n)
    # Inputs and outputs of the product move through DRAM as well, unlike those of a layer within a model.
    emulator.work["dram_bytes"][HEAD] = k * n + m * (k + n)
    cost = emulator.cost(HEAD, 0, rows=m)
    return cost.latency_s * 1e9, cost.dynamic_j + cost.dram_j


def check_products(reference: Path | None) -> list[Check]:
    """V2: ZigZag's cycles and energy of products that DRAM bounds (M <= 16, at least 0.8 M weights)."""
    table = published()["zigzag"]
    checks = []
    for row in table["rows"]:
        cycles, energy_j = _zigzag(row)
        name = f"V2 ZigZag {row['M']}x{row['K']}x{row['N']} at {row['dram_bits_per_cycle']} bit/cycle"
        checks.append(within(f"{name}, cycles", row["cycles"], cycles, 0.03, table["source"], True))
        if "energy_j" in row:
            checks.append(within(f"{name}, J", row["energy_j"], energy_j, 0.03, table["source"], True))
    rows = read_rows(reference, "zigzag*.csv", (*_SIZES, "dram_bits_per_cycle", "cycles", "energy_pJ"))
    rows = [row for row in rows if row["M"] <= 16 and row["K"] * row["N"] >= 0.8e6]
    if rows:
        ours = [_zigzag(row) for row in rows]
        cycles_pairs = [(row["cycles"], cycles) for row, (cycles, _) in zip(rows, ours, strict=True)]
        energy_pairs = [(row["energy_pJ"] / 1e12, energy_j) for row, (_, energy_j) in zip(rows, ours, strict=True)]
        checks.append(worst("V2 ZigZag cycles (table)", cycles_pairs, 0.03, table["source"], True))
        checks.append(worst("V2 ZigZag energy, J (table)", energy_pairs, 0.03, table["source"], True))
    return checks


@cache
def _shapes() -> dict[str, str]:
    """Shipped shapes by the name that GenZ gives a model (Qwen2 and Qwen2.5 of 0.5 B parameters have the same sizes)."""
    return {name: name for name in shape_names()} | {"qwen2-0.5b": "qwen2.5-0.5b"}


def _roofline_s(row: Row) -> float:
    """A decode step of a board that nothing but DRAM bounds, which reads weights and caches in ``bits``."""
    chip, bits = Board.load("orin-nano"), row["bits"]
    assert chip.dram is not None
    board = replace(chip.board, stream_bytes_per_cycle=math.inf, gemm_macs_per_cycle=math.inf, overhead_cycles_per_token=0.0)
    dram = replace(chip.dram, bandwidth_bytes_per_s=row["bw_GBps"] * 2**30, achievable=1.0)  # GenZ's gigabytes
    workload = Workload.from_config(_shapes()[row["model"].lower()], Precision(bits, bits, bits, bits))
    emulator = Emulator(replace(chip, board=board, dram=dram), workload)
    return emulator.token(context=row["ctx"], tokens=int(row["batch"])).latency_s


def check_rooflines(reference: Path | None) -> list[Check]:
    """V3: GenZ's decode latencies; of a table the worst row per model and number of bits.

    Rows of prefill, of unknown formats and of models without a shipped shape are left out.
    """
    table = published()["genz"]
    checks = []
    for row in table["rows"]:
        name = f"V3 GenZ {row['model']} {row['bits']} at {row['bw_GBps']:g} GiB/s, tokens/s"
        checks.append(within(name, row["tokens_per_s"], 1 / _roofline_s(row), 0.02, table["source"], True))
    groups: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for row in read_rows(reference, "genz*.csv", ("bw_GBps", "batch", "ctx", "latency_ms"), ("model", "bits", "phase")):
        if row["phase"] == "decode" and row["bits"] in BITS and row["model"].lower() in _shapes():
            groups[row["model"], row["bits"]].append((row["latency_ms"] / 1e3, _roofline_s(row)))
    for (model, bits), pairs in groups.items():
        checks.append(worst(f"V3 GenZ {model} {bits}, decode s (table)", pairs, 0.02, table["source"], True))
    return checks


def check_banks(reference: Path | None) -> list[Check]:
    """V4: CACTI's read energy per byte at 28 nm (HP devices, 330 K), banks of 32 KiB to 4 MiB.

    The narrowest port of a size is the emulator's bank; wider ones are reported too, though the law has no port width.
    """
    table = published()["cacti"]
    found = {(row["size_B"], row["port_B"]): row["read_pJ_per_B"] for row in table["rows"]}
    columns = ("node_um", "size_B", "port_B", "T_K", "read_pJ_per_B")
    for row in read_rows(reference, "cacti7*.csv", columns, ("cell", "periph")):
        if (row["node_um"], row["T_K"], row["cell"], row["periph"]) == (0.028, 330.0, "itrs-hp", "itrs-hp"):
            found[int(row["size_B"]), int(row["port_B"])] = row["read_pJ_per_B"]
    sram = Asic.load("asic28-lpddr4").sram
    return [
        within(
            f"V4 CACTI {size // 1024} KiB, port {port} B, pJ/byte",
            energy_pj,
            replace(sram, bank_bytes=size).energy_j_per_byte * 1e12,
            0.15,
            table["source"],
        )
        for (size, port), energy_pj in sorted(found.items())
        if 2**15 <= size <= 2**22
    ]
