"""Numbers in another unit than their field's: each is refused by name, or harmless."""

import copy
import dataclasses
import math
import re
import tomllib
from importlib import resources
from typing import get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clone_rl.errors import BadFileError, BadValueError, CloneRLError
from clone_rl.hw_emulator import Asic, Board, Emulator, Workload, chip_names, load_chip
from clone_rl.hw_emulator.chip import OperatingPoint, check_chip, parse_chip
from clone_rl.hw_emulator.report import describe, request_costs
from clone_rl.ranges import Range, ranges_of

TABLES = {
    name: tomllib.loads((resources.files("clone_rl.hw_emulator") / "chips" / f"{name}.toml").read_text(encoding="utf-8"))
    for name in chip_names()
}
SMALL = Workload(layers=2, hidden_size=64, heads=2, kv_heads=1, ff_size=128, vocab_size=64).with_precision("int8")


def places(table, path=()):
    """Paths to every number; of operating points one stands for all."""
    found = []
    for key, value in table.items() if isinstance(table, dict) else enumerate(table):
        if isinstance(value, dict | list):
            found += places(value, (*path, key))
        elif isinstance(value, int | float) and not isinstance(value, bool) and path not in [("operating_points", 1)]:
            found.append((*path, key))
    return [p for p in found if p[0] != "operating_points" or p[1] == 0]


def scaled(table, path, factor):
    """The same chip with a number in another unit, that of all operating points alike."""
    table = copy.deepcopy(table)
    paths = [path] if path[0] != "operating_points" else [(path[0], i, path[2]) for i in range(len(table[path[0]]))]
    for *parents, last in paths:
        inner = table
        for key in parents:
            inner = inner[key]
        value = inner[last] * factor
        inner[last] = int(value) if isinstance(inner[last], int) and value == int(value) and value < 2**53 else value
    return table


def numbers(data):
    """Every number of nested plain data."""
    if isinstance(data, dict):
        return [n for value in data.values() for n in numbers(value)]
    if isinstance(data, list | tuple):
        return [n for value in data for n in numbers(value)]
    return [data] if isinstance(data, int | float) else []


def figures(chip):
    """All that ``chip show`` and ``chip cost`` say of it."""
    costs = request_costs(Emulator(chip, SMALL), 8, 4)
    return numbers([describe(chip), [dataclasses.asdict(cost) for cost in costs]])


@pytest.mark.parametrize("chip", chip_names())
def test_every_physical_field_has_a_unit_and_a_range(chip):
    for part in vars(load_chip(chip)).values():
        if dataclasses.is_dataclass(part):
            kinds = get_type_hints(type(part))
            assert set(ranges_of(type(part))) == {n for n, kind in kinds.items() if kind not in (str, bool, list[str])}
    assert set(ranges_of(OperatingPoint)) == {"voltage_v", "frequency_hz"}


