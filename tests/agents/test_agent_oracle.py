"""The oracle against all action sequences of small instances, and against controllers on real requests."""

import dataclasses
import itertools
import re
from importlib import resources

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clone_rl.agents.clairvoyant import MOST_MACS, Stage, bound, plan, priced
from clone_rl.agents.heuristics import Fixed, Pace
from clone_rl.agents.request_oracle import CostPrices, Request, limit_prices, oracle, oracle_set, recorded_depths
from clone_rl.agents.rollout import run_requests
from clone_rl.envs.control import Control, load_control
from clone_rl.envs.scenario import Limits, Scenario
from clone_rl.envs.trace import HIDDEN, TraceSet
from clone_rl.errors import BadValueError
from clone_rl.hw_emulator import Workload

LOOSE = Limits(miss=0.05, disagree=0.05, dnll=0.05)
PRICES = CostPrices(late=3e-6, disagree=2e-6, dnll=1e-6)


def small_traces(layers, tokens, prompt, seed):
    """One request of a shallow model."""
    rng = np.random.default_rng(seed)
    exits, one = layers - 1, np.zeros(1, np.int64)
    shape = Workload(layers=layers, hidden_size=256, heads=4, kv_heads=2, ff_size=768)
    return TraceSet(
        card={"layers": layers, "kinds": ["any"], "shape": shape.as_dict()},
        offset=np.array([0, tokens]),
        prompt_tokens=np.array([prompt]),
        split=one,
        kind=one.copy(),
        sampled=one.copy(),
        signal=np.zeros((tokens, exits, 2), np.float32),
        agree=rng.integers(0, 2, (tokens, exits)).astype(np.float32),
        kl=rng.random((tokens, exits)).astype(np.float32),
        dnll=rng.normal(0.2, 0.5, (tokens, exits)).astype(np.float32),
        hidden=np.zeros((tokens, exits, len(HIDDEN)), np.float32),
        margin=np.zeros((tokens, layers), np.float32),
        entropy=np.zeros((tokens, layers), np.float32),
    )


@pytest.fixture(scope="session")
def small_chips(tmp_path_factory):
    """The default chip with three of its operating points, or two."""
    text = (resources.files("clone_rl.hw_emulator") / "chips" / "asic28-sram.toml").read_text(encoding="utf-8")
    head, *points = re.split(r"(?=\[\[operating_points\]\])", text)
    folder, chips = tmp_path_factory.mktemp("chips"), {}
    for kept in ((2, 4, 7), (2, 6)):
        path = folder / f"small{len(kept)}.toml"
        path.write_text(head + "".join(points[k] for k in kept), encoding="utf-8")
        chips[len(kept)] = str(path)
    return chips


def small_control(chip, layers=2, tokens=3, prompt=2, seed=0, busy=True, tpot_s=0.2e-3, ttft_s=0.8e-3, slack=1.0, **changes):
    """A scenario whose co-runner and deadlines matter within a handful of layers."""
    scenario = Scenario.load(
        {
            "name": "small",
            "chip": chip,
            "traces": "default",
            "slo": [{"name": "any", "ttft_s": ttft_s, "tpot_s": tpot_s}],
            "slack_low": slack,
            "slack_high": slack,
            "interference": {
                "slowdown": 1.8 if busy else 1.0, "slot_s": 50e-6, "mean_idle_s": 120e-6, "mean_busy_s": 90e-6,
            },
            **changes,
        }
    )  # fmt: skip
    return Control.of("layer", scenario, small_traces(layers, tokens, prompt, seed), "train")


def all_schedules(layers, points, tokens):
    """Every sequence of actions in force that a request can have."""

    def ways(depths):
        for depth in depths:
            for run in itertools.product(range(points), repeat=depth):
                yield (*run, points) if depth < layers else run

    per_token = [list(ways([layers]))] + [list(ways(range(1, layers + 1)))] * (tokens - 1)
    return [np.array(sum(way, ())) for way in itertools.product(*per_token)]


def least_cost(stage, request, prices, late_j, depths=None):
    """The best of them all, run by the kernel."""
    rules, traces = stage.control.world.rules[0], stage.control.traces
    layers, points, tokens = int(rules["layers"]), stage.control.points, int(np.diff(traces.offset)[0])
    schedules = all_schedules(layers, points, tokens)
    figures = stage.replay([request] * len(schedules), schedules)
    costs = priced(figures, prices, late_j)
    if depths is not None:
        fits = [list(depths) == depths_of(schedule, layers, points) for schedule in schedules]
        costs = np.where(fits, costs, np.inf)
    return float(costs.min())


