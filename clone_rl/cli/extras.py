"""The optional dependencies that a command needs, looked for before it compiles, loads or writes anything."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from clone_rl.errors import MissingExtraError

_MODULES = {
    "llm": ("torch", "transformers", "tokenizers", "safetensors"),
    "train": ("torch", "stable_baselines3", "tensorboard", "safetensors"),
    "serve": ("fastapi", "uvicorn", "prometheus_client"),
    "plot": ("matplotlib",),
    "export": ("onnx", "onnxruntime"),
}
"""What a job of each extra imports; ``optuna`` and ``tqdm`` are asked for where they are used."""

_HOMES = {
    "torch": "llm", "transformers": "llm", "tokenizers": "llm", "tqdm": "llm", "safetensors": "train",
    "stable_baselines3": "train", "tensorboard": "train", "optuna": "train", "sb3_contrib": "contrib", "matplotlib": "plot",
    "PIL": "plot", "onnx": "export", "onnxruntime": "export", "fastapi": "serve", "uvicorn": "serve",
    "prometheus_client": "serve", "zeus": "hardware",
}  # fmt: skip

_ALWAYS = {
    "demo": ("llm", "train", "plot"),
    "train": ("train",),
    "generate": ("llm",),
    "serve": ("serve", "llm"),
    "record": ("llm",),
    "probe": ("llm",),
    "pretrain": ("llm",),
    "report": ("plot",),
}

_UNTUNED = ("performance", "powersave", "calm-race")
"""Baselines without anything to search."""


def missing(name: str) -> MissingExtraError:
    """What to say where a module is not installed."""
    extra = _HOMES.get(name.partition(".")[0], "all")
    return MissingExtraError(f"this needs {name}, which is not installed", f"pip install 'clone-rl[{extra}]'")


def check_extras(options: argparse.Namespace) -> None:
    """Look for what a command will need.

    Args:
        options: As parsed.

    Raises:
        MissingExtraError: It is not installed.
    """
    for extra, module in _needed(options):
        if not _installed(module):
            command = " ".join(filter(None, (options.command, getattr(options, "action", ""))))
            raise MissingExtraError(
                f"clone-rl {command} needs {module}, which is not installed", f"pip install 'clone-rl[{extra}]'"
            )


def _needed(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """(extra, module) of everything."""
    command, action = options.command, getattr(options, "action", "")
    extras = list(_ALWAYS.get(command, ()))
    if getattr(options, "live", False):
        extras.append("llm")
    if getattr(options, "picture", "") or getattr(options, "plot", ""):
        extras.append("plot")
    if command == "export":
        yield "export", "safetensors"
        extras += ["export"] if options.to == "onnx" else []
    if (command, action) == ("study", "granularity"):
        extras.append("plot")
        yield "train", "optuna"
        extras += ["train"] if getattr(options, "ppo_steps", 0) else []
    if command == "tune" and (options.resume or not options.baselines or {*options.baselines} - {*_UNTUNED}):
        yield "train", "optuna"
    for extra in extras:
        yield from ((extra, module) for module in _MODULES[extra])
    several = command == "evaluate" or action == "unseen"
    if named := options.controllers if several else getattr(options, "controller", ""):
        from clone_rl.agents.policy import names_policy  # takes a second, which commands without a controller need not wait

        if any(map(names_policy, [named] if isinstance(named, str) else named)):
            yield "train", "safetensors"


def _installed(module: str) -> bool:
    try:
        found: Any = find_spec(module)
    except (ImportError, ValueError):
        return False
    return found is not None
