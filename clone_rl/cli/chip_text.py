"""What the commands of ``clone-rl chip`` found, for people."""

from __future__ import annotations

from typing import Any

from clone_rl.cli.text import Column, aligned, mebibytes, quantity

_SPLIT = (("MAC", "mac_j"), ("SRAM", "sram_j"), ("SFU", "sfu_j"), ("clock", "clock_j"), ("LoRA unit", "lpu_j"),
          ("DRAM", "dram_j"), ("leakage", "leakage_j"))  # fmt: skip
_BOARD = {"clock": "device", "leakage": "static"}
"""What a board's laws call these terms."""


def _name(chip: dict[str, Any]) -> str:
    return f"{chip['name']}: {chip['description']}"


def chips(found: list[dict[str, Any]]) -> str:
    """``clone-rl chip list``."""
    columns: list[Column] = [
        ("chip", "", [c["name"] for c in found]),
        ("kind", "", [c["kind"] for c in found]),
        ("points", "", [c["points"] for c in found]),
        ("supply (V)", "", [f"{c['lowest_voltage_v']:.2f}-{c['highest_voltage_v']:.2f}" for c in found]),
        ("clock (MHz)", "", [f"{c['lowest_frequency_hz'] / 1e6:g}-{c['highest_frequency_hz'] / 1e6:g}" for c in found]),
        ("SRAM", "", [mebibytes(c["sram_bytes"]) if c["sram_bytes"] else None for c in found]),
        ("DRAM", "B/s", [c["dram_bytes_per_s"] for c in found]),
        ("peak", "OP/s", [c["peak_ops_per_s"] for c in found]),
        ("area", "mm2", [c["area_mm2"] for c in found]),
        ("limit", "W", [c["limit_w"] for c in found]),
    ]
    return aligned(columns) + "\n\n" + "\n".join(_name(c) for c in found)


def _pairs(title: str, lines: dict[str, str]) -> str:
    width = max(len(name) for name in lines)
    return "\n".join([title, *(f"  {name.ljust(width)}  {text}" for name, text in lines.items())])


def description(chip: dict[str, Any]) -> str:
    """``clone-rl chip show``."""
    points, leaks = chip["operating_points"], "leakage" if chip["kind"] == "asic" else "static"
    sections = [f"{_name(chip)}\n{chip['kind']}, at most {quantity(chip['limit_w'], 'W')} sustained"]
    sections.append(
        aligned(
            [
                ("point", "", list(range(len(points)))),
                ("supply" if chip["kind"] == "asic" else "effective", "V", [p["voltage_v"] for p in points]),
                ("clock", "Hz", [p["frequency_hz"] for p in points]),
                ("dynamic energy", "", [f"x {p['dynamic_scale']:.3f}" for p in points]),
                (f"{leaks} at 25 C", "W", [p["leakage_at_25c_w"] for p in points]),
                (f"{leaks} at 85 C", "W", [p["leakage_at_85c_w"] for p in points]),
            ]
        )
    )
    sections += _asic_sections(chip) if chip["kind"] == "asic" else [_board_section(chip)]
    if chip["dram"]:
        sections.append(_dram_section(chip["dram"]))
    idle = chip["idle_states"]
    sections.append(
        aligned(
            [
                ("between requests", "", list(idle)),
                ("power", "W", [s["power_w"] for s in idle.values()]),
                ("wake", "s", [s["wake_s"] for s in idle.values()]),
                ("wake energy", "J", [s["wake_j"] for s in idle.values()]),
            ]
        )
        + ("\noff: besides, the weights that were resident are read again from DRAM" if "off" in idle else "")
    )
    switching, changes = chip["switching"], chip["switching"]["changes"]
    sections.append(
        f"switching: {switching['mechanism']}, relock {quantity(switching['relock_s'], 's')}, "
        f"ramp {quantity(switching['slew_s_per_v'], 's')}/V, domain {quantity(switching['domain_capacitance_f'], 'F')}\n"
        + aligned(
            [
                ("change", "", [name.replace("_", " ") for name in changes]),
                ("stall", "s", [c["stall_s"] for c in changes.values()]),
                ("energy", "J", [c["energy_j"] for c in changes.values()]),
            ]
        )
    )
    heat = chip["thermal"]
    lines = {
        "ambient, throttling from, limit": f"{heat['ambient_c']:g}, {heat['throttle_c']:g}, {heat['limit_c']:g} C",
        "resistance": f"die {heat['die_resistance_k_per_w']:g} + package {heat['package_resistance_k_per_w']:g} K/W",
        "time constants": f"die {quantity(heat['die_pole_s'], 's')}, package {quantity(heat['package_pole_s'], 's')}",
        "at the power limit": f"{heat['rise_at_limit_k']:.3g} K above ambient; "
        f"throttles above {quantity(heat['throttles_above_w'], 'W')} sustained",
    }
    return "\n\n".join([*sections, _pairs("thermal", lines)])


