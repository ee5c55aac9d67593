"""Doors and bad input: who is let in, and what a server says to what is no request."""

import asyncio
import json
import socket
from contextlib import suppress

import openai
import pytest
from serving import client, error_of, http, post, serving

from clone_rl.errors import BadValueError
from clone_rl.runtime.server import Settings
from clone_rl.runtime.server.guard import check_exposure
from clone_rl.runtime.server.run import bound, url

pytest_plugins = ["serving"]

TOKEN, OTHER = "correct-horse-battery", "staple-of-another"


def ask(**more):
    return {"model": "stand-in", "prompt": "hello", "max_tokens": 2, **more}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400), (b"{", 400), (b"[1]", 400), (b"\xff\xfe\x00", 400), (b'{"model": NaN}', 400), (b"[" * 50_000, 400),
        (b'{"model": "stand-in", "prompt": "a", "stream": "yes"}', 400), (b'{"model": 5, "prompt": "a"}', 400),
        (b'{"prompt": "a"}', 400), (b'{"model": "\\ud800", "prompt": "a"}', 404),
        (b'{"\\ud800": 1, "model": "stand-in"}', 400),
        (b'{"model": "stand-in"}', 400), (b'{"model": "stand-in", "prompt": "\\ud800"}', 400),
        (b'{"model": "a", "prompt": ' + b"9" * 5000 + b"}", 400),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_bodies_that_are_no_request_are_told_so(served, body, status, path):
    answer = post(served, body, path)
    assert answer.status_code == status
    assert error_of(answer)["type"] == "invalid_request_error"
    assert served.session.started == []


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [2000, 200_000])
def test_bodies_that_are_too_large_are_told_so(stand_in, chunked, size):
    with serving(stand_in, max_body_bytes=1000) as served:
        body = json.dumps(ask(user="x" * size)).encode()
        content = (body[at : at + 700] for at in range(0, len(body), 700)) if chunked else body
        answer = http.post(f"{served.url}/v1/completions", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 413
        assert error_of(answer)["code"] == "body_too_large"
        assert post(served, ask(user="x" * 800)).status_code == 200
        with pytest.raises(openai.APIStatusError, match="more than 1000 bytes"):
            client(served).completions.create(**ask(user="x" * size))


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_what_a_web_page_may_send_to_others_is_refused(served, kind):
    answer = post(served, ask(), headers={"Content-Type": kind})
    assert answer.status_code == 415
    assert error_of(answer)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404), ("GET", "/v1/completions", 405), ("POST", "/v1/models", 405), ("DELETE", "/", 405),
        ("GET", "/v1/models/other", 404), ("GET", "/v1/models/..%2f..%2fetc%2fpasswd", 404), ("GET", "/v1/models/%00", 404),
        ("GET", "/docs", 404), ("GET", "/openapi.json", 404), ("GET", "/v1/models/%ff%fe", 404), ("GET", "//etc/passwd", 404),
    ],
)  # fmt: skip
def test_paths_that_are_none_are_told_so(served, method, path, status):
    answer = http.request(method, served.url + path)
    assert answer.status_code == status
    assert error_of(answer)["message"]


def test_noise_on_the_socket_does_no_harm(served):
    host, port = served.url.removeprefix("http://").split(":")
    for noise in (
        b"\x16\x03\x01\x02\x00",
        b"GET / HTTP/1.1\r\n" + b"A: " + b"x" * 100_000,
        b"POST /v1/completions\r\n\r\n",
        b"\0" * 9,
    ):
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(noise)
            connection.settimeout(0.2)
            with suppress(TimeoutError, ConnectionError):
                assert b" 400 " in (connection.recv(100) or b" 400 ")
    assert post(served, ask()).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_fault_of_the_server_is_told_without_its_inside(served, stream, caplog):
    answer = post(served, ask(prompt="!", stream=stream))
    assert answer.status_code == 500
    assert error_of(answer)["type"] == "server_error"
    assert "secret" not in answer.text
    assert "a secret of the server" in caplog.text  # for its owner
    assert post(served, ask()).status_code == 200


def test_a_fault_outside_the_worker_is_told_without_its_inside(served, monkeypatch):
    def fail():
        raise RuntimeError("a secret of the server")

    monkeypatch.setattr(served.service, "state", fail)
    answer = http.get(f"{served.url}/live.json")
    assert answer.status_code == 500
    assert error_of(answer)["type"] == "server_error"
    assert "secret" not in answer.text


