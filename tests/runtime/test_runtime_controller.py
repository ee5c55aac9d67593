import itertools
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest

from clone_rl.agents.controller import RuleController
from clone_rl.agents.heuristics import Fixed, Pace
from clone_rl.agents.policy import Policy
from clone_rl.agents.rule import rule
from clone_rl.envs.observation import OBSERVATION
from clone_rl.errors import BadValueError, PolicyFileError, UnknownNameError
from clone_rl.runtime import Decision, EmulatedActuator, RuntimeController

BLANK = np.zeros(len(OBSERVATION), np.float32)


class Scripted:
    """A controller whose actions are given."""

    name, kind, macs, probes = "scripted", "layer", 0, False

    def __init__(self, *actions):
        self.actions = list(actions)

    def act(self, observations):
        assert observations.shape == (1, len(OBSERVATION))
        return np.array([[self.actions.pop(0)]])

    def describe(self):
        return {}


class Wires:
    """An actuator that keeps what it was told."""

    def __init__(self):
        self.told = []

    def set(self, operating_point):
        self.told.append(operating_point)


def random_policy(heads, seed=0):
    rng = np.random.default_rng(seed)
    sizes = (len(OBSERVATION), 12, sum(heads))
    layers = tuple(
        (rng.normal(0, 1, (out, width)).astype(np.float32), rng.normal(0, 0.1, out).astype(np.float32))
        for width, out in itertools.pairwise(sizes)
    )
    return Policy(layers, heads)


def observations(count, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (count, len(OBSERVATION))).astype(np.float32)


def test_decisions_are_points_and_an_exit_keeps_the_point():
    controller = RuntimeController(Scripted(3, 8, 8, 5, 8), points=8)
    decided = [controller.decide(BLANK) for _ in range(5)]
    assert decided == [Decision(3), Decision(3, exit=True), Decision(3, exit=True), Decision(5), Decision(5, exit=True)]


def test_an_exit_before_any_decision_stays_at_the_top_point():
    assert RuntimeController(Scripted(8), points=8).decide(BLANK) == Decision(7, exit=True)


def test_the_actuator_is_set_to_every_point_that_was_decided_and_to_nothing_else():
    wires = Wires()
    controller = RuntimeController(Scripted(3, 3, 8, 0, 7, 8), points=8, actuator=wires)
    for _ in range(6):
        controller.decide(BLANK)
    assert wires.told == [3, 3, 0, 7]


def test_without_an_actuator_an_emulated_one_is_used():
    controller = RuntimeController(Scripted(2, 5), points=8)
    assert isinstance(controller.actuator, EmulatedActuator)
    controller.decide(BLANK)
    controller.decide(BLANK)
    assert (controller.actuator.operating_point, controller.actuator.changes) == (5, 2)


def test_a_report_counts_decisions_exits_switches_and_what_they_took():
    controller = RuntimeController(Scripted(7, 3, 8, 3, 4), points=8)
    controller.begin("request 1", "code")
    for number in range(5):
        controller.decide(BLANK)
        controller.observe(0.5, number)
    assert controller.report() == {
        "request": "request 1",
        "slo": "code",
        "decisions": 5,
        "exits": 1,
        "switches": 2,
        "latency_s": 2.5,
        "energy_j": 10.0,
    }


def test_a_report_is_a_copy_and_a_new_request_starts_at_zero_and_at_the_point_in_force():
    controller = RuntimeController(Scripted(2, 2, 8), points=8)
    controller.decide(BLANK)
    controller.report()["decisions"] = 99
    assert controller.report()["decisions"] == 1
    controller.begin("next")
    assert controller.report()["request"] == "next"
    assert sum(controller.report()[key] for key in ("decisions", "exits", "switches", "latency_s", "energy_j")) == 0
    controller.decide(BLANK)
    assert controller.report()["switches"] == 0
    assert controller.decide(BLANK) == Decision(2, exit=True)


