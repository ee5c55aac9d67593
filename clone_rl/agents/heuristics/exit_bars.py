"""Where tokens of the training traces would leave, and what that would cost in quality: exits do not depend on V/f."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clone_rl.envs.scenario import Limits
from clone_rl.envs.trace import TraceSet

AGREE_BARS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995, 2.0)
KL_BARS = (0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.5, 2.0)
NO_KL_BAR = (2.0,)


class Decoded(NamedTuple):
    """The decoded tokens of a split: N tokens of D documents. The first token of a response comes from prefill, at full depth.

    Attributes:
        layers: Of the model.
        signal: (N, L - 1, 2) what the probe predicts.
        shown: (N, L - 1) its agreement as it is observed, see ``clone_rl.envs.trace.scaled_signals``.
        wrong: (N, L - 1) 1 where leaving there disagrees with full depth.
        nats: (N, L - 1) dNLL of leaving there.
        owner: (N,) which document of the split.
        emitted: (D,) tokens of each document, the first included.
    """

    layers: int
    signal: NDArray[np.float32]
    shown: NDArray[np.float32]
    wrong: NDArray[np.float32]
    nats: NDArray[np.float32]
    owner: NDArray[np.int64]
    emitted: NDArray[np.float64]

    @classmethod
    def of(cls, traces: TraceSet, split: str) -> Decoded:
        """The decoded tokens of a split."""
        documents = traces.documents(split)
        lengths = np.diff(traces.offset)[documents]
        tokens = traces.decoded(documents)
        shown, outcome = traces.packed
        return cls(
            layers=traces.layers,
            signal=traces.read("signal", tokens),
            shown=shown[tokens, :, 0],
            wrong=outcome[tokens, :, 0],
            nats=outcome[tokens, :, 1],
            owner=np.repeat(np.arange(len(documents)), lengths - 1),
            emitted=lengths.astype(float),
        )

    def first(self, sure: NDArray[np.bool_]) -> NDArray[np.int64]:
        """(N,) layers that each token runs if it leaves where it is ``sure``, (N, L - 1), for the first time."""
        return np.where(sure.any(1), sure.argmax(1) + 1, self.layers)

    def per_document(self, values: NDArray[np.float32], depth: NDArray[np.int64]) -> NDArray[np.float64]:
        """(D,) sums over tokens that leave at ``depth``, (N,), of ``values``, (N, L - 1); full depth amounts to nothing."""
        leaves = depth < self.layers
        at = values[np.arange(len(depth)), np.where(leaves, depth, 1) - 1]
        return np.asarray(np.bincount(self.owner, np.where(leaves, at, 0.0), len(self.emitted)), np.float64)

    def upper(self, sums: NDArray[np.float64]) -> float:
        """Mean per token of (D,) sums and one standard error over documents."""
        return upper_mean(sums, self.emitted)

    def holds(self, depth: NDArray[np.int64], limits: Limits) -> bool:
        """Whether leaving at ``depth``, (N,), holds the limits on quality by a standard error."""
        wrong, worse = (self.upper(self.per_document(values, depth)) for values in (self.wrong, self.nats))
        return wrong <= limits.disagree and worse <= limits.dnll


def upper_mean(sums: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """``sum(sums) / sum(weights)`` and one standard error of it over the D entries: what is held by it holds elsewhere too."""
    mean = sums.sum() / weights.sum()
    spread = (sums - mean * weights).std(ddof=1) / weights.mean() if len(sums) > 1 else 0.0
    return float(mean + spread / np.sqrt(len(sums)))


def exit_bars(traces: TraceSet, split: str, limits: Limits, kl_bars: Sequence[float] = KL_BARS) -> tuple[float, float]:
    """Bars on agreement and KL with the least mean depth whose quality stays within the limits.

    The limits are held by the mean plus one standard error over documents, so that they hold beyond the split as well.

    Args:
        traces: The set.
        split: Where the limits are to hold.
        limits: On disagreement and dNLL.
        kl_bars: Bars on KL to try, nats; ``NO_KL_BAR`` for agreement alone.

    Returns:
        ``(agree_bar, kl_bar)``; (2, 0) means never to exit.
    """
    decoded = Decoded.of(traces, split)
    agree, kl = decoded.signal[..., 0], np.minimum(decoded.signal[..., 1], 1)
    best, bars = float(traces.layers), (2.0, 0.0)
    for agree_bar in AGREE_BARS:
        for kl_bar in kl_bars:
            depth = decoded.first((agree >= agree_bar) & (kl <= kl_bar))
            if (mean := float(depth.mean())) < best and decoded.holds(depth, limits):
                best, bars = mean, (agree_bar, kl_bar)
    return bars


def fixed_depth(traces: TraceSet, split: str, limits: Limits) -> int:
    """Least depth that holds the limits on quality when every token leaves there."""
    decoded = Decoded.of(traces, split)
    tokens = len(decoded.owner)
    depths = range(1, traces.layers)
    return next((d for d in depths if decoded.holds(np.full(tokens, d), limits)), traces.layers)
