"""Controller and kernel in one compiled loop, against the same controller asked step by step."""

import itertools
import math
from typing import Any, NamedTuple

import numpy as np
import pytest

from clone_rl.agents.controller import RuleController
from clone_rl.agents.heuristics import Fixed, Pace
from clone_rl.agents.policy import Policy
from clone_rl.agents.rollout import charged_for, run_requests, stream_order
from clone_rl.agents.rule import decide, rule
from clone_rl.agents.runner import PolicyRunner
from clone_rl.envs import scenarios
from clone_rl.envs.control import load_control
from clone_rl.envs.rows import Rows
from clone_rl.errors import BadValueError


class AskedStepByStep:
    """The same controller without its rule: what a user's own object is to the package."""

    def __init__(self, controller):
        self.controller = controller
        self.name, self.kind, self.macs, self.probes = (
            controller.name,
            controller.kind,
            controller.macs,
            controller.probes,
        )
        self.scale = getattr(controller, "scale", None)

    def act(self, observations):
        return self.controller.act(observations)

    def describe(self):
        return {}


def network(heads, seed=0, widths=(16, 12, 10)):
    rng = np.random.default_rng(seed)
    sizes = [*widths, sum(heads)]
    layers = tuple(
        (rng.normal(0, 1, (b, a)).astype(np.float32), rng.normal(0, 0.3, b).astype(np.float32))
        for a, b in itertools.pairwise(sizes)
    )
    return Policy(layers, heads)


CONTROLLERS = {
    "performance": Fixed("performance", 7),
    "pace": Pace(8, 0.9, 0.3, boost=1, floor=1),
    "layer policy": network((9,)),
    "token policy": network((8, 8, 8, 8, 8, 5), seed=1),
    "one matrix": network((9,), widths=(16,)),
}


