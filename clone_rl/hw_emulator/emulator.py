"""A chip loaded with a model: its constants as compiled tables, and costs as Python objects or NumPy arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clone_rl.errors import BadValueError
from clone_rl.hw_emulator.chip import Chip
from clone_rl.hw_emulator.cost import CHIP, POINT, idle_power, work_cost
from clone_rl.hw_emulator.switching import mechanism
from clone_rl.hw_emulator.workload import (
    WORK,
    ModelShape,
    head_work,
    kv_fill_work,
    layer_work,
    policy_work,
    probe_work,
)

LAYER, HEAD, PROBE, POLICY, KV_FILL = 0, 1, 2, 3, 4
"""Rows of ``Emulator.work``; ``KV_FILL + n`` fills the caches of n skipped layers."""

TERMS = ("mac_j", "sram_j", "sfu_j", "control_j", "dram_j", "leakage_j")
"""Energy terms, in the order in which ``work_cost`` returns them after the latency."""


@dataclass(frozen=True)
class LayerCost:
    """What one piece of work takes: seconds, and joules by cause."""

    latency_s: float
    mac_j: float
    sram_j: float
    sfu_j: float
    control_j: float
    dram_j: float
    leakage_j: float

    @property
    def dynamic_j(self) -> float:
        """Energy that scales with the supply: MACs, SRAM, special functions, clock and control."""
        return self.mac_j + self.sram_j + self.sfu_j + self.control_j

    @property
    def energy_j(self) -> float:
        """All of it."""
        return self.dynamic_j + self.dram_j + self.leakage_j


def _leakage_scale(chip: Chip, voltage_v: float) -> float:
    reference = chip.power.reference_voltage_v
    return voltage_v / reference * math.exp(chip.power.leakage_per_volt * (voltage_v - reference))


def _regulator_gain(chip: Chip, voltage_v: float) -> float:
    """Joules drawn from the input per joule used on chip."""
    power = chip.power
    if power.regulator == "ideal":
        return 1.0
    if power.regulator == "ldo":
        # A linear regulator passes the current on: the loss is (Vin - V) I, plus 1 % quiescent current.
        return power.input_voltage_v / voltage_v / 0.99
    return 1 / power.regulator_efficiency


def _points(chip: Chip) -> NDArray[np.void]:
    points = np.zeros(len(chip.operating_points), POINT)
    sram_w = chip.sram.leakage_w_per_byte * chip.sram.size_bytes
    logic_w = chip.power.logic_leakage_w_per_mm2 * chip.power.logic_area_mm2
    for row, point in zip(points, chip.operating_points, strict=True):
        gain = _regulator_gain(chip, point.voltage_v)
        row["voltage_v"], row["frequency_hz"] = point.voltage_v, point.frequency_hz
        row["dynamic_scale"] = (point.voltage_v / chip.power.reference_voltage_v) ** 2 * gain
        row["leakage_w"] = (sram_w + logic_w) * _leakage_scale(chip, point.voltage_v) * gain
    return points


def _constants(chip: Chip, switching: str) -> NDArray[np.void]:
    constants = np.zeros(1, CHIP)
    row = constants[0]
    how, dram, thermal = mechanism(switching), chip.dram, chip.thermal
    lowest = chip.operating_points[0].voltage_v
    retained_w = chip.sram.leakage_w_per_byte * chip.sram.size_bytes * _leakage_scale(chip, chip.sram.retention_voltage_v)
    logic_w = chip.power.logic_leakage_w_per_mm2 * chip.power.logic_area_mm2 * _leakage_scale(chip, lowest)
    values = {
        "macs_per_cycle": chip.compute.macs,
        "gemv_macs_per_cycle": chip.compute.macs * chip.compute.gemv_utilisation,
        "sram_bytes_per_cycle": chip.sram.bytes_per_cycle,
        "sfu_lanes": chip.sfu.lanes,
        "mac_j": chip.compute.mac_energy_j,
        "sram_j_per_byte": chip.sram.energy_j_per_byte,
        "element_j": chip.sfu.element_energy_j,
        "softmax_j": chip.sfu.softmax_energy_j,
        "control_j_per_cycle": chip.compute.control_fraction * chip.compute.macs * chip.compute.mac_energy_j,
        "leakage_per_kelvin": chip.power.leakage_per_kelvin,
        "leakage_reference_c": 25.0,
        "idle_w": (retained_w + logic_w * chip.power.gated_leakage_fraction) * _regulator_gain(chip, lowest),
        "relock_s": how.relock_s,
        "slew_s_per_v": how.slew_s_per_v,
        "domain_f": chip.switching.domain_capacitance_f,
        "ambient_c": thermal.ambient_c,
        "limit_c": thermal.limit_c,
        "die_r": thermal.die_resistance_k_per_w,
        "die_c": thermal.die_capacity_j_per_k,
        "package_r": thermal.package_resistance_k_per_w,
        "package_c": thermal.package_capacity_j_per_k,
    }
    if dram is not None:
        values |= {
            "dram_bytes_per_s": dram.bandwidth_bytes_per_s * dram.achievable,
            "dram_latency_s": dram.latency_s,
            "dram_read_j_per_byte": dram.read_energy_j_per_byte,
            "dram_active_w": dram.active_w,
            "idle_dram_w": dram.idle_w,
        }
    for name, value in values.items():
        row[name] = value
    return constants


class Emulator:
    """A chip that runs a model.

    Args:
        chip: The accelerator.
        model: Shape of the language model.
        switching: Switching mechanism; None takes the chip's own.
        signals: Dot products that one exit probe reads.
        policy_macs: Multiply-accumulates of one decision of the controller.

    Attributes:
        constants: One record of ``CHIP``.
        points: Records of ``POINT``, one per operating point, ascending.
        work: Records of ``WORK``: rows ``LAYER``, ``HEAD``, ``PROBE``, ``POLICY``, ``KV_FILL + n``.
        resident: Share of the weights that stays in SRAM.

    Raises:
        BadValueError: The weights do not fit and the chip has no DRAM.
    """

    def __init__(
        self, chip: Chip, model: ModelShape, switching: str | None = None, signals: int = 2, policy_macs: int = 0
    ) -> None:
        self.chip, self.model = chip, model
        self.switching = switching or chip.switching.mechanism
        self.constants = _constants(chip, self.switching)
        self.points = _points(chip)
        pieces = [
            layer_work(chip, model),
            head_work(chip, model),
            probe_work(chip, model, signals),
            policy_work(chip, policy_macs),
            *(kv_fill_work(chip, model, n) for n in range(model.layers)),
        ]
        self.work = np.zeros(len(pieces), WORK)
        for row, piece in zip(self.work, pieces, strict=True):
            for name, value in piece.items():
                row[name] = value
        self.weight_bytes = float(self.work[LAYER]["weight_bytes"] * model.layers + self.work[HEAD]["weight_bytes"])
        kv_bytes = float(self.work[LAYER]["kv_bytes_per_row"]) * model.layers * model.context
        free_bytes = max(0.0, chip.sram.size_bytes - kv_bytes)
        self.resident = min(1.0, free_bytes / self.weight_bytes)
        if self.resident < 1 and chip.dram is None:
            raise BadValueError(
                f"the model needs {(self.weight_bytes + kv_bytes) / 2**20:.1f} MiB and {chip.name} has "
                f"{chip.sram.size_bytes / 2**20:.1f} MiB of SRAM and no DRAM",
                "use a chip with a [dram] table, more SRAM, or fewer weight bits",
            )
        # Every piece keeps the same share of its weights in SRAM and streams the rest.
        for index in (LAYER, HEAD, *range(KV_FILL, len(self.work))):
            self.work[index]["dram_bytes"] = (1 - self.resident) * self.work[index]["weight_bytes"]

    @property
    def top(self) -> int:
        """Index of the highest operating point."""
        return len(self.points) - 1

    def _check_point(self, point: int) -> None:
        if not 0 <= point <= self.top:
            raise BadValueError(f"operating point {point}", f"{self.chip.name} has points 0 to {self.top}")

    def cost(
        self,
        piece: int,
        point: int,
        context: float = 0.0,
        rows: int = 1,
        temperature_c: float = 25.0,
        slowdown: float = 1.0,
    ) -> LayerCost:
        """Cost of any row of ``work`` at an operating point; arguments as in ``layer``."""
        self._check_point(point)
        return LayerCost(
            *work_cost(self.constants[0], self.points[point], self.work[piece], rows, context, temperature_c, slowdown)
        )

    def layer(
        self, point: int, context: float, rows: int = 1, temperature_c: float = 25.0, slowdown: float = 1.0
    ) -> LayerCost:
        """Cost of one decoder layer.

        Args:
            point: Operating point, 0 (lowest) to ``top``.
            context: Mean positions that each row attends to.
            rows: Tokens at once.
            temperature_c: Die temperature in Celsius.
            slowdown: Factor on the latency, >= 1.

        Raises:
            BadValueError: No such operating point.
        """
        return self.cost(LAYER, point, context, rows, temperature_c, slowdown)

    def table(
        self, contexts: Sequence[float], rows: int = 1, temperature_c: float = 25.0, slowdown: float = 1.0
    ) -> dict[str, NDArray[np.float64]]:
        """``layer`` for every operating point and context.

        Returns:
            ``latency_s`` and each of ``TERMS``, arrays of shape (operating points, contexts).
        """
        out = {name: np.empty((len(self.points), len(contexts))) for name in ("latency_s", *TERMS)}
        for point in range(len(self.points)):
            for column, context in enumerate(contexts):
                cost = self.layer(point, context, rows, temperature_c, slowdown)
                for name, values in out.items():
                    values[point, column] = getattr(cost, name)
        return out

    def token_latency_s(self, point: int, context: float = 64.0) -> float:
        """Seconds of one full-depth decode step: every layer and the head."""
        return self.model.layers * self.layer(point, context).latency_s + self.cost(HEAD, point).latency_s

    def token_energy_j(self, point: int, context: float = 64.0) -> float:
        """Joules of one full-depth decode step: every layer and the head, no probe and no controller."""
        return self.model.layers * self.layer(point, context).energy_j + self.cost(HEAD, point).energy_j

    def idle_w(self, temperature_c: float = 25.0) -> float:
        """Power between requests, W."""
        return idle_power(self.constants[0], temperature_c)
