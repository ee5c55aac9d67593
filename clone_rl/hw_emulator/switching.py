"""How long a change of voltage and frequency stalls the chip, by mechanism, and in which order it happens.

Frequency falls before voltage and rises after it: going down costs the relock alone (the voltage follows while the chip
runs), going up waits for the voltage as well.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from clone_rl.errors import BadValueError, UnknownNameError


@dataclass(frozen=True)
class Mechanism:
    """One way to change the operating point.

    Attributes:
        relock_s: Stall of every change: command and clock.
        slew_s_per_v: Time that the voltage takes per volt; it stalls the chip only on the way up.
    """

    relock_s: float
    slew_s_per_v: float


MECHANISMS = {
    # For studies of what switching costs.
    "ideal": Mechanism(0.0, 0.0),
    # LDO or switched-capacitor regulator and an all-digital clock beside it: 20 ns transitions in 28 nm (Zimmer, JSSC
    # 51(4) 2016); EdgeBERT's LDO slews 3.8 ns per 50 mV.
    "on-chip": Mechanism(20e-9, 76e-9),
    # 30 us command and PLL relock, PMIC ramp of 27.5 mV/us (Jetson Nano device tree, vdd_soc).
    "pmic": Mechanism(30e-6, 1 / 27.5e3),
    # Declared latency of Linux tegra186-cpufreq (300 us), same ramp.
    "os": Mechanism(300e-6, 1 / 27.5e3),
    # Jetson GPU clock through sysfs: users wait 100 ms after a write (EnergyLLM's code), same ramp.
    "devfreq": Mechanism(100e-3, 1 / 27.5e3),
}
"""Known mechanisms; sources in the comments."""


_TIME = re.compile(r"(\d+(?:\.\d*)?(?:e[+-]?\d+)?) *(ns|us|ms|s)")
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
LONGEST_S = 10.0
"""Longest stall that may be written as a time."""


def mechanism(name: str) -> Mechanism:
    """Look up a mechanism.

    Args:
        name: One of ``MECHANISMS``, or a time such as ``100 ns``: every change stalls for that long, in either direction and
            however far it goes.

    Raises:
        UnknownNameError: Neither of them.
        BadValueError: A time above ``LONGEST_S``.

    >>> mechanism("5 ms").relock_s
    0.005
    """
    if name in MECHANISMS:
        return MECHANISMS[name]
    if (found := _TIME.fullmatch(name.strip())) is None:
        raise UnknownNameError("switching mechanism", name, MECHANISMS, "or a time such as '100 ns'")
    seconds = float(found[1]) / _PER_SECOND[found[2]]
    if seconds > LONGEST_S:
        raise BadValueError(f"switching takes {name}", f"{LONGEST_S:g} s at most")
    return Mechanism(seconds, 0.0)


def time_name(seconds: float) -> str:
    """A stall of every change as the name that ``mechanism`` reads.

    >>> time_name(1e-7), time_name(0.005), time_name(0.0)
    ('100 ns', '5 ms', '0 s')
    """
    unit = "s" if seconds == 0.0 else next((u for u, per in _PER_SECOND.items() if seconds * per >= 1.0), "ns")
    return f"{seconds * _PER_SECOND[unit]:.12g} {unit}"


@dataclass(frozen=True)
class Step:
    """One step of a transition: what changes, over which time, to which values.

    Attributes:
        start_s, end_s: Since the request for the change.
        action: ``"frequency"`` or ``"voltage"``.
        voltage_v, frequency_hz: In force once the step has ended.
        stalled: Whether the clock stands still meanwhile.
    """

    start_s: float
    end_s: float
    action: str
    voltage_v: float
    frequency_hz: float
    stalled: bool


def transition(how: Mechanism, old: tuple[float, float], new: tuple[float, float]) -> list[Step]:
    """Order and times of a change between two operating points, each (voltage_v, frequency_hz).

    The clock is never above what the voltage of the moment carries. ``cost.switch_cost`` charges the stalled steps.

    >>> [step.action for step in transition(MECHANISMS["pmic"], (1.0, 500e6), (0.8, 342e6))]
    ['frequency', 'voltage']
    >>> [step.action for step in transition(MECHANISMS["pmic"], (0.8, 342e6), (1.0, 500e6))]
    ['voltage', 'frequency']
    """
    ramp_s = abs(new[0] - old[0]) * how.slew_s_per_v
    if new[0] < old[0]:
        return [
            Step(0.0, how.relock_s, "frequency", old[0], new[1], True),
            Step(how.relock_s, how.relock_s + ramp_s, "voltage", new[0], new[1], False),
        ]
    steps = [Step(0.0, ramp_s, "voltage", new[0], old[1], True)] if new[0] > old[0] else []
    return [*steps, Step(ramp_s, ramp_s + how.relock_s, "frequency", new[0], new[1], True)]
