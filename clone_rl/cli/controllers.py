"""The controllers that a command's options name."""

from __future__ import annotations

import argparse
from pathlib import Path

from clone_rl.agents.controller import Controller
from clone_rl.agents.labels import told_apart
from clone_rl.agents.registry import BASELINES, QUICK_TRIALS, controller
from clone_rl.agents.tuned import read_tuned
from clone_rl.envs.control import Control
from clone_rl.envs.scenario import Limits

__all__ = ["BASELINES", "QUICK_TRIALS", "compared", "make_controller"]

make_controller = controller
"""Its former name."""


def compared(options: argparse.Namespace, control: Control) -> tuple[Limits, list[Controller]]:
    """The limits and the controllers that a comparison's options name, told apart by their names.

    Raises:
        BadValueError, BadFileError, UnknownNameError, PolicyFileError, MissingExtraError: As ``make_controller``.
    """
    limits = control.scenario.limits.but(options.max_miss, options.max_disagree, options.max_dnll)
    tuned = Path(options.tuned) if options.tuned else None
    if tuned:
        read_tuned(tuned)  # whoever names one means it to be there, whichever controllers are asked for
    found = [controller(name, control, limits, tuned=tuned) for name in options.controllers]
    return limits, told_apart(found, options.controllers)
