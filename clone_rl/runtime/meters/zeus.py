"""Energy counters of GPUs and systems on chip that zeus reads."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from clone_rl.errors import DeviceError
from clone_rl.runtime import zeus

_MJ_PER_J = 1e3


class _CounterMeter:
    """A meter of a counter that the device itself keeps.

    Args:
        what: Named in errors.
        counter_mj: Reads it, millijoules.
    """

    def __init__(self, what: str, counter_mj: Callable[[], float]) -> None:
        self._what, self._counter_mj = what, counter_mj
        self._last_j = 0.0
        self._start_mj = self._read_mj()
        self._closed = False

    def _read_mj(self) -> float:
        with zeus.explaining(f"read the energy of {self._what}"):
            return self._counter_mj()

    def energy_j(self) -> float:
        """Energy since the meter was made; since it was closed, that of then.

        Raises:
            DeviceError: The device cannot be read.
        """
        if not self._closed:
            # A driver that is loaded again counts from 0.
            self._last_j = max(self._last_j, (self._read_mj() - self._start_mj) / _MJ_PER_J)
        return self._last_j

    def close(self) -> None:
        """Read the counter once more and stop; harmless when repeated."""
        with suppress(DeviceError):
            self.energy_j()
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class NvmlMeter(_CounterMeter):
    """Energy of a GPU, from its own counter (Volta or newer).

    Args:
        index: CUDA index of the GPU.

    Raises:
        BadValueError: There is no such GPU.
        DeviceError: No driver, or a GPU without such a counter.
        MissingExtraError: zeus is not installed.
    """

    def __init__(self, index: int = 0) -> None:
        gpu = zeus.gpu(index)
        with zeus.explaining(f"ask GPU {index} for its energy counter"):
            if not gpu.supports_get_total_energy_consumption():
                raise DeviceError(f"GPU {index} has no energy counter", "those from Volta on have")
        super().__init__(f"GPU {index}", gpu.get_total_energy_consumption)


class ZeusSocMeter(_CounterMeter):
    """Energy of a Jetson module as zeus integrates it, ten times a second in a process of its own.

    It serves modules with a rail of their input, and older JetPacks; ``Ina3221Meter`` needs no package and serves AGX Orin.

    Raises:
        DeviceError: None that zeus knows, or one without a rail of its input.
        MissingExtraError: zeus is not installed.
    """

    def __init__(self) -> None:
        soc = zeus.soc()

        def total_mj() -> float:
            total = getattr(soc.get_total_energy_consumption(), "total_energy_mj", None)
            if total is None:
                raise DeviceError("zeus reads no energy of all of this module", "use Ina3221Meter with the names of its rails")
            return float(total)

        super().__init__("this module", total_mj)
