"""The shield: no policy can make a request miss a deadline that the top operating point holds."""

import json
import re
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from clone_rl.agents.controller import LayerCost, RuleController
from clone_rl.agents.error_budget import EARNED
from clone_rl.agents.heuristics import Chance, Fixed
from clone_rl.agents.policy import Policy
from clone_rl.agents.rollout import run_requests
from clone_rl.agents.rule import rule
from clone_rl.agents.runner import PolicyRunner
from clone_rl.cli.main import main
from clone_rl.envs import scenarios
from clone_rl.envs.compiling import compiled
from clone_rl.envs.control import load_control
from clone_rl.envs.live import LiveControl
from clone_rl.envs.rows import Rows
from clone_rl.envs.scenario import Limits, ServiceLevel
from clone_rl.envs.shield import guarded
from clone_rl.envs.shield_tables import Shield, sustained
from clone_rl.envs.trace import blank_trace
from clone_rl.errors import BadValueError
from clone_rl.hw_emulator import Chip, Emulator, Workload
from clone_rl.runtime import ErrorBudget, RuntimeController, budgeted
from clone_rl.runtime.shield import Watch, emulated_shield, measured_shield, within_limits

TIGHT = {"slack_low": 0.45, "slack_high": 1.1}
MACS = 912


run = partial(run_requests, limits=Limits(np.inf, np.inf, np.inf))  # of deadlines alone


class Adversary:
    """A controller that is bad on purpose, asked for all requests at once."""

    name, kind, macs, probes = "adversary", "layer", MACS, True

    def __init__(self, how, points=8):
        self.how, self.points, self.rng = how, points, np.random.default_rng(0)

    def act(self, observations):
        shape, top, rng = (len(observations), 1), self.points - 1, self.rng
        if self.how == "top":
            return np.full(shape, top)
        if self.how == "slowest":
            return np.zeros(shape, np.int64)
        if self.how == "exits":
            return np.full(shape, top + 1)
        if self.how == "random":
            return rng.integers(0, top + 2, shape)
        if self.how == "flips":
            return np.where(rng.random(shape) < 0.5, 0, top)
        if self.how == "teases":  # gives away what slack there is, then runs or leaves
            return np.where(rng.random(shape) < 0.02, top + 1, np.where(observations[:, 5:6] > 0.3, 0, top))
        assert self.how == "garbage"
        wild = rng.choice([-1, -(2**63), top + 2, 2**40], shape)
        return np.where(rng.random(shape) < 0.003, wild, rng.integers(0, top + 2, shape))

    def describe(self):
        return {}


@cache
def control_of(scenario, **changes):
    return load_control("layer", scenario, "test", **changes)


def missed(control, hows, count=150, seed=1):
    """Of requests that the top point holds: how many are late under the shield, and how many without, by adversary."""
    documents = np.random.default_rng(seed).choice(control.traces.documents("test"), count)

    def late(how, shield):
        return run(control, Adversary(how, control.points), "test", documents, seed, shield)["late"] > 0

    feasible = ~late("top", False)
    assert feasible.sum() > count / 2
    shielded = {how: int((late(how, True) & feasible).sum()) for how in hows}
    bare = {how: int((late(how, False) & feasible).sum()) for how in hows if how != "garbage"}
    return shielded, bare


@pytest.mark.parametrize("changes", [{}, TIGHT], ids=["as shipped", "tight"])
@pytest.mark.parametrize("scenario", scenarios())
def test_no_feasible_request_misses_whatever_the_policy_does(scenario, changes):
    shielded, bare = missed(control_of(scenario, **changes), ("slowest", "random", "garbage"))
    assert shielded == {"slowest": 0, "random": 0, "garbage": 0}
    assert bare["slowest"] > 0 or (scenario, changes) == ("dram-wall", {})  # whose whole range is fast enough


@pytest.mark.parametrize("delay", [0, 1])
@pytest.mark.parametrize(
    ("granularity", "kv", "scenario"),
    [
        ("layer", "exact", "bursty"),
        ("layer", "skip", "voice"),
        ("group", "exact", "slow-switching"),
        ("token", "propagate", "voice"),
        ("phase", "propagate", "bursty"),
        ("request", "propagate", "slow-switching"),
    ],
)
def test_it_holds_at_every_granularity_with_a_delay_and_with_owed_tokens(granularity, kv, scenario, delay):
    if delay and granularity == "request":
        pytest.skip("no such scenario")
    changes = {"slack_low": 0.7, "slack_high": 1.5, "granularity": granularity, "kv": kv, "decision_delay": delay}
    shielded, bare = missed(control_of(scenario, **changes), ("slowest", "random", "flips", "teases"))
    assert set(shielded.values()) == {0}
    assert min(bare.values()) > 0


