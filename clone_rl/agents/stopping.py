"""The best causal stopping rule: how much of what exits cost beyond a clairvoyant's is want of information.

A controller learns what an exit costs only by what it sees there. When to leave is an optimal stopping problem: leave where
that is expected to cost less than to go on. Backward induction solves it, from the last exit to the first: what going on came
to on each token is regressed on what is seen (Longstaff and Schwartz, Review of Financial Studies 2001), here by boosted
regression trees.

Fitted to the tokens that it is then judged on, such a rule is optimistic: it knows some of them by heart. Fitted to others, it
is what a controller could do at least. It prices a layer alike in all requests, and leaves lateness to the operating points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clone_rl.envs.compiling import compiled
from clone_rl.envs.scenario import Limits
from clone_rl.envs.trace import SPLITS, TraceSet

_BINS = 32  # of every scalar, with as many tokens in each
_DEPTH = 5  # of a tree
_LEAST = 1 / 30  # of the tokens, on either side of a cut: rare disagreements are easily avoided by luck where there are fewer
_TREES, _SHARE = 4, 0.5  # for each exit, and how much of its leaf each of them adds
_MIXES = (0.1, 0.3, 0.5, 0.7, 0.9)  # the share of dNLL in the price of quality
_STEP, _STEPS = 2.0 ** (1 / 16), 160  # of that price: 1/32 to 32 layers for what a limit allows a token
_LEAST_LIMIT = 1e-4  # what a limit of 0 is priced as


@compiled
def _grow(seen: Any, rows: Any, rest: Any, fitted: Any, node: Any, sums: Any, counts: Any, feature: Any, cut: Any) -> None:
    """Fit one tree, level by level, and add it to what is fitted.

    Args:
        seen: (N, F) bins.
        rows: (M,) which of the N the tree learns from.
        rest: (N,) what is left to explain; written.
        fitted: (N,) what the trees so far amount to; written.
        node: (N,) scratch.
        sums, counts: (nodes, F, bins) scratch.
        feature, cut: (nodes,) scratch.
    """
    tokens, features = seen.shape
    nodes, bins = sums.shape[0], sums.shape[2]
    least = _LEAST * len(rows)
    for i in range(tokens):
        node[i] = 0
    width = 1
    while width < nodes:
        for k in range(width):
            for f in range(features):
                for b in range(bins):
                    sums[k, f, b] = counts[k, f, b] = 0.0
        for j in range(len(rows)):
            i = rows[j]
            k, value = node[i], rest[i]
            for f in range(features):
                sums[k, f, seen[i, f]] += value
                counts[k, f, seen[i, f]] += 1.0
        for k in range(width):
            total = number = 0.0
            for b in range(bins):
                total += sums[k, 0, b]
                number += counts[k, 0, b]
            feature[k], cut[k] = 0, bins
            best = total * total / number if number > 0.0 else 0.0
            for f in range(features):
                below = few = 0.0
                for b in range(bins - 1):
                    below += sums[k, f, b]
                    few += counts[k, f, b]
                    if few < least or number - few < least:
                        continue
                    gained = below * below / few + (total - below) * (total - below) / (number - few)
                    if gained > best:
                        best, feature[k], cut[k] = gained, f, b
        for i in range(tokens):
            node[i] = 2 * node[i] + (1 if seen[i, feature[node[i]]] > cut[node[i]] else 0)
        width *= 2
    for k in range(nodes):
        sums[k, 0, 0] = counts[k, 0, 0] = 0.0
    for j in range(len(rows)):
        sums[node[rows[j]], 0, 0] += rest[rows[j]]
        counts[node[rows[j]], 0, 0] += 1.0
    for i in range(tokens):
        step = _SHARE * sums[node[i], 0, 0] / max(1.0, counts[node[i], 0, 0])
        fitted[i] += step
        rest[i] -= step


def binned(values: NDArray[Any]) -> NDArray[np.uint8]:
    """(N, ...) which bin each value is in, of at most 32 with as many of the N in each.

    >>> binned(np.array([0.1, 7.0, 0.1])).tolist()
    [0, 1, 0]
    """
    flat = values.reshape(len(values), -1)
    found = np.empty(flat.shape, np.uint8)
    for column, own in zip(flat.T, found.T, strict=True):
        edges = np.unique(np.quantile(column, np.arange(1, _BINS) / _BINS, method="higher"))
        own[:] = np.searchsorted(edges[edges > column.min()], column, side="right")
    return found.reshape(values.shape)


class Sight(NamedTuple):
    """What can be seen at the exits of decoded tokens, and what leaving there comes to.

    Attributes:
        seen: (L - 1, N, F) bins of F scalars at every exit.
        wrong, nats: (N, L - 1) disagreement with full depth, and dNLL, of leaving there.
        row: (N,) of the token in the trace set.
    """

    seen: NDArray[np.uint8]
    wrong: NDArray[np.float64]
    nats: NDArray[np.float64]
    row: NDArray[np.int64]

    @classmethod
    def of(cls, traces: TraceSet, splits: Sequence[str] = SPLITS) -> Sight:
        """All that an observation may have, and more: the probe at this exit, the one before and of the token before, and the
        best so far; the residual's statistics; what full depth emitted for the token before; place, prompt and kind.

        Args:
            traces: The set.
            splits: Whose documents; those that have none are left out.
        """  # noqa: D205
        documents = np.flatnonzero(np.isin(traces.split, [SPLITS.index(split) for split in splits]))
        first, end = traces.offset[documents], traces.offset[documents + 1]
        row = np.concatenate([np.arange(a + 1, b) for a, b in zip(first, end, strict=True)])
        owner = np.repeat(documents, end - first - 1)
        shown, outcome = traces.packed
        here, exits = shown[row], traces.layers - 1
        emitted = [traces.read(name, row - 1)[:, -1] for name in ("margin", "entropy")]
        place = [row - traces.offset[owner], traces.prompt_tokens[owner], traces.kind[owner]]
        scalars = (
            here,
            np.concatenate([np.zeros_like(here[:, :1]), here[:, :-1]], 1),
            np.maximum.accumulate(here[..., :1], 1),
            shown[row - 1, :, :1],
            traces.read("hidden", row),
            np.stack([*emitted, *place], 1)[:, None].repeat(exits, 1),
        )
        seen = binned(np.concatenate(scalars, 2)).swapaxes(0, 1)
        wrong, nats = (outcome[row, :, which].astype(float) for which in range(2))
        return cls(np.ascontiguousarray(seen), wrong, nats, row)


class Stopping:
    """The best stopping rule at given prices of what leaving costs.

    Args:
        sight: What is seen and what happens.
        rows: (M,) which of its tokens are learned from; all if None.
    """

    def __init__(self, sight: Sight, rows: NDArray[np.int64] | None = None) -> None:
        _, tokens, features = sight.seen.shape
        self.sight = sight
        self._rows = np.arange(tokens) if rows is None else np.asarray(rows, np.int64)
        self._node = np.zeros(tokens, np.int64)
        self._tables = np.zeros((2, 2**_DEPTH, features, _BINS))
        self._cuts = np.zeros((2, 2**_DEPTH), np.int64)

    def _expected(self, boundary: int, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N,) what values can be expected to be, by what is seen at an exit."""
        rest, fitted = values.copy(), np.zeros(len(values))
        for _ in range(_TREES):
            _grow(self.sight.seen[boundary], self._rows, rest, fitted, self._node, *self._tables, *self._cuts)
        return fitted

    def depths(self, disagree: float, dnll: float) -> NDArray[np.int64]:
        """(N,) layers that each token runs.

        Args:
            disagree, dnll: Price of a disagreement and of a nat, in layers.
        """
        exits, tokens, _ = self.sight.seen.shape
        to_go, found = np.zeros(tokens), np.full(tokens, exits + 1)
        for boundary in range(exits - 1, -1, -1):
            leave = disagree * self.sight.wrong[:, boundary] + dnll * self.sight.nats[:, boundary]
            leaves = self._expected(boundary, leave - 1.0 - to_go) < 0.0
            to_go = np.where(leaves, leave, 1.0 + to_go)
            found[leaves] = boundary + 1
        return found


