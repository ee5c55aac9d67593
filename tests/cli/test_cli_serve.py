import json
import os
import re
import signal
import subprocess
import sys

import httpx
import pytest

from clone_rl.agents.policy import Policy
from clone_rl.cli.main import main

pytest_plugins = ["cli_running"]


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        (["--host", "0.0.0.0"], "bad_value", "no token"),
        (["--host", "no.such.host.invalid"], "bad_value", "no address"),
        (["--port", 70000], "bad_value", "port is 70000"),
        (["--port", "http"], "bad_value", "--port"),
        (["--token", "short"], "bad_value", "a token is too short"),
        (["--max-queue", 0], "bad_value", "max_queue is 0"),
        (["--max-body-bytes", -1], "bad_value", "max_body_bytes is -1"),
        (["--timeout-s", "nan"], "bad_value", "timeout_s is nan"),
        (["--clock", "sun"], "bad_value", "--clock"),
        (["--scenario", "nowhere"], "unknown_name", "nowhere"),
        (["--model", "nowhere"], "unknown_name", "nowhere"),
        (["--model", "../../etc"], "unknown_name", "../../etc"),
        (["--controller", "nobody"], "unknown_name", "nobody"),
        (["--controller", "../default"], "bad_policy", "../default"),
        (["--default-slo", "fast"], "unknown_name", "fast"),
    ],
)
def test_what_cannot_be_served_is_refused_at_the_start(run_cli, options, kind, words, monkeypatch):
    monkeypatch.setattr("clone_rl.runtime.server.run.run", lambda *_: pytest.fail("it is served"))
    error = run_cli("serve", "--port", 0, *options, "--json").error
    assert error["kind"] == kind
    assert words in error["message"]


def test_a_controller_of_another_model_is_refused_by_name(run_cli, here):
    policy = Policy.load("default")
    policy.card["model_sha256"] = "0" * 64
    policy.save(here / "mine.safetensors")
    error = run_cli("serve", "--port", 0, "--controller", here / "mine.safetensors", "--json").error
    assert error["kind"] == "bad_policy"
    assert "mine.safetensors' was trained on another model than 'default'" in error["message"]


def test_a_policy_that_was_tampered_with_is_refused(run_cli, here):
    policy = Policy.load("default")
    policy.save(here / "mine.safetensors")
    raw = bytearray((here / "mine.safetensors").read_bytes())
    raw[-1] ^= 1
    (here / "mine.safetensors").write_bytes(raw)
    assert run_cli("serve", "--port", 0, "--controller", here / "mine.safetensors", "--json").error["kind"] == "bad_policy"


def test_a_shielded_server_guards_deadlines_and_quality(monkeypatch):
    made, shown = [], []
    monkeypatch.setattr("clone_rl.runtime.server.service.check_controller", lambda controller, *_: made.append(controller))
    monkeypatch.setattr(
        "clone_rl.runtime.server.run.run", lambda service, _: shown.append(service.worker.metrics.text().decode())
    )
    for shield in ([], ["--shield"]):
        assert main(["serve", "--port", "0", *shield]) == 0
    bare, shielded = made
    assert bare.shield is None and not hasattr(bare.controller, "budget")
    assert shielded.shield.numbers[1] > 0 and shielded.controller.budget.earned.tolist() == [0.017, 0.017]
    assert "error_budget" not in shown[0]
    left = re.search(r'clone_rl_error_budget\{of="disagree"\} (\S+)', shown[1])
    assert 4.25 <= float(left[1]) < 4.5  # half of what can be saved, and what the tokens of the first look at it earned
    assert "clone_rl_refused_exits 0.0" in shown[1]


def test_without_its_packages_it_says_what_to_install(run_cli, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("clone_rl.runtime.server.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("clone_rl.runtime.server.run", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    error = run_cli("serve", "--port", 0, "--json").error
    assert error["kind"] == "missing_extra"
    assert "clone-rl[serve" in error["hint"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_starts_answers_and_stops_in_good_order(here, number):
    command = [sys.executable, "-m", "clone_rl.cli.main", "serve", "--port", "0", "--controller", "performance", "--json"]
    environment = {**os.environ, "CLONE_RL_TOKEN": "token-of-a-test another-token", "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=here)
    try:
        assert running.stderr.readline().startswith("clone-rl: loading the model")
        line = running.stderr.readline()
        assert line.startswith("clone-rl: default under performance at http://127.0.0.1:"), line
        where = line.split(" at ")[1].split()[0]
        body = {"model": "default", "prompt": "The old king", "max_tokens": 3}
        assert httpx.post(f"{where}/v1/completions", json=body).status_code == 401
        headers = {"Authorization": "Bearer another-token"}
        found = httpx.post(f"{where}/v1/completions", json=body, headers=headers, timeout=60).json()
        running.send_signal(number)
        out, err = running.communicate(timeout=30)
    finally:
        running.kill()
        running.wait()
    assert running.returncode == 0, err
    assert "Traceback" not in err
    assert err.startswith("clone-rl: stopped after 1 responses")
    said = json.loads(out)
    assert (said["url"], said["requests"], said["tokens"]) == (where, 1, 3)
    assert said["energy_j"] == pytest.approx(found["clone_rl"]["energy_j"])
