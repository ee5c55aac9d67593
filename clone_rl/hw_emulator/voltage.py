"""Laws of the supply voltage: how fast a chip can be clocked, what a regulator wastes, how leakage grows."""

from __future__ import annotations

import math

from clone_rl.errors import BadValueError

ALPHA = 1.1
THRESHOLD_V = 0.525
"""Alpha-power law of typical 28 nm silicon, an effective threshold rather than a transistor's: solved from f(0.60 V)/f(1.00 V)
= 0.220, 0.207, 0.220 (4DGS ISSCC'26, LLM-CIM and CELLA VLSI'25) and f(0.65 V)/f(1.00 V) = 0.35 (4DGS)."""

REGULATORS = ("ideal", "switched-capacitor", "buck", "ldo")
"""Kinds of voltage regulator."""


def relative_frequency(voltage_v: float, threshold_v: float = THRESHOLD_V, alpha: float = ALPHA) -> float:
    """Highest clock at a voltage relative to that at 1 V: ((V - Vt) / (1 - Vt))^alpha / V.

    A process corner is a shift of the threshold.

    Raises:
        BadValueError: The voltage is not above the threshold.

    >>> round(relative_frequency(0.60), 3), round(relative_frequency(0.65), 3)
    (0.219, 0.354)
    """
    if voltage_v <= threshold_v:
        raise BadValueError(f"voltage {voltage_v} V", f"above the threshold, {threshold_v} V")
    return float(((voltage_v - threshold_v) / (1 - threshold_v)) ** alpha / voltage_v)


def corner_threshold_v(voltage_v: float, relative: float, alpha: float = ALPHA) -> float:
    """Threshold of a process corner that reaches ``relative`` of its 1 V clock at a voltage.

    >>> round(corner_threshold_v(0.60, relative_frequency(0.60)), 3)
    0.525
    """
    share = float((relative * voltage_v) ** (1 / alpha))
    return (voltage_v - share) / (1 - share)


def leakage_scale(voltage_v: float, reference_v: float, per_volt: float) -> float:
    """Leakage power relative to that at the reference voltage: (V / V0) exp(k (V - V0))."""
    return voltage_v / reference_v * math.exp(per_volt * (voltage_v - reference_v))


def regulator_gain(regulator: str, efficiency: float, input_v: float, voltage_v: float) -> float:
    """Joules drawn from the input per joule used on chip.

    A linear regulator passes the current on, so its loss is (Vin - V) I, and 1 % of the current is quiescent (99.2 % current
    efficiency: EdgeBERT). Switched-capacitor and buck regulators have one efficiency over their range.
    """
    if regulator == "ideal":
        return 1.0
    if regulator == "ldo":
        return input_v / voltage_v / 0.99
    return 1 / efficiency


def dynamic_scale(voltage_v: float, reference_v: float, gain: float) -> float:
    """Dynamic energy drawn from the input relative to the energy at the reference voltage: (V / V0)^2 times the gain.

    V^2 behind an ideal regulator, V Vin behind an LDO.
    """
    return (voltage_v / reference_v) ** 2 * gain
