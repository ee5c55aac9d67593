"""clone-rl: learned per-layer voltage, frequency and early-exit control of LLM inference on emulated edge chips."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clone_rl.envs import register as _register
from clone_rl.version import __version__

if TYPE_CHECKING:
    from clone_rl.runtime import Actuator, RuntimeController

__all__ = ["Actuator", "RuntimeController", "__version__"]

_register()


def __getattr__(name: str) -> Any:
    """Import what controls a host's loop on first use: it compiles, and environments do without it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from clone_rl import runtime

    return getattr(runtime, name)
