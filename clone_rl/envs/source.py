"""Where the tokens of a live request come from: the protocol that a model in the loop satisfies.

A recorded trace holds, for every token and layer, what the exit signals show and what leaving there would emit. A source
fills in a trace of one document while the request runs, just ahead of the kernel, which reads both in the same way.
"""

from __future__ import annotations

from typing import Protocol

from clone_rl.envs.trace import TraceSet


class TokenSource(Protocol):
    """One request at a time.

    Attributes:
        layers: Decoder layers of the model.
        kv: What it gives skipped layers as keys and values, one of ``clone_rl.hw_emulator.ledger.KV``.
        probe_dots: Dot products with the residual that its exit probe takes at a boundary.
        ended: Whether the token emitted last was the end of the response.
    """

    layers: int
    kv: str
    probe_dots: int
    ended: bool

    def __len__(self) -> int:
        """Number of documents (prompts) that a request can be started from."""
        ...

    def start(self, document: int, seed: int) -> TraceSet:
        """Begin a request.

        Args:
            document: Which prompt, from 0.
            seed: Of everything that is drawn while it is answered.

        Returns:
            A trace of one document, as long as the response may become, whose columns later calls fill in.
            ``card["expected_tokens"]`` is the predicted length of the response.
        """
        ...

    def run(self, layer: int) -> None:
        """The next layer of the token in flight runs (of the whole prompt, for the first token).

        Fills in the signals of the boundary behind it; after the last layer, the token is emitted.
        """
        ...

    def leave(self, depth: int) -> None:
        """The token in flight is emitted after ``depth`` layers: fills in what that costs in quality."""
        ...

    def close(self) -> None:
        """Let go of what the source holds; a request may be started all the same."""
        ...
