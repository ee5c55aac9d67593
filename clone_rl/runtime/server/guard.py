"""Who is let in, and who is who."""

from __future__ import annotations

import hmac
import ipaddress
import socket
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from clone_rl.errors import BadValueError
from clone_rl.runtime.server.failures import ApiError
from clone_rl.runtime.server.replies import dumped
from clone_rl.runtime.server.settings import Settings

_OPEN = ("/", "/healthz")
"""Hold nothing that a token protects; the page asks for its data with one."""


def failed(error: ApiError) -> Response:
    """An error as a response."""
    return Response(dumped(error.body), error.status, error.headers, "application/json")


def bearer(headers: Headers) -> str:
    """The token of a request; empty where there is none."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def client_of(scope: Scope) -> str:
    """Whose request this is: its bearer token, or else the address that it comes from."""
    token = bearer(Headers(scope=scope))
    return f"token {token}" if token else f"address {(scope.get('client') or ('unknown',))[0]}"


def is_loopback(host: str) -> bool:
    """Whether a host name or address is of this machine alone.

    Raises:
        BadValueError: The name has no address.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise BadValueError(f"host {host!r} has no address: {error}") from None
    return all(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)


def check_exposure(settings: Settings) -> None:
    """Refuse to listen beyond this machine without a token.

    Raises:
        BadValueError: It would, and ``insecure`` was not said.
    """
    if not settings.tokens and not settings.insecure and not is_loopback(settings.host):
        raise BadValueError(
            f"host {settings.host} is reachable from other machines and there is no token",
            "give --token, or --insecure if every client may be trusted",
        )


class Guard:
    """Lets requests with a token through; without tokens, those that were addressed to this machine by its own name.

    The second keeps out web pages that have their own name resolve to 127.0.0.1 (DNS rebinding).

    Args:
        app: What is guarded.
        settings: Tokens and address.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._tokens = app, [token.encode() for token in settings.tokens]
        self._names = {"localhost", settings.host.lower()} if not self._tokens and not settings.insecure else set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As every ASGI application."""
        if scope["type"] == "http" and (error := self._refusal(scope)):
            await failed(error)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        if self._names and not _own(headers.get("host", ""), self._names):
            return ApiError(421, f"host {headers.get('host', '')!r:.80} is not this server", "use its own address")
        if not self._tokens or scope["path"] in _OPEN:
            return None
        given = bearer(headers).encode("latin-1", "replace")
        if sum(hmac.compare_digest(given, token) for token in self._tokens):  # all of them: time tells nothing
            return None
        challenge = {"WWW-Authenticate": "Bearer"}
        return ApiError(401, "no valid bearer token", "send Authorization: Bearer TOKEN", None, "invalid_api_key", challenge)


def _own(host: str, names: Iterable[str]) -> bool:
    """Whether a Host header names this server: by one of its names, or by a loopback address."""
    name = host.lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    try:
        return name in names or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
