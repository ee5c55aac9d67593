"""One generation at a time, on a thread of its own: an edge chip serves a batch of one."""

from __future__ import annotations

import logging
import math
import threading
import time
from typing import TYPE_CHECKING, Any

from clone_rl.errors import CloneRLError
from clone_rl.runtime.server.account import Account, energy_report
from clone_rl.runtime.server.failures import ApiError, broken
from clone_rl.runtime.server.fair_queue import FairQueue
from clone_rl.runtime.server.job import Answer, Job
from clone_rl.runtime.server.meter import Meter
from clone_rl.runtime.server.metrics import Metrics
from clone_rl.runtime.server.parameters import Parameters
from clone_rl.runtime.server.settings import Settings
from clone_rl.runtime.server.text_stream import TextStream

if TYPE_CHECKING:
    from clone_rl.llm.live import Generation, LiveSession
    from clone_rl.llm.sampling import Sampling

log = logging.getLogger("clone_rl.server")

_JOIN_S = 5.0


class _Gone(Exception):  # noqa: N818
    """Nobody waits for this response."""


class Worker:
    """Takes requests from a fair queue and answers them.

    Args:
        session: The model, ready to generate.
        controller: Who decides; ``clone_rl.runtime.RuntimeController`` is one.
        name: Of the controller.
        settings: Limits and clock.

    Attributes:
        account, metrics: What was done so far.
        running: Whether a request is answered now.
    """

    def __init__(self, session: LiveSession, controller: Any, name: str, settings: Settings) -> None:
        self.session, self.name, self.settings = session, name, settings
        self.account, self.running = Account(), False
        self._queue: FairQueue[Job] = FairQueue(settings.max_queue)
        self._meter = Meter(controller)
        self._mean_wall_s = 0.0
        self.metrics = Metrics(session.lm.shape.layers, lambda: len(self._queue), lambda: self.running)
        if budget := getattr(controller, "budget", None):
            self.metrics.watch(budget)
        self._thread = threading.Thread(target=self._work, name="clone-rl-generate", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Answer nothing more; what runs is cut off by its own ``gone``."""
        self._queue.close()
        self._thread.join(_JOIN_S)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    @property
    def retry_after_s(self) -> int:
        """When a client may try again: about when the queue will have been worked off."""
        return max(1, math.ceil(self._mean_wall_s * self.settings.max_queue))

    def _clock_s(self) -> float:
        return time.monotonic() if self.settings.clock == "wall" else self._meter.clock_s

    def submit(self, job: Job) -> None:
        """Queue a request; one that there is no room for hears so."""
        job.arrived_s, job.arrived_wall_s = self._clock_s(), time.monotonic()
        if lost := self._queue.put(job):
            retry = {"Retry-After": str(self.retry_after_s)}
            full = f"{self.settings.max_queue} requests wait already"
            lost.tell(ApiError(429, full, "try again later", code="queue_full", headers=retry))

    def cancel(self, job: Job) -> None:
        """Nobody waits for this request any more, wherever it is."""
        job.gone = True
        self._queue.remove(job)

    def _work(self) -> None:
        while (job := self._queue.take()) is not None:
            self.running = True
            try:
                self._answer(job)
            except _Gone:
                pass
            except CloneRLError as error:
                job.tell(ApiError.of(error, "prompt"))
            except Exception:
                log.exception("request %s failed", job.id)
                job.tell(broken())
            finally:
                self.running = False

    def _answer(self, job: Job) -> None:
        if job.gone:
            return
        context = self.session.lm.shape.context
        start_s, waited_s = time.monotonic(), max(0.0, self._clock_s() - job.arrived_s)
        text = TextStream(self.session.lm.decode, job.parameters.stop)

        def on_token(token: int) -> bool:
            if job.gone:
                raise _Gone
            if token not in self.session.lm.end_ids and (piece := text.push(token)):
                job.tell(piece)
            return text.stopped

        longest = min(job.parameters.max_tokens or context, max(1, context - len(job.prompt)))
        self._meter.begin(job.id, job.level, len(job.prompt), longest, waited_s)
        worked_s = None
        try:
            generation = self.session.generate(
                job.prompt,
                self._meter,
                longest,
                _sampling(job.parameters),
                job.seed,
                on_token,
                slo=job.level,
                waited_s=waited_s,
                reference=False,
            )
            worked_s = generation.emitted_s[-1] - waited_s
        finally:
            took_s = self._meter.end(worked_s)
            self.account.charge(self._meter.energy_j, took_s)
            self.metrics.charge(self._meter.energy_j, took_s)
        if rest := text.finish():
            job.tell(rest)
        self._close(job, generation, text.stopped)
        self._mean_wall_s += 0.2 * (time.monotonic() - start_s - self._mean_wall_s)

    def _close(self, job: Job, generation: Generation, stopped: bool) -> None:
        """Enter a response that is complete, and let its client hear so."""
        report = energy_report(generation, job.level, job.seed, self.name, self._meter.report())
        self.account.enter(generation, report)
        wall_s = time.monotonic() - job.arrived_wall_s
        self.metrics.enter(report, len(job.prompt), self.account.depths, wall_s)
        ended = stopped or generation.token_ids[-1] in self.session.lm.end_ids
        job.tell(Answer("stop" if ended else "length", len(generation.token_ids), report))


def _sampling(parameters: Parameters) -> Sampling:
    from clone_rl.llm.sampling import Sampling

    given = {"temperature": parameters.temperature, "top_k": parameters.top_k}
    return Sampling(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
