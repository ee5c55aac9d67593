"""Run folders of one name side by side: rows, tables, the report and validation follow."""

from dataclasses import replace

import pytest

from clone_rl.agents.policy import Policy
from clone_rl.evaluation.rows import read_rows

pytest_plugins = ["cli_running"]


@pytest.fixture
def runs(here):
    """Three run folders of one name, each with another policy in it; the third was copied."""
    for folder, name in (("s0", "default"), ("s1", "hot"), ("kept", "voice")):
        policy = Policy.load(name)
        (here / folder / "mine").mkdir(parents=True)
        own = replace(policy, card={**Policy.load("default").card, "name": "formerly"})  # trained in one scenario
        own.save(here / folder / "mine" / "policy.safetensors")
    return here


def test_two_run_folders_of_one_name_are_compared(run_cli, runs, trace_folder):
    few = ("--traces", trace_folder, "--requests", "2", "--no-oracle")
    done = run_cli("evaluate", "s0/mine", "s1/mine", "performance", *few, "--out", "rows.csv")
    assert done.code == 0, done.err
    shown = [line.split("|")[1].strip() for line in done.out.splitlines() if "[" in line]
    assert shown == ["s0/mine", "s1/mine", "performance"]
    rows = read_rows(runs / "rows.csv")
    assert [row["controller"] for row in rows] == ["s0/mine"] * 2 + ["s1/mine"] * 2 + ["performance"] * 2
    assert [row["policy"] for row in rows[::2]] == ["s0/mine", "s1/mine", ""]
    assert run_cli("validate", "rows", "rows.csv").out == "6 of 6 rows give the same figures again\n"
    found = run_cli("report", "rows.csv", "--json").json
    assert [row["name"] for row in found["summary"]] == ["s0/mine", "s1/mine", "performance"]
    page = (runs / "rows-report" / "report.html").read_text()
    assert "s0/mine" in page and "s1/mine" in page and "formerly" not in page
    assert run_cli("evaluate", "kept/mine", *few, "--json").json["summary"][0]["name"] == "mine"


def test_the_pictures_of_rows_carry_their_labels(run_cli, runs, trace_folder):
    from clone_rl.evaluation.replay import groups
    from clone_rl.evaluation.vf_map import vf_map

    run_cli("evaluate", "s0/mine", "s1/mine", "--traces", trace_folder, "--requests", "2", "--no-oracle", "--out", "rows.csv")
    found = groups(read_rows(runs / "rows.csv"), runs / "rows.csv")
    assert [vf_map(group, 1).name for group in found] == ["s0/mine", "s1/mine"]


def test_one_folder_twice_is_still_refused(run_cli, runs):
    error = run_cli("evaluate", "s0/mine", "s0/mine/policy.safetensors", "--json").error
    assert (error["kind"], error["message"]) == ("bad_value", "controllers mine, mine")
    assert "once" in error["hint"]


def test_unseen_conditions_tell_them_apart_too(run_cli, runs):
    rows = run_cli("study", "unseen", "s0/mine", "s1/mine", "--requests", "1", "--json").json["rows"]
    assert {row["name"] for row in rows} == {"s0/mine", "s1/mine"}
