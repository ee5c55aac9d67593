"""A thousand requests, good and bad, from clients that come and go."""

import asyncio
import gc
import json
import random
from urllib.parse import urlparse

import psutil
import pytest
from serving import serving, until

from clone_rl.runtime.server.job import Job

pytest_plugins = ["serving"]

REQUESTS, CLIENTS = 1000, 16
KINDS = ("whole", "stream", "malformed", "cut", "leaves", "leaves a stream")


def request(number, kind):
    """The bytes of a request."""
    body = {"model": "stand-in", "prompt": f"number {number}", "max_tokens": 9 + number % 20, "stream": "stream" in kind}
    raw = json.dumps(body).encode()
    if kind == "malformed":
        raw = random.Random(number).choice([raw[:-3], b"", b"\xff" * 40, b"[1, 2", b'{"model": "stand-in", "prompt": 5}'])
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
        f"Authorization: Bearer client-{number % 5}\r\nContent-Length: {len(raw)}\r\n\r\n"
    )
    return head.encode() + (raw[: len(raw) // 2] if kind == "cut" else raw)


async def play(address, number, kind):
    """Send one request and behave as its kind does; what was answered."""
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        writer.write(request(number, kind))
        await writer.drain()
        if kind in ("cut", "leaves"):
            await asyncio.sleep(random.Random(number).random() * 0.02)
            return b""
        if kind == "leaves a stream":
            return await reader.readuntil(b"data: ")
        return await asyncio.wait_for(reader.read(), 20)
    finally:
        writer.close()


def check(number, kind, answer):
    """Whether a request that was whole got all of its answer, and a malformed one an error."""
    text = f"number {number}abcdefghijklmnopqrstuvwxyz"[: 9 + number % 20]
    head, _, body = answer.partition(b"\r\n\r\n")
    if kind == "malformed":
        assert b" 400 " in head.splitlines()[0]
    elif kind == "whole":
        assert b" 200 " in head.splitlines()[0]
        assert json.loads(body)["choices"][0]["text"] == text
    elif kind == "stream":
        events = [line[6:] for line in body.decode().splitlines() if line.startswith("data: ")]
        assert events[-1] == "[DONE]"
        assert "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1]) == text


async def soak(url, numbers):
    address, kinds, turns = urlparse(url), {}, asyncio.Semaphore(CLIENTS)

    async def one(number):
        kinds[number] = kind = random.Random(-number - 1).choices(KINDS, (5, 5, 3, 1, 2, 2))[0]
        async with turns:
            check(number, kind, await play(address, number, kind))

    await asyncio.gather(*(one(number) for number in numbers))
    return kinds


@pytest.mark.slow
def test_a_thousand_requests_lose_nothing_and_leave_nothing_behind(stand_in):
    process = psutil.Process()
    # Who left waits in the queue until that is seen, which on a busy machine is after others have come.
    with serving(stand_in, max_queue=REQUESTS // 4) as served:
        asyncio.run(soak(served.url, range(REQUESTS // 4)))  # warm-up
        gc.collect()
        before_bytes, files = process.memory_info().rss, process.num_fds()
        kinds = asyncio.run(soak(served.url, range(REQUESTS // 4, REQUESTS // 4 + REQUESTS)))
        assert min(list(kinds.values()).count(kind) for kind in KINDS) > 20
        until(lambda: served.service.worker.waiting == 0 and not served.service.worker.running)
        until(lambda: process.num_fds() <= files)
        gc.collect()
        assert process.memory_info().rss <= 1.05 * before_bytes
        assert sum(type(found) is Job for found in gc.get_objects()) <= 1  # the worker still has its last one
        worker = served.service.worker
        counted = {
            outcome: worker.metrics.registry.get_sample_value(
                "clone_rl_requests_total", {"endpoint": "completions", "outcome": outcome}
            )
            for outcome in ("completed", "cancelled", "timed_out", "rejected", "refused", "failed")
        }
        assert sum(counted.values()) == REQUESTS + REQUESTS // 4  # every one ended, and once
        assert counted["failed"] == counted["timed_out"] == counted["rejected"] == 0
