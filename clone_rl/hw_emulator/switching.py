"""How long a change of voltage and frequency stalls the chip, by mechanism.

Frequency falls before voltage and rises after it: going down costs the relock alone (the voltage follows while the chip
runs), going up waits for the voltage as well.
"""

from __future__ import annotations

from dataclasses import dataclass

from clone_rl.errors import UnknownNameError


@dataclass(frozen=True)
class Mechanism:
    """One way to change the operating point.

    Attributes:
        relock_s: Stall of every change.
        slew_s_per_v: Further stall per volt of increase.
    """

    relock_s: float
    slew_s_per_v: float


MECHANISMS = {
    # For studies of what switching costs.
    "ideal": Mechanism(0.0, 0.0),
    # 28 nm switched-capacitor regulator, 20 ns transitions (Zimmer, JSSC 51(4) 2016), and an oscillator fed by it;
    # EdgeBERT's LDO slews 3.8 ns per 50 mV.
    "on-chip": Mechanism(20e-9, 76e-9),
    # 30 us command and PLL relock, PMIC ramp of 27.5 mV/us (Jetson Nano device tree, vdd_soc).
    "pmic": Mechanism(30e-6, 1 / 27.5e3),
    # Declared latency of Linux tegra186-cpufreq (300 us), same ramp.
    "os": Mechanism(300e-6, 1 / 27.5e3),
}
"""Known mechanisms; sources in the comments."""


def mechanism(name: str) -> Mechanism:
    """Look up a mechanism.

    Raises:
        UnknownNameError: Not one of ``MECHANISMS``.
    """
    if name not in MECHANISMS:
        raise UnknownNameError("switching mechanism", name, MECHANISMS)
    return MECHANISMS[name]
