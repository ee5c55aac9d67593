"""Controllers by name and as objects: what ships, and code of a user's own."""

import copy
import hashlib
import pickle

import numpy as np
import pytest

from clone_rl.agents.controller import RuleController
from clone_rl.agents.heuristics import Fixed
from clone_rl.agents.own import OwnController, accepted
from clone_rl.agents.registry import controller
from clone_rl.agents.rollout import run_requests
from clone_rl.errors import BadFileError, BadValueError, CloneRLError, UnknownNameError
from clone_rl.evaluation.protocol import evaluate
from clone_rl.evaluation.unseen import unseen
from clone_rl.own_code import code_sha256, load_code
from clone_rl.runtime import RuntimeController

SLOW = "class Slow:\n    def act(self, observations):\n        return [3] * len(observations)\n"


class Bare:
    """Nothing but what it must have."""

    def act(self, observations):
        return np.full(len(observations), 5)


class Whole(Bare):
    name, kind, macs, probes = "whole", "layer", 7, False

    def describe(self):
        return {"point": 5}


def answering(value):
    class Answering(Bare):
        def act(self, observations):
            return value(len(observations)) if callable(value) else value

    return Answering()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current folder with code of a user's own, which can be imported from nowhere else."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("sys.path", [entry for entry in __import__("sys").path if entry])
    return tmp_path / "here"


def test_an_object_with_act_alone_is_a_controller(control):
    found = accepted(Bare())
    assert (found.name, found.kind, found.macs, found.probes, found.describe()) == ("Bare", "layer", 0, True, {})
    whole = Whole()
    assert accepted(whole) is whole
    policy = controller("default", control)
    assert accepted(policy) is policy


def test_a_compiled_rule_without_a_name_stays_compiled(control):
    class Nameless(RuleController):
        kind, macs, probes = "layer", 0, False

        @property
        def rule(self):
            return Fixed("inner", 3).rule

    found = accepted(Nameless())
    assert isinstance(found, RuleController) and found.name == "Nameless"
    documents = control.traces.documents("test")
    ours, theirs = (run_requests(control, one, "test", documents, 0) for one in (found, Fixed("x", 3)))
    assert ours.tobytes() == theirs.tobytes()


def test_every_entrance_takes_it_alike(control):
    documents = control.traces.documents("test")
    bare = run_requests(control, accepted(Bare()), "test", documents, 0)
    assert (
        evaluate(control, [Bare()], "test").summary[0]["energy_per_token_j"] == bare["energy_j"].sum() / bare["tokens"].sum()
    )
    assert RuntimeController(Bare(), 8).begin().decide(np.zeros(16, np.float32)).operating_point == 5
    rows = unseen(control, [Bare(), Fixed("performance", 7)], "test", requests=2)
    assert {row["name"] for row in rows} == {"Bare", "performance"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (object(), r"of type object has no method act"),
        ("pace", r"'pace' is a name.*registry"),
        (Bare, r"'Bare' is a class.*Bare\(\.\.\.\)"),
        (3, r"of type int has no method act"),
        (type("A", (Bare,), {"act": 3})(), r"has no method act"),
        (type("A", (Bare,), {"name": 3})(), r"has name 3.*a text"),
        (type("A", (Bare,), {"name": ""})(), r"has name ''"),
        (type("A", (Bare,), {"kind": "layers"})(), r"has kind 'layers'.*'layer' or 'token'"),
        (type("A", (Bare,), {"macs": -1})(), r"has macs -1"),
        (type("A", (Bare,), {"macs": "many"})(), r"has macs 'many'"),
        (type("A", (Bare,), {"probes": "yes"})(), r"has probes 'yes'.*True"),
        (type("A", (Bare,), {"describe": {}})(), r"has describe \{\}.*method"),
        (type("A", (Bare,), {"describe": lambda _: 3})(), r"gives int.*a dict"),
        (type("A", (Bare,), {"describe": lambda _: {"x": np.ones(2)}})(), r"describe\(\).*TypeError"),
        (type("A", (Bare,), {"describe": lambda _: {"x": float("nan")}})(), r"describe\(\).*ValueError"),
    ],
)
def test_what_is_no_controller_is_told_by_name_at_every_entrance(control, given, message):
    for entrance in (
        accepted,
        lambda one: evaluate(control, [Fixed("performance", 7), one], "test"),
        lambda one: unseen(control, [one], "test"),
        lambda one: RuntimeController(one, 8),
    ):
        with pytest.raises(BadValueError, match=message):
            entrance(given)


