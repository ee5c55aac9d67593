"""kill -9 and Ctrl-C at random moments of a training run."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from clone_rl.agents.policy import Policy

pytest_plugins = ["cli_running"]

SMALL = ("--envs", "16", "--rollout", "64", "--checkpoint-every", "2")
SHORT = ("--steps", "8192", *SMALL)  # the actor learns in the second half


def start(folder, *arguments):
    command = [sys.executable, "-m", "clone_rl.cli.main", "train", *arguments, "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
def test_a_run_that_was_killed_again_and_again_is_the_run_that_was_not(run_cli, trace_folder, here):
    began_s = time.monotonic()
    whole = run_cli("train", *SHORT, "--traces", trace_folder, "--name", "whole")
    assert whole.code == 0, whole.err
    takes_s = time.monotonic() - began_s
    folder, kills = here / "runs" / "parts", 0
    seed = time.time_ns()
    print("kills at random moments of seed", seed)
    rng = random.Random(seed)
    while kills < 2:
        if folder.exists() and not (folder / "config.json").exists():
            shutil.rmtree(folder)  # killed in the moment between making the folder and writing what it is for
        arguments = ("--resume", "runs/parts") if folder.exists() else (*SHORT, "--traces", trace_folder, "--name", "parts")
        process = start(here, *arguments)
        while not folder.exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, takes_s))
        process.kill()
        _, err = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), err
        kills += 1
    last = run_cli("train", "--resume", "runs/parts")
    assert last.code == 0, last.err
    assert (folder / "policy.safetensors").read_bytes() == (here / "runs" / "whole" / "policy.safetensors").read_bytes()
    cards = [Policy.load(str(here / "runs" / name)).card for name in ("whole", "parts")]
    for card in cards:
        del card["name"], card["command"]
    assert cards[0] == cards[1]
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".checkpoint")]


@pytest.mark.slow
def test_ctrl_c_at_any_moment_of_a_run_prints_no_traceback(trace_folder, here):
    seed = time.time_ns()
    print("interrupts at random moments of seed", seed)
    rng = random.Random(seed)
    process = start(here, "--steps", "20480", *SMALL, "--traces", trace_folder, "--name", "run")
    while not (here / "runs" / "run" / "config.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 4))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (0, 130)
    assert "Traceback" not in err
    assert "ignored" not in err
