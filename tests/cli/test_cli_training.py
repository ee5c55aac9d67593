import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clone_rl.agents.policy import Policy
from clone_rl.cli.run_folder import command_line, create_run, free_name, read_config, write_json
from clone_rl.errors import BadFileError, RunExistsError
from clone_rl.version import __version__

pytest_plugins = ["cli_running"]

SMALL = ("--envs", "16", "--rollout", "64")
CONTROLLER = {"name", "energy_per_token_j", "avg_power_w", "miss_rate", "disagreement", "dnll", "mean_depth"}
GENERATION = {"text", "energy_per_token_j", "ttft_s", "tpot_s", "mean_depth"}


@pytest.fixture
def trained(run_cli, trace_folder, here):
    """A run of 4096 decisions, and what the command said."""
    arguments = ("train", "--steps", "4096", *SMALL, "--traces", trace_folder, "--runs", "runs", "--name", "first", "--json")
    return here / "runs" / "first", run_cli(*arguments).json


@pytest.mark.slow
def test_training_leaves_everything_in_its_run_folder_and_the_policy_can_be_used(run_cli, trained, trace_folder, here):
    folder, result = trained
    assert {p.name for p in folder.iterdir()} == {
        *("policy.safetensors", "policy.json", "config.json", "command.txt", "results.json", "rows.csv"),
        *("tensorboard", "checkpoint.pt"),
    }
    assert list((folder / "tensorboard").glob("events.out.tfevents.*"))
    assert result["run_dir"] == str(Path("runs/first"))
    assert result["decisions"] == 4096
    assert [row["name"] for row in result["rows"]] == ["performance", "pace", "first"]
    stored = json.loads((folder / "results.json").read_text())
    assert stored == {key: value for key, value in result.items() if key not in ("run_dir", "decisions")}
    assert stored["split"] == "validation"
    assert {name: limit["limit"] for name, limit in stored["limits"].items()} == {
        "max_miss": 0.01,
        "max_disagree": 0.02,
        "max_dnll": 0.02,
    }
    assert stored["limits"]["max_miss"]["measured"] == result["rows"][-1]["miss_rate"]
    with (folder / "rows.csv").open(newline="") as file:
        assert {row["controller"] for row in csv.DictReader(file)} == {"performance", "pace", "first"}
    config = json.loads((folder / "config.json").read_text())
    assert config["version"] == __version__
    assert (config["train"]["steps"], config["train"]["traces"]) == (4096, trace_folder)
    command = (folder / "command.txt").read_text()
    assert (
        command
        == f"clone-rl train --steps 4096 --envs 16 --rollout 64 --traces {trace_folder} --runs runs --name first --json\n"
    )
    policy = Policy.load(str(folder))
    assert policy.name == policy.card["name"] == "first"
    assert policy.card["command"] == command.rstrip("\n")
    assert policy.parameters < 1000
    # The policy is judged the same wherever it is named.
    again = run_cli("evaluate", "runs/first", "--traces", trace_folder, "--split", "validation", "--no-oracle", "--json").json
    assert again["rows"][0]["energy_per_token_j"] == result["rows"][2]["energy_per_token_j"]
    answer = run_cli("generate", "--prompt", "Hi", "--controller", "runs/first", "--max-new-tokens", "3", "--json").json
    assert answer["generations"][0]["controller"] == "runs/first"
    # The same command again meets the same folder, and a finished run has nothing to resume.
    before = {p: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    assert run_cli("train", "--runs", "runs", "--name", "first", "--json").error["kind"] == "run_exists"
    assert {p: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before
    resumed = run_cli("train", "--resume", "runs/first", "--json").json
    assert resumed["rows"] == result["rows"]
    assert (folder / "policy.safetensors").read_bytes() == before[folder / "policy.safetensors"]


@pytest.mark.slow
def test_token_control_trains_and_is_evaluated_as_well(run_cli, trace_folder, here):
    arguments = ("train", "--env-id", "clone_rl/TokenControl-v0", "--steps", "1024", *SMALL, "--traces", trace_folder)
    result = run_cli(*arguments, "--runs", ".", "--json").json
    assert result["rows"][-1]["name"] == "train"
    assert Policy.load("train/policy.safetensors").kind == "token"
    failed = run_cli("generate", "--prompt", "Hi", "--controller", "./train", "--max-new-tokens", "2", "--json")
    assert "decides per token" in failed.error["message"]
    assert run_cli("evaluate", "./train", "--traces", trace_folder, "--no-oracle", "--json").json["rows"][0]["name"] == "train"


@pytest.mark.slow
def test_an_interrupted_training_keeps_its_checkpoint_and_can_be_finished(run_cli, trace_folder, here):
    arguments = (
        "train",
        "--steps",
        "4096",
        *SMALL,
        "--checkpoint-every",
        "2",
        "--traces",
        trace_folder,
        "--runs",
        "runs",
        "--json",
    )
    command = [sys.executable, "-m", "clone_rl.cli.main", *arguments]
    process = subprocess.Popen(command, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    folder = here / "runs" / "train"
    deadline = time.monotonic() + 60
    while not (folder / "checkpoint.pt").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    error = json.loads(err.splitlines()[-1])["error"]
    assert error["kind"] == "interrupted"
    assert f"--resume {Path('runs/train')}" in error["hint"]
    assert not (folder / "policy.safetensors").exists()
    assert not [p.name for p in folder.iterdir() if p.name.startswith(".")]

    result = run_cli("train", "--resume", "runs/train", "--json").json
    assert result["decisions"] == 4096
    assert result["rows"][-1]["name"] == "train"
    assert Policy.load("runs/train").card["warm_start"] is not None


@pytest.mark.slow
def test_a_demo_does_the_three_jobs_and_says_what_is_documented(run_cli, here, monkeypatch):
    # Tuning and cloning on the shipped traces take most of the time and have tests of their own.
    monkeypatch.setattr("clone_rl.agents.registry.QUICK_TRIALS", 1)
    monkeypatch.setattr("clone_rl.agents.ppo._CLONE_STEPS", 20)
    result = run_cli("demo", "--steps", "8192", "--runs", "runs", "--max-new-tokens", "12", "--json").json
    assert set(result) == {"run_dir", "controllers", "generation"}
    folder = here / "runs" / "demo"
    assert result["run_dir"] == str(Path("runs/demo"))
    assert [row["name"] for row in result["controllers"]] == ["performance", "pace", "default", "demo"]
    assert all(set(row) >= CONTROLLER for row in result["controllers"])
    assert set(result["generation"]) >= GENERATION
    assert result["generation"]["energy_per_token_j"] > 0
    assert result["generation"]["targets"] == {"ttft_s": 12e-3, "tpot_s": 0.25e-3}  # of the class, without a slack
    assert json.loads((folder / "generation.json").read_text())["text"] == result["generation"]["text"]
    assert (folder / "response.png").stat().st_size > 5000
    assert {p.name for p in folder.iterdir()} == {
        *("policy.safetensors", "policy.json", "config.json", "command.txt", "results.json", "rows.csv"),
        *("tensorboard", "checkpoint.pt", "generation.json", "response.png"),
    }
    config = json.loads((folder / "config.json").read_text())
    assert config["train"]["steps"] == 8192
    assert config["prompt"] == json.loads((folder / "generation.json").read_text())["prompt"]
    assert json.loads((folder / "results.json").read_text())["summary"] == result["controllers"]


def test_a_command_is_kept_so_that_it_can_be_typed_again(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/clone-rl", "demo", "--prompt", 'it\'s a "fox"'])
    assert subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {command_line()}"], capture_output=True, text=True, check=True
    ).stdout.splitlines() == ["clone-rl", "demo", "--prompt", 'it\'s a "fox"']


def test_a_run_folder_starts_with_configuration_and_command(here):
    folder = create_run(here / "a" / "b", {"train": {"steps": 3}})
    assert read_config(folder) == {"version": __version__, "train": {"steps": 3}}
    assert {p.name for p in folder.iterdir()} == {"config.json", "command.txt"}
    with pytest.raises(RunExistsError, match="exists"):
        create_run(folder, {})


def test_free_names_count_up(here):
    assert free_name(here, "demo") == here / "demo"
    for expected in ("demo-2", "demo-3"):
        free_name(here, "demo").mkdir()
        assert free_name(here, "demo") == here / expected


def test_json_that_cannot_be_written_leaves_the_old_file_and_nothing_beside_it(here):
    write_json(here / "x.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(here / "x.json", {"a": object()})
    assert json.loads((here / "x.json").read_text()) == {"a": 1}
    assert [p.name for p in here.iterdir()] == ["x.json"]


@pytest.mark.parametrize("content", [None, "{", b"\xff\xfe"])
def test_a_folder_that_is_no_run_is_refused(here, content):
    if content is not None:
        (here / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadFileError, match=r"config\.json"):
        read_config(here)