def depths_of(schedule, layers, points):
    """Layers that each token runs."""
    found, depth = [], 0
    for action in schedule:
        depth += action < points
        if action == points or depth == layers:
            found.append(depth)
            depth = 0
    return found


sizes = st.sampled_from([(2, 3, 3), (2, 3, 2), (3, 2, 2), (3, 2, 3), (3, 3, 2)])  # layers, tokens, points
modes = st.fixed_dictionaries(
    {
        "busy": st.booleans(),
        "deadline": st.sampled_from(["carry-over", "per-token"]),
        "granularity": st.sampled_from(["layer", "layer", "token", "phase", "request", "group"]),
        "tpot_s": st.floats(0.06e-3, 0.5e-3),
        "ttft_s": st.floats(0.15e-3, 1.5e-3),
        "prompt": st.integers(1, 4),
        "switching": st.sampled_from(["", "ideal", "pmic"]),
    }
)
priced_costs = st.builds(
    CostPrices,
    st.one_of(st.just(np.inf), st.floats(0, 2e-5)),
    st.floats(0, 1e-5),
    st.floats(0, 1e-5),
)


def check_small(control, request, prices, depths=None, **changes):
    """The bound is below the best of all, and that is below the schedules of a few grids.

    Returns:
        What bound and schedule are off by, as shares of the energy; of a schedule, from what is best where everything is due
        three per cent earlier, as a grid cannot tell whether a deadline is met by less than a bucket.
    """
    stage = dataclasses.replace(Stage.of(control, "train"), **changes)
    costs = stage.costs(request, prices, depths)
    plans = [plan(costs, width_s) for width_s in ((1e-6, 0.7e-6, 1.3e-6) if costs.per_token else (2e-7, 3e-7))]
    tried = stage.replay([request] * len(plans), [each.schedule for each in plans])
    best = int(priced(tried, prices, costs.late_j).argmin())
    made, unit, got = plans[best], float(tried[best]["energy_j"]), float(priced(tried[best], prices, costs.late_j))
    least = least_cost(stage, request, prices, costs.late_j, depths)
    below = max(bound(costs, made.slopes, 5e-7), bound(costs, np.zeros(len(made.slopes)), 5e-7))
    assert below <= least * (1 + 1e-12) + 1e-15
    assert least <= got * (1 + 1e-12) + 1e-15
    hasty = dataclasses.replace(control.scenario, slack_low=0.97, slack_high=0.97)
    earlier = Stage.of(Control.of("layer", hasty, control.traces, "train"), "train")
    off = got - max(least, least_cost(earlier, request, prices, costs.late_j, depths))
    return (least - below) / unit, off / unit


@settings(max_examples=30)
@given(st.integers(0, 10**6), sizes, modes, priced_costs)
def test_on_small_instances_bound_and_schedule_enclose_the_best_of_all_sequences(small_chips, seed, size, mode, prices):
    layers, tokens, points = size
    groups = {"groups": 2} if mode["granularity"] == "group" else {}
    control = small_control(small_chips[points], layers, tokens, seed=seed, **mode, **groups)
    check_small(control, Request(0, seed), prices)


@pytest.mark.parametrize("deadline", ["carry-over", "per-token"])
def test_on_small_instances_the_schedule_is_the_best_but_for_one_in_twenty(small_chips, deadline):
    rng, off = np.random.default_rng(0), []
    for seed in range(24):
        due = {"tpot_s": rng.uniform(0.06e-3, 0.5e-3), "ttft_s": rng.uniform(0.15e-3, 1.5e-3)}
        control = small_control(small_chips[3], seed=seed, deadline=deadline, **due)
        late = np.inf if seed % 2 else rng.uniform(0, 2e-5)
        off.append(check_small(control, Request(0, seed), CostPrices(late, *rng.uniform(0, 1e-5, 2)))[1])
    assert np.mean(np.array(off) <= 0.01) >= 0.95


@pytest.mark.parametrize("busy", [False, True])
def test_on_small_instances_the_bound_is_tight(small_chips, busy):
    control = small_control(small_chips[3], busy=busy)
    prices = CostPrices(3e-6, 2e-7, 2e-7)
    gaps = [check_small(control, Request(0, seed), prices, wait_s=np.zeros(1))[0] for seed in range(30)]
    assert np.mean(gaps) < 0.01


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from(["propagate", "exact", "skip"]), st.data())
def test_with_given_exits_the_operating_points_are_the_best_for_them(small_chips, seed, kv, data):
    control = small_control(small_chips[2], 3, 3, seed=seed, kv=kv)
    depths = np.array([3, *(data.draw(st.integers(1, 3)) for _ in range(2))])
    assert check_small(control, Request(0, seed), CostPrices(3e-6), depths)[1] <= 0.01


