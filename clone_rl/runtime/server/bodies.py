"""Bodies of requests: bounded in size and in time, and JSON objects or nothing."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NoReturn

from starlette.requests import Request

from clone_rl.runtime.server.failures import ApiError
from clone_rl.runtime.server.settings import Settings

_DRAINED = 16
"""So many times the limit are still read of a body that is too large, so that its sender comes to read the answer."""


async def read_body(request: Request, settings: Settings) -> dict[str, Any]:
    """The JSON object that a request holds.

    Raises:
        ApiError: It is too large or too slow, of another type, or malformed.
        ClientDisconnect: The client left.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        async with asyncio.timeout(settings.timeout_s):
            raw = await _read(request, settings.max_body_bytes)
    except TimeoutError:
        raise ApiError(408, f"no complete body within {settings.timeout_s:g} s", headers={"Connection": "close"}) from None
    if kind != "application/json":  # what a web page of another origin cannot send without asking
        raise ApiError(415, f"content type {kind!r:.80}", "send Content-Type: application/json")
    return parsed(raw)


async def _read(request: Request, limit: int) -> bytes:
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= limit:
            chunks.append(chunk)
        elif size > _DRAINED * limit:
            break
    if size > limit:
        close = {"Connection": "close"}
        raise ApiError(413, f"the body has more than {limit} bytes", "send less", code="body_too_large", headers=close)
    return b"".join(chunks)


def parsed(raw: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ApiError: Malformed, nested too deeply, not UTF-8, or no object.

    >>> parsed(b'{"model": "default"}')
    {'model': 'default'}
    """
    try:
        value = json.loads(raw.decode("utf-8"), parse_constant=_refuse)
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply") from None
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ApiError(400, "the body is not a JSON object")
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")
