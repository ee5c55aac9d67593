"""Single rules of the decision process, each by itself."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clone_rl.envs.control import load_control
from clone_rl.envs.observation import OBSERVATION
from clone_rl.envs.rows import Rows
from clone_rl.envs.scenario import Interference
from clone_rl.envs.signals import EXTRA_SIGNALS
from clone_rl.envs.state import ENERGY_TERMS
from clone_rl.hw_emulator.ledger import KV

TOP, EXIT = 7, 8


def begin(control, seed=0, count=1):
    rows = Rows(control.world, count, len(control.heads))
    rows.reset(seed + np.arange(count), np.zeros(count, np.int64))
    return rows


def play(rows, *actions):
    out = None
    for action in actions:
        out = rows.step(np.full((rows.count, 1), action))
    return out


@pytest.mark.parametrize("before", [(), (3, 3), (2,) * 10], ids=["first layer", "inside prefill", "before layer 1 of a token"])
def test_an_exit_that_is_not_allowed_counts_as_the_current_point(control, before):
    asked, current = begin(control), begin(control)
    for rows in (asked, current):
        play(rows, *before)
    at = int(current.state[0]["point"])
    assert play(asked, EXIT).reward == play(current, at).reward
    assert asked.state.tobytes() == current.state.tobytes()


def test_an_exit_after_layer_one_emits_the_token(control):
    rows = begin(control)
    play(rows, *[5] * 10, 5, EXIT)
    s = rows.state[0]
    assert (s["token"], s["layer"], s["depth"]) == (2, 0, 11)
    assert s["kv_fill_j"] > 0


def test_the_head_and_the_cache_fill_run_at_the_point_of_the_last_layer(control):
    rows = begin(control)
    play(rows, *[5] * 10, 2, EXIT)
    assert rows.state[0]["point"] == 2


@given(
    st.integers(0, 10**6),
    st.sampled_from(["layer", "token"]),
    st.booleans(),
    st.sampled_from([0, 1]),
    st.sampled_from(KV),
    st.lists(st.sampled_from(EXTRA_SIGNALS), unique=True),
)
def test_observations_stay_in_their_bounds_and_energy_adds_up(trace_folder, seed, kind, probe, delay, kv, signals):
    rules = {"probe": probe, "decision_delay": delay, "policy_macs": 900, "kv": kv, "signals": tuple(signals)}
    control = load_control(kind, traces=trace_folder, interference=Interference(20.0, 1e-4, 1e-3, 1e-3), **rules)
    rows, rng = begin(control, seed, 8), np.random.default_rng(seed)
    rewards, costs = np.zeros(8), np.zeros((8, 3))
    while True:
        out = rows.step(rng.integers(0, control.heads, (8, len(control.heads))))
        assert out.observation.shape == (8, 16 + len(signals))
        assert (np.abs(out.observation) <= 1).all()
        assert (rows.state["due_s"] > 0).all()
        rewards += out.reward
        costs += out.amounts[:, :3]
        if out.terminated.all():
            break
    result = rows.figures()
    np.testing.assert_allclose(result["energy_j"], sum(result[name] for name in ENERGY_TERMS), rtol=1e-9)
    np.testing.assert_allclose(rewards, sum(result[f"reward_{name}"] for name in ("energy", "late", "disagree", "kl")))
    np.testing.assert_allclose(costs, np.stack([result[name] for name in ("late", "disagree", "dnll")], 1), atol=1e-12)
    weights = control.scenario.weights
    reference_j = control.emulator.token_energy_j(TOP, 64.0)
    np.testing.assert_allclose(result["reward_energy"], -result["energy_j"] / reference_j)
    np.testing.assert_allclose(result["reward_late"], -weights.late * result["late"])
    np.testing.assert_allclose(result["reward_disagree"], -weights.disagree * result["disagree"], atol=1e-12)
    np.testing.assert_allclose(result["reward_kl"], -weights.kl * result["kl"], atol=1e-12)


@pytest.mark.parametrize(("deadline", "carries"), [("carry-over", True), ("per-token", False)])
def test_when_tokens_are_due_and_which_count_as_late(trace_folder, deadline, carries):
    control = load_control("layer", traces=trace_folder, deadline=deadline, slack_low=0.7, slack_high=0.7)
    rows, rng = begin(control, 5, 6), np.random.default_rng(1)
    late = np.zeros(6)
    done = np.zeros(6, bool)
    while not done.all():
        due, token = rows.state["due_s"].copy(), rows.state["token"].copy()
        out = rows.step(rng.integers(0, 9, (6, 1)))
        for i in np.flatnonzero((rows.state["token"] > token) & ~done):
            s = rows.state[i]
            late[i] += s["last_s"] > due[i]
            assert out.amounts[i, 0] == (s["last_s"] > due[i])
            expected = s["ttft_s"] + s["token"] * s["tpot_s"] if carries else s["last_s"] + s["tpot_s"]
            assert s["due_s"] == pytest.approx(expected, rel=1e-12)
        done = out.terminated
    np.testing.assert_array_equal(rows.state["late"], late)
    assert 0 < late.sum() < rows.state["tokens"].sum()


def test_a_request_that_finishes_early_idles_until_its_last_deadline(trace_folder):
    control = load_control("layer", traces=trace_folder, slack_low=3.0, slack_high=3.0)
    rows = begin(control)
    while not play(rows, TOP).terminated[0]:
        pass
    s = rows.state[0]
    assert s["last_s"] < s["clock_s"] == pytest.approx(s["ttft_s"] + (s["tokens"] - 1) * s["tpot_s"])
    assert s["idle_j"] == pytest.approx((s["clock_s"] - s["last_s"]) * control.emulator.idle_w(s["die_c"]), rel=0.1)


def test_controllers_of_different_speed_meet_the_same_interference(trace_folder):
    control = load_control("layer", traces=trace_folder, interference=Interference(1.44, 1e-3, 4e-3, 4e-3))
    patterns = []
    for point in (0, 3, TOP):
        rows, busy = begin(control, 11, 32), {}
        while not play(rows, point).terminated.all():
            busy |= {(i, int(s["slot"])): int(s["busy"]) for i, s in enumerate(rows.state)}
        patterns.append(busy)
    slow, *others = patterns
    for fast in others:
        common = slow.keys() & fast.keys()
        assert len(common) > 50
        assert {slow[key] for key in common} == {0, 1}
        assert all(slow[key] == fast[key] for key in common)


@pytest.mark.parametrize(
    ("granularity", "allowed"),
    [
        ("layer", {(token, layer) for token in range(99) for layer in range(10)}),
        ("token", {(token, 0) for token in range(99)}),
        ("phase", {(0, 0), (1, 0)}),
        ("request", {(0, 0)}),
    ],
)
def test_the_point_changes_only_where_the_granularity_allows(trace_folder, granularity, allowed):
    control = load_control("layer", traces=trace_folder, granularity=granularity)
    rows, done, step = begin(control), False, 0
    while not done:
        s = rows.state[0].copy()
        action = step % 8
        done, step = play(rows, action).terminated[0], step + 1
        changed = rows.state[0]["point"] != s["point"]
        assert changed == ((s["token"], s["layer"]) in allowed and action != s["point"])
        assert rows.state[0]["switches"] - s["switches"] == changed


def test_a_delayed_decision_takes_effect_at_the_next_boundary(trace_folder):
    rows = begin(load_control("layer", traces=trace_folder, decision_delay=1))
    taken = []
    for action in (3, 1, 4, 1, 5):
        play(rows, action)
        taken.append(int(rows.state[0]["point"]))
    assert taken == [TOP, 3, 1, 4, 1]


def test_a_delayed_decision_costs_energy_but_no_time(trace_folder):
    free, now, ahead = (
        begin(load_control("layer", traces=trace_folder, policy_macs=macs, decision_delay=delay))
        for macs, delay in ((0, 0), (900, 0), (900, 1))
    )
    for rows in (free, now, ahead):
        play(rows, TOP)
    assert now.state[0]["clock_s"] > ahead.state[0]["clock_s"] == free.state[0]["clock_s"]
    assert now.state[0]["policy_j"] == ahead.state[0]["policy_j"] > free.state[0]["policy_j"] == 0


@pytest.mark.parametrize("kind", ["layer", "token"])
def test_whoever_sees_the_probe_pays_for_it(trace_folder, kind):
    control = load_control(kind, groups=5, traces=trace_folder)
    rows = begin(control, 0, 16)
    action = control.check([[3]] * 16 if kind == "layer" else [[3, 3, 3, 3, 3, 2]] * 16, 16)
    seen = np.zeros(16, bool)
    paid = np.zeros(16, bool)
    for _ in range(25):
        out = rows.step(action)
        paid |= rows.state["probe_j"] > 0
        assert (paid | ~seen).all()
        seen |= out.observation[:, OBSERVATION.index("agree")] != 0
    assert seen.all()


@pytest.mark.parametrize("kind", ["layer", "token"])
def test_without_a_probe_there_is_nothing_to_see(trace_folder, kind):
    control = load_control(kind, groups=5, traces=trace_folder, probe=False)
    rows, rng = begin(control, 0, 4), np.random.default_rng(0)
    columns = [OBSERVATION.index(name) for name in ("agree", "agree_trend", "kl")]
    blank = rows.reset(np.arange(4), np.zeros(4, np.int64))[:, columns]
    for _ in range(40):
        out = rows.step(rng.integers(0, control.heads, (4, len(control.heads))))
        assert (out.observation[:, columns] == blank).all()
    assert not rows.state["probe_j"].any()


@pytest.mark.parametrize("groups", range(1, 9))
def test_an_exit_after_group_g_runs_exactly_the_layers_of_groups_0_to_g(trace_folder, groups):
    control = load_control("token", groups=groups, traces=trace_folder)
    sizes = np.bincount([layer * groups // 10 for layer in range(10)], minlength=groups)
    for last in range(groups):
        rows = begin(control)
        prefill = rows.step(control.check([TOP] * groups + [0], 1))
        assert not prefill.terminated[0]
        assert rows.state[0]["depth"] == 10
        # A point of its own for the last group that runs tells that nothing of a later group ran.
        points = [3] * groups
        points[last] = 5
        rows.step(control.check([*points, last], 1))
        assert rows.state[0]["depth"] - 10 == sizes[: last + 1].sum()
        assert rows.state[0]["point"] == 5


def test_full_depth_costs_no_quality_and_exits_cost_what_the_traces_say(control):
    traces = control.traces
    full, shallow = begin(control, 3, 8), begin(control, 3, 8)
    while not play(full, 4).terminated.all():
        pass
    assert not full.state["disagree"].any()
    assert not full.state["dnll"].any()
    play(shallow, *[4] * 10)
    while not play(shallow, 4, EXIT).terminated.all():
        pass
    for s in shallow.state:
        after = slice(traces.offset[s["document"]] + 1, traces.offset[s["document"] + 1])
        assert s["disagree"] == pytest.approx((1 - traces.agree[after, 0]).sum())
        assert s["dnll"] == pytest.approx(traces.dnll[after, 0].sum(dtype=float))
        assert s["kl_sum"] == pytest.approx(traces.kl[after, 0].sum(dtype=float))


def test_the_lowest_feasible_point_is_feasible_and_the_one_below_is_not(control):
    from clone_rl.envs.kernel import look_ahead, need_s

    rows, rng, kinds = begin(control, 0, 16), np.random.default_rng(0), set()
    for _ in range(60):
        for s, missing in zip(rows.state, rows.missing, strict=True):
            (need, lowest), left = look_ahead(s, missing, control.world, TOP), s["due_s"] - s["clock_s"]
            kinds.add(lowest)
            assert need == pytest.approx(need_s(s, missing, control.world, TOP), rel=1e-12)
            if lowest < TOP:
                assert need_s(s, missing, control.world, lowest) <= left * (1 + 1e-12)
            if lowest > 0:
                assert need_s(s, missing, control.world, lowest - 1) > left * (1 - 1e-12)
        rows.step(rng.integers(0, 8, (16, 1)))
    assert len(kinds) > 4


@pytest.mark.parametrize("kv", KV)
@pytest.mark.parametrize("exits", [0.0, 0.2])
@pytest.mark.parametrize("switching", ["on-chip", "pmic"])
def test_whoever_follows_the_lowest_feasible_point_undisturbed_is_never_late(trace_folder, switching, exits, kv):
    """The estimate counts all that a layer boundary costs: probe, controller, switch, owed tokens; at full depth or less."""
    control = load_control(
        "layer",
        traces=trace_folder,
        interference=Interference(1.0),
        switching=switching,
        policy_macs=912,
        slack_low=1.2,
        kv=kv,
    )
    rows, rng = begin(control, count=64), np.random.default_rng(0)
    observation = rows.reset(np.arange(64), np.zeros(64, np.int64))
    lowest = OBSERVATION.index("lowest_feasible")
    while not rows.state["done"].all():
        actions = np.rint(observation[:, lowest] * TOP).astype(np.int64)
        actions[rng.random(64) < exits] = EXIT
        observation = rows.step(actions[:, None]).observation
    assert rows.state["late"].sum() == 0
    assert (rows.state["depth"] < 10 * rows.state["tokens"]).any() == (exits > 0)
    assert rows.state["switches"].sum() > 64
