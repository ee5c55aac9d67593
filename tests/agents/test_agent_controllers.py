"""Baselines, limits, paired rollouts and tuning."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clone_rl.agents.heuristics import Fixed, Pace, tune_pace
from clone_rl.agents.heuristics.exit_bars import exit_bars
from clone_rl.agents.rollout import charged_for, run_requests
from clone_rl.envs.control import load_control
from clone_rl.envs.observation import OBSERVATION
from clone_rl.envs.scenario import Limits
from clone_rl.errors import BadValueError, UnknownNameError

LOOSE = Limits(miss=0.2, disagree=0.05, dnll=0.05)


@dataclasses.dataclass(frozen=True)
class TokenFixed:
    """A constant action of token control, priced and probing; a user's own object, without a rule."""

    name: str
    point: int = 7
    action: tuple[int, ...] = (7,) * 5 + (2,)
    kind = "token"
    macs = 900
    probes = True

    def act(self, observations):
        return np.tile(self.action, (len(observations), 1))

    def describe(self):
        return {}


def observe(**values):
    row = np.zeros((1, len(OBSERVATION)), np.float32)
    for name, value in {"phase": 1, "layer": 0.5, **values}.items():
        row[0, OBSERVATION.index(name)] = value
    return row


@given(st.integers(0, 2**32 - 1), st.floats(1.01, 10), st.floats(0, 2))
def test_pace_never_exits_with_a_bar_above_one(seed, agree_bar, kl_bar):
    observations = np.random.default_rng(seed).uniform(-1, 1, (64, len(OBSERVATION))).astype(np.float32)
    observations[:8] = 1.0
    actions = Pace(8, agree_bar, kl_bar).act(observations)
    assert actions.shape == (64, 1)
    assert (actions >= 0).all()
    assert (actions <= 7).all()


@pytest.mark.parametrize(
    ("agree", "kl", "values", "action"),
    [
        (0.95, 0.05, {}, 8),
        (0.85, 0.05, {}, 3),
        (0.95, 0.25, {}, 3),
        (0.95, 0.05, {"layer": 0.0}, 3),
        (0.95, 0.05, {"phase": 0.0}, 3),
    ],
)
def test_pace_exits_where_both_bars_are_passed_and_an_exit_is_allowed(agree, kl, values, action):
    pace = Pace(8, agree_bar=0.9, kl_bar=0.2)
    seen = {"agree": np.log(agree / (1 - agree)) / 6, "kl": np.log10(kl) / 3 + 1, **values}
    assert pace.act(observe(lowest_feasible=3 / 7, **seen)).item() == action


@pytest.mark.parametrize(
    ("lowest", "boost", "floor", "point"), [(3, 0, 0, 3), (3, 2, 0, 5), (7, 2, 0, 7), (0, 0, 2, 2), (6, 0, 2, 6)]
)
def test_pace_takes_the_lowest_feasible_point_with_its_margin_and_floor(lowest, boost, floor, point):
    assert Pace(8, boost=boost, floor=floor).act(observe(lowest_feasible=lowest / 7)).item() == point


@pytest.mark.parametrize("point", [0, 7])
def test_fixed_never_leaves_its_point(point):
    actions = Fixed("fixed", point).act(np.ones((5, len(OBSERVATION)), np.float32))
    assert actions.tolist() == [[point]] * 5


@pytest.mark.parametrize("name", ["miss", "disagree", "dnll"])
@pytest.mark.parametrize("value", [-1e-9, float("nan"), float("-inf")])
def test_limits_are_not_negative_and_numbers(name, value):
    with pytest.raises(BadValueError, match=name):
        Limits(**{name: value})


def test_a_limit_of_zero_is_a_limit():
    assert Limits(0, 0, 0).miss == 0


def test_requests_are_paired_and_in_the_order_of_the_documents(control):
    documents = np.array([27, 21, 21, 29, 25])
    slow = run_requests(control, Fixed("powersave", 1), "test", documents, seed=9)
    fast = run_requests(control, Fixed("performance", 7), "test", documents, seed=9)
    assert slow["document"].tolist() == fast["document"].tolist() == documents.tolist()
    for name in ("slo", "tokens"):
        assert (slow[name] == fast[name]).all()
    assert (slow["ttft_s"] > fast["ttft_s"]).all()
    assert len(set(run_requests(control, Fixed("f", 7), "test", np.repeat(27, 20), seed=9)["slo"])) > 1


def test_a_request_does_not_depend_on_its_neighbours(control):
    together = run_requests(control, Pace(8), "test", np.array([27, 21, 29]), seed=4)
    alone = run_requests(control, Pace(8), "test", np.array([29]), seed=6)
    assert together[2] == alone[0]


def test_the_same_seed_gives_the_same_figures_and_another_does_not(control):
    runs = [run_requests(control, Pace(8, 0.9, 0.3), "train", np.arange(16), seed) for seed in (1, 1, 2)]
    assert runs[0].tobytes() == runs[1].tobytes()
    assert (runs[0]["energy_j"] != runs[2]["energy_j"]).any()


