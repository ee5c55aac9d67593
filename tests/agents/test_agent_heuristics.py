"""Every baseline's rule does what its docstring says, on observations made by hand."""

import dataclasses
import itertools
import math
import pkgutil
import subprocess
import sys

import numpy as np
import pytest

import clone_rl.agents
from clone_rl.agents.heuristics import Calm, Chance, EdgeBert, Ondemand, Slack, Static, Voltana, Ztt, baselines, find_baseline
from clone_rl.agents.heuristics.chip_table import ChipTable
from clone_rl.agents.heuristics.dqn import Learning, _Learner, rewards, train, transitions
from clone_rl.agents.heuristics.edgebert import ENTRIES, exit_table
from clone_rl.agents.heuristics.exit_bars import Decoded, fixed_depth
from clone_rl.agents.heuristics.learn_then_test import LEVEL, calibrate, hoeffding_bentkus
from clone_rl.agents.heuristics.ztt import STATE, Network
from clone_rl.agents.rollout import run_requests
from clone_rl.envs.observation import OBSERVATION
from clone_rl.envs.scenario import Limits
from clone_rl.errors import UnknownNameError

# Four points: a layer takes 8, 4, 2, 1 s, the head as long; ten layers.
TABLE = ChipTable(
    layer_s=np.array([[80.0, 40.0, 20.0, 10.0], [8.0, 4.0, 2.0, 1.0]]),
    head_s=np.array([8.0, 4.0, 2.0, 1.0]),
    frequency=np.array([0.125, 0.25, 0.5, 1.0]),
    power=np.array([0.02, 0.06, 0.25, 1.0]),
    layers=10,
    slowdown=1.5,
    ttft_s=1000.0,
    tpot_s=100.0,
)
LOOSE = Limits(miss=0.2, disagree=0.05, dnll=0.05)


def observe(**values):
    row = np.zeros((1, len(OBSERVATION)), np.float32)
    for name, value in {"phase": 1, "tpot": 1, "ttft": 1, **values}.items():
        row[0, OBSERVATION.index(name)] = value
    return row


class Asked:
    """A controller asked decision by decision within one request."""

    def __init__(self, controller):
        self.controller, self.memory = controller, controller.memory(1)
        self.name, self.kind = controller.name, controller.kind
        self.macs, self.probes = controller.macs, controller.probes

    def __call__(self, **values):
        return self.controller.act(observe(**values), self.memory).item()

    def act(self, observations):
        return self.controller.act(observations, self.memory)


def test_names_are_those_of_the_design():
    assert baselines() == [
        *("performance", "powersave", "ondemand", "static", "static-phase", "voltana", "slack", "pace"),
        *("edgebert", "calm-race", "calm-pace", "ztt", "random"),
    ]
    assert all(find_baseline(name).name == name and find_baseline(name).source for name in baselines())
    with pytest.raises(UnknownNameError, match="did you mean 'voltana'"):
        find_baseline("volta")


