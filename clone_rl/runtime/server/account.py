"""What a response cost, and what all of them did: for answers, metrics and the live page."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from clone_rl.envs.scenario import ServiceLevel

if TYPE_CHECKING:
    from clone_rl.llm.live import Generation

_REMEMBERED = 60
"""Responses whose energy per token the live page shows."""

_SHOWN = 512
"""Tokens of the last response that it shows."""


def energy_report(
    generation: Generation, level: ServiceLevel, seed: int, controller: str, decided: Mapping[str, Any]
) -> dict[str, Any]:
    """The ``clone_rl`` object of an answer; times in emulated seconds, the wait counted in TTFT and deadlines.

    Args:
        generation: The response.
        level, seed: Of the request.
        controller: Its name.
        decided: Its own report.
    """
    from clone_rl.llm.live import per_later_token

    figures, tokens = generation.figures, len(generation.token_ids)
    depths = _depths(generation)
    return {
        "energy_j": float(figures["energy_j"]),
        "energy_per_token_j": float(figures["energy_j"]) / tokens,
        "deadline_misses": int(figures["late"]),
        "mean_depth": sum(depths) / tokens,
        "exits": sum(depth < generation.points.shape[1] for depth in depths),
        "ttft_s": float(figures["ttft_s"]),
        "tpot_s": per_later_token(figures),
        "waited_s": float(generation.waited_s),
        "slo": {"class": level.name, "ttft_s": level.ttft_s, "tpot_s": level.tpot_s},
        "seed": seed,
        "controller": controller,
        "overruled": decided["overruled"],
        "degraded": decided["degraded"],
    }


def _depths(generation: Generation) -> list[int]:
    """Layers that ran, for each token."""
    return [int(depth) for depth in (generation.points >= 0).sum(1)]


@dataclass
class Totals:
    """Sums over everything since the start; energy and time include what was cancelled."""

    requests: int = 0
    tokens: int = 0
    deadline_misses: int = 0
    energy_j: float = 0.0
    busy_s: float = 0.0


@dataclass
class Account:
    """Totals, and the last response, without a word of what was asked and answered.

    Attributes:
        totals: Sums since the start.
        depths: Layers of each token of the last response.
        last: The last response as the live page shows it; None before the first.
        recent: Joules per token of the latest responses.
    """

    totals: Totals = field(default_factory=Totals)
    depths: list[int] = field(default_factory=list)
    last: dict[str, Any] | None = None
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def charge(self, energy_j: float, busy_s: float) -> None:
        """Add what the chip spent, whether or not anyone got something for it."""
        with self._lock:
            self.totals.energy_j += energy_j
            self.totals.busy_s += busy_s

    def enter(self, generation: Generation, report: dict[str, Any]) -> None:
        """Add a response that was completed."""
        with self._lock:
            self.depths = _depths(generation)
            self.totals.requests += 1
            self.totals.tokens += len(generation.token_ids)
            self.totals.deadline_misses += report["deadline_misses"]
            self.recent.append(report["energy_per_token_j"])
            slack = [due - left for due, left in zip(generation.due_s, generation.emitted_s, strict=True)]
            self.last = {
                **report,
                "tokens": len(generation.token_ids),
                "points": generation.points[-_SHOWN:].tolist(),
                "depths": self.depths[-_SHOWN:],
                "slack_s": slack[-_SHOWN:],
            }

    def snapshot(self) -> dict[str, Any]:
        """All of it as plain data."""
        with self._lock:
            return {"totals": vars(self.totals).copy(), "recent_j": list(self.recent), "last": self.last}
