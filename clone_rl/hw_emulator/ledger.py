"""The account of a decode loop in shapes, not seconds: what ran, in order, for an emulator to price.

A loop that runs somewhere else (a laptop, a server) says here what a chip would have had to do. Nothing is measured by a
clock: the same events cost what the chip at hand takes for them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from clone_rl.errors import BadValueError, UnknownNameError
from clone_rl.hw_emulator.emulator import HEAD, LAYER, POLICY, PROBE, Emulator, LayerCost

KV = ("propagate", "exact", "skip")
"""What skipped layers get as keys and values: projections of the exit state at once (CALM), their true values when the layer
next runs (EE-LLM), or nothing."""

KINDS = ("EMBED", "PREFILL", "LAYER", "CATCHUP", "KV_FILL", "PROBE", "POLICY", "HEAD", "VF_SWITCH")
"""What an event is. EMBED is priced within HEAD, which reads the embedding's row."""


@dataclass(frozen=True)
class Event:
    """One piece of work.

    Attributes:
        kind: One of ``KINDS``.
        point: Operating point it runs at (after the change, for VF_SWITCH); None is the chip's top one.
        layer: Which decoder layer (PREFILL, LAYER, CATCHUP), or the first one skipped (KV_FILL).
        rows: Tokens that go through it at once.
        context: Positions that a LAYER attends to, its own included; that a CATCHUP finds in the cache before its rows.
        skipped: Layers whose caches a KV_FILL fills.
        previous: Operating point before a VF_SWITCH.
    """

    kind: str
    point: int | None
    layer: int = 0
    rows: int = 1
    context: int = 0
    skipped: int = 0
    previous: int | None = None

    def cost(self, emulator: Emulator, temperature_c: float | None = None) -> LayerCost:
        """What it takes on a chip without interference; a switch's energy is booked as clock energy."""
        if self.kind == "VF_SWITCH":
            stall_s, energy_j = emulator.switch(self.previous, self.point, temperature_c)
            return LayerCost(stall_s, 0.0, 0.0, 0.0, energy_j, 0.0, 0.0, 0.0)
        if self.kind == "EMBED":
            return LayerCost(*[0.0] * 8)
        piece = {
            "PREFILL": LAYER + self.layer,
            "LAYER": LAYER + self.layer,
            "CATCHUP": LAYER + self.layer,
            "KV_FILL": emulator.kv_fill_row(self.skipped),
            "PROBE": PROBE,
            "POLICY": POLICY,
            "HEAD": HEAD,
        }[self.kind]
        causal = self.kind in ("PREFILL", "CATCHUP")
        return emulator.cost(piece, self.point, self.context, self.rows, temperature_c, causal=causal)


@dataclass
class Ledger:
    """Events of one request, and the positions that its layers' caches lack.

    Args:
        layers: Decoder layers of the model.
        kv: What becomes of the caches of skipped layers, one of ``KV``.

    Attributes:
        events: In order.
        missing: For each layer, tokens whose keys and values it does not have.

    >>> ledger = Ledger(layers=2)
    >>> ledger.start(prompt_tokens=5)
    >>> for layer in (0, 1):
    ...     ledger.layer(layer, point=3)
    >>> ledger.head(point=3)
    >>> ledger.layer(0, point=1), ledger.leave(depth=1, point=1), ledger.head(point=1)
    (None, None, None)
    >>> [event.kind for event in ledger.events]
    ['PREFILL', 'PREFILL', 'HEAD', 'EMBED', 'LAYER', 'KV_FILL', 'HEAD']
    """

    layers: int
    kv: str = "propagate"
    events: list[Event] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    _prompt: int = 0
    _token: int = 0

    def __post_init__(self) -> None:
        if self.kv not in KV:
            raise UnknownNameError("K/V strategy", self.kv, KV)
        self.missing = self.missing or [0] * self.layers

    def start(self, prompt_tokens: int) -> None:
        """Begin a request.

        Raises:
            BadValueError: The prompt has no tokens.
        """
        if prompt_tokens < 1:
            raise BadValueError(f"a prompt of {prompt_tokens} tokens", "at least 1")
        self.events, self.missing = [], [0] * self.layers
        self._prompt, self._token = prompt_tokens, 0

    def layer(self, layer: int, point: int | None) -> None:
        """A decoder layer ran: of the whole prompt for the first token, of one token after it."""
        if self._token == 0:
            self.events.append(Event("PREFILL", point, layer, rows=self._prompt))
            return
        if layer == 0:
            self.events.append(Event("EMBED", point))
        context, missing = self._prompt + self._token, self.missing[layer]
        if self.kv == "exact" and missing:
            self.events.append(Event("CATCHUP", point, layer, rows=missing + 1, context=context - missing - 1))
            self.missing[layer] = 0
        else:
            self.events.append(Event("LAYER", point, layer, context=context - missing))

    def leave(self, depth: int, point: int | None) -> None:
        """The token left after ``depth`` layers, fewer than all."""
        if self.kv == "propagate":
            skipped = self.layers - depth
            self.events.append(Event("KV_FILL", point, depth, context=self._prompt + self._token, skipped=skipped))
            return
        for layer in range(depth, self.layers):
            self.missing[layer] += 1

    def head(self, point: int | None, read: bool = False) -> None:
        """The token was emitted; ``read`` tells that the head ran at this boundary already, to decide."""
        if not read:
            self.read_head(point)
        self._token += 1

    def read_head(self, point: int | None) -> None:
        """The head ran on a state, to see how sure it is."""
        self.events.append(Event("HEAD", point))

    def probe(self, point: int | None) -> None:
        """The exit probe was read."""
        self.events.append(Event("PROBE", point))

    def policy(self, point: int | None) -> None:
        """The controller decided."""
        self.events.append(Event("POLICY", point))

    def switch(self, previous: int | None, point: int | None) -> None:
        """The operating point changed."""
        self.events.append(Event("VF_SWITCH", point, previous=previous))

    def cost(self, emulator: Emulator, temperature_c: float | None = None) -> dict[str, LayerCost]:
        """Latency and energy by kind of event, on one chip, without interference and at one temperature.

        Raises:
            BadValueError: The ledger is of a model of another depth.
        """
        if emulator.workload.layers != self.layers:
            raise BadValueError(
                f"the ledger is of {self.layers} layers and {emulator.workload.name} has {emulator.workload.layers}",
                "load the chip with the model that ran",
            )
        by_kind: dict[str, list[LayerCost]] = {}
        for event in self.events:
            by_kind.setdefault(event.kind, []).append(event.cost(emulator, temperature_c))
        return {kind: LayerCost.total(costs) for kind, costs in by_kind.items()}

    def total(self, emulator: Emulator, temperature_c: float | None = None) -> LayerCost:
        """All of ``cost``."""
        return LayerCost.total(self.cost(emulator, temperature_c).values())

    def rows(self) -> list[dict[str, Any]]:
        """Events as plain data."""
        return [asdict(event) for event in self.events]

    def counts(self) -> dict[str, int]:
        """How often each kind occurred."""
        return dict(Counter(event.kind for event in self.events))
