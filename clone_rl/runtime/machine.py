"""The actuators and meters of this machine, by name, and what is in the way of those that it cannot use."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from clone_rl.errors import CloneRLError, DeviceError, UnknownNameError
from clone_rl.runtime.actuator import Actuator, EmulatedActuator
from clone_rl.runtime.actuators import ActuatorGroup, NvmlActuator, SysfsActuator
from clone_rl.runtime.actuators.frequency_node import CPUFREQ_FOLDER, DEVFREQ_FOLDER
from clone_rl.runtime.meters import Ina3221Meter, Meter, NvmlMeter, RaplMeter, ZeusSocMeter
from clone_rl.runtime.sysfs import SYSFS

_NVML = re.compile(r"nvml(?::(\d+))?")
_METERS = ("rapl", "ina3221", "soc", "nvml")


@dataclass(frozen=True)
class Found:
    """An actuator or a meter.

    Attributes:
        name: What ``open_actuator`` or ``open_meter`` knows it by.
        usable: Whether this process may use it.
        reason: Why not; for a usable one, what it is.
        fix: What to do about it, where something can be done.
    """

    name: str
    usable: bool
    reason: str
    fix: str = ""


def policies(root: Path = SYSFS) -> list[str]:
    """Names of the cpufreq policies, in order."""
    found = [path.name for path in (root / CPUFREQ_FOLDER).glob("policy*") if path.name[6:].isdecimal()]
    return sorted(found, key=lambda name: int(name[6:]))


def devices(root: Path = SYSFS) -> list[str]:
    """Names of the devfreq devices, in order."""
    return sorted(path.name for path in (root / DEVFREQ_FOLDER).glob("*"))


def open_actuator(
    name: str, points: int, root: Path = SYSFS, dry_run: bool = False, log: Callable[[str], None] | None = None
) -> Actuator:
    """An actuator by name; all but ``emulated`` are to be used with ``with``, or closed.

    Args:
        name: ``emulated``; ``cpu``, all cpufreq policies together; one of them, a devfreq device, or the path of either;
            ``nvml``, or ``nvml:1`` for another GPU than the first.
        points: Operating points of the policy.
        root: Where sysfs is.
        dry_run: Only say what would be written.
        log: Told of every write that a dry run leaves out.

    Raises:
        BadFileError: No such device, or a path that is none.
        DeviceError: It may not be used, or this machine has none of its kind.
        MissingExtraError: It needs zeus.
    """
    if name == "emulated":
        return EmulatedActuator(points)
    if found := _NVML.fullmatch(name):
        return NvmlActuator(int(found[1] or 0), points, dry_run, log)
    if name != "cpu":
        return SysfsActuator(name, points, None, dry_run, root, log)
    if not (names := policies(root)):
        raise DeviceError(f"no cpufreq policy in {root / CPUFREQ_FOLDER}", _NO_CPUFREQ)
    with ExitStack() as stack:
        actuators = [stack.enter_context(SysfsActuator(each, points, None, dry_run, root, log)) for each in names]
        stack.pop_all()
    return ActuatorGroup(*actuators)


def open_meter(name: str, root: Path = SYSFS) -> Meter:
    """A meter by name, counting from now.

    Args:
        name: ``rapl`` or ``ina3221``, with ``:NAME,NAME`` for some of its zones or rails; ``nvml``, or ``nvml:1`` for another
            GPU than the first; ``soc``.
        root: Where sysfs is.

    Raises:
        UnknownNameError: There is no such meter.
        BadValueError: It has no such part.
        DeviceError: This machine has none, or it may not be read.
        MissingExtraError: It needs zeus.
    """
    if found := _NVML.fullmatch(name):
        return NvmlMeter(int(found[1] or 0))
    kind, _, parts = name.partition(":")
    names = tuple(parts.split(",")) if parts else None
    if kind == "rapl":
        return RaplMeter(names, root)
    if kind == "ina3221":
        return Ina3221Meter(names, root)
    if name == "soc":
        return ZeusSocMeter()
    raise UnknownNameError("meter", name, _METERS)


_NO_CPUFREQ = "the kernel has no driver for this processor's clock, as in most virtual machines"
_NO_DEVFREQ = "no GPU, NPU or memory whose clock the kernel lets anybody set"


def find_actuators(points: int, root: Path = SYSFS) -> list[Found]:
    """Every actuator that this machine might have; nothing is set."""
    found = [Found("emulated", True, "an emulated chip")]
    for kind, names, folder, none in (
        ("cpufreq", policies(root), CPUFREQ_FOLDER, _NO_CPUFREQ),
        ("devfreq", devices(root), DEVFREQ_FOLDER, _NO_DEVFREQ),
    ):
        found += [_try(name, partial(_describe, name, points, root)) for name in names]
        if not names:
            found.append(Found(kind, False, f"nothing in {root / folder}", none))
    return [*found, _try("nvml", partial(_describe_nvml, points))]


def find_meters(root: Path = SYSFS) -> list[Found]:
    """Every meter that this machine might have."""
    return [_try(name, partial(_describe_meter, name, root)) for name in _METERS]


def _try(name: str, describe: Callable[[], str]) -> Found:
    try:
        return Found(name, True, describe())
    except CloneRLError as error:
        return Found(name, False, error.message, error.hint)


def _describe(name: str, points: int, root: Path) -> str:
    with SysfsActuator(name, points, root=root) as actuator:
        return _frequencies(actuator.node.kind, actuator.frequencies_hz)


def _describe_meter(name: str, root: Path) -> str:
    with open_meter(name, root) as meter:
        return " + ".join(getattr(meter, "names", ())) or "energy counter of the device"


def _describe_nvml(points: int) -> str:
    with NvmlActuator(0, points) as actuator:
        return _frequencies("GPU 0", actuator.frequencies_hz)


def _frequencies(kind: str, frequencies_hz: Iterable[int]) -> str:
    distinct = sorted(set(frequencies_hz))
    return f"{kind}, {len(distinct)} frequencies from {distinct[0] / 1e6:g} to {distinct[-1] / 1e6:g} MHz"
