"""Chip files: typed, checked TOML. A name means a shipped chip, anything with a ``.toml`` ending a user's own file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from clone_rl.errors import BadFileError, UnknownNameError
from clone_rl.hw_emulator.switching import mechanism
from clone_rl.tables import load_toml, read_table, shipped

REGULATORS = ("ideal", "switched-capacitor", "buck", "ldo")


@dataclass(frozen=True)
class Compute:
    """Tiles of MAC arrays and the formats that they work in."""

    tiles: int
    array_rows: int
    array_columns: int
    gemv_utilisation: float
    weight_bits: int
    head_bits: int
    activation_bits: int
    mac_energy_j: float
    control_fraction: float
    area_mm2: float

    @property
    def macs(self) -> int:
        """Multiply-accumulates per cycle of the whole chip."""
        return self.tiles * self.array_rows * self.array_columns


@dataclass(frozen=True)
class Sram:
    """On-chip memory; energies at the reference voltage."""

    size_bytes: int
    bank_bytes: int
    bank_energy_j_per_byte: float
    bytes_per_cycle: float
    leakage_w_per_byte: float
    retention_voltage_v: float

    @property
    def energy_j_per_byte(self) -> float:
        """Read or write energy per byte: grows with the square root of the bank (CACTI 7, 28 nm, +-15 %)."""
        return self.bank_energy_j_per_byte * math.sqrt(self.bank_bytes / 65536)


@dataclass(frozen=True)
class Sfu:
    """Special-function unit: norms, softmax, activations, exit probes, the policy's own arithmetic."""

    lanes: int
    element_energy_j: float
    softmax_energy_j: float


@dataclass(frozen=True)
class Power:
    """Supply, leakage and limit."""

    reference_voltage_v: float
    logic_leakage_w_per_mm2: float
    logic_area_mm2: float
    leakage_per_volt: float
    leakage_per_kelvin: float
    regulator: str
    regulator_efficiency: float
    input_voltage_v: float
    gated_leakage_fraction: float
    limit_w: float


@dataclass(frozen=True)
class Switching:
    """How the operating point is changed."""

    mechanism: str
    domain_capacitance_f: float


@dataclass(frozen=True)
class Thermal:
    """Two-node RC network from the die through the package to ambient."""

    ambient_c: float
    limit_c: float
    die_resistance_k_per_w: float
    die_capacity_j_per_k: float
    package_resistance_k_per_w: float
    package_capacity_j_per_k: float


@dataclass(frozen=True)
class Dram:
    """External memory."""

    bandwidth_bytes_per_s: float
    achievable: float
    latency_s: float
    read_energy_j_per_byte: float
    write_energy_j_per_byte: float
    active_w: float
    idle_w: float


@dataclass(frozen=True)
class OperatingPoint:
    """A voltage and the frequency that it is run at."""

    voltage_v: float
    frequency_hz: float


@dataclass(frozen=True)
class Chip:
    """One accelerator. ``dram`` is None where the chip has no external memory; ``operating_points`` ascend."""

    name: str
    description: str
    compute: Compute
    sram: Sram
    sfu: Sfu
    power: Power
    switching: Switching
    thermal: Thermal
    operating_points: tuple[OperatingPoint, ...]
    dram: Dram | None = None


_MAY_BE_ZERO = frozenset({"ambient_c", "latency_s", "gated_leakage_fraction", "idle_w", "control_fraction"})

_SHARES = (
    ("compute", "gemv_utilisation"),
    ("power", "regulator_efficiency"),
    ("power", "gated_leakage_fraction"),
    ("dram", "achievable"),
)

_SECTIONS: dict[str, type[Any]] = {
    "compute": Compute,
    "sram": Sram,
    "sfu": Sfu,
    "power": Power,
    "switching": Switching,
    "thermal": Thermal,
    "dram": Dram,
}


def parse_chip(table: dict[str, Any], source: str) -> Chip:
    """Build a chip from a parsed TOML table.

    Args:
        table: The whole file.
        source: Named in errors.

    Raises:
        BadFileError: A key is unknown, missing or out of range, or operating points do not ascend.
        UnknownNameError: Unknown regulator or switching mechanism.
    """
    table = dict(table)
    for name, cls in _SECTIONS.items():
        if name in table:
            table[name] = read_table(cls, table[name], f"{source}: [{name}]", _MAY_BE_ZERO)
    points = table.get("operating_points")
    if not isinstance(points, list) or len(points) < 2:
        raise BadFileError(f"{source}: [[operating_points]] needs at least two entries")
    table["operating_points"] = tuple(
        read_table(OperatingPoint, point, f"{source}: operating_points[{i}]") for i, point in enumerate(points)
    )
    chip = read_table(Chip, table, source)
    for low, high in zip(chip.operating_points, chip.operating_points[1:], strict=False):
        if low.voltage_v >= high.voltage_v or low.frequency_hz >= high.frequency_hz:
            raise BadFileError(f"{source}: operating points do not ascend at {high.voltage_v} V", "sort them by voltage")
    if chip.power.regulator not in REGULATORS:
        raise UnknownNameError("regulator", chip.power.regulator, REGULATORS)
    mechanism(chip.switching.mechanism)
    for section, name in _SHARES:
        if (part := getattr(chip, section)) is not None and getattr(part, name) > 1:
            raise BadFileError(f"{source}: [{section}]: {name} is {getattr(part, name)}", "a share is at most 1")
    if chip.power.regulator == "ldo" and chip.power.input_voltage_v < chip.operating_points[-1].voltage_v:
        raise BadFileError(
            f"{source}: [power]: input_voltage_v is {chip.power.input_voltage_v}", "an LDO cannot raise its input voltage"
        )
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

    >>> load_chip("asic28-sram").compute.macs
    128
    """
    return parse_chip(load_toml("chip", name, "clone_rl.hw_emulator", "chips"), name)
