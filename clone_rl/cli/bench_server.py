"""How many requests ``clone-rl serve`` answers, and how long the slowest of them take, with few clients and with many."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from urllib.parse import urlparse

from clone_rl.errors import CloneRLError

CLIENTS = (1, 4, 16)
"""How many ask at the same time."""

TOKENS = 16
"""Of each response."""

_PROMPT = "Once upon a time there was a little girl who"
_START_S, _ANSWER_S, _STOP_S = 120.0, 120.0, 30.0
_FEWEST = 5  # answers of each client, whatever time they take


class ServerError(CloneRLError):
    """A server that does not start or does not answer, with the reason."""

    kind = "server"


@contextmanager
def _server(controller: str) -> Iterator[str]:
    """The address of a server in a process of its own, with the embedded model."""
    command = [sys.executable, "-m", "clone_rl.cli.main", "serve", "--port", "0", "--controller", controller]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CLONE_RL_TOKEN": ""}
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace", env=environment
    )
    watch = threading.Timer(_START_S, process.kill)
    watch.start()
    try:
        assert process.stderr is not None
        said = ""
        while " at http://" not in said and (line := process.stderr.readline()):
            said += "" if "loading the model" in line else line
        watch.cancel()
        if " at http://" not in said:
            raise ServerError(f"clone-rl serve did not start: {said.strip() or 'no word from it'}")
        yield said.partition(" at ")[2].split()[0]
    finally:
        watch.cancel()
        process.terminate()
        try:
            process.communicate(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _ask(connection: http.client.HTTPConnection, name: str) -> float:
    """Wall seconds of one request.

    Raises:
        ServerError: The answer is not a response of ``TOKENS`` tokens.
    """
    # Greedy, and of a fixed length: every request is the same work.
    body = {"model": "default", "prompt": _PROMPT, "max_tokens": TOKENS, "temperature": 0, "seed": 0}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {name}"}
    start = time.perf_counter()
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    answer = connection.getresponse()
    found = json.loads(answer.read())
    seconds = time.perf_counter() - start
    if answer.status != 200 or found["usage"]["completion_tokens"] != TOKENS:
        raise ServerError(f"the server answers {answer.status}: {str(found)[:200]}")
    return seconds


def _measure(url: str, clients: int, seconds: float) -> dict[str, float]:
    """Throughput and latency with so many clients, each of which asks again as soon as it is answered."""
    address, latencies, errors = urlparse(url), [], []
    barrier = threading.Barrier(clients + 1)

    def ask_on(number: int) -> None:
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=_ANSWER_S)
        try:
            _ask(connection, f"client-{number}")
            connection.close()  # the server would, should the others take long
            barrier.wait()
            end, asked = time.perf_counter() + seconds, 0
            while asked < _FEWEST or time.perf_counter() < end:
                latencies.append(_ask(connection, f"client-{number}"))
                asked += 1
        except Exception as error:  # told by the thread that waits
            errors.append(error)
            barrier.abort()
        finally:
            connection.close()

    threads = [threading.Thread(target=ask_on, args=(number,), daemon=True) for number in range(clients)]
    for thread in threads:
        thread.start()
    with suppress(threading.BrokenBarrierError):
        barrier.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - start
    if errors:
        raise next((error for error in errors if isinstance(error, ServerError)), ServerError(f"no answer: {errors[0]}"))
    latencies.sort()
    return {
        "requests": len(latencies),
        "requests_per_s": len(latencies) / took,
        "tokens_per_s": len(latencies) * TOKENS / took,
        "p50_s": _quantile(latencies, 0.5),
        "p99_s": _quantile(latencies, 0.99),
    }


def _quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all are not above.

    >>> _quantile([1.0, 2.0, 3.0, 4.0], 0.5), _quantile([1.0, 2.0, 3.0, 4.0], 0.99)
    (2.0, 4.0)
    """
    return next(value for at, value in enumerate(ordered, 1) if at >= share * len(ordered))


def bench_server(
    seconds: float = 5.0, clients: Sequence[int] = CLIENTS, controller: str = "default"
) -> dict[str, dict[str, float]]:
    """Throughput and latency of ``clone-rl serve`` on the embedded model, wall time, clients in this process.

    Args:
        seconds: Wall time for each number of clients.
        clients: How many ask at the same time.
        controller: As of ``clone-rl serve``.

    Returns:
        By number of clients, as text: ``requests``, ``requests_per_s``, ``tokens_per_s``, ``p50_s`` and ``p99_s``.

    Raises:
        ServerError: The server does not start or does not answer.
    """
    with _server(controller) as url:
        return {str(count): _measure(url, count, seconds) for count in clients}
