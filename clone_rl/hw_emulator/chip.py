"""Chip files: typed, checked TOML. A name means a shipped chip, anything with a ``.toml`` ending a user's own file.

Two kinds: an ``Asic`` is described by its parts (a ``[compute]`` table), a ``Board`` by laws fitted to measurements of the
whole of it (a ``[board]`` table). Every key carries its unit; the shipped files give each constant's source and range.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Self

from clone_rl.errors import BadFileError, BadValueError, UnknownNameError
from clone_rl.hw_emulator.precision import BITS
from clone_rl.hw_emulator.switching import MECHANISMS
from clone_rl.hw_emulator.systolic import DATAFLOWS
from clone_rl.hw_emulator.voltage import REGULATORS
from clone_rl.ranges import SHARE, Range, check_ranges, ranges_of
from clone_rl.tables import check_keys, load_toml, read_table, shipped

DRAM_STATES = ("power-down", "standby")
"""What DRAM does between two transfers."""

# Ranges that several fields have; the others stand with their field. From an accelerator of a microcontroller to one that is a
# whole wafer, and 28 nm silicon well inside.
_SUPPLY = Range("volts", 0.1, 2)
_LIMIT = Range("watts", 1e-4, 1e5)
_STATE = Range("watts", 1e-6, 1e3, zero=True)
_ACCESS = Range("seconds", 1e-9, 1e-5, zero=True)
_AIR = Range("Celsius", -60, 150)
_DIE = Range("Celsius", 0, 250)
_MAC = Range("joules", 1e-15, 5e-11)
_ELEMENT = Range("joules", 1e-14, 1e-9)
_FRACTION = Range(SHARE, 0, 1)
# Of what several fields make together.
_DIE_POLE, _PACKAGE_POLE = Range("seconds", 1e-3, 100), Range("seconds", 0.5, 3e4)
_MOST_RISE_K = 1000.0


@dataclass(frozen=True)
class Compute:
    """Tiles of systolic arrays that can also work as vector units; energies at the reference voltage."""

    tiles: Annotated[int, Range("tiles", 1, 2**16)]
    array_rows: Annotated[int, Range("rows", 1, 2**16)]
    array_columns: Annotated[int, Range("columns", 1, 2**16)]
    dataflow: str
    gemv_utilisation: Annotated[float, Range(SHARE, 1e-3, 1)]
    macs_per_pe: Annotated[dict[str, float], Range("multiply-accumulates per cycle", 1e-4, 1e4)]
    mac_energy_j: Annotated[dict[str, float], _MAC]
    clock_energy_j_per_pe: Annotated[float, Range("joules", 1e-16, 5e-12, zero=True)]
    clock_gated_fraction: Annotated[float, _FRACTION]
    mac_area_mm2: Annotated[float, Range("mm2", 1e-5, 0.1)]
    tile_area_mm2: Annotated[float, Range("mm2", 1e-3, 100, zero=True)]
    fixed_area_mm2: Annotated[float, Range("mm2", 1e-2, 1e3, zero=True)]
    wire_energy_j_per_byte_mm: Annotated[float, Range("joules per byte and mm", 1e-14, 2e-11, zero=True)]

    @property
    def elements(self) -> int:
        """Processing elements of the whole chip."""
        return self.tiles * self.array_rows * self.array_columns

    @property
    def area_mm2(self) -> float:
        """Logic area: arrays, what each tile adds, and what is there once."""
        return self.elements * self.mac_area_mm2 + self.tiles * self.tile_area_mm2 + self.fixed_area_mm2


@dataclass(frozen=True)
class Sram:
    """On-chip memory; energies at the reference voltage."""

    size_bytes: Annotated[int, Range("bytes", 1024, 2**37)]
    bank_bytes: Annotated[int, Range("bytes", 256, 2**32)]
    bank_energy_j_per_byte: Annotated[float, Range("joules per byte", 1e-14, 1e-10)]
    bytes_per_cycle_per_tile: Annotated[float, Range("bytes per cycle", 0.01, 1e6)]
    buffer_bytes_per_tile: Annotated[int, Range("bytes", 256, 2**32)]
    double_buffered: bool
    leakage_w_per_byte: Annotated[float, Range("watts per byte", 2e-12, 1e-6)]
    retention_voltage_v: Annotated[float, _SUPPLY]
    area_mm2_per_mib: Annotated[float, Range("mm2 per MiB", 0.05, 500)]

    @property
    def energy_j_per_byte(self) -> float:
        """Read or write energy per byte (see ``bank_energy``)."""
        return bank_energy(self.bank_bytes, self.bank_energy_j_per_byte)


def bank_energy(bank_bytes: float, energy_j_per_byte_64k: float = 0.65e-12) -> float:
    """Energy per byte of a bank: grows with the square root of its size (CACTI 7 at 28 nm, +-15 % from 32 KiB on)."""
    return energy_j_per_byte_64k * math.sqrt(bank_bytes / 65536)


@dataclass(frozen=True)
class Sfu:
    """Special-function unit: norms, softmax, activations, exit probes, the controller's own arithmetic."""

    lanes_per_tile: Annotated[int, Range("lanes", 1, 2**16)]
    element_energy_j: Annotated[float, _ELEMENT]
    softmax_energy_j: Annotated[float, _ELEMENT]
    mac_energy_j: Annotated[float, _MAC]


