"""The picture of a comparison: energy against lateness and against quality, with intervals and limits."""

from __future__ import annotations

from typing import Any

from clone_rl.evaluation.results import Results
from clone_rl.evaluation.theme import MARKERS, Theme

_PANELS = (
    ("miss_rate", "miss", "late tokens (%)", 100.0),
    ("disagreement", "disagree", "tokens that differ from full depth (%)", 100.0),
    ("dnll", "dnll", "dNLL (nats per token)", 1.0),
)

_FAR = 1.3
"""Energies beyond this many times the least stand at the edge: controllers that are to be told apart differ by per cents."""


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

    Args:
        figure: Empty.
        theme: Colours.
        results: Of which the summary is drawn.
    """
    panels = figure.subplots(1, len(_PANELS), sharex=True)
    least = min(row["energy_per_token_j"] for row in results.summary)
    near = [row for row in results.summary if row["energy_per_token_j"] <= _FAR * least]
    far = [row for row in results.summary if row["energy_per_token_j"] > _FAR * least] if len(near) > 1 else []
    if far:
        ends = [end * 1e6 for row in near for end in row["energy_per_token_j_ci"]]
        margin = 0.1 * (max(ends) - min(ends))
        panels[0].set_xlim(min(ends) - margin, max(ends) + 4 * margin)  # of all panels: they share it
    for axes, (key, limit_name, label, factor) in zip(panels, _PANELS, strict=True):
        limit = getattr(results.limits, limit_name) * factor
        axes.axhline(limit, color=theme.bad, linewidth=1, linestyle="--")
        edge = front([row for row in results.summary if row["within_constraints"]], key)
        axes.plot(
            [row["energy_per_token_j"] * 1e6 for row in edge], [row[key] * factor for row in edge], color=theme.ink,
            linewidth=0.8, alpha=0.5, zorder=1,
        )  # fmt: skip
        for number, row in enumerate(results.summary):
            _point(axes, theme, row, number, key, factor, row["name"] == results.best)
        _at_the_edge(axes, theme, far, key, factor)
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
        axes.annotate(
            f"limit {limit:g}", (1, limit), xycoords=("axes fraction", "data"), xytext=(-3, 3), textcoords="offset points",
            ha="right", fontsize=8, color=theme.bad, bbox={"facecolor": theme.paper, "edgecolor": "none", "pad": 0.5},
        )  # fmt: skip
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False, fontsize=9)


def _at_the_edge(axes: Any, theme: Theme, far: list[dict[str, Any]], key: str, factor: float) -> None:
    """Name the far ones at the right edge, at their height."""
    heights: dict[float, int] = {}
    for row in sorted(far, key=lambda row: row["energy_per_token_j"]):
        y = row[key] * factor
        lines = heights[round(y, 3)] = heights.get(round(y, 3), 0) + 1
        axes.annotate(
            f"{row['name']} {row['energy_per_token_j'] * 1e6:.1f} >", (1, y), xycoords=("axes fraction", "data"), ha="right",
            xytext=(-3, 10 * lines - 6), textcoords="offset points", fontsize=8, color=theme.ink,
        )  # fmt: skip


def _point(axes: Any, theme: Theme, row: dict[str, Any], number: int, key: str, factor: float, best: bool) -> None:
    """One controller with both of its 95 % intervals."""
    colour, held = theme.series[number % len(theme.series)], row["within_constraints"]
    x, y = row["energy_per_token_j"] * 1e6, row[key] * factor
    across = [abs(x - end * 1e6) for end in row["energy_per_token_j_ci"]]
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
