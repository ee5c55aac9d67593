"""Tune the pacing baseline on the training split: exit bars from the traces, pacing by simulation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from clone_rl.agents.baselines import Pace
from clone_rl.agents.rollout import charged_for, run_requests
from clone_rl.envs.control import Control
from clone_rl.envs.scenario import Limits
from clone_rl.envs.trace import TraceSet

_AGREE_BARS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995, 2.0)
_KL_BARS = (0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.5, 2.0)


def exit_bars(traces: TraceSet, split: str, limits: Limits) -> tuple[float, float]:
    """Bars on agreement and KL with the least mean depth whose quality stays within the limits.

    The limits are held by the mean plus one standard error over documents, so that they hold beyond the split as well.

    Returns:
        ``(agree_bar, kl_bar)``; (2, 0) means never to exit.
    """
    documents = traces.documents(split)
    # The first token of a response comes from prefill, at full depth.
    tokens = np.concatenate([np.arange(traces.offset[d] + 1, traces.offset[d + 1]) for d in documents])
    owner = np.repeat(np.arange(len(documents)), np.diff(traces.offset)[documents] - 1)
    emitted = np.diff(traces.offset)[documents].astype(float)
    signal, right, nats = traces.read("signal", tokens), traces.read("agree", tokens), traces.read("dnll", tokens)
    agree, kl = signal[..., 0], signal[..., 1]
    best, bars = float(traces.layers), (2.0, 0.0)

    def upper(per_token: np.ndarray) -> float:
        sums = np.bincount(owner, per_token, len(documents))
        mean = sums.sum() / emitted.sum()
        spread = (sums - mean * emitted).std(ddof=1) / emitted.mean() if len(documents) > 1 else 0.0
        return float(mean + spread / np.sqrt(len(documents)))

    for agree_bar in _AGREE_BARS:
        for kl_bar in _KL_BARS:
            sure = (agree >= agree_bar) & (np.minimum(kl, 1) <= kl_bar)
            exits = sure.any(1)
            at = np.where(exits, sure.argmax(1), 0)
            row = np.arange(len(tokens))
            depth = float(np.where(exits, at + 1, traces.layers).mean())
            wrong = np.where(exits, 1 - right[row, at], 0.0)
            worse = np.where(exits, nats[row, at], 0.0)
            if depth < best and upper(wrong) <= limits.disagree and upper(worse) <= limits.dnll:
                best, bars = depth, (agree_bar, kl_bar)
    return bars


def tune_pace(
    control: Control,
    limits: Limits | None = None,
    seed: int = 0,
    progress: Callable[[Sequence[tuple[int, int]]], Iterable[tuple[int, int]]] = iter,
) -> Pace:
    """The pacing baseline with the least energy within the limits on the training split.

    Where no setting holds the miss rate, the one with the fewest misses.

    Args:
        control: The scenario.
        limits: What has to hold; the scenario's if None.
        seed: Of service levels and interference.
        progress: Wraps the settings to be tried (a progress bar).
    """
    limits = limits or control.scenario.limits
    agree_bar, kl_bar = exit_bars(control.traces, "train", limits)
    documents = control.traces.documents("train")
    base = Pace(control.points, agree_bar, kl_bar)
    control = charged_for(control, base, "train")  # the overheads are the same for every setting
    scored = []
    for boost, floor in progress([(b, f) for b in range(3) for f in range(max(1, base.points - 3))]):
        pace = replace(base, boost=boost, floor=floor)
        result = run_requests(control, pace, "train", documents, seed)
        miss = result["late"].sum() / result["tokens"].sum()
        scored.append((max(0.0, miss - limits.miss), result["energy_j"].sum(), pace))
    return min(scored, key=lambda entry: entry[:2])[2]
