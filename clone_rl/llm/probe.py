"""The exit probe: per layer two dot products that predict what leaving here would cost.

Trained offline on the model's own hidden states, it reads the normalised residual stream: d multiply-accumulates a signal,
against d x vocabulary for asking the head itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from clone_rl.envs.trace import SIGNALS
from clone_rl.errors import BadFileError


def _normalised(hidden: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(hidden, hidden.shape[-1:])


@dataclass(frozen=True)
class Probe:
    """One linear read-out per exit.

    Attributes:
        weight: (L - 1, 2, hidden).
        bias: (L - 1, 2).
    """

    weight: torch.Tensor
    bias: torch.Tensor

    def signals(self, hidden: torch.Tensor, exit_layer: int) -> torch.Tensor:
        """Predictions from the state after ``exit_layer`` layers.

        Args:
            hidden: (..., hidden) residual stream.
            exit_layer: 1 to L - 1.

        Returns:
            (..., 2): probability that this exit agrees with full depth, and expected KL(full || exit) in nats.
        """
        raw = _normalised(hidden.float()) @ self.weight[exit_layer - 1].T + self.bias[exit_layer - 1]
        return torch.stack((torch.sigmoid(raw[..., 0]), F.softplus(raw[..., 1])), -1)

    def save(self, path: Path) -> None:
        """Write as safetensors."""
        save_file({"weight": self.weight.contiguous(), "bias": self.bias.contiguous()}, path)


def load_probe(path: Path) -> Probe:
    """Read a probe.

    Raises:
        BadFileError: Missing or not a probe.
    """
    try:
        tensors = load_file(path)
        return Probe(tensors["weight"], tensors["bias"])
    except (OSError, SafetensorError, KeyError) as error:
        raise BadFileError(f"{path} is not an exit probe: {error}") from None


def fit_probe(hidden: torch.Tensor, agree: torch.Tensor, kl: torch.Tensor, steps: int = 600, seed: int = 0) -> Probe:
    """Fit every layer's probe at once.

    Args:
        hidden: (L - 1, T, d) states after layers 1 to L - 1.
        agree: (L - 1, T) 1 where the exit's top token is full depth's.
        kl: (L - 1, T) KL(full || exit), nats.
        steps: Adam steps.
        seed: Of the minibatches.

    Returns:
        The probe: agreement by logistic regression, KL as the mean of an exponential distribution.
    """
    exits, tokens, width = hidden.shape
    generator = torch.Generator().manual_seed(seed)
    x = _normalised(hidden.float())
    weight = torch.zeros(exits, len(SIGNALS), width, requires_grad=True)
    bias = torch.zeros(exits, len(SIGNALS), requires_grad=True)
    optimiser = torch.optim.AdamW([weight, bias], lr=0.01, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.02, steps)
    for _ in range(steps):
        rows = torch.randint(tokens, (4096,), generator=generator)
        raw = torch.einsum("ltd,lsd->lts", x[:, rows], weight) + bias[:, None]
        expected = F.softplus(raw[..., 1]) + 1e-4
        loss = F.binary_cross_entropy_with_logits(raw[..., 0], agree[:, rows])
        loss = loss + (kl[:, rows] / expected + expected.log()).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return Probe(weight.detach(), bias.detach())


def auc(score: torch.Tensor, label: torch.Tensor) -> float:
    """Area under the ROC curve: the probability that a positive scores above a negative.

    >>> auc(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0, 0, 1, 1]))
    0.75
    """
    _, which, counts = score.unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0) - (counts - 1) / 2).double()[which]  # equal scores share their mean rank
    positive = label > 0.5
    n, m = int(positive.sum()), int((~positive).sum())
    if n == 0 or m == 0:
        return float("nan")
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m))


def calibration_error(probability: torch.Tensor, label: torch.Tensor, bins: int = 10) -> float:
    """Expected calibration error: mean distance of stated and observed rates over equal-width bins.

    >>> round(calibration_error(torch.tensor([0.9, 0.9]), torch.tensor([1.0, 1.0])), 3)
    0.1
    """
    index = (probability * bins).long().clamp(0, bins - 1)
    error = 0.0
    for b in range(bins):
        if (rows := index == b).any():
            error += float(rows.float().mean() * (probability[rows].mean() - label[rows].float().mean()).abs())
    return error
