"""A policy in integers: weights of 16 bits, sums of 32, tanh from a table. What the C header computes, to the last bit."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clone_rl.agents.policy import Policy
from clone_rl.errors import BadValueError

ONE_BITS = 14
"""Observations and activations are whole multiples of 2**-14 within [-1, 1]."""

TANH_BITS = 5
"""The table has 2**5 steps for a unit, with straight lines in between."""

TANH_STEPS = 256
"""It ends where tanh is 1 to 14 bits."""

_MOST_SHIFT = 12  # keeps a step of the table times its fraction within 31 bits
_INT16, _INT32 = 2**15 - 1, 2**31 - 1

TANH = np.rint(np.tanh(np.arange(TANH_STEPS + 1) / 2**TANH_BITS) * 2**ONE_BITS).astype(np.int64)
"""(TANH_STEPS + 1,) tanh from 0 up; tanh is odd."""


class FixedLayer(NamedTuple):
    """A layer in integers.

    Attributes:
        weight: (in, out) times ``2**shift``, within 16 bits.
        bias: (out,) times ``2**(shift + ONE_BITS)``, as the sums are.
        shift: Bits behind the point of the weights.
    """

    weight: NDArray[np.int64]
    bias: NDArray[np.int64]
    shift: int


def _fixed_layer(weight: NDArray[np.float32], bias: NDArray[np.float32]) -> FixedLayer | None:
    """With as many bits as no sum of inputs within [-1, 1] can overflow; None where there are none."""
    for shift in range(_MOST_SHIFT, -1, -1):
        w = np.rint(weight.T.astype(np.float64) * 2**shift).astype(np.int64)
        b = np.rint(bias.astype(np.float64) * 2 ** (shift + ONE_BITS)).astype(np.int64)
        largest = np.abs(w).sum(0) * 2**ONE_BITS + np.abs(b)
        if np.abs(w).max() <= _INT16 and largest.max() <= _INT32:
            return FixedLayer(w, b, shift)
    return None


class FixedPolicy:
    """A policy in integers.

    Args:
        policy: The network.

    Raises:
        BadValueError: A weight is too large for 16 bits.
    """

    def __init__(self, policy: Policy) -> None:
        self.layers: list[FixedLayer] = []
        self._ends = np.cumsum(policy.heads)
        for index, (weight, bias) in enumerate(policy.layers):
            if (layer := _fixed_layer(weight, bias)) is None:
                raise BadValueError(
                    f"layer {index} of policy {policy.name!r} has weights up to {np.abs(weight).max():.3g}",
                    "too large for 16 bits; export it without --fixed",
                )
            self.layers.append(layer)

    def sums(self, inputs: NDArray[np.int16]) -> NDArray[np.int64]:
        """(N, sum of heads) logits, times ``2**(shift + ONE_BITS)`` of the last layer."""
        x = np.clip(inputs.astype(np.int64), -(2**ONE_BITS), 2**ONE_BITS)
        for index, (weight, bias, shift) in enumerate(self.layers):
            x = x @ weight + bias
            if index < len(self.layers) - 1:
                x = _tanh(x, shift + ONE_BITS - TANH_BITS)
        return x

    def act(self, inputs: NDArray[np.int16]) -> NDArray[np.int64]:
        """(N, heads) actions for (N, width) observations as ``inputs`` gives them."""
        parts = np.split(self.sums(inputs), self._ends[:-1], axis=1)
        return np.stack([part.argmax(1) for part in parts], 1)


def inputs_of(observations: NDArray[np.float32]) -> NDArray[np.int16]:
    """(N, width) observations as 16-bit integers, halves away from zero, as ``clone_rl_quantise`` in C; NaN is -1."""
    x = np.asarray(observations, np.float32)
    scaled = np.where(x > -1.0, np.minimum(x, np.float32(1.0)), np.float32(-1.0)) * np.float32(2**ONE_BITS)
    return np.trunc(scaled + np.copysign(np.float32(0.5), scaled)).astype(np.int16)


def _tanh(sums: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    """``2**ONE_BITS`` times the tanh of sums with ``bits`` more than the table's steps."""
    size = np.abs(sums)
    step = np.minimum(size >> bits, TANH_STEPS - 1)
    part = size - (step << bits)
    between = TANH[step] + (((TANH[step + 1] - TANH[step]) * part + (1 << (bits - 1))) >> bits)
    return np.asarray(np.sign(sums) * np.where(size >> bits >= TANH_STEPS, TANH[-1], between))
