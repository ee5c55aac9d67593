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

SMALL = ("--steps", "20480", "--envs", "16", "--rollout", "64", "--checkpoint-every", "2")


def start(folder, *arguments):
    command = [sys.executable, "-m", "clone_rl.cli.main", "train", *arguments, "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
def test_a_run_that_was_killed_again_and_again_is_the_run_that_was_not(trace_folder, here):
    began_s = time.monotonic()
    whole = start(here, *SMALL, "--traces", trace_folder, "--name", "whole")
    _, err = whole.communicate(timeout=120)
    assert whole.returncode == 0, err
    takes_s = time.monotonic() - began_s
    folder, kills = here / "runs" / "parts", 0
    seed = time.time_ns()
    print("kills at random moments of seed", seed)
    rng = random.Random(seed)
    while kills < 2:
        if folder.exists() and not (folder / "config.json").exists():
            shutil.rmtree(folder)  # killed in the moment between making the folder and writing what it is for
        arguments = ("--resume", "runs/parts") if folder.exists() else (*SMALL, "--traces", trace_folder, "--name", "parts")
        process = start(here, *arguments)
        while not folder.exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, takes_s))
        process.kill()
        _, err = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), err
        kills += 1
    last = start(here, "--resume", "runs/parts")
    _, err = last.communicate(timeout=120)
    assert last.returncode == 0, err
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
    for number in range(2):
        process = start(here, *SMALL, "--traces", trace_folder, "--name", f"run-{number}")
        while not (here / "runs" / f"run-{number}" / "config.json").exists():
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 4))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode in (0, 130)
        assert "Traceback" not in err
        assert "ignored" not in err
