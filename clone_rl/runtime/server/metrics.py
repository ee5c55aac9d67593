"""Metrics in Prometheus's text format."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from clone_rl.agents.error_budget import ErrorBudget

OUTCOMES = ("completed", "cancelled", "timed_out", "rejected", "refused", "failed")
"""How requests end: answered; left by the client; out of time; no room in the queue; bad input; a fault of the server."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_WALL_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_EMULATED_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 20.0)


class Metrics:
    """Counters of one server, in a registry of their own.

    Args:
        layers: Of the model.
        waiting: How many requests wait now.
        running: Whether one is answered now.
    """

    def __init__(self, layers: int, waiting: Callable[[], int], running: Callable[[], bool]) -> None:
        self.registry = CollectorRegistry()
        kept: Any = {"registry": self.registry}
        ProcessCollector(registry=self.registry)
        self._requests = Counter("clone_rl_requests", "Requests by how they ended.", ["endpoint", "outcome"], **kept)
        self._tokens = Counter("clone_rl_tokens", "Tokens, of prompts and of responses.", ["kind"], **kept)
        self._energy = Counter("clone_rl_energy_joules", "Energy of the chip, cancelled requests included.", **kept)
        self._busy = Counter("clone_rl_busy_seconds", "Emulated seconds that the chip worked.", **kept)
        self._misses = Counter("clone_rl_deadline_misses", "Tokens that came late.", **kept)
        self._overruled = Counter("clone_rl_overruled_decisions", "Decisions that the shield overruled.", **kept)
        self._degraded = Counter(
            "clone_rl_degraded_decisions", "Decisions at the top point because the controller had failed.", **kept
        )
        self._depth = Histogram(
            "clone_rl_token_depth_layers", "Layers that ran for a token.", buckets=range(1, layers + 1), **kept
        )
        self._wall = Histogram(
            "clone_rl_request_seconds", "Wall seconds from a request's arrival to its last token.", buckets=_WALL_S, **kept
        )
        self._ttft = Histogram("clone_rl_ttft_seconds", "Emulated seconds to first token.", buckets=_EMULATED_S, **kept)
        self._waited = Histogram("clone_rl_waited_seconds", "Wait of a request, by the clock of the server.",
                                 buckets=_EMULATED_S, **kept)  # fmt: skip
        Gauge("clone_rl_queue_length", "Requests that wait.", **kept).set_function(waiting)
        Gauge("clone_rl_running", "Requests that are answered now, 0 or 1.", **kept).set_function(running)
        for endpoint in ("completions", "chat"):
            for outcome in OUTCOMES:
                self._requests.labels(endpoint, outcome)

    def watch(self, budget: ErrorBudget) -> None:
        """Show what an error budget has left, and how many exits it has refused."""
        refused = Gauge("clone_rl_refused_exits", "Exits that the error budget has refused.", registry=self.registry)
        refused.set_function(partial(budget.refused.item, 0))
        balance = Gauge(
            "clone_rl_error_budget", "What is left to spend, in disagreements and nats.", ["of"], registry=self.registry
        )
        for k, name in enumerate(("disagree", "dnll")):
            balance.labels(name).set_function(partial(budget.balance.item, k))

    def count(self, endpoint: str, outcome: str) -> None:
        """One more request that ended so, one of ``OUTCOMES``."""
        self._requests.labels(endpoint, outcome).inc()

    def charge(self, energy_j: float, busy_s: float) -> None:
        """What the chip spent."""
        self._energy.inc(max(0.0, energy_j))
        self._busy.inc(max(0.0, busy_s))

    def enter(self, report: dict[str, Any], prompt_tokens: int, depths: list[int], wall_s: float) -> None:
        """A response that was completed; ``report`` as of ``account.energy_report``."""
        self._tokens.labels("prompt").inc(prompt_tokens)
        self._tokens.labels("completion").inc(len(depths))
        self._misses.inc(report["deadline_misses"])
        self._overruled.inc(report["overruled"])
        self._degraded.inc(report["degraded"])
        for depth in depths:
            self._depth.observe(depth)
        self._wall.observe(wall_s)
        self._ttft.observe(report["ttft_s"])
        self._waited.observe(report["waited_s"])

    def text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return generate_latest(self.registry)
