"""Listening, and stopping when told to."""

from __future__ import annotations

import logging
import signal
import socket
import threading

import uvicorn

from clone_rl.errors import BadValueError
from clone_rl.runtime.server.app import make_app
from clone_rl.runtime.server.guard import check_exposure
from clone_rl.runtime.server.service import Service
from clone_rl.runtime.server.settings import Settings

_BACKLOG = 128


def bound(settings: Settings) -> socket.socket:
    """A socket at the address where a server is to listen.

    Raises:
        BadValueError: It is taken or not of this machine, or other machines could reach it without a token.
    """
    check_exposure(settings)
    family, *_, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
    found = socket.socket(family)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(_BACKLOG)
    except OSError as error:
        found.close()
        raise BadValueError(
            f"cannot listen at {settings.host} port {settings.port}: {error.strerror}", "another --port, or 0 for a free one"
        ) from None
    return found


def url(listening: socket.socket) -> str:
    """Where clients find a socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_server(service: Service) -> uvicorn.Server:
    """A server that is yet to be run."""
    settings = service.settings
    config = uvicorn.Config(
        make_app(service),
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=settings.max_connections,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=max(1, round(settings.grace_s)),
    )
    return uvicorn.Server(config)


def run(service: Service, listening: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM; what waits and runs then has ``grace_s`` seconds to end, and nothing new is taken.

    Args:
        service: What to serve.
        listening: Where, see ``bound``.
    """
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of every write to a client that has left
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if main else None
    try:
        make_server(service).run(sockets=[listening])
    except KeyboardInterrupt:  # the server has stopped in good order and passes the signal on
        pass
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)
