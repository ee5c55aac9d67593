"""Names of controllers that would be called the same."""

import shutil

import pytest

from clone_rl.agents.heuristics import Fixed
from clone_rl.agents.labels import told_apart
from clone_rl.agents.own import accepted
from clone_rl.agents.policy import Policy


class Bare:
    """So that it is taken with what it lacks."""

    def __init__(self, name):
        self.name = name

    def act(self, observations):
        return [0] * len(observations)


@pytest.mark.parametrize(
    ("names", "sources", "expected"),
    [
        (["mine", "mine"], ["s0/mine", "s1/mine"], ["s0/mine", "s1/mine"]),
        (["mine", "mine"], ["s0/mine/policy.safetensors", "s1/mine/policy.json"], ["s0/mine", "s1/mine"]),
        (["mine", "mine"], ["a/x/mine", "b/x/mine"], ["a/x/mine", "b/x/mine"]),
        (["mine", "mine", "mine"], ["s0/mine", "s1/mine", "s1/../s1/other/mine"], ["s0/mine", "s1/mine", "other/mine"]),
        (["mine", "yours"], ["s0/mine", "s1/yours"], ["mine", "yours"]),
        (["default", "default"], ["default", "runs/default"], ["default", "runs/default"]),
        (["same", "same"], ["a.safetensors", "b.safetensors"], ["a.safetensors", "b.safetensors"]),
        (["Mine", "Mine"], ["x/a.py:Mine", "y/a.py:Mine"], ["x/a.py:Mine", "y/a.py:Mine"]),
        (["one", "one"], ["a.py:Mine", "a.py:Other"], ["a.py:Mine", "a.py:Other"]),
        (["one", "one"], ["pkg.a:Mine", "a.py:Mine"], ["pkg.a:Mine", "a.py:Mine"]),
        (["mine", "mine"], ["s0/mine", "s0/../s0/mine"], ["mine", "mine"]),
    ],
)
def test_each_gets_as_much_of_its_path_as_it_takes(names, sources, expected):
    given = [Policy.load("default") if name == "default" else accepted(Bare(name)) for name in names]
    assert [one.name for one in told_apart(given, sources)] == expected


def test_baselines_keep_the_name_that_they_are_known_by():
    found = told_apart([Fixed("pace", 3), Fixed("pace", 3)], ["pace", "pace"])
    assert [one.name for one in found] == ["pace", "pace"]


def test_a_policy_is_called_as_its_run_folder_is_now(tmp_path, monkeypatch):
    run = tmp_path / "first"
    run.mkdir()
    policy = Policy.load("default")
    Policy(policy.layers, policy.heads, {**policy.card, "name": "first"}).save(run / "policy.safetensors")
    shutil.copytree(run, tmp_path / "second")
    monkeypatch.chdir(tmp_path / "second")
    for place in (tmp_path / "second", "../second", ".", "./policy.json", tmp_path / "second" / "policy.safetensors"):
        assert Policy.load(f"{place}").name == "second", place
    assert Policy.load("../first").name == "first"
    shutil.copy("policy.safetensors", "else.safetensors")
    shutil.copy("policy.json", "else.json")
    assert Policy.load("./else.safetensors").name == "first"  # a file that somebody named keeps its card's name
