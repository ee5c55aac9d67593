"""Controllers within an error budget: a policy follows the balance, and exits that a deadline forbids are given back."""

from dataclasses import replace

import numpy as np
import pytest
from called import Called

from clone_rl.agents.budgeted import LEAN, Budgeted, budgeted
from clone_rl.agents.error_budget import SAVED, ErrorBudget
from clone_rl.agents.heuristics import Pace
from clone_rl.agents.policy import Policy
from clone_rl.agents.rollout import charged_for, run_requests
from clone_rl.agents.runner import PolicyRunner
from clone_rl.envs.control import load_control
from clone_rl.envs.observation import N_OBS, OBSERVATION
from clone_rl.envs.scenario import Limits, ServiceLevel
from clone_rl.envs.shield_tables import Shield
from clone_rl.runtime import LayerCost, RuntimeController, emulated_shield

POINTS = 8
COLUMN = {name: index for index, name in enumerate(OBSERVATION)}


@pytest.fixture(scope="module")
def default():
    return load_control("layer", "default", "test")


@pytest.fixture(scope="module")
def policy():
    return Policy.load("default")


def seen(rows, layer=4, seed=1):
    """Observations at one exit."""
    observations = np.random.default_rng(seed).uniform(-1, 1, (rows, N_OBS)).astype(np.float32)
    observations[:, COLUMN["layer"]], observations[:, COLUMN["phase"]] = layer / 10, 1.0
    observations[:, COLUMN["point"]] = 3 / 7
    return observations


def costs(budget, observations, layer=4):
    """What leaving costs there, in disagreements and nats."""
    agree = np.minimum(23, ((observations[:, COLUMN["agree"]].astype(float) + 1) / 2 * 24).astype(int))
    kl = np.minimum(11, ((observations[:, COLUMN["kl"]].astype(float) + 1) / 2 * 12).astype(int))
    return budget.cost[layer - 1, agree, kl]


@pytest.mark.parametrize("left", [(0.5, 0.5), (1.0, 1.0), (0.9, 0.9), (0.8, 0.2), (0.2, 0.8), (0.3, 0.3)])
def test_a_policy_leans_by_what_is_left_of_what_an_exit_costs(default, policy, left):
    """Each of both weighs as much as it is of the cost."""
    observations, found, expected = seen(2000), [], []
    for row in observations:
        budget = ErrorBudget.of(default.traces, Limits(0.01, 0.02, 0.03))
        budget.balance[:] = SAVED * budget.earned * left
        affordable = (costs(budget, row[None])[0] <= budget.balance).all()
        weights = costs(budget, row[None])[0] / budget.earned + 1e-4
        logits = policy.logits(row[None])[0].astype(float)
        logits[POINTS] += LEAN * (2.0 * np.average(left, weights=weights) - 1.0)
        action = int(logits.argmax())
        expected.append(action if action < POINTS or affordable else 3)
        found.append(int(budgeted(policy, budget, POINTS).act(row[None])[0, 0]))
    assert np.mean(np.array(found) == expected) > 0.998
    own = policy.act(observations)[:, 0]
    if left == (0.5, 0.5):
        assert (own == found).mean() > 0.998
    if min(left) > 0.5:
        assert (np.array(found) == POINTS).sum() > 1.05 * (own == POINTS).sum() > 100
    if max(left) < 0.5:
        assert (np.array(found) == POINTS).sum() < 0.95 * (own == POINTS).sum()


def test_what_is_no_exit_is_decided_as_without_a_budget(default, policy):
    observations = np.random.default_rng(2).uniform(-1, 1, (500, N_OBS)).astype(np.float32)
    observations[:250, COLUMN["layer"]] = 0.0
    observations[250:, COLUMN["phase"]] = 0.0
    own = policy.act(observations)[:, 0]
    for left in (0.0, 1.0):
        budget = ErrorBudget.of(default.traces, default.scenario.limits)
        budget.balance[:] = SAVED * budget.earned * left
        found = budgeted(policy, budget, POINTS).act(observations)[:, 0]
        assert (found == own)[own < POINTS].all()


@pytest.mark.parametrize(
    ("limits", "sign"), [(Limits(1, np.inf, np.inf), 1), (Limits(1, 0.0, 0.0), -1)], ids=["everything", "nothing"]
)
def test_limits_of_everything_and_of_nothing_are_followed_to_their_end(default, policy, limits, sign):
    budget, observations = ErrorBudget.of(default.traces, limits), seen(1000)
    logits = policy.logits(observations).astype(float)
    logits[:, POINTS] += LEAN * sign
    wanted, found = logits.argmax(1), budgeted(policy, budget, POINTS).act(observations)[:, 0]
    stays = wanted < POINTS
    assert (found == wanted)[stays].mean() > 0.998
    assert (found[~stays] == POINTS).all() == (sign > 0)


