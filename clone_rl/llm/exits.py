"""What every exit of every position would have emitted, against full depth: one pass per document, heads in batches."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F


class ExitStatistics(NamedTuple):
    """Per exit (after layers 1 to L - 1) and position; see ``exit_statistics``."""

    agree: torch.Tensor
    kl: torch.Tensor
    dnll: torch.Tensor
    nll: torch.Tensor


@torch.inference_mode()
def exit_statistics(model: Any, states: torch.Tensor, targets: torch.Tensor) -> ExitStatistics:
    """Quality of every exit.

    Args:
        model: A causal language model with ``get_decoder().norm`` and ``lm_head``.
        states: (L, T, hidden) residual stream after each layer.
        targets: (T,) the token that follows each position in the text.

    Returns:
        ``agree`` (L - 1, T) 1 where the top token is full depth's, ``kl`` (L - 1, T) KL(full || exit) in nats, ``dnll``
        (L - 1, T) increase of the target's negative log-likelihood in nats, ``nll`` (T,) at full depth.
    """
    norm, head = model.get_decoder().norm, model.lm_head
    full = F.log_softmax(head(norm(states[-1])).float(), -1)
    nll = F.nll_loss(full, targets, reduction="none")
    top = full.argmax(-1)
    agree, kl, dnll = [], [], []
    for state in states[:-1]:
        early = F.log_softmax(head(norm(state)).float(), -1)
        agree.append((early.argmax(-1) == top).float())
        kl.append((full.exp() * (full - early)).sum(-1).clamp_min(0))
        dnll.append(F.nll_loss(early, targets, reduction="none") - nll)
    return ExitStatistics(torch.stack(agree), torch.stack(kl), torch.stack(dnll), nll)
