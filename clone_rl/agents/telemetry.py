"""What a training run writes to TensorBoard: figures, multipliers, speed, and its hyperparameters."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.logger import HParam, Logger, TensorBoardOutputFormat
from torch.utils.tensorboard.writer import SummaryWriter

from clone_rl.envs.control import Control
from clone_rl.envs.observation import OBSERVATION
from clone_rl.files import writing

METRICS = (
    "best/energy_per_token_j",
    "best/excess",
    "control/energy_per_token_j",
    "control/miss_rate",
    "control/disagreement",
    "control/dnll",
    "control/mean_depth",
)
"""Scalars that TensorBoard shows beside the hyperparameters."""

_POINT = OBSERVATION.index("point")


class _Board(TensorBoardOutputFormat):
    """Event files in a folder; what a killed run wrote at ``first`` and later is hidden, because it comes again.

    Raises:
        WriteError: The disk is full, or there is no permission.
    """

    def __init__(self, folder: Path, first: int | None) -> None:
        self._folder, self._hook = folder, threading.excepthook
        threading.excepthook = self._unless_told
        self._is_closed = False
        with writing(folder):
            self.writer = SummaryWriter(log_dir=str(folder), purge_step=first)

    def write(self, *args: Any, **options: Any) -> None:
        """As SB3's logger calls it."""
        with writing(self._folder):
            super().write(*args, **options)

    def close(self) -> None:
        """Finish the file."""
        try:
            with writing(self._folder):
                super().close()
        finally:
            self._is_closed = True
            threading.excepthook = self._hook

    def _unless_told(self, failed: Any) -> None:
        """TensorBoard's thread hands its error to the next ``write``; a traceback beside it helps nobody."""
        if not (isinstance(failed.exc_value, OSError) and type(failed.thread).__module__.startswith("tensorboard.")):
            self._hook(failed)


def board(folder: Path | None, first: int | None = None) -> Logger:
    """A logger of SB3 that writes event files.

    Args:
        folder: Where; None writes nothing.
        first: First step that is written again after a resumption; None for a new run.
    """
    return Logger(None if folder is None else str(folder), [] if folder is None else [_Board(folder, first)])


def hyperparameters(config: dict[str, Any], settings: dict[str, Any]) -> HParam:
    """The summary that TensorBoard's HPARAMS tab shows.

    Args:
        config: Fields of ``TrainConfig``.
        settings: What is fixed besides.
    """
    shown = {name: value for name, value in {**config, **settings}.items() if value is not None}
    return HParam(shown, dict.fromkeys(METRICS, 0.0))


def per_token(sums: Any) -> dict[str, float]:
    """Means per token from sums of ``figures.FIGURES`` over requests."""
    tokens = sums["tokens"]
    return {
        "energy_per_token_j": float(sums["energy_j"] / tokens),
        "miss_rate": float(sums["late"] / tokens),
        "disagreement": float(sums["disagree"] / tokens),
        "dnll": float(sums["dnll"] / tokens),
        "mean_depth": float(sums["depth"] / tokens),
        "switches_per_token": float(sums["switches"] / tokens),
    }


def mean_point(observations: NDArray[np.float32], control: Control) -> dict[str, float]:
    """Means over decisions of the operating point in force: its index, voltage and frequency.

    Args:
        observations: (..., width) that decisions were made on.
        control: Whose chip it is.
    """
    share = np.bincount(
        np.rint(observations[..., _POINT] * (control.points - 1)).astype(np.int64).ravel(), minlength=control.points
    )
    share = share / share.sum()
    points = control.emulator.points
    return {
        "mean_point": float(share @ np.arange(control.points)),
        "mean_voltage_v": float(share @ points["voltage_v"]),
        "mean_frequency_hz": float(share @ points["frequency_hz"]),
    }