@pytest.mark.parametrize(
    ("name", "path", "factor", "place", "hint"),
    [
        (
            "asic28-sram",
            "operating_points.0.voltage_v",
            1e3,
            "operating_points[0]: voltage_v is 560.0",
            "volts, 0.1 to 2; is it in millivolts?",
        ),
        (
            "asic28-sram",
            "operating_points.0.frequency_hz",
            1e-6,
            "operating_points[0]: frequency_hz is 50.0",
            "is it in megahertz?",
        ),
        ("orin-nano", "operating_points.0.frequency_hz", 1e-9, "frequency_hz is 0.306", "is it in gigahertz?"),
        ("orin-nano", "operating_points.0.frequency_hz", 1e-3, "frequency_hz is 306000.0", "is it in kilohertz?"),
        ("asic28-sram", "power.limit_w", 1e3, "limit_w, 500 W, would heat the die", "in watts"),
        ("orin-nano", "board.static_w", 1e3, "static_w is 4450.0", "watts, at most limit_w, 15"),
        ("asic28-sram", "compute.mac_energy_j.int8", 1e12, "[compute.mac_energy_j]: int8 is 0.2", "is it in picojoules?"),
        ("asic28-sram", "compute.mac_energy_j.int8", 1e3, "int8 is 2", "joules"),
        ("asic28-sram", "compute.mac_area_mm2", 1e6, "mac_area_mm2 is 450", "is it in square micrometres?"),
        ("asic28-sram", "compute.tile_area_mm2", 1e-6, "tile_area_mm2 is 2.5e-07", "is it in square metres?"),
        (
            "asic28-sram",
            "compute.gemv_utilisation",
            1e2,
            "gemv_utilisation is 80.0",
            "a share is at most 1; is it in percent?",
        ),
        ("asic28-sram", "sram.size_bytes", 2**-20, "size_bytes is 8", "is it in kilobytes, megabytes or gigabytes?"),
        ("asic28-sram", "sram.leakage_w_per_byte", 1e3, "leakage_w_per_byte is 1.46e-06", "is it in milliwatts per byte?"),
        ("asic28-sram", "power.wake_s", 1e6, "wake_s is 1", "is it in milliseconds, microseconds or nanoseconds?"),
        ("asic28-sram", "switching.domain_capacitance_f", 1e9, "domain_capacitance_f is 5", "is it in nanofarads?"),
        (
            "asic28-lpddr4",
            "dram.bandwidth_bytes_per_s",
            1e-9,
            "bandwidth_bytes_per_s is 12.8",
            "megabytes per second or gigabytes per second?",
        ),
        ("asic28-lpddr4", "dram.active_w", 1e3, "active_w is 76.0", "at most limit_w"),
        ("asic28-lpddr4", "dram.latency_s", 1e9, "latency_s is 100", "is it in nanoseconds?"),
        (
            "asic28-sram",
            "thermal.die_capacity_j_per_k",
            1e3,
            "die_resistance_k_per_w x die_capacity_j_per_k is 250 s",
            "time constant in seconds",
        ),
        ("orin-nano", "board.host_s_per_token", None, "host_s_per_token is 43.0", "is it in milliseconds or microseconds?"),
        ("asic28-sram", "thermal.throttle_c", None, "throttle_c is 358.15", "Celsius, 0 to 250; is it in kelvin?"),
        ("asic28-sram", "thermal.ambient_c", None, "ambient_c is 298.15", "is it in kelvin?"),
    ],
)
def test_a_slip_of_the_unit_is_refused_with_the_unit_that_was_meant(name, path, factor, place, hint):
    path = tuple(int(key) if key.isdigit() else key for key in path.split("."))
    if factor is None:
        table = copy.deepcopy(TABLES[name])
        table[path[0]][path[1]] = float(place.rpartition(" ")[2])
    else:
        table = scaled(TABLES[name], path, factor)
    with pytest.raises(BadFileError, match=r"my\.toml: ") as caught:
        parse_chip(table, "my.toml")
    assert place in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize("name", chip_names())
def test_a_thousandfold_voltage_or_frequency_is_never_taken(name):
    for path in places(TABLES[name]):
        if re.search(r"(voltage_v|frequency_hz)$", str(path[-1])):
            for factor in (1e-3, 1e3):
                with pytest.raises(BadFileError, match=str(path[-1])):
                    parse_chip(scaled(TABLES[name], path, factor), "my.toml")


DEVICES = {
    # An accelerator beside a microcontroller: 55 nm, slow, a few milliwatts.
    "microcontroller": (
        "asic28-sram",
        {
            "compute": {"tiles": 1, "mac_area_mm2": 1.5e-3, "fixed_area_mm2": 0.1, "tile_area_mm2": 0.02},
            "sram": {"size_bytes": 131072, "buffer_bytes_per_tile": 1024, "bank_bytes": 8192, "leakage_w_per_byte": 1e-11},
            "power": {"limit_w": 5e-3, "wake_s": 1e-3},
            "thermal": {"package_resistance_k_per_w": 120.0, "package_capacity_j_per_k": 0.5},
        },
        (10e6, 40e6),
    ),
    # A graphics processor of a data centre, liquid-cooled.
    "data centre": (
        "orin-agx",
        {
            "board": {
                "static_w": 90.0, "idle_w": 75.0, "cycle_energy_j": 3.4e-7, "stream_bytes_per_cycle": 2000.0,
                "gemm_macs_per_cycle": 2.7e5, "limit_w": 1000.0,
            },
            "dram": {"bandwidth_bytes_per_s": 8e12, "read_energy_j_per_byte": 31e-12, "active_w": 60.0},
            "thermal": {"die_resistance_k_per_w": 0.02, "package_resistance_k_per_w": 0.03,
                        "die_capacity_j_per_k": 60.0, "package_capacity_j_per_k": 2000.0},
        },
        (345e6, 1.98e9),
    ),
    # An accelerator of 5 nm with a hundred thousand multipliers.
    "server": (
        "asic28-lpddr4",
        {
            "compute": {"tiles": 64, "array_rows": 128, "array_columns": 128, "mac_area_mm2": 4e-5, "fixed_area_mm2": 100.0},
            "sram": {"size_bytes": 2**28, "leakage_w_per_byte": 5e-9, "area_mm2_per_mib": 0.4},
            "power": {"limit_w": 400.0, "logic_leakage_w_per_mm2": 0.05},
            "dram": {"bandwidth_bytes_per_s": 3.3e12, "active_w": 30.0},
            "thermal": {"die_resistance_k_per_w": 0.05, "package_resistance_k_per_w": 0.1,
                        "die_capacity_j_per_k": 20.0, "package_capacity_j_per_k": 500.0},
        },
        (400e6, 1.8e9),
    ),
}  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
def test_devices_from_a_microcontroller_to_a_data_centre_are_taken(device):
    base, changes, clocks = DEVICES[device]
    table = copy.deepcopy(TABLES[base])
    for section, values in changes.items():
        table[section] |= values
    ends = [point["voltage_v"] for point in table["operating_points"]]
    table["operating_points"] = [
        {"voltage_v": volts, "frequency_hz": hertz} for volts, hertz in zip((ends[0], ends[-1]), clocks, strict=True)
    ]
    assert all(math.isfinite(number) for number in figures(parse_chip(table, "my.toml")))


