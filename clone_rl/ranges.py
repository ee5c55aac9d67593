"""What a physical number can plausibly be: its unit and its range stand with the field that holds it.

``voltage_v: Annotated[float, Range("volts", 0.1, 2.0)]``. A range is wide enough for any device there is and too narrow for a
number in another unit, such as millivolts: what lies outside is refused in words that name the unit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from operator import mul
from typing import Any, get_type_hints

from clone_rl.errors import BadFileError, BadValueError

SHARE = "a share"
"""Unit of what is a part of a whole."""

_PREFIXES = (("milli", 1e-3), ("kilo", 1e3), ("micro", 1e-6), ("mega", 1e6), ("nano", 1e-9), ("giga", 1e9), ("pico", 1e-12))
_PREFIXED = ("volts", "watts", "hertz", "joules", "seconds", "bytes", "farads")
_OTHERS: dict[str, tuple[tuple[str, Callable[[float], float]], ...]] = {
    "Celsius": (("kelvin", lambda value: value - 273.15),),
    "mm2": (("square micrometres", lambda value: value * 1e-6), ("square metres", lambda value: value * 1e6)),
    SHARE: (("percent", lambda value: value / 100),),
}


@dataclass(frozen=True)
class Range:
    """Unit and plausible range of a number.

    Attributes:
        unit: In the plural, such as ``volts`` or ``joules per byte``; empty for a bare number.
        low, high: Both are allowed.
        zero: Whether 0 is allowed as well, as "there is none" or "not counted".
    """

    unit: str
    low: float
    high: float
    zero: bool = False

    def allows(self, value: float) -> bool:
        """Whether a number lies in the range; NaN does not."""
        return self.low <= value <= self.high or (self.zero and value == 0)

    def others(self, value: float) -> list[str]:
        """Units in which the number would lie in the range, the nearest ones first."""
        word, _, rest = self.unit.partition(" ")
        known = list(_OTHERS.get(self.unit, ()))
        if word in _PREFIXED:
            known += [(f"{prefix}{self.unit}", partial(mul, factor)) for prefix, factor in _PREFIXES]
        elif word in _OTHERS and rest:
            known += [(f"{name} {rest}", convert) for name, convert in _OTHERS[word]]
        return [name for name, convert in known if value and self.allows(convert(value))]

    def check(self, value: float, what: str, error: type[BadFileError | BadValueError] = BadValueError) -> None:
        """Refuse a number out of the range.

        Args:
            value: The number.
            what: Named in the error: where it stands, and its field.
            error: Class of the error.

        Raises:
            BadValueError, BadFileError: As ``error`` says.

        >>> Range("volts", 0.1, 2.0).check(640.0, "voltage_v")
        Traceback (most recent call last):
        clone_rl.errors.BadValueError: voltage_v is 640.0 (volts, 0.1 to 2; is it in millivolts?)
        """
        if self.allows(value):
            return
        *more, last = self.others(value) or [""]
        meant = f"{', '.join(more)} or {last}" if more else last
        also = ", or 0" if self.zero and self.low > 0 else ""
        hint = f"{self.unit}, {self.low:g} to {self.high:g}{also}".removeprefix(", ")
        if self.unit == SHARE and value > self.high:
            hint = "a share is at most 1"
        raise error(f"{what} is {value!r}", f"{hint}; is it in {meant}?" if meant else hint)


@cache
def _found(cls: Any) -> dict[str, Range]:
    hints = get_type_hints(cls, include_extras=True)
    notes = ((name, note) for name, hint in hints.items() for note in getattr(hint, "__metadata__", ()))
    return {name: note for name, note in notes if isinstance(note, Range)}


def ranges_of(cls: type[Any]) -> dict[str, Range]:
    """Ranges of the fields of a dataclass, by name; those without one are left out."""
    kind: Any = cls  # a class is hashable, which mypy does not see
    return _found(kind)


def check_ranges(part: Any, where: str, error: type[BadFileError | BadValueError] = BadFileError) -> None:
    """Refuse an object one of whose numbers is out of its range.

    Args:
        part: A dataclass; fields without a range are passed over, and so is what is no number.
        where: Named in the error before the field.
        error: Class of the error.

    Raises:
        BadFileError, BadValueError: As ``error`` says.
    """
    for name, allowed in ranges_of(type(part)).items():
        value = getattr(part, name)
        if isinstance(value, int | float):
            allowed.check(value, f"{where}{name}", error)
