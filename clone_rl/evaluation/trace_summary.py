"""What a trace set says of its model: quality of every exit, and how far the exit signal can be trusted there."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clone_rl.envs.trace import SIGNALS, SPLITS, TraceSet

_BINS = 10
_AGREE, _KL = SIGNALS.index("agree"), SIGNALS.index("kl")


def auc(score: NDArray[Any], label: NDArray[Any]) -> float:
    """Area under the ROC curve: the probability that a positive scores above a negative; NaN where there is only one of them.

    >>> auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1]))
    0.75
    """
    _, which, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[which]  # equal scores share their mean rank
    positive = label > 0.5
    n, m = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m)) if n and m else float("nan")


def calibration_error(probability: NDArray[Any], label: NDArray[Any]) -> float:
    """Expected calibration error: mean distance of stated and observed rates over ten bins of equal width.

    >>> round(calibration_error(np.array([0.9, 0.9]), np.array([1.0, 1.0])), 3)
    0.1
    """
    index = np.clip((probability * _BINS).astype(np.int64), 0, _BINS - 1)
    gap = np.bincount(index, probability.astype(np.float64) - label, _BINS)
    return float(np.abs(gap).sum() / len(index))


def exit_figures(traces: TraceSet, rows: NDArray[np.bool_]) -> list[dict[str, float]]:
    """Figures of every exit over some tokens.

    Args:
        traces: The set.
        rows: (T,) which tokens count.

    Returns:
        For each exit: ``layer`` (layers that ran), ``agreement``, ``kl`` and ``dnll`` (nats per token), ``kl_predicted`` (mean
        of the signal), ``auc`` and ``ece`` of the predicted agreement, ``margin`` and ``entropy`` (nats) of what it emits.
    """
    found = []
    for exit_layer in range(1, traces.layers):
        at = (rows, exit_layer - 1)
        agree, signal = traces.read("agree", at), traces.read("signal", at)
        predicted = signal[:, _AGREE]
        means = {"agreement": agree, "kl_predicted": signal[:, _KL]}
        means |= {name: traces.read(name, at) for name in ("kl", "dnll", "margin", "entropy")}
        figures = {name: float(values.mean(dtype=np.float64)) for name, values in means.items()}
        found.append(
            {"layer": exit_layer, **figures, "auc": auc(predicted, agree), "ece": calibration_error(predicted, agree)}
        )
    return found


def summarise(traces: TraceSet, split: str = "") -> dict[str, Any]:
    """Counts and figures of a set.

    Args:
        traces: The set.
        split: Only documents of this split; all of them without one.

    Returns:
        ``requests`` by kind and split, ``tokens`` by kind, ``sampled`` (share of tokens of the model's own responses),
        ``exits`` and ``exits_by_kind`` (``exit_figures``), ``full_depth`` (mean margin and entropy, nats).

    Raises:
        UnknownNameError: ``split`` does not exist.
        BadValueError: The set has no documents of it.
    """
    chosen = np.zeros(len(traces.split), np.bool_)
    chosen[traces.documents(split) if split else slice(None)] = True
    lengths = np.diff(traces.offset)
    rows, kind_of = np.repeat(chosen, lengths), np.repeat(traces.kind, lengths)
    by_kind = {name: rows & (kind_of == k) for k, name in enumerate(traces.kinds) if (chosen & (traces.kind == k)).any()}
    return {
        "requests": {
            name: {s: int((chosen & (traces.kind == k) & (traces.split == i)).sum()) for i, s in enumerate(SPLITS)}
            for k, name in enumerate(traces.kinds)
            if name in by_kind
        },
        "tokens": {name: int(mask.sum()) for name, mask in by_kind.items()},
        "sampled": float((lengths * traces.sampled)[chosen].sum() / lengths[chosen].sum()),
        "exits": exit_figures(traces, rows),
        "exits_by_kind": {name: exit_figures(traces, mask) for name, mask in by_kind.items()},
        "full_depth": {name: float(getattr(traces, name)[rows, -1].mean(dtype=np.float64)) for name in ("margin", "entropy")},
    }
