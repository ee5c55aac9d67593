"""The exit probe for one state at a time, as a decode loop asks it: on the host, in compiled code.

A read takes a few thousand multiply-accumulates; as operations of a tensor library it would take ten times as long.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from clone_rl.envs.compiling import compiled
from clone_rl.llm.probe import KL_FROM, KL_TO, Probe

_EPSILON = float(np.finfo(np.float32).eps)
"""Added to the mean square, as ``torch.nn.functional.rms_norm`` does."""


@compiled
def _read(hidden: Any, inner: Any, inner_bias: Any, outer: Any, outer_bias: Any, units: Any) -> Any:
    """Log-odds of agreement and logarithm of KL; ``inner`` is (width, units), so that the inner loop runs in vectors."""
    square = 0.0
    for i in range(len(hidden)):
        square += hidden[i] * hidden[i]
    scale = np.float32(1.0 / math.sqrt(square / len(hidden) + _EPSILON))
    for j in range(len(units)):
        units[j] = inner_bias[j]
    for i in range(len(hidden)):
        x = hidden[i] * scale
        for j in range(len(units)):
            units[j] += x * inner[i, j]
    odds, log_kl = outer_bias[0], outer_bias[1]
    for j in range(len(units)):
        unit = max(units[j], np.float32(0.0))
        odds += outer[0, j] * unit * unit
        log_kl += outer[1, j] * unit * unit
    return odds, log_kl


class ProbeReader:
    """A probe that is asked about single states.

    Args:
        probe: What is read; its weights are copied.
    """

    def __init__(self, probe: Probe) -> None:
        def held(tensor: torch.Tensor) -> Any:
            return np.ascontiguousarray(tensor.detach().float().cpu().numpy())

        self._exits: list[tuple[Any, Any, Any, Any]] = [
            (held(exit_weights[0]), held(exit_weights[1]), held(exit_weights[2]), held(exit_weights[3]))
            for exit_weights in zip(probe.inner.mT, probe.inner_bias, probe.outer, probe.outer_bias, strict=True)
        ]
        self._dots = probe.dots

    def __call__(self, hidden: torch.Tensor, exit_layer: int) -> tuple[float, float]:
        """``Probe.signals`` of one state (width,), to rounding: probability of agreement, and expected KL in nats."""
        state = hidden.detach().to("cpu", torch.float32).contiguous().numpy()
        odds, log_kl = _read(state, *self._exits[exit_layer - 1], np.empty(self._dots, np.float32))
        return 0.5 * (1.0 + math.tanh(0.5 * odds)), math.exp(min(max(log_kl, KL_FROM), KL_TO))
