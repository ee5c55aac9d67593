"""What every exit of every position shows and would have emitted, against full depth: one pass, heads in batches."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from clone_rl.llm.anatomy import Anatomy

_ROWS = 128
"""Positions whose logits are held at a time: a few megabytes, so that they stay in the processor's cache."""


class ExitStatistics(NamedTuple):
    """Quality of every exit; L layers, T positions.

    Attributes:
        agree: (L - 1, T) 1 where the exit's top token is full depth's.
        kl: (L - 1, T) KL(full || exit), nats.
        dnll: (L - 1, T) increase of the target's negative log-likelihood over full depth, nats.
        nll: (T,) negative log-likelihood of the target at full depth, nats.
        margin: (L, T) log-probability of the top token minus that of the second, nats; the last row is full depth.
        entropy: (L, T) of the distribution that leaving emits, nats; the last row is full depth.
        top: (L, T) the most probable token; the last row is full depth.
    """

    agree: torch.Tensor
    kl: torch.Tensor
    dnll: torch.Tensor
    nll: torch.Tensor
    margin: torch.Tensor
    entropy: torch.Tensor
    top: torch.Tensor


class _Read(NamedTuple):
    """One exit's distribution: log of the normaliser, entropy, margin, top token."""

    norm: torch.Tensor
    entropy: torch.Tensor
    margin: torch.Tensor
    top: torch.Tensor


def _read(logits: torch.Tensor, weights: torch.Tensor) -> _Read:
    """Read logits (T, V); leaves exp(logits - maximum) in ``weights``."""
    first, top = logits.max(-1)
    torch.sub(logits, first[:, None], out=weights)
    weights.exp_()
    total = weights.sum(-1)
    norm = first + total.log()
    entropy = norm - torch.linalg.vecdot(weights, logits) / total
    # A second pass without the winner is several times faster than topk.
    kept = logits.gather(1, top[:, None])
    second = logits.scatter_(1, top[:, None], -torch.inf).amax(-1)
    logits.scatter_(1, top[:, None], kept)
    return _Read(norm, entropy.clamp_min(0), first - second, top)


@torch.inference_mode()
def exit_statistics(anatomy: Anatomy, states: list[torch.Tensor], targets: torch.Tensor) -> ExitStatistics:
    """Quality of every exit.

    Args:
        anatomy: The model's tail.
        states: L tensors (T, hidden): the residual stream after each layer.
        targets: (T,) the token that follows each position in the text.
    """
    parts = [
        _block(anatomy, [state[at : at + _ROWS] for state in states], targets[at : at + _ROWS])
        for at in range(0, len(targets), _ROWS)
    ]
    return ExitStatistics(*(torch.cat(columns, -1) for columns in zip(*parts, strict=True)))


def _block(anatomy: Anatomy, states: list[torch.Tensor], targets: torch.Tensor) -> ExitStatistics:
    full = anatomy.tail(states[-1][None])[0].float()
    weights = torch.empty_like(full)
    deep = _read(full, weights)
    probability = weights / weights.sum(-1, keepdim=True)
    target = targets[:, None]
    nll = deep.norm - full.gather(1, target)[:, 0]
    spare = weights
    columns: list[list[torch.Tensor]] = [[] for _ in range(6)]
    agree, kl, dnll, margin, entropy, top = columns
    for state in states[:-1]:
        logits = anatomy.tail(state[None])[0].float()
        read = _read(logits, spare)
        agree.append((read.top == deep.top).float())
        # sum p_full (log p_full - log p_exit), with both logarithms expanded
        kl.append((read.norm - torch.linalg.vecdot(probability, logits) - deep.entropy).clamp_min(0))
        dnll.append(read.norm - logits.gather(1, target)[:, 0] - nll)
        for column, value in ((margin, read.margin), (entropy, read.entropy), (top, read.top)):
            column.append(value)
    for column, value in ((margin, deep.margin), (entropy, deep.entropy), (top, deep.top)):
        column.append(value)
    return ExitStatistics(
        agree=torch.stack(agree),
        kl=torch.stack(kl),
        dnll=torch.stack(dnll),
        nll=nll,
        margin=torch.stack(margin),
        entropy=torch.stack(entropy),
        top=torch.stack(top),
    )


def hidden_statistics(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """What a layer did to the residual stream, at O(hidden) cost.

    Args:
        before, after: (..., hidden) state ahead of the layer and behind it.

    Returns:
        (..., 3): log10 of the root mean square of ``after``; |after - before| / |after|; cosine of the two.
    """
    before, after = before.float(), after.float()
    size = after.norm(dim=-1).clamp_min(1e-12)
    level = (size / after.shape[-1] ** 0.5).log10()
    return torch.stack((level, (after - before).norm(dim=-1) / size, F.cosine_similarity(before, after, dim=-1)), -1)
