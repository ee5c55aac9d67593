"""Muon in the precision of its parameters.

``torch.optim.Muon`` orthogonalises in bfloat16, one matrix at a time, which crawls on a CPU without bfloat16 instructions;
here matrices of one shape are stacked and the iteration runs in float32.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch

_NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Keller Jordan, Muon (2024): quintic Newton-Schulz


def orthogonalise(updates: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Replace each matrix of a stack (n, rows, columns) by a nearly orthogonal one of the same row and column space."""
    a, b, c = _NS_COEFFICIENTS
    tall = updates.shape[-2] > updates.shape[-1]
    x = updates.mT if tall else updates
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, b * gram + c * gram @ gram, x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton-Schulz, with AdamW's update size and decoupled weight decay.

    Args:
        params: 2-D parameters.
        lr: Learning rate, in AdamW's scale (0.2 * sqrt(max(rows, columns)), Moonshot 2025, arXiv 2502.16982).
        momentum: Nesterov momentum.
        weight_decay: Decoupled decay per unit of learning rate.
    """

    def __init__(
        self, params: Iterable[torch.Tensor], lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.05
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            by_shape: dict[Any, list[torch.Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                updates = []
                for parameter in parameters:
                    gradient = parameter.grad
                    assert gradient is not None
                    average = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                    average.lerp_(gradient, 1 - group["momentum"])
                    updates.append(gradient.lerp(average, group["momentum"]))
                size = 0.2 * max(shape) ** 0.5
                for parameter, update in zip(parameters, orthogonalise(torch.stack(updates)), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * size)
        return loss