def test_it_holds_on_a_chip_that_throttles():
    hot = control_of("dram-wall", ambient_c=84.96, slack_low=0.5, slack_high=1.0, switching="pmic", regulator="buck")
    top = run(hot, Adversary("top"), "test", hot.traces.documents("test")[:50], 0)
    assert (top["switches"] > 0).mean() > 0.5  # the top point is taken away
    assert sustained(hot)[0] < hot.points - 1
    shielded, bare = missed(hot, ("slowest", "random", "flips", "teases"))
    assert set(shielded.values()) == {0}
    assert bare["slowest"] > 0


def test_shipped_chips_hold_their_top_point():
    assert all(set(sustained(control_of(name))) == {control_of(name).points - 1} for name in scenarios())


def test_a_run_at_the_top_point_is_left_alone():
    control = control_of("bursty", **TIGHT)
    documents = control.traces.documents("test")[:60]
    bare, shielded = (run(control, Adversary("top"), "test", documents, 0, shield) for shield in (False, True))
    assert bare.tobytes() == shielded.tobytes()
    assert (bare["late"] > 0).any()


class Seeing(Adversary):
    """Asks for no exit before a token's first, where a budget refuses what a delay would make one."""

    def act(self, observations):
        actions = super().act(observations)
        unseen = (observations[:, :2] == 0.0).any(1) & (actions[:, 0] == self.points)
        return np.where(unseen[:, None], 0, actions)


@pytest.mark.parametrize("how", ["slowest", "exits", "random"])
@pytest.mark.parametrize("changes", [{}, {"decision_delay": 1}, {"kv": "exact"}, {"deadline": "per-token"}])
def test_where_deadlines_are_loose_nothing_is_overruled(how, changes):
    control = control_of("default", slack_low=500.0, slack_high=500.0, **changes)
    documents = control.traces.documents("test")[:20]
    bare, shielded = (run(control, Seeing(how), "test", documents, 0, shield) for shield in (False, True))
    assert bare.tobytes() == shielded.tobytes()


def test_it_saves_what_can_be_saved():
    """The slowest policy under the shield beats the top point: slack is used up before it is overruled."""
    control = control_of("default")
    documents = control.traces.documents("test")[:40]
    top, slow = (run(control, Adversary(how), "test", documents, 0, shield=True) for how in ("top", "slowest"))
    assert slow["energy_j"].sum() < 0.85 * top["energy_j"].sum()


def test_exits_of_the_shield_only_touch_requests_that_miss_anyhow_and_help_them():
    control = control_of("bursty", slack_low=0.3, slack_high=1.0)
    documents = control.traces.documents("test")
    bare, plain, exits = (
        run(control, Adversary("top"), "test", documents, 0, *options) for options in ((False,), (True,), (True, True))
    )
    assert plain.tobytes() == bare.tobytes()
    feasible = plain["late"] == 0
    assert 20 < feasible.sum() < len(documents) - 20
    assert exits[feasible].tobytes() == plain[feasible].tobytes()
    assert exits["late"].sum() < 0.8 * plain["late"].sum()
    assert (exits["depth"][~feasible] < plain["depth"][~feasible]).any()
    shielded = run(control, Adversary("random"), "test", documents, 0, True, True)
    assert (shielded["late"][feasible] == 0).all()


def test_after_a_late_token_the_exits_of_the_policy_pass():
    control = control_of("bursty", slack_low=0.2, slack_high=0.2)
    documents = control.traces.documents("test")[:20]
    figures = run(control, Adversary("exits"), "test", documents, 0, shield=True)
    assert (figures["late"] > 0).all()
    assert (figures["depth"] < 5 * figures["tokens"]).mean() > 0.5


def test_token_control_is_refused():
    control = load_control("token", "default", "test")
    with pytest.raises(BadValueError, match=r"shield for token control.*LayerControl"):
        Shield.of(control)


class WildRule(NamedTuple):
    """One adversary after another, by request."""

    how: int


