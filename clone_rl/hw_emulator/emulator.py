"""A chip loaded with a model: its constants as compiled tables, and costs as Python objects or NumPy arrays."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from numbers import Real

import numpy as np
from numpy.typing import NDArray

from clone_rl.errors import BadValueError, UnknownNameError
from clone_rl.hw_emulator import asic, board
from clone_rl.hw_emulator.chip import Asic, Board, Chip
from clone_rl.hw_emulator.cost import (
    CHIP,
    POINT,
    WORK,
    cost_table,
    highest_allowed,
    idle_power,
    leakage_growth,
    switch_cost,
    work_cost,
)
from clone_rl.hw_emulator.switching import mechanism
from clone_rl.hw_emulator.workload import Workload, is_count

HEAD, PROBE, POLICY, LAYER = 0, 1, 2, 3
"""Rows of ``Emulator.work``: ``LAYER + i`` is decoder layer i, ``LAYER + layers + n`` fills the caches of n skipped layers."""

PHASES = ("decode", "prefill")

TERMS = ("mac_j", "sram_j", "sfu_j", "clock_j", "lpu_j", "dram_j", "leakage_j")
"""Energy terms, in the order in which ``work_cost`` returns them after the latency."""

_LONGEST_RESERVED = 2048


@dataclass(frozen=True)
class LayerCost:
    """What one piece of work takes: seconds, and joules by cause.

    Attributes:
        latency_s: Time.
        mac_j: Multiply-accumulates of the array.
        sram_j: Reads and writes of SRAM, and wires between tiles.
        sfu_j: Special-function unit: norms, softmax, probe, controller.
        clock_j: Clock and control; on a board, all that the device takes per cycle.
        lpu_j: LoRA unit and its eNVM.
        dram_j: DRAM: transfers and states.
        leakage_j: Leakage; on a board, static power.
    """

    latency_s: float
    mac_j: float
    sram_j: float
    sfu_j: float
    clock_j: float
    lpu_j: float
    dram_j: float
    leakage_j: float

    @property
    def dynamic_j(self) -> float:
        """Energy that scales with the supply: MACs, SRAM, special functions, clock and control, LoRA unit."""
        return self.mac_j + self.sram_j + self.sfu_j + self.clock_j + self.lpu_j

    @property
    def energy_j(self) -> float:
        """All of it."""
        return self.dynamic_j + self.dram_j + self.leakage_j

    @property
    def power_w(self) -> float:
        """Average power while it runs."""
        return self.energy_j / self.latency_s if self.latency_s else 0.0

    def __add__(self, other: LayerCost) -> LayerCost:
        return LayerCost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, times: float) -> LayerCost:
        return LayerCost(*(getattr(self, f.name) * times for f in fields(self)))

    @classmethod
    def total(cls, costs: Iterable[LayerCost]) -> LayerCost:
        """Sum of costs that follow each other."""
        total = cls(*[0.0] * 8)
        for cost in costs:
            total = total + cost
        return total


@dataclass(frozen=True)
class Idle:
    """One way to wait for the next request: power, and what it takes to be back."""

    power_w: float
    wake_s: float
    wake_j: float


@dataclass(frozen=True)
class Steady:
    """Where a sustained load settles: die temperature, power with memory, and the highest point that throttling leaves."""

    die_c: float
    power_w: float
    allowed: int


def _records(dtype: np.dtype[np.void], rows: Sequence[dict[str, float]]) -> NDArray[np.void]:
    array = np.zeros(len(rows), dtype)
    for record, values in zip(array, rows, strict=True):
        for name, value in values.items():
            record[name] = value
    return array


def _shared_constants(chip: Chip, switching: str) -> dict[str, float]:
    how, thermal = mechanism(switching), chip.thermal
    return {
        "relock_s": how.relock_s,
        "slew_s_per_v": how.slew_s_per_v,
        "domain_f": chip.switching.domain_capacitance_f,
        "ambient_c": thermal.ambient_c,
        "throttle_c": thermal.throttle_c,
        "limit_c": thermal.limit_c,
        "die_r": thermal.die_resistance_k_per_w,
        "die_per_s": 1.0 / (thermal.die_resistance_k_per_w * thermal.die_capacity_j_per_k),
        "package_r": thermal.package_resistance_k_per_w,
        "package_per_s": 1.0 / (thermal.package_resistance_k_per_w * thermal.package_capacity_j_per_k),
    }


class Emulator:
    """A chip that runs a model.

    Args:
        chip: The accelerator or board.
        workload: The language model.
        switching: Switching mechanism; None takes the chip's own.
        signals: Dot products that one exit probe reads.
        policy_macs: Multiply-accumulates of one decision of the controller.
        policy_lut_bytes: Size of the controller's lookup table, where it is one; 0 for an MLP.
        context: Positions of K/V cache that SRAM is reserved for; None takes the model's longest, at most 2,048.

    Attributes:
        constants: One record of ``CHIP``.
        points: Records of ``POINT``, one per operating point, ascending.
        work: Records of ``WORK``: rows ``HEAD``, ``PROBE``, ``POLICY``, ``LAYER + i``, ``LAYER + layers + n``.
        classes: Layers that stand for all layers of their kind (those with the same window).
        remaining: Layers of each class from a layer on, (layers + 1, classes).
        resident: Share of the weights that stays in SRAM.
        kv_tokens: Positions of the K/V cache that stay in SRAM.

    Raises:
        BadValueError: The model does not fit a chip without DRAM, or needs a format that the chip lacks.
    """

    def __init__(
        self,
        chip: Chip,
        workload: Workload,
        switching: str | None = None,
        signals: int = 2,
        policy_macs: int = 0,
        policy_lut_bytes: int = 0,
        context: int | None = None,
    ) -> None:
        if not isinstance(chip, Asic | Board):
            raise BadValueError(f"{chip!r} is not a chip", "use Chip.load")
        if not isinstance(workload, Workload):
            raise BadValueError(f"{workload!r} is not a workload", "use Workload.from_config")
        self.chip, self.workload = chip, workload
        self.switching = switching or chip.switching.mechanism
        for what, value in (("signals", signals), ("policy_macs", policy_macs), ("policy_lut_bytes", policy_lut_bytes)):
            if value < 0:
                raise BadValueError(f"{what} is {value}", "0 or more")
        if context is not None and context < 1:
            raise BadValueError(f"context is {context}", "at least 1 token")
        self.context = context or min(workload.context, _LONGEST_RESERVED)
        count = workload.layers
        if isinstance(chip, Asic):
            where = asic.place(chip, workload, self.context)
            constants, points = asic.constants(chip, where), asic.points(chip, workload.lora_rank > 0)
            pieces = [
                asic.head(chip, workload, where),
                asic.probe(workload, signals),
                asic.policy(chip, policy_macs, policy_lut_bytes),
                *(asic.layer(chip, workload, i, where) for i in range(count)),
                *(asic.kv_fill(chip, workload, n, where) for n in range(count)),
            ]
            self.resident, self.kv_tokens = where.resident, where.kv_tokens
        else:
            constants, points = board.constants(chip), board.points(chip)
            pieces = [
                board.head(chip, workload),
                board.small_kernel(chip, workload, workload.hidden_size * signals),
                board.small_kernel(chip, workload, policy_macs or policy_lut_bytes),
                *(board.layer(chip, workload, i) for i in range(count)),
                *(board.kv_fill(chip, workload, n) for n in range(count)),
            ]
            self.resident, self.kv_tokens = 0.0, 0.0
        self.constants = _records(CHIP, [constants | _shared_constants(chip, self.switching)])
        self.points = _records(POINT, points)
        self.work = _records(WORK, [{"window": math.inf, "block_rows": math.inf, **piece} for piece in pieces])
        windows = [workload.window_of(i) for i in range(count)]
        self.classes = [windows.index(window) for window in dict.fromkeys(windows)]
        kind = np.array([[windows[i] == windows[c] for c in self.classes] for i in range(count)], np.int64)
        self.remaining = np.vstack([np.cumsum(kind[::-1], 0)[::-1], np.zeros((1, len(self.classes)), np.int64)])

    @property
    def top(self) -> int:
        """Index of the highest operating point."""
        return len(self.points) - 1

    def kv_fill_row(self, skipped: int) -> int:
        """Row of ``work`` that fills the caches of ``skipped`` layers."""
        return LAYER + self.workload.layers + skipped

    def _point(self, vf: int | None) -> int:
        if vf is None:
            return self.top
        if not is_count(vf) or vf > self.top:
            raise BadValueError(f"operating point {vf}", f"{self.chip.name} has points 0 to {self.top}")
        return int(vf)

    def _celsius(self, temperature_c: float | None) -> float:
        """The given die temperature, or the one at which the chip's leakage is stated."""
        return float(self.constants[0]["leakage_reference_c"]) if temperature_c is None else temperature_c

    def _check(
        self, layer: int, phase: str, context: float, tokens: int, temperature_c: float | None, slowdown: float
    ) -> None:
        for name, value in (("context", context), ("temperature_c", temperature_c), ("slowdown", slowdown)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
                raise BadValueError(f"{name} is {value!r}", "a number")
        if phase not in PHASES:
            raise UnknownNameError("phase", phase, PHASES)
        if not is_count(layer) or layer >= self.workload.layers:
            raise BadValueError(f"layer {layer}", f"{self.workload.name} has layers 0 to {self.workload.layers - 1}")
        if not (context >= 0 and math.isfinite(context)):
            raise BadValueError(f"context is {context}", "0 or more tokens")
        if not is_count(tokens) or tokens < 1:
            raise BadValueError(f"tokens is {tokens!r}", "at least 1, and whole")
        if temperature_c is not None and not math.isfinite(temperature_c):
            raise BadValueError(f"temperature_c is {temperature_c}", "a finite temperature")
        if not (slowdown >= 1 and math.isfinite(slowdown)):
            raise BadValueError(f"slowdown is {slowdown}", "a factor on the latency, at least 1")

    def cost(
        self,
        piece: int,
        point: int | None,
        context: float = 0.0,
        rows: int = 1,
        temperature_c: float | None = None,
        slowdown: float = 1.0,
        causal: bool = False,
    ) -> LayerCost:
        """Cost of any row of ``work``; arguments as in ``cost.work_cost``."""
        constants, at, celsius = self.constants[0], self.points[self._point(point)], self._celsius(temperature_c)
        return LayerCost(*work_cost(constants, at, self.work[piece], rows, context, causal, celsius, slowdown))

    def layer(
        self,
        layer: int = 0,
        phase: str = "decode",
        context: float = 0,
        tokens: int = 1,
        vf: int | None = None,
        temperature_c: float | None = None,
        slowdown: float = 1.0,
    ) -> LayerCost:
        """Cost of one decoder layer.

        Args:
            layer: Which one, from 0.
            phase: ``"decode"``: ``tokens`` sequences, each attending to ``context`` positions. ``"prefill"``: ``tokens``
                consecutive tokens of one prompt after ``context`` cached ones.
            context: As above.
            tokens: As above.
            vf: Operating point, 0 (lowest) to ``top``; None is the top one.
            temperature_c: Die temperature in Celsius; None is the one at which the chip file states leakage.
            slowdown: Factor on the latency, >= 1.

        Raises:
            BadValueError: A number is out of range.
            UnknownNameError: Unknown phase.
        """
        self._check(layer, phase, context, tokens, temperature_c, slowdown)
        return self.cost(LAYER + layer, vf, context, tokens, temperature_c, slowdown, phase == "prefill")

    def token(
        self,
        phase: str = "decode",
        context: float = 0,
        tokens: int = 1,
        vf: int | Sequence[int] | None = None,
        depth: int | None = None,
        temperature_c: float | None = None,
        slowdown: float = 1.0,
    ) -> LayerCost:
        """Cost of one pass over the model: layers, the head, and after an early exit the caches of the skipped layers.

        Args:
            phase, context, tokens, temperature_c, slowdown: As in ``layer``. After a prefill the head runs once.
            vf: One operating point, or one per layer that runs (head and caches run at the last one's).
            depth: Layers that run; None is all of them.

        Raises:
            BadValueError: A number is out of range, or ``vf`` has another length than ``depth``.
            UnknownNameError: Unknown phase.
        """
        depth = self.workload.layers if depth is None else depth
        if not is_count(depth) or not 1 <= depth <= self.workload.layers:
            raise BadValueError(f"depth is {depth}", f"1 to {self.workload.layers}")
        if phase == "prefill" and depth < self.workload.layers:
            raise BadValueError(f"depth {depth} in prefill", "a prompt runs at full depth")
        points = list(vf) if isinstance(vf, Sequence | np.ndarray) else [vf] * depth
        if len(points) != depth:
            raise BadValueError(f"{len(points)} operating points for {depth} layers", "give one for each layer that runs")
        costs = [self.layer(i, phase, context, tokens, point, temperature_c, slowdown) for i, point in enumerate(points)]
        last, heads = self._point(points[-1]), tokens if phase == "decode" else 1
        if depth < self.workload.layers:
            costs.append(
                self.cost(self.kv_fill_row(self.workload.layers - depth), last, context, tokens, temperature_c, slowdown)
            )
        costs.append(self.cost(HEAD, last, 0.0, heads, temperature_c, slowdown))
        return LayerCost.total(costs)

    def table(
        self,
        phase: str = "decode",
        context: float | Sequence[float] = 0,
        tokens: int = 1,
        temperature_c: float | None = None,
        slowdown: float = 1.0,
    ) -> dict[str, NDArray[np.float64]]:
        """``layer`` for every layer and operating point, and for each context, in one compiled loop.

        Args:
            context: One number, or several.
            phase, tokens, temperature_c, slowdown: As in ``layer``.

        Returns:
            ``latency_s``, ``energy_j``, and each of ``TERMS``: arrays of shape (layers, operating points), with a third axis
            for the contexts where several are given.
        """
        contexts = np.atleast_1d(np.asarray(context, np.float64))
        for value in contexts:
            self._check(0, phase, float(value), tokens, temperature_c, slowdown)
        layers = self.workload.layers
        out = np.empty((layers, len(self.points), len(contexts), 8))
        works, causal = self.work[LAYER : LAYER + layers], phase == "prefill"
        celsius = self._celsius(temperature_c)
        cost_table(self.constants[0], self.points, works, float(tokens), contexts, causal, celsius, slowdown, out)
        if np.ndim(context) == 0:
            out = out[:, :, 0]
        table = {name: out[..., i].copy() for i, name in enumerate(("latency_s", *TERMS))}
        return {"latency_s": table.pop("latency_s"), "energy_j": out[..., 1:].sum(-1), **table}

    def token_latency_s(self, point: int, context: float = 64.0) -> float:
        """Seconds of one full-depth decode step: every layer and the head."""
        return self.token(context=context, vf=point).latency_s

    def token_energy_j(self, point: int, context: float = 64.0) -> float:
        """Joules of one full-depth decode step: every layer and the head, no probe and no controller."""
        return self.token(context=context, vf=point).energy_j

    def switch(self, old: int | None, new: int | None, temperature_c: float | None = None) -> tuple[float, float]:
        """Stall (s) and energy (J) of a change of operating point."""
        old, new = self._point(old), self._point(new)
        if old == new:
            return 0.0, 0.0
        stall_s, energy_j = switch_cost(self.constants[0], self.points[old], self.points[new], self._celsius(temperature_c))
        return float(stall_s), float(energy_j)

    def idle_w(self, temperature_c: float | None = None) -> float:
        """Power between requests, W: state ``retention`` of an ASIC, the idle board otherwise."""
        return idle_power(self.constants[0], self._celsius(temperature_c))

    def idle_states(self, temperature_c: float | None = None) -> dict[str, Idle]:
        """Ways to wait for the next request, by name; adapters in eNVM survive all of them without a reload."""
        if not isinstance(self.chip, Asic):
            return {"idle": Idle(self.idle_w(temperature_c), 0.0, 0.0)}
        chip, constants = self.chip, self.constants[0]
        growth = leakage_growth(constants, self._celsius(temperature_c))
        resident = self.resident * (self.workload.weight_bytes + (0 if chip.lpu else self.adapter_bytes))
        dram_w = {"clock-gated": float(constants["dram_waiting_w"])}
        exit_s = chip.dram.self_refresh_exit_s if chip.dram else 0.0
        return {
            name: Idle(
                power_w * growth + dram_w.get(name, float(constants["idle_dram_w"])),
                wake_s + (exit_s if name != "clock-gated" else 0.0),
                wake_j,
            )
            for name, (power_w, wake_s, wake_j) in asic.idle_states(chip, resident).items()
        }

    @property
    def adapter_bytes(self) -> float:
        """Stored weights of the active LoRA adapters of all layers."""
        return self.workload.adapter_bytes

    def swap_adapters(self) -> tuple[float, float]:
        """Seconds and joules of putting other LoRA adapters in place of the active ones.

        With a LoRA unit they are read from eNVM into its buffer (nothing to do where they are streamed from eNVM anyway);
        without one they are read from DRAM.

        Raises:
            BadValueError: The chip has neither.
        """
        if isinstance(self.chip, Asic) and self.chip.lpu is not None:
            lpu = self.chip.lpu
            if self.adapter_bytes > lpu.buffer_bytes:
                return 0.0, 0.0
            return self.adapter_bytes / lpu.envm_bytes_per_s, self.adapter_bytes * lpu.envm_read_energy_j_per_byte
        if self.chip.dram is None:
            raise BadValueError(f"{self.chip.name} has nowhere to swap adapters from", "add an [lpu] or a [dram] table")
        seconds = self.adapter_bytes / float(self.constants[0]["dram_bytes_per_s"])
        per_byte = self.chip.dram.read_energy_j_per_byte + float(self.constants[0]["sram_j_per_byte"])
        return seconds, self.adapter_bytes * per_byte + seconds * self.chip.dram.active_w

    def steady(self, cost: LayerCost) -> Steady:
        """Where the die settles if this work is repeated without a pause, leakage feedback included.

        Args:
            cost: Costed at the default temperature.

        Returns:
            Temperatures beyond the chip's limit mean that it cannot be sustained: ``allowed`` is then below ``top``.
        """
        if not cost.latency_s > 0:
            raise BadValueError(f"latency_s is {cost.latency_s}", "work that takes time can be repeated")
        constants, thermal = self.constants[0], self.chip.thermal
        resistance = thermal.die_resistance_k_per_w + thermal.package_resistance_k_per_w
        die_c, ceiling = thermal.ambient_c, thermal.limit_c + 100.0
        elsewhere_w = float(constants["dram_elsewhere"]) * cost.dram_j / cost.latency_s
        for _ in range(200):
            power_w = (cost.energy_j + cost.leakage_j * (leakage_growth(constants, die_c) - 1)) / cost.latency_s
            settled = min(ceiling, thermal.ambient_c + (power_w - elsewhere_w) * resistance)
            if abs(settled - die_c) < 1e-6:
                break
            die_c = settled
        return Steady(die_c, power_w, int(highest_allowed(constants, self.top, die_c)))
