"""Runs that are moved, go on longer, and are evaluated where they were trained."""

import json
import shutil
from pathlib import Path

import pytest

import clone_rl
from clone_rl.agents.lut import load_policy
from clone_rl.agents.origin import trained_scenario
from clone_rl.envs.scenario import Scenario

pytest_plugins = ["cli_running"]

SMALL = ("--envs", "16", "--rollout", "64")
CHIP = Path(clone_rl.__file__).parent / "hw_emulator" / "chips" / "asic28-sram.toml"


def kiosk(folder, traces):
    """A scenario of one's own, with a chip file beside it."""
    folder.mkdir(parents=True)
    (folder / "my-chip.toml").write_text(CHIP.read_text().replace('name = "asic28-sram"', 'name = "kiosk-chip"'))
    (folder / "kiosk.toml").write_text(
        f'name = "kiosk"\nchip = "my-chip.toml"\ntraces = "{traces}"\n[[slo]]\nname = "ask"\nttft_s = 20e-3\ntpot_s = 5e-4\n'
    )
    return folder / "kiosk.toml"


@pytest.fixture
def run(run_cli, here, trace_folder):
    """A run in a scenario of one's own."""
    file = kiosk(here / "mine", trace_folder)
    done = run_cli("train", "--scenario", "mine/kiosk.toml", "--steps", "1024", *SMALL, "--name", "kiosk", "--json")
    assert done.code == 0, done.err
    assert file.exists()
    return here / "runs" / "kiosk"


@pytest.mark.slow
def test_a_run_goes_on_wherever_it_lies_without_the_files_it_began_with(run_cli, run, here, monkeypatch):
    before = run_cli("evaluate", "pace", "runs/kiosk", "--no-oracle", "--requests", "4", "--json").json
    config = json.loads((run / "config.json").read_text())["train"]
    assert config["scenario"]["chip"]["name"] == "kiosk-chip"
    shutil.rmtree(here / "mine")
    elsewhere = here / "elsewhere"
    elsewhere.mkdir()
    moved = Path(shutil.move(run, elsewhere / "kiosk"))
    monkeypatch.chdir(elsewhere)
    scenario = trained_scenario(load_policy("./kiosk").card)
    assert (scenario.name, scenario.chip.name) == ("kiosk", "kiosk-chip")
    again = run_cli("evaluate", "pace", "./kiosk", "--no-oracle", "--requests", "4", "--json")
    energies = [[row["energy_per_token_j"] for row in found["rows"]] for found in (before, again.json)]
    assert energies[0] == energies[1]
    assert "scenario 'kiosk' on kiosk-chip" in again.err
    longer = run_cli("train", "--resume", "./kiosk", "--steps", "2048", "--json").json
    assert longer["decisions"] == 2048
    assert json.loads((moved / "config.json").read_text())["train"]["steps"] == 2048
    assert (moved / "command.txt").read_text().count("clone-rl train") == 2
    # As it stands now, nothing is left; it says so, and how to go on.
    done = run_cli("train", "--resume", "./kiosk", "--json")
    assert done.json["decisions"] == 2048
    assert "clone-rl train --resume kiosk --steps 4096" in done.err
    rows = run_cli("validate", "rows", "kiosk/rows.csv", "--json")
    assert rows.code == 0, rows.err


@pytest.mark.slow
def test_a_run_that_does_not_go_on_keeps_its_configuration(run_cli, run):
    kept = {name: (run / name).read_bytes() for name in ("config.json", "command.txt")}
    done = run_cli("train", "--resume", "runs/kiosk", "--steps", "64", "--json")
    assert done.json["decisions"] == 1024
    assert "nothing was left to train" in done.err
    assert {name: (run / name).read_bytes() for name in kept} == kept
    (run / "checkpoint.pt").write_bytes(b"damaged")
    assert run_cli("train", "--resume", "runs/kiosk", "--steps", "4096", "--json").error["kind"] == "bad_file"
    assert {name: (run / name).read_bytes() for name in kept} == kept


@pytest.mark.slow
@pytest.mark.parametrize(
    "option", [("--seed", "3"), ("--scenario", "hot"), ("--max-miss", "0.5"), ("--conditioned",), ("--name", "other")]
)
def test_an_option_that_a_resumed_run_would_ignore_is_refused(run_cli, run, option):
    kept = (run / "config.json").read_bytes()
    error = run_cli("train", "--resume", "runs/kiosk", *option, "--json").error
    assert error["message"] == f"{option[0]} with --resume"
    assert (run / "config.json").read_bytes() == kept


def test_a_policy_is_evaluated_where_it_was_trained(run_cli):
    done = run_cli("evaluate", "voice", "--no-oracle", "--requests", "2", "--json")
    known = run_cli("evaluate", "voice", "--scenario", "voice", "--no-oracle", "--requests", "2", "--json")
    assert done.json["rows"] == known.json["rows"]
    assert "scenario 'voice'" in done.err
    assert "scenario 'voice'" not in known.err
    error = run_cli("evaluate", "pace", "default", "hot", "--no-oracle", "--json").error
    assert "'default'" in error["message"]
    assert "'hot'" in error["message"]
    assert "--scenario" in error["hint"]


def test_files_that_a_scenario_names_lie_beside_it(here, trace_folder):
    file = kiosk(here / "mine", trace_folder)
    assert Scenario.load("mine/kiosk.toml").load_chip().name == "kiosk-chip"
    (here / "my-chip.toml").write_text(CHIP.read_text())  # one of that name where one stands is another
    scenario = Scenario.load("mine/kiosk.toml")
    assert scenario.load_chip().name == "kiosk-chip"
    whole = scenario.self_contained()
    file.unlink()
    shutil.rmtree(here / "mine")
    assert Scenario.parse(json.loads(json.dumps(whole.as_dict())), "again") == whole
    assert whole.load_chip().name == "kiosk-chip"