@dataclass(frozen=True)
class Lpu:
    """LoRA unit beside the array, with adapters in embedded non-volatile memory (eNVM)."""

    macs: Annotated[int, Range("multiply-accumulates per cycle", 1, 2**20)]
    mac_energy_j: Annotated[float, _MAC]
    buffer_bytes: Annotated[int, Range("bytes", 256, 2**32)]
    envm_bytes: Annotated[int, Range("bytes", 1024, 2**40)]
    envm_bytes_per_s: Annotated[float, Range("bytes per second", 2e6, 5e11)]
    envm_read_energy_j_per_byte: Annotated[float, Range("joules per byte", 1e-13, 5e-9)]
    envm_write_energy_j_per_byte: Annotated[float, Range("joules per byte", 1e-13, 5e-8)]
    envm_write_bytes_per_s: Annotated[float, Range("bytes per second", 1e5, 1e10)]
    area_mm2: Annotated[float, Range("mm2", 1e-2, 1e3)]


@dataclass(frozen=True)
class Power:
    """Supply, leakage, gating and limit."""

    reference_voltage_v: Annotated[float, _SUPPLY]
    threshold_voltage_v: Annotated[float, Range("volts", 0.02, 1.5)]
    logic_leakage_w_per_mm2: Annotated[float, Range("watts per mm2", 1e-6, 0.25)]
    leakage_per_volt: Annotated[float, Range("per volt", 0.01, 10)]
    leakage_per_kelvin: Annotated[float, Range("per kelvin", 1e-4, 0.15, zero=True)]
    regulator: str
    regulator_efficiency: Annotated[float, Range(SHARE, 0.1, 1)]
    input_voltage_v: Annotated[float, Range("volts", 0.1, 60)]
    gated_leakage_fraction: Annotated[float, _FRACTION]
    wake_s: Annotated[float, Range("seconds", 1e-9, 1e-2, zero=True)]
    limit_w: Annotated[float, _LIMIT]


@dataclass(frozen=True)
class Switching:
    """How the operating point is changed."""

    mechanism: str
    domain_capacitance_f: Annotated[float, Range("farads", 1e-11, 2e-6, zero=True)]


@dataclass(frozen=True)
class Thermal:
    """Two-node RC network from the die through the package to ambient, and where throttling begins and ends."""

    ambient_c: Annotated[float, _AIR]
    throttle_c: Annotated[float, _DIE]
    limit_c: Annotated[float, _DIE]
    die_resistance_k_per_w: Annotated[float, Range("kelvin per watt", 1e-4, 1e3)]
    die_capacity_j_per_k: Annotated[float, Range("joules per kelvin", 1e-6, 1e4)]
    package_resistance_k_per_w: Annotated[float, Range("kelvin per watt", 1e-4, 1e4)]
    package_capacity_j_per_k: Annotated[float, Range("joules per kelvin", 1e-6, 1e6)]


@dataclass(frozen=True)
class Dram:
    """External memory: bandwidth, energy per byte, power by state, and which share of its energy warms the die."""

    bandwidth_bytes_per_s: Annotated[float, Range("bytes per second", 1e6, 1e14)]
    achievable: Annotated[float, Range(SHARE, 0.01, 1)]
    latency_s: Annotated[float, _ACCESS]
    read_energy_j_per_byte: Annotated[float, Range("joules per byte", 1e-12, 2e-8)]
    write_energy_j_per_byte: Annotated[float, Range("joules per byte", 1e-12, 2e-8, zero=True)]
    active_w: Annotated[float, _STATE] = 0.0
    standby_w: Annotated[float, _STATE] = 0.0
    power_down_w: Annotated[float, _STATE] = 0.0
    self_refresh_w: Annotated[float, _STATE] = 0.0
    refresh_w: Annotated[float, _STATE] = 0.0
    power_down_exit_s: Annotated[float, _ACCESS] = 0.0
    self_refresh_exit_s: Annotated[float, _ACCESS] = 0.0
    between_transfers: str = "power-down"
    on_die_fraction: Annotated[float, _FRACTION] = 1.0