def test_a_delayed_decision_costs_the_clairvoyant_only_the_first_point(small_chips):
    control = small_control(small_chips[3], decision_delay=1)
    stage, prices = Stage.of(control, "train"), CostPrices(3e-6)
    costs = stage.costs(Request(0, 5), prices)
    made = plan(costs, 2e-7)
    assert made.schedule[0] == control.points - 1
    rows = stage.replay([Request(0, 5)], [made.schedule])
    assert rows["late"][0] <= 3
    every = [s for s in all_schedules(2, 3, 3) if s[0] == 2]
    least = priced(stage.replay([Request(0, 5)] * len(every), every), prices, 0.0).min()
    assert bound(costs, made.slopes, 1e-6) <= least
    assert least <= priced(rows[0], prices, 0.0) <= 1.01 * least


def test_a_hot_die_that_lowers_points_by_itself_stays_above_the_bound(small_chips):
    control = small_control(small_chips[3], granularity="request", ambient_c=84.999)
    stage, prices = Stage.of(control, "train"), CostPrices(0.0)
    costs = stage.costs(Request(0, 1), prices)
    assert costs.changes[1].all()
    assert not costs.changes[0, 1:].any()
    cool = small_control(small_chips[3], granularity="request")
    assert not Stage.of(cool, "train").costs(Request(0, 1), prices).changes[1, 1:].any()
    assert bound(costs, np.zeros(3), 1e-6) <= least_cost(stage, Request(0, 1), prices, 0.0)


@dataclasses.dataclass(frozen=True)
class Restless:
    """Points and exits at random, for a price."""

    points: int
    exits: float
    seed: int
    macs: int = MOST_MACS
    probes: bool = True
    name: str = "restless"
    kind: str = "layer"

    def act(self, observations):
        noise = np.abs(np.sin(1e4 * observations.sum(1) + self.seed)) * 1e3 % 1.0
        return np.where(noise < self.exits, self.points, (noise * 1e3 % self.points).astype(np.int64))[:, None]

    def describe(self):
        return {}


def controllers(points):
    """Some that race, crawl, pace and gamble."""
    yield from (Fixed(f"fixed {k}", k) for k in (0, 2, points - 1))
    yield from (Pace(points, agree, kl, boost) for agree, kl, boost in ((2.0, 0.0, 0), (0.9, 0.3, 1), (0.5, 2.0, 0)))
    yield from (Restless(points, exits, seed) for exits, seed in ((0.02, 0), (0.3, 1), (0.8, 2)))


@pytest.mark.parametrize("scenario", ["default", "voice", "bursty", "many-chips", "slow-switching", "dram-wall", "hot"])
def test_no_controller_goes_below_the_bound(trace_folder, scenario):
    control = load_control("layer", scenario, "test", traces=trace_folder)
    documents, stage = control.traces.documents("test")[:4], Stage.of(control, "test")
    unit = float(control.prices.reference_j[0])
    for prices in (CostPrices(0.0), CostPrices(0.3 * unit, 0.2 * unit, 0.1 * unit), CostPrices(20 * unit, 5 * unit, unit)):
        costs = [stage.costs(Request(int(d), 3 + i), prices) for i, d in enumerate(documents)]
        plans = [plan(each) for each in costs]
        below = np.array([bound(c, made.slopes, 0.5 * made.width_s) for c, made in zip(costs, plans, strict=True)])
        figures = stage.replay([Request(int(d), 3 + i) for i, d in enumerate(documents)], [m.schedule for m in plans])
        assert (priced(figures, prices, 0.0) >= below).all()
        for controller in controllers(control.points):
            result = run_requests(control, controller, "test", documents, 3)
            assert (priced(result, prices, 0.0) >= below).all(), controller
            assert (priced(result, prices, 0.0) >= 0.995 * priced(figures, prices, 0.0)).all(), controller


def test_a_schedule_replays_to_its_figures_and_is_the_same_every_time(control):
    request = Request(int(control.traces.documents("test")[0]), 7)
    first, second = (oracle(control, request, PRICES) for _ in range(2))
    figures = Stage.of(control, "test").replay([request], [first.schedule])[0]
    assert (figures["energy_j"], figures["late"], figures["disagree"]) == (first.energy_j, first.late, first.disagree)
    assert (first.schedule == second.schedule).all()
    assert (first.energy_j, first.lower_bound_j) == (second.energy_j, second.lower_bound_j)
    assert first.lower_bound_j <= first.cost_j
    assert first.gap < 0.01


