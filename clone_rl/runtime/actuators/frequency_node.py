"""A device whose frequency sysfs limits: a devfreq device (GPU, NPU, memory) or a cpufreq policy (cores of one clock)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from clone_rl.errors import BadFileError, BadValueError, DeviceError
from clone_rl.runtime import sysfs
from clone_rl.runtime.actuators.points import between, spread

CPUFREQ_FOLDER = Path("devices/system/cpu/cpufreq")
DEVFREQ_FOLDER = Path("class/devfreq")


@dataclass(frozen=True)
class _Names:
    """Names of the attributes, and their unit in hertz."""

    lowest: str
    highest: str
    listed: str
    range: tuple[str, str]
    unit_hz: int


_DEVFREQ = _Names("min_freq", "max_freq", "available_frequencies", ("min_freq", "max_freq"), 1)
_CPUFREQ = _Names(
    "scaling_min_freq", "scaling_max_freq", "scaling_available_frequencies",
    ("cpuinfo_min_freq", "cpuinfo_max_freq"), 1000,
)  # fmt: skip


class FrequencyNode:
    """One such device.

    Args:
        device: Its name, such as ``17000000.gpu`` (Jetson Orin's GPU) or ``policy0``, or its path.
        root: Where sysfs is.

    Attributes:
        path: Where the device really lies.
        kind: ``devfreq`` or ``cpufreq``.
        name: Last part of the path.
        set_speed: Whether its governor is ``userspace``: it then runs at the frequency it is told, within its limits.

    Raises:
        BadFileError: Nothing there, it leads out of sysfs, or it is something else than such a device.
    """

    def __init__(self, device: str | Path, root: Path = sysfs.SYSFS) -> None:
        self.path = sysfs.resolve(self._find(str(device), root), root)
        self.kind = self._kind(root)
        self.name = self.path.name if self.path.name != "cpufreq" else self.path.parent.name
        self._names = _CPUFREQ if self.kind == "cpufreq" else _DEVFREQ
        for needed in (self._names.lowest, self._names.highest):
            if not sysfs.is_attribute(self.path / needed):
                raise BadFileError(f"{self.path} has no file {needed}", f"a {self.kind} device has: see clone-rl hardware")
        governor = self.path / "scaling_governor"
        self.set_speed = self.kind == "cpufreq" and sysfs.is_attribute(governor) and sysfs.read(governor) == "userspace"

    @staticmethod
    def _find(device: str, root: Path) -> Path:
        if "/" in device:
            return Path(device)
        folder = CPUFREQ_FOLDER if re.fullmatch(r"policy\d+", device) else DEVFREQ_FOLDER
        return root / folder / device

    def _kind(self, root: Path) -> str:
        place = self.path.relative_to(root.resolve())
        if place.parent == CPUFREQ_FOLDER and re.fullmatch(r"policy\d+", place.name):
            return "cpufreq"
        if place.name == "cpufreq" and re.fullmatch(r"devices/system/cpu/cpu\d+", str(place.parent)):
            return "cpufreq"
        if place.parts[0] == "devices" and place.parent.name == "devfreq":
            return "devfreq"
        raise BadFileError(
            f"{self.path} is neither a devfreq device nor a cpufreq policy",
            "give one such as /sys/class/devfreq/17000000.gpu or /sys/devices/system/cpu/cpufreq/policy0",
        )

    def read_hz(self, attribute: str) -> int:
        """A frequency.

        Raises:
            DeviceError: It cannot be read.
        """
        return sysfs.read_number(self.path / attribute) * self._names.unit_hz

    def limits_hz(self) -> tuple[int, int]:
        """Lowest and highest frequency in force, as the kernel has granted them.

        Raises:
            DeviceError: They cannot be read.
        """
        return self.read_hz(self._names.lowest), self.read_hz(self._names.highest)

    def ceiling(self) -> int:
        """Highest limit in force, in the unit of the files.

        Raises:
            DeviceError: It cannot be read.
        """
        return sysfs.read_number(self.path / self._names.highest)

    def available_hz(self) -> tuple[int, ...]:
        """Frequencies that the device has, lowest first; empty where it takes any within its range.

        Raises:
            DeviceError: The list cannot be read or holds something else.
        """
        path = self.path / self._names.listed
        if not sysfs.is_attribute(path):
            return ()
        text = sysfs.read(path)
        try:
            return tuple(sorted({int(word) * self._names.unit_hz for word in text.split()}))
        except ValueError:
            raise DeviceError(f"{path} holds {text[:80]!r}, not frequencies") from None

    def range_hz(self) -> tuple[int, int]:
        """Lowest and highest frequency of the hardware.

        Raises:
            DeviceError: It cannot be read.
        """
        if listed := self.available_hz():
            return listed[0], listed[-1]
        lowest, highest = self._names.range
        return self.read_hz(lowest), self.read_hz(highest)

    def frequencies_hz(self, points: int, ceiling_hz: int) -> tuple[int, ...]:
        """A frequency for each operating point.

        Args:
            points: Operating points of the policy.
            ceiling_hz: None is higher: the highest limit in force is that of the power mode, or of another's hand.

        Returns:
            (points,) lowest first.

        Raises:
            BadValueError: No frequency is that low.
            DeviceError: They cannot be read.
        """
        lowest_hz, highest_hz = self.range_hz()
        if not 0 < lowest_hz <= ceiling_hz:
            raise BadValueError(f"{self.path}: no frequency from {lowest_hz} Hz, its lowest, to {ceiling_hz} Hz, its limit")
        if listed := self.available_hz():
            return spread([hz for hz in listed if hz <= ceiling_hz], points)
        return between(lowest_hz, min(highest_hz, ceiling_hz), points, self._names.unit_hz)

    def written(self) -> list[Path]:
        """The files that have to be writable."""
        names = ("scaling_setspeed",) if self.set_speed else (self._names.lowest, self._names.highest)
        return [self.path / name for name in names]

    def steps(self, lowest_hz: int, highest_hz: int, before_hz: int) -> list[tuple[Path, int]]:
        """What to write, in order: the lowest limit never passes the highest, which the kernel would refuse.

        Args:
            lowest_hz: New lowest limit.
            highest_hz: New highest limit.
            before_hz: Highest limit so far.

        Returns:
            Files and values.
        """
        unit = self._names.unit_hz
        if self.set_speed:
            return [(self.path / "scaling_setspeed", highest_hz // unit)]
        steps = [
            (self.path / self._names.highest, highest_hz // unit),
            (self.path / self._names.lowest, lowest_hz // unit),
        ]
        return steps if highest_hz >= before_hz else steps[::-1]

    def granted_hz(self) -> int:
        """The highest frequency that the kernel now lets the device have.

        Raises:
            DeviceError: It cannot be read.
        """
        return self.read_hz("scaling_setspeed") if self.set_speed else self.limits_hz()[1]

    def cores(self) -> tuple[int, ...]:
        """The cores that it clocks; none for other devices."""
        path = self.path / "affected_cpus"
        return tuple(int(core) for core in sysfs.read(path).split()) if sysfs.is_attribute(path) else ()
