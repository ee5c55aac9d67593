"""What a host's layers take, as its owner measured it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clone_rl.errors import BadValueError
from clone_rl.hw_emulator.workload import is_count


def check_counts(**values: int) -> None:
    """Numbers of something.

    Raises:
        BadValueError: One is below 1, or no whole number.
    """
    for name, value in values.items():
        if not is_count(value) or value < 1:
            raise BadValueError(f"{name} is {value!r}", "a whole number, at least 1")


def check_slowdown(slowdown: float) -> float:
    """A factor on times.

    Raises:
        BadValueError: Below 1 or not finite.
    """
    if not 1.0 <= slowdown < np.inf:
        raise BadValueError(f"slowdown is {slowdown}", "a finite number, 1 or more")
    return float(slowdown)


def seconds_of(name: str, values: ArrayLike, shape: tuple[int, ...], zeros: bool = False) -> NDArray[np.float64]:
    """Seconds of a shape.

    Raises:
        BadValueError: Of another one, or not finite and above 0.
    """
    array = np.asarray(values, np.float64)
    try:
        array = np.broadcast_to(array, shape)
    except ValueError:
        raise BadValueError(f"{name} has shape {array.shape}", f"{shape}") from None
    if not np.isfinite(array).all() or (array < 0).any() or not (zeros or (array > 0).all()):
        raise BadValueError(f"{name} has {array.min()} to {array.max()} s", "finite numbers above 0")
    return array


def _dense(name: str, lengths: ArrayLike, values: ArrayLike) -> NDArray[np.float64]:
    """(longest + 1, P) the values of the next measured length; longer takes no less.

    Raises:
        BadValueError: Lengths do not ascend from 1 on, or values are no times.
    """
    ends, rows = np.asarray(lengths, np.int64), np.asarray(values, np.float64)
    if ends.ndim != 1 or not len(ends) or ends[0] < 1 or (np.diff(ends) < 1).any():
        raise BadValueError(f"lengths of {name} are {ends.tolist()}", "whole numbers that ascend, from 1 on")
    if rows.ndim != 2:
        raise BadValueError(f"{name} has shape {rows.shape}", "(lengths, operating points)")
    table = np.maximum.accumulate(seconds_of(name, rows, (len(ends), rows.shape[1])))
    return table[np.searchsorted(ends, np.arange(ends[-1] + 1))]


class Measurements(NamedTuple):
    """Seconds at P operating points, lowest first.

    Attributes:
        decode: (C, P) one layer in decoding, by positions in the cache.
        prefill: (T, P) one layer of a prompt, by its length.
        head: (P,) the head.
        switch: (P, P) a change of operating point.
        decide: (P,) the controller and its probe at a boundary.
    """

    decode: NDArray[np.float64]
    prefill: NDArray[np.float64]
    head: NDArray[np.float64]
    switch: NDArray[np.float64]
    decide: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        layers: int,
        contexts: ArrayLike,
        decode_s: ArrayLike,
        prompts: ArrayLike,
        prefill_s: ArrayLike,
        head_s: ArrayLike,
        switch_s: ArrayLike,
        decide_s: float,
    ) -> Measurements:
        """Tables for every length; arguments as of ``measured_shield``.

        Raises:
            BadValueError: A shape or a number is wrong.
        """
        check_counts(layers=layers)
        decode, prefill = _dense("decode_s", contexts, decode_s), _dense("prefill_s", prompts, prefill_s)
        points = decode.shape[1]
        if prefill.shape[1] != points:
            raise BadValueError(f"prefill_s has {prefill.shape[1]} operating points", f"{points}, as decode_s has")
        return cls(
            decode,
            prefill,
            seconds_of("head_s", head_s, (points,)),
            seconds_of("switch_s", switch_s, (points, points), zeros=True) * (1.0 - np.eye(points)),
            seconds_of("decide_s", decide_s, (points,), zeros=True),
        )
