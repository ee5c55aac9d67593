"""Limits on the command line: the scenario's, unless an option says otherwise."""

import json

import pytest

from clone_rl.errors import StoppedError

pytest_plugins = ["cli_running"]

TOML = """
name = "mine"
chip = "asic28-sram"
traces = "{traces}"
[limits]
miss = {miss}
disagree = {quality}
dnll = {quality}
[[slo]]
name = "a"
ttft_s = 16e-3
tpot_s = 0.4e-3
"""


@pytest.fixture
def scenario(here, trace_folder):
    def write(name, miss, quality):
        (here / name).write_text(TOML.format(traces=trace_folder, miss=miss, quality=quality))
        return name

    return write


def judged(run_cli, *arguments):
    return run_cli("evaluate", *arguments, "--no-oracle", "--json").json["rows"][0]


def test_evaluate_judges_by_the_limits_of_the_scenario(run_cli, scenario):
    strict, lenient = scenario("strict.toml", 0.0, 0.0), scenario("lenient.toml", 1.0, 0.2)
    assert not judged(run_cli, "powersave", "--scenario", strict)["within_constraints"]
    assert judged(run_cli, "powersave", "--scenario", lenient)["within_constraints"]
    assert judged(run_cli, "powersave", "--scenario", strict, "--max-miss", "1")["within_constraints"]
    assert not judged(run_cli, "powersave", "--scenario", lenient, "--max-miss", "0")["within_constraints"]


def test_evaluate_tunes_pace_to_the_limits_of_the_scenario(run_cli, scenario):
    strict, lenient = scenario("strict.toml", 0.01, 0.0), scenario("lenient.toml", 0.01, 0.2)
    never, early = (judged(run_cli, "pace", "--scenario", name) for name in (strict, lenient))
    assert never["settings"]["agree_bar"] == 2.0
    assert never["mean_depth"] == 10 > early["mean_depth"]
    asked = judged(run_cli, "pace", "--scenario", strict, "--max-disagree", "0.2", "--max-dnll", "0.2")
    assert asked["settings"] == early["settings"]


def test_a_run_keeps_the_limits_that_it_was_trained_within(run_cli, scenario, here, monkeypatch):
    seen = []

    def train(_folder, config, _resume, _longer):
        seen.append(config)
        raise StoppedError("enough seen")

    monkeypatch.setattr("clone_rl.cli.commands.run_training", train)
    assert run_cli("train", "--scenario", scenario("mine.toml", 0.3, 0.2), "--max-dnll", "0.1", "--name", "run").code == 130
    assert (seen[0].max_miss, seen[0].max_disagree, seen[0].max_dnll) == (0.3, 0.2, 0.1)
    stored = json.loads((here / "runs" / "run" / "config.json").read_text())["train"]
    assert (stored["max_miss"], stored["max_disagree"], stored["max_dnll"]) == (0.3, 0.2, 0.1)
    scenario("mine.toml", 0.5, 0.5)
    run_cli("train", "--resume", "runs/run")
    assert seen[1] == seen[0]
