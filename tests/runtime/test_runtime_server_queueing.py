"""Requests beside one another: turns, waits, clients that leave, time-outs, shutting down."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from urllib.parse import urlparse

import httpx
import openai
import pytest
from serving import LAYERS, STEP_J, STEP_S, StandIn, client, error_of, http, post, serving, until

from clone_rl.envs.scenario import ServiceLevel

pytest_plugins = ["serving"]


def ask(prompt, tokens=2, **more):
    return {"model": "stand-in", "prompt": prompt, "max_tokens": tokens, **more}


def send_raw(served, body, path="/v1/completions", cut=0):
    """A request over a socket of its own, without its last ``cut`` bytes."""
    raw = json.dumps(body).encode()
    address = urlparse(served.url)
    kind = f"Content-Type: application/json\r\nContent-Length: {len(raw)}"
    head = f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\n{kind}\r\n\r\n"
    connection = socket.create_connection((address.hostname, address.port), timeout=20)
    connection.sendall((head.encode() + raw)[: len(head) + len(raw) - cut])
    return connection


def outcome(served, name, endpoint="completions"):
    return served.service.worker.metrics.registry.get_sample_value(
        "clone_rl_requests_total", {"endpoint": endpoint, "outcome": name}
    )


@pytest.fixture
def pool():
    with ThreadPoolExecutor(12) as threads:
        yield threads


def hold(served, pool, prompt="?held"):
    """Keep the worker busy until the gate opens."""
    held = pool.submit(post, served, ask(prompt), key="holder")
    until(lambda: served.session.started and served.session.started[-1] == prompt)
    return held


def line_up(served, pool, requests):
    """Queue requests one after the other; (client, prompt) each."""
    found = []
    for key, prompt in requests:
        before = served.service.worker.waiting
        found.append(pool.submit(post, served, ask(prompt), key=key))
        until(lambda before=before: served.service.worker.waiting == before + 1)
    return found


def test_clients_take_turns_whatever_one_of_them_sends(served, pool):
    hold(served, pool)
    answers = line_up(
        served, pool, [("flood", f"f{n}") for n in range(6)] + [("quiet", "q0"), ("quiet", "q1"), ("third", "t0")]
    )
    served.session.gate.open()
    assert all(answer.result().status_code == 200 for answer in answers)
    assert served.session.started[1:] == ["f0", "q0", "t0", "f1", "q1", "f2", "f3", "f4", "f5"]


def test_clients_without_a_token_are_told_apart_by_address(served, pool):
    hold(served, pool)
    line_up(served, pool, [("", "a0"), ("", "a1"), ("key", "k0")])
    served.session.gate.open()
    until(lambda: len(served.session.started) == 4)
    assert served.session.started[1:] == ["a0", "k0", "a1"]


def test_a_wait_is_the_work_that_ran_meanwhile_and_deadlines_count_it(served, pool):
    # 1: three tokens; 2 and 3 arrive before its first one is done.
    held = pool.submit(post, served, ask("?one", 3), key="a")
    until(lambda: served.session.started == ["?one"])
    second, third = line_up(served, pool, [("b", "two"), ("c", "three")])
    served.session.gate.open()
    reports = [answer.result().json()["clone_rl"] for answer in (held, second, third)]
    token_s = LAYERS * STEP_S
    assert [r["waited_s"] for r in reports] == pytest.approx([0, 3 * token_s, 5 * token_s])
    assert [r["ttft_s"] for r in reports] == pytest.approx([token_s, 4 * token_s, 6 * token_s])
    # Energy is that of the tokens alone.
    assert [r["energy_j"] for r in reports] == pytest.approx([n * LAYERS * STEP_J for n in (3, 2, 2)])


def test_a_wait_makes_tokens_late(served, pool):
    tight = ask("tight", slo={"ttft_s": 0.005, "tpot_s": 0.002})
    assert post(served, tight).json()["clone_rl"]["deadline_misses"] == 0  # after 2 and 4 ms
    hold(served, pool)
    late = pool.submit(post, served, tight, key="b")
    until(lambda: served.service.worker.waiting == 1)
    served.session.gate.open()
    assert late.result().json()["clone_rl"]["deadline_misses"] == 2  # after 6 and 8: the other request took 4


def test_the_wall_clock_can_be_what_waits_are_measured_with(stand_in, pool):
    with serving(stand_in, clock="wall") as served:
        hold(served, pool)
        start = time.monotonic()
        (second,) = line_up(served, pool, [("b", "two")])
        time.sleep(0.3)
        stand_in.gate.open()
        assert 0.3 <= second.result().json()["clone_rl"]["waited_s"] <= time.monotonic() - start


def test_a_client_that_leaves_the_queue_is_never_served(served, pool):
    hold(served, pool)
    leaving = send_raw(served, ask("leaver"))
    until(lambda: served.service.worker.waiting == 1)
    leaving.close()
    until(lambda: served.service.worker.waiting == 0)
    served.session.gate.open()
    assert post(served, ask("stays")).status_code == 200
    assert served.session.started == ["?held", "stays"]
    assert outcome(served, "cancelled") == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_stops_its_response(served, stream):
    served.session.gate.allow(2)
    leaving = send_raw(served, ask("?" + "x" * 30, 60, stream=stream))
    until(lambda: served.session.tokens_made == 2)
    leaving.close()
    until(lambda: outcome(served, "cancelled") == 1)
    served.session.gate.open()
    assert post(served, ask("next")).status_code == 200
    assert served.session.tokens_made == 3 + 2  # the worker looks up at its next token
    # What it had cost is on the account all the same.
    totals = served.service.worker.account.totals
    assert totals.requests == 1
    assert totals.energy_j == pytest.approx(served.session.tokens_made * LAYERS * STEP_J)


def test_a_client_that_leaves_in_the_middle_of_its_body_leaves_nothing_behind(served):
    send_raw(served, ask("half"), cut=5).close()
    until(lambda: outcome(served, "cancelled") == 1)
    assert served.session.started == []
    assert post(served, ask("next")).status_code == 200


def test_a_full_queue_turns_requests_away_and_says_when_to_come_back(stand_in, pool):
    with serving(stand_in, max_queue=2) as served:
        hold(served, pool)
        answers = line_up(served, pool, [("flood", "f0"), ("flood", "f1")])
        refused = post(served, ask("f2"), key="flood")
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert error_of(refused)["type"] == "rate_limit_error"
        with pytest.raises(openai.RateLimitError, match="2 requests wait"):
            client(served, "flood").completions.create(**ask("f3"))
        # Another client gets in, and the newest of the flood gives way.
        other = pool.submit(post, served, ask("other"), key="quiet")
        assert answers[1].result().status_code == 429
        stand_in.gate.open()
        assert other.result().status_code == answers[0].result().status_code == 200
        assert stand_in.started == ["?held", "f0", "other"]
        assert outcome(served, "rejected") == 3


def test_a_request_that_takes_too_long_is_given_up_in_the_queue_and_in_flight(stand_in, pool):
    with serving(stand_in, timeout_s=0.4) as served:
        held = hold(served, pool)
        with pytest.raises(openai.InternalServerError) as caught:
            client(served).completions.create(**ask("queued"))
        assert (caught.value.status_code, caught.value.code) == (504, "timeout")
        assert held.result().status_code == 504
        assert served.service.worker.waiting == 0
        stand_in.gate.open()
        assert post(served, ask("next")).status_code == 200
        assert stand_in.started == ["?held", "next"]
        assert outcome(served, "timed_out") == 2


def test_a_stream_that_takes_too_long_ends_with_an_error_that_the_client_raises(stand_in):
    stand_in.gate.allow(1)
    with serving(stand_in, timeout_s=0.5) as served:
        stream = client(served).completions.create(**ask("?" + "x" * 20, 60, stream=True))
        assert next(stream).choices[0].text == "?"
        with pytest.raises(openai.APIError, match=r"no complete answer within 0\.5 s"):
            list(stream)


def test_a_body_that_comes_too_slowly_is_given_up(stand_in):
    with serving(stand_in, timeout_s=0.3) as served:
        connection = send_raw(served, ask("slow"), cut=5)
        assert b" 408 " in connection.recv(4096).split(b"\r\n")[0]
        connection.close()


def test_the_loop_serves_others_while_a_response_is_made(served, pool):
    hold(served, pool)
    for path in ("/healthz", "/metrics", "/live.json", "/v1/models", "/"):
        assert http.get(served.url + path, timeout=5).status_code == 200
    assert http.get(f"{served.url}/live.json").json()["running"] is True
    assert error_of(post(served, {}))["param"] == "model"
    served.session.gate.open()


def test_shutting_down_ends_what_waits_and_runs_first(stand_in, pool):
    with serving(stand_in) as served:
        held = hold(served, pool)
        (second,) = line_up(served, pool, [("b", "two")])
        served.server.should_exit = True
        time.sleep(0.2)
        with pytest.raises(httpx.TransportError):
            http.get(f"{served.url}/healthz", timeout=2)
        stand_in.gate.open()
        assert held.result().status_code == second.result().status_code == 200
        served.thread.join(10)
        assert not served.thread.is_alive()


def test_shutting_down_waits_no_longer_than_granted(pool):
    stand_in = StandIn()
    with serving(stand_in, grace_s=1) as served:
        held = hold(served, pool)
        start = time.monotonic()
        served.server.should_exit = True
        threading.Timer(1.5, stand_in.gate.open).start()  # the worker looks up at its next token
        served.thread.join(10)
        assert 0.9 < time.monotonic() - start < 6
        with suppress(httpx.TransportError):
            assert held.result().status_code >= 500


def test_a_controller_hears_of_each_request_once_and_never_what_was_asked(served):
    post(served, ask("private words", slo="code"))
    ((name, *rest),) = served.service.worker._meter.controller.begun
    assert name.startswith("cmpl-")
    assert rest == [ServiceLevel("code", 0.01, 0.001), len("private words"), 2, 0.0]
