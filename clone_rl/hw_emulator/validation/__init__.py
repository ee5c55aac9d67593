"""The emulator against what others measured, published or simulated, and the fits behind its constants.

>>> from clone_rl.hw_emulator.validation import validate
>>> next(check.passed for check in validate() if check.id.startswith("V1"))
True
"""

from clone_rl.hw_emulator.validation.check import Check
from clone_rl.hw_emulator.validation.checks import validate
from clone_rl.hw_emulator.validation.fit import Fitted, fit

__all__ = ["Check", "Fitted", "fit", "validate"]
