"""A request on its way through the queue and the worker, and what it hears back."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from clone_rl.envs.scenario import ServiceLevel
from clone_rl.runtime.server.failures import ApiError
from clone_rl.runtime.server.parameters import Parameters


@dataclass(frozen=True)
class Answer:
    """The end of a response.

    Attributes:
        finish_reason: ``stop`` or ``length``.
        tokens: Of the response.
        report: See ``account.energy_report``.
    """

    finish_reason: str
    tokens: int
    report: dict[str, Any]


Event = str | Answer | ApiError
"""What a request hears: pieces of text, then one answer or error."""


@dataclass(eq=False)
class Job:
    """A request.

    Attributes:
        id: Of the answer.
        endpoint: ``completions`` or ``chat``.
        client: Whose turn it takes in the queue.
        prompt: Tokens.
        parameters, level, seed: What was asked for.
        arrived_s: When it arrived, by the clock that waits are measured with.
        arrived_wall_s: The same by the monotonic clock.
        gone: Whether nobody waits for it any more; set by the event loop, read by the worker.
    """

    id: str
    endpoint: str
    client: str
    prompt: list[int]
    parameters: Parameters
    level: ServiceLevel
    seed: int
    arrived_s: float = 0.0
    arrived_wall_s: float = field(default_factory=time.monotonic)
    gone: bool = False
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    _events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)

    def tell(self, event: Event) -> None:
        """Let whoever waits for this request hear something; from any thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def hear(self) -> Event:
        """The next event."""
        return await self._events.get()
