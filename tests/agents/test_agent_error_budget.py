"""The error budget: exits are paid for at what they come to, and the limits on quality hold whatever the controller does."""

from dataclasses import replace

import numpy as np
import pytest
from called import Called
from hypothesis import given
from hypothesis import strategies as st

from clone_rl.agents.budgeted import budgeted
from clone_rl.agents.controller import RuleController
from clone_rl.agents.error_budget import EARNED, SAVED, ErrorBudget, exit_costs
from clone_rl.agents.heuristics import Chance, Fixed, Pace
from clone_rl.agents.heuristics.exit_bars import Decoded
from clone_rl.agents.rollout import run_requests
from clone_rl.envs.control import load_control
from clone_rl.envs.observation import N_OBS, OBSERVATION
from clone_rl.envs.scenario import Limits
from clone_rl.errors import BadValueError

POINTS = 8


class Everywhere:
    """Leaves at every exit; decided outside compiled code."""

    name, kind, macs, probes = "everywhere", "layer", 0, True

    def act(self, observations):
        return np.full((len(observations), 1), POINTS)

    def describe(self):
        return {}


@pytest.fixture(scope="module")
def default():
    return load_control("layer", "default", "test")


def per_token(figures, name):
    return float(figures[name].sum() / figures["tokens"].sum())


def observed(layer, phase=1.0, agree=0.0, kl=0.0, point=3, layers=10):
    """An observation at a boundary."""
    observation = np.zeros(N_OBS, np.float32)
    for name, value in (("phase", phase), ("layer", layer / layers), ("agree", agree), ("kl", kl)):
        observation[OBSERVATION.index(name)] = value
    observation[OBSERVATION.index("point")] = point / (POINTS - 1)
    return observation


@pytest.mark.parametrize("bar", [0.7, 0.8, 0.9, 0.95])
@pytest.mark.parametrize(("split", "within"), [("train", 0.1), ("test", 0.25)])
def test_exits_cost_what_they_come_to(default, bar, split, within):
    """Of tokens that leave where they are sure for the first time; those of the test split were not counted."""
    decoded, costs = Decoded.of(default.traces, split), exit_costs(default.traces)
    depth = decoded.first(decoded.signal[..., 0] >= bar)
    leaving = np.flatnonzero(depth < decoded.layers)
    shown = default.traces.packed[0]
    documents = default.traces.documents(split)
    rows = np.concatenate([np.arange(default.traces.offset[d] + 1, default.traces.offset[d + 1]) for d in documents])
    readings = shown[rows[leaving], depth[leaving] - 1]
    bins = np.minimum(((readings.astype(float) + 1) / 2 * (24, 12)).astype(int), (23, 11))
    expected = costs[depth[leaving] - 1, bins[:, 0], bins[:, 1]].sum(0)
    came_to = [decoded.per_document(values, depth).sum() for values in (decoded.wrong, decoded.nats)]
    np.testing.assert_allclose(expected, came_to, rtol=within)


def test_what_was_sure_before_does_not_make_an_exit_look_cheap(traces):
    """Tokens that read higher at an earlier exit have left by then, and are not counted."""
    tokens, exits = len(traces.signal), traces.layers - 1
    easy = np.arange(tokens) % 2 == 0
    signal = np.zeros((tokens, exits, 2), np.float32)
    signal[..., 0], signal[..., 1] = np.where(easy[:, None], 0.9, 0.2), 0.01
    signal[~easy, 1:, 0], signal[easy, 1:, 0] = 0.7, 0.7  # all read alike from the second exit on
    agree = np.broadcast_to(easy[:, None], (tokens, exits)).astype(np.float32)
    made = replace(traces, signal=signal, agree=agree)
    costs = exit_costs(made)
    agreement, kl = int((np.log(0.7 / 0.3) / 6 + 1) / 2 * 24), int((np.log10(0.01) / 3 + 2) / 2 * 12)
    assert costs[1, agreement, kl, 0] > 0.95
    assert costs[0, int((np.log(0.9 / 0.1) / 6 + 1) / 2 * 24), kl, 0] < 0.05


def test_a_controller_that_reads_no_probe_pays_the_mean_of_an_exit(default):
    decoded, costs = Decoded.of(default.traces, "train"), exit_costs(default.traces, probes=False)
    assert (costs == costs[:, :1, :1]).all()
    np.testing.assert_allclose(costs[:, 0, 0, 0], decoded.wrong.mean(0), rtol=0.05)
    assert (np.diff(costs[:, 0, 0, 0]) < 0).all()


