"""Fitting of look-up tables to what a policy does: a decision tree of bounded size, and a grid of bounded size.

Both are greedy and deterministic, on observations read as bytes. What is lowered is the Gini impurity of the actions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clone_rl.agents.lut import LEVELS, GridRule, TreeRule
from clone_rl.code_cache import kept

_STRIDE = 4  # levels between two edges that a grid may have
_SEEN = 32  # observations on either side of a comparison of a tree, at least
_LEAST = 1e-9  # gains below are rounding


@kept
def _gain(low: Any, total: Any) -> float:
    """By how much a cut lowers impurity that leaves ``low`` of ``total``, counts by action, on one side."""
    left, left_squares, right, right_squares, squares = 0.0, 0.0, 0.0, 0.0, 0.0
    for a in range(len(total)):
        high = total[a] - low[a]
        left, right = left + low[a], right + high
        left_squares, right_squares = left_squares + low[a] * low[a], right_squares + high * high
        squares += total[a] * total[a]
    if left == 0.0 or right == 0.0:
        return 0.0
    return left_squares / left + right_squares / right - squares / (left + right)


@kept
def _best_split(levels: Any, actions: Any, rows: Any, choices: int) -> Any:
    """The cut of some rows that lowers impurity most: ``(scalar, threshold, gain)``; no gain where there is none."""
    total = np.zeros(choices)
    for i in rows:
        total[actions[i]] += 1.0
    counts, seen, below = np.zeros((LEVELS + 1, choices)), np.zeros(LEVELS + 1, np.int64), np.zeros(choices)
    chosen, level, best = 0, 0, _LEAST
    for scalar in range(levels.shape[1]):
        counts[:], seen[:], below[:] = 0.0, 0, 0.0
        for i in rows:
            counts[levels[i, scalar], actions[i]] += 1.0
            seen[levels[i, scalar]] += 1
        count = 0
        for threshold in range(1, LEVELS + 1):
            count += seen[threshold - 1]
            for a in range(choices):
                below[a] += counts[threshold - 1, a]
            if seen[threshold - 1] == 0 or count < _SEEN or len(rows) - count < _SEEN:
                continue
            gain = _gain(below, total)
            if gain > best * (1.0 + _LEAST):
                chosen, level, best = scalar, threshold, gain
    if level == 0:
        return 0, 0, 0.0
    # Half-way to the next level that was seen, so that states in between go to the nearer side.
    after = LEVELS + 1
    for i in rows:
        if level <= levels[i, chosen] < after:
            after = levels[i, chosen]
    return chosen, (level + after) // 2, best


def fit_tree(levels: NDArray[np.uint8], actions: NDArray[np.int64], choices: int, nodes: int) -> TreeRule:
    """A decision tree, grown where impurity falls most.

    Args:
        levels: (N, width) observations as bytes.
        actions: (N,) what the policy does there.
        choices: Actions that there are.
        nodes: Comparisons at most.
    """
    rows = [np.arange(len(levels))]
    found = [_best_split(levels, actions, rows[0], choices)]
    sides: dict[int, tuple[int, int]] = {}
    while len(sides) < nodes:
        leaf = max((k for k in range(len(found)) if k not in sides), key=lambda k: (found[k][2], -k))
        scalar, threshold, gain = found[leaf]
        if gain == 0.0:
            break
        high = levels[rows[leaf], scalar] >= threshold
        sides[leaf] = len(found), len(found) + 1
        for side in (rows[leaf][~high], rows[leaf][high]):
            rows.append(side)
            found.append(_best_split(levels, actions, side, choices))
    node = {leaf: k for k, leaf in enumerate(sides)}
    links = [node[k] if k in sides else -1 - int(np.bincount(actions[r]).argmax()) for k, r in enumerate(rows)]
    if not sides:  # one action everywhere: a comparison whose sides agree
        return TreeRule(*(np.array([part]) for part in (0, 0, links[0], links[0])))
    parts = zip(*((*found[leaf][:2], *(links[side] for side in pair)) for leaf, pair in sides.items()), strict=True)
    return TreeRule(*(np.array(part, np.int64) for part in parts))


@kept
def _edge_gains(levels: Any, actions: Any, cells: Any, count: int, choices: int, scalar: int) -> Any:
    """By how much an edge at each place of a scalar would lower the impurity of a grid."""
    places = (LEVELS + 1) // _STRIDE
    counts, gains = np.zeros((count, places, choices)), np.zeros(places)
    for i in range(len(levels)):
        counts[cells[i], levels[i, scalar] // _STRIDE, actions[i]] += 1.0
    below, total = np.zeros(choices), np.zeros(choices)
    for cell in range(count):
        below[:], total[:] = 0.0, 0.0
        for place in range(places):
            for a in range(choices):
                total[a] += counts[cell, place, a]
        for place in range(1, places):
            for a in range(choices):
                below[a] += counts[cell, place - 1, a]
            gains[place] += _gain(below, total)
    return gains


def _addresses(levels: NDArray[np.uint8], edges: dict[int, list[int]]) -> NDArray[np.int64]:
    """(N,) cells, the last scalar's bin running fastest."""
    cells = np.zeros(len(levels), np.int64)
    for scalar, own in edges.items():
        cells = cells * (len(own) + 1) + np.searchsorted(own, levels[:, scalar], side="right")
    return cells


def _middles(edges: dict[int, list[int]], cells: NDArray[np.int64], usual: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(M, width) levels in the middle of cells; scalars that the grid does not read are as usual."""
    found, rest = np.tile(usual, (len(cells), 1)), cells.copy()
    for scalar, own in reversed(edges.items()):
        bounds = np.array([0, *own, LEVELS + 1])
        found[:, scalar] = ((bounds[:-1] + bounds[1:] - 1) // 2)[rest % (len(own) + 1)]
        rest //= len(own) + 1
    return found


def fit_grid(
    levels: NDArray[np.uint8],
    actions: NDArray[np.int64],
    choices: int,
    cells: int,
    scalars: int,
    decide: Callable[[NDArray[np.uint8]], NDArray[np.int64]],
) -> GridRule:
    """A grid: edges are added one by one, each where it lowers impurity most for the cells that it adds.

    Args:
        levels, actions, choices: As of ``fit_tree``.
        cells, scalars: At most.
        decide: (M,) what the policy does at (M, width) levels: cells that no observation fell in ask it at their middle.
    """
    edges: dict[int, list[int]] = {}
    while True:
        at, count = _addresses(levels, edges), int(np.prod([len(own) + 1 for own in edges.values()], dtype=np.int64))
        best, scalar, edge = 0.0, -1, 0
        for each in range(levels.shape[1]):
            bins = len(edges.get(each, ())) + 1
            if (each in edges or len(edges) < scalars) and count // bins * (bins + 1) <= cells:
                gains = _edge_gains(levels, actions, at, count, choices, each) / np.log2((bins + 1) / bins)
                if gains.max() > best + _LEAST:
                    best, scalar, edge = float(gains.max()), each, int(gains.argmax()) * _STRIDE
        if scalar < 0:
            break
        edges[scalar] = sorted([*edges.get(scalar, []), edge])
    edges = edges or {0: []}
    votes = np.zeros((count, choices))
    np.add.at(votes, (at, actions), 1.0)
    table, unseen = votes.argmax(1), np.flatnonzero(votes.sum(1) == 0)
    table[unseen] = decide(_middles(edges, unseen, np.median(levels, 0).astype(np.uint8)))
    flat = np.array([edge for own in edges.values() for edge in own], np.int64)
    return GridRule(np.array(list(edges)), np.cumsum([len(own) for own in edges.values()]), flat, table)