@rule(WildRule)
def _wild(self, observation, memory, action):
    if memory[0] == 0.0:  # no two requests are alike
        memory[0] = 1.0 + np.floor(1e6 * abs(observation[12] + 3.0 * observation[13] + 7.0 * observation[10]))
    memory[0] = (memory[0] * 48271.0) % 2147483647.0
    draw = int(memory[0])
    how = self.how
    if how == 0:
        action[0] = 0
    elif how == 1:
        action[0] = draw % 9
    elif how == 2:
        action[0] = 8 if draw % 50 == 0 else (0 if observation[5] > 0.3 else 7)
    elif how == 3:  # the largest of logits that are no numbers is none of them
        action[0] = draw % 9 if draw % 400 else -(2**63)
    else:
        action[0] = 8


class Wild(RuleController):
    name, kind, macs, probes = "wild", "layer", MACS, True

    def __init__(self, how):
        self.how = how

    @property
    def rule(self):
        return WildRule(self.how)

    def describe(self):
        return {}


@pytest.mark.slow
def test_none_of_a_hundred_thousand_requests_misses():
    rng, requests, feasible_ones, bare_misses = np.random.default_rng(0), 0, 0, 0
    ranges = ((1.0, 2.0), (0.7, 1.2), (0.45, 0.8))
    for number, scenario in enumerate([*scenarios(), *scenarios(), *scenarios()]):
        low, high = ranges[number // len(scenarios())]
        control = load_control("layer", scenario, "test", slack_low=low, slack_high=high, policy_macs=MACS)
        shield = Shield.of(control)
        documents, seed = rng.choice(control.traces.documents("test"), 1000), 10_000 * number
        # Rules that ship need not be compiled anew for this test.
        top = PolicyRunner(control, Fixed("top", 7)).run(documents, seed)["late"] == 0
        for bare in (Fixed("slowest", 0), Chance(8, 1 / 9)):
            late = PolicyRunner(control, bare).run(documents[:250], seed)["late"] > 0
            bare_misses += int((late & top[:250]).sum())
        for how in range(5):
            runner = PolicyRunner(control, Wild(how), shield)
            late = runner.run(documents, seed)["late"] > 0
            assert not (late & top).any(), (scenario, low, how, documents[late & top][:3])
            assert runner.guards.failed.any() == (how == 3)
            assert runner.guards.overruled.any() or scenario == "dram-wall" or how == 4
            requests, feasible_ones = requests + len(documents), feasible_ones + int(top.sum())
    assert requests > 100_000
    assert feasible_ones > 60_000
    assert bare_misses > 5_000


# Hosts whose clock is what they say.


@compiled
def _guard(shield, state, missing, action):
    return guarded(shield, state[0], missing[0], action)


def served(control, runtime, document, seed):
    """A request with the kernel as the host: decisions, the kernel's own guarded ones, and late tokens."""
    shield, rows, trace = Shield.of(control), Rows(control.world, 1), control.traces
    observation = rows.reset(np.array([seed]), np.array([0]), np.array([document]))[0]
    state = rows.state[0]
    level = ServiceLevel("drawn", float(state["ttft_s"]), float(state["tpot_s"]))
    longest = int(np.diff(trace.offset).max())
    request = runtime.begin("r", level, int(state["prompt"]), longest, float(state["clock_s"]))
    taken, wanted = [], []
    while not state["done"]:
        proposed = int(runtime.controller.act(observation[None])[0, 0])
        wanted.append(_guard(shield, rows.state, rows.missing, proposed))
        decision = request.decide(observation)
        taken.append(control.points if decision.exit else decision.operating_point)
        before_s, before_j = float(state["clock_s"]), float(state["energy_j"])
        observation = rows.step_one(taken[-1])[0]
        request.observe(LayerCost(float(state["clock_s"]) - before_s, float(state["energy_j"]) - before_j))
    return taken, wanted, int(state["late"]), request.report()


@pytest.mark.parametrize("changes", [{}, {"kv": "exact", "decision_delay": 1}, {"deadline": "per-token"}])
def test_a_host_that_tells_what_layers_took_is_guarded_as_the_kernel_is(changes):
    policy = Policy.load("default")
    control = load_control("layer", "bursty", "test", slack_low=0.7, slack_high=1.2, policy_macs=policy.macs, **changes)
    longest, contexts = int(np.diff(control.traces.offset).max()), int(control.world.prices.prefill[0])
    documents = [d for d in control.traces.documents("test") if control.traces.prompt_tokens[d] + longest < contexts][:4]
    runtime, overruled = RuntimeController(policy, 8, shield=Shield.of(control)), 0
    for document in documents:
        runtime._point = 7  # each request of the kernel begins at the top
        taken, wanted, late, report = served(control, runtime, document, 3)
        # An exit where none is allowed counts as the current point for both.
        assert [a for a, b in zip(taken, wanted, strict=True) if a != b and b != 8] == []
        assert (report["late"], report["failure"]) == (late, "")
        overruled += report["overruled"]
    assert overruled > 0


class Broken:
    name, kind, macs, probes = "broken", "layer", 0, False

    def act(self, _):
        raise RuntimeError("no luck")

    def describe(self):
        return {}


def test_a_failed_controller_under_the_shield_still_holds_its_deadlines():
    control = load_control("layer", "default", "test", policy_macs=0, probe=False)
    longest, contexts = int(np.diff(control.traces.offset).max()), int(control.world.prices.prefill[0])
    document = next(d for d in control.traces.documents("test") if control.traces.prompt_tokens[d] + longest < contexts)
    runtime, rows = RuntimeController(Broken(), 8, shield=Shield.of(control)), Rows(control.world, 1)
    observation = rows.reset(np.array([0]), np.array([0]), np.array([document]))[0]
    state = rows.state[0]
    request = runtime.begin(
        "r", ServiceLevel("s", float(state["ttft_s"]), float(state["tpot_s"])), int(state["prompt"]), longest
    )
    while not state["done"]:
        before_s = float(state["clock_s"])
        observation = rows.step_one(request.decide(observation).operating_point)[0]
        request.observe(LayerCost(float(state["clock_s"]) - before_s))
    assert state["late"] == 0
    assert request.report()["degraded"] == request.report()["decisions"] == int(state["step"])


def measured(**changes):
    return measured_shield(**{
        "layers": 4, "contexts": [16, 64], "decode_s": [[2e-3, 1e-3], [4e-3, 2e-3]], "prompts": [8, 32],
        "prefill_s": [[4e-3, 2e-3], [8e-3, 4e-3]], "head_s": [2e-3, 1e-3], "switch_s": 1e-4, **changes,
    })  # fmt: skip


def proposals(shield, level, longest, action):
    """What the shield makes of one action in a request of 8 tokens that takes just what was measured."""
    watch, clock_s, taken, point = Watch(shield, level, 8, longest), 0.0, [], 1
    layers = int(shield.rules[0]["layers"])
    for number in range(layers * longest):
        taken.append(watch.guard(clock_s, action))
        clock_s += 0.0 if taken[-1] == point else 1e-4
        point = taken[-1]
        clock_s += ((4e-3, 2e-3) if number < layers else (2e-3, 1e-3))[point]
        clock_s += (2e-3, 1e-3)[point] if number % layers == layers - 1 else 0.0
    return taken, watch.late(clock_s)


def test_a_measured_shield_lets_slow_layers_pass_for_as_long_as_there_is_time():
    # At the top 4 layers of a prompt of 8 take 8 ms and the head 1 ms; a token 4 + 1 ms at contexts below 17.
    level = ServiceLevel("s", 13.3e-3, 5e-3)
    taken, late = proposals(measured(), level, 3, 0)
    # 4.3 ms of slack: two layers at the lower point cost 2 ms each, switches 0.1 ms twice; then no more.
    assert taken == [0, 0, 1, 1] + 8 * [1]
    assert late == 0
    assert proposals(measured(slowdown=1e-9 + 1.0), ServiceLevel("s", 8e-3, 5e-3), 3, 1)[1] == 3  # it can be late


@pytest.mark.parametrize(
    ("ttft_s", "tpot_s", "passes"),
    [
        (11.19e-3, 5e-3, False),  # one slow layer of the prompt and both switches need 11.2 ms
        (11.21e-3, 5e-3, True),
        (11.21e-3, 4.9e-3, False),  # each of the 2 later tokens lacks 0.1 ms
        (11.41e-3, 4.9e-3, True),
    ],
)
def test_later_tokens_are_reckoned_with(ttft_s, tpot_s, passes):
    shield = measured(switch_s=[[0.0, 2e-4], [0.0, 0.0]])
    taken = Watch(shield, ServiceLevel("s", ttft_s, tpot_s), 8, 3).guard(0.0, 0)
    assert (taken == 0) == passes


def test_later_tokens_do_not_carry_over_where_each_is_due_anew():
    slow, fast = ServiceLevel("s", 1.0, 4.9e-3), ServiceLevel("s", 1.0, 5.1e-3)
    assert Watch(measured(), slow, 8, 3).guard(0.0, 0) == 0
    assert Watch(measured(per_token=True), slow, 8, 3).guard(0.0, 0) == 1
    assert Watch(measured(per_token=True), fast, 8, 3).guard(0.0, 0) == 0


def test_lengths_between_two_measurements_count_as_the_longer_one():
    shield = measured()
    first = int(shield.numbers[0])
    assert shield.layer_s[0, 0, [1, 16, 17, 64], 1].tolist() == [1e-3, 1e-3, 2e-3, 2e-3]
    assert shield.layer_s[0, 0, [first + 8, first + 9, first + 32], 0].tolist() == [4e-3, 8e-3, 8e-3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "layers is 0"),
        ({"contexts": [16, 16]}, "lengths of decode_s"),
        ({"contexts": [16]}, r"decode_s has shape \(2, 2\)"),
        ({"decode_s": [1.0, 2.0]}, r"decode_s has shape \(2,\)"),
        ({"prefill_s": [[1.0], [2.0]]}, "prefill_s has 1 operating points"),
        ({"head_s": [0.0, 1.0]}, "head_s has"),
        ({"head_s": [np.nan, 1.0]}, "head_s has"),
        ({"switch_s": -1.0}, "switch_s has"),
        ({"slowdown": 0.5}, "slowdown is 0.5"),
    ],
)
def test_bad_measurements_are_refused(changes, message):
    with pytest.raises(BadValueError, match=message):
        measured(**changes)