@pytest.mark.parametrize("shield", [False, True])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda n: np.full(n, 0.5), r"'Answering' returned floats, such as 0\.5"),
        (lambda n: np.full(n, np.nan), r"returned floats, such as nan"),
        (lambda n: ["exit"] * n, r"returned texts, such as 'exit'"),
        (None, r"returned NoneType"),
        (lambda n: np.zeros((n, 9), int), r"returned actions of shape \(9, 9\).*9 row\(s\) of 1 integer"),
        (lambda n: np.zeros(n + 1, int), r"returned actions of shape \(10,\)"),
        (3, r"returned actions of shape \(\)"),
        (lambda _: [[0], [1, 2]], r"returned list"),
        (lambda _: {}["lost"], r"'Answering' raised KeyError: 'lost' \(test_agent_registry\.py, line \d+\)"),
        (lambda n: np.full(n, 9), r"'Answering': action 9 \(it is one of 0 to 8\)"),
        (lambda n: np.full(n, -1), r"'Answering': action -1"),
    ],
)
def test_a_wrong_answer_is_told_with_the_controllers_name(control, value, message, shield):
    documents, given = control.traces.documents("test"), accepted(answering(value))
    if shield and "action" in message and "actions" not in message:
        run_requests(control, given, "test", documents, 0, shield=True)  # counts as the top point, as of any controller
        return
    with pytest.raises(BadValueError, match=message):
        run_requests(control, given, "test", documents, 0, shield=shield)


def test_a_runtime_request_does_not_take_the_first_of_many_numbers():
    request = RuntimeController(answering(lambda n: np.zeros((n, 9), int)), 8).begin("r")
    assert request.decide(np.zeros(16, np.float32)).operating_point == 7
    assert "act returned actions of shape (1, 9)" in request.report()["failure"]


def test_code_of_ones_own_by_module_and_by_file(control, folder, capsys):
    (folder / "mine_by_module.py").write_text(SLOW)
    (folder / "lib").mkdir()
    (folder / "lib" / "helper_beside.py").write_text("POINT = 3\n")
    (folder / "lib" / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom helper_beside import POINT\n"
        "@dataclass\nclass Mine:\n    control: object\n    name = 'mine'\n    macs = 5\n"
        "    def act(self, observations):\n        return [POINT] * len(observations)\n"
        "def made():\n    return Mine(None)\n"
        "def with_control(control, point=1):\n    return Mine(control)\n"
        "ready = Mine(None)\n"
        "class Outer:\n    class Inner(Mine):\n"
        "        def __init__(self, *, control=None):\n            self.control = control\n"
    )
    by_module = controller("mine_by_module:Slow", control)
    assert (by_module.name, by_module.source) == ("Slow", "mine_by_module:Slow")
    assert by_module.sha256 == code_sha256("controller", "mine_by_module.py:Slow")
    assert "mine_by_module:Slow does not say everything; taken: kind 'layer', macs 0, probes True" in capsys.readouterr().err
    for name, given in (("Mine", True), ("made", False), ("with_control", True), ("ready", False), ("Outer.Inner", True)):
        found = controller(f"lib/mine.py:{name}", control)
        assert (found.name, found.macs, found.control is control) == ("mine", 5, given)
        assert found.act(np.zeros((2, 16), np.float32)) == [3, 3]
    for same in (copy.deepcopy(controller("lib/mine.py:made", control)), pickle.loads(pickle.dumps(by_module))):
        assert same.act(np.zeros((1, 16), np.float32)) == [3]


def test_classes_functions_and_objects_will_do_in_python(control):
    assert controller(Bare, control).name == controller(Bare(), control).name == controller(lambda: Bare(), control).name
    assert isinstance(controller(Bare, control), OwnController)
    assert controller(Fixed("performance", 7), control) == Fixed("performance", 7)


