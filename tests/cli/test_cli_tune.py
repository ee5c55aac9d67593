"""``clone-rl tune``, and what ``evaluate`` makes of its files."""

import json
import shutil

import pytest

from clone_rl.agents import baselines, registry

pytest_plugins = ["cli_running"]

FIGURES = {"energy_per_token_j", "miss_rate", "disagreement", "dnll", "mean_depth", "switches_per_token"}


@pytest.fixture
def tune(run_cli, trace_folder):
    return lambda *arguments: run_cli("tune", *arguments, "--traces", trace_folder)


def test_tune_leaves_settings_with_how_they_were_found(tune, here):
    result = tune("static", "slack", "--trials", "12", "--max-miss", "0.2", "--json").json
    assert [row["baseline"] for row in result["tuned"]] == ["static", "slack"]
    for row in result["tuned"]:
        assert all(set(row[split]) == FIGURES for split in ("start", "train", "validation"))
        assert row["within_constraints"]
        assert (row["trials"], row["seed"], row["limits"]["miss"]) == (12, 0, 0.2)
    assert (here / "runs/tune/command.txt").read_text().startswith("clone-rl tune static slack")
    (file,) = result["files"]
    content = json.loads((here / file).read_text())
    assert set(content["tuned_for"]) == {"chip", "traces", "rules", "limits"}
    assert set(content["baselines"]) == {"static", "slack"}
    entry = content["baselines"]["slack"]
    assert entry["command"].startswith("clone-rl tune static slack --trials 12")
    assert entry["settings"] == entry["parameters"] == result["tuned"][1]["settings"]
    assert entry["validation"] == result["tuned"][1]["validation"]


def test_tune_for_people_is_a_table_and_says_what_cannot_be_held(tune):
    done = tune("performance", "powersave", "static", "--trials", "2")
    assert done.code == 0
    setting, head, *rows = done.out.splitlines()
    assert setting == (
        "default on asic28-sram; 16 train and 5 validation requests x 1 seed; replayed, no shield; "
        "limits: 1 % late, 2 % differ, dNLL 0.02"
    )
    assert {"baseline", "late", "differs", "within"} <= set(head.split())
    assert [row.split()[1] for row in rows] == ["performance", "powersave", "static"]
    assert "powersave cannot hold the limits" in done.err


def test_the_same_search_gives_the_same_file(tune, here):
    files = [tune("slack", "--trials", "8", "--name", name, "--json").json["files"][0] for name in ("a", "b")]
    first, second = (json.loads((here / file).read_text())["baselines"]["slack"] for file in files)
    assert first.pop("command") != second.pop("command")
    assert first == second


def test_an_interrupted_search_is_resumed_to_the_same_settings(tune, run_cli, here, monkeypatch):
    whole = tune("static", "slack", "--trials", "11", "--name", "whole", "--json").json
    import clone_rl.agents.judge as judge

    real, calls = judge.PolicyRunner, []

    def stops(*args):
        calls.append(1)
        if len(calls) == 33:  # two splits a trial
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(judge, "PolicyRunner", stops)
    stopped = tune("static", "slack", "--trials", "11", "--name", "half", "--json")
    assert stopped.code == 130
    assert stopped.error["kind"] == "interrupted"
    assert "clone-rl tune --resume" in stopped.error["hint"]
    assert set(json.loads((here / "runs/half/default.json").read_text())["baselines"]) == {"static"}
    monkeypatch.setattr(judge, "PolicyRunner", real)
    resumed = run_cli("tune", "--resume", "runs/half", "--json").json
    for before, after in zip(whole["tuned"], resumed["tuned"], strict=True):
        assert {**before, "seconds": 0} == {**after, "seconds": 0}


def test_out_adds_to_a_file_of_the_same_search(tune, here):
    for name in ("static", "slack"):
        assert tune(name, "--trials", "1", "--out", "mine.json").code == 0
    assert set(json.loads((here / "mine.json").read_text())["baselines"]) == {"static", "slack"}


def test_all_scenarios_go_to_a_folder(tune, here, monkeypatch):
    monkeypatch.setattr("clone_rl.envs.scenarios", lambda: ["default", "voice"])
    (here / "tuned").mkdir()
    result = tune("static", "--scenario", "all", "--trials", "1", "--out", "tuned", "--json").json
    assert [row["scenario"] for row in result["tuned"]] == ["default", "voice"]
    assert {p.name for p in (here / "tuned").iterdir()} == {"default.json", "voice.json"}


