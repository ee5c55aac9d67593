"""All comparisons together."""

from __future__ import annotations

from pathlib import Path

from clone_rl.hw_emulator.validation.boards import check_agx, check_nano
from clone_rl.hw_emulator.validation.check import Check
from clone_rl.hw_emulator.validation.energyllm import check_energyllm
from clone_rl.hw_emulator.validation.peers import check_banks, check_products, check_rooflines, check_systolic
from clone_rl.hw_emulator.validation.silicon import check_core, check_frequency, check_power, check_regulator
from clone_rl.hw_emulator.validation.speed import check_speed
from clone_rl.hw_emulator.validation.systems import check_bandwidth, check_systems


def validate(reference: Path | None = None) -> list[Check]:
    """Compare the emulator with published silicon, measured boards and other simulators.

    Args:
        reference: Folder of raw tables, searched recursively for ``scalesim*.csv``, ``zigzag*.csv``, ``genz*.csv``,
            ``cacti7*.csv`` and ``agxorin_*fan*.csv``. What it lacks is not checked; without it the figures that ship with the
            package are.

    Returns:
        One check per comparison, V1 to V14; those that fail are among them.

    Raises:
        BadFileError: No such folder, or a table lacks a column or holds something else in it.
    """
    return [
        *check_systolic(reference),
        *check_products(reference),
        *check_rooflines(reference),
        *check_banks(reference),
        *check_frequency(),
        *check_power(),
        *check_core(),
        *check_bandwidth(),
        *check_systems(),
        *check_nano(),
        *check_agx(),
        *check_energyllm(reference),
        *check_regulator(),
        *check_speed(),
    ]