@given(
    st.lists(st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1), st.booleans()), min_size=9, max_size=9), max_size=40),
    st.floats(0.0, 0.2),
    st.floats(0.0, 0.2),
)
def test_no_stream_spends_more_than_it_earned_and_began_with(default, tokens, disagree, dnll):
    budget = ErrorBudget.of(default.traces, Limits(0.01, disagree, dnll))
    began, earned = budget.balance.copy(), budget.earned
    np.testing.assert_allclose(earned, EARNED * np.array([disagree, dnll]))
    np.testing.assert_allclose(began, SAVED / 2 * earned)
    wishes = []

    class Wishes(Everywhere):
        def act(self, observations):
            return np.full((len(observations), 1), POINTS if wishes.pop() else 2)

    controller, paid, refused = budgeted(Wishes(), budget, POINTS), np.zeros(2), 0
    for token, exits in enumerate(tokens, 1):
        wishes.append(False)
        before = budget.balance.copy()
        assert controller.act(observed(0)[None])[0, 0] == 2
        np.testing.assert_allclose(budget.balance, np.minimum(SAVED * earned, before + earned), rtol=1e-12)
        for layer, (agree, kl, wanted) in enumerate(exits, 1):
            wishes.append(wanted)
            before = budget.balance.copy()
            action = controller.act(observed(layer, agree=agree, kl=kl)[None])[0, 0]
            bins = tuple(min(n - 1, int((float(np.float32(x)) + 1) * 0.5 * n)) for x, n in ((agree, 24), (kl, 12)))
            cost = budget.cost[(layer - 1, *bins)]
            affordable = (cost <= before).all()
            assert action == (2 if not wanted else POINTS if affordable else 3)  # a refused exit goes on at the point in force
            refused += wanted and not affordable
            paid += before - budget.balance
            if action == POINTS:
                np.testing.assert_allclose(before - budget.balance, cost, rtol=1e-9, atol=1e-12)
                break
            assert (budget.balance == before).all()
        assert (budget.balance >= 0.0).all()
        assert (paid <= began + token * earned + 1e-9).all()
    assert budget.refused[0] == refused


@pytest.mark.parametrize(("split", "within"), [("train", 1.0), ("validation", 1.15), ("test", 1.0)])
@pytest.mark.parametrize("bar", [None, 0.5, 0.8, 0.9])
def test_the_limits_hold_whatever_the_controller_does(default, bar, split, within):
    """As far as a few thousand tokens tell; what exits cost was not learned from those of the test split."""
    made = Everywhere() if bar is None else Pace(POINTS, bar, 2.0)
    documents = default.traces.documents(split)
    free, held = (run_requests(default, made, split, documents, 0, shield=shield) for shield in (False, True))
    limits, tokens = default.scenario.limits, held["tokens"].sum()
    assert per_token(free, "disagree") > 1.5 * limits.disagree
    assert per_token(held, "disagree") <= within * limits.disagree
    assert per_token(held, "dnll") <= within * limits.dnll
    assert held["depth"].sum() < 0.7 * default.traces.layers * tokens  # and not by refusing them all


def test_an_adverse_stream_of_requests_holds_tight_limits_as_well(default):
    documents, limits = default.traces.documents("test"), Limits(0.01, 0.005, 0.005)
    held = run_requests(default, Pace(POINTS, 0.5, 2.0), "test", documents, 0, shield=True, limits=limits)
    assert per_token(held, "disagree") <= 0.0055
    assert per_token(held, "dnll") <= 0.0055


def test_who_spends_less_and_follows_no_balance_is_left_alone(default):
    documents, roomy = default.traces.documents("test")[:40], Limits(1.0, 1.0, 1.0)
    for controller in (Fixed("performance", POINTS - 1), Pace(POINTS, 0.97, 0.05)):
        own = run_requests(default, controller, "test", documents, 3, shield=True, limits=roomy)
        budget = ErrorBudget.of(default.traces, roomy, controller.probes)
        within = budgeted(controller, budget, POINTS)
        assert (within.name, within.macs, within.describe()) == (controller.name, controller.macs, controller.describe())
        np.testing.assert_array_equal(run_requests(default, within, "test", documents, 3, shield=True, limits=roomy), own)
        np.testing.assert_array_equal(
            run_requests(default, within, "test", documents, 3), run_requests(default, controller, "test", documents, 3)
        )


def test_compiled_and_called_controllers_are_refused_the_same_exits(default):
    pace = Pace(POINTS, 0.6, 2.0)

    one, other = (ErrorBudget.of(default.traces, Limits(0.01, 0.02, 0.02)) for _ in range(2))
    compiled, called = budgeted(pace, one, POINTS), budgeted(Called(pace), other, POINTS)
    assert isinstance(compiled, RuleController) and not isinstance(called, RuleController)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        for layer in range(10):
            observation = observed(layer, agree=rng.uniform(-1, 1), kl=rng.uniform(-1, 1))[None]
            actions = compiled.act(observation), called.act(observation)
            assert actions[0] == actions[1]
            refused += actions[0][0, 0] != pace.act(observation)[0, 0]
            if actions[0][0, 0] == POINTS:
                break
    np.testing.assert_array_equal(one.balance, other.balance)
    assert refused > 100


