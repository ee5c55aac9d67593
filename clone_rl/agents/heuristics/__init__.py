"""The baselines, each after its source. ``clone_rl.agents.tune`` tunes them."""

from __future__ import annotations

from clone_rl.agents.heuristics.baseline import Baseline
from clone_rl.agents.heuristics.calm import Calm, CalmPaceBaseline, CalmRaceBaseline
from clone_rl.agents.heuristics.chance import Chance, ChanceBaseline
from clone_rl.agents.heuristics.edgebert import EdgeBert, EdgeBertBaseline
from clone_rl.agents.heuristics.fixed import Fixed, Performance, Powersave
from clone_rl.agents.heuristics.ondemand import Ondemand, OndemandBaseline
from clone_rl.agents.heuristics.pace import Pace, PaceBaseline, tune_pace
from clone_rl.agents.heuristics.slack import Slack, SlackBaseline
from clone_rl.agents.heuristics.static import Static, StaticBaseline, StaticPhaseBaseline
from clone_rl.agents.heuristics.voltana import Voltana, VoltanaBaseline
from clone_rl.agents.heuristics.ztt import Ztt, ZttBaseline
from clone_rl.errors import UnknownNameError

__all__ = [
    "Baseline", "Calm", "Chance", "EdgeBert", "Fixed", "Ondemand", "Pace", "Slack", "Static", "Voltana", "Ztt",
    "baselines", "find_baseline", "tune_pace",
]  # fmt: skip

_BASELINES: dict[str, Baseline] = {
    kind.name: kind()
    for kind in (
        Performance, Powersave, OndemandBaseline, StaticBaseline, StaticPhaseBaseline, VoltanaBaseline, SlackBaseline,
        PaceBaseline, EdgeBertBaseline, CalmRaceBaseline, CalmPaceBaseline, ZttBaseline, ChanceBaseline,
    )
}  # fmt: skip


def baselines() -> list[str]:
    """Names of all baselines."""
    return list(_BASELINES)


def find_baseline(name: str) -> Baseline:
    """A baseline by its name.

    Raises:
        UnknownNameError: None has it.
    """
    if name not in _BASELINES:
        raise UnknownNameError("baseline", name, _BASELINES)
    return _BASELINES[name]
