"""The picture of a trace set: what leaving early costs by depth and kind of request, and how well the signal tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from clone_rl.evaluation.figure import blank
from clone_rl.evaluation.picture_file import write_picture

_MARKERS = "osD^vP*X"
_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:purple", "tab:brown", "tab:pink", "tab:olive", "tab:cyan")


def draw_traces(path: Path, found: dict[str, Any], title: str) -> None:
    """Agreement, KL and the signal's quality by exit.

    Args:
        path: PNG file to write.
        found: As ``clone_rl.evaluation.trace_summary.summarise`` returns it.
        title: First line.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = blank(12.0, 4.4)
    from matplotlib.ticker import FuncFormatter

    agreement, divergence, signal = figure.subplots(1, 3)
    layers = [row["layer"] for row in found["exits"]]
    kinds = found["exits_by_kind"]
    for axes, key in ((agreement, "agreement"), (divergence, "kl"), (signal, "auc")):
        for number, (kind, rows) in enumerate(kinds.items()):
            axes.plot(
                layers, [row[key] for row in rows], color=_COLOURS[number % len(_COLOURS)], linewidth=1, markersize=4,
                marker=_MARKERS[number % len(_MARKERS)], label=kind,
            )  # fmt: skip
        if len(kinds) > 1:
            axes.plot(layers, [row[key] for row in found["exits"]], color="black", linewidth=2, label="all tokens")
        axes.set_xticks(layers[:: 1 if len(layers) <= 12 else 4])
        axes.set_xlabel("exit after decoder layer")
        axes.grid(alpha=0.3)
    agreement.set_ylabel("top token as at full depth (share of tokens)")
    agreement.set_ylim(top=1.01)
    divergence.set_ylabel("KL(full depth || exit) (nats per token)")
    divergence.set_yscale("log")
    divergence.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    signal.set_ylabel("exit signal: area under the ROC curve")
    signal.axhline(0.5, color="0.4", linestyle="--", linewidth=1)
    signal.annotate("chance", (layers[0], 0.5), xytext=(0, 3), textcoords="offset points", fontsize=8, color="0.4")
    low = min((row["auc"] for rows in kinds.values() for row in rows if np.isfinite(row["auc"])), default=0.5)
    signal.set_ylim(min(0.45, low - 0.05), 1.01)
    handles, labels = agreement.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=9, frameon=False, fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    write_picture(path, figure)
