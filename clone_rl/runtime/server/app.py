"""The HTTP side: routes, and requests that are watched until they are answered or their client is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from clone_rl.runtime.server import live_page
from clone_rl.runtime.server.bodies import read_body
from clone_rl.runtime.server.failures import ApiError, broken, timed_out
from clone_rl.runtime.server.guard import Guard, client_of, failed
from clone_rl.runtime.server.job import Answer, Event, Job
from clone_rl.runtime.server.metrics import CONTENT_TYPE
from clone_rl.runtime.server.replies import Reply, dumped, event
from clone_rl.runtime.server.service import Service


class _Left(Exception):  # noqa: N818
    """The client is gone."""


def _json(value: Any) -> Response:
    return Response(dumped(value), media_type="application/json")


def _outcome(error: BaseException) -> str:
    """How a request ended that was not completed, one of ``metrics.OUTCOMES``."""
    if not isinstance(error, ApiError):
        return "cancelled" if isinstance(error, _Left | ClientDisconnect | asyncio.CancelledError) else "failed"
    return {429: "rejected", 504: "timed_out", 500: "failed"}.get(error.status, "refused")


class _Stream(StreamingResponse):
    """Events of one job; cancels the job if the client leaves before the last one."""

    def __init__(self, exchange: _Exchange, first: Event) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(exchange.chunks(first), media_type="text/event-stream", headers=headers)
        self._exchange = exchange

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._exchange.close("cancelled")


class _Exchange:
    """One job and its answer."""

    def __init__(self, service: Service, job: Job) -> None:
        self._service, self._job, self._open = service, job, True
        self._reply = Reply(job, service.model)
        self._deadline_s = asyncio.get_running_loop().time() + service.settings.timeout_s

    def close(self, outcome: str) -> None:
        """Count how it ended, and let go of the job; only the first time."""
        if self._open:
            self._open = False
            self._service.worker.metrics.count(self._job.endpoint, outcome)
            self._service.worker.cancel(self._job)

    async def _hear(self) -> str | Answer:
        try:
            async with asyncio.timeout_at(self._deadline_s):
                heard = await self._job.hear()
        except TimeoutError:
            raise timed_out(self._service.settings.timeout_s) from None
        if isinstance(heard, ApiError):
            raise heard
        return heard

    async def respond(self, request: Request) -> Response:
        """The whole answer, or a stream that has begun.

        Raises:
            ApiError: There is none.
            _Left: The client is gone.
        """
        try:
            self._service.worker.submit(self._job)
            return await _attended(request, self._begin() if self._job.parameters.stream else self._whole())
        except BaseException as error:
            self.close(_outcome(error))
            raise

    async def _begin(self) -> Response:
        return _Stream(self, await self._hear())  # so far an error has a status of its own

    async def _whole(self) -> Response:
        pieces = []
        while isinstance(heard := await self._hear(), str):
            pieces.append(heard)
        self.close("completed")
        return _json(self._reply.whole("".join(pieces), heard))

    async def chunks(self, first: Event) -> AsyncIterator[bytes]:
        """Server-sent events, from the one that came already."""
        heard: Any = first
        try:
            if opening := self._reply.opening():
                yield opening
            while isinstance(heard, str):
                yield self._reply.piece(heard)
                heard = await self._hear()
        except ApiError as error:
            self.close(_outcome(error))
            yield event(error.body)
            return
        self.close("completed")
        yield self._reply.closing(heard)


async def _attended(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """Do some work unless the client leaves before it is done."""
    working, leaving = asyncio.create_task(work), asyncio.create_task(_leaves(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise _Left
        return await working
    finally:
        for task in (working, leaving):
            task.cancel()
            with suppress(asyncio.CancelledError, ApiError):
                await task


async def _leaves(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _error_handlers(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def known(_: Request, error: ApiError) -> Response:
        return failed(error)

    @app.exception_handler(HTTPException)
    async def routing(request: Request, error: HTTPException) -> Response:
        what = f"{request.method} {request.url.path:.80}: {error.detail}"
        return failed(ApiError(error.status_code, what, headers=error.headers))

    @app.exception_handler(Exception)
    async def unknown(_: Request, __: Exception) -> Response:
        return failed(broken())


def make_app(service: Service) -> ASGIApp:
    """The server's application; its worker lives as long as its lifespan."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        try:
            yield
        finally:
            await asyncio.to_thread(service.worker.stop)

    app = FastAPI(openapi_url=None, lifespan=lifespan)
    _error_handlers(app)

    async def answer(request: Request, endpoint: str) -> Response:
        try:
            body = await read_body(request, service.settings)
            job = await service.job(body, request.headers, endpoint, client_of(request.scope))
        except (ApiError, ClientDisconnect) as error:
            service.worker.metrics.count(endpoint, _outcome(error))
            if isinstance(error, ApiError):
                raise
            return Response()  # nobody reads it
        try:
            return await _Exchange(service, job).respond(request)
        except _Left:
            return Response()

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await answer(request, "completions")

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await answer(request, "chat")

    @app.get("/v1/models")
    async def models() -> Response:
        return _json(service.models())

    @app.get("/v1/models/{name}")
    async def model(name: str) -> Response:
        service.check_model(name)
        return _json(service.model_card())

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.worker.metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/healthz")
    async def healthz() -> Response:
        return _json({"status": "ok"})

    @app.get("/live.json")
    async def live() -> Response:
        return _json(service.state())

    @app.get("/")
    async def page() -> Response:
        return Response(live_page.PAGE, media_type="text/html", headers=live_page.HEADERS)

    return Guard(app, service.settings)
