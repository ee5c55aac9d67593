"""The picture of a comparison: energy against lateness and against quality, with intervals and limits."""

from __future__ import annotations

import math
from typing import Any

from clone_rl.evaluation.results import Results
from clone_rl.evaluation.theme import MARKERS, Theme

_PANELS = (
    ("miss_rate", "miss", "late tokens (%)", 100.0),
    ("disagreement", "disagree", "tokens that differ from full depth (%)", 100.0),
    ("dnll", "dnll", "dNLL (nats per token)", 1.0),
)

_FAR = 1.3
"""Energies beyond this many times the least stand on a line at the right: those to be told apart differ by per cents."""

_LONGEST = 22
"""Characters of a name beside that line."""


def front(rows: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """Rows that no other beats in energy and in ``key``, by rising energy.

    >>> rows = [{"energy_per_token_j": e, "miss_rate": m} for e, m in ((2, 0), (1, 3), (3, 1))]
    >>> [row["energy_per_token_j"] for row in front(rows, "miss_rate")]
    [1, 2]
    """
    found: list[dict[str, Any]] = []
    for row in sorted(rows, key=lambda row: (row["energy_per_token_j"], row[key])):
        if not found or row[key] < found[-1][key]:
            found.append(row)
    return found


def draw_pareto(figure: Any, theme: Theme, results: Results) -> None:
    """Three panels; filled markers hold all constraints, hollow ones break one, the ring is the winner.

    Those that use far more energy stand on a dotted line at the right, named with their energy.

    Args:
        figure: Empty.
        theme: Colours.
        results: Of which the summary is drawn.
    """
    panels = figure.subplots(1, len(_PANELS), sharex=True)
    least = min(row["energy_per_token_j"] for row in results.summary)
    near = [row for row in results.summary if row["energy_per_token_j"] <= _FAR * least]
    far = [row for row in results.summary if row["energy_per_token_j"] > _FAR * least] if len(near) > 1 else []
    ends = [end * 1e6 for row in near for end in (row["energy_per_token_j"], *row["energy_per_token_j_ci"])]
    margin = 0.1 * (max(ends) - min(ends)) or 0.05 * max(ends)
    start, line = min(ends) - margin, max(ends) + margin if far else math.inf
    for axes, (key, limit_name, label, factor) in zip(panels, _PANELS, strict=True):
        limit = getattr(results.limits, limit_name) * factor
        edge = front([row for row in results.summary if row["within_constraints"]], key)
        axes.plot(
            [min(row["energy_per_token_j"] * 1e6, line) for row in edge], [row[key] * factor for row in edge],
            color=theme.ink, linewidth=0.8, alpha=0.5, zorder=1,
        )  # fmt: skip
        for number, row in enumerate(results.summary):
            _point(axes, theme, row, number, key, factor, row["name"] == results.best, line if row in far else None)
        axes.set_xlabel("energy per token (uJ)")
        axes.set_ylabel(label)
        axes.grid(color=theme.faint, linewidth=0.5)
        axes.set_axisbelow(True)
        values = [row[key] * factor for row in results.summary]
        if max(values) > 8 * max(limit, 1e-9):
            # A few that are far out must not squeeze all others: linear up to the limit, logarithmic beyond.
            axes.set_yscale("symlog", linthresh=max(2 * limit, 1e-3))
            ticks = [0.0, limit, *(t for t in (10.0, 100.0) if 2 * limit < t <= 2 * max(values))]
            axes.set_ylim(bottom=-0.3 * max(limit, 1e-3))
            axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        # Above the frame, where no marker is.
        axes.set_title(f"dashed: limit {limit:g}", loc="right", fontsize=8, color=theme.bad)
    _legend(figure, panels[0])
    end = _room(figure, panels, far, start, line) if far else 0.0
    for axes, (key, limit_name, _, factor) in zip(panels, _PANELS, strict=True):
        if far:
            axes.set_xlim(start, end)
            axes.set_xticks([tick for tick in axes.get_xticks() if start <= tick < line])
            axes.axvline(line, color=theme.ink, linewidth=0.8, linestyle=":", zorder=0)
            _beside(axes, theme, far, key, factor, line)
        limit, across = getattr(results.limits, limit_name) * factor, axes.get_xlim()
        axes.axhline(
            limit,
            xmax=(min(line, across[1]) - across[0]) / (across[1] - across[0]),
            color=theme.bad,
            linewidth=1,
            linestyle="--",
        )


def _legend(figure: Any, axes: Any) -> None:
    """All names below the panels, in as many columns as the figure has room for."""
    handles, labels = axes.get_legend_handles_labels()
    for columns in range(6, 0, -1):
        legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
        if legend.get_window_extent().width < figure.bbox.width or columns == 1:
            return
        legend.remove()


def _named(row: dict[str, Any]) -> str:
    """A name that is not too long, with its energy."""
    name = row["name"]
    return f"{name if len(name) <= _LONGEST else name[: _LONGEST - 1] + '…'} {row['energy_per_token_j'] * 1e6:.1f}"


def _room(figure: Any, panels: Any, far: list[dict[str, Any]], start: float, line: float) -> float:
    """Where the energy axis ends, for that the names beside the line have room."""
    probes = [figure.text(0, 0, _named(row), fontsize=8) for row in far]
    for probe in probes:
        probe.set_in_layout(False)
    figure.draw_without_rendering()
    wide: float = max(probe.get_window_extent().width for probe in probes)
    for probe in probes:
        probe.remove()
    points = figure.dpi / 72
    share: float = min((wide + 24 * points) / min(axes.bbox.width for axes in panels), 0.6)
    return start + (line - start) / (1 - share)


def _beside(axes: Any, theme: Theme, far: list[dict[str, Any]], key: str, factor: float, line: float) -> None:
    """Name those on the line at their height, or as near to it as others leave room, with a thin line to it."""
    rows = sorted(far, key=lambda row: (row[key], row["energy_per_token_j"]))
    wide, tall = (size * 72 / axes.get_figure().dpi for size in axes.bbox.size)  # points
    size = min(8.0, tall / (1.5 * (len(rows) + 1)))
    across, heights = axes.transLimits.transform(
        axes.transScale.transform([(line, row[key] * factor) for row in rows])
    ).T.tolist()
    left = across[0] + 16 / wide
    for row, own, height in zip(rows, heights, spread(heights, 1.5 * size / tall), strict=True):
        axes.plot(
            [across[0], left - 2 / wide], [own, height], transform=axes.transAxes, color=theme.ink, linewidth=0.5, alpha=0.6
        )
        axes.text(
            left, height, _named(row), transform=axes.transAxes, va="center", fontsize=size, color=theme.ink,
            bbox={"facecolor": theme.paper, "edgecolor": "none", "pad": 0.5},
        )  # fmt: skip


def spread(wanted: list[float], step: float) -> list[float]:
    """Rising heights between 0 and 1, a step or more from each other and half of one from the ends, close to those wanted.

    >>> spread([0.0, 0.0, 0.5], 0.25)
    [0.125, 0.375, 0.625]
    """
    found: list[float] = []
    for height in wanted:
        found.append(max(height, found[-1] + step if found else step / 2))
    above = 1 + step / 2
    for at in range(len(found) - 1, -1, -1):
        above = found[at] = min(found[at], above - step)
    return found


def _point(
    axes: Any, theme: Theme, row: dict[str, Any], number: int, key: str, factor: float, best: bool, line: float | None
) -> None:
    """One controller with both of its 95 % intervals, or on the line with that of its height."""
    colour, held = theme.series[number % len(theme.series)], row["within_constraints"]
    x, y = row["energy_per_token_j"] * 1e6 if line is None else line, row[key] * factor
    across = [abs(x - end * 1e6) if line is None else 0.0 for end in row["energy_per_token_j_ci"]]
    upright = [abs(y - end * factor) for end in row[f"{key}_ci"]]
    axes.errorbar(
        x, y, xerr=[[across[0]], [across[1]]], yerr=[[upright[0]], [upright[1]]], color=colour, linewidth=1, alpha=0.8,
        marker=MARKERS[number % len(MARKERS)], markersize=6, markerfacecolor=colour if held else theme.paper, linestyle="",
        label=row["name"] if held else f"{row['name']} (breaks a constraint)", zorder=3,
    )  # fmt: skip
    if best:
        # In the colour of no controller.
        axes.plot(
            x,
            y,
            marker="o",
            markersize=15,
            markerfacecolor="none",
            color=theme.ink,
            linestyle="",
            label="the winner",
            zorder=2,
        )