@dataclass(frozen=True)
class BoardLaws:
    """Laws of a whole board under one runtime, fitted to measurements (see ``board.py``)."""

    formats: list[str]
    static_w: Annotated[float, Range("watts", 1e-4, 1e4)]
    idle_w: Annotated[float, Range("watts", 1e-4, 1e4)]
    static_per_kelvin: Annotated[float, Range("per kelvin", 1e-5, 0.15, zero=True)]
    reference_c: Annotated[float, _AIR]
    cycle_energy_j: Annotated[float, Range("joules", 1e-12, 2e-6)]
    stream_bytes_per_cycle: Annotated[float, Range("bytes per cycle", 1e-3, 1e7)]
    gemm_macs_per_cycle: Annotated[float, Range("multiply-accumulates per cycle", 1e-3, 1e8)]
    limit_w: Annotated[float, _LIMIT]
    host_s_per_token: Annotated[float, Range("seconds", 1e-7, 1, zero=True)] = 0.0
    overlap_power: Annotated[float, Range("", 1, 1000)] = 8.0
    overhead_cycles_per_token: Annotated[float, Range("cycles", 1, 1e11, zero=True)] = 0.0


@dataclass(frozen=True)
class OperatingPoint:
    """A voltage and the frequency that it is run at."""

    voltage_v: Annotated[float, _SUPPLY]
    frequency_hz: Annotated[float, Range("hertz", 5e6, 1e10)]


@dataclass(frozen=True, kw_only=True)
class Chip:
    """What every chip has. ``dram`` is None without external memory; ``operating_points`` ascend."""

    name: str
    description: str
    switching: Switching
    thermal: Thermal
    operating_points: tuple[OperatingPoint, ...]
    dram: Dram | None = None

    @classmethod
    def load(cls, name: str | Path) -> Self:
        """Load a shipped chip by name, or any chip file by path; see ``load_chip``.

        Raises:
            BadValueError: Asked of ``Asic`` or ``Board``, and it is of the other kind.
        """
        chip = load_chip(str(name))
        if not isinstance(chip, cls):
            raise BadValueError(f"{chip.name} is no {cls.__name__}", f"it is a {type(chip).__name__}")
        return chip

    @property
    def limit_w(self) -> float:
        """Highest sustained average power, memory included."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Asic(Chip):
    """An accelerator described by its parts."""

    compute: Compute
    sram: Sram
    sfu: Sfu
    power: Power
    lpu: Lpu | None = None

    @property
    def limit_w(self) -> float:
        """Highest sustained average power, memory included."""
        return self.power.limit_w

    @property
    def area_mm2(self) -> float:
        """Die area: logic, SRAM with its periphery, and the LoRA unit."""
        sram_mm2 = self.sram.size_bytes / 2**20 * self.sram.area_mm2_per_mib
        return self.compute.area_mm2 + sram_mm2 + (self.lpu.area_mm2 if self.lpu else 0.0)

    def macs_per_cycle(self, number: str) -> float:
        """Peak multiply-accumulates per cycle in a format.

        Raises:
            BadValueError: The multipliers do not work in this format.
        """
        if number not in self.compute.macs_per_pe:
            raise BadValueError(f"{self.name} has no {number} multipliers", f"formats: {', '.join(self.compute.macs_per_pe)}")
        return self.compute.elements * self.compute.macs_per_pe[number]

    def with_tiles(self, tiles: int) -> Asic:
        """The same chip with another number of tiles, and of the special-function lanes and SRAM ports that come with them.

        Raises:
            BadValueError: Not at least one tile, or more than the SRAM has buffers for.
        """
        if tiles < 1:
            raise BadValueError(f"tiles is {tiles}", "at least 1")
        chip = replace(self, name=f"{self.name} x{tiles}", compute=replace(self.compute, tiles=tiles))
        if chip.buffers_bytes > chip.sram.size_bytes:
            raise BadValueError(
                f"{tiles} tiles need {chip.buffers_bytes} bytes of buffers and {self.name} has {self.sram.size_bytes} of SRAM",
                "fewer tiles, more SRAM, or smaller buffer_bytes_per_tile",
            )
        return chip

    @property
    def buffers_bytes(self) -> int:
        """SRAM that the tiles' stream buffers take."""
        return self.sram.buffer_bytes_per_tile * self.compute.tiles * (2 if self.sram.double_buffered else 1)


