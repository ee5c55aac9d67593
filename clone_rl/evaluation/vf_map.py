"""Where a controller runs which layer: shares of operating points by layer, and their picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clone_rl.agents.controller import RuleController
from clone_rl.agents.own import asked
from clone_rl.agents.rollout import charged_for
from clone_rl.envs.rows import Rows
from clone_rl.evaluation.regret import spread
from clone_rl.evaluation.replay import Group, replayed
from clone_rl.evaluation.theme import Theme

MOST_REQUESTS = 40
COLUMNS = 3


@dataclass(frozen=True)
class VfMap:
    """One controller.

    Attributes:
        name: Of the controller.
        shares: (P + 1, L) share of decoded tokens whose layer ran at each point; last, of those that had left before it.
        voltages_v, frequencies_hz: (P,) of the operating points.
        requests: How many it is of.
    """

    name: str
    shares: NDArray[np.float64]
    voltages_v: NDArray[np.float64]
    frequencies_hz: NDArray[np.float64]
    requests: int


def vf_map(group: Group, most: int = MOST_REQUESTS) -> VfMap | None:
    """Run some of a group's requests again and watch the operating points; None of controllers that decide per token.

    Args:
        group: Rows of one controller.
        most: Requests at most, evenly spread.
    """
    controller = group.controller
    if controller.kind != "layer":
        return None
    chosen = [group.rows[i][1] for i in spread(len(group.rows), most)]
    documents, keys = (np.array([row[name] for row in chosen]) for name in ("document", "seed"))
    own = charged_for(group.control, controller, chosen[0]["split"])
    layers, points = own.traces.layers, own.points
    rows = Rows(own.world, len(chosen), len(own.heads))
    observation = rows.reset(keys, np.zeros(len(chosen), np.int64), documents)
    memory = (controller.memory(len(chosen)),) if isinstance(controller, RuleController) else ()
    replayed(group)  # settings that were altered are told here
    counts = np.zeros((points + 1, layers))
    while not (rows.state["done"] == 1).all():
        token, layer, done = (rows.state[name].copy() for name in ("token", "layer", "done"))
        observation = rows.step(asked(controller, own, observation, *memory)).observation
        decoded = (done == 0) & (token > 0)
        left = decoded & (rows.state["token"] > token) & (rows.state["left"] < layers)
        ran = decoded & ~left
        np.add.at(counts, (rows.state["point"][ran], layer[ran]), 1.0)
        for first in layer[left]:
            counts[points, first:] += 1.0
    at = own.emulator.points
    shares = counts / np.maximum(1.0, counts.sum(0))
    return VfMap(controller.name, shares, np.array(at["voltage_v"]), np.array(at["frequency_hz"]), len(chosen))


def draw_vf_maps(figure: Any, theme: Theme, maps: Sequence[VfMap]) -> None:
    """One panel for each controller; the colour is the share of decoded tokens.

    Args:
        figure: Empty.
        theme: Colours.
        maps: Of controllers on one chip.
    """
    from matplotlib.colors import LinearSegmentedColormap

    height, width = -(-len(maps) // COLUMNS), min(COLUMNS, len(maps))
    panels = figure.subplots(height, width, sharex=True, sharey=True, squeeze=False)
    shades = LinearSegmentedColormap.from_list("shares", [theme.paper, theme.series[0]])
    image = None
    for axes, one in zip(panels.flat, maps, strict=False):
        points, layers = len(one.voltages_v), one.shares.shape[1]
        # Points from the lowest up, and those who have left on top.
        image = axes.imshow(
            one.shares, origin="lower", aspect="auto", cmap=shades, vmin=0, vmax=1, interpolation="nearest",
            extent=(0.5, layers + 0.5, -0.5, points + 0.5),
        )  # fmt: skip
        axes.axhline(points - 0.5, color=theme.ink, linewidth=0.8)
        axes.set_title(one.name, fontsize=10, loc="left")
        axes.set_xticks(range(1, layers + 1, 1 if layers <= 12 else 4))
        names = [f"{v:.2f} V, {f / 1e6:g} MHz" for v, f in zip(one.voltages_v, one.frequencies_hz, strict=True)]
        axes.set_yticks(range(points + 1), [*names, "left before"], fontsize=8)
    for axes in list(panels.flat)[len(maps) :]:
        axes.set_visible(False)
    for axes in panels[-1]:
        axes.set_xlabel("decoder layer")
    for axes in list(panels.flat)[len(maps) - width : len(maps)]:
        axes.tick_params(labelbottom=True)
    bar: Any = figure.colorbar(image, ax=panels, pad=0.01)
    bar.set_label("share of decoded tokens")
