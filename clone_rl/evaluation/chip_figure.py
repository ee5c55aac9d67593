"""Pictures of a chip: energy against latency with the roofline, and scaling with the number of tiles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clone_rl.evaluation.figure import blank
from clone_rl.evaluation.picture_file import write_picture
from clone_rl.hw_emulator import Board, Emulator
from clone_rl.hw_emulator.report import RequestCost
from clone_rl.hw_emulator.roofline import Placed, Roof, place, roofs

_MARKERS = "osD^vP*X"
_POINT_COLOURS = ("tab:blue", "crimson")


def draw_cost(path: Path, emulator: Emulator, costs: Sequence[RequestCost], prompt: int, knee_point: int | None) -> None:
    """Energy against latency per token by operating point, and the roofline with every kind of layer on it.

    Args:
        path: PNG file to write.
        emulator: The chip loaded with the model.
        costs: The sweep.
        prompt: Tokens of the prefill.
        knee_point: Operating point to mark as the knee; None where there is none.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = blank(13.0, 6.2)
    left, right = figure.subplots(1, 2)
    _sweep(left, emulator, costs, knee_point)
    _roofline(right, emulator, prompt, prompt + costs[0].tokens)
    workload = emulator.workload
    figure.suptitle(
        f"{workload.name} at {workload.precision.name} on {emulator.chip.name}, prompt {prompt}, {costs[0].tokens} tokens",
        x=0.01, ha="left", fontsize=11,
    )  # fmt: skip
    write_picture(path, figure)


def spread(wanted: NDArray[np.float64], gap: float) -> NDArray[np.float64]:
    """Positions in 0..1 near the wanted ones, at least ``gap`` apart; the wanted ones ascend."""
    gap = min(gap, 1 / max(1, len(wanted) - 1))
    steps = gap * np.arange(len(wanted))
    shifted = np.clip(np.maximum.accumulate(wanted - steps), 0.0, 1.0 - steps[-1])
    return np.asarray(shifted + steps)


def _sweep(axes: Any, emulator: Emulator, costs: Sequence[RequestCost], knee_point: int | None) -> None:
    ordered = sorted(costs, key=lambda cost: cost.per_token.latency_s)
    scale, unit = _scaled(max(cost.per_token.energy_j for cost in ordered), "J")
    seconds, time_unit = _scaled(max(cost.per_token.latency_s for cost in ordered), "s")
    x = np.array([cost.per_token.latency_s for cost in ordered]) / seconds
    total = np.array([cost.per_token.energy_j for cost in ordered]) / scale
    axes.plot(x, total, color="black", marker="o", markersize=5, label="all")
    static = "static" if isinstance(emulator.chip, Board) else "leakage"
    shares = (("dynamic", "dynamic_j", "tab:blue"), ("DRAM", "dram_j", "tab:green"), (static, "leakage_j", "tab:orange"))
    for label, name, colour in shares:
        share = np.array([getattr(cost.per_token, name) for cost in ordered]) / scale
        if share.any():
            axes.plot(x, share, color=colour, marker=".", linewidth=1, label=label)
    best = int(np.argmin(total))
    axes.plot(x[best], total[best], marker="v", color="tab:green", markersize=12, linestyle="", label="least energy", zorder=0)
    knees = [i for i, cost in enumerate(ordered) if cost.point == knee_point]
    for i in knees:
        axes.plot(x[i], total[i], marker="D", color="gold", markersize=12, linestyle="", label="knee", zorder=0)
    axes.set_ylim(0, 1.08 * total.max())
    axes.set_xlabel(f"latency per token ({time_unit})")
    axes.set_ylabel(f"energy per token ({unit})")
    axes.grid(alpha=0.3)
    axes.legend(
        frameon=False, fontsize=9, ncols=6, loc="upper center", bbox_to_anchor=(0.5, -0.1), columnspacing=1.2, handlelength=1.4
    )
    low, high = axes.get_xlim()
    wanted = (x - low) / (high - low)
    for cost, dot, across, at in zip(ordered, wanted, spread(wanted, 0.045), total, strict=True):
        point = emulator.points[cost.point]
        axes.annotate(
            f"{point['voltage_v']:.2f} V, {point['frequency_hz'] / 1e6:g} MHz",
            (low + dot * (high - low), at),
            xytext=(across, 1.02),
            textcoords="axes fraction",
            rotation=90,
            ha="center",
            va="bottom",
            fontsize=8,
            arrowprops={"arrowstyle": "-", "color": "0.75", "linewidth": 0.6, "shrinkB": 4},
        )


def _scaled(largest: float, unit: str) -> tuple[float, str]:
    for factor, letter in ((1.0, ""), (1e-3, "m"), (1e-6, "u")):
        if largest >= factor:
            return factor, letter + unit
    return 1e-9, "n" + unit


