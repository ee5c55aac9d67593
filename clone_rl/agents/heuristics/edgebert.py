"""Predicted exit layer from the first layers' signal through a small table, then one V/f for the rest of the token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clone_rl.agents.controller import RuleController
from clone_rl.agents.heuristics.baseline import Baseline, Parameter, Parameters
from clone_rl.agents.heuristics.chip_table import ChipTable, lowest_point
from clone_rl.agents.heuristics.exit_bars import NO_KL_BAR, Decoded, exit_bars
from clone_rl.agents.heuristics.pace import LOG_ODDS, chance_of, log_odds
from clone_rl.agents.rule import rule
from clone_rl.envs.control import Control
from clone_rl.envs.observation import OBSERVATION
from clone_rl.envs.scenario import Limits
from clone_rl.envs.trace import shown_agreement

_PHASE, _LAYER = OBSERVATION.index("phase"), OBSERVATION.index("layer")
_AGREE, _PRESSURE = OBSERVATION.index("agree"), OBSERVATION.index("pressure")

ENTRIES = 16
"""Of the look-up table: EdgeBERT's has 16 comparators (harvard-acc/EdgeBERT, hw/cmod/Dvfs/Dvfs.h)."""

_POINT, _DEPTH = range(2)  # of memory


class EdgeBertRule(NamedTuple):
    """``EdgeBert``, compiled.

    Attributes:
        table: The chip.
        bar: On agreement, as it is observed.
        edges: (ENTRIES - 1,) ascending comparators on agreement after ``look`` layers, as it is observed.
        exits: (ENTRIES,) predicted depth.
        look: Layers that run at ``first``.
        first, share, floor: As ``EdgeBert`` has them.
    """

    table: ChipTable
    bar: float
    edges: NDArray[np.float64]
    exits: NDArray[np.int64]
    look: int
    first: int
    share: float
    floor: int


@rule(EdgeBertRule)
def _edgebert(self: Any, observation: Any, memory: Any, action: Any) -> None:
    table = self.table
    layers, top = table.layers, len(table.head_s) - 1
    layer, pressure = int(np.rint(observation[_LAYER] * layers)), observation[_PRESSURE]
    if observation[_PHASE] == 0:
        action[0] = max(self.floor, lowest_point(table, 0, pressure, self.share))
        return
    if layer < self.look:
        action[0] = self.first
        return
    if layer == self.look:
        entry = 0
        while entry < len(self.edges) and observation[_AGREE] >= self.edges[entry]:
            entry += 1
        depth = self.exits[entry]
        head = table.head_s[top] / table.layer_s[1, top]  # in layers
        needed = pressure * (depth - layer + head) / (layers - layer + head)
        memory[_DEPTH], memory[_POINT] = depth, max(self.floor, lowest_point(table, 1, needed, self.share))
    exits = layer >= memory[_DEPTH] or observation[_AGREE] >= self.bar
    action[0] = top + 1 if exits else int(memory[_POINT])


