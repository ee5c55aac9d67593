"""Which of a device's frequencies stands for which operating point."""

from __future__ import annotations

from collections.abc import Sequence

from clone_rl.errors import BadValueError


def spread(frequencies_hz: Sequence[int], points: int) -> tuple[int, ...]:
    """Evenly chosen frequencies, lowest first, both ends among them; fewer than points are used more than once.

    Args:
        frequencies_hz: What the device can be set to.
        points: Operating points of the policy.

    Returns:
        (points,) never falling.

    Raises:
        BadValueError: No point, or no frequency.

    >>> spread([918, 306, 612, 510, 714], 3)
    (306, 612, 918)
    >>> spread([1000, 2000], 4), spread([1000, 2000], 1)
    ((1000, 1000, 2000, 2000), (2000,))
    """
    ordered = sorted(set(frequencies_hz))
    if points < 1 or not ordered or ordered[0] <= 0:
        raise BadValueError(f"{points} operating points from {len(ordered)} frequencies", "at least one of each, above 0 Hz")
    if points == 1:
        return (ordered[-1],)
    return tuple(ordered[round(point * (len(ordered) - 1) / (points - 1))] for point in range(points))


def between(lowest_hz: int, highest_hz: int, points: int, step_hz: int = 1) -> tuple[int, ...]:
    """Frequencies at equal distances, for devices that take any within their range.

    Args:
        lowest_hz: First one.
        highest_hz: Last one.
        points: How many.
        step_hz: Unit that the device counts in.

    >>> between(800_000_000, 2_400_000_000, 3, 1000)
    (800000000, 1600000000, 2400000000)
    """
    gaps = max(points - 1, 1)
    return spread([lowest_hz + (highest_hz - lowest_hz) * i // gaps // step_hz * step_hz for i in range(gaps + 1)], points)
