"""Learning curves of a training run: what TensorBoard's event files hold, and their picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clone_rl.errors import BadFileError, MissingExtraError
from clone_rl.evaluation.theme import Theme

PANELS = (
    ("energy_per_token_j", "energy per token (uJ)", 1e6, ""),
    ("miss_rate", "late tokens (%)", 100.0, "max_miss"),
    ("disagreement", "differs from full depth (%)", 100.0, "max_disagree"),
    ("dnll", "dNLL (nats per token)", 1.0, "max_dnll"),
    ("mean_depth", "mean depth (layers)", 1.0, ""),
    ("", "multipliers of the limits", 1.0, ""),
)
"""Scalar below ``control/`` and ``best/``, label, factor, limit of the configuration."""

_FEWEST, _CLIFF = 4, 4.0
"""Points that a line has before its later half counts as settled; how many times its range all points span where it is cut."""


@dataclass(frozen=True)
class Curves:
    """Scalars of a run.

    Attributes:
        scalars: By tag: (N,) decisions and (N,) values.
    """

    scalars: Mapping[str, tuple[NDArray[np.int64], NDArray[np.float64]]]


def event_folder(run: Path) -> Path | None:
    """Where a run folder keeps its event files; None where there are none."""
    found = sorted(run.glob("**/events.out.tfevents.*"))
    return found[0].parent if found else None


def read_curves(folder: Path) -> Curves:
    """Read event files; what a killed run wrote and a resumed one wrote again counts once.

    Files are taken in the order in which they were begun, whatever their names: a run that begins at a step takes the place of
    what those before it wrote from there on.

    Raises:
        MissingExtraError: TensorBoard is not installed.
        BadFileError: The files hold no scalars, or cannot be read.
    """
    try:
        import tensorboard  # type: ignore[import-untyped]  # noqa: F401
    except ImportError:
        raise MissingExtraError("learning curves need TensorBoard", "pip install 'clone-rl[train]'") from None
    points: dict[str, dict[int, float]] = {}
    try:
        files = [_events(path) for path in folder.glob("events.out.tfevents.*")]
        for events in sorted((one for one in files if one), key=lambda one: one[0].wall_time):
            _add(points, events)
    except Exception as error:  # whatever a damaged file does to its reader
        raise BadFileError(f"cannot read the event files in {folder}: {error!r}", "remove what is damaged") from None
    if not any(points.values()):
        raise BadFileError(f"the event files in {folder} hold no scalars", "let the training come to its first update")
    return Curves(
        {
            tag: (np.array(sorted(own)), np.array([own[step] for step in sorted(own)], np.float64))
            for tag, own in points.items()
            if own
        }
    )


def _events(path: Path) -> list[Any]:
    """All events of a file, as they were written."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader  # type: ignore[import-untyped]

    return list(EventFileLoader(str(path)).Load())


def _add(points: dict[str, dict[int, float]], events: list[Any]) -> None:
    """Add the scalars of a file to those of earlier ones, by tag and step."""
    from tensorboard.compat.proto.event_pb2 import SessionLog  # type: ignore[import-untyped]
    from tensorboard.util.tensor_util import make_ndarray  # type: ignore[import-untyped]

    for event in events:
        if event.HasField("session_log") and event.session_log.status == SessionLog.START:
            for own in points.values():
                for step in [step for step in own if step >= event.step]:
                    del own[step]
        for value in event.summary.value:
            if value.metadata.plugin_data.plugin_name == "scalars":
                points.setdefault(value.tag, {})[event.step] = float(make_ndarray(value.tensor))


def settled(lines: Sequence[NDArray[np.float64]], also: Sequence[float] = ()) -> tuple[float, float] | None:
    """Limits for the later halves of lines, where a cliff or spike before those would flatten them; else None.

    Args:
        lines: Each (N,), of any length; what is not finite is left out.
        also: Values that are to be seen as well.
    """
    finite = [own for line in lines if (own := line[np.isfinite(line)]).size]
    if max((own.size for own in finite), default=0) < _FEWEST:
        return None
    late = np.concatenate([*(own[own.size // 2 :] for own in finite), np.asarray(also)])
    low, high = float(late.min()), float(late.max())
    span = max(high - low, 0.02 * max(abs(low), abs(high)), 1e-9)
    whole = np.concatenate([*finite, late])
    if whole.max() - whole.min() <= _CLIFF * span:
        return None
    return low - 0.3 * span, high + 0.3 * span


def _scale(axes: Any, also: Sequence[float]) -> None:
    """Keep an early cliff from flattening what follows; what is cut off then is marked at the frame and told above it."""
    found = settled([np.asarray(line.get_ydata(), np.float64) for line in axes.lines], also)
    if found is None:
        return
    points = [(x, y, line.get_color()) for line in axes.lines for x, y in line.get_xydata() if np.isfinite(y)]
    ends = (
        (max(points, key=lambda point: point[1]), 1, "^", "up to"),
        (min(points, key=lambda point: point[1]), 0, "v", "down to"),
    )
    cut = [end for end in ends if not found[0] <= end[0][1] <= found[1]]
    axes.set_ylim(found)
    for (x, _, colour), at, marker, _ in cut:
        across = axes.get_xaxis_transform()
        axes.plot(x, at, marker=marker, color=colour, markersize=7, linestyle="", transform=across, clip_on=False, zorder=4)
    told = ", ".join(f"{way} {y:.3g} at {x:.2g} M" for (x, y, _), _, _, way in cut)
    axes.set_title(f"not shown: {told}", loc="left", fontsize=8)


def draw_curves(figure: Any, theme: Theme, curves: Curves, limits: Mapping[str, float]) -> None:
    """Six panels over decisions trained: figures with their limits, and the multipliers.

    Args:
        figure: Empty.
        theme: Colours.
        curves: What to draw.
        limits: ``max_miss``, ``max_disagree`` and ``max_dnll``, where they are known.
    """
    panels = figure.subplots(2, 3, sharex=True)
    for axes, (name, label, factor, limit) in zip(panels.flat, PANELS, strict=True):
        tags = {f"control/{name}": "training requests", f"best/{name}": "best policy so far"}
        if not name:
            tags = {tag: tag.split("/")[-1] for tag in sorted(curves.scalars) if tag.startswith("multiplier/")}
        for number, (tag, title) in enumerate(tags.items()):
            if tag in curves.scalars:
                steps, values = curves.scalars[tag]
                # Every point is shown where there are few.
                marker = "." if len(steps) < 40 else ""
                axes.plot(
                    steps / 1e6, values * factor, color=theme.series[number % len(theme.series)], label=title, marker=marker,
                    linewidth=1.3,
                )  # fmt: skip
        _scale(axes, [limits[limit] * factor] if limit in limits else [])
        if limit in limits:
            axes.axhline(limits[limit] * factor, color=theme.bad, linewidth=1, linestyle="--", label="limit")
        axes.set_ylabel(label)
        axes.grid(color=theme.faint, linewidth=0.5)
        axes.set_axisbelow(True)
        if not name and axes.lines:
            axes.legend(frameon=False, fontsize=8)
    for axes in panels[-1]:
        axes.set_xlabel("layer decisions trained (millions)")
    named = {label: line for axes in panels.flat[:2] for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
