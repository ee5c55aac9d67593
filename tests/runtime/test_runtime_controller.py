import itertools
import logging
import subprocess
import sys
import threading
import time
import tracemalloc
from typing import NamedTuple

import numpy as np
import pytest

from clone_rl.agents.controller import LayerCost, RuleController
from clone_rl.agents.heuristics import Fixed, Pace
from clone_rl.agents.policy import Policy
from clone_rl.agents.rule import rule
from clone_rl.envs.observation import OBSERVATION
from clone_rl.errors import BadValueError, DeviceError, PolicyFileError, UnknownNameError
from clone_rl.hw_emulator.emulator import LayerCost as EmulatedCost
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


def test_the_actuator_is_set_where_the_point_that_is_decided_changes():
    wires = Wires()
    controller = RuntimeController(Scripted(7, 3, 3, 8, 0, 7, 8), points=8, actuator=wires)
    for _ in range(7):
        controller.decide(BLANK)
    assert wires.told == [7, 3, 0, 7]  # hardware is not known to be at the top when the first decision comes


def test_an_actuator_that_fails_is_tried_again_and_does_not_end_the_response(caplog):
    class Loose(Wires):
        def set(self, operating_point):
            super().set(operating_point)
            if len(self.told) < 3:
                raise DeviceError("the wire is loose")

    wires = Loose()
    controller = RuntimeController(Scripted(3, 3, 3, 3), points=8, actuator=wires)
    request = controller.begin("request 1")
    assert [request.decide(BLANK) for _ in range(4)] == [Decision(3)] * 4
    assert wires.told == [3, 3, 3]
    assert request.report()["actuator_failures"] == 2
    assert [record.message for record in caplog.records] == [
        "request 'request 1': the operating point was not set: the wire is loose"
    ]


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
        controller.observe(LayerCost(0.5, number))
    assert controller.report() == {
        "request": "request 1",
        "slo": "code",
        "decisions": 5,
        "exits": 1,
        "switches": 2,
        "latency_s": 2.5,
        "energy_j": 10.0,
        "failure": "",
        "degraded": 0,
        "overruled": 0,
        "actuator_failures": 0,
        "late": None,
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
    request = RuntimeController(Fixed("performance", 7), points=8).begin()
    request.decide(BLANK)
    size = {name: len(value) for name, value in vars(request).items() if hasattr(value, "__len__")}
    tracemalloc.start()
    for _ in range(1000):
        request.decide(BLANK)
        request.observe(LayerCost(1e-3, 1e-6))
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert {name: len(value) for name, value in vars(request).items() if hasattr(value, "__len__")} == size
    assert grown < 10_000  # bytes; a list of what was decided would take more


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
        "from clone_rl.runtime import *; RuntimeController.load().begin('r', 'code', 20, 20).decide(busy=True)",
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


@pytest.mark.parametrize("compiled", [True, False])
def test_both_ways_of_computing_a_policy_agree(compiled):
    policy = Policy.load("default")
    request = RuntimeController(policy, 8, compiled=compiled).begin()
    seen = observations(2000, 4)
    decided = [request.decide(observation) for observation in seen]
    taken = np.array([8 if decision.exit else decision.operating_point for decision in decided])
    assert len(np.unique(taken)) > 3
    assert (taken == policy.logits(seen).argmax(1)).mean() > 0.999


def test_numpy_computes_policies_only():
    with pytest.raises(BadValueError, match=r"controller 'performance' by NumPy"):
        RuntimeController(Fixed("performance", 7), 8, compiled=False)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("controller", ["policy", "scripted"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused_by_name_and_the_request_goes_on(value, controller, compiled):
    if controller == "scripted" and not compiled:
        pytest.skip("not computed at all")
    chosen = Policy.load("default") if controller == "policy" else Scripted(5, 5)
    request = RuntimeController(chosen, 8, compiled=compiled).begin()
    bad = BLANK.copy()
    bad[3] = value
    with pytest.raises(BadValueError, match=rf"observation\[3\] is {value}"):
        request.decide(bad)
    request.decide(BLANK)
    assert (request.report()["decisions"], request.report()["failure"]) == (1, "")


@pytest.mark.parametrize(
    "observation", [np.zeros(15, np.float32), np.zeros((1, 16), np.float32), np.float32(0), [], None, "sixteen", [[0] * 16]]
)
def test_observations_of_another_shape_are_refused(observation):
    request = RuntimeController(Fixed("performance", 7), 8).begin()
    with pytest.raises(BadValueError, match=r"an observation of shape .*\(16,\)"):
        request.decide(observation)
    assert request.report()["decisions"] == 0


@pytest.mark.parametrize("kind", [list, lambda row: row.astype(np.float64), lambda row: np.stack([row, row], 1)[:, 0]])
def test_observations_of_other_types_are_the_same(kind):
    policy = Policy.load("default")
    one, other = RuntimeController(policy, 8).begin(), RuntimeController(policy, 8).begin()
    for observation in observations(50, 2):
        assert one.decide(kind(observation)) == other.decide(observation)


def test_a_policy_with_signals_reads_them():
    rng = np.random.default_rng(0)
    layers = ((rng.normal(0, 1, (9, 18)).astype(np.float32), np.zeros(9, np.float32)),)
    policy = Policy(layers, (9,), signals=("margin", "entropy"))
    request = RuntimeController(policy, 8).begin()
    for observation in rng.uniform(-1, 1, (50, 18)).astype(np.float32):
        decision, action = request.decide(observation), int(policy.logits(observation[None]).argmax())
        assert decision.exit == (action == 8)
        assert decision.exit or decision.operating_point == action
    with pytest.raises(BadValueError, match=r"\(18,\)"):
        request.decide(BLANK)


class Failing(Scripted):
    """Does what it is told, exceptions included."""

    def act(self, _):
        action = self.actions.pop(0)
        if isinstance(action, Exception):
            raise action
        return np.array([[action]])


@pytest.mark.parametrize(
    ("failure", "why"),
    [
        (RuntimeError("no luck"), "raised RuntimeError: no luck"),
        (np.nan, "raised ValueError"),
        (2.5, "raised BadValueError: action 2.5"),
        (9, "chose 9"),
        (-1, "chose -1"),
        (2**62, f"chose {2**62}"),
        ("up", "raised ValueError"),
        (None, "raised TypeError"),
    ],
)
def test_a_controller_that_fails_is_not_asked_again_in_this_request_and_logged_once(failure, why, caplog):
    wires = Wires()
    controller = RuntimeController(Failing(2, failure, 3, 1), 8, wires)
    with caplog.at_level(logging.WARNING, "clone_rl.runtime"):
        request = controller.begin("first")
        decided = [request.decide(BLANK) for _ in range(4)]
        assert decided == [Decision(2), Decision(7), Decision(7), Decision(7)]
        assert wires.told == [2, 7]
        report = request.report()
        assert report["failure"].startswith(why)
        assert (report["degraded"], report["decisions"], report["exits"]) == (3, 4, 0)
        assert len(caplog.records) == 1
        assert "request 'first': controller 'scripted'" in caplog.records[0].getMessage()
        # The next request is a fresh start.
        assert controller.begin("second").decide(BLANK) == Decision(3)
        assert controller.report()["failure"] == ""
        assert len(caplog.records) == 1


class WildRule(NamedTuple):
    unused: int


@rule(WildRule)
def _wild(self, observation, memory, action):
    action[0] = 99


class Wild(Counting):
    name = "wild"

    @property
    def rule(self):
        return WildRule(0)


def test_a_compiled_rule_that_chooses_what_is_no_action_degrades_too():
    request = RuntimeController(Wild(), 8).begin()
    assert [request.decide(BLANK) for _ in range(2)] == [Decision(7), Decision(7)]
    assert request.report()["failure"].startswith("chose 99")


class Slow(Scripted):
    def act(self, observations):
        time.sleep(0.05)
        return super().act(observations)


def test_a_controller_that_takes_too_long_degrades():
    request = RuntimeController(Slow(2, 2), 8, max_decision_s=0.02).begin()
    assert [request.decide(BLANK) for _ in range(2)] == [Decision(7), Decision(7)]
    assert "0.02" in request.report()["failure"]
    patient = RuntimeController(Slow(2, 2), 8, max_decision_s=10.0).begin()
    assert [patient.decide(BLANK) for _ in range(2)] == [Decision(2), Decision(2)]
    with pytest.raises(BadValueError, match="max_decision_s is 0"):
        RuntimeController(Slow(), 8, max_decision_s=0)


@pytest.mark.parametrize("cost", [LayerCost(-1.0, 0.0), LayerCost(float("nan"), 0.0), LayerCost(1.0, float("inf"))])
def test_a_cost_that_is_none_is_refused(cost):
    request = RuntimeController(Fixed("performance", 7), 8).begin()
    with pytest.raises(BadValueError, match="a cost of"):
        request.observe(cost)
    assert request.report()["latency_s"] == 0.0


def test_a_cost_of_the_emulator_is_one():
    request = RuntimeController(Fixed("performance", 7), 8).begin()
    request.observe(EmulatedCost(2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0))
    assert (request.report()["latency_s"], request.report()["energy_j"]) == (2.0, 7.0)


def test_each_thread_has_a_request_of_its_own():
    """Rules that count to three, in threads that take turns at every decision, each as if it were alone."""
    controller, turn, exits = RuntimeController(Counting(), points=8), threading.Barrier(4), {}

    def serve(number):
        controller.begin(f"request {number}")
        turn.wait()
        found = []
        for step in range(30):
            if step >= number:  # each one starts at another step of the others
                found.append(controller.decide(BLANK).exit)
                controller.observe(LayerCost(1.0, number))
            turn.wait()
        exits[number] = found, controller.report()

    threads = [threading.Thread(target=serve, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, (found, report) in exits.items():
        assert found == [step % 3 == 2 for step in range(30 - number)]
        assert (report["request"], report["decisions"], report["latency_s"]) == (f"request {number}", 30 - number, 30 - number)
        assert report["energy_j"] == number * (30 - number)


def test_requests_that_one_thread_interleaves_do_not_touch_each_other():
    controller = RuntimeController(Counting(), points=8)
    one, other = controller.begin("one"), controller.begin("other")
    exits = [(one.decide(BLANK).exit, other.decide(BLANK).exit, one.decide(BLANK).exit) for _ in range(6)]
    assert [pair for three in exits for pair in (three[0], three[2])] == [step % 3 == 2 for step in range(12)]
    assert [three[1] for three in exits] == [step % 3 == 2 for step in range(6)]
    assert controller.report()["request"] == "other"


def test_the_package_exports_it_and_stays_light():
    code = (
        "import sys, clone_rl; heavy = {'clone_rl.runtime', 'numba', 'torch', 'transformers', 'stable_baselines3'};"
        "print(heavy & set(sys.modules), clone_rl.RuntimeController.__name__, clone_rl.Actuator.__name__,"
        " {'torch', 'transformers', 'stable_baselines3'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set() RuntimeController Actuator set()\n"
    import clone_rl

    with pytest.raises(AttributeError, match="no attribute 'Runtime'"):
        clone_rl.Runtime  # noqa: B018