def _board_section(chip: dict[str, Any]) -> str:
    laws, top = chip["laws"], chip["operating_points"][-1]
    lines = {
        "formats": ", ".join(laws["formats"]),
        "large products": f"{laws['gemm_macs_per_cycle']:g} MAC/cycle, "
        f"{quantity(2 * laws['gemm_macs_per_cycle'] * top['frequency_hz'], 'OP/s')} at the top clock",
        "streams weights": f"{laws['stream_bytes_per_cycle']:g} B/cycle, "
        f"{quantity(laws['stream_bytes_per_cycle'] * top['frequency_hz'], 'B/s')} at the top clock",
        "overhead per token": f"{laws['overhead_cycles_per_token']:g} cycles; host, beside the device: "
        f"{quantity(laws['host_s_per_token'], 's')}",
        "energy of a device cycle": quantity(laws["cycle_energy_j"], "J") + " at the top clock",
        "static power": f"{quantity(laws['static_w'], 'W')} at {laws['reference_c']:g} C, "
        f"{laws['static_per_kelvin']:.1%} more per kelvin; idle {quantity(laws['idle_w'], 'W')}",
    }
    return _pairs("laws of the whole board, measured", lines)


def _asic_sections(chip: dict[str, Any]) -> list[str]:
    area, compute, sram, regulator = chip["area"], chip["compute"], chip["sram"], chip["regulator"]
    peaks = chip["peak_ops_per_s"]
    lora = f", LoRA unit {area['lora_unit_area_mm2']:.3g}" if area["lora_unit_area_mm2"] else ""
    rail = f" from {regulator['input_voltage_v']:g} V" if regulator["input_voltage_v"] else ""
    parts = {
        "area": f"{area['area_mm2']:.4g} mm2: logic {area['logic_area_mm2']:.3g}, SRAM {area['sram_area_mm2']:.3g}{lora}",
        "compute": f"{compute['tiles']} tiles of {compute['array_rows']} x {compute['array_columns']}, {compute['dataflow']}; "
        f"matrix-vector at {compute['gemv_utilisation']:.0%} of peak",
        "SRAM": f"{mebibytes(sram['size_bytes'])}, banks of {mebibytes(sram['bank_bytes'])}, "
        f"{quantity(sram['energy_j_per_byte'], 'J')}/B; {sram['bytes_per_cycle']:g} B/cycle, "
        f"{quantity(sram['top_bytes_per_s'], 'B/s')} at the top",
        "stream buffers": f"{mebibytes(sram['buffers_bytes'])}, taken where weights are streamed",
        "regulator": f"{regulator['kind']}{rail}, efficiency {regulator['efficiency_at_lowest']:.0%} at the lowest point, "
        f"{regulator['efficiency_at_highest']:.0%} at the highest",
        "energies": f"stated at {regulator['reference_voltage_v']:g} V",
    }
    if unit := chip["lora_unit"]:
        parts["LoRA unit"] = (
            f"{unit['macs']} MAC/cycle, buffer {mebibytes(unit['buffer_bytes'])}, eNVM {mebibytes(unit['envm_bytes'])} at "
            f"{quantity(unit['envm_bytes_per_s'], 'B/s')}"
        )
    formats = [
        ("format", "", list(peaks)),
        ("peak", "OP/s", list(peaks.values())),
        ("MAC/cycle", "", list(compute["macs_per_cycle"].values())),
        ("MAC energy", "J", list(compute["mac_energy_j"].values())),
    ]
    return [_pairs("parts", parts), aligned(formats)]