@pytest.mark.parametrize("name", CONTROLLERS)
@pytest.mark.parametrize("scenario", ["default", "bursty"])
def test_the_compiled_loop_equals_the_same_decisions_step_by_step(name, scenario, trace_folder):
    control = load_control("layer", scenario, traces=trace_folder)
    documents = np.array([3, 1, 1, 5])
    compiled = run_requests(control, CONTROLLERS[name], "train", documents, seed=11)
    stepped = run_requests(control, AskedStepByStep(CONTROLLERS[name]), "train", documents, seed=11)
    assert compiled.tobytes() == stepped.tobytes()
    assert (compiled["decisions"] >= compiled["tokens"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("scenario", scenarios())
def test_the_shipped_policy_runs_compiled_on_every_scenario(scenario):
    control = load_control("layer", scenario)
    documents = control.traces.documents("test")[:12]
    for controller in (Policy.load("default"), Pace(control.points, 0.95, 0.1)):
        if controller.name == "default" and control.points != controller.heads[0] - 1:
            continue
        compiled = run_requests(control, controller, "test", documents, seed=2)
        assert compiled.tobytes() == run_requests(control, AskedStepByStep(controller), "test", documents, seed=2).tobytes()


def test_a_policys_compiled_decisions_are_those_of_its_logits():
    policy = Policy.load("default")
    observations = np.random.default_rng(3).uniform(-1, 1, (100_000, 16)).astype(np.float32)
    assert (policy.act(observations)[:, 0] == policy.logits(observations).argmax(1)).mean() > 0.99999


def test_large_activations_saturate():
    first = (np.full((4, 16), 1e4, np.float32), np.zeros(4, np.float32))
    second = (np.array([[1, 0, 0, 0], [-1, 0, 0, 0]], np.float32), np.zeros(2, np.float32))
    policy = Policy((first, second), (2,))
    assert policy.act(np.ones((1, 16), np.float32)).item() == 0
    assert policy.act(-np.ones((1, 16), np.float32)).item() == 1


class AlternateRule(NamedTuple):
    top: int


@rule(AlternateRule)
def _alternate(self, observation, memory, action):
    memory[0] += 1.0
    action[0] = self.top if memory[0] % 2 == 1 else 0


class Alternate(RuleController):
    """Remembers how often it was asked in this request."""

    name, kind, macs, probes = "alternate", "layer", 0, False

    def __init__(self, top=7):
        self.top = top

    @property
    def rule(self) -> Any:
        return AlternateRule(self.top)

    def describe(self):
        return {}


def test_memory_begins_anew_with_every_request(trace_folder):
    control = load_control("layer", traces=trace_folder)
    figures = run_requests(control, Alternate(), "train", np.array([2, 2]), seed=0)
    alone = run_requests(control, Alternate(), "train", np.array([2]), seed=1)
    assert figures[1] == alone[0]
    # The first decision stays at the top point; every later one moves.
    assert figures["switches"].tolist() == (figures["decisions"] - 1).tolist()


def test_memory_of_a_batch_goes_on_from_decision_to_decision():
    controller, observations = Alternate(), np.zeros((3, 16), np.float32)
    memory = controller.memory(3)
    assert [controller.act(observations, memory)[:, 0].tolist() for _ in range(3)] == [[7] * 3, [0] * 3, [7] * 3]
    assert controller.act(observations)[:, 0].tolist() == [7] * 3


def test_an_action_outside_the_space_names_controller_action_and_request(trace_folder):
    control = load_control("layer", traces=trace_folder)
    with pytest.raises(BadValueError, match=r"'alternate' chose \[9\] in request 0"):
        run_requests(control, Alternate(top=9), "train", np.array([2]), seed=0)


def test_a_runner_can_be_run_again(trace_folder):
    control = load_control("layer", traces=trace_folder)
    pace = Pace(8, 0.9, 0.3)
    runner = PolicyRunner(charged_for(control, pace, "train"), pace)
    first, second = (runner.run(np.arange(4), seed=3) for _ in range(2))
    assert first.tobytes() == second.tobytes()
    assert runner.run(np.array([], np.int64), seed=3).shape == (0,)


def test_requests_are_the_same_in_whatever_order_they_come(trace_folder):
    control = load_control("layer", traces=trace_folder)
    runner = PolicyRunner(charged_for(control, Pace(8, 0.9, 0.3), "train"), Pace(8, 0.9, 0.3))
    assert runner.run(np.arange(4), 3).tobytes() == runner.run(np.arange(4), 3, np.array([2, 0, 3, 1])).tobytes()


def test_a_stream_mixes_types_and_is_the_same_again():
    order = stream_order(7, 200)
    assert sorted(order) == list(range(200))
    assert (order == stream_order(7, 200)).all() and (order != stream_order(8, 200)).any()
    kinds = np.repeat(np.arange(4), 50)[order]  # as a trace set has its documents: type by type
    assert 0.65 < (np.diff(kinds) != 0).mean() < 0.85
    assert len(stream_order(7, 0)) == 0


def test_decisions_are_counted_as_a_row_counts_them(trace_folder):
    control = charged_for(load_control("layer", traces=trace_folder), Fixed("f", 7), "train")
    rows, steps = Rows(control.world, 1), 0
    rows.reset(np.array([5]), np.array([0]), np.array([1]))
    while not rows.state["done"][0]:
        rows.step(np.array([[7]]))
        steps += 1
    assert PolicyRunner(control, Fixed("f", 7)).run(np.array([1]), seed=5)["decisions"].item() == steps


def test_a_rule_runs_in_compiled_code_only():
    with pytest.raises(NotImplementedError, match="act_on"):
        decide(AlternateRule(1), np.zeros(16, np.float32), np.zeros(1), np.zeros(1, np.int64))


def test_bars_beyond_what_is_shown_are_never_or_always_passed():
    assert Pace(8, agree_bar=1.0).rule.agree_bar == math.inf
    assert Pace(8, agree_bar=0.0).rule.agree_bar == -math.inf
    assert Pace(8, kl_bar=0.0).rule.kl_bar == -math.inf