def test_a_file_that_changes_is_run_anew(control, folder):
    (folder / "changing.py").write_text(SLOW)
    first = controller("changing.py:Slow", control)
    (folder / "changing.py").write_text(SLOW.replace("3", "4"))
    second = controller("changing.py:Slow", control)
    assert [one.act([0]) for one in (first, second)] == [[3], [4]]
    assert first.sha256 != second.sha256


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("nowhere_at_all:Mine", BadValueError, "No module named 'nowhere_at_all'.*package.module:name or file.py:name"),
        ("numpy:nothing", BadValueError, "no attribute 'nothing'"),
        ("gone.py:Mine", BadFileError, "no such file: gone.py"),
        ("bad.py", BadValueError, "does not say what.*file.py:name"),
        ("bad.py:", BadValueError, "does not say what"),
        ("bad.py:Mine", BadValueError, r"cannot be imported: ZeroDivisionError: division by zero \(bad\.py, line 2\)"),
        ("syntax.py:Mine", BadValueError, "cannot be imported: SyntaxError"),
        ("leaves.py:Mine", BadValueError, "cannot be imported: SystemExit: 3"),
        ("some.py:Needy", BadValueError, r"'some\.py:Needy' needs arguments: points, bar.*function without arguments"),
        ("some.py:Raising", BadValueError, r"cannot be made: ValueError: no luck \(some\.py, line 6\)"),
        ("some.py:NoAct", BadValueError, r"'some\.py:NoAct' has no method act"),
        ("some.py:NUMBER", BadValueError, r"is int, neither an object with act nor what makes one"),
        ("some.py:nothing", BadValueError, r"'some\.py:nothing' has no method act"),
        ("pase", UnknownNameError, "did you mean 'pace'.*file.py:name"),
    ],
)
def test_code_that_gives_no_controller_is_a_sentence(control, folder, name, error, message):
    (folder / "bad.py").write_text("x = 1\nx / 0\n")
    (folder / "syntax.py").write_text("def\n")
    (folder / "leaves.py").write_text("import sys\nsys.exit(3)\n")
    (folder / "some.py").write_text(
        "class Needy:\n    def __init__(self, points, bar): ...\n"
        "class Raising:\n    def __init__(self):\n        # why\n        raise ValueError('no luck')\n"
        "class NoAct: ...\nNUMBER = 3\ndef nothing(): ...\n"
    )
    with pytest.raises(error, match=message) as told:
        controller(name, control)
    assert isinstance(told.value, CloneRLError)


def test_rewards_come_out_of_files_too(trace_folder, folder):
    import gymnasium as gym

    (folder / "rewards.py").write_text(
        "class Late:\n    terms = ('late',)\n    def __call__(self, a):\n        return -a[:, :1]\n"
    )
    for name in ("rewards.py:Late", "rewards:Late"):
        env = gym.make("clone_rl/LayerControl-v0", traces=trace_folder, reward=name)
        assert env.unwrapped._reward.terms == ("late",)
    with pytest.raises(BadFileError, match=r"no such file: gone\.py"):
        gym.make("clone_rl/LayerControl-v0", traces=trace_folder, reward="gone.py:Late")
    assert load_code("reward", "rewards.py:Late").terms == ("late",)


def test_the_hash_of_a_module_is_taken_without_running_the_packages_that_it_is_in(folder):
    (folder / "hashed" / "within").mkdir(parents=True)
    for place in ("hashed", "hashed/within"):
        (folder / place / "__init__.py").write_text("raise RuntimeError('this was run')\n")
    (folder / "hashed" / "within" / "mine.py").write_text("Mine = 1\n")
    digest = hashlib.sha256(b"Mine = 1\n").hexdigest()
    assert code_sha256("controller", "hashed.within.mine:Mine") == digest
    for missing in ("hashed.nowhere:Mine", "hashed.within.mine.deeper:Mine"):
        with pytest.raises(BadValueError, match="No module named"):
            code_sha256("controller", missing)
