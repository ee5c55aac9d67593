"""A sysfs in a folder, laid out as Linux does, and a kernel that refuses and clamps as drivers do.

A plugin of the tests below: PYTEST_DONT_REWRITE.
"""

import errno
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from clone_rl.runtime import sysfs

ORIN_MHZ = (306, 408, 510, 612, 714, 816, 918, 1020, 1122, 1224, 1300.5)


def put(folder, **values):
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (folder / name).write_text(f"{value}\n")
    return folder


class FakeSysfs:
    """A tree at ``root``; what is written to it in ``writes``.

    ``writes`` holds (device, attribute, value); ``cap`` is the most that the kernel grants of an attribute's unit.
    """

    def __init__(self, root):
        self.root, self.writes, self.cap = root, [], float("inf")
        self._written = sysfs.write
        for folder in ("class/devfreq", "class/hwmon", "class/powercap", "devices/system/cpu/cpufreq"):
            (root / folder).mkdir(parents=True)

    def link(self, subsystem, folder):
        (self.root / "class" / subsystem / folder.name).symlink_to(folder)
        return folder

    def devfreq(self, name="17000000.gpu", mhz=ORIN_MHZ, limits=None, parent="devices/platform/bus@0", **more):
        hz = [int(f * 1e6) for f in mhz]
        lowest, highest = limits or (hz[0], hz[-1])
        folder = put(
            self.root / parent / name / "devfreq" / name,
            min_freq=lowest, max_freq=highest, cur_freq=highest, available_frequencies=" ".join(map(str, hz)),
            governor="nvhost_podgov", **more,
        )  # fmt: skip
        return self.link("devfreq", folder)

    def cpufreq(self, name="policy0", mhz=(800, 1600, 2400), listed=True, governor="schedutil", cores="0 1", setspeed=None):
        khz = [int(f * 1000) for f in mhz]
        folder = put(
            self.root / "devices/system/cpu/cpufreq" / name,
            scaling_min_freq=khz[0], scaling_max_freq=khz[-1], cpuinfo_min_freq=khz[0], cpuinfo_max_freq=khz[-1],
            scaling_cur_freq=khz[0], scaling_governor=governor, affected_cpus=cores,
            scaling_setspeed="<unsupported>" if setspeed is None else setspeed,
        )  # fmt: skip
        if listed:
            put(
                folder, scaling_available_frequencies=" ".join(map(str, reversed(khz)))
            )  # acpi-cpufreq lists the highest first
        return folder

    def rapl(self, zone="0", name="package-0", energy_uj=1000, size_uj=262143328850):
        outer = zone.partition(":")[0]
        inside = f"intel-rapl:{outer}/intel-rapl:{zone}" if ":" in zone else f"intel-rapl:{zone}"
        folder = put(
            self.root / "devices/virtual/powercap/intel-rapl" / inside,
            name=name, energy_uj=energy_uj, max_energy_range_uj=size_uj,
        )  # fmt: skip
        return self.link("powercap", folder)

    def ina3221(self, number=3, **rails):
        """Rails as name=(mV, mA), in the order of the channels."""
        folder = put(self.root / f"devices/platform/bus@0/i2c-1/1-0040/hwmon/hwmon{number}", name="ina3221")
        for channel, (name, (millivolts, milliamperes)) in enumerate(rails.items(), 1):
            put(folder, **{f"in{channel}_label": name, f"in{channel}_input": millivolts, f"curr{channel}_input": milliamperes})
        put(folder, in4_input=1, in7_label="sum of shunt voltages", in7_input=3)
        return self.link("hwmon", folder)

    def write(self, path, value):
        """What a driver does with a value: below the other limit or above it, it is invalid."""
        lowest, highest = (path.with_name(path.name.replace(*ends)) for ends in (("max", "min"), ("min", "max")))
        if path.name != "scaling_setspeed":
            new = {lowest: int(lowest.read_text()), highest: int(highest.read_text()), path: value}
            if new[lowest] > new[highest]:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._written(path, min(value, self.cap))
        self.writes.append((path.parent.name, path.name, value))


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """An empty machine."""
    fake = FakeSysfs(tmp_path / "sys")
    monkeypatch.setattr(sysfs, "write", fake.write)
    return fake


@pytest.fixture
def foreign_machine():
    """A machine in a folder that anybody may enter, with the kernel's own answers to writes."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield FakeSysfs(Path(folder) / "sys")


@contextmanager
def as_nobody():
    """Root may write whatever a file's mode says, so the test of a refusal gives that up for as long."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
