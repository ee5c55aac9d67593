"""Language models under control: loading, stepping layer by layer, exit probes, traces, live generation, pretraining."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clone_rl.errors import UnsupportedModelError as Unsupported
    from clone_rl.llm.confidence import HeadConfidence
    from clone_rl.llm.generation import generate
    from clone_rl.llm.model import LanguageModel, load_model
    from clone_rl.llm.source import ModelSource
    from clone_rl.llm.stepper import Stepper

__all__ = ["HeadConfidence", "LanguageModel", "ModelSource", "Stepper", "Unsupported", "generate", "load_model"]

_HOMES = {
    "HeadConfidence": "clone_rl.llm.confidence",
    "LanguageModel": "clone_rl.llm.model",
    "ModelSource": "clone_rl.llm.source",
    "Stepper": "clone_rl.llm.stepper",
    "generate": "clone_rl.llm.generation",
    "load_model": "clone_rl.llm.model",
}


def __getattr__(name: str) -> Any:
    """Import on first use: torch takes seconds, and ``clone_rl.llm.prompts`` does without it."""
    from importlib import import_module

    if name == "Unsupported":
        from clone_rl.errors import UnsupportedModelError

        return UnsupportedModelError
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