@dataclass(frozen=True, kw_only=True)
class Board(Chip):
    """An off-the-shelf board described by laws of the whole of it."""

    board: BoardLaws

    @property
    def limit_w(self) -> float:
        """Highest sustained average power, memory included."""
        return self.board.limit_w


_COMMON: dict[str, type[Any]] = {"switching": Switching, "thermal": Thermal, "dram": Dram}
_ASIC: dict[str, type[Any]] = {"compute": Compute, "sram": Sram, "sfu": Sfu, "power": Power, "lpu": Lpu}
_BOARD: dict[str, type[Any]] = {"board": BoardLaws}


def _check_formats(table: Any, allowed: Range, where: str) -> None:
    if not isinstance(table, dict) or not table:
        raise BadFileError(f"{where} is {table!r}", f"a table by number format: {', '.join(BITS)}")
    for name, value in table.items():
        if name not in BITS:
            error = UnknownNameError("number format", name, BITS)
            raise BadFileError(f"{where}: {error.message}", error.hint)
        if isinstance(value, bool) or not isinstance(value, int | float) or not (0 < value < math.inf):
            raise BadFileError(f"{where}: {name} is {value!r}", "write a positive number")
        allowed.check(value, f"{where}: {name}", BadFileError)


def _check_one_of(value: Any, key: str, known: Collection[str], source: str) -> None:
    if not isinstance(value, str) or value not in known:
        raise BadFileError(f"{source}: {key} is {value!r}", UnknownNameError(key, str(value), known).hint)


def _check_asic(chip: Asic, source: str) -> None:
    for name in ("macs_per_pe", "mac_energy_j"):
        _check_formats(getattr(chip.compute, name), ranges_of(Compute)[name], f"{source}: [compute.{name}]")
    if set(chip.compute.macs_per_pe) != set(chip.compute.mac_energy_j):
        raise BadFileError(f"{source}: [compute.macs_per_pe] and [compute.mac_energy_j] differ", "give both the same formats")
    _check_one_of(chip.compute.dataflow, "dataflow", DATAFLOWS, f"{source}: [compute]")
    _check_one_of(chip.power.regulator, "regulator", REGULATORS, f"{source}: [power]")
    lowest, highest = chip.operating_points[0].voltage_v, chip.operating_points[-1].voltage_v
    if lowest <= chip.power.threshold_voltage_v:
        raise BadFileError(
            f"{source}: operating_points[0]: voltage_v is {lowest}",
            f"above [power] threshold_voltage_v, {chip.power.threshold_voltage_v}",
        )
    if chip.sram.retention_voltage_v > lowest:
        raise BadFileError(
            f"{source}: [sram]: retention_voltage_v is {chip.sram.retention_voltage_v}",
            f"at most the lowest operating point's, {lowest}",
        )
    if chip.power.regulator == "ldo" and chip.power.input_voltage_v < highest:
        raise BadFileError(
            f"{source}: [power]: input_voltage_v is {chip.power.input_voltage_v}",
            f"an LDO cannot raise its input: at least {highest}",
        )
    if chip.sram.bank_bytes > chip.sram.size_bytes:
        raise BadFileError(
            f"{source}: [sram]: bank_bytes is {chip.sram.bank_bytes}", f"at most size_bytes, {chip.sram.size_bytes}"
        )
    if chip.buffers_bytes > chip.sram.size_bytes:
        raise BadFileError(
            f"{source}: [sram]: size_bytes is {chip.sram.size_bytes}",
            f"the tiles' stream buffers alone take {chip.buffers_bytes}",
        )


def _check_powers(chip: Chip, source: str) -> None:
    """Powers and the thermal network, one against the other: what a slip of the unit makes absurd."""
    thermal = chip.thermal
    for part, allowed in (("die", _DIE_POLE), ("package", _PACKAGE_POLE)):
        fields = f"{part}_resistance_k_per_w", f"{part}_capacity_j_per_k"
        pole_s = getattr(thermal, fields[0]) * getattr(thermal, fields[1])
        if not allowed.allows(pole_s):
            raise BadFileError(
                f"{source}: [thermal]: {fields[0]} x {fields[1]} is {pole_s:g} s",
                f"a time constant in seconds, {allowed.low:g} to {allowed.high:g}: K/W times J/K",
            )
    rise_k = chip.limit_w * (thermal.die_resistance_k_per_w + thermal.package_resistance_k_per_w)
    if rise_k > _MOST_RISE_K:
        raise BadFileError(
            f"{source}: limit_w, {chip.limit_w:g} W, would heat the die by {rise_k:g} K through the resistances of [thermal]",
            f"at most {_MOST_RISE_K:g} K: limit_w in watts, resistances in kelvin per watt",
        )
    powers = [("dram", name) for name, allowed in ranges_of(Dram).items() if allowed is _STATE] if chip.dram else []
    powers += [("board", "static_w"), ("board", "idle_w")] if isinstance(chip, Board) else []
    for section, name in powers:
        if (power_w := getattr(getattr(chip, section), name)) > chip.limit_w:
            raise BadFileError(
                f"{source}: [{section}]: {name} is {power_w!r}", f"watts, at most limit_w, {chip.limit_w:g}, which includes it"
            )


