"""Answers in OpenAI's shapes, whole or in chunks."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

from clone_rl.runtime.server.job import Answer, Job

DONE = b"data: [DONE]\n\n"

_OBJECTS = {
    "completions": ("text_completion", "text_completion"),
    "chat": ("chat.completion", "chat.completion.chunk"),
}


def dumped(value: Any) -> bytes:
    """JSON in ASCII: half a surrogate pair, which a client may send, is then no error on the way back."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")


def event(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + dumped(value) + b"\n\n"


@dataclass
class Reply:
    """What the answers to one request have in common.

    Args:
        job: The request.
        model: Name of the model.
    """

    job: Job
    model: str
    created: int = field(default_factory=lambda: int(time.time()))

    def _frame(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {
            "id": self.job.id, "object": kind, "created": self.created, "model": self.model, "choices": choices, **more,
        }  # fmt: skip

    def _usage(self, answer: Answer) -> dict[str, int]:
        prompt = len(self.job.prompt)
        return {
            "prompt_tokens": prompt, "completion_tokens": answer.tokens, "total_tokens": prompt + answer.tokens,
        }  # fmt: skip

    def whole(self, text: str, answer: Answer) -> dict[str, Any]:
        """The answer to a request that does not stream."""
        chat = self.job.endpoint == "chat"
        said: dict[str, Any] = {"message": {"role": "assistant", "content": text, "refusal": None}} if chat else {"text": text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": answer.finish_reason}
        kind = _OBJECTS[self.job.endpoint][0]
        return self._frame(kind, [choice], usage=self._usage(answer), clone_rl=answer.report)

    def _chunk(self, said: dict[str, Any], finish_reason: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish_reason}
        counted = {"usage": None} if self.job.parameters.include_usage else {}
        return event(self._frame(_OBJECTS[self.job.endpoint][1], [choice], **counted, **more))

    def opening(self) -> bytes:
        """The first chunk of a chat, which says who speaks; nothing for a completion."""
        return self._chunk({"delta": {"role": "assistant", "content": ""}}) if self.job.endpoint == "chat" else b""

    def piece(self, text: str) -> bytes:
        """A chunk of text."""
        return self._chunk({"delta": {"content": text}} if self.job.endpoint == "chat" else {"text": text})

    def closing(self, answer: Answer) -> bytes:
        """The last chunks; the very last one has the energy report."""
        said: dict[str, Any] = {"delta": {}} if self.job.endpoint == "chat" else {"text": ""}
        report = {"clone_rl": answer.report}
        if not self.job.parameters.include_usage:
            return self._chunk(said, answer.finish_reason, **report) + DONE
        kind = _OBJECTS[self.job.endpoint][1]
        counted = event(self._frame(kind, [], usage=self._usage(answer), **report))
        return self._chunk(said, answer.finish_reason) + counted + DONE
