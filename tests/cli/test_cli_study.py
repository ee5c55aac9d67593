"""``clone-rl study granularity``."""

import json

import pytest
from PIL import Image

pytest_plugins = ["cli_running"]

SMALL = ("--chips", "asic28-sram", "--granularities", "token", "--trials", "1", "--requests", "1")


@pytest.fixture
def study(run_cli, trace_folder):
    return lambda *arguments: run_cli("study", "granularity", "--traces", trace_folder, *arguments)


def test_rows_a_table_and_a_picture_lie_in_the_run_folder(study, run_cli, here):
    done = study(*SMALL, "--switching", "0s", "100us", "--json")
    found = done.json
    assert [(row["switch_s"], row["role"]) for row in found["cells"]] == [
        (seconds, role) for seconds in (0.0, 1e-4) for role in ("heuristic", "oracle", "oracle-points")
    ]
    wanted = {"chip", "granularity", "switch_s", "controller", "energy_per_token_j", "miss_rate", "disagreement", "dnll"}
    assert all(wanted | {"within_constraints", "lower_bound_j", "regret"} <= set(row) for row in found["cells"])
    assert found["study"]["trials"] == 1
    assert "2/2" in done.err  # the bar
    folder = here / "runs/study"
    assert json.loads((folder / "results.json").read_text())["cells"] == found["cells"]
    assert len((folder / "cells.csv").read_text().splitlines()) == 7
    with Image.open(folder / "granularity.png") as picture:
        assert min(picture.size) > 400
    assert (folder / "command.txt").read_text().startswith("clone-rl study granularity --traces")
    assert len(list((folder / "scenarios").iterdir())) == 2

    # People get a line for each cell, here of the finished study.
    setting, head, *_, first, second, files = run_cli("study", "granularity", "--resume", "runs/study").out.splitlines()
    assert setting.startswith("default, its times scaled to each chip; test split, all requests and the ")
    assert {"chip", "switch", "heuristic", "regret", "oracle"} <= set(head.split())
    assert [row.split()[:2] for row in (first, second)] == [["asic28-sram", "token"]] * 2
    assert "runs/study/results.json" in files


def test_an_interrupted_study_goes_on_where_it_stopped(study, run_cli, here, monkeypatch):
    import clone_rl.evaluation.granularity as granularity

    real, worked = granularity.search_cell, []

    def stops(cell):
        worked.append(cell.name)
        if len(worked) == 2:
            raise KeyboardInterrupt
        return real(cell)

    monkeypatch.setattr(granularity, "search_cell", stops)
    stopped = study(*SMALL, "--switching", "0s", "5ms", "--json")
    assert stopped.code == 130
    assert stopped.error["kind"] == "interrupted"
    assert "clone-rl study granularity --resume" in stopped.error["hint"]
    resumed = run_cli("study", "granularity", "--resume", "runs/study", "--json").json
    assert worked == ["asic28-sram-token-0s", "asic28-sram-token-5ms", "asic28-sram-token-5ms"]
    assert len(resumed["cells"]) == 6
    again = run_cli("study", "granularity", "--resume", "runs/study", "--json").json
    assert again == resumed
    assert len(worked) == 3


@pytest.mark.parametrize(("arguments", "kind", "message", "hint"), [
    (("--chips", "asic28-srm"), "unknown_name", "unknown chip 'asic28-srm'", "did you mean 'asic28-sram'?"),
    (("--chips", "orin-agx-eager"), "bad_value", "int4", ""),
    (("--granularities", "tokens"), "unknown_name", "unknown granularity 'tokens'", "did you mean 'token'?"),
    (("--switching", "0s", "fast"), "unknown_name", "unknown switching mechanism 'fast'", "100 ns"),
    (("--switching", "0s", "0s"), "bad_value", "switching is", "once"),
    (("--scenario", "defaul"), "unknown_name", "unknown scenario 'defaul'", "did you mean 'default'?"),
    (("--trials", "0"), "bad_value", "trials is 0", "1 or more"),
    (("--requests", "0"), "bad_value", "requests is 0", "1 or more"),
    (("--ppo-steps", "-1"), "bad_value", "ppo_steps is -1", "0 or more"),
    (("--jobs", "0"), "bad_value", "jobs is 0", "1 or more"),
    (("--resume", "nothing"), "bad_file", "nothing is not a run folder", ""),
])  # fmt: skip
def test_bad_input_is_named_before_anything_is_written(study, snapshot, arguments, kind, message, hint):
    before = snapshot()
    failed = study(*arguments, "--json")
    assert failed.error["kind"] == kind
    assert message in failed.error["message"]
    assert hint in failed.error["hint"]
    assert snapshot() == before


def test_a_folder_of_something_else_is_not_resumed(run_cli, here):
    (here / "runs/x").mkdir(parents=True)
    (here / "runs/x/config.json").write_text('{"tune": {}}')
    assert "is not of a study" in run_cli("study", "granularity", "--resume", "runs/x", "--json").error["message"]


def test_unseen_conditions_as_rows_and_as_a_table(run_cli):
    asked = ("study", "unseen", "performance", "default", "--requests", "4")
    rows = run_cli(*asked, "--json").json["rows"]
    assert {(row["name"], row["shield"]) for row in rows} == {
        (name, shield) for name in ("performance", "default") for shield in (True, False)
    }
    assert len(rows) == 40
    assert all(row["miss_rate"] == 0 for row in rows if row["name"] == "performance")
    setting, head, *lines = run_cli(*asked).out.splitlines()
    assert setting == (
        "default on asic28-sram; test split, 4 requests x 1 seed; replayed, without and with the shield; "
        "limits: 1 % late, 2 % differ, dNLL 0.02"
    )
    assert head.split()[:2] == ["condition", "controller"]
    assert len(lines) == 20
    assert f"{rows[1]['energy_per_token_j'] * 1e6:.3f}" in lines[1]


def test_unseen_refuses_what_it_cannot_run(run_cli):
    assert run_cli("study", "unseen", "pase", "--json").error["kind"] == "unknown_name"
    assert run_cli("study", "unseen", "performance", "performance", "--json").error["kind"] == "bad_value"
    assert run_cli("study", "unseen", "performance", "--seeds", "0", "--json").error["message"] == "seeds is 0"
