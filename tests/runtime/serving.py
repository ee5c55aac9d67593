"""Servers for tests: on a free port in a thread, with the embedded model or with a quick stand-in for it.

A plugin of the tests beside it: PYTEST_DONT_REWRITE.
"""

import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import httpx
import numpy as np
import openai
import pytest

from clone_rl.agents.controller import Decision, LayerCost
from clone_rl.envs.scenario import ServiceLevel
from clone_rl.errors import BadValueError
from clone_rl.llm.live import Generation
from clone_rl.runtime.server.run import bound, make_server, url
from clone_rl.runtime.server.service import Service
from clone_rl.runtime.server.settings import Settings

STEP_S, STEP_J = 1e-3, 2e-6
LAYERS, CONTEXT = 2, 64
END = 0

http = httpx.Client(timeout=20, limits=httpx.Limits(max_keepalive_connections=0), trust_env=False)
"""One for all: each would read the certificates of the machine anew."""


class Steady:
    """A controller that never exits, and remembers what it was told."""

    points = 8

    def __init__(self):
        self.begun = []

    def begin(self, *request):
        self.begun.append(request)
        return self

    def decide(self, _):
        return Decision(3)

    def observe(self, cost):
        pass

    def report(self):
        return {"overruled": 0, "degraded": 0}


class Gate:
    """Lets as many tokens through as it is told to."""

    def __init__(self):
        self._left, self._changed = 0, threading.Condition()

    def allow(self, tokens):
        with self._changed:
            self._left = tokens
            self._changed.notify_all()

    def open(self):
        self.allow(float("inf"))

    def pass_one(self):
        with self._changed:
            assert self._changed.wait_for(lambda: self._left > 0, 20)
            self._left -= 1


class StandIn:
    """Answers like a ``LiveSession``, one letter a token, without a model.

    A prompt is echoed, then the alphabet follows; every layer of every token takes ``STEP_S`` and ``STEP_J``. A prompt that
    begins with ``!`` raises; one with ``?`` passes ``gate`` before every token.
    """

    def __init__(self):
        self.lm = SimpleNamespace(
            name="stand-in", sha256="5" * 64, start_ids=(), end_ids=frozenset({END}),
            shape=SimpleNamespace(layers=LAYERS, context=CONTEXT), encode_prompt=self.encode, decode=self.decode,
        )  # fmt: skip
        self.scenario = SimpleNamespace(slo=(ServiceLevel("chat", 0.02, 0.003), ServiceLevel("code", 0.01, 0.001)))
        points = np.zeros(8, [("voltage_v", "f8")])
        points["voltage_v"] = np.linspace(0.6, 1.0, 8)
        self.emulator = SimpleNamespace(points=points, chip=SimpleNamespace(name="paper", operating_points=points))
        self.gate, self.started, self.tokens_made = Gate(), [], 0

    @staticmethod
    def encode(text):
        if not text.strip():
            raise BadValueError("the prompt is empty", "write something for the model to continue")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise BadValueError("the text cannot be written as UTF-8") from None
        if len(text) >= CONTEXT:
            raise BadValueError(f"the prompt has {len(text)} tokens and the context {CONTEXT}", "shorten it")
        return [ord(character) for character in text]

    @staticmethod
    def decode(ids):
        return "".join(chr(token) for token in ids if token != END)

    def generate(self, prompt, controller, max_new_tokens, _sampling, _seed, on_token, slo, waited_s, reference):
        assert not reference
        text = self.decode(prompt)
        self.started.append(text)
        if text.startswith("!"):
            raise RuntimeError("a secret of the server")
        ids, emitted_s = [], []
        clock_s = waited_s
        for token in [*prompt, *map(ord, "abcdefghijklmnopqrstuvwxyz"), END][: min(max_new_tokens, CONTEXT - len(prompt))]:
            if text.startswith("?"):
                self.gate.pass_one()
            for _ in range(LAYERS):
                controller.decide(np.zeros(16, np.float32))
                clock_s += STEP_S
                controller.observe(LayerCost(STEP_S, STEP_J))
            ids.append(token)
            emitted_s.append(clock_s)
            self.tokens_made += 1
            if on_token(token):
                break
        due_s = [slo.ttft_s + at * slo.tpot_s for at in range(len(ids))]
        figures = {
            "energy_j": len(ids) * LAYERS * STEP_J,
            "late": sum(left > due for left, due in zip(emitted_s, due_s, strict=True)),
            "tokens": len(ids),
            "ttft_s": emitted_s[0],
            "tpot_s": LAYERS * STEP_S,
        }
        points = np.full((len(ids), LAYERS), 3)
        return Generation(text, self.decode(ids), ids, points, emitted_s, due_s, figures, slo.name, None, waited_s)


@contextmanager
def serving(session, controller=None, **settings):
    """A server that runs; yields its address, its service and the uvicorn server."""
    service = Service(session, controller or Steady(), "steady", Settings(port=0, **settings))
    with bound(service.settings) as listening:
        server = make_server(service)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            until(lambda: server.started)
            yield SimpleNamespace(url=url(listening), service=service, server=server, thread=thread, session=session)
        finally:
            if gate := getattr(session, "gate", None):
                gate.open()
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


def until(true, seconds=10.0):
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def client(served, key="a-client-of-tests"):
    """The official client, which tries nothing twice."""
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0, timeout=20)


def post(served, body, path="/v1/completions", key="", **options):
    """A request as it is, without a client library's manners."""
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    headers |= options.pop("headers", {})
    if isinstance(body, bytes):
        return http.post(served.url + path, content=body, headers=headers, **options)
    return http.post(served.url + path, json=body, headers=headers, **options)


def error_of(response):
    """The error that a response holds, in OpenAI's shape."""
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert "Traceback" not in response.text
    return error


@pytest.fixture
def stand_in():
    return StandIn()


@pytest.fixture
def served(stand_in):
    """A server with the stand-in."""
    with serving(stand_in) as running:
        yield running