def test_one_budget_serves_requests_side_by_side(default):
    """What the first of five rows spend, the others lack."""
    budget = ErrorBudget.of(default.traces, Limits(0.01, 0.02, 0.02))
    sure = observed(1, agree=0.1, kl=0.5)
    cost = budget.cost[0, int(1.1 / 2 * 24), int(1.5 / 2 * 12)]
    budget.balance[:] = 2.5 * cost
    actions = budgeted(Everywhere(), budget, POINTS).act(np.stack([sure] * 5))
    assert actions[:, 0].tolist() == [POINTS, POINTS, 3, 3, 3]
    np.testing.assert_allclose(budget.balance, 0.5 * cost)
    assert budget.refused[0] == 3


@pytest.mark.parametrize("compiled", [False, True])
def test_prefill_and_first_layers_earn_and_never_leave(default, compiled):
    """Not even where a decision delay would have made an exit of it, one layer on."""
    budget = ErrorBudget.of(default.traces, Limits(0.01, 0.02, 0.02))
    budget.balance[:] = 0.0
    controller = budgeted(Chance(POINTS, 1.0) if compiled else Everywhere(), budget, POINTS)
    for tokens, phase in enumerate((0.0, 1.0), 1):
        action = controller.act(observed(0, phase=phase)[None])[0, 0]
        assert action != POINTS
        np.testing.assert_allclose(budget.balance, [0.02 * EARNED * tokens] * 2)
    assert controller.act(observed(4, phase=0.0, agree=1.0, kl=-1.0)[None])[0, 0] != POINTS
    np.testing.assert_allclose(budget.balance, [0.04 * EARNED] * 2)


class FirstLayer(Everywhere):
    """Asks to leave before it has seen anything."""

    def act(self, observations):
        first = observations[:, OBSERVATION.index("layer")] == 0.0
        return np.where(first, POINTS, POINTS - 1)[:, None]


@pytest.mark.parametrize("made", [FirstLayer(), Everywhere(), Pace(POINTS, 0.8, 2.0)], ids=["first", "everywhere", "pace"])
def test_a_decision_delay_is_no_way_around_it(made):
    delayed = load_control("layer", "default", "test", decision_delay=1)
    figures = run_requests(delayed, made, "test", delayed.traces.documents("test"), 0, shield=True)
    assert per_token(figures, "disagree") <= 0.02
    assert per_token(figures, "dnll") <= 0.02


@pytest.mark.parametrize("kind", [np.uint8, np.float32, float, int])
def test_an_exit_of_whatever_type_is_paid_for(default, kind):
    class Typed(Everywhere):
        def act(self, observations):
            return np.full(len(observations), kind(POINTS))

    budget = ErrorBudget.of(default.traces, Limits(0.01, 0.02, 0.02))
    controller, sure = budgeted(Typed(), budget, POINTS), observed(5, agree=0.5)[None]
    assert controller.act(sure)[0] == POINTS and (budget.balance < SAVED / 2 * budget.earned).all()
    budget.balance[:] = 0.0
    assert controller.act(sure)[0] == 3


def test_deeper_models_neither_leave_for_nothing_nor_reach_beyond_the_table(default):
    budget = ErrorBudget.of(default.traces, Limits(0.01, 1, 1))
    assert budget.balance.dtype == np.float64
    budget.balance[:] = 0.0
    controller = budgeted(Everywhere(), budget, POINTS)
    for layer in range(1, 28):
        assert controller.act(observed(layer, layers=28)[None])[0, 0] == 3
    assert (budget.balance == 0.0).all()
    budget.balance[:] = 1e-3
    assert controller.act(observed(27, agree=1.0, kl=-1.0, layers=28)[None])[0, 0] == POINTS
    assert (budget.balance > 0.0).all()


def test_what_is_no_action_is_left_to_those_who_say_so(default):
    class Broken(Everywhere):
        def act(self, observations):
            return np.array(["exit"] * len(observations))

    budget = ErrorBudget.of(default.traces, default.scenario.limits)
    assert budgeted(Broken(), budget, POINTS).act(observed(1)[None]).tolist() == ["exit"]


def test_no_budget_for_decisions_per_token_nor_without_training_documents(default):
    budget = ErrorBudget.of(default.traces, default.scenario.limits)
    by_token = Everywhere()
    by_token.kind = "token"
    with pytest.raises(BadValueError, match="'everywhere', which decides per token"):
        budgeted(by_token, budget, POINTS)
    only_test = replace(default.traces, split=np.full_like(default.traces.split, 2))
    with pytest.raises(BadValueError, match=r"no train or validation documents.*--split train"):
        exit_costs(only_test)