def test_a_shield_refuses_what_its_tables_do_not_reach():
    level = ServiceLevel("s", 1.0, 1.0)
    with pytest.raises(BadValueError, match="a prompt of 33 tokens"):
        Watch(measured(), level, 33, 1)
    with pytest.raises(BadValueError, match=r"32 \+ 34 tokens"):
        Watch(measured(), level, 32, 34)
    with pytest.raises(BadValueError, match="max_new_tokens is 0"):
        Watch(measured(), level, 8, 0)
    Watch(measured(), level, 32, 33)


def test_a_shield_of_an_emulated_chip_reaches_as_far_as_it_is_told():
    control = control_of("default")
    shield = emulated_shield(control.scenario, control.emulator, 100, 4000)
    Watch(shield, ServiceLevel("s", 1.0, 1.0), 100, 4000)
    with pytest.raises(BadValueError, match=r"100 \+ 40000 tokens"):
        Watch(shield, ServiceLevel("s", 1.0, 1.0), 100, 40000)
    with pytest.raises(BadValueError, match="prompt_tokens is 0"):
        emulated_shield(control.scenario, control.emulator, 0, 400)


@pytest.mark.parametrize("kv", ["propagate", "exact"])
def test_layers_with_windows_of_their_own_are_reckoned_with(kv):
    """Half of the layers see 8 positions only; the others all of 400."""
    shape = {
        "model_type": "gemma3_text", "num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "head_dim": 16,
        "num_key_value_heads": 4, "intermediate_size": 128, "vocab_size": 512, "max_position_embeddings": 512,
        "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2,
    }  # fmt: skip
    workload = Workload.from_config(shape)
    scenario = control_of("default", kv=kv).scenario
    emulator = Emulator(Chip.load("asic28-sram"), workload, policy_macs=MACS)
    control = LiveControl(scenario, emulator).of(blank_trace(4, 8, 400))
    shield, rules = Shield.of(control), control.world.rules
    assert shield.remaining.shape[1] == 2
    token_s = np.diff(shield.ahead_s[0, :, -1])
    assert (np.diff(token_s) >= 0).all()
    # A whole response at the top with the co-runner busy all the time takes just what (a) says that it takes.
    need_s = 1.44 * token_s[8 + 1 : 8 + 400].sum()
    rules["idle_low_s"] = rules["idle_high_s"] = rules["slot_s"] / 1.0
    rules["busy_low_s"] = rules["busy_high_s"] = 1e12
    rows = Rows(control.world, 1)
    rows.reset(np.array([0]), np.array([0]), np.array([0]))
    first_s, clock_s = None, 0.0
    while not rows.state["done"][0]:
        clock_s = float(rows.state["clock_s"][0])
        if rows.state["token"][0] == 1 and first_s is None:
            first_s = clock_s
        rows.step(np.array([[control.points - 1]]))
    took_s = float(rows.state["last_s"][0]) - first_s
    assert took_s <= need_s <= 1.02 * took_s