def _roofline(axes: Any, emulator: Emulator, prompt: int, context: int) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ends = (0, emulator.top)
    placed = place(emulator, prompt, context, ends)
    pieces = list(dict.fromkeys(p.piece for p in placed))
    x = np.array([p.macs_per_byte for p in placed])
    span = np.geomspace(x.min() / 3, x.max() * 10, 200)
    for roof, colour in zip(roofs(emulator, ends), _POINT_COLOURS, strict=True):
        point = emulator.points[roof.point]
        name = f"{point['voltage_v']:.2f} V, {point['frequency_hz'] / 1e6:g} MHz"
        peak = max(roof.macs_per_s.values())
        for memory, bytes_per_s in roof.bytes_per_s.items():
            # DRAM keeps its own clock: its roof is the same at every point.
            if memory != "DRAM":
                axes.plot(
                    span, np.minimum(span * bytes_per_s, peak) / 1e9, color=colour, linewidth=1, label=_roof(roof, memory)
                )
            elif roof.point == emulator.top:
                reached = np.minimum(span * bytes_per_s, peak) / 1e9
                axes.plot(span, reached, color="0.4", linestyle="--", linewidth=1, label=_roof(roof, memory))
        for number, macs_per_s in roof.macs_per_s.items():
            ridge = macs_per_s / max(roof.bytes_per_s.values())
            axes.plot([ridge, span[-1]], [macs_per_s / 1e9] * 2, color=colour, linestyle=":", linewidth=1)
            axes.annotate(
                f"{number}, {macs_per_s / 1e9:.4g} GMAC/s at {name}", (span[-1], macs_per_s / 1e9), xytext=(0, 3),
                textcoords="offset points", ha="right", color=colour, fontsize=8, zorder=4,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
            )  # fmt: skip
        for p in (p for p in placed if p.point == roof.point):
            axes.plot(p.macs_per_byte, p.macs_per_s / 1e9, **_style(p, pieces, colour))
    for phase, fill in (("decode", "white"), ("prefill", "0.3")):
        for piece in (piece for piece in pieces if any(p.piece == piece and p.phase == phase for p in placed)):
            memories = dict.fromkeys(p.memory for p in placed if (p.piece, p.phase) == (piece, phase))
            axes.plot(
                [], [], linestyle="", marker=_MARKERS[pieces.index(piece)], color="0.3", markerfacecolor=fill,
                label=f"{piece}, {phase} ({'/'.join(memories)})",
            )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if axis is axes.yaxis else (1.0,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("MAC per byte of the memory named in brackets")
    axes.set_ylabel("GMAC/s")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _roof(roof: Roof, memory: str) -> str:
    return f"{memory} {roof.bytes_per_s[memory] / 1e9:.4g} GB/s"


def _style(p: Placed, pieces: list[str], colour: str) -> dict[str, Any]:
    """The lowest point's markers are larger, so that they show behind the top point's where both coincide."""
    fill = "white" if p.phase == "decode" else colour
    size = 9 if p.point == 0 else 6
    return {
        "marker": _MARKERS[pieces.index(p.piece)], "color": colour, "markerfacecolor": fill, "markersize": size,
        "linestyle": "", "zorder": 5,
    }  # fmt: skip


def draw_scaling(path: Path, rows: Sequence[dict[str, Any]], title: str) -> None:
    """Latency, energy and area by number of tiles.

    Args:
        path: PNG file to write.
        rows: As ``clone_rl.hw_emulator.report.scaling`` returns them.
        title: First line.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = blank(12.0, 4.2)
    latency, energy, area = figure.subplots(1, 3)
    across = np.arange(len(rows))
    chosen = f"{rows[0]['voltage_v']:.2f} V, {rows[0]['frequency_hz'] / 1e6:g} MHz"
    for axes, key, unit in ((latency, "latency_s", "s"), (energy, "energy_j", "J")):
        factor, scaled = _scaled(max(max(row[key], row[f"best_{key}"]) for row in rows), unit)
        axes.plot(across, [row[key] / factor for row in rows], marker="o", color="crimson", label=chosen)
        axes.plot(
            across, [row[f"best_{key}"] / factor for row in rows], marker="s", color="tab:blue", label="least energy per token"
        )
        axes.set_ylabel(f"{'latency' if unit == 's' else 'energy'} per token ({scaled})")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=9)
    bottom = np.zeros(len(rows))
    parts = (("SRAM", "sram_area_mm2"), ("logic", "logic_area_mm2"), ("LoRA unit", "lora_unit_area_mm2"))
    for label, key in parts:
        height = np.array([row[key] for row in rows])
        if height.any():
            area.bar(across, height, bottom=bottom, width=0.6, label=label)
            bottom += height
    area.set_ylim(0, 1.3 * bottom.max())
    area.set_ylabel("area (mm2)")
    area.legend(frameon=False, fontsize=9, ncols=3, loc="upper left")
    for axes in (latency, energy, area):
        axes.set_xticks(across, [str(row["tiles"]) for row in rows])
        axes.set_xlabel("tiles")
        axes.grid(alpha=0.3, axis="y")
        axes.set_axisbelow(True)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    write_picture(path, figure)