def test_evaluate_takes_tuned_settings_and_no_others(tune, run_cli, trace_folder, here, monkeypatch):
    tune("slack", "--trials", "6", "--out", "mine.json")
    settings = json.loads((here / "mine.json").read_text())["baselines"]["slack"]["settings"]
    evaluate = ("evaluate", "slack", "--traces", trace_folder, "--no-oracle", "--tuned", "mine.json")
    done = run_cli(*evaluate, "--json")
    assert done.json["rows"][0]["settings"] == settings
    assert "tuning" not in done.err
    other = run_cli(*evaluate, "--max-miss", "0.5", "--json")
    assert other.code == 2
    assert "mine.json is for other limits" in other.error["message"]
    moved = run_cli(*evaluate, "--scenario", "voice", "--json")
    assert "other rules" in moved.error["message"]
    # What ships is looked at in the same way, but a mismatch is no error there: it is said, and the baseline is tuned.
    monkeypatch.setattr(registry, "QUICK_TRIALS", 2)
    monkeypatch.setattr(registry, "tuned_path", lambda _: here / "mine.json")
    assert "tuning" not in run_cli(*evaluate[:-2]).err
    fresh = run_cli(*evaluate[:-2], "--max-miss", "0.5")
    assert fresh.code == 0
    assert "tuning slack by 2 trials: what is stored is for other limits" in fresh.err


@pytest.mark.slow
def test_evaluate_takes_every_baseline(run_cli, trace_folder, monkeypatch):
    monkeypatch.setattr(registry, "QUICK_TRIALS", 1)
    done = run_cli("evaluate", *baselines(), "--traces", trace_folder, "--no-oracle", "--json")
    assert [row["name"] for row in done.json["rows"]] == baselines()
    assert len(json.dumps(done.json["rows"])) < 60_000  # settings are for people: no weights among them


@pytest.mark.parametrize(("arguments", "kind", "message", "hint"), [
    (("pase",), "unknown_name", "unknown baseline 'pase'", "did you mean 'pace'?"),
    (("pace", "--scenario", "defaul"), "unknown_name", "unknown scenario 'defaul'", "did you mean 'default'?"),
    (("pace", "--trials", "0"), "bad_value", "trials is 0", "at least 1"),
    (("pace", "--seed", "-1"), "bad_value", "seed", ""),
    (("pace", "--max-dnll", "-1"), "bad_value", "limit dnll is -1", "0 or more"),
    (("pace", "--out", "no/where.json"), "bad_file", "no such folder: no", "create it"),
    (("pace", "--out", "settings.toml"), "bad_value", "settings.toml", "JSON file"),
    (("pace", "--scenario", "all", "--out", "nowhere"), "bad_file", "no such folder: nowhere", "create it"),
    (("--resume", "nothing"), "bad_file", "nothing is not a run folder", ""),
])  # fmt: skip
def test_bad_input_is_named_before_anything_is_written(run_cli, snapshot, arguments, kind, message, hint):
    before = snapshot()
    failed = run_cli("tune", *arguments, "--json")
    assert failed.error["kind"] == kind
    assert message in failed.error["message"]
    assert hint in failed.error["hint"]
    assert snapshot() == before


def test_what_is_no_settings_file_is_not_overwritten(tune, run_cli, trace_folder, here):
    (here / "notes.json").write_text('{"my": "notes"}')
    failed = tune("static", "--trials", "1", "--out", "notes.json", "--json")
    assert failed.code == 2
    assert "notes.json is not a file of tuned settings" in failed.error["message"]
    assert (here / "notes.json").read_text() == '{"my": "notes"}'
    assert not (here / "runs").exists()
    assert "not a file of tuned" in run_cli("evaluate", "slack", "--traces", trace_folder, "--tuned", "notes.json").err
    assert "no such file" in run_cli("evaluate", "slack", "--traces", trace_folder, "--tuned", "none.json").err


def test_a_folder_of_something_else_is_not_resumed(run_cli, here):
    (here / "runs" / "x").mkdir(parents=True)
    (here / "runs/x/config.json").write_text('{"train": {}}')
    assert "is not of a search" in run_cli("tune", "--resume", "runs/x", "--json").error["message"]
    shutil.rmtree(here / "runs")
