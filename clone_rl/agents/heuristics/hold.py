"""One point held for a request, a phase or a token, with a calibrated exit: the pacing rule for coarse granularities.

``Pace`` decides anew at every boundary, from the due time of the token at hand. Where the point may change only once per
request or phase, that token says little about those to come, and a rule that looks at it loses by its own short sight. This
rule looks as far as its decision lasts. ``clone-rl study granularity`` searches all three, so that a finer granularity is
never charged for a rule that cannot leave a good point alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clone_rl.agents.controller import RuleController
from clone_rl.agents.heuristics.baseline import Baseline, Parameter, Parameters, pacing_space
from clone_rl.agents.heuristics.chip_table import ChipTable, lowest_point
from clone_rl.agents.heuristics.exit_bars import exit_bars
from clone_rl.agents.heuristics.pace import LOG_ODDS, chance_of, log_odds
from clone_rl.agents.rule import rule
from clone_rl.envs.compiling import inlined
from clone_rl.envs.control import Control
from clone_rl.envs.observation import OBSERVATION
from clone_rl.envs.scenario import Limits, TargetScale
from clone_rl.envs.trace import shown_agreement, shown_kl

_AGREE, _KL = OBSERVATION.index("agree"), OBSERVATION.index("kl")
_PHASE, _LAYER = OBSERVATION.index("phase"), OBSERVATION.index("layer")
_PRESSURE, _LOWEST, _TPOT = OBSERVATION.index("pressure"), OBSERVATION.index("lowest_feasible"), OBSERVATION.index("tpot")

SPANS = ("request", "phase", "token")
"""How long a point is held."""

_REQUEST, _PHASES, _TOKEN = range(3)
_POINT, _DECODES = range(2)  # of memory


class HoldRule(NamedTuple):
    """``Hold`` with its bars as they are observed; ``token_s``, (P,), is a decoded token at full depth."""

    table: ChipTable
    token_s: NDArray[np.float64]
    span: int
    agree_bar: float
    kl_bar: float
    share: float
    rate: float
    boost: int
    floor: int


@inlined
def _sustained(self: Any, observation: Any) -> int:
    """Lowest point at which every token at full depth takes ``rate`` targets at most."""
    allowed_s, point = self.rate * observation[_TPOT] * self.table.tpot_s, 0
    while point < len(self.token_s) - 1 and self.token_s[point] > allowed_s:
        point += 1
    return point


@rule(HoldRule)
def _hold(self: Any, observation: Any, memory: Any, action: Any) -> None:
    top, first = len(self.token_s) - 1, observation[_LAYER] == 0
    decodes = observation[_PHASE] > 0
    if decodes and not first and observation[_AGREE] >= self.agree_bar and observation[_KL] <= self.kl_bar:
        action[0] = top + 1
        return
    if not decodes and first:
        point = lowest_point(self.table, 0, observation[_PRESSURE], self.share)
        if self.span == _REQUEST:
            point = max(point, _sustained(self, observation))
        memory[_POINT] = max(point, self.floor)
    elif decodes and first and self.span == _TOKEN:
        memory[_POINT] = max(int(np.rint(observation[_LOWEST] * top)) + self.boost, self.floor)
    elif decodes and first and self.span == _PHASES and memory[_DECODES] == 0:
        memory[_POINT], memory[_DECODES] = max(_sustained(self, observation), self.floor), 1
    action[0] = min(int(memory[_POINT]), top)


@dataclass(frozen=True)
class Hold(RuleController):
    """A point chosen for as long as ``span`` says, and a calibrated exit.

    Prefill: the lowest point that takes ``share`` of the time left at most. Decoding, for a token: the lowest feasible point,
    as ``Pace`` takes it at every layer. For a phase or a request: the lowest point at which tokens at full depth keep up with
    ``rate`` targets each; above 1 it counts on exits, and on what prefill saved. Of a request, the higher of both.

    Attributes:
        table: The chip.
        span: One of ``SPANS``.
        agree_bar, kl_bar: As ``Pace`` has them.
        share: Of the time left, for prefill.
        rate: Targets that a token may take; unused for tokens.
        boost: Points above the lowest feasible one; used for tokens only.
        floor: Lowest point used.
    """

    table: ChipTable
    span: str
    agree_bar: float = 2.0
    kl_bar: float = 0.0
    share: float = 0.8
    rate: float = 1.0
    boost: int = 0
    floor: int = 0
    kind: ClassVar[str] = "layer"
    probes: ClassVar[bool] = True

    @property
    def name(self) -> str:  # type: ignore[override]
        """With the span."""
        return f"hold-{self.span}"

    @property
    def scale(self) -> TargetScale:
        """That of the chip table, by which it reads targets."""
        return self.table.scale

    @property
    def macs(self) -> int:
        """One latency estimate per operating point, charged at every boundary as ``Pace`` is."""
        return len(self.table.head_s)

    @property
    def rule(self) -> HoldRule:
        """The same, compiled."""
        table = self.table
        token_s = table.layers * table.layer_s[1] + table.head_s
        span, bar, nats = SPANS.index(self.span), shown_agreement(self.agree_bar), shown_kl(self.kl_bar)
        return HoldRule(table, token_s, span, bar, nats, self.share, self.rate, self.boost, self.floor)

    def memory(self, rows: int) -> NDArray[np.float64]:
        """(rows, 2) the point, and whether decoding has one of its own."""
        return np.zeros((rows, 2))

    def describe(self) -> dict[str, Any]:
        """Its tuned settings."""
        names = ("span", "agree_bar", "kl_bar", "share", "rate", "boost", "floor")
        return {name: getattr(self, name) for name in names}


class HoldBaseline(Baseline):
    """``Hold`` with bars and pacing searched together.

    Args:
        span: One of ``SPANS``.
    """

    source = "PaceBaseline's sources, with a longer view"

    def __init__(self, span: str) -> None:
        self.span = span

    @property
    def name(self) -> str:  # type: ignore[override]
        """With the span."""
        return f"hold-{self.span}"

    def space(self, control: Control) -> dict[str, Parameter]:
        """Both bars and the pacing that the span has."""
        pacing = pacing_space(control.points)
        found = {"agree_odds": LOG_ODDS, "kl_bar": Parameter(0.003, 2.0, log=True), "share": Parameter(0.2, 1.0)}
        found["floor"] = pacing["floor"]
        if self.span == "token":
            return {**found, "boost": pacing["boost"]}
        return {**found, "rate": Parameter(0.3, 4.0, log=True)}

    def start(self, control: Control, limits: Limits, seed: int) -> dict[str, float]:  # noqa: ARG002
        """Bars read off the training traces, tokens within their targets, and no point below that of least energy."""
        agree_bar, kl_bar = exit_bars(control.traces, "train", limits)
        table = ChipTable.of(control)
        floor = int((table.power * table.layer_s[1]).argmin())
        odds, low = log_odds(agree_bar), max(kl_bar, 0.003)
        return {"agree_odds": odds, "kl_bar": low, "share": 0.8, "rate": 1.0, "boost": 0, "floor": floor}

    def fit(self, control: Control, limits: Limits, seed: int, chosen: Parameters) -> dict[str, Any]:  # noqa: ARG002
        """The bar on agreement as a probability."""
        settings = dict(chosen)
        return {"agree_bar": chance_of(settings.pop("agree_odds")), **settings}

    def make(self, control: Control, settings: Mapping[str, Any]) -> Hold:
        """From bars and pacing."""
        return Hold(ChipTable.of(control), **{"span": self.span, **settings})