def best_depths(traces: TraceSet, split: str, limits: Limits, learned: Sequence[str] | None = None) -> NDArray[np.int64]:
    """Layers that tokens run under the best stopping rule whose means over a split hold the limits on quality.

    Args:
        traces: The set.
        split: Where the limits hold.
        limits: On disagreement and dNLL.
        learned: Splits whose tokens the rule is fitted to; None is that split alone.

    Returns:
        (T,) for every token of the set; those of other splits, and first tokens, run at full depth, as all do where no rule
        holds the limits.
    """
    learned, documents, layers = (split,) if learned is None else learned, traces.documents(split), traces.layers
    sight = Sight.of(traces, (split, *learned))

    def rows_of(splits: Sequence[str]) -> NDArray[np.int64]:
        of_document = np.isin(traces.split, [SPLITS.index(name) for name in splits])
        return np.flatnonzero(np.repeat(of_document, np.diff(traces.offset))[sight.row])

    rule, own = Stopping(sight, rows_of(learned)), rows_of([split])
    tokens = float(np.diff(traces.offset)[documents].sum())
    best = np.full(len(own), layers)

    def holds(depth: NDArray[np.int64]) -> bool:
        leaving, after = own[depth < layers], depth[depth < layers] - 1
        wrong, nats = (values[leaving, after].sum() / tokens for values in (sight.wrong, sight.nats))
        return bool(wrong <= limits.disagree and nats <= limits.dnll)

    for mix in _MIXES:
        low, high = 0, _STEPS
        while high - low > 1:
            middle = (low + high) // 2
            worth = _STEP ** (middle - _STEPS // 2)
            prices = ((1.0 - mix) * worth / max(limits.disagree, _LEAST_LIMIT), mix * worth / max(limits.dnll, _LEAST_LIMIT))
            depth = rule.depths(*prices)[own]
            if holds(depth):
                high, best = middle, min(best, depth, key=lambda found: int(found.sum()))
            else:
                low = middle
    found = np.full(len(traces.signal), layers)
    found[sight.row[own]] = best
    return found
