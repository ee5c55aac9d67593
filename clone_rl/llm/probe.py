"""The exit probe: per layer a small network that predicts what leaving here would cost.

Trained offline on the model's own hidden states, it reads the normalised residual stream: a few dot products of its width,
against as many as the vocabulary has words for asking the head itself. It reads nothing else, so that what it says of a
token does not depend on how deep earlier tokens went.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from clone_rl.errors import BadFileError, BadValueError, reason
from clone_rl.files import replacing

UNITS = 32
"""Hidden units per exit."""

KL_FROM, KL_TO = -14.0, 4.0
"""Of the logarithm of KL, nats: what a probe may say, far beyond what is seen."""

_STEPS, _EPOCHS = (200, 2000), 24  # bounds, and passes over the tokens between them: more would learn them by heart
_ROWS = 2048
_BISECTIONS = 40
_RATE = 0.01
_LINEAR = {"weight", "bias"}


def normalised(hidden: torch.Tensor) -> torch.Tensor:
    """States of root mean square one, which is what the probe reads."""
    return F.rms_norm(hidden.float(), hidden.shape[-1:])


def _signals(raw: torch.Tensor) -> torch.Tensor:
    return torch.stack((raw[..., 0].sigmoid(), raw[..., 1].clamp(KL_FROM, KL_TO).exp()), -1)


@dataclass(frozen=True)
class Probe:
    """For every exit a layer of squared rectified units, and two read-outs of it; E exits, U units.

    Attributes:
        inner: (E, U, width) weights of the units.
        inner_bias: (E, U).
        outer: (E, 2, U) weights of the log-odds of agreement and of the logarithm of KL, nats.
        outer_bias: (E, 2).

    Raises:
        BadValueError: Shapes that do not fit together, or values that are not finite.
    """

    inner: torch.Tensor
    inner_bias: torch.Tensor
    outer: torch.Tensor
    outer_bias: torch.Tensor

    def __post_init__(self) -> None:
        if self.inner.ndim != 3:
            raise BadValueError(f"inner weights of shape {tuple(self.inner.shape)}", "exits, units, width")
        exits, units, _ = self.inner.shape
        for name, shape in (("inner_bias", (exits, units)), ("outer", (exits, 2, units)), ("outer_bias", (exits, 2))):
            if (found := tuple(getattr(self, name).shape)) != shape:
                raise BadValueError(f"{name} of shape {found}", f"{shape} goes with {tuple(self.inner.shape)}")
        if not all(tensor.isfinite().all() for tensor in self._tensors().values()):
            raise BadValueError("weights that are not finite")

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def exits(self) -> int:
        """Layers of the model less one."""
        return len(self.inner)

    @property
    def width(self) -> int:
        """Size of the residual stream that it reads."""
        return int(self.inner.shape[-1])

    @property
    def dots(self) -> int:
        """Dot products of the width of the residual stream that one read takes."""
        return int(self.inner.shape[1])

    @property
    def sha256(self) -> str:
        """Hash of what it computes."""
        digest = hashlib.sha256()
        for tensor in self._tensors().values():
            digest.update(repr(tuple(tensor.shape)).encode() + tensor.float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def signals(self, hidden: torch.Tensor, exit_layer: int) -> torch.Tensor:
        """Predictions from the state after ``exit_layer`` layers.

        Args:
            hidden: (..., width) residual stream.
            exit_layer: 1 to L - 1.

        Returns:
            (..., 2): probability that this exit agrees with full depth, and expected KL(full || exit) in nats.

        Raises:
            BadValueError: No such exit, or states of another width.
        """
        if not 1 <= exit_layer <= self.exits or hidden.shape[-1] != self.width:
            raise BadValueError(
                f"exit {exit_layer}, states of width {hidden.shape[-1]}", f"1 to {self.exits}, width {self.width}"
            )
        at = exit_layer - 1
        units = F.linear(normalised(hidden), self.inner[at], self.inner_bias[at]).relu().square()
        return _signals(F.linear(units, self.outer[at], self.outer_bias[at]))

    def raw(self, hidden: torch.Tensor) -> torch.Tensor:
        """Log-odds of agreement and logarithm of KL at all exits, before any limits; (E, T, width) states, gives (E, T, 2)."""
        if hidden.shape[0] != self.exits or hidden.shape[-1] != self.width:
            raise BadValueError(f"states of shape {tuple(hidden.shape)}", f"{self.exits} exits, width {self.width}")
        blocks = [_forward(tuple(self._tensors().values()), block) for block in hidden.split(_ROWS, 1)]
        return torch.cat(blocks, 1)

    def all_signals(self, hidden: torch.Tensor) -> torch.Tensor:
        """Predictions of all exits at once.

        Args:
            hidden: (E, T, width) states after layers 1 to L - 1.

        Returns:
            (E, T, 2), see ``signals``.

        Raises:
            BadValueError: States of another number of exits or width.
        """
        return _signals(self.raw(hidden))

    def save(self, path: Path) -> None:
        """Write as safetensors; the file appears complete or not at all."""
        with replacing(path) as aside:
            aside.write_bytes(save({name: tensor.cpu().contiguous() for name, tensor in self._tensors().items()}))


def _forward(tensors: tuple[torch.Tensor, ...], hidden: torch.Tensor) -> torch.Tensor:
    inner, inner_bias, outer, outer_bias = tensors
    units = torch.baddbmm(inner_bias[:, None], normalised(hidden), inner.mT).relu().square()
    return torch.baddbmm(outer_bias[:, None], units, outer.mT)


def load_probe(path: Path, exits: int = 0, width: int = 0) -> Probe:
    """Read a probe.

    Args:
        path: What ``Probe.save`` wrote.
        exits: Of the model that it is for, where that is known.
        width: Of its residual stream, likewise.

    Raises:
        BadFileError: Missing, not a probe, or the probe of a model of another size.
    """
    again = "fit one with: clone-rl probe"
    try:
        tensors = load_file(path)
        if tensors.keys() == _LINEAR:
            raise BadFileError(f"{path} is not an exit probe of this version: it is linear", again)
        probe = Probe(**tensors)
    except (OSError, SafetensorError, TypeError, BadValueError) as error:
        raise BadFileError(f"{path} is not an exit probe: {reason(error)}") from None
    if (probe.exits, probe.width) != (exits or probe.exits, width or probe.width):
        found = f"{probe.exits} exits of width {probe.width}"
        raise BadFileError(f"{path} is the probe of another model: it has {found}, not {exits} of width {width}", again)
    return probe


def fit_probe(
    hidden: torch.Tensor, agree: torch.Tensor, kl: torch.Tensor, units: int = UNITS, steps: int = 0, seed: int = 0
) -> Probe:
    """Fit every exit's network at once.

    Args:
        hidden: (E, T, width) states after layers 1 to L - 1.
        agree: (E, T) 1 where the exit's top token is full depth's.
        kl: (E, T) KL(full || exit), nats.
        units: Hidden units per exit.
        steps: Of AdamW; without a number as many as pay for so many tokens.
        seed: Of first weights and minibatches.

    Returns:
        The probe, not calibrated yet: agreement by logistic regression, KL as the mean of an exponential distribution.
    """
    exits, tokens, width = hidden.shape
    steps = steps or min(_STEPS[1], max(_STEPS[0], _EPOCHS * tokens // _ROWS))
    generator = torch.Generator().manual_seed(seed)
    rate = (agree.mean(1) * tokens + 1) / (tokens + 2)
    tensors = (
        torch.randn(exits, units, width, generator=generator) / width**0.5,
        torch.zeros(exits, units),
        torch.randn(exits, 2, units, generator=generator) * 0.1 / units**0.5,
        torch.stack((rate.logit(), kl.mean(1).clamp_min(1e-6).log()), -1),
    )
    for tensor in tensors:
        tensor.requires_grad_()
    optimiser = torch.optim.AdamW(tensors, lr=_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.02, steps)
    for _ in range(steps):
        rows = torch.randint(tokens, (min(_ROWS, tokens),), generator=generator)
        raw = _forward(tensors, hidden[:, rows])
        log_mean = raw[..., 1].clamp(KL_FROM, KL_TO)
        loss = F.binary_cross_entropy_with_logits(raw[..., 0], agree[:, rows])
        loss = loss + (kl[:, rows] * (-log_mean).exp() + log_mean).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return Probe(*(tensor.detach() for tensor in tensors))


def calibrated(probe: Probe, hidden: torch.Tensor, agree: torch.Tensor, kl: torch.Tensor) -> Probe:
    """The probe with its outputs set right on tokens that it was not fitted on, folded into its weights.

    Agreement gets a slope and an offset of the log-odds per exit (Platt), KL a factor per exit that makes its mean right.

    Args:
        probe: What ``fit_probe`` gave.
        hidden, agree, kl: As for ``fit_probe``, of other tokens.
    """
    with torch.no_grad():
        raw = probe.raw(hidden).double()
    slope, offset = _platt(raw[..., 0], agree.double())
    gain = torch.stack((slope, torch.ones_like(slope)), 1)
    shift = torch.stack((offset, _log_factor(raw[..., 1], kl.double().mean(1))), 1)
    outer, bias = probe.outer.double() * gain[..., None], probe.outer_bias.double() * gain + shift
    return Probe(probe.inner, probe.inner_bias, outer.float(), bias.float())


def _log_factor(log_kl: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Logarithm of the factor per row that gives what is said of KL this mean, within the limits of what may be said."""
    low, high = torch.full_like(mean, KL_FROM - KL_TO), torch.full_like(mean, KL_TO - KL_FROM)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        over = (log_kl + middle[:, None]).clamp(KL_FROM, KL_TO).exp().mean(1) > mean
        low, high = torch.where(over, low, middle), torch.where(over, middle, high)
    return (low + high) / 2


def _platt(odds: torch.Tensor, label: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Slope and offset per row that make log-odds likely; as if a token more spoke for leaving them alone."""
    slope, offset = (torch.full((len(odds),), value, dtype=torch.float64, requires_grad=True) for value in (1.0, 0.0))
    optimiser = torch.optim.LBFGS([slope, offset], max_iter=100, line_search_fn="strong_wolfe", tolerance_change=1e-12)

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        stated = slope[:, None] * odds + offset[:, None]
        value = F.binary_cross_entropy_with_logits(stated, label, reduction="none").sum(1)
        total = ((value + (slope - 1) ** 2 + offset**2) / odds.shape[1]).sum()
        total.backward()
        return total

    optimiser.step(loss)
    # A slope below zero would mean that the probe had learnt the opposite: noise, on a slice without information.
    return slope.detach().clamp_min(0), offset.detach()


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
