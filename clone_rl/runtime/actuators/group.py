"""Several devices under one hand."""

from __future__ import annotations

from contextlib import ExitStack

from clone_rl.runtime.actuator import Actuator


class ActuatorGroup(ExitStack):
    """Sets all of its actuators to the same point, such as every cpufreq policy of a laptop, or the cores and the GPU.

    Those that can be closed are closed with it, the last one first.

    Args:
        actuators: At least one; all with as many points.
    """

    def __init__(self, *actuators: Actuator) -> None:
        super().__init__()
        self.actuators = actuators
        for actuator in actuators:
            if hasattr(actuator, "close"):
                self.callback(actuator.close)

    def set(self, operating_point: int) -> None:
        """Set each of them.

        Raises:
            BadValueError: One has no such point.
            DeviceError: One refuses; those after it stay as they are until the next call.
        """
        for actuator in self.actuators:
            actuator.set(operating_point)