def _dram_section(dram: dict[str, Any]) -> str:
    states = {"active": "active_w", "standby": "standby_w", "power-down": "power_down_w", "self-refresh": "self_refresh_w"}
    powers = [f"{name} {quantity(dram[key], 'W')}" for name, key in states.items() if dram[key]]
    lines = {
        "bandwidth": f"{quantity(dram['bandwidth_bytes_per_s'], 'B/s')}, "
        f"{quantity(dram['achievable_bytes_per_s'], 'B/s')} achievable, first access {quantity(dram['latency_s'], 's')}",
        "energy": f"read {dram['read_j_per_bit'] * 1e12:.3g}, write {dram['write_j_per_bit'] * 1e12:.3g} pJ/bit",
        "power": ", ".join(powers) or "within the board's",
        "between transfers": f"{dram['between_transfers']}; refresh {quantity(dram['refresh_w'], 'W')}",
    }
    return _pairs("DRAM", lines)


def _title(result: dict[str, Any]) -> str:
    adapters = f", LoRA rank {result['lora_rank']}" if result["lora_rank"] else ""
    return (
        f"{result['model']} at {result['precision']}{adapters} on {result['chip']}: prompt {result['prompt']}, "
        f"{result['tokens']} tokens"
    )


def _remark(point: dict[str, Any], result: dict[str, Any]) -> str:
    remarks = {
        "least energy": point["point"] == result["minimum_energy_point"],
        "knee": point["point"] == result["knee_point"],
        "OVER LIMIT": point["over_limit"],
        f"THROTTLED to {point['highest_allowed_point']}": point["throttled"],
    }
    return ", ".join(text for text, holds in remarks.items() if holds)


def _split_columns(result: dict[str, Any], key: str) -> str:
    points = result["points"]
    columns: list[Column] = [("point", "", [p["point"] for p in points])]
    for title, term in _SPLIT:
        values = [p[key][term] for p in points]
        if any(values):
            columns.append((_BOARD.get(title, title) if result["kind"] == "board" else title, "J", values))
    return aligned([*columns, ("all", "J", [p[key]["energy_j"] for p in points])], together="J")


def request(result: dict[str, Any]) -> str:
    """``clone-rl chip cost``."""
    points, last = result["points"], result["points"][-1]
    lines = [
        f"{_title(result)}, {result['layers']} layers each, die {result['temperature_c']:g} C",
        _placement_text(result),
        "",
        aligned(
            [
                ("point", "", [p["point"] for p in points]),
                ("supply", "V", [p["voltage_v"] for p in points]),
                ("clock", "Hz", [p["frequency_hz"] for p in points]),
                ("TTFT", "s", [p["ttft_s"] for p in points]),
                ("TPOT", "s", [p["tpot_s"] for p in points]),
                ("per token", "J", [p["energy_per_token_j"] for p in points]),
                ("prefill", "J", [p["prefill_j"] for p in points]),
                ("request", "J", [p["request_j"] for p in points]),
                ("mean power", "W", [p["power_w"] for p in points]),
                ("steady die", "C", [round(p["steady_die_c"], 1) for p in points]),
                ("", "", [_remark(p, result) for p in points]),
            ]
        ),
        "",
        "energy per token by cause",
        _split_columns(result, "decode_per_token"),
        "",
        "energy of the prefill by cause",
        _split_columns(result, "prefill"),
        "",
        f"power limit {quantity(result['limit_w'], 'W')}; switching is {result['switching']}"
        + (
            f": from the point below to {last['point']} it stalls {quantity(last['switch_from_below_s'], 's')} and takes "
            f"{quantity(last['switch_from_below_j'], 'J')}"
            if last["point"]
            else ""
        ),
    ]
    return "\n".join([*lines, *([f"picture: {result['plot']}"] if result["plot"] else [])])


