"""The picture of regret: what each controller spends beyond a clairvoyant, and on what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clone_rl.evaluation.theme import Theme

PARTS = (
    ("vf_regret", "V/f, given its own exits (deciding included)"),
    ("exit_regret", "exits"),
    ("causal_regret", "exits, which no causal policy can remove"),
)
"""Parts of regret, shares of the oracle's energy; the last is a part of the one before, where it is known."""


def parts_of(row: Mapping[str, Any]) -> list[tuple[str, float]]:
    """``(label, share)`` of a summary row, which add up to its regret; without parts, the whole."""
    if row.get("vf_regret") is None:
        return [("not told apart", float(row["regret"]))]
    causal = row.get("causal_regret") or 0.0
    shares = [float(row["vf_regret"]), float(row["exit_regret"]) - causal, causal]
    return [(label, share) for (name, label), share in zip(PARTS, shares, strict=True) if name != "causal_regret" or causal]


def measured(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows with regret, the least first, those that break a constraint last."""
    known = [row for row in rows if row["regret"] is not None]
    return sorted(known, key=lambda row: (not row["within_constraints"], row["regret"]))


def draw_regret(figure: Any, theme: Theme, rows: Sequence[Mapping[str, Any]]) -> None:
    """Stacked bars with the 95 % interval of the whole; pale bars break a constraint.

    Args:
        figure: Empty.
        theme: Colours.
        rows: Summary rows, of which at least one has a regret.
    """
    from matplotlib.patches import Patch

    axes, shown = figure.subplots(), measured(rows)
    colours = {label: theme.series[i] for i, (_, label) in enumerate(PARTS)} | {"not told apart": theme.series[3]}
    for at, row in enumerate(shown):
        above, below = 0.0, 0.0
        for label, share in parts_of(row):
            left = above if share >= 0 else below
            alpha = 1.0 if row["within_constraints"] else 0.35
            axes.barh(at, 100 * share, left=100 * left, color=colours[label], height=0.62, label=label, alpha=alpha)
            above, below = (above + share, below) if share >= 0 else (above, below + share)
        low, high = row["regret_ci"]
        middle = row["regret"]
        across = [[100 * max(0.0, middle - low)], [100 * max(0.0, high - middle)]]
        axes.errorbar(100 * middle, at, xerr=across, color=theme.ink, linewidth=1, capsize=3, marker="|", markersize=9)
        end = max(100 * high, 100 * above)
        axes.annotate(f"{100 * middle:.1f} %", (end, at), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9)
    names = [row["name"] if row["within_constraints"] else f"{row['name']}\n(breaks a constraint)" for row in shown]
    axes.set_yticks(range(len(shown)), names)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.axvline(0, color=theme.ink, linewidth=1)
    axes.set_xlabel("energy beyond the clairvoyant oracle on the same requests (% of the oracle's)")
    axes.grid(axis="x", color=theme.faint, linewidth=0.5)
    axes.set_axisbelow(True)
    labels = list(dict.fromkeys(label for row in shown for label, _ in parts_of(row)))
    handles = [Patch(color=colours[label]) for label in labels]
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
