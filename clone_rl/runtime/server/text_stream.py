"""Text of a response while it is made: whole characters, and nothing that may yet turn out to be a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_HALF = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer makes of half a character."""


class TextStream:
    """Tokens in, pieces of text out; the pieces add up to the text of all tokens, up to the first stop string.

    Args:
        decode: Text of tokens.
        stops: What ends the response; never part of its text.

    Attributes:
        stopped: Whether a stop string came.
    """

    def __init__(self, decode: Callable[[list[int]], str], stops: Sequence[str] = ()) -> None:
        self._decode, self._stops = decode, tuple(stops)
        self._ids: list[int] = []
        self._before, self._shown = 0, 0  # the tokens that the next ones are decoded behind begin and end here
        self._held, self.stopped = "", False

    def push(self, token: int) -> str:
        """Take one more token; returns what is now certain: after a stop string, nothing."""
        if self.stopped:
            return ""
        self._ids.append(token)
        context = self._decode(self._ids[self._before : self._shown])
        text = self._decode(self._ids[self._before :])
        if len(text) <= len(context) or text.endswith(_HALF):
            return ""
        self._before, self._shown = self._shown, len(self._ids)
        return self._released(text[len(context) :])

    def finish(self) -> str:
        """What was held back, once no token follows."""
        if self.stopped:
            return ""
        context = self._decode(self._ids[self._before : self._shown])
        rest = self._released(self._decode(self._ids[self._before :])[len(context) :])
        if not self.stopped:
            rest, self._held = rest + self._held, ""
        return rest

    def _released(self, new: str) -> str:
        """What of the text that is held is certain, with some more at its end."""
        text = self._held + new
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self._held, self.stopped = "", True
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of a text that a stop string begins with."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
