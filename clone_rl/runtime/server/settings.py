"""How a server serves: address, tokens, limits, clock."""

from __future__ import annotations

import math
from dataclasses import dataclass

from clone_rl.errors import BadValueError, UnknownNameError

CLOCKS = ("emulated", "wall")
"""What a request's wait is measured in: seconds of the chip's work before it, or seconds on the wall."""

_LEAST_TOKEN = 8  # characters


@dataclass(frozen=True)
class Settings:
    """How a server serves.

    Attributes:
        host, port: Where it listens; port 0 takes a free one.
        tokens: Bearer tokens that are let in; anyone is where there are none.
        insecure: Listen beyond this machine without a token.
        max_queue: Requests that may wait.
        max_body_bytes: Largest body of a request.
        max_connections: Open connections, idle ones included.
        timeout_s: Wall seconds for a request: for its body, and then again from its arrival to its last token.
        grace_s: Wall seconds that a shutdown grants to what waits and runs.
        clock: One of ``CLOCKS``.
        slo: Service class of a request that names none; the scenario's first if empty.
        any_model: Whether the controller may have been trained on another model.

    Raises:
        BadValueError: A limit is not above 0, or a token is short or not of visible ASCII.
        UnknownNameError: No such clock.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    tokens: tuple[str, ...] = ()
    insecure: bool = False
    max_queue: int = 64
    max_body_bytes: int = 262_144
    max_connections: int = 512
    timeout_s: float = 60.0
    grace_s: float = 10.0
    clock: str = "emulated"
    slo: str = ""
    any_model: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise BadValueError(f"port is {self.port}", "0 to 65535; 0 takes a free one")
        for name in ("max_queue", "max_body_bytes", "max_connections", "timeout_s", "grace_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise BadValueError(f"{name} is {getattr(self, name)}", "more than 0")
        for token in self.tokens:
            if len(token) < _LEAST_TOKEN or not all("!" <= character <= "~" for character in token):
                raise BadValueError("a token is too short, or not of visible ASCII", f"at least {_LEAST_TOKEN} characters")
        if self.clock not in CLOCKS:
            raise UnknownNameError("clock", self.clock, CLOCKS)
