"""What every piece of work costs at every operating point, tabulated once, so that a step looks it up.

A price is of undisturbed work, without leakage. What a co-runner and the die's temperature make of it is linear in both, so
nothing is lost: seconds stretch, stalled cycles take ``stall_w``, and leakage is the point's times the seconds.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clone_rl.code_cache import kept
from clone_rl.errors import BadValueError
from clone_rl.hw_emulator.cost import switch_parts, work_cost
from clone_rl.hw_emulator.emulator import HEAD, LAYER, POLICY, PROBE, Emulator

REFERENCE_CONTEXT = 64.0
"""Context (tokens) at which the reference energy of the reward is taken."""

PRICE = np.dtype([("latency_s", "f8"), ("energy_j", "f8"), ("heat_j", "f8")])
"""One piece of work; not all of the DRAM's energy warms the die."""

RATE = np.dtype([("leakage_w", "f8"), ("stall_w", "f8"), ("stall_heat_w", "f8")])
"""One operating point: leakage at the reference temperature, and what a stalled second takes beside it."""

POINT = np.dtype([("rate", RATE), ("head", PRICE), ("probe", PRICE), ("policy", PRICE)])
"""What every step at an operating point reads: its rates, and the head, one reading of the probe, one decision."""

SWITCH = np.dtype([("stall_s", "f8"), ("energy_j", "f8"), ("heat_j", "f8"), ("leakage_w", "f8")])
"""One change of operating point, without leakage, which is that of the lower point."""


class Prices(NamedTuple):
    """Tables of one chip, or of several with the same model, along a first axis of V variants.

    P operating points, L layers, K kinds of layers (with one attention window each). ``at`` is a place in the third axis of
    ``layer``: the context of a decoded token, or ``prefill`` + the length of a prompt.

    Attributes:
        chip: (V,) records of ``cost.CHIP``.
        points: (V, P) records of ``cost.POINT``.
        work: (V, W) records of ``cost.WORK``, for what is not tabulated.
        at: (V, P) records of ``POINT``.
        switch: (V, P, P) records of ``SWITCH``, from and to.
        switch_s: (V, P, P) their stalls alone.
        layer: (V, K, C, P) records of ``PRICE``.
        head_s: (V, P) seconds of the head.
        fill: (V, L, F, P) records of ``PRICE``: caches of so many skipped layers (never all), by context (the last stands for
            longer).
        kind: (L,) index of each layer's kind.
        remaining: (L + 1, K) layers of each kind from a layer on.
        prefill: (1,) where the prompts begin.
        reference_j: (V,) energy of a full-depth token at the top point and ``REFERENCE_CONTEXT``.
    """

    chip: NDArray[np.void]
    points: NDArray[np.void]
    work: NDArray[np.void]
    at: NDArray[np.void]
    switch: NDArray[np.void]
    switch_s: NDArray[np.float64]
    layer: NDArray[np.void]
    head_s: NDArray[np.float64]
    fill: NDArray[np.void]
    kind: NDArray[np.int64]
    remaining: NDArray[np.int64]
    prefill: NDArray[np.int64]
    reference_j: NDArray[np.float64]


@kept
def undisturbed(chip: Any, point: Any, work: Any, rows: float, context: float, causal: bool) -> Any:
    """A price: ``(latency_s, energy_j, heat_j)``; arguments as in ``cost.work_cost``."""
    cost = work_cost(chip, point, work, rows, context, causal, chip.leakage_reference_c, 1.0)
    joules = cost[1] + cost[2] + cost[3] + cost[4] + cost[5] + cost[6]
    return cost[0], joules, joules - chip.dram_elsewhere * cost[6]


@kept
def _fill_prices(chip: Any, points: Any, work: Any, rows: Any, contexts: Any, causal: bool, out: Any) -> None:
    for j in range(len(contexts)):
        for k in range(len(points)):
            price = undisturbed(chip, points[k], work, rows[j], contexts[j], causal)
            out[j, k].latency_s, out[j, k].energy_j, out[j, k].heat_j = price


def _priced(emulator: Emulator, piece: int, rows: Any, contexts: Any, causal: bool = False) -> NDArray[np.void]:
    """(contexts, points) records of ``PRICE``."""
    contexts = np.zeros_like(rows) + contexts if np.ndim(rows) else np.asarray(contexts, np.float64)
    rows = np.zeros(len(contexts)) + rows
    out = np.zeros((len(contexts), len(emulator.points)), PRICE)
    _fill_prices(emulator.constants[0], emulator.points, emulator.work[piece], rows, contexts, causal, out)
    return out


