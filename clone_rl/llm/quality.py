"""How early a model can leave at how little loss: figures of every exit, and the smallest mean depth that a limit allows.

The mean depth is the share of the layers that an average token runs. Five ways to choose a token's exit are compared:

- ``static``: one exit for all tokens;
- ``predicted_kl``, ``predicted_agreement``: the first exit whose signal passes a threshold, as a controller could do it;
- ``true_kl``: the first exit whose true KL is below a threshold, what a perfect probe of KL would give;
- ``oracle``: for every token the exit that serves the limit best, knowing what each would have cost.

The first three are chosen on the calibration slice and judged on another; the last two know what they are judged on.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from clone_rl.llm.probe import auc, calibration_error
from clone_rl.llm.samples import TEXT_KINDS, Exits

LIMITS = {"dnll": 0.02, "agreement": 0.98}
"""Quality to hold: at most so many nats per token more than full depth, or at least this share of its top tokens."""

_THRESHOLDS = 255
_BISECTIONS = 60


class Judged(NamedTuple):
    """Exits of T tokens and what the probe says of them; E = L - 1 exits.

    Attributes:
        signals: (E, T, 2) probability of agreement, and predicted KL in nats.
        agree, kl, dnll: (E, T), see ``samples.Exits``.
        nll: (T,) nats.
        kind: (T,) index into ``TEXT_KINDS``.
    """

    signals: torch.Tensor
    agree: torch.Tensor
    kl: torch.Tensor
    dnll: torch.Tensor
    nll: torch.Tensor
    kind: torch.Tensor

    def of(self, kind: int) -> Judged:
        """The tokens of one kind of text."""
        return Judged(*(column[:, self.kind == kind] for column in self[:4]), *(c[self.kind == kind] for c in self[4:]))


def judged(exits: Exits, signals: torch.Tensor) -> Judged:
    """Exits with the probe's signals (E, T, 2)."""
    return Judged(signals, exits.agree, exits.kl, exits.dnll, exits.nll, exits.kind)


def quality_report(calibrate: Judged, judge: Judged) -> dict[str, Any]:
    """Figures of every exit and of every way to choose one, over all tokens and by kind of text.

    Args:
        calibrate: What exits and thresholds are chosen on.
        judge: Other tokens, which all figures are of.

    Returns:
        ``tokens``, ``nll`` (nats), ``layers`` (see ``exit_figures``), ``depth_at_quality`` (see ``depth_at_quality``), and
        under ``kinds`` the same for each kind of text that both slices hold.
    """
    report = _figures(calibrate, judge)
    kinds = [i for i in range(len(TEXT_KINDS)) if (calibrate.kind == i).any() and (judge.kind == i).any()]
    return {**report, "kinds": {TEXT_KINDS[i]: _figures(calibrate.of(i), judge.of(i)) for i in kinds}}


def _figures(calibrate: Judged, judge: Judged) -> dict[str, Any]:
    return {
        "tokens": len(judge.nll),
        "nll": float(judge.nll.mean()),
        "layers": exit_figures(judge),
        "depth_at_quality": depth_at_quality(calibrate, judge),
    }


def exit_figures(data: Judged) -> list[dict[str, Any]]:
    """One row per exit.

    Returns:
        ``layer``, the means ``agreement``, ``kl`` and ``dnll`` (nats), and of the probe ``auc`` (not a number where all tokens
        agree or none), ``ece`` (expected calibration error), ``agreement_mean`` and ``kl_mean`` (what it says on average).
    """
    return [
        {
            "layer": row + 1,
            "agreement": float(data.agree[row].mean()),
            "kl": float(data.kl[row].mean()),
            "dnll": float(data.dnll[row].mean()),
            "auc": auc(data.signals[row, :, 0], data.agree[row]),
            "ece": calibration_error(data.signals[row, :, 0], data.agree[row]),
            "agreement_mean": float(data.signals[row, :, 0].mean()),
            "kl_mean": float(data.signals[row, :, 1].mean()),
        }
        for row in range(_exits(data))
    ]