def test_controllers_pay_for_what_they_use_and_for_nothing_else(control):
    documents = control.traces.documents("test")
    fixed = run_requests(control, Fixed("performance", 7), "test", documents, 0)
    assert not fixed["probe_j"].any()
    assert not fixed["policy_j"].any()
    looks = run_requests(control, Pace(8), "test", documents, 0)
    assert (looks["probe_j"] > 0).all()
    assert (looks["policy_j"] > 0).all()


def test_a_probing_controller_of_token_control_pays_as_well(control):
    token = run_requests(control, TokenFixed("token", 0), "test", control.traces.documents("test"), 0)
    assert (token["policy_j"] > 0).all()
    assert (token["depth"] == 10 + 6 * (token["tokens"] - 1)).all()
    assert (token["probe_j"][token["tokens"] > 2] > 0).all()


def test_a_scenarios_own_overheads_give_way_to_the_controllers(trace_folder):
    heavy = load_control("layer", traces=trace_folder, policy_macs=10**6, probe=True)
    own = charged_for(heavy, Fixed("performance", 7), "test")
    assert own.scenario.policy_macs == 0
    assert own.scenario.probe is False
    assert (own.world.documents == heavy.traces.documents("test")).all()


def test_actions_that_do_not_fit_the_chip_are_refused(control):
    with pytest.raises(BadValueError, match="0 to 8"):
        run_requests(control, Fixed("beyond", 9), "test", np.array([21]), 0)
    with pytest.raises(UnknownNameError, match="split"):
        run_requests(control, Fixed("performance", 7), "tests", np.array([21]), 0)


def exit_means(traces, split, agree_bar, kl_bar):
    """Disagreement, dNLL and depth per token of exiting at these bars, token by token."""
    wrong = worse = depth = tokens = 0
    for document in traces.documents(split):
        first, after = traces.offset[document], traces.offset[document + 1]
        depth += traces.layers
        tokens += after - first
        for row in range(first + 1, after):
            for layer in range(traces.layers - 1):
                if traces.signal[row, layer, 0] >= np.float32(agree_bar) and traces.signal[row, layer, 1] <= np.float32(
                    kl_bar
                ):
                    wrong += 1 - float(traces.agree[row, layer])
                    worse += float(traces.dnll[row, layer])
                    depth += layer + 1
                    break
            else:
                depth += traces.layers
    return wrong / tokens, worse / tokens, depth / tokens


@pytest.mark.parametrize("limits", [Limits(), LOOSE, Limits(1, 0.05, 1e9), Limits(1, 1, 0.01), Limits(0, 0, 0)], ids=str)
@pytest.mark.parametrize("split", ["train", "test"])
def test_exit_bars_hold_the_limits_on_their_split(control, limits, split):
    wrong, worse, _ = exit_means(control.traces, split, *exit_bars(control.traces, split, limits))
    assert wrong <= limits.disagree
    assert worse <= limits.dnll


@pytest.mark.parametrize("bars", [(0.9, 0.3), (0.7, 0.05), (0.995, 2.0), (0.6, 0.9)])
def test_pace_leaves_where_the_tuning_said_it_would(control, bars):
    documents = control.traces.documents("train")
    result = run_requests(control, Pace(8, *bars), "train", documents, 0)
    wrong, worse, depth = exit_means(control.traces, "train", *bars)
    assert result["depth"].sum() == pytest.approx(depth * result["tokens"].sum())
    assert result["disagree"].sum() == pytest.approx(wrong * result["tokens"].sum())
    assert result["dnll"].sum() == pytest.approx(worse * result["tokens"].sum(), rel=1e-5)


def test_looser_limits_leave_earlier(control):
    depths = [
        exit_means(control.traces, "train", *exit_bars(control.traces, "train", Limits(1, x, x)))[2]
        for x in (0.0, 0.02, 0.05, 0.2, 1.0)
    ]
    assert depths == sorted(depths, reverse=True)
    assert depths[0] > depths[2] > depths[-1]


def test_without_a_good_exit_pace_never_exits(traces):
    useless = dataclasses.replace(traces, agree=np.zeros_like(traces.agree), dnll=np.ones_like(traces.dnll))
    assert exit_bars(useless, "train", Limits()) == (2.0, 0.0)


def test_tuned_pacing_is_within_limits_and_beats_the_governors(control):
    pace, documents = tune_pace(control, LOOSE, seed=3), control.traces.documents("train")
    tuned, top = (run_requests(control, c, "train", documents, 3) for c in (pace, Fixed("performance", 7)))
    for name, limit in (("late", LOOSE.miss), ("disagree", LOOSE.disagree), ("dnll", LOOSE.dnll)):
        assert tuned[name].sum() / tuned["tokens"].sum() <= limit, name
    assert tuned["energy_j"].sum() < 0.9 * top["energy_j"].sum()
    assert tuned["depth"].sum() < 10 * tuned["tokens"].sum()


def test_tuning_without_a_feasible_setting_still_gives_the_fewest_misses(trace_folder):
    rushed = load_control("layer", traces=trace_folder, slack_low=0.01, slack_high=0.01)
    pace, documents = tune_pace(rushed, Limits(0, 0, 0)), rushed.traces.documents("train")
    missed = run_requests(rushed, pace, "train", documents, 0)["late"].sum()
    assert missed <= run_requests(rushed, Pace(8), "train", documents, 0)["late"].sum()