def _at(emulator: Emulator) -> NDArray[np.void]:
    chip, points = emulator.constants[0], emulator.points
    out = np.zeros(len(points), POINT)
    for name, piece in (("head", HEAD), ("probe", PROBE), ("policy", POLICY)):
        out[name] = _priced(emulator, piece, 1.0, [0.0])[0]
    rate = out["rate"]
    rate["leakage_w"] = points["leakage_w"]
    gated_w = points["frequency_hz"] * points["dynamic_scale"] * chip["clock_j_per_cycle"] * chip["clock_gated"]
    rate["stall_w"] = gated_w + chip["dram_waiting_w"]
    rate["stall_heat_w"] = gated_w + chip["dram_waiting_w"] * (1.0 - chip["dram_elsewhere"])
    return out


def _switches(emulator: Emulator) -> NDArray[np.void]:
    chip, points = emulator.constants[0], emulator.points
    out = np.zeros((len(points), len(points)), SWITCH)
    for i, old in enumerate(points):
        for k, new in enumerate(points):
            if i == k:
                continue
            stall_s, energy_j, leakage_w = switch_parts(chip, old, new)
            heat_j = energy_j - stall_s * chip["dram_waiting_w"] * chip["dram_elsewhere"]
            out[i, k] = (stall_s, energy_j, heat_j, leakage_w)
    return out


def _fills(emulator: Emulator, longest: int) -> NDArray[np.void]:
    """(layers, contexts, points); one context stands for all where none matters."""
    contexts = np.arange(longest + 1.0)
    table = np.stack([_priced(emulator, emulator.kv_fill_row(n), 1.0, contexts) for n in range(emulator.workload.layers)])
    if all((table[name] == table[name][:, -1:]).all() for name in PRICE.fields or ()):
        table = table[:, -1:]
    return table


def price_list(emulators: tuple[Emulator, ...], longest_prompt: int, longest_context: int) -> Prices:
    """Tables of chips that run one model.

    Args:
        emulators: One per variant; same model, same number of operating points.
        longest_prompt: Most tokens of a prompt.
        longest_context: Most tokens of a prompt and its response.

    Raises:
        BadValueError: A price is no finite number.
    """
    first = emulators[0]
    prompts, contexts = np.arange(longest_prompt + 1.0), np.arange(longest_context + 1.0)
    prompts[0] = 1.0  # never looked up: there are no empty prompts
    layer = np.stack(
        [
            np.stack(
                [
                    np.concatenate(
                        [
                            _priced(emulator, LAYER + kind, 1.0, contexts),
                            _priced(emulator, LAYER + kind, prompts, 0.0, causal=True),
                        ]
                    )
                    for kind in emulator.classes
                ]
            )
            for emulator in emulators
        ]
    )
    windows = [first.workload.window_of(i) for i in range(first.workload.layers)]
    switch = np.stack([_switches(e) for e in emulators])
    at = np.stack([_at(e) for e in emulators])
    prices = Prices(
        chip=np.concatenate([e.constants for e in emulators]),
        points=np.stack([e.points for e in emulators]),
        work=np.stack([e.work for e in emulators]),
        at=at,
        switch=switch,
        switch_s=np.ascontiguousarray(switch["stall_s"]),
        layer=layer,
        head_s=np.ascontiguousarray(at["head"]["latency_s"]),
        fill=np.stack([_fills(e, longest_context) for e in emulators]),
        kind=np.array([[windows[c] for c in first.classes].index(window) for window in windows], np.int64),
        remaining=first.remaining,
        prefill=np.array([longest_context + 1]),
        reference_j=np.array([e.token_energy_j(e.top, REFERENCE_CONTEXT) for e in emulators]),
    )
    for v, emulator in enumerate(emulators):
        _check_finite(emulator, prices, v)
    return prices


def _check_finite(emulator: Emulator, prices: Prices, v: int) -> None:
    """Everything that is looked up is a number: what the kernel adds up is one, too."""
    for what, table in (("layer", prices.layer), ("step", prices.at), ("switch", prices.switch), ("cache fill", prices.fill)):
        if not np.isfinite(np.ascontiguousarray(table[v]).view("f8")).all():
            raise BadValueError(
                f"what a {what} of {emulator.workload.name} takes on {emulator.chip.name} is no finite number",
                "check the constants of the chip: all are in SI units",
            )
