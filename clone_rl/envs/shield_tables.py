"""What the shield looks up: worst times of a chip, a model and a scenario's rules, as tables."""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from clone_rl.envs.bounds import hottest_w
from clone_rl.envs.control import Control
from clone_rl.envs.state import EXACT, PROPAGATE
from clone_rl.errors import BadValueError
from clone_rl.hw_emulator.cost import leakage_growth, work_latency
from clone_rl.hw_emulator.emulator import LAYER


class Shield(NamedTuple):
    """What the shield looks up: undisturbed seconds by chip (V), kind of layer (K), place (C) and operating point (P).

    Attributes:
        layer_s: (V, K, C, P) of a layer without a decision; places are those of ``prices.Prices``.
        head_s: (V, P) of the head.
        switch_s: (V, P, P) of a change of point.
        decide_s: (V, 2, P) of probe and controller at a boundary, in prefill and in decoding.
        leave_s: (V, L, F, P) of filling the caches of so many skipped layers, by context (the last stands for longer).
        owing_s: (V, K, M, P) of a layer that computes so many tokens beside the current one; M = 1 where none owes any.
        ahead_s: (V, N + 1, P) of all decoded tokens of smaller contexts, at full depth with their decisions.
        soonest_s: (V, K, C) of a layer at the top point, decision included, and
        soonest_head_s: (V,) of the head: what nothing can beat.
        kind, remaining: As in ``prices.Prices``.
        rules: (1,) record of ``state.RULES``.
        numbers: (3,) first place of prefill, longest possible response in tokens, and whether the shield exits by itself.
        slowdown: (1,) factor of the busiest co-runner.
    """

    layer_s: NDArray[np.float64]
    head_s: NDArray[np.float64]
    switch_s: NDArray[np.float64]
    decide_s: NDArray[np.float64]
    leave_s: NDArray[np.float64]
    owing_s: NDArray[np.float64]
    ahead_s: NDArray[np.float64]
    soonest_s: NDArray[np.float64]
    soonest_head_s: NDArray[np.float64]
    kind: NDArray[np.int64]
    remaining: NDArray[np.int64]
    rules: NDArray[np.void]
    numbers: NDArray[np.int64]
    slowdown: NDArray[np.float64]

    @classmethod
    def of(cls, control: Control, exits: bool = False) -> Self:
        """The shield of a scenario.

        Args:
            control: Of layer control, with the controller's own overheads.
            exits: Exit where this token would be late even if the co-runner paused from now on.

        Raises:
            BadValueError: The controller decides per token.
        """
        if control.kind != "layer":
            raise BadValueError("a shield for token control", "it guards decisions per layer: use a LayerControl policy")
        prices, rules, longest = control.prices, control.world.rules, int(np.diff(control.traces.offset).max())
        policy_s, probe_s = prices.at["policy"]["latency_s"], prices.at["probe"]["latency_s"]
        prefill_s = policy_s * bool(rules[0]["policy"] and not rules[0]["delay"])
        layer_s, head_s = prices.layer["latency_s"].copy(), prices.head_s.copy()
        soonest_s = layer_s[..., -1] + prefill_s[:, None, None, -1]
        soonest_s[:, :, : prices.prefill[0]] += (probe_s * rules[0]["probe"])[:, None, None, -1]
        found = cls(
            layer_s=layer_s,
            head_s=head_s,
            switch_s=prices.switch_s.copy(),
            decide_s=np.stack([prefill_s, prefill_s + probe_s * rules[0]["probe"]], 1),
            leave_s=prices.fill["latency_s"] * (rules[0]["kv"] == PROPAGATE),
            owing_s=_owing(control, longest if rules[0]["kv"] == EXACT else 0),
            ahead_s=np.zeros((len(head_s), 1, head_s.shape[1])),
            soonest_s=soonest_s,
            soonest_head_s=head_s[:, -1].copy(),
            kind=prices.kind,
            remaining=prices.remaining,
            rules=rules,
            numbers=np.array([prices.prefill[0], longest, exits]),
            slowdown=np.array([rules[0]["slowdown_high"]]),
        )
        for chip, held in enumerate(sustained(control)):
            found.hold(chip, held)
        return found.summed()

    def hold(self, chip: int, highest: int) -> None:
        """Let all points above the ``highest`` that a chip can hold count as that one, with a switch before every layer."""
        above = slice(highest, None)
        hover_s = self.switch_s[chip, above, above].max()
        if highest == self.head_s.shape[1] - 1:
            return
        for table in (self.layer_s, self.head_s, self.decide_s, self.leave_s, self.owing_s):
            table[chip, ..., above] = table[chip, ..., highest, None]
        for table in (self.layer_s, self.owing_s):
            table[chip, ..., above] += hover_s
        self.switch_s[chip, above] = self.switch_s[chip, above].max(0)
        self.switch_s[chip, :, above] = self.switch_s[chip, :, above].max(1, keepdims=True)

    def summed(self) -> Self:
        """The same with ``ahead_s`` made from the other tables."""
        layers = int(self.rules[0]["layers"])
        decoded_s = self.layer_s[:, :, : self.numbers[0]]
        token_s = np.einsum("k,vkcp->vcp", self.remaining[0].astype(float), decoded_s)
        token_s += layers * self.decide_s[:, 1, None] + self.head_s[:, None]
        token_s = np.maximum.accumulate(token_s, 1)
        return self._replace(ahead_s=np.concatenate([np.zeros_like(token_s[:, :1]), token_s.cumsum(1)], 1))


