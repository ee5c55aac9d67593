"""Controllers in a host's inference loop: the host asks, the controller decides.

Imports neither torch nor Stable-Baselines3; what sits in a loop of ``transformers`` is imported when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clone_rl.agents.budgeted import budgeted
from clone_rl.agents.controller import Decision, LayerCost
from clone_rl.agents.error_budget import ErrorBudget
from clone_rl.envs.shield_tables import Shield
from clone_rl.runtime.actuator import Actuator, EmulatedActuator
from clone_rl.runtime.controller import RuntimeController
from clone_rl.runtime.host import Host, emulated_host, measured_host
from clone_rl.runtime.request import RuntimeRequest
from clone_rl.runtime.shield import emulated_shield, measured_shield, within_limits

if TYPE_CHECKING:
    from clone_rl.runtime.decoding import ControlledDecoding as ControlledDecoding
    from clone_rl.runtime.decoding import ControlledOutput as ControlledOutput
    from clone_rl.runtime.text_generation import pipeline as pipeline

# What imports torch stays out, so that a star imports none.
__all__ = [
    "Actuator",
    "Decision",
    "EmulatedActuator",
    "ErrorBudget",
    "Host",
    "LayerCost",
    "RuntimeController",
    "RuntimeRequest",
    "Shield",
    "budgeted",
    "emulated_host",
    "emulated_shield",
    "measured_host",
    "measured_shield",
    "within_limits",
]

_HOMES = {
    "ControlledDecoding": "clone_rl.runtime.decoding",
    "ControlledOutput": "clone_rl.runtime.decoding",
    "pipeline": "clone_rl.runtime.text_generation",
}


def __getattr__(name: str) -> Any:
    """Import on first use.

    Raises:
        MissingExtraError: Torch or transformers is not installed.
    """
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    from clone_rl.errors import MissingExtraError

    try:
        return getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("clone_rl"):
            raise
        raise MissingExtraError(f"a model in the loop needs {error.name}", "pip install 'clone-rl[llm]'") from None
