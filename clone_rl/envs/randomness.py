"""Counter-based random numbers: the same key always gives the same number, whatever was drawn before.

Keyed by (seed, episode, stream, index), so that row i of a vector environment equals the single environment with seed + i
bit for bit, and every controller meets the same requests and the same interference.
"""

from __future__ import annotations

import numpy as np

from clone_rl.code_cache import kept
from clone_rl.errors import BadValueError
from clone_rl.hw_emulator.workload import is_count

REQUEST, INTERFERENCE = 1, 2
"""Streams."""


def check_seed(seed: object, rows: int = 1) -> int:
    """A seed as the kernel takes it.

    Args:
        seed: What was asked for.
        rows: How many seeds in a row are taken from there.

    Raises:
        BadValueError: No whole number, negative, or too large for 64 bits.
    """
    if not is_count(seed) or int(seed) + rows > 2**63:  # type: ignore[call-overload]
        raise BadValueError(f"seed {seed!r}", "a whole number from 0, less than 2**63")
    return int(seed)  # type: ignore[call-overload,no-any-return]


@kept
def _mix(x: np.uint64) -> np.uint64:
    # Finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014).
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@kept
def uniform(seed: int, episode: int, stream: int, index: int) -> float:
    """A number in [0, 1) with 53 random bits."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    x = _mix(np.uint64(seed) * golden + np.uint64(1))
    x = _mix(x + np.uint64(episode) * golden)
    x = _mix(x + np.uint64(stream) * golden)
    x = _mix(x + np.uint64(index) * golden)
    return float(x >> np.uint64(11)) * (1.0 / 9007199254740992.0)
