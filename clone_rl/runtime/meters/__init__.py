"""Meters: the energy that the machine has really taken."""

from clone_rl.runtime.meters.ina3221 import Ina3221Meter
from clone_rl.runtime.meters.meter import Meter
from clone_rl.runtime.meters.rapl import RaplMeter
from clone_rl.runtime.meters.zeus import NvmlMeter, ZeusSocMeter

__all__ = ["Ina3221Meter", "Meter", "NvmlMeter", "RaplMeter", "ZeusSocMeter"]