def test_nothing_grows_with_the_length_of_a_request():
    controller = RuntimeController(Fixed("performance", 7), points=8)
    controller.decide(BLANK)
    size = {name: len(value) for name, value in vars(controller).items() if hasattr(value, "__len__")}
    for _ in range(1000):
        controller.decide(BLANK)
        controller.observe(1e-3, 1e-6)
    assert {name: len(value) for name, value in vars(controller).items() if hasattr(value, "__len__")} == size


@pytest.mark.parametrize("heads", [(8, 8, 8, 8, 8, 5), (8, 1)])
def test_a_policy_of_token_control_is_refused(heads):
    with pytest.raises(BadValueError, match=r"decides per token.*LayerControl"):
        RuntimeController(random_policy(heads), points=8)


def test_a_policy_decides_as_it_does_in_the_environment():
    policy = random_policy((9,))
    controller = RuntimeController(policy, points=8)
    seen = observations(200)
    actions = policy.act(seen)[:, 0]
    assert len(np.unique(actions)) > 2
    for observation, action in zip(seen, actions, strict=True):
        decision = controller.decide(observation)
        assert decision.exit == (action == 8)
        assert decision.exit or decision.operating_point == action


def test_pace_can_be_asked_as_well():
    pace = Pace(8, agree_bar=0.5, kl_bar=10.0)
    controller = RuntimeController(pace, points=8)
    for observation in observations(50):
        action = int(pace.act(observation[None])[0, 0])
        decision = controller.decide(observation)
        assert decision == Decision(action) if action < 8 else decision.exit


def test_the_shipped_policy_loads_and_decides_as_its_file_says():
    controller, policy = RuntimeController.load(), Policy.load("default")
    assert controller.points == policy.heads[0] - 1
    for observation in observations(200, 1):
        action = int(policy.act(observation[None])[0, 0])
        decision = controller.decide(observation)
        assert decision.exit == (action == controller.points)
        assert decision.exit or decision.operating_point == action


def test_a_policy_loads_from_its_file(tmp_path):
    random_policy((4,)).save(tmp_path / "mine.safetensors")
    wires = Wires()
    controller = RuntimeController.load(str(tmp_path / "mine.safetensors"), wires)
    assert controller.points == 3
    assert controller.actuator is wires


def test_an_unknown_policy_is_refused_with_a_suggestion():
    with pytest.raises(UnknownNameError, match=r"unknown policy 'defalt'.*did you mean 'default'"):
        RuntimeController.load("defalt")


def test_a_missing_policy_file_is_refused(tmp_path):
    with pytest.raises(PolicyFileError, match=r"no policy file .*mine"):
        RuntimeController.load(str(tmp_path / "mine.safetensors"))


@pytest.mark.parametrize(
    "code",
    [
        "import clone_rl.runtime",
        "from clone_rl.runtime import *; import numpy as n; RuntimeController.load().decide(n.zeros(16, 'f4'))",
    ],
)
def test_the_runtime_needs_neither_torch_nor_stable_baselines(code):
    heavy = "{'torch', 'transformers', 'stable_baselines3'} & set(__import__('sys').modules)"
    done = subprocess.run([sys.executable, "-c", f"{code}; print({heavy})"], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


class CountRule(NamedTuple):
    every: int


@rule(CountRule)
def _count(self, observation, memory, action):
    memory[0] += 1.0
    action[0] = 8 if memory[0] % self.every == 0 else 3


class Counting(RuleController):
    name, kind, macs, probes = "counting", "layer", 0, False

    @property
    def rule(self):
        return CountRule(3)


def test_what_a_rule_remembers_lasts_for_one_request():
    controller = RuntimeController(Counting(), points=8)
    exits = [controller.decide(np.zeros(16, np.float32)).exit for _ in range(7)]
    assert exits == [False, False, True, False, False, True, False]
    controller.begin()
    assert [controller.decide(np.zeros(16, np.float32)).exit for _ in range(3)] == [False, False, True]
