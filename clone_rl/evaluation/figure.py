"""The picture of one response: voltage by layer and token, the exits, and when each token came against when it was due."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clone_rl.errors import MissingExtraError
from clone_rl.evaluation.picture_file import write_picture


def blank(width_in: float, height_in: float) -> Any:
    """An empty figure that needs no display.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("pictures need matplotlib", "pip install 'clone-rl[plot]'") from None
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw_response(
    path: Path,
    points: NDArray[np.int64],
    voltages_v: NDArray[np.float64],
    emitted_s: NDArray[np.float64],
    due_s: NDArray[np.float64],
    title: str,
) -> None:
    """Write a PNG.

    Args:
        path: File to write.
        points: (tokens, layers) operating point of each layer, -1 where it was skipped.
        voltages_v: (points,) voltage of each operating point.
        emitted_s: (tokens,) when each token left.
        due_s: (tokens,) when each token was due.
        title: First line.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    tokens, layers = points.shape
    volts = np.where(points >= 0, voltages_v[np.maximum(points, 0)], np.nan)
    figure = blank(10, 5.6)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.6))

    image = top.imshow(
        volts.T, origin="lower", aspect="auto", cmap="viridis", vmin=voltages_v[0], vmax=voltages_v[-1],
        interpolation="nearest", extent=(-0.5, tokens - 0.5, 0.5, layers + 0.5),
    )  # fmt: skip
    top.set_facecolor("0.93")
    depth = (points >= 0).sum(1)
    left = depth < layers
    top.plot(np.flatnonzero(left), depth[left] + 0.5, linestyle="", marker="v", color="crimson", markersize=5, label="exit")
    if left.any():
        top.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2, frameon=False)
    top.set_ylabel("decoder layer")
    top.set_yticks(range(1, layers + 1, 1 if layers <= 12 else 4))
    top.set_title(title, fontsize=10, loc="left")
    bar: Any = figure.colorbar(image, ax=top, pad=0.01)
    bar.set_label("supply voltage (V)")

    slack_ms = (due_s - emitted_s) * 1e3
    late = slack_ms < 0
    index = np.arange(tokens)
    bottom.bar(index[~late], slack_ms[~late], color="0.55", width=0.8, label="early")
    bottom.bar(index[late], slack_ms[late], color="crimson", width=0.8, label="late")
    bottom.axhline(0, color="black", linewidth=1)
    bottom.annotate(
        "deadline", (tokens - 0.5, 0), xytext=(4, -3), textcoords="offset points", annotation_clip=False, fontsize=9
    )
    bottom.set_ylabel("ms before due")
    bottom.set_xlabel("token of the response (0: prefill)")
    bottom.set_xlim(-0.5, tokens - 0.5)
    write_picture(path, figure)
