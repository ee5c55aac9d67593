"""One comparison of the emulator with somebody else's figure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    """A comparison.

    Attributes:
        id: Group of the check (V1 to V14) and what is compared, with its unit; unique.
        reference: Somebody else's figure.
        ours: The emulator's.
        tolerance: What is allowed, such as ``"10 %"``, ``"exact"`` or ``"factor 1.6"``.
        passed: Whether ``ours`` is within it.
        source: Where the reference comes from.
        error: ours / reference - 1; None where that means nothing.
        held_out: No constant of the emulator was fitted to, or read off, this reference.
    """

    id: str
    reference: float | str
    ours: float | str
    tolerance: str
    passed: bool
    source: str
    error: float | None = None
    held_out: bool = False

    def as_json(self) -> dict[str, Any]:
        """Plain data; ``passed`` is called ``pass``."""
        return {
            "id": self.id,
            "reference": self.reference,
            "ours": self.ours,
            "tolerance": self.tolerance,
            "pass": self.passed,
            "source": self.source,
            "error": self.error,
            "held_out": self.held_out,
        }


def within(name: str, reference: float, ours: float, share: float, source: str, held_out: bool = False) -> Check:
    """Passes where ``ours`` is at most ``share`` of the reference away from it; a share of 0 asks for equality."""
    reference, ours = float(reference), float(ours)
    error = ours / reference - 1
    tolerance = f"{100 * share:g} %" if share else "exact"
    return Check(name, reference, ours, tolerance, abs(error) <= share, source, error, held_out)


def within_factor(name: str, reference: float, ours: float, factor: float, source: str, held_out: bool = False) -> Check:
    """Passes where neither is more than ``factor`` times the other."""
    reference, ours = float(reference), float(ours)
    ratio = ours / reference
    passed = 1 / factor <= ratio <= factor
    return Check(name, reference, ours, f"factor {factor:g}", passed, source, ratio - 1, held_out)


def all_equal(name: str, equal: int, rows: int, source: str) -> Check:
    """Passes where every one of ``rows`` rows is equal; reference and ours are numbers of rows."""
    return Check(name, float(rows), float(equal), "exact", equal == rows, source, equal / rows - 1)


def worst(name: str, pairs: list[tuple[float, float]], share: float, source: str, held_out: bool = False) -> Check:
    """Of many ``(reference, ours)`` the one with the largest relative error, which has to be within ``share``."""
    reference, ours = max(pairs, key=lambda pair: abs(pair[1] / pair[0] - 1))
    rows = f"{len(pairs)} rows" if len(pairs) > 1 else "1 row"
    return within(name, reference, ours, share, f"{source}; the worst of {rows}", held_out)
