"""Where an operating point goes."""

from __future__ import annotations

from typing import Protocol

from clone_rl.errors import BadValueError


class Actuator(Protocol):
    """Something that can be set to an operating point."""

    def set(self, operating_point: int) -> None:
        """Make the chip run at this point, 0 the lowest."""
        ...


def check_point(operating_point: int, points: int) -> None:
    """Refuse a point that is none.

    Raises:
        BadValueError: Below 0, or not below ``points``.
    """
    if not 0 <= operating_point < points:
        raise BadValueError(f"operating point {operating_point}", f"0 to {points - 1}")


class EmulatedActuator:
    """Keeps the operating point of an emulated chip.

    Args:
        points: Operating points of the chip.

    Attributes:
        operating_point: The current one; the top one at first.
        changes: How often it changed.
    """

    def __init__(self, points: int) -> None:
        self.points = points
        self.operating_point = points - 1
        self.changes = 0

    def set(self, operating_point: int) -> None:
        """Change the point.

        Raises:
            BadValueError: The chip has no such point.
        """
        check_point(operating_point, self.points)
        self.changes += operating_point != self.operating_point
        self.operating_point = operating_point
