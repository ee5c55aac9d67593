"""The picture of the study of granularity: energy per token against switching time, a panel for each chip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clone_rl.evaluation.chip_figure import spread
from clone_rl.evaluation.figure import blank
from clone_rl.evaluation.picture_file import write_picture
from clone_rl.hw_emulator.switching import time_name

# Okabe and Ito's colours, told apart by everybody; lines differ in their markers as well.
_STYLES = {
    "request": ("#000000", "s"),
    "phase": ("#D55E00", "^"),
    "token": ("#009E73", "o"),
    "group": ("#CC79A7", "v"),
    "layer": ("#0072B2", "D"),
}
_ROLES: tuple[tuple[str, str, Any, float], ...] = (
    ("heuristic", "best tuned heuristic", "-", 1.8),
    ("policy", "PPO", (0, (5, 1, 1, 1)), 1.5),
    ("oracle-points", "clairvoyant points, exits of calibrated bars", "--", 1.2),
    ("oracle", "clairvoyant points and exits", ":", 1.4),
)
_UNITS = ((1.0, "J"), (1e-3, "mJ"), (1e-6, "uJ"), (1e-9, "nJ"))


def _values(rows: Sequence[Mapping[str, Any]], granularity: str, role: str, times: Sequence[float]) -> Any:
    """(times,) joules per token, NaN where there is no row."""
    found = {
        row["switch_s"]: row["energy_per_token_j"]
        for row in rows
        if (row["granularity"], row["role"]) == (granularity, role) and row["energy_per_token_j"] is not None
    }
    return np.array([found.get(seconds, np.nan) for seconds in times])


def draw_granularity(path: Path, found: Mapping[str, Any]) -> None:
    """Write a PNG.

    Above, energy per token on the requests that the oracle solved; below, of the best heuristic on the whole test split.

    Args:
        path: File to write.
        found: As ``granularity.run_study`` returns it.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    cells = found["cells"]
    chips = list(dict.fromkeys(row["chip"] for row in cells))
    figure = blank(1.8 + 4.6 * len(chips), 9.0)
    axes = figure.subplots(2, len(chips), squeeze=False, height_ratios=(1.5, 1))
    whole = [{**row, **row["test_split"]} for row in cells if "test_split" in row]
    for column, chip in enumerate(chips):
        of_chip = [row for row in cells if row["chip"] == chip]
        _panel(axes[0, column], of_chip, _ROLES)
        axes[0, column].set_title(Path(chip).stem, loc="left", fontsize=11)
        _panel(axes[1, column], [row for row in whole if row["chip"] == chip], _ROLES[:2])
    for row, text in enumerate(("the oracle's requests", "all test requests")):
        axes[row, 0].set_ylabel(f"{text}\n{axes[row, 0].get_ylabel()}")
    from matplotlib.lines import Line2D

    roles = {row["role"] for row in cells}
    handles = [
        Line2D([], [], color="0.3", linestyle=dashes, linewidth=width, label=label)
        for role, label, dashes, width in _ROLES
        if role in roles
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2 * len(chips) - 1, frameon=False, fontsize=9)
    study = found["study"]
    figure.suptitle(
        f"Energy by how often V/f may change and how long a change takes\nscenario {study['scenario']}, "
        f"{study['requests']} requests for the oracles, {study['trials']} trials for each heuristic",
        x=0.01, ha="left", fontsize=11,
    )  # fmt: skip
    write_picture(path, figure)


def _panel(axes: Any, rows: Sequence[Mapping[str, Any]], roles: Sequence[Any]) -> None:
    """Lines by granularity and role, with the granularity's name at the end of its heuristic's."""
    times = sorted({row["switch_s"] for row in rows})
    at, names = np.arange(len(times)), [name for name in _STYLES if name in {row["granularity"] for row in rows}]
    largest = max((row["energy_per_token_j"] for row in rows if row["energy_per_token_j"] is not None), default=1.0)
    factor, unit = next(((f, u) for f, u in _UNITS if largest >= f), _UNITS[-1])
    ends: dict[str, tuple[int, float]] = {}
    for name in names:
        colour, marker = _STYLES[name]
        for role, _, dashes, width in roles:
            joules = _values(rows, name, role, times) / factor
            if np.isfinite(joules).any():
                small = {"markersize": 5 if role == "heuristic" else 3}
                axes.plot(at, joules, color=colour, linestyle=dashes, linewidth=width, marker=marker, **small)
                if role == "heuristic":
                    last = int(np.flatnonzero(np.isfinite(joules))[-1])
                    ends[name] = (last, float(joules[last]))
    axes.set_xticks(at, [time_name(seconds) if seconds else "0" for seconds in times])
    axes.set_xlim(-0.25, max(0.5, len(times) - 1 + 0.95))
    axes.set_xlabel("time of a change of operating point")
    axes.set_ylabel(f"energy per token ({unit})")
    axes.grid(alpha=0.25)
    axes.margins(y=0.1)
    low, high = axes.get_ylim()
    ordered = sorted(ends, key=lambda name: ends[name][1])
    places = spread(np.array([(ends[name][1] - low) / (high - low) for name in ordered]), 0.055)
    for name, place in zip(ordered, places, strict=True):
        colour, beside = _STYLES[name][0], (at[-1] + 0.25, low + (0.03 + 0.92 * place) * (high - low))
        axes.annotate(
            name, ends[name], xytext=beside, fontsize=9, color=colour, va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkB": 3},
        )  # fmt: skip