@dataclass(frozen=True)
class EdgeBert(RuleController):
    """EdgeBERT's latency-aware inference (arXiv 2011.14203), once per token instead of once per sentence.

    The first layers run at a nominal point. Their signal predicts the exit layer through a small table; the work left up to
    there gives the lowest V/f that meets the due time, which holds for the rest of the token. The token leaves where the
    signal passes its bar, or at the predicted layer whatever the signal says there. The signal is the probe's agreement where
    EdgeBERT has entropy. Prefill has no exits: it takes the lowest feasible point.

    Attributes:
        table: The chip.
        agree_bar: Exit where the probe's probability of agreement is at least this.
        edges: Comparators of the table, ascending, on agreement as it is observed.
        exits: Predicted depth of each of its entries, one more.
        look: Layers before the prediction.
        first: Their operating point.
        margin: Share of the time left that is kept in reserve.
        floor: Lowest point used after the prediction.
        name: Shown in results.
    """

    table: ChipTable
    agree_bar: float
    edges: tuple[float, ...]
    exits: tuple[int, ...]
    look: int
    first: int
    margin: float = 0.0
    floor: int = 0
    name: str = "edgebert"
    kind: ClassVar[str] = "layer"
    probes: ClassVar[bool] = True

    @property
    def macs(self) -> int:
        """Comparators and a latency estimate per operating point, once per token; spread over its layers."""
        return -(-(len(self.exits) + len(self.table.head_s)) // self.table.layers)

    @property
    def rule(self) -> EdgeBertRule:
        """The same, compiled."""
        edges, exits = np.array(self.edges, np.float64), np.array(self.exits, np.int64)
        bar = shown_agreement(self.agree_bar)
        return EdgeBertRule(self.table, bar, edges, exits, self.look, self.first, 1.0 - self.margin, self.floor)

    def memory(self, rows: int) -> NDArray[np.float64]:
        """(rows, 2) point and predicted depth of the token."""
        return np.zeros((rows, 2))

    def describe(self) -> dict[str, Any]:
        """The table and its constants."""
        return {
            "agree_bar": self.agree_bar,
            "edges": list(self.edges),
            "exits": list(self.exits),
            "look": self.look,
            "first": self.first,
            "margin": self.margin,
            "floor": self.floor,
        }


def exit_table(decoded: Decoded, look: int, bar: float, coverage: float) -> tuple[list[float], list[int]]:
    """The look-up table: comparators at quantiles of the signal after ``look`` layers, and each entry's depth.

    Args:
        decoded: Tokens to fit it to.
        look: Layers before the prediction.
        bar: On agreement, as it is observed.
        coverage: The predicted depth is the least at which this share of an entry's tokens has passed the bar.

    Returns:
        ``(edges, exits)``, of ENTRIES - 1 and ENTRIES.
    """
    signal, depth = decoded.shown[:, look - 1], np.maximum(decoded.first(decoded.shown >= bar), look)
    edges = np.quantile(signal, np.arange(1, ENTRIES) / ENTRIES)
    entry = np.searchsorted(edges, signal, side="right")
    exits = []
    for number in range(ENTRIES):
        depths = np.sort(depth[entry == number])
        exits.append(int(depths[max(0, int(np.ceil(coverage * len(depths))) - 1)]) if len(depths) else decoded.layers)
    return [float(edge) for edge in edges], exits


class EdgeBertBaseline(Baseline):
    """``EdgeBert`` with its table fitted to the training traces."""

    name = "edgebert"
    source = "EdgeBERT (arXiv 2011.14203)"

    def space(self, control: Control) -> dict[str, Parameter]:
        """Bar, where to look, how sure the table is, and the points."""
        point = Parameter(0, control.points - 1, whole=True)
        return {
            "agree_odds": LOG_ODDS,
            "coverage": Parameter(0.5, 1.0),
            "look": Parameter(1, min(3, control.traces.layers - 1), whole=True),
            "first": point,
            "margin": Parameter(0.0, 0.6),
            "floor": point,
        }

    def start(self, control: Control, limits: Limits, seed: int) -> dict[str, float]:  # noqa: ARG002
        """The bar that holds the limits, full coverage, and the first layer at the top point, the nominal one."""
        bar, _ = exit_bars(control.traces, "train", limits, NO_KL_BAR)
        odds, top = log_odds(bar), control.points - 1
        return {"agree_odds": odds, "coverage": 1.0, "look": 1, "first": top, "margin": 0.1, "floor": 0}

    def fit(self, control: Control, limits: Limits, seed: int, chosen: Parameters) -> dict[str, Any]:  # noqa: ARG002
        """Fit the table."""
        settings: dict[str, Any] = dict(chosen)
        settings["agree_bar"] = chance_of(settings.pop("agree_odds"))
        bar = shown_agreement(settings["agree_bar"])
        decoded = Decoded.of(control.traces, "train")
        edges, exits = exit_table(decoded, settings["look"], bar, settings.pop("coverage"))
        return {**settings, "edges": edges, "exits": exits}

    def make(self, control: Control, settings: Mapping[str, Any]) -> EdgeBert:
        """From the table and its constants."""
        table = {"edges": tuple(settings["edges"]), "exits": tuple(settings["exits"])}
        return EdgeBert(ChipTable.of(control), **{**settings, **table})