def test_the_functions_are_not_hidden_by_modules_and_need_no_torch():
    code = (
        "import sys, clone_rl.agents as a; import clone_rl.agents.tuning, clone_rl.agents.heuristics;"
        "assert a.baselines()[0] == 'performance' and callable(a.tune); assert 'torch' not in sys.modules;"
        "assert 'optuna' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    modules = {module.name for module in pkgutil.iter_modules(clone_rl.agents.__path__)}
    assert not modules & set(clone_rl.agents.__all__)


@pytest.mark.parametrize("name", baselines())
def test_the_compiled_loop_equals_the_same_decisions_step_by_step(name, control, monkeypatch):
    monkeypatch.setattr("clone_rl.agents.heuristics.dqn._UPDATES", 10)  # whatever it learns
    spec = find_baseline(name)
    controller = spec.make(control, spec.fit(control, LOOSE, 0, spec.start(control, LOOSE, 0)))
    documents = np.array([3])
    compiled = run_requests(control, controller, "train", documents, seed=11)
    assert compiled.tobytes() == run_requests(control, Asked(controller), "train", documents, seed=11).tobytes()


def test_the_chip_table_holds_what_the_emulator_says(control):
    table = ChipTable.of(control)
    assert table.layer_s.shape == (2, 8)
    assert (np.diff(table.layer_s) < 0).all()
    assert table.frequency[-1] == table.power[-1] == 1.0
    context = (
        int(control.traces.prompt_tokens[control.traces.documents("train")].mean())
        + int(control.traces.mean_tokens().mean()) // 2
    )
    assert table.layer_s[1, 3] == pytest.approx(control.emulator.layer(0, context=context, vf=3).latency_s)


def test_static_holds_its_points_and_leaves_at_its_depth():
    ask = Asked(Static(4, 10, prefill=3, decode=1, depth=6))
    assert [ask(phase=0, layer=k / 10) for k in range(10)] == [3] * 10
    assert [ask(layer=k / 10) for k in range(7)] == [1] * 6 + [4]
    full = Asked(Static(4, 10, 3, 1, 10))
    assert [full(layer=k / 10) for k in range(10)] == [1] * 10


def token(ask, layers=10, **values):
    return [ask(layer=k / 10, **values) for k in range(layers)]


def prefilled(controller):
    """Asked after a prompt, which every request begins with."""
    ask = Asked(controller)
    token(ask, phase=0)
    return ask


def test_ondemand_follows_utilisation_by_the_kernels_formula():
    ask = Asked(Ondemand(TABLE, up_threshold=80, window=1))
    assert token(ask, phase=0) == [3] * 10
    # At the top point a token takes 11 s of 100 s: load 0.11, so f = 0.125 + 0.11 * 0.875 = 0.22, nearest 0.25.
    assert token(ask) == [3] * 10
    assert token(ask) == [1] * 10
    # At point 1 it takes 44 s: load 0.44, f = 0.51, nearest 0.5.
    assert token(ask) == [2] * 10
    # With a target of 25 s, 22 s are 0.88, above the threshold; the target is looked at when the work is done.
    assert token(ask, tpot=0.25) == [1] * 10
    assert token(ask, tpot=0.25) == [3] * 10


def test_ondemand_samples_once_a_window_and_counts_the_co_runner():
    ask = prefilled(Ondemand(TABLE, up_threshold=80, window=3))
    assert [token(ask)[0] for _ in range(7)] == [3, 3, 3, 1, 1, 1, 2]
    busy = prefilled(Ondemand(TABLE, up_threshold=16, window=1))  # 11 s are 0.11, 16.5 s are 0.165
    assert [token(busy, busy=b)[0] for b in (0, 1, 1)] == [3, 1, 3]
    biased = prefilled(Ondemand(TABLE, up_threshold=10, window=1, bias=500))
    assert [token(biased)[0] for _ in range(2)] == [3, 2]  # half of the maximum


@pytest.mark.parametrize(("pressure", "margin", "floor", "point"), [
    (0.1, 0.0, 0, 0), (0.13, 0.0, 0, 1), (0.125, 0.0, 0, 0), (0.125, 0.1, 0, 1), (0.6, 0.0, 0, 3), (1.0, 0.0, 0, 3),
    (0.01, 0.0, 2, 2),
])  # fmt: skip
def test_voltana_takes_the_lowest_point_that_meets_the_due_time(pressure, margin, floor, point):
    assert Asked(Voltana(TABLE, margin, floor))(pressure=pressure) == point


@pytest.mark.parametrize("every_layer", [0, 1])
def test_voltana_decides_once_per_token_unless_told_otherwise(every_layer):
    ask = Asked(Voltana(TABLE, every_layer=every_layer))
    assert ask(layer=0.0, pressure=0.3) == 2
    assert ask(layer=0.1, pressure=0.9) == (3 if every_layer else 2)


def test_slack_slows_down_by_its_share_of_the_slack_and_no_more_than_that():
    # A target left (slack 0.5), a tenth of it needed: with alpha 0.12 there is 0.1 + 0.108 for it, so twice the time will do.
    assert Asked(Slack(TABLE, 0.12, 1.0))(slack=0.5, pressure=0.1) == 2
    assert Asked(Slack(TABLE, 0.12, 0.05))(slack=0.5, pressure=0.1) == 3  # no more than 0.05 targets
    assert Asked(Slack(TABLE, 0.0, 1.0))(slack=0.5, pressure=0.1) == 3
    assert Asked(Slack(TABLE, 1.0, 2.0))(slack=0.5, pressure=0.1) == 0
    assert Asked(Slack(TABLE, 1.0, 2.0))(slack=-0.1, pressure=1.0) == 3
    ask = Asked(Slack(TABLE, 1.0, 2.0))
    assert [ask(layer=k / 10, slack=0.5, pressure=p) for k, p in enumerate((0.3, 0.9))] == [2, 2]


def edgebert(**changes):
    settings = {"agree_bar": 0.95, "edges": (0.0,), "exits": (10, 4), "look": 2, "first": 3, **changes}
    return Asked(EdgeBert(TABLE, **settings))


def test_edgebert_predicts_the_exit_and_paces_for_what_is_left():
    # 8 layers and a head are left at layer 2, or 2 layers and a head if it is to leave after 4: a third of the work.
    assert [edgebert()(phase=0, layer=0, pressure=p) for p in (0.1, 0.6)] == [0, 3]
    ask = edgebert()
    assert [ask(layer=k / 10, pressure=0.7, agree=0.1) for k in range(5)] == [3, 3, 1, 1, 4]
    ask = edgebert()
    assert [ask(layer=k / 10, pressure=0.9, agree=-0.1) for k in range(5)] == [3, 3, 3, 3, 3]


def test_edgebert_leaves_earlier_where_the_signal_passes_and_holds_one_point():
    bar = math.log(0.95 / 0.05) / 6
    ask = edgebert()
    assert ask(layer=0.2, pressure=0.1, agree=-0.1) == 0
    assert ask(layer=0.3, pressure=0.9, agree=-0.1) == 0  # one V/f for the rest of the token
    assert ask(layer=0.4, pressure=0.9, agree=bar + 1e-6) == 4
    assert edgebert(floor=2)(layer=0.2, pressure=0.01, agree=-0.1) == 2
    assert edgebert()(layer=0.1, agree=1.0) == 3  # not before it has looked


def test_edgeberts_table_covers_the_share_that_it_was_asked_for(traces):
    decoded = Decoded.of(traces, "train")
    tables = {share: exit_table(decoded, 2, 0.4, share) for share in (0.5, 0.9, 1.0)}
    entry = np.searchsorted(tables[1.0][0], decoded.shown[:, 1], side="right")
    depth = np.maximum(decoded.first(decoded.shown >= 0.4), 2)
    for share, (edges, exits) in tables.items():
        assert len(edges) == ENTRIES - 1
        assert sorted(edges) == edges
        for number, predicted in enumerate(exits):
            mine = depth[entry == number]
            if len(mine):
                assert (mine <= predicted).mean() >= share
                assert (mine < predicted).mean() < share
    assert tables[1.0][1] >= tables[0.5][1]


def test_hoeffding_bentkus_is_a_valid_p_value():
    rng = np.random.default_rng(0)
    limit, number = 0.05, 200
    for draw in (lambda: rng.random((4000, number)) < limit, lambda: limit * 2 * rng.random((4000, number))):
        means = draw().mean(1)  # losses whose true mean is just the limit
        p_values = np.array([hoeffding_bentkus(float(mean), number, limit) for mean in means])
        for level in (0.01, 0.05, 0.2):
            assert (p_values <= level).mean() <= level
    assert hoeffding_bentkus(0.0, 100, 0.05) == pytest.approx(0.95**100)
    assert hoeffding_bentkus(0.01, 1000, 0.05) < 1e-8
    assert hoeffding_bentkus(0.06, 1000, 0.05) == 1.0
    assert (hoeffding_bentkus(0.3, 5, 1.0), hoeffding_bentkus(0.0, 5, 0.0)) == (0.0, 1.0)


def population(requests, seed):
    """Requests of four tokens whose confidence is right about itself, as decoded tokens of three layers."""
    rng = np.random.default_rng(seed)
    odds = rng.uniform(-2, 6, (requests * 3, 2))
    wrong = (rng.random(odds.shape) > 1 / (1 + np.exp(-odds))).astype(np.float32)
    shown = (odds / 6).astype(np.float32)
    owner = np.repeat(np.arange(requests), 3)
    signal = np.zeros((*odds.shape, 2), np.float32)
    return Decoded(3, signal, shown, wrong, 0.1 * wrong, owner, np.full(requests, 4.0))


def test_a_calibrated_bar_breaks_its_limit_no_more_often_than_stated():
    limits, world = Limits(disagree=0.05, dnll=1.0), population(200_000, 99)
    found = [calibrate(population(300, seed), limits) for seed in range(100)]
    risks = {}
    for odds in {certificate.odds for certificate in found}:
        depth = world.first(world.shown >= odds / 6)
        risks[odds] = float((world.per_document(world.wrong, depth) / 4).mean())
    broken = np.mean([risks[certificate.odds] > limits.disagree for certificate in found])
    assert broken <= LEVEL + 2 * math.sqrt(LEVEL * (1 - LEVEL) / len(found))
    assert np.mean([risks[certificate.odds] for certificate in found]) > 0.4 * limits.disagree  # and is not idle
    assert all(certificate.p_value <= LEVEL and certificate.certified > 10 for certificate in found)


def test_too_few_requests_certify_nothing_and_never_exit():
    certificate = calibrate(population(20, 0), Limits(disagree=0.02))
    assert certificate.certified == 0
    assert certificate.odds > 6
    assert Asked(Calm(4, certificate.odds))(layer=0.5, agree=1.0, kl=-1.0) != 4


def test_the_limit_on_dnll_keeps_a_bar_higher_than_certified():
    decoded = population(2000, 1)
    free, bound = (calibrate(decoded, Limits(disagree=0.05, dnll=dnll)) for dnll in (1.0, 0.002))
    assert bound.certified == free.certified
    assert bound.odds > free.odds


def test_calm_races_or_paces_and_leaves_on_confidence_alone():
    pace, race = Asked(Calm(4, 3.0)), Asked(Calm(4, 3.0, floor=3))
    assert pace(layer=0.5, agree=0.4, lowest_feasible=1 / 3) == 1
    assert race(layer=0.5, agree=0.4, lowest_feasible=1 / 3) == 3
    for ask in (pace, race):
        assert ask(layer=0.5, agree=0.51, kl=1.0) == 4
        assert ask(layer=0.0, agree=0.51) != 4
        assert ask(phase=0, layer=0.5, agree=0.51) != 4


def draws(controller, length=400, **values):
    ask = Asked(controller)
    return [ask(layer=0.5, context=0.25, **values) for _ in range(length)]


def test_random_is_the_same_for_the_same_request_and_differs_between_requests():
    controller = Chance(4, 0.2)
    assert draws(controller, ttft=0.7) == draws(controller, ttft=0.7)
    assert draws(controller, ttft=0.7) != draws(controller, ttft=0.6)
    assert draws(controller, ttft=0.7) != draws(dataclasses.replace(controller, seed=1), ttft=0.7)


def test_random_points_are_uniform_and_exits_as_frequent_as_told():
    seen = np.bincount(draws(Chance(4, 0.2, floor=1), 4000), minlength=5) / 4000
    assert seen[0] == 0
    assert seen[4] == pytest.approx(0.2, abs=0.02)
    assert seen[1:4] == pytest.approx([0.8 / 3] * 3, abs=0.02)
    assert max(draws(Chance(4, 1.0), phase=0)) == 3


def network(seed=0, points=4):
    rng = np.random.default_rng(seed)
    sizes = (len(STATE), 12, 12, points)
    weights = tuple(rng.normal(0, 1, (a, b)) for a, b in itertools.pairwise(sizes))
    return Network(weights, tuple(rng.normal(0, 1, b) for b in sizes[1:]))


def forward(net, state):
    for index, (weight, bias) in enumerate(zip(*net, strict=True)):
        state = state @ weight + bias
        state = np.maximum(state, 0) if index < 2 else state
    return state


def test_ztt_sets_the_clock_once_per_token_from_its_seven_figures():
    for seed in range(20):
        net = network(seed)
        ask = Asked(Ztt(TABLE, net, 6, {}))
        seen = {"point": 1.0, "busy": 0, "slack": 0.3, "headroom": 0.4}
        first = ask(layer=0.0, phase=0, **seen)
        state = [1.0, 1.0, 0.4, 1.0, 0.0, 0.3, 1.0]  # clock, power, temperature, rate (unknown: fastest), busy, slack, target
        assert first == forward(net, np.array(state)).argmax()
        assert [ask(layer=k / 10, phase=0, **seen) for k in range(1, 10)] == [first] * 9
        spent = 10 * TABLE.layer_s[0, first] + TABLE.head_s[first]
        seen |= {"point": first / 3, "busy": 1}
        second = ask(layer=0.0, **seen)
        rate = min(4.0, 1000.0 / spent) / 4
        state = [TABLE.frequency[first], TABLE.power[first], 0.4, rate, 1.0, 0.3, 1.0]
        assert second == forward(net, np.array(state, np.float64)).argmax()
        assert [ask(layer=k / 10, **seen) for k in range(1, 7)] == [second] * 5 + [4]


def test_ztts_reward_is_that_of_its_code():
    after = np.zeros((4, 7))
    after[:, 1], after[:, 2], after[:, 3] = 0.5, 1.0, 0.5  # half power, 100 K below throttling, twice the target rate
    after[1, 3] = 0.2 / 4  # a fifth of the target
    after[2, 2] = -0.01
    after[3, 1] = 0.1
    assert rewards(after, 0.1, 0.0) == pytest.approx([1.2 + 0.2, 0.2 + 0.2 + 0.2, 1.0 - 2.0 + 0.2, 1.2 + 1.0])
    assert rewards(after[:1], 0.0, 3.0) == pytest.approx([0.5 + 0.2])


def test_transitions_stay_within_requests():
    states = np.arange(6)[:, None] * np.ones(7)
    found = transitions(states, np.array([4 + 1, 2, 3, 4 + 0, 4 + 2, 1]), 4)
    assert found.states[:, 0].tolist() == [0, 1, 4]
    assert found.next_states[:, 0].tolist() == [1, 2, 5]
    assert found.actions.tolist() == [1, 2, 2]
    assert found.ends.tolist() == [False, True, True]


def test_the_gradient_is_that_of_the_squared_error():
    rng = np.random.default_rng(0)
    learner = _Learner((7, 5, 5, 3), rng)
    states, actions, target = rng.normal(0, 1, (20, 7)), rng.integers(0, 3, 20), rng.normal(0, 1, 20)

    def loss():
        return 0.5 * ((learner.layers(states)[-1][np.arange(20), actions] - target) ** 2).mean()

    for part, gradient in zip(learner.parts, learner.gradients(states, actions, target), strict=True):
        assert gradient.shape == part.shape
        for at in list(np.ndindex(part.shape))[:12]:
            part[at] += 1e-6
            above = loss()
            part[at] -= 2e-6
            below = loss()
            part[at] += 1e-6
            assert gradient[at] == pytest.approx((above - below) / 2e-6, abs=1e-7)
    before = loss()
    for _ in range(200):
        learner.descend(learner.gradients(states, actions, target), 1e-2)
    assert loss() < 0.1 * before


@pytest.mark.slow
def test_ztt_learns_the_same_from_the_same_seed_and_its_targets_differ(control):
    how = Learning(beta=0.02, margin=0.1, bandit=1, discount=0.9, learning_rate=1e-2)
    first, again = (train(control, 10, how, LOOSE, seed=3) for _ in range(2))
    assert all((a == b).all() for a, b in zip(first.weights, again.weights, strict=True))
    process = train(control, 10, how._replace(bandit=0), LOOSE, seed=3)
    other = train(control, 10, how, LOOSE, seed=4)
    for network_ in (process, other):
        assert any((a != b).any() for a, b in zip(first.weights, network_.weights, strict=True))
    # A reward of about 1 a token: worth 1 to a bandit, and several to a decision process.
    middle = np.array([0.5, 0.25, 0.5, 0.5, 0.0, 0.25, 0.5])
    assert forward(process, middle).max() > 2 * forward(first, middle).max()


@pytest.mark.parametrize("limits", [Limits(), LOOSE, Limits(1, 1, 1), Limits(1, 0, 0)], ids=str)
def test_the_fixed_depth_is_the_least_that_holds_the_limits(control, limits):
    depth, documents = fixed_depth(control.traces, "train", limits), control.traces.documents("train")
    for at in (depth, depth - 1):
        if at >= 1:
            figures = run_requests(control, Static(8, 10, 7, 7, at), "train", documents, 0)
            means = {name: figures[name].sum() / figures["tokens"].sum() for name in ("disagree", "dnll")}
            if at == depth:
                assert means["disagree"] <= limits.disagree
                assert means["dnll"] <= limits.dnll
