"""A zeus with one GPU and a Jetson, of the names and signatures that clone_rl uses of zeus 0.16.

A plugin of the tests below: PYTEST_DONT_REWRITE.
"""

import sys
from types import ModuleType, SimpleNamespace

import pytest


class ZeusBaseError(Exception):
    pass


class ZeusGPUNoPermissionError(ZeusBaseError):
    pass


class ZeusGPUInitError(ZeusBaseError):
    pass


class Gpu:
    """``zeus.device.gpu.common.GPU``."""

    def __init__(self):
        self.calls, self.total_mj, self.counts, self.fails = [], 5_000, True, None

    def get_supported_memory_clocks(self):
        return [2619, 1593]

    def get_supported_graphics_clocks(self, memory_clock_mhz=None):
        assert memory_clock_mhz == 2619
        return [1980, 1965, 1200, 600, 345]

    def set_gpu_locked_clocks(self, min_clock_mhz, max_clock_mhz, block=True):  # noqa: ARG002
        if self.fails:
            raise self.fails
        self.calls.append((min_clock_mhz, max_clock_mhz))

    def reset_gpu_locked_clocks(self, block=True):  # noqa: ARG002
        self.calls.append("reset")

    def supports_get_total_energy_consumption(self):
        return self.counts

    def get_total_energy_consumption(self):
        if self.fails:
            raise self.fails
        return self.total_mj


class Soc:
    """``zeus.device.soc.jetson.Jetson``."""

    total_mj = 100.0

    def get_total_energy_consumption(self, timeout=15.0):  # noqa: ARG002
        return SimpleNamespace(cpu_energy_mj=None, gpu_energy_mj=None, total_energy_mj=self.total_mj)


@pytest.fixture
def zeus(monkeypatch):
    """An installed zeus; ``zeus.gpu`` and ``zeus.soc`` are what it finds."""
    found = SimpleNamespace(gpu=Gpu(), soc=Soc(), error=None)

    def get_gpus(ensure_homogeneous=False):
        if found.error:
            raise found.error
        return SimpleNamespace(gpus=[found.gpu])

    def get_soc():
        return found.soc

    package, exception, device = ModuleType("zeus"), ModuleType("zeus.exception"), ModuleType("zeus.device")
    exception.ZeusBaseError = ZeusBaseError
    device.get_gpus, device.get_soc = get_gpus, get_soc
    for module in (package, exception, device):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return found


@pytest.fixture
def no_zeus(monkeypatch):
    """A Python without zeus."""
    for name in ("zeus", "zeus.exception", "zeus.device"):
        monkeypatch.setitem(sys.modules, name, None)