def test_without_a_lean_a_policy_decides_as_it_does_by_itself(default, policy):
    budget, observations = ErrorBudget.of(default.traces, Limits(1, 1, 1)), seen(1000)
    np.testing.assert_array_equal(budgeted(policy, budget, POINTS, lean=0.0).act(observations), policy.act(observations))


def test_what_a_policy_would_leave_unspent_is_spent(default, policy):
    """Where only the loosest class comes, exits are worth little: by itself the policy takes a good half of what it may."""
    loosest = max(default.scenario.slo, key=lambda level: level.tpot_s)
    alone = default.serving("layer", replace(default.scenario, slo=(loosest,)), "test")
    own, documents = charged_for(alone, policy, "test"), alone.traces.documents("test")

    def run(lean):
        budget = ErrorBudget.of(own.traces, own.scenario.limits)
        return PolicyRunner(own, budgeted(policy, budget, POINTS, lean), Shield.of(own)).run(documents, 0)

    still, follows = run(0.0), run(LEAN)
    tokens = still["tokens"].sum()
    assert follows["energy_j"].sum() < 0.999 * still["energy_j"].sum()
    assert still["disagree"].sum() < 0.012 * tokens
    assert 0.012 * tokens < follows["disagree"].sum() <= 0.02 * tokens
    assert follows["dnll"].sum() <= 0.02 * tokens
    assert follows["late"].sum() == 0


@pytest.mark.parametrize("called", [False, True])
def test_exits_that_a_deadline_forbids_cost_nothing(called, monkeypatch):
    """Where deadlines are tight, what was spent is what the exits that were taken came to, not twice as much."""
    tight = load_control("layer", "bursty", "test", slack_low=0.5, slack_high=0.5)
    budgets, of = [], ErrorBudget.of.__func__

    def kept(cls, *args):
        budgets.append(of(cls, *args))
        return budgets[-1]

    monkeypatch.setattr(ErrorBudget, "of", classmethod(kept))
    pace = Pace(POINTS, 0.9, 2.0)
    controller = Called(pace) if called else pace
    figures = run_requests(tight, controller, "test", tight.traces.documents("test"), 0, shield=True)
    (budget,) = budgets
    spent = 0.5 * SAVED * budget.earned + figures["tokens"].sum() * budget.earned - budget.balance
    assert budget.refused[0] > 1000
    assert 0.7 * spent[0] < figures["disagree"].sum() < 1.25 * spent[0]


def test_a_loop_of_its_own_gets_back_what_a_deadline_forbids(default):
    control = charged_for(default, Pace(POINTS, 0.5, 2.0), "test")
    budget = ErrorBudget.of(control.traces, control.scenario.limits)
    controller = budgeted(Pace(POINTS, 0.5, 2.0), budget, POINTS)
    assert isinstance(controller, Budgeted)
    shield = emulated_shield(control.scenario, control.emulator, prompt_tokens=64, max_new_tokens=64)
    runtime = RuntimeController(controller, POINTS, shield=shield)
    request = runtime.begin("r", ServiceLevel("s", ttft_s=5e-3, tpot_s=1e-9), prompt_tokens=8, max_new_tokens=60)
    observation = np.zeros(N_OBS, np.float32)
    exits = 0
    for token in range(3):
        for layer in range(10):
            observation[COLUMN["phase"]], observation[COLUMN["layer"]] = float(token > 0), layer / 10
            observation[COLUMN["agree"]], observation[COLUMN["kl"]] = 0.5, -0.5
            before = budget.balance.copy()
            decision = request.decide(observation)
            request.observe(LayerCost(1e-4))
            exits += decision.exit
            if layer:
                assert (budget.balance == before).all() != decision.exit
            if decision.exit:
                break
    assert request.report()["overruled"] > 0 and budget.refused[0] == 0


def test_a_loop_of_its_own_is_asked_as_a_batch_is(default, policy):
    budgets = [ErrorBudget.of(default.traces, default.scenario.limits) for _ in range(2)]
    batch, runtime = budgeted(policy, budgets[0], POINTS), RuntimeController(budgeted(policy, budgets[1], POINTS), POINTS)
    request, rng, exits = runtime.begin("r"), np.random.default_rng(4), 0
    for step in range(600):
        row = rng.uniform(-1, 1, N_OBS).astype(np.float32)
        row[COLUMN["layer"]], row[COLUMN["phase"]], row[COLUMN["point"]] = step % 10 / 10, 1.0, 3 / 7
        action, decision = batch.act(row[None])[0, 0], request.decide(row)
        assert decision.exit == (action == POINTS) and (decision.exit or decision.operating_point == action)
        exits += decision.exit
    np.testing.assert_array_equal(budgets[0].balance, budgets[1].balance)
    assert exits > 20 and (budgets[0].balance < 0.5 * SAVED * budgets[0].earned).any()
