"""Bounds of what a request can come to, from the tables that the kernel runs on: no loop is endless and no die runs away."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from clone_rl.envs.kernel import World
from clone_rl.envs.prices import Prices
from clone_rl.errors import BadValueError
from clone_rl.hw_emulator.cost import leakage_growth

MOST_SLOTS = 20_000_000
"""Slots of the co-runner that the longest request may span; the kernel walks them one by one, 0.2 s for so many."""

HOTTEST_C = 1000.0
"""No die works at such a temperature, and leakage that grows exponentially would soon be beyond any number."""

_STEPS = 1000


def hottest_w(prices: Prices, chip: int) -> NDArray[np.float64]:
    """(P,) the most heat that any work gives off at each operating point, W, without leakage."""
    at, switch, table = prices.at[chip], prices.switch[chip], prices.layer[chip]
    hottest = (table["heat_j"] / table["latency_s"]).max((0, 1))
    pieces = [at["head"], at["probe"], at["policy"], *prices.fill[chip].reshape(-1, len(at))]
    for piece in pieces:
        took = piece["latency_s"] > 0
        hottest[took] = np.maximum(hottest[took], (piece["heat_j"][took] / piece["latency_s"][took]))
    hottest = np.maximum(hottest, at["rate"]["stall_heat_w"])
    # What adds heat to a layer and no time to it.
    hottest += (switch["heat_j"].max() + at["policy"]["heat_j"]) / table["latency_s"].min((0, 1))
    return hottest  # type: ignore[no-any-return]


def longest_s(world: World, tokens: int) -> float:
    """No request of this world takes longer, whatever is decided: seconds from its start to its last token or deadline.

    Args:
        world: What it runs in.
        tokens: Most tokens of a response.
    """
    rules, prices, decoded = world.rules[0], world.prices, world.prices.prefill[0]
    switch_s = float(prices.switch_s.max())
    prefill_s, decode_s = (float(part.max()) for part in (world.layer_s[:, :, decoded:], world.layer_s[:, :, :decoded]))
    fill_s = float(prices.fill["latency_s"].max())
    # Twice: with exact caches a layer computes the tokens that it owes beside the current one.
    token_s = rules["layers"] * 2.0 * decode_s + fill_s + float(prices.head_s.max())
    runs_s = (rules["layers"] * prefill_s + (tokens + 1.0) * token_s) * rules["slowdown_high"]
    runs_s += (tokens + 1.0) * rules["layers"] * switch_s
    targets = world.slo.max(0) * rules["slack_high"] * rules["target_high"]
    return float(prices.chip["wake_s"].max() + runs_s + targets[0] + tokens * targets[1])


def check_bounds(world: World, name: str) -> None:
    """Refuse a world in which a request could span endless slots of the co-runner, or heat a die beyond reason.

    Args:
        world: Rules, prices and traces.
        name: Of its scenario, for the error.

    Raises:
        BadValueError: One of these.
    """
    tokens, slot_s = int(np.diff(world.offset).max()), float(world.rules[0]["slot_s"])
    most_s = longest_s(world, tokens)
    if not most_s <= MOST_SLOTS * slot_s:
        raise BadValueError(
            f"a request of {tokens} tokens can last {most_s:g} s in scenario {name}, and interference.slot_s is {slot_s:g}",
            f"at most {MOST_SLOTS:,} slots, here {MOST_SLOTS * slot_s:g} s: longer slots, shorter targets or a faster chip; "
            "all times are in seconds",
        )
    for chip in range(len(world.prices.chip)):
        _check_heat(world.prices, chip, most_s, name)


def _check_heat(prices: Prices, chip: int, most_s: float, name: str) -> None:
    """Whether throttling, which leaves the lowest point, keeps the die at a temperature that is one."""
    constants, leakage_w, quiet_w = prices.chip[chip], prices.at[chip]["rate"]["leakage_w"], hottest_w(prices, chip)
    spread = constants["die_r"] + constants["package_r"] * -math.expm1(-most_s * constants["package_per_s"])

    def settles_c(points: slice, celsius: float, resistance: float) -> float:
        heat_w = (quiet_w[points] + leakage_w[points] * leakage_growth(constants, celsius)).max()
        return float(constants["ambient_c"] + heat_w * resistance)

    limit_c = float(constants["limit_c"])
    if settles_c(slice(None), limit_c, spread) <= limit_c:
        return
    # One token may go on at any point when the limit is reached.
    celsius = limit_c - constants["ambient_c"] + settles_c(slice(None), limit_c, constants["die_r"])
    for _ in range(_STEPS):
        if celsius > HOTTEST_C:
            raise BadValueError(
                f"a request of scenario {name} can heat the die of its chip beyond {HOTTEST_C:g} C",
                "[thermal] resistances in K/W, capacities in J/K, leakage in W and energies in J: one is too large",
            )
        hotter_c = settles_c(slice(0, 1), celsius, spread)
        if hotter_c <= celsius:
            return
        celsius = hotter_c
