"""Errors as clients of the OpenAI API know them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from clone_rl.errors import CloneRLError

_LONGEST = 80  # characters of a value in a message
_KINDS = {401: "authentication_error", 429: "rate_limit_error"}


class ApiError(CloneRLError):
    """An answer that is an error.

    Args:
        status: HTTP status code.
        message, hint: As of every ``CloneRLError``; clients read both.
        param: The parameter that is wrong.
        code: Machine-readable reason.
        headers: Of the answer.
    """

    kind = "api"

    def __init__(
        self,
        status: int,
        message: str,
        hint: str = "",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, hint)
        self.status, self.param, self.code, self.headers = status, param, code, dict(headers or {})

    @classmethod
    def of(cls, error: CloneRLError, param: str | None = None) -> ApiError:
        """What a client is told of an error that its request caused."""
        return error if isinstance(error, cls) else cls(400, error.message, error.hint, param)

    @property
    def body(self) -> dict[str, Any]:
        """In OpenAI's shape."""
        kind = _KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def shown(value: Any) -> str:
    """A value of a request in a message: in the words of JSON, and not too long.

    >>> shown([True, None, 0.5, "a"]), shown("a")
    ('[true, null, 0.5, "a"]', "'a'")
    """
    text = repr(value) if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def broken() -> ApiError:
    """What a client is told of a fault of the server: nothing of it."""
    return ApiError(500, "the server could not answer this request", "its log says why")


def timed_out(timeout_s: float) -> ApiError:
    """A request that took longer than the server grants."""
    return ApiError(504, f"no complete answer within {timeout_s:g} s", "ask for fewer tokens, or later", code="timeout")
