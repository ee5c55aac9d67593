"""Controllers: learned policies, the baselines that they are judged against, and the oracle that judges both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clone_rl.agents.heuristics import baselines
    from clone_rl.agents.policy import Policy
    from clone_rl.agents.request_oracle import OracleResult, oracle
    from clone_rl.agents.training import train
    from clone_rl.agents.tuning import Tuned, tune

__all__ = ["OracleResult", "Policy", "Tuned", "baselines", "oracle", "train", "tune"]

_HOMES = {
    "OracleResult": "clone_rl.agents.request_oracle",
    "Policy": "clone_rl.agents.policy",
    "Tuned": "clone_rl.agents.tuning",
    "baselines": "clone_rl.agents.heuristics",
    "oracle": "clone_rl.agents.request_oracle",
    "train": "clone_rl.agents.training",
    "tune": "clone_rl.agents.tuning",
}


def __getattr__(name: str) -> Any:
    """Import on first use: controllers are wanted without what trains and tunes them."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