def depth_at_quality(calibrate: Judged, judge: Judged) -> dict[str, dict[str, dict[str, float]]]:
    """Smallest mean depth within each of ``LIMITS``, for every way to choose an exit.

    Returns:
        By limit and way: ``depth`` (share of the layers), ``dnll`` (nats per token) and ``agreement`` as they came out, and
        ``threshold`` or ``layer`` where there is one to set; full depth is a threshold without bound or layer L. Of the oracle
        only the depth and the limit that it meets.
    """
    scores = {
        "predicted_kl": (calibrate.signals[..., 1], judge.signals[..., 1]),
        "predicted_agreement": (-calibrate.signals[..., 0], -judge.signals[..., 0]),
    }
    statics = [(float(row + 1), _outcome(calibrate, torch.full_like(calibrate.kind, row))) for row in range(_exits(judge) + 1)]
    curves = {way: _curve(calibrate, here) for way, (here, _) in scores.items()}
    curve = _curve(judge, judge.kl)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in LIMITS:
        layer = _least(statics, name)[0]
        ways = {"static": {**_outcome(judge, torch.full_like(judge.kind, int(layer) - 1)), "layer": layer}}
        for way, (_, there) in scores.items():
            threshold = _least(curves[way], name)[0]
            shown = abs(threshold) if way == "predicted_agreement" else threshold
            ways[way] = {**_outcome(judge, first_below(there, threshold)), "threshold": shown}
        threshold, outcome = _least(curve, name)
        ways["true_kl"] = {**outcome, "threshold": threshold}
        ways["oracle"] = {"depth": oracle_depth(judge, name), name: LIMITS[name]}
        found[name] = ways
    return found


def first_below(score: torch.Tensor, threshold: float) -> torch.Tensor:
    """Row of the first exit whose score is at most the threshold, or E for full depth.

    >>> first_below(torch.tensor([[0.9, 0.1], [0.3, 0.7]]), 0.5).tolist()
    [1, 0]
    """
    return (score.cummin(0).values > threshold).sum(0)


def _exits(data: Judged) -> int:
    return len(data.agree)


def _outcome(data: Judged, choice: torch.Tensor) -> dict[str, float]:
    """Mean depth and quality where each token leaves at its row of ``choice``."""
    kept = (choice < _exits(data)).float()
    row = choice.clamp_max(_exits(data) - 1)[None]
    return {
        "depth": float((choice + 1).double().mean()) / (_exits(data) + 1),
        "dnll": float((data.dnll.gather(0, row)[0] * kept).double().mean()),
        "agreement": float((data.agree.gather(0, row)[0] * kept + 1 - kept).double().mean()),
    }


def _within(outcome: dict[str, float], name: str) -> bool:
    return outcome["dnll"] <= LIMITS["dnll"] if name == "dnll" else outcome["agreement"] >= LIMITS["agreement"]


def _curve(data: Judged, score: torch.Tensor) -> list[tuple[float, dict[str, float]]]:
    """What thresholds give: full depth (minus infinity), and quantiles of the scores."""
    ordered = score.flatten().sort().values
    places = torch.linspace(0, len(ordered) - 1, _THRESHOLDS).long()
    thresholds = [-torch.inf, *ordered[places].tolist()]
    lowest = score.cummin(0).values  # so far: its rows are those of the first exit at any threshold
    return [(threshold, _outcome(data, (lowest > threshold).sum(0))) for threshold in thresholds]


def _least(found: list[tuple[float, dict[str, float]]], name: str) -> tuple[float, dict[str, float]]:
    """The setting of the smallest mean depth within a limit; full depth is always among them."""
    return min((entry for entry in found if _within(entry[1], name)), key=lambda entry: entry[1]["depth"])


def oracle_depth(data: Judged, name: str) -> float:
    """Smallest mean depth within a limit when every token's exit may be chosen knowing all costs.

    A knapsack over tokens, solved by its Lagrangian: each token takes the exit of least depth + price * loss, and the two
    neighbouring solutions at the critical price are mixed, which is exact but for one token.
    """
    exits = _exits(data)
    loss = data.dnll if name == "dnll" else 1 - data.agree
    loss = torch.cat((loss, torch.zeros_like(loss[:1]))).double()
    limit = LIMITS["dnll"] if name == "dnll" else 1 - LIMITS["agreement"]
    depth = torch.arange(1, exits + 2, dtype=torch.float64)[:, None] / (exits + 1)

    def solve(price: float) -> tuple[float, float]:
        choice = (depth + price * loss).argmin(0)
        return float(depth[choice, 0].mean()), float(loss.gather(0, choice[None]).mean())

    low, high = 0.0, 1e9
    if solve(low)[1] <= limit:
        return solve(low)[0]
    for _ in range(_BISECTIONS):
        middle = (low * high) ** 0.5 if low else high / 2**20
        low, high = (low, middle) if solve(middle)[1] <= limit else (middle, high)
        if high < 1e-6:
            break
    (shallow, much), (deep, little) = solve(low), solve(high)
    share = (limit - little) / (much - little)
    return share * shallow + (1 - share) * deep
