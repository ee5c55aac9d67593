"""clone-rl: learned per-layer voltage, frequency and early-exit control of LLM inference on emulated edge chips."""

from __future__ import annotations

from clone_rl.envs import register as _register
from clone_rl.version import __version__

__all__ = ["__version__"]

_register()