def test_a_token_is_asked_for_wherever_something_is_to_be_had(stand_in):
    with serving(stand_in, tokens=(TOKEN, OTHER)) as served:
        for key in ("", "wrong-token", TOKEN[:-1], f"{TOKEN}x", "schlüssel"):
            headers = {"Authorization": f"Bearer {key}".encode("latin-1")} if key else {}
            for path in ("/v1/models", "/metrics", "/live.json", "/nothing"):
                answer = http.get(served.url + path, headers=headers)
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"] == "Bearer"
                assert error_of(answer)["code"] == "invalid_api_key"
        assert http.get(f"{served.url}/v1/models", headers={"Authorization": f"Basic {TOKEN}"}).status_code == 401
        with pytest.raises(openai.AuthenticationError):
            client(served, "wrong-token").completions.create(**ask())
        assert stand_in.started == []
        for key in (TOKEN, OTHER):
            assert client(served, key).completions.create(**ask()).choices[0].text == "he"
        assert {http.get(served.url + path).status_code for path in ("/", "/healthz")} == {200}
        assert TOKEN not in http.get(f"{served.url}/live.json", headers={"Authorization": f"Bearer {TOKEN}"}).text


def test_names_that_only_resolve_to_this_machine_are_refused_without_a_token(served, stand_in):
    port = served.url.rpartition(":")[2]
    for host, status in (
        ("evil.example", 421), (f"evil.example:{port}", 421), ("", 421), ("127.0.0.1.evil.example", 421), ("10.0.0.1", 421),
        ("localhost", 200), (f"LOCALHOST:{port}", 200), (f"127.0.0.1:{port}", 200), (f"[::1]:{port}", 200), ("127.1.2.3", 200),
    ):  # fmt: skip
        assert http.get(f"{served.url}/live.json", headers={"Host": host}).status_code == status, host
    with serving(stand_in, tokens=(TOKEN,)) as other:
        headers = {"Host": "behind.a.proxy", "Authorization": f"Bearer {TOKEN}"}
        assert http.get(f"{other.url}/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_nobody_else_can_reach_a_server_without_a_token_unless_it_is_said(host):
    with pytest.raises(BadValueError, match=rf"host {host} is reachable from other machines.*--token"):
        check_exposure(Settings(host=host))
    check_exposure(Settings(host=host, tokens=(TOKEN,)))
    check_exposure(Settings(host=host, insecure=True))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.9.9.9", "::1"])
def test_this_machine_alone_needs_no_token(host):
    check_exposure(Settings(host=host))


def test_an_address_that_cannot_be_had_is_refused():
    with bound(Settings(port=0)) as taken, pytest.raises(BadValueError, match="another --port"):
        bound(Settings(port=int(url(taken).rpartition(":")[2])))
    with pytest.raises(BadValueError, match=r"cannot listen at 192\.0\.2\.1"):
        bound(Settings(host="192.0.2.1", port=0, insecure=True))
    with pytest.raises(BadValueError, match="no address"):
        bound(Settings(host="no.such.host.invalid", port=0))


def test_connections_are_bounded(stand_in):
    with serving(stand_in, max_connections=3) as served:
        host, port = served.url.removeprefix("http://").split(":")
        idle = [socket.create_connection((host, int(port))) for _ in range(6)]
        assert http.get(f"{served.url}/healthz").status_code == 503
        for connection in idle:
            connection.close()


def test_the_asynchronous_client_is_served_as_well(served):
    async def both():
        api = openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="k", max_retries=0)
        async with api:
            whole = await api.completions.create(**ask(max_tokens=4))
            pieces = [chunk.choices[0].text async for chunk in await api.completions.create(**ask(max_tokens=4, stream=True))]
            return whole.choices[0].text, "".join(pieces)

    assert asyncio.run(both()) == ("hell", "hell")


def test_without_a_limit_a_chat_goes_on_to_its_end(served):
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    found = client(served).chat.completions.create(model="stand-in", messages=messages)
    assert found.choices[0].message.content == "a\nbabcdefghijklmnopqrstuvwxyz"
    assert found.choices[0].finish_reason == "stop"
    assert found.usage.completion_tokens == 3 + 26 + 1
