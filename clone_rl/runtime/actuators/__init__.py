"""Where operating points go outside of the emulator."""

from clone_rl.runtime.actuators.frequency_node import FrequencyNode
from clone_rl.runtime.actuators.group import ActuatorGroup
from clone_rl.runtime.actuators.nvml import NvmlActuator
from clone_rl.runtime.actuators.sysfs import SysfsActuator

__all__ = ["ActuatorGroup", "FrequencyNode", "NvmlActuator", "SysfsActuator"]
