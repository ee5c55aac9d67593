"""What a meter is, and how a meter that has to look often does it."""

from __future__ import annotations

import math
import threading
import weakref
from abc import abstractmethod
from types import TracebackType
from typing import Protocol, Self

from clone_rl.errors import BadValueError, DeviceError


class Meter(Protocol):
    """Something that counts energy from the moment it is made; used with ``with``, or closed."""

    def energy_j(self) -> float:
        """Energy since then, which never falls.

        Raises:
            DeviceError: The device cannot be read.
        """
        ...

    def close(self) -> None:
        """Stop counting; harmless when repeated."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


class SampledMeter:
    """A meter that a thread of its own keeps up to date; what is left to a subclass is ``sample``.

    Args:
        period_s: Time between two looks.

    Attributes:
        missed: Looks of the thread at which the device did not answer; the next one bridges the gap.

    Raises:
        BadValueError: The period is not above 0.
        DeviceError: The device cannot be read.
    """

    def __init__(self, period_s: float) -> None:
        if not 0 < period_s < math.inf:
            raise BadValueError(f"period is {period_s} s", "a time above 0")
        self.missed = 0
        self._energy_j, self._lock, self._stop = 0.0, threading.Lock(), threading.Event()
        self.sample()
        # The thread holds no reference to the meter, so that one that is forgotten is stopped as well.
        watcher = threading.Thread(target=_watch, args=(weakref.ref(self), self._stop, period_s), daemon=True)
        self._closing = weakref.finalize(self, self._stop.set)
        watcher.start()

    @abstractmethod
    def sample(self) -> float:
        """Read the device now.

        Returns:
            Energy since the last time, J; 0 the first time.

        Raises:
            DeviceError: It cannot be read.
        """

    def energy_j(self) -> float:
        """Energy since the meter was made; since it was closed, that of then.

        Raises:
            DeviceError: The device cannot be read now.
        """
        with self._lock:
            if not self._stop.is_set():
                self._energy_j += self.sample()
            return self._energy_j

    def look(self) -> None:
        """Bring the sum up to date, if the device answers."""
        try:
            self.energy_j()
        except DeviceError:
            self.missed += 1

    def close(self) -> None:
        """Read the device once more and stop; harmless when repeated."""
        self.look()
        self._closing()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _watch(meter: weakref.ref[SampledMeter], stop: threading.Event, period_s: float) -> None:
    while not stop.wait(period_s):
        if (found := meter()) is None:
            return
        found.look()
        del found
