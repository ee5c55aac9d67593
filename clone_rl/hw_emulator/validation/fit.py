"""The fitted constants, computed again from the rows that they were fitted to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from clone_rl.errors import BadFileError
from clone_rl.hw_emulator.chip import Board
from clone_rl.hw_emulator.emulator import Emulator, LayerCost
from clone_rl.hw_emulator.validation.boards import agx_workload, nano_workloads
from clone_rl.hw_emulator.validation.energyllm import FITTED, Array, Grid, read_grids, steps, workload
from clone_rl.hw_emulator.validation.published import published
from clone_rl.hw_emulator.validation.silicon import LEAKAGE_SHARE, power_ratios
from clone_rl.hw_emulator.voltage import ALPHA, THRESHOLD_V, relative_frequency

_EAGER_CONSTANTS = 7


@dataclass(frozen=True)
class Fitted:
    """A constant.

    Attributes:
        name: Where it is shipped, and its key.
        value: The fit's.
        shipped: The one in use.
        rows: Number of rows that it is fitted to.
        source: Of the rows.
    """

    name: str
    value: float
    shipped: float
    rows: int
    source: str

    @property
    def error(self) -> float:
        """Shipped over fitted value, minus 1."""
        return self.shipped / self.value - 1

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "error": self.error}


def fit(reference: Path | None = None) -> list[Fitted]:
    """Fit every fitted constant again, from nothing that is held out.

    Args:
        reference: Folder of raw tables, as in ``validate``; the constants of ``orin-agx-eager`` need its EnergyLLM table.

    Raises:
        BadFileError: As in ``validate``.
    """
    found = [*_frequency(), _leakage(), *_nano(), *_agx()]
    for path, grid in read_grids(reference).items():
        if FITTED in path.stem:
            if np.isfinite(grid.step_s).sum() < _EAGER_CONSTANTS:
                raise BadFileError(f"{path} has too few batch sizes and clocks", f"to fit {_EAGER_CONSTANTS} constants")
            found += _eager(grid, f"{published()['energyllm']['source']}, {path.name}")
    return found


def _solve(residual: Callable[[Array], Array], start: Array, tries: int = 60) -> Array:
    """Least squares by Gauss-Newton steps in the logarithms of positive parameters, damped after Levenberg and Marquardt."""
    at, damping, small = np.log(start), 1e-3, 1e-5
    now = residual(np.exp(at))
    for _ in range(tries):
        slopes = [(residual(np.exp(at + small * unit)) - now) / small for unit in np.eye(len(at))]
        jacobian = np.stack(slopes, 1)
        normal = jacobian.T @ jacobian
        move = np.linalg.lstsq(normal + damping * np.diag(np.diag(normal)), -jacobian.T @ now)[0]
        new = residual(np.exp(at + move))
        if not new @ new <= now @ now:  # not a number either
            damping *= 10
            continue
        at, now, damping = at + move, new, damping / 10
        if np.abs(move).max() < 1e-7:
            break
    found: Array = np.exp(at)
    return found


def _frequency() -> list[Fitted]:
    """Exponent and threshold of the frequency law: two unknowns, clocks at two voltages."""
    rows = published()["frequency"]["typical"]
    ratios = np.array([row["ratio"] for row in rows])

    def residual(values: Array) -> Array:
        threshold_v, alpha = float(values[0]), float(values[1])
        ours = [relative_frequency(row["voltage_v"], threshold_v, alpha) for row in rows]
        errors: Array = np.array(ours) / ratios - 1
        return errors

    threshold_v, alpha = _solve(residual, np.array([0.5, 1.3]))
    source = "4DGS, LLM-CIM, CELLA"
    return [
        Fitted("voltage.py ALPHA", float(alpha), ALPHA, len(rows), source),
        Fitted("voltage.py THRESHOLD_V", float(threshold_v), THRESHOLD_V, len(rows), source),
    ]


def _leakage() -> Fitted:
    """Share of leakage at the highest operating point, by least squares of relative errors of the lowest power."""
    corners = [corner for corner in published()["corners"] if corner["fitted"]]
    dynamic, leakage = np.array([power_ratios(corner) for corner in corners]).T
    share = (leakage - dynamic) @ (1 - dynamic) / ((leakage - dynamic) @ (leakage - dynamic))
    source = ", ".join(corner["chip"] for corner in corners)
    return Fitted("validation/silicon.py LEAKAGE_SHARE", float(share), LEAKAGE_SHARE, len(corners), source)


def _nano() -> list[Fitted]:
    """Achievable bandwidth and overhead of the Orin Nano: least squares of relative errors of the time per token."""
    table, chip = published()["orin_nano"], Board.load("orin-nano")
    assert chip.dram is not None
    bare = replace(chip, dram=replace(chip.dram, achievable=1.0), board=replace(chip.board, overhead_cycles_per_token=0.0))
    measured_s = np.array([1 / row["tokens_per_s"] for row in table["rows"]])
    dram_s = np.array([Emulator(bare, model).token().latency_s for model in nano_workloads()])
    columns = np.stack([dram_s, np.ones(len(dram_s))], 1) / measured_s[:, None]
    inverse, overhead_s = np.linalg.lstsq(columns, np.ones(len(dram_s)))[0]
    cycles = overhead_s * chip.operating_points[-1].frequency_hz
    rows, source = len(measured_s), "NVIDIA, Orin Nano, 15 W"
    return [
        Fitted("orin-nano achievable", float(1 / inverse), chip.dram.achievable, rows, source),
        Fitted("orin-nano overhead_cycles_per_token", float(cycles), chip.board.overhead_cycles_per_token, rows, source),
    ]


def _agx() -> list[Fitted]:
    """Rates and energy of the AGX Orin under llama.cpp: one cell of decoding and one prompt, both met exactly."""
    table, chip = published()["orin_agx"], Board.load("orin-agx")
    measured_s = np.array([1 / table["maxn"]["tokens_per_s"], table["prompt_tokens"] / table["maxn"]["prompt_tokens_per_s"]])

    def loaded(rates: Array, cycle_energy_j: float) -> Emulator:
        stream, gemm = (float(rate) for rate in rates)
        board = replace(chip.board, stream_bytes_per_cycle=stream, gemm_macs_per_cycle=gemm, cycle_energy_j=cycle_energy_j)
        return Emulator(replace(chip, board=board), agx_workload())

    def residual(rates: Array) -> Array:
        emulator = loaded(rates, 0.0)
        prompt = emulator.token("prefill", tokens=table["prompt_tokens"])
        ours: Array = np.array([emulator.token().latency_s, prompt.latency_s])
        errors: Array = np.log(ours / measured_s)
        return errors

    rates = _solve(residual, np.array([100.0, 5000.0]))
    unit: LayerCost = loaded(rates, 1.0).token()
    cycle_j = (table["maxn"]["joules_per_token"] - unit.leakage_j - unit.dram_j) / unit.clock_j
    laws, source = chip.board, "jetson-llm-maxperf, MAXN Q4_K_M"
    return [
        Fitted("orin-agx stream_bytes_per_cycle", float(rates[0]), laws.stream_bytes_per_cycle, 2, source),
        Fitted("orin-agx gemm_macs_per_cycle", float(rates[1]), laws.gemm_macs_per_cycle, 2, source),
        Fitted("orin-agx cycle_energy_j", float(cycle_j), laws.cycle_energy_j, 1, source),
    ]


def _predicted(chip: Board, grid: Grid) -> dict[str, Array]:
    """``steps`` of every batch size, stacked."""
    emulator = Emulator(chip, workload())
    rows = [steps(emulator, b, c, grid.celsius) for b, c in zip(grid.batches, grid.contexts, strict=True)]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _eager(grid: Grid, source: str) -> list[Fitted]:
    """Time, then energy, of the AGX Orin under Hugging Face eager mode.

    Time: least squares of logarithms in four constants. Energy: linear least squares of relative errors in static power and in
    both parts of the energy per cycle, V^2 = 1 - a + a (f / ftop)^2 relative to the top clock; DRAM's is not fitted.
    """
    chip, there = Board.load("orin-agx-eager"), np.isfinite(grid.step_s)
    laws, rows = chip.board, int(there.sum())

    def timed(values: Array) -> Board:
        host_s, stream, gemm, power = (float(value) for value in values)
        board = replace(
            laws, host_s_per_token=host_s, stream_bytes_per_cycle=stream, gemm_macs_per_cycle=gemm, overlap_power=power
        )
        return replace(chip, board=board)

    def residual(values: Array) -> Array:
        ours = _predicted(timed(values), grid)["latency_s"]
        errors: Array = np.log(ours[there] / grid.step_s[there])
        return errors

    best = _solve(residual, np.array([0.04, 100.0, 3000.0, 8.0]))
    clocks = np.array([point.frequency_hz for point in chip.operating_points])
    voltages = np.array([point.voltage_v for point in chip.operating_points])
    share = (clocks / clocks[-1]) ** 2
    flat = replace(
        timed(best),
        board=replace(timed(best).board, static_w=1.0, cycle_energy_j=1.0),
        operating_points=tuple(replace(point, voltage_v=1.0) for point in chip.operating_points),
    )
    terms = _predicted(flat, grid)
    columns = np.stack([terms["leakage_j"], terms["clock_j"], terms["clock_j"] * share], -1)[there]
    target_j = (grid.step_j - terms["dram_j"])[there]
    weight = 1 / grid.step_j[there]
    static_w, constant_j, growing_j = np.linalg.lstsq(columns * weight[:, None], target_j * weight)[0]
    shipped_a = (1 - (voltages[0] / voltages[-1]) ** 2) / (1 - share[0])
    found = {
        "host_s_per_token": (best[0], laws.host_s_per_token),
        "stream_bytes_per_cycle": (best[1], laws.stream_bytes_per_cycle),
        "gemm_macs_per_cycle": (best[2], laws.gemm_macs_per_cycle),
        "overlap_power": (best[3], laws.overlap_power),
        "static_w": (static_w, laws.static_w),
        "cycle_energy_j": (constant_j + growing_j, laws.cycle_energy_j),
        "operating_points, share of V^2 that grows": (growing_j / (constant_j + growing_j), shipped_a),
    }
    return [Fitted(f"orin-agx-eager {k}", float(v), float(s), rows, source) for k, (v, s) in found.items()]
