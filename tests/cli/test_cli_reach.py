"""Limits that cannot be held, on the command line."""

import json

import pytest

pytest_plugins = ["cli_running"]

SMALL = ("--env-id", "clone_rl/TokenControl-v0", "--steps", "1024", "--envs", "16", "--rollout", "64")

TOML = """
name = "tight"
chip = "asic28-sram"
traces = "{traces}"
deadline = "per-token"
[[slo]]
name = "a"
ttft_s = 1.0
tpot_s = {tpot}
"""


@pytest.fixture
def tight(here, trace_folder):
    def write(tpot):
        (here / "tight.toml").write_text(TOML.format(traces=trace_folder, tpot=tpot))
        return "tight.toml"

    return write


def test_a_limit_that_nothing_can_hold_is_refused_before_anything_is_made(run_cli, tight, snapshot):
    scenario = tight(1e-6)
    before = snapshot()
    error = run_cli("train", *SMALL, "--scenario", scenario, "--max-miss", "0.05", "--json").error
    assert error["kind"] == "bad_value"
    assert error["message"].startswith("max_miss is 0.05 and cannot be held in scenario 'tight'")
    assert error["hint"].startswith("ask for 0.")
    assert snapshot() == before


def test_a_limit_that_is_out_of_known_reach_is_said_before_and_after_and_recorded(run_cli, tight, here):
    done = run_cli("train", *SMALL, "--scenario", tight(0.17e-3), "--max-miss", "0.001", "--max-disagree", "0", "--json")
    assert "clone-rl: max_miss is 0.001, and the best reachable that is known in scenario 'tight' is" in done.err
    # So little training leaves a policy that exits at random: in time, and wrong.
    assert "max_disagree 0 is not held: " in done.err
    limits = done.json["limits"]
    assert json.loads((here / "runs" / "train" / "results.json").read_text())["limits"] == limits
    assert 0.001 < limits["max_miss"]["best_reachable"] < 0.5
    assert (limits["max_disagree"]["limit"], limits["max_disagree"]["held"]) == (0.0, False)
    assert limits["max_disagree"]["measured"] > limits["max_disagree"]["best_reachable"] == 0.0


@pytest.mark.parametrize("option", ["--max-miss", "--max-disagree"])
@pytest.mark.parametrize("value", ["1.5", "-0.5", "nan", "inf"])
def test_a_limit_that_is_no_share_is_refused(run_cli, snapshot, option, value):
    before = snapshot()
    assert run_cli("train", option, value, "--json").error["kind"] == "bad_value"
    assert snapshot() == before


@pytest.mark.parametrize("value", ["-0.5", "nan", "inf"])
def test_dnll_is_finite_and_not_negative(run_cli, snapshot, value):
    before = snapshot()
    assert run_cli("train", "--max-dnll", value, "--json").error["kind"] == "bad_value"
    assert snapshot() == before


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(run_cli, trace_folder, here):
    arguments = (*SMALL, "--traces", trace_folder, "--name", "one", "--json")
    whole = run_cli("train", *arguments).json
    folder = here / "runs" / "one"
    weights = (folder / "policy.safetensors").read_bytes()
    for path in folder.iterdir():
        if path.name not in ("config.json", "command.txt", "tensorboard"):
            path.unlink()
    again = run_cli("train", "--resume", "runs/one", "--json").json
    assert (folder / "policy.safetensors").read_bytes() == weights
    assert again["rows"] == whole["rows"]
    assert json.loads((folder / "policy.json").read_text())["command"].startswith("clone-rl train --env-id")
