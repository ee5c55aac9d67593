"""Chip files: typed, checked TOML. A name means a shipped chip, anything with a ``.toml`` ending a user's own file.

Two kinds: an ``Asic`` is described by its parts (a ``[compute]`` table), a ``Board`` by laws fitted to measurements of the
whole of it (a ``[board]`` table). Every key carries its unit; the shipped files give each constant's source and range.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from clone_rl.errors import BadFileError, BadValueError, UnknownNameError
from clone_rl.hw_emulator.precision import BITS
from clone_rl.hw_emulator.switching import MECHANISMS
from clone_rl.hw_emulator.systolic import DATAFLOWS
from clone_rl.hw_emulator.voltage import REGULATORS
from clone_rl.tables import check_keys, load_toml, read_table, shipped

DRAM_STATES = ("power-down", "standby")
"""What DRAM does between two transfers."""


@dataclass(frozen=True)
class Compute:
    """Tiles of systolic arrays that can also work as vector units; energies at the reference voltage."""

    tiles: int
    array_rows: int
    array_columns: int
    dataflow: str
    gemv_utilisation: float
    macs_per_pe: dict[str, float]
    mac_energy_j: dict[str, float]
    clock_energy_j_per_pe: float
    clock_gated_fraction: float
    mac_area_mm2: float
    tile_area_mm2: float
    fixed_area_mm2: float
    wire_energy_j_per_byte_mm: float

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

    size_bytes: int
    bank_bytes: int
    bank_energy_j_per_byte: float
    bytes_per_cycle_per_tile: float
    buffer_bytes_per_tile: int
    double_buffered: bool
    leakage_w_per_byte: float
    retention_voltage_v: float
    area_mm2_per_mib: float

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

    lanes_per_tile: int
    element_energy_j: float
    softmax_energy_j: float
    mac_energy_j: float


@dataclass(frozen=True)
class Lpu:
    """LoRA unit beside the array, with adapters in embedded non-volatile memory (eNVM)."""

    macs: int
    mac_energy_j: float
    buffer_bytes: int
    envm_bytes: int
    envm_bytes_per_s: float
    envm_read_energy_j_per_byte: float
    envm_write_energy_j_per_byte: float
    envm_write_bytes_per_s: float
    area_mm2: float


@dataclass(frozen=True)
class Power:
    """Supply, leakage, gating and limit."""

    reference_voltage_v: float
    threshold_voltage_v: float
    logic_leakage_w_per_mm2: float
    leakage_per_volt: float
    leakage_per_kelvin: float
    regulator: str
    regulator_efficiency: float
    input_voltage_v: float
    gated_leakage_fraction: float
    wake_s: float
    limit_w: float


@dataclass(frozen=True)
class Switching:
    """How the operating point is changed."""

    mechanism: str
    domain_capacitance_f: float


@dataclass(frozen=True)
class Thermal:
    """Two-node RC network from the die through the package to ambient, and where throttling begins and ends."""

    ambient_c: float
    throttle_c: float
    limit_c: float
    die_resistance_k_per_w: float
    die_capacity_j_per_k: float
    package_resistance_k_per_w: float
    package_capacity_j_per_k: float


@dataclass(frozen=True)
class Dram:
    """External memory: bandwidth, energy per byte, power by state, and which share of its energy warms the die."""

    bandwidth_bytes_per_s: float
    achievable: float
    latency_s: float
    read_energy_j_per_byte: float
    write_energy_j_per_byte: float
    active_w: float = 0.0
    standby_w: float = 0.0
    power_down_w: float = 0.0
    self_refresh_w: float = 0.0
    refresh_w: float = 0.0
    power_down_exit_s: float = 0.0
    self_refresh_exit_s: float = 0.0
    between_transfers: str = "power-down"
    on_die_fraction: float = 1.0


@dataclass(frozen=True)
class BoardLaws:
    """Laws of a whole board under one runtime, fitted to measurements (see ``board.py``)."""

    formats: list[str]
    static_w: float
    idle_w: float
    static_per_kelvin: float
    reference_c: float
    cycle_energy_j: float
    stream_bytes_per_cycle: float
    gemm_macs_per_cycle: float
    limit_w: float
    host_s_per_token: float = 0.0
    overlap_power: float = 8.0
    overhead_cycles_per_token: float = 0.0


@dataclass(frozen=True)
class OperatingPoint:
    """A voltage and the frequency that it is run at."""

    voltage_v: float
    frequency_hz: float


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


_MAY_BE_ZERO = frozenset(
    {
        "latency_s", "gated_leakage_fraction", "clock_energy_j_per_pe", "clock_gated_fraction", "active_w", "standby_w",
        "power_down_w", "self_refresh_w", "refresh_w", "power_down_exit_s", "self_refresh_exit_s", "wake_s",
        "static_per_kelvin", "host_s_per_token", "overhead_cycles_per_token", "fixed_area_mm2", "tile_area_mm2",
        "wire_energy_j_per_byte_mm", "domain_capacitance_f", "write_energy_j_per_byte", "on_die_fraction",
    }
)  # fmt: skip
_MAY_BE_NEGATIVE = frozenset({"ambient_c", "reference_c"})

_SHARES = (
    ("compute", "gemv_utilisation"),
    ("compute", "clock_gated_fraction"),
    ("power", "regulator_efficiency"),
    ("power", "gated_leakage_fraction"),
    ("dram", "achievable"),
    ("dram", "on_die_fraction"),
)

_COMMON: dict[str, type[Any]] = {"switching": Switching, "thermal": Thermal, "dram": Dram}
_ASIC: dict[str, type[Any]] = {"compute": Compute, "sram": Sram, "sfu": Sfu, "power": Power, "lpu": Lpu}
_BOARD: dict[str, type[Any]] = {"board": BoardLaws}


def _check_formats(table: Any, where: str) -> None:
    if not isinstance(table, dict) or not table:
        raise BadFileError(f"{where} is {table!r}", f"a table by number format: {', '.join(BITS)}")
    for name, value in table.items():
        if name not in BITS:
            error = UnknownNameError("number format", name, BITS)
            raise BadFileError(f"{where}: {error.message}", error.hint)
        if isinstance(value, bool) or not isinstance(value, int | float) or not (0 < value < math.inf):
            raise BadFileError(f"{where}: {name} is {value!r}", "write a positive number")


def _check_one_of(value: Any, key: str, known: Collection[str], source: str) -> None:
    if not isinstance(value, str) or value not in known:
        raise BadFileError(f"{source}: {key} is {value!r}", UnknownNameError(key, str(value), known).hint)


def _check_asic(chip: Asic, source: str) -> None:
    _check_formats(chip.compute.macs_per_pe, f"{source}: [compute.macs_per_pe]")
    _check_formats(chip.compute.mac_energy_j, f"{source}: [compute.mac_energy_j]")
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


def check_chip(chip: Chip, source: str) -> None:
    """Whether the constants of a chip, each in its range, go together.

    Raises:
        BadFileError: They do not; ``source`` is named.
    """
    for i, (low, high) in enumerate(zip(chip.operating_points, chip.operating_points[1:], strict=False)):
        if low.voltage_v >= high.voltage_v or low.frequency_hz >= high.frequency_hz:
            raise BadFileError(
                f"{source}: operating_points[{i + 1}] ({high.voltage_v} V, {high.frequency_hz:g} Hz) does not lie above "
                f"operating_points[{i}] ({low.voltage_v} V, {low.frequency_hz:g} Hz)",
                "sort them by voltage; frequency rises with it",
            )
    _check_one_of(chip.switching.mechanism, "mechanism", MECHANISMS, f"{source}: [switching]")
    for name, field in _SHARES:
        if (part := getattr(chip, name, None)) is not None and getattr(part, field) > 1:
            raise BadFileError(f"{source}: [{name}]: {field} is {getattr(part, field)}", "a share is at most 1")
    if chip.dram:
        _check_one_of(chip.dram.between_transfers, "between_transfers", DRAM_STATES, f"{source}: [dram]")
    if not chip.thermal.ambient_c < chip.thermal.throttle_c < chip.thermal.limit_c:
        raise BadFileError(
            f"{source}: [thermal]: ambient_c, throttle_c, limit_c are {chip.thermal.ambient_c}, {chip.thermal.throttle_c}, "
            f"{chip.thermal.limit_c}",
            "they ascend",
        )
    if isinstance(chip, Asic):
        _check_asic(chip, source)
    elif isinstance(chip, Board):
        if not isinstance(chip.board.formats, list) or not chip.board.formats:
            raise BadFileError(f"{source}: [board]: formats is {chip.board.formats!r}", f"a list out of {', '.join(BITS)}")
        for i, number in enumerate(chip.board.formats):
            _check_one_of(number, f"formats[{i}]", BITS, f"{source}: [board]")
        if chip.board.overlap_power < 1:
            raise BadFileError(f"{source}: [board]: overlap_power is {chip.board.overlap_power}", "1 (in turn) or more")
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
            table[name] = read_table(section, table[name], f"{source}: [{name}]", _MAY_BE_ZERO, _MAY_BE_NEGATIVE)
    if not isinstance(points, list) or len(points) < 2:
        raise BadFileError(f"{source}: [[operating_points]] needs at least two entries")
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
