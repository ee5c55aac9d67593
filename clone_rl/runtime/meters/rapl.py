"""Energy of processors from Intel's and AMD's RAPL counters."""

from __future__ import annotations

import re
from pathlib import Path

from clone_rl.errors import BadValueError, DeviceError
from clone_rl.runtime import sysfs
from clone_rl.runtime.meters.meter import SampledMeter

POWERCAP_FOLDER = Path("class/powercap")
_UJ_PER_J = 1e6
_SLOWEST_WRAP_S = 30.0
"""The smallest counters hold some 65 kJ: 2 kW for this long."""


def zones(root: Path = sysfs.SYSFS) -> dict[str, Path]:
    """What RAPL counts on this machine: ``package-0``, ``package-0/dram``, ``psys`` and so on, with the folder of each."""
    found: dict[str, Path] = {}
    for path in sorted((root / POWERCAP_FOLDER).glob("intel-rapl:*")):
        if re.fullmatch(r"intel-rapl:\d+(:\d+)?", path.name) and sysfs.is_attribute(path / "energy_uj"):
            outer, _, inner = path.name.removeprefix("intel-rapl:").partition(":")
            names = [sysfs.read(path.with_name(f"intel-rapl:{outer}") / "name")] + [sysfs.read(path / "name")] * bool(inner)
            found["/".join(names)] = sysfs.resolve(path, root)
    return found


class RaplMeter(SampledMeter):
    """Energy of all packages and their memory.

    Counters run over after a while; a thread looks often enough not to miss it.

    Args:
        names: Zones of ``zones()`` to add up; None: every package, and its DRAM where it is counted apart. A zone lies
            within the one before its slash, and ``psys`` holds all of them: only DRAM may be added to its package.
        root: Where sysfs is.
        period_s: Time between two looks.

    Raises:
        BadValueError: There is no such zone.
        DeviceError: No RAPL, or its counters may not be read, with the commands that would allow it.
    """

    def __init__(
        self, names: tuple[str, ...] | None = None, root: Path = sysfs.SYSFS, period_s: float = _SLOWEST_WRAP_S
    ) -> None:
        known = zones(root)
        if not known:
            raise DeviceError(
                f"no RAPL in {root / POWERCAP_FOLDER}", "most virtual machines hide it, and few ARM chips have it"
            )
        if names is None:
            names = tuple(name for name in known if re.fullmatch(r"package-\d+(-die-\d+)?(/dram)?", name))
        if not names or not set(names) <= known.keys():
            raise BadValueError(f"zones of RAPL are {', '.join(names) or 'none'}", f"some of {', '.join(known)}")
        self.names = names
        self._counters = [known[name] / "energy_uj" for name in names]
        sysfs.check(self._counters, "read")
        self._modulus_uj = [sysfs.read_number(known[name] / "max_energy_range_uj") for name in names]
        if min(self._modulus_uj) <= 0:
            raise DeviceError(f"RAPL's counters run over at {self._modulus_uj} uJ, which no counter does")
        self._last_uj: list[int] | None = None
        super().__init__(period_s)

    def sample(self) -> float:
        """Joules since the last time.

        Raises:
            DeviceError: A counter cannot be read.
        """
        now_uj = [sysfs.read_number(counter) for counter in self._counters]
        last_uj, self._last_uj = self._last_uj or now_uj, now_uj
        return sum((n - la) % size for n, la, size in zip(now_uj, last_uj, self._modulus_uj, strict=True)) / _UJ_PER_J