def test_by_default_deadlines_are_hard_and_quality_is_worth_what_the_limits_make_it(control):
    document = int(control.traces.documents("test")[1])
    found = oracle(control, (document, 2, 0))
    assert found.late == 0
    assert 0 <= found.lower_bound_j <= found.cost_j
    prices = limit_prices(control)
    assert found.prices.disagree == prices.disagree
    assert found.prices.late > prices.late


def test_the_oracle_takes_a_scenario_by_name(trace_folder):
    found = oracle(Scenario.load("default", traces=trace_folder), (21, 0, 0), PRICES)
    assert found.tokens >= 1
    assert found.energy_j > 0


@pytest.mark.parametrize("scenario", ["default", "voice"])
def test_a_set_is_within_its_limits_and_below_every_controller_that_is(trace_folder, scenario):
    control = load_control("layer", scenario, "train", traces=trace_folder)
    documents = control.traces.documents("train")[:5]
    found = oracle_set(control, "train", documents, 5, LOOSE)
    assert (found.means.miss, found.means.disagree) <= (LOOSE.miss, LOOSE.disagree)
    assert found.means.dnll <= LOOSE.dnll + 1e-12
    assert found.energy_j == pytest.approx(found.figures["energy_j"].sum())
    assert found.lower_bound_j <= found.energy_j
    assert found.gap < 0.03
    held = 0
    for controller in (Fixed("top", control.points - 1), Pace(control.points), Pace(control.points, boost=1)):
        result = run_requests(control, controller, "train", documents, 5)
        if result["late"].sum() <= LOOSE.miss * result["tokens"].sum():
            held += 1
            assert result["energy_j"].sum() > found.energy_j
    assert held


def test_tighter_limits_cost_more(control):
    documents = control.traces.documents("train")[:5]
    tight, loose = (oracle_set(control, "train", documents, 5, limits) for limits in (Limits(0.0, 0.0, 0.0), LOOSE))
    assert tight.lower_bound_j > loose.energy_j
    assert tight.figures["late"].sum() == tight.figures["disagree"].sum() == 0


def test_limits_that_no_schedule_holds_are_named_with_the_best(trace_folder):
    rushed = load_control("layer", traces=trace_folder, slack_low=0.01, slack_high=0.01)
    with pytest.raises(BadValueError, match=r"miss <= 0 .*the least found is 1\)"):
        oracle_set(rushed, "train", rushed.traces.documents("train")[:4], 0, Limits(0.0, 0.5, 1.0), rounds=2)


def test_with_a_policys_own_exits_only_the_points_are_bettered(control):
    documents = control.traces.documents("test")[:5]
    pace = Pace(control.points, 0.9, 0.3)
    result = run_requests(control, pace, "test", documents, 4)
    depths = recorded_depths(control, pace, "test", documents, 4)
    assert [each.sum() for each in depths] == result["depth"].tolist()
    miss = Limits(miss=result["late"].sum() / result["tokens"].sum(), disagree=0.0, dnll=0.0)
    found = oracle_set(control, "test", documents, 4, miss, depths)
    assert found.figures["depth"].tolist() == result["depth"].tolist()
    assert found.figures["disagree"].tolist() == result["disagree"].tolist()
    assert found.lower_bound_j <= found.energy_j < result["energy_j"].sum()


@pytest.mark.parametrize("kv", ["exact", "skip"])
def test_free_exits_with_keys_and_values_that_are_not_filled_are_refused(trace_folder, kv):
    control = load_control("layer", traces=trace_folder, kv=kv)
    with pytest.raises(BadValueError, match=kv):
        oracle(control, (21, 0, 0), PRICES)


@pytest.mark.parametrize("change", [(0, 9), (1, 0), (1, 11)])
def test_depths_that_no_controller_could_choose_are_refused(control, change):
    depths = np.full(np.diff(control.traces.offset)[21], 10)
    depths[change[0]] = change[1]
    with pytest.raises(BadValueError, match="depths"):
        oracle(control, (21, 0, 0), depths=depths)
    with pytest.raises(BadValueError, match="depths"):
        oracle(control, (21, 0, 0), depths=depths[:-1])


@pytest.mark.slow
def test_on_the_default_scenario_the_gap_is_below_one_percent():
    control = load_control("layer", "default", "test")
    documents = control.traces.documents("test")[::80]
    found = oracle_set(control, "test", documents, 0)
    assert found.gap < 0.01