FACTORS = st.integers(-4, 4).filter(bool).map(lambda power: 1000.0**power)


@given(st.sampled_from(chip_names()), st.lists(st.tuples(st.integers(0, 10**6), FACTORS), min_size=1, max_size=3))
def test_numbers_in_other_units_are_refused_by_name_or_every_figure_is_finite(name, slips):
    table, known = TABLES[name], places(TABLES[name])
    for which, factor in slips:
        table = scaled(table, known[which % len(known)], factor)
    try:
        chip = parse_chip(table, "my.toml")
        found = figures(chip)
    except CloneRLError as error:
        assert any(str(key) in str(error) for path in known for key in path)
        assert error.hint
        return
    assert all(math.isfinite(number) for number in found)


def test_a_chip_made_in_python_is_checked_as_a_file_is():
    chip = load_chip("asic28-sram")
    points = tuple(dataclasses.replace(point, voltage_v=point.voltage_v * 1e3) for point in chip.operating_points)
    with pytest.raises(BadFileError, match=r"mine: operating_points\[0\]: voltage_v is 560\.0 .volts, 0\.1 to 2"):
        check_chip(dataclasses.replace(chip, operating_points=points), "mine")


# The range itself.


@given(st.floats(allow_nan=False), st.floats(1e-6, 1e6), st.floats(1.0, 1e6))
def test_the_units_that_are_asked_about_are_those_in_which_the_number_would_do(value, low, width):
    allowed = Range("volts", low, low * width)
    factors = {"milli": 1e-3, "micro": 1e-6, "nano": 1e-9, "pico": 1e-12, "kilo": 1e3, "mega": 1e6, "giga": 1e9}
    for unit in allowed.others(value):
        assert allowed.allows(value * factors[unit.removesuffix("volts")])


def test_nan_is_in_no_range_and_zero_only_where_it_means_none():
    assert not Range("", -1, 1).allows(math.nan)
    assert Range("seconds", 1e-3, 1, zero=True).allows(0)
    with pytest.raises(BadValueError, match=r"t is 0 .seconds, 0\.001 to 1.$"):
        Range("seconds", 1e-3, 1).check(0, "t")
    with pytest.raises(BadValueError, match="or 0"):
        Range("seconds", 1e-3, 1, zero=True).check(-1, "t")


# What a chip says of itself.


@pytest.mark.parametrize("name", chip_names())
def test_a_description_repeats_no_number_that_a_field_states(name):
    chip = load_chip(name)
    assert isinstance(chip, Asic | Board)
    assert not re.search(r"\d *(MACs?|MiB|KiB|W|V|MHz|GHz|tiles|B/s|TOPS)\b|\d INT", chip.description)


def test_a_chip_of_other_tiles_is_described_truly():
    wide = load_chip("asic28-sram").with_tiles(8)
    found = describe(wide)
    assert found["compute"]["macs_per_cycle"]["int4"] == 512
    assert "128" not in found["description"]
