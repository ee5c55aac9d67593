"""Clocks of NVIDIA GPUs through NVML."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable
from typing import Any

from clone_rl.errors import BadValueError
from clone_rl.runtime import zeus
from clone_rl.runtime.actuator import check_point
from clone_rl.runtime.actuators.closing import Closing
from clone_rl.runtime.actuators.points import spread

_LOG = logging.getLogger(__name__)
_HZ_PER_MHZ = 10**6


class NvmlActuator(Closing):
    """Locks the clock of a GPU to the frequency of an operating point.

    NVML does not tell which lock was there before: ``close``, the end of a ``with`` block and that of Python take away
    any. Nor does it tell what it granted.

    Args:
        index: CUDA index of the GPU.
        points: Operating points of the policy.
        dry_run: Only say what would be locked.
        log: Told of every lock that a dry run leaves out; None: the log of this module, at level INFO.

    Attributes:
        points: Operating points.
        frequencies_hz: (points,) frequency of each, spread over those of the GPU at its fastest memory clock.
        operating_point: The current one; None before the first and where the last one failed.
        changes: How often it changed.

    Raises:
        BadValueError: There is no such GPU.
        DeviceError: No driver, or a GPU without such clocks.
        MissingExtraError: zeus is not installed.
    """

    def __init__(self, index: int, points: int, dry_run: bool = False, log: Callable[[str], None] | None = None) -> None:
        self.index, self.points, self.dry_run = index, points, dry_run
        self._log = log or _LOG.info
        self._gpu = zeus.gpu(index)
        with zeus.explaining(f"read the clocks of GPU {index}"):
            memory_mhz = max(self._gpu.get_supported_memory_clocks())
            clocks_mhz = self._gpu.get_supported_graphics_clocks(memory_mhz)
        self.frequencies_hz = spread([mhz * _HZ_PER_MHZ for mhz in clocks_mhz], points)
        self.operating_point: int | None = None
        self.changes = 0
        self._locked: list[int] = []
        self._restore = weakref.finalize(self, _reset, self._gpu, index, self._locked, os.getpid())

    def set(self, operating_point: int) -> None:
        """Lock the clock to the frequency of this point; does nothing where it is locked there already.

        Raises:
            BadValueError: There is no such point, or the actuator is closed.
            DeviceError: The driver refuses.
        """
        check_point(operating_point, self.points)
        if not self._restore.alive:
            raise BadValueError(f"the actuator of GPU {self.index} is closed", "make another")
        if operating_point == self.operating_point:
            return
        self.operating_point = None
        mhz = self.frequencies_hz[operating_point] // _HZ_PER_MHZ
        if self.dry_run:
            self._log(f"would lock the clock of GPU {self.index} to {mhz} MHz")
        else:
            with zeus.explaining(f"lock the clock of GPU {self.index} to {mhz} MHz"):
                self._gpu.set_gpu_locked_clocks(mhz, mhz)
            self._locked[:] = [mhz]
        self.operating_point = operating_point
        self.changes += 1

    def close(self) -> None:
        """Unlock the clock; harmless when repeated.

        Raises:
            DeviceError: The driver refuses.
        """
        self._restore()


def _reset(gpu: Any, index: int, locked: list[int], owner: int) -> None:
    """Unlock where this process locked."""
    if locked and os.getpid() == owner:
        with zeus.explaining(f"unlock the clock of GPU {index}"):
            gpu.reset_gpu_locked_clocks()
