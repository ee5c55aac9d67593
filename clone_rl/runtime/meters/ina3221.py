"""Energy of Jetson modules from their INA3221 power monitors."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from clone_rl.errors import BadValueError, DeviceError
from clone_rl.runtime import sysfs
from clone_rl.runtime.meters.meter import SampledMeter

HWMON_FOLDER = Path("class/hwmon")
_W_PER_MV_MA = 1e-6

MODULES = (
    ("VDD_IN",),  # Orin NX, Orin Nano, Xavier NX: the input of the module
    ("POM_5V_IN",),  # Nano, TX1
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin; VDDQ_VDD2_1V8AO, its memory, is fed by the last of them
)
"""Rails that add up to a module, none of them within another."""


@dataclass(frozen=True)
class Rail:
    """One channel of a monitor.

    Attributes:
        voltage: File with millivolts.
        current: File with milliamperes.
    """

    voltage: Path
    current: Path

    def power_w(self) -> float:
        """Power of the moment; the noise of a rail without load is not below 0.

        Raises:
            DeviceError: The monitor does not answer.
        """
        return max(0.0, sysfs.read_number(self.voltage) * sysfs.read_number(self.current) * _W_PER_MV_MA)


def rails(root: Path = sysfs.SYSFS) -> dict[str, Rail]:
    """The rails that this machine's monitors measure, by name."""
    found: dict[str, Rail] = {}
    for monitor in sorted((root / HWMON_FOLDER).glob("hwmon*")):
        if not sysfs.is_attribute(monitor / "name") or sysfs.read(monitor / "name") not in ("ina3221", "ina3221x"):
            continue
        place = sysfs.resolve(monitor, root)
        for label in sorted(place.glob("in*_label")):
            number = label.name.removeprefix("in").removesuffix("_label")
            rail = Rail(place / f"in{number}_input", place / f"curr{number}_input")
            name = sysfs.read(label)
            if name not in ("", "NC") and sysfs.is_attribute(rail.voltage) and sysfs.is_attribute(rail.current):
                found[name] = rail
    return found


class Ina3221Meter(SampledMeter):
    """Integrates the power of rails, looking at it in a thread; what happens between two looks it does not see.

    Args:
        names: Rails to add up; None: those that make up the module.
        root: Where sysfs is.
        period_s: Time between two looks. Each takes the kernel some I2C transfers.
        clock: Seconds.

    Raises:
        BadValueError: There is no such rail, or which of them make up the module is not known.
        DeviceError: No monitor, or it does not answer.
    """

    def __init__(
        self, names: tuple[str, ...] | None = None, root: Path = sysfs.SYSFS, period_s: float = 0.02,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        known = rails(root)
        if not known:
            raise DeviceError(f"no INA3221 in {root / HWMON_FOLDER}", "Jetson modules have one: there, from JetPack 5 on")
        if names is None:
            names = next((module for module in MODULES if set(module) <= known.keys()), ())
        if not names or not set(names) <= known.keys():
            given = f"rails are {', '.join(names)}" if names else "which rails make up this module is not known"
            raise BadValueError(given, f"name those to add up, some of {', '.join(known)}, none of them fed by another")
        self.names = names
        self._rails = [known[name] for name in names]
        self._clock = clock
        self._last: tuple[float, float] | None = None
        super().__init__(period_s)

    def sample(self) -> float:
        """Joules since the last time, by the mean of the power then and now.

        Raises:
            DeviceError: A monitor does not answer.
        """
        power_w = sum(rail.power_w() for rail in self._rails)
        now_s = self._clock()
        last_s, last_w = self._last or (now_s, power_w)
        self._last = now_s, power_w
        return (now_s - last_s) * (power_w + last_w) / 2