def _placement_text(result: dict[str, Any]) -> str:
    place, end = result["placement"], result["prompt"] + result["tokens"]
    if place["kv_positions_in_sram"] >= end:
        cache = f"all of the K/V cache ({mebibytes(place['kv_bytes'])} for {end} positions)"
    elif place["kv_positions_in_sram"] > 0:
        cache = f"{place['kv_positions_in_sram']:.0f} of {end} positions of the K/V cache ({mebibytes(place['kv_bytes'])})"
    else:
        cache = "none of the K/V cache"
    share = {1.0: "all", 0.0: "none"}.get(place["resident_share"], f"{place['resident_share']:.3%}")
    lines = [
        f"on chip: {share} of the weights ({mebibytes(place['weight_bytes'])}), {cache}",
        f"over DRAM: {quantity(place['dram_bytes_per_token'], 'B')} per token at {end} positions",
    ]
    if place["adapters"]:
        lines.append(f"adapters: {mebibytes(place['adapter_bytes'])}, {place['adapters']}")
    return "\n".join(lines)


def scaled(result: dict[str, Any]) -> str:
    """``clone-rl chip scale``."""
    rows = result["rows"]
    columns = (
        ("tiles", "", "tiles"),
        ("area", "mm2", "area_mm2"),
        ("logic", "mm2", "logic_area_mm2"),
        ("SRAM", "mm2", "sram_area_mm2"),
        ("peak", "OP/s", "peak_ops_per_s"),
        ("TPOT", "s", "latency_s"),
        ("per token", "J", "energy_j"),
        ("decoding", "W", "power_w"),
        ("leakage", "W", "leakage_w"),
        ("best", "", "best_point"),
        ("TPOT", "s", "best_latency_s"),
        ("per token", "J", "best_energy_j"),
        ("decoding", "W", "best_power_w"),
    )
    remarks = ["OVER LIMIT" if row["over_limit"] else "" for row in rows]
    table: list[Column] = [(title, unit, [row[key] for row in rows]) for title, unit, key in columns]
    at = rows[0]
    return (
        f"{_title(result)} with other numbers of tiles\n"
        f"left of 'best': point {at['point']}, {at['voltage_v']:g} V, {quantity(at['frequency_hz'], 'Hz')}; right of it: the "
        "point with the least energy per token\n\n"
    ) + aligned([*table, ("", "", remarks)] if any(remarks) else table)


def checked(checks: list[dict[str, Any]]) -> str:
    """``clone-rl chip validate``."""
    sources: dict[str, dict[str, None]] = {}
    for check in checks:
        sources.setdefault(check["source"], {})[check["id"].split()[0]] = None
    table = aligned(
        [
            ("check", "", [c["id"] for c in checks]),
            ("reference", "", [_figure(c["reference"]) for c in checks]),
            ("ours", "", [_figure(c["ours"]) for c in checks]),
            ("error", "", ["-" if c["error"] is None else f"{c['error']:+.1%}" for c in checks]),
            ("allowed", "", [c["tolerance"] for c in checks]),
            ("", "", ["pass" if c["pass"] else "FAIL" for c in checks]),
            ("", "", ["held out" if c["held_out"] else "" for c in checks]),
        ]
    )
    apart = [c["pass"] for c in checks if c["held_out"]]
    return "\n".join(
        [
            table,
            "",
            "sources",
            *(f"  {', '.join(groups)}: {source}" for source, groups in sources.items()),
            "",
            f"{sum(c['pass'] for c in checks)} of {len(checks)} within tolerance; of those held out from fitting "
            f"{sum(apart)} of {len(apart)}",
        ]
    )


def constants(fitted: list[dict[str, Any]]) -> str:
    """``clone-rl chip fit``."""
    columns: list[Column] = [
        ("constant", "", [f["name"] for f in fitted]),
        ("fitted", "", [_figure(f["value"]) for f in fitted]),
        ("shipped", "", [_figure(f["shipped"]) for f in fitted]),
        ("error", "", [f"{f['error']:+.1%}" for f in fitted]),
        ("rows", "", [f["rows"] for f in fitted]),
        ("source", "", [f["source"] for f in fitted]),
    ]
    return aligned(columns)


def _figure(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
