"""Frequencies of GPUs and cores through Linux' devfreq and cpufreq."""

from __future__ import annotations

import errno
import logging
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

from clone_rl.errors import BadValueError, CloneRLError, DeviceError
from clone_rl.runtime import sysfs
from clone_rl.runtime.actuator import check_point
from clone_rl.runtime.actuators.closing import Closing
from clone_rl.runtime.actuators.frequency_node import FrequencyNode

_LOG = logging.getLogger(__name__)


class _Limits:
    """Sets the limits of a device and gives back those that it had."""

    def __init__(self, node: FrequencyNode, dry_run: bool, log: Callable[[str], None]) -> None:
        self.node, self.dry_run, self.log = node, dry_run, log
        self.original_hz = (0, 0)
        self.pretended_hz, self.moved, self.owner = 0, False, os.getpid()
        self.held: int | None = None
        if not dry_run:
            sysfs.check(node.written(), "write")
            # Who came second would take the limits of the first for those of the system.
            self.held = sysfs.hold(node.path)

    def remember(self) -> None:
        self.original_hz = (self.node.granted_hz(),) * 2 if self.node.set_speed else self.node.limits_hz()

    def move(self, lowest_hz: int, highest_hz: int) -> None:
        before_hz = self.pretended_hz or self.node.limits_hz()[1]
        self.moved = True
        for path, value in self.node.steps(lowest_hz, highest_hz, before_hz):
            if self.dry_run:
                self.log(f"would write {value} to {path}")
                self.pretended_hz = highest_hz
                continue
            try:
                self._write(path, value)
            except OSError as error:
                raise sysfs.explained(error, path, "write", self.node.written()) from error

    def _write(self, path: Path, value: int) -> None:
        try:
            sysfs.write(path, value)
        except OSError as error:
            # A hot device may have been granted less than was just written; some drivers refuse a lowest limit above that.
            ceiling = self.node.ceiling()
            if error.errno != errno.EINVAL or value <= ceiling:
                raise
            sysfs.write(path, ceiling)

    def restore(self) -> None:
        # A forked child leaves the limits to its parent.
        if os.getpid() != self.owner:
            return
        try:
            if self.moved:
                self.move(*self.original_hz)
        except DeviceError as error:
            wanted = " to ".join(map(str, self.original_hz))
            raise DeviceError(f"{self.node.path} does not go back to {wanted} Hz: {error.message}", error.hint) from error
        finally:
            if self.held is not None:
                sysfs.release(self.held)


class SysfsActuator(Closing):
    """Holds a device at the frequency of an operating point, by setting both of its limits to it.

    It opens two files for writing (one, ``scaling_setspeed``, where the governor is already ``userspace``) and changes no
    governor. The limits that it found come back on ``close``, at the end of a ``with`` block whatever happened in it, and
    when Python ends; not after a kill.

    Args:
        device: Name (``17000000.gpu``, ``policy0``) or path of a devfreq device or a cpufreq policy.
        points: Operating points of the policy.
        frequencies_hz: (points,) frequency of each, lowest first; None spreads those of the device that are not above its
            highest limit.
        dry_run: Only say what would be written.
        root: Where sysfs is.
        log: Told of every write that a dry run leaves out; None: the log of this module, at level INFO.

    Attributes:
        points: Operating points.
        frequencies_hz: (points,) frequency of each.
        operating_point: The current one; None before the first and where the last one failed.
        granted_hz: What the kernel then said is the highest it grants; None before, and in a dry run.
        changes: How often the point changed.
        clamped: How often the kernel granted less than was asked, as it does when hot.

    Raises:
        BadFileError: The device is none.
        BadValueError: The frequencies do not fit the points or the device.
        DeviceError: Its files may not be written, with the commands that would allow it, or another actuator holds it.
    """

    def __init__(
        self, device: str | Path, points: int, frequencies_hz: Sequence[int] | None = None, dry_run: bool = False,
        root: Path = sysfs.SYSFS, log: Callable[[str], None] | None = None,
    ) -> None:  # fmt: skip
        self.node = FrequencyNode(device, root)
        self.points = points
        self.operating_point: int | None = None
        self.granted_hz: int | None = None
        self.changes = self.clamped = 0
        self._limits, self._lock = _Limits(self.node, dry_run, log or _LOG.info), threading.Lock()
        self._restore = weakref.finalize(self, self._limits.restore)
        try:
            self._limits.remember()
            self.frequencies_hz = self._choose(frequencies_hz)
        except CloneRLError:
            self._restore()
            raise

    def _choose(self, given_hz: Sequence[int] | None) -> tuple[int, ...]:
        ceiling_hz = self.node.limits_hz()[1]
        if given_hz is None:
            return self.node.frequencies_hz(self.points, ceiling_hz)
        found, lowest_hz = tuple(given_hz), self.node.range_hz()[0]
        inside = all(lowest_hz <= hz <= ceiling_hz for hz in found)
        if self.points < 1 or len(found) != self.points or list(found) != sorted(found) or not inside:
            raise BadValueError(
                f"frequencies of {self.node.name} are {found}",
                f"one for each of {self.points} points, rising, from {lowest_hz} to {ceiling_hz} Hz",
            )
        return found

    def set(self, operating_point: int) -> None:
        """Hold the device at the frequency of this point; does nothing where it is held there already.

        Raises:
            BadValueError: There is no such point, or the actuator is closed.
            DeviceError: The kernel refuses; what was set before is then uncertain until the next call.
        """
        check_point(operating_point, self.points)
        with self._lock:
            if not self._restore.alive:
                raise BadValueError(f"the actuator of {self.node.name} is closed", "make another")
            if operating_point == self.operating_point:
                return
            self.operating_point = None
            asked_hz = self.frequencies_hz[operating_point]
            self._limits.move(asked_hz, asked_hz)
            if not self._limits.dry_run:
                self.granted_hz = self.node.granted_hz()
                self.clamped += self.granted_hz < asked_hz
            self.operating_point = operating_point
            self.changes += 1

    def close(self) -> None:
        """Give the device the limits that it had; harmless when repeated.

        Raises:
            DeviceError: The kernel refuses.
        """
        with self._lock:
            self._restore()