def evaluated(capsys, *arguments):
    code = main(["evaluate", "performance", "powersave", "--no-oracle", "--requests", "20", "--json", *arguments])
    told = capsys.readouterr()
    return code, json.loads(told.out or told.err.splitlines()[-1])


def test_evaluate_takes_a_shield(capsys):
    (_, bare), (_, shielded) = evaluated(capsys), evaluated(capsys, "--shield")
    assert (bare["shield"], shielded["shield"]) == (False, True)
    misses = [[row["miss_rate"] for row in found["summary"]] for found in (bare, shielded)]
    assert misses[0][1] > 0.5
    assert misses[1] == [0.0, 0.0]
    assert shielded["summary"][0]["energy_per_token_j"] == bare["summary"][0]["energy_per_token_j"]


@pytest.mark.parametrize("options", [("--shield-exits",), ("--shield", "--out", "rows.csv")])
def test_evaluate_refuses_what_a_shield_does_not_go_with(capsys, options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, told = evaluated(capsys, *options)
    assert code == 2
    assert "--shield" in told["error"]["message"]


def test_the_examples_of_the_documentation_run():
    text = (Path(__file__).parents[2] / "docs" / "runtime.md").read_text()
    asking, loop, host, emulated, own = re.findall(r"```python\n(.*?)```", text, re.S)
    exec(asking, {})
    exec(loop + "assert request.report()['exits'] > 0\n" + host + "assert controller.points == 2", {})
    names = {}
    exec(emulated + own, names)
    assert names["request"].report()["request"] == "r1"
    assert names["shield"].slowdown == 1.3


def test_a_budget_lasts_over_the_requests_of_a_runtime_controller():
    """Exits pass until what is saved up is spent, and again once enough tokens have been begun."""
    control = control_of("default")
    budget = ErrorBudget.of(control.traces, Limits(0.01, 0.01, 0.01), probes=False)
    policy = Chance(8, 1.0)
    runtime = RuntimeController(budgeted(policy, budget, 8), 8)
    observation, lasts = np.zeros(16, np.float32), []
    for request in range(3):
        runtime.begin(f"request {request}")
        passed = 0
        for _ in range(20):
            observation[:2] = 1.0, 0.0
            assert not runtime.decide(observation).exit
            observation[1] = 0.1
            passed += runtime.decide(observation).exit
        lasts.append(passed)
    assert lasts[0] >= 2 and sum(lasts[1:]) <= 1
    assert (budget.balance < budget.cost[0, 0, 0]).any()
    assert budget.refused[0] == 60 - sum(lasts)
    lacking = max((budget.cost[0, 0, 0] - budget.balance) / (EARNED * 0.01))
    tokens = 0
    while not runtime.decide(observation).exit:
        observation[1] = 0.0
        runtime.decide(observation)
        observation[1], tokens = 0.1, tokens + 1
    assert tokens == np.ceil(lacking) > 0


def test_limits_hold_where_the_traces_are_of_the_model_that_runs(caplog):
    control = control_of("default")
    policy, scenario = Policy.load("default"), control.scenario
    within = within_limits(policy, scenario, control.traces.card["model_sha256"])
    assert within is not policy and within.card == policy.card
    np.testing.assert_allclose(within.budget.earned, [EARNED * scenario.limits.disagree, EARNED * scenario.limits.dnll])
    assert not caplog.records
    assert within_limits(policy, scenario, "0" * 64) is policy
    assert "traces 'default' are of another model" in caplog.text


def test_limits_that_cannot_be_held_for_want_of_training_documents_are_told(caplog, monkeypatch):
    traces = control_of("default").traces
    only_test = replace(traces, split=np.full_like(traces.split, 2))
    monkeypatch.setattr("clone_rl.runtime.shield.load_traces", lambda _: only_test)
    policy = Policy.load("default")
    assert within_limits(policy, control_of("default").scenario, traces.card["model_sha256"]) is policy
    assert "no train or validation documents" in caplog.text