def check_chip(chip: Chip, source: str) -> None:
    """Whether the constants of a chip lie in their ranges and go together.

    Raises:
        BadFileError: They do not; ``source`` is named.
    """
    for name in (*_COMMON, *_ASIC, *_BOARD):
        if (part := getattr(chip, name, None)) is not None:
            check_ranges(part, f"{source}: [{name}]: ")
    for i, point in enumerate(chip.operating_points):
        check_ranges(point, f"{source}: operating_points[{i}]: ")
    for i, (low, high) in enumerate(zip(chip.operating_points, chip.operating_points[1:], strict=False)):
        if low.voltage_v >= high.voltage_v or low.frequency_hz >= high.frequency_hz:
            raise BadFileError(
                f"{source}: operating_points[{i + 1}] ({high.voltage_v} V, {high.frequency_hz:g} Hz) does not lie above "
                f"operating_points[{i}] ({low.voltage_v} V, {low.frequency_hz:g} Hz)",
                "sort them by voltage; frequency rises with it",
            )
    _check_one_of(chip.switching.mechanism, "mechanism", MECHANISMS, f"{source}: [switching]")
    if chip.dram:
        _check_one_of(chip.dram.between_transfers, "between_transfers", DRAM_STATES, f"{source}: [dram]")
    if not chip.thermal.ambient_c < chip.thermal.throttle_c < chip.thermal.limit_c:
        raise BadFileError(
            f"{source}: [thermal]: ambient_c, throttle_c, limit_c are {chip.thermal.ambient_c}, {chip.thermal.throttle_c}, "
            f"{chip.thermal.limit_c}",
            "they ascend",
        )
    _check_powers(chip, source)
    if isinstance(chip, Asic):
        _check_asic(chip, source)
    elif isinstance(chip, Board):
        if not isinstance(chip.board.formats, list) or not chip.board.formats:
            raise BadFileError(f"{source}: [board]: formats is {chip.board.formats!r}", f"a list out of {', '.join(BITS)}")
        for i, number in enumerate(chip.board.formats):
            _check_one_of(number, f"formats[{i}]", BITS, f"{source}: [board]")
        if chip.dram is None:
            raise BadFileError(f"{source}: no [dram] table", "a board has external memory")


def parse_chip(table: dict[str, Any], source: str) -> Chip:
    """Build a chip from a parsed TOML table.

    Args:
        table: The whole file.
        source: Named in errors.

    Raises:
        BadFileError: A key is unknown, missing or out of range, or values do not fit together.
    """
    table = dict(table)
    cls, sections = (Board, _COMMON | _BOARD) if "board" in table else (Asic, _COMMON | _ASIC)
    points = table.get("operating_points")
    rows = [
        (OperatingPoint, point, f"{source}: operating_points[{i}]")
        for i, point in enumerate(points if isinstance(points, list) else ())
    ]
    parts = [(section, table[name], f"{source}: [{name}]") for name, section in sections.items() if name in table]
    check_keys(*parts, *rows, (cls, table, source))
    for name, section in sections.items():
        if name in table:
            table[name] = read_table(section, table[name], f"{source}: [{name}]")
    if not isinstance(points, list) or len(points) < 2:
        raise BadFileError(
            f"{source}: [[operating_points]] needs at least two entries", "each with voltage_v and frequency_hz, ascending"
        )
    table["operating_points"] = tuple(read_table(*row) for row in rows)
    chip: Chip = read_table(cls, table, source)
    check_chip(chip, source)
    return chip


def chip_names() -> list[str]:
    """Names of the shipped chips."""
    return shipped("clone_rl.hw_emulator", "chips")


def load_chip(name: str) -> Chip:
    """Load a shipped chip by name, or any chip file by path.

    Args:
        name: ``asic28-sram`` and so on, or a path that ends in ``.toml``.

    Raises:
        UnknownNameError: No shipped chip has this name.
        BadFileError: The file is missing or malformed.

    >>> load_chip("asic28-sram").operating_points[-1].voltage_v
    1.0
    """
    return parse_chip(load_toml("chip", name, "clone_rl.hw_emulator", "chips"), name)
