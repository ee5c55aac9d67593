"""Controllers in a host's inference loop: the host asks, the controller decides.

Imports neither torch nor Stable-Baselines3.
"""

from clone_rl.agents.controller import Decision
from clone_rl.runtime.actuator import Actuator, EmulatedActuator
from clone_rl.runtime.controller import RuntimeController

__all__ = ["Actuator", "Decision", "EmulatedActuator", "RuntimeController"]