def _owing(control: Control, most: int) -> NDArray[np.float64]:
    """(V, K, most + 1, P) seconds of a layer with so many owed tokens, where the context is longest."""
    prices = control.prices
    context, kinds = float(prices.prefill[0] - 1), prices.remaining.shape[1]
    found = np.zeros((len(prices.chip), kinds, most + 1, prices.at.shape[1]))
    firsts = [int(np.flatnonzero(prices.kind == kind)[0]) for kind in range(kinds)]
    for v, k, owed, p in np.ndindex(found.shape):
        if owed:
            work, rows = prices.work[v, LAYER + firsts[k]], 1.0 + owed
            before, chip, point = max(0.0, context - rows), prices.chip[v], prices.points[v, p]
            found[v, k, owed, p] = work_latency(chip, point, work, rows, before, True)
    return found


def sustained(control: Control) -> list[int]:
    """Highest point that each chip can hold for ever, at any load: its heat does not lift the die to where it is taken away.

    Lower points may run in between, and switches; none of them is hotter. Points are taken away between tokens: what one token
    at a higher point adds must be less than what lies between two points.
    """
    prices, found, slowdown = control.prices, [], float(control.world.rules[0]["slowdown_high"])
    layers = int(control.world.rules[0]["layers"])
    for v, chip in enumerate(prices.chip):
        at, table, hottest = prices.at[v], prices.layer[v], hottest_w(prices, v)
        top, room_c = len(at) - 1, chip["limit_c"] - chip["throttle_c"]
        longest_s = np.maximum(
            layers * table["latency_s"][:, : prices.prefill[0]].max((0, 1)) + at["head"]["latency_s"],
            table["latency_s"][:, prices.prefill[0] :].max((0, 1)),
        )
        token_j = (hottest + at["rate"]["leakage_w"] * leakage_growth(chip, chip["limit_c"])) * slowdown * longest_s
        added_c = token_j.max() * (chip["die_r"] * chip["die_per_s"] + chip["package_r"] * chip["package_per_s"])
        point = top if top == 0 or added_c * top < room_c else 0
        while point > 0:
            until_c = chip["throttle_c"] + room_c * (top - point) / top
            leakage_w = at["rate"]["leakage_w"] * leakage_growth(chip, until_c)
            power_w = (hottest + leakage_w)[: point + 1].max()
            if chip["ambient_c"] + power_w * (chip["die_r"] + chip["package_r"]) <= until_c:
                break
            point -= 1
        found.append(point)
    return found
