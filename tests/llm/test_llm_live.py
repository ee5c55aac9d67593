import re
from dataclasses import replace
from importlib import resources

import numpy as np
import pytest
import torch

from clone_rl.agents.heuristics import Fixed, Pace
from clone_rl.cli.commands import generation_lines
from clone_rl.envs.figures import as_dict
from clone_rl.envs.live import scaled_signal
from clone_rl.envs.observation import OBSERVATION
from clone_rl.envs.rows import Rows
from clone_rl.envs.scenario import Interference, Scenario, ServiceLevel
from clone_rl.envs.trace import blank_trace, scaled_signals
from clone_rl.envs.world import build_prices, build_world
from clone_rl.errors import BadValueError, UnknownNameError
from clone_rl.hw_emulator.ledger import KV
from clone_rl.llm.exits import exit_statistics
from clone_rl.llm.live import LiveSession
from clone_rl.llm.probe_reader import ProbeReader
from clone_rl.llm.sampling import Sampling
from clone_rl.llm.tokenizer import END_ID
from clone_rl.runtime import Decision, RuntimeController
from clone_rl.runtime.server.account import energy_report

pytest_plugins = ["llm_models"]


def hidden_states(lm, ids):
    """(L, T, hidden) at full depth."""
    with torch.inference_mode():
        return torch.cat(lm.anatomy.states(torch.tensor([ids])))


PROMPT = "Once upon a time there was a little fox who"
GREEDY = Sampling(0.0)
PHASE, LAYER = OBSERVATION.index("phase"), OBSERVATION.index("layer")


class Scripted:
    """Decides by a function of (token, layer); keeps what it was shown and told."""

    def __init__(self, rule, layers, top=7):
        self.rule, self.layers, self.top = rule, layers, top
        self.asked, self.actions, self.seen, self.told = 0, [], [], []

    def decide(self, observation):
        self.seen.append(observation.copy())
        layer = round(float(observation[LAYER]) * self.layers)
        action = self.rule(len(self.seen) - 1, float(observation[PHASE]), layer)
        self.actions.append(action)
        return Decision(self.top, exit=True) if action > self.top else Decision(action)

    def observe(self, cost):
        self.told.append((cost.latency_s, cost.energy_j))


class Script:
    """Sampling whose tokens are given."""

    def __init__(self, tokens):
        self.tokens = list(tokens)

    def pick(self, *_):
        return self.tokens.pop(0)


@pytest.fixture(scope="module")
def session(lm):
    live = LiveSession(lm, Scenario.load("default"))
    yield live
    live.close()


@pytest.fixture(scope="module")
def layers(lm):
    return lm.shape.layers


def performance():
    return RuntimeController(Fixed("performance", 7), 8)


def exits_at(depth, layers):
    """Full depth for the prompt, then out after ``depth`` layers."""
    return Scripted(lambda _n, phase, layer: 8 if phase and layer == depth else 7, layers)


def mixed(layers, seed=0):
    """Points and exits at random."""
    rng = np.random.default_rng(seed)
    return Scripted(lambda *_: int(rng.integers(0, 8)) if rng.random() < 0.85 else 8, layers)


def test_full_depth_without_temperature_is_the_greedy_text_of_the_model(session, lm, layers):
    ids = torch.tensor([lm.encode(PROMPT)])
    answer = session.generate(PROMPT, performance(), 40, GREEDY)
    with torch.inference_mode():
        out = lm.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=40,
            eos_token_id=END_ID,
            pad_token_id=END_ID,
        )
    assert answer.token_ids == out[0, ids.shape[1] :].tolist()
    assert len(set(answer.token_ids)) >= 5
    assert answer.text == lm.decode([t for t in answer.token_ids if t != END_ID])
    assert (answer.points == 7).all()
    assert answer.points.shape == (len(answer.token_ids), layers)
    summary = answer.summary()
    assert summary["mean_depth"] == layers
    assert summary["agreement"] == 1
    assert summary["dnll"] == 0
    assert summary["tokens"] == len(answer.token_ids)


def test_a_response_of_one_token_has_no_time_per_later_token(session):
    one, two = (session.generate(PROMPT, performance(), count, GREEDY) for count in (1, 2))
    assert (one.figures["tpot_s"], one.summary()["tpot_s"]) == (0.0, None)
    assert two.summary()["tpot_s"] == two.figures["tpot_s"] > 0
    assert "TPOT -, 0 of 1 tokens" in generation_lines(one.summary())
    decided = {"overruled": 0, "degraded": 0}
    assert energy_report(one, session.scenario.slo[0], 0, "steady", decided)["tpot_s"] is None


@pytest.mark.parametrize("depth", [1, 4, 9])
def test_leaving_at_one_layer_gives_the_mean_depth_and_picture_of_it(session, layers, depth):
    answer = session.generate(PROMPT, exits_at(depth, layers), 12, GREEDY)
    tokens = len(answer.token_ids)
    assert tokens > 1
    assert answer.summary()["mean_depth"] == pytest.approx((layers + depth * (tokens - 1)) / tokens)
    assert (answer.points[0] == 7).all()
    assert (answer.points[1:, :depth] == 7).all()
    assert (answer.points[1:, depth:] == -1).all()


@pytest.mark.parametrize("depth", [1, 5, 9])
def test_an_exit_is_the_exit_of_the_model_with_its_figures(session, lm, layers, depth):
    # The caches are exact for the first decoded token, so one teacher-forced pass shows what it has to be.
    first = session.generate(PROMPT, performance(), 1, GREEDY).token_ids
    states = hidden_states(lm, [*lm.encode(PROMPT), *first])
    with torch.inference_mode():
        expected = int(lm.model.lm_head(lm.model.model.norm(states[depth - 1, -1])).argmax())
    answer = session.generate(PROMPT, exits_at(depth, layers), 2, GREEDY)
    assert answer.token_ids == [*first, expected]
    quality = exit_statistics(lm.anatomy, [state[-1:] for state in states], torch.tensor([expected]))
    assert answer.figures["disagree"] == 1 - float(quality.agree[depth - 1, 0])
    assert answer.figures["kl"] == pytest.approx(float(quality.kl[depth - 1, 0]), rel=1e-3, abs=1e-5)
    assert answer.figures["dnll"] == pytest.approx(float(quality.dnll[depth - 1, 0]), rel=1e-3, abs=1e-5)


def test_signals_shown_to_the_controller_are_those_of_the_probe(session, lm, layers):
    controller = Scripted(lambda *_: 7, layers)
    answer = session.generate(PROMPT, controller, 2, GREEDY)
    states = hidden_states(lm, [*lm.encode(PROMPT), answer.token_ids[0]])
    for layer in range(1, layers):
        agree, kl = lm.probe.signals(states[layer - 1, -1], layer).tolist()
        shown = controller.seen[layers + layer]
        assert shown[LAYER] == pytest.approx(layer / layers)
        odds = np.log(np.clip(agree, 1e-6, 1 - 1e-6) / (1 - np.clip(agree, 1e-6, 1 - 1e-6))) / 6
        assert shown[OBSERVATION.index("agree")] == pytest.approx(np.clip(odds, -1, 1), abs=1e-3)
        assert shown[OBSERVATION.index("kl")] == pytest.approx(np.clip(np.log10(max(kl, 1e-6)) / 3 + 1, -1, 1), abs=1e-3)


RULES = {
    "never exits": lambda layers: Scripted(lambda n, *_: (3 * n) % 8, layers),
    "exits at 4": lambda layers: exits_at(4, layers),
    "anything": mixed,
}


@pytest.mark.parametrize(
    "changes", [{}, {"decision_delay": 1}, {"granularity": "token"}, {"deadline": "per-token", "probe": False}]
)
@pytest.mark.parametrize("rule", RULES)
def test_the_account_is_that_of_the_same_decisions_in_the_environment(lm, layers, rule, changes):
    scenario = Scenario.load("default", policy_macs=1000, **changes)
    live = LiveSession(lm, scenario)
    controller = RULES[rule](layers)
    answer = live.generate(PROMPT, controller, 9, GREEDY, seed=5)
    live.close()
    tokens = len(answer.token_ids)
    trace = blank_trace(layers, len(lm.encode(PROMPT)), tokens)
    prices = build_prices((live.emulator,), trace)
    rows = Rows(build_world(scenario, trace, "train", live.emulator.workload, prices), 1)
    rows.reset(np.array([5]), np.zeros(1, np.int64))
    told, before = [], 0.0  # waking counts as part of the first step
    for action in controller.actions:
        assert not rows.state[0]["done"]
        rows.step(np.array([[action]]))
        told.append(float(rows.state[0]["clock_s"]) - before)
        before = float(rows.state[0]["clock_s"])
    assert rows.state[0]["done"]
    replayed = as_dict(rows.figures()[0])
    for name in (
        "energy_j",
        "time_s",
        "ttft_s",
        "tpot_s",
        "late",
        "depth",
        "switches",
        "layer_j",
        "kv_fill_j",
        "probe_j",
        "idle_j",
    ):
        assert answer.figures[name] == pytest.approx(replayed[name], rel=1e-9), name
    assert [latency for latency, _ in controller.told] == pytest.approx(told, rel=1e-9)
    assert sum(energy for _, energy in controller.told) == pytest.approx(answer.figures["energy_j"], rel=1e-9)
    assert (answer.points >= 0).sum() == answer.figures["depth"]


@pytest.mark.parametrize("changes", [{}, {"decision_delay": 1}])
def test_the_clock_of_the_tokens(lm, layers, changes):
    live = LiveSession(lm, Scenario.load("default", **changes))
    answer = live.generate(PROMPT, mixed(layers, 3), 10, GREEDY)
    live.close()
    assert len(answer.emitted_s) == len(answer.due_s) == len(answer.token_ids)
    assert all(b > a for a, b in zip(answer.emitted_s, answer.emitted_s[1:], strict=False))
    assert answer.emitted_s[0] == answer.figures["ttft_s"]
    gaps = np.diff(answer.due_s)
    assert np.allclose(gaps, gaps[0])
    assert sum(e > d for e, d in zip(answer.emitted_s, answer.due_s, strict=True)) == answer.figures["late"]
    assert answer.emitted_s[-1] - answer.emitted_s[0] == pytest.approx(answer.figures["tpot_s"] * (len(answer.token_ids) - 1))


def test_lower_points_take_less_energy_and_more_time(session, layers):
    slow = session.generate(PROMPT, RuntimeController(Fixed("powersave", 2), 8), 8, GREEDY)
    fast = session.generate(PROMPT, performance(), 8, GREEDY)
    assert slow.token_ids == fast.token_ids
    assert slow.figures["layer_j"] < fast.figures["layer_j"]
    assert slow.figures["tpot_s"] > fast.figures["tpot_s"]


def test_generation_depends_on_the_seed_alone(session, layers):
    answers = [session.generate(PROMPT, mixed(layers), 10, Sampling(), seed) for seed in (1, 1, 2, 3, 4)]
    assert answers[0].token_ids == answers[1].token_ids
    assert answers[0].figures == answers[1].figures
    assert (answers[0].points == answers[1].points).all()
    assert len({tuple(a.token_ids) for a in answers}) > 1
    assert len({a.figures["time_s"] for a in answers}) > 1


def test_pace_leaves_early_and_only_where_it_may(session, lm, layers):
    pace = RuntimeController(Pace(8, agree_bar=0.0, kl_bar=1e9), 8)
    answer = session.generate(PROMPT, pace, 6, GREEDY)
    assert (answer.points[0] >= 0).all()
    assert ((answer.points[1:] >= 0).sum(1) == 1).all()
    report = pace.report()
    assert report["exits"] == len(answer.token_ids) - 1
    assert report["energy_j"] == pytest.approx(answer.figures["energy_j"])


@pytest.mark.parametrize("tokens", [[END_ID], [300, END_ID], [300, 301, 302, END_ID], [300, 301, 302, 303, END_ID]])
def test_the_end_token_ends_the_request(session, layers, lm, tokens):
    seen = []
    answer = session.generate(PROMPT, exits_at(3, layers), 5, Script([*tokens, 304, 305]), on_token=seen.append)
    assert answer.token_ids == seen == tokens
    assert answer.figures["tokens"] == len(tokens)
    assert answer.text == lm.decode(tokens[:-1])
    assert answer.points.shape == (len(tokens), layers)
    assert answer.summary()["tokens"] == len(tokens)


def test_a_response_has_at_most_the_tokens_that_were_asked_for(session, layers):
    seen = []
    answer = session.generate(PROMPT, performance(), 3, Script(range(300, 310)), on_token=seen.append)
    assert answer.token_ids == seen == [300, 301, 302]


def test_a_response_ends_with_the_context(session, lm):
    prompt = "7" * (lm.shape.context - 4)
    answer = session.generate(prompt, performance(), 60, Script(range(300, 400)))
    assert len(answer.token_ids) == 3


@pytest.mark.parametrize("most", [0, -1])
def test_a_response_without_tokens_is_refused(session, most):
    with pytest.raises(BadValueError, match=f"max_new_tokens is {most}"):
        session.generate(PROMPT, performance(), most)


@pytest.mark.parametrize(("prompt", "named"), [("", "empty"), (" \n", "empty"), ("7" * 400, "401 tokens")])
def test_prompts_that_do_not_fit_are_refused(session, prompt, named):
    with pytest.raises(BadValueError, match=named):
        session.generate(prompt, performance())


def test_the_service_level_is_named(session):
    scenario = session.scenario
    names = {session.generate(PROMPT, performance(), 1, GREEDY, seed).slo for seed in range(12)}
    assert names <= {level.name for level in scenario.slo}
    assert len(names) > 1


def test_one_class_of_requests_is_one_target(lm):
    scenario = Scenario.load("default")
    only = replace(scenario, slo=scenario.slo[-1:], slack_low=1.0, slack_high=1.0)
    live = LiveSession(lm, only)
    answer = live.generate(PROMPT, performance(), 3, GREEDY)
    live.close()
    assert answer.slo == scenario.slo[-1].name
    assert answer.due_s[0] == pytest.approx(scenario.slo[-1].ttft_s)
    assert answer.due_s[2] - answer.due_s[1] == pytest.approx(scenario.slo[-1].tpot_s)


LEVEL = ServiceLevel("mine", 0.02, 0.0007)


def test_a_service_level_of_a_request_holds_as_it_is(session, layers):
    controller = Scripted(lambda *_: 7, layers)
    answer = session.generate(PROMPT, controller, 4, GREEDY, slo=LEVEL)
    assert answer.slo == "mine"
    assert np.allclose(answer.due_s, LEVEL.ttft_s + LEVEL.tpot_s * np.arange(4))
    longest = {name: max(getattr(c, name) for c in session.scenario.slo) * 2.0 for name in ("ttft_s", "tpot_s")}
    for name, shown in (("ttft_s", "ttft"), ("tpot_s", "tpot")):
        assert controller.seen[0][OBSERVATION.index(shown)] == pytest.approx(getattr(LEVEL, name) / longest[name])
    assert controller.seen[0][OBSERVATION.index("slack")] == pytest.approx(0.5, abs=0.01)


def test_a_class_of_the_scenario_can_be_asked_for_by_name(session):
    for level in session.scenario.slo:
        answer = session.generate(PROMPT, performance(), 2, GREEDY, slo=level.name)
        assert answer.slo == level.name
        assert answer.due_s == pytest.approx([level.ttft_s, level.ttft_s + level.tpot_s])
        assert answer.figures["slo"] == session.scenario.slo.index(level)


def test_loose_and_tight_targets_stay_within_the_bounds_of_what_is_seen(session, layers):
    for level in (ServiceLevel("loose", 900.0, 90.0), ServiceLevel("tight", 1e-12, 1e-300)):
        controller = Scripted(lambda *_: 7, layers)
        answer = session.generate(PROMPT, controller, 3, GREEDY, slo=level)
        seen = np.array(controller.seen)
        assert np.isfinite(seen).all()
        assert (np.abs(seen) <= 1).all()
        assert answer.figures["late"] == (3 if level.name == "tight" else 0)


def test_a_wait_counts_in_the_clock_and_not_in_the_energy(lm, layers):
    live = LiveSession(lm, Scenario.load("default", interference=Interference(1.0)))
    at_once, later = (Scripted(lambda *_: 7, layers) for _ in range(2))
    first = live.generate(PROMPT, at_once, 4, GREEDY, slo=LEVEL)
    waited = live.generate(PROMPT, later, 4, GREEDY, slo=LEVEL, waited_s=0.015)
    assert waited.token_ids == first.token_ids
    assert waited.due_s == first.due_s
    assert waited.emitted_s == pytest.approx([0.015 + t for t in first.emitted_s])
    assert waited.figures["ttft_s"] == pytest.approx(first.figures["ttft_s"] + 0.015)
    assert waited.figures["tpot_s"] == pytest.approx(first.figures["tpot_s"])
    ran = [f["energy_j"] - f["idle_j"] for f in (first.figures, waited.figures)]
    assert ran[1] == pytest.approx(ran[0])
    slack = OBSERVATION.index("slack")
    assert later.seen[0][slack] == pytest.approx(at_once.seen[0][slack] - 0.015 / (2 * LEVEL.ttft_s))
    summary = waited.summary()
    assert summary["waited_s"] == 0.015
    assert summary["avg_power_w"] == pytest.approx(waited.figures["energy_j"] / (waited.figures["time_s"] - 0.015))
    live.close()


def test_a_wait_beyond_the_deadline_is_a_miss(session):
    answer = session.generate(PROMPT, performance(), 1, GREEDY, slo=LEVEL, waited_s=0.021)
    assert answer.figures["late"] == 1
    assert answer.figures["idle_j"] == 0


def test_a_request_that_waited_meets_the_co_runner_of_its_own_time(lm):
    live = LiveSession(lm, Scenario.load("default", interference=Interference(3.0, 1e-3, 5e-3, 5e-3)))
    tpot_s = {live.generate(PROMPT, performance(), 3, GREEDY, slo=LEVEL, waited_s=w).figures["tpot_s"] for w in (0, 0.5, 7.0)}
    live.close()
    assert len(tpot_s) > 1


@pytest.mark.parametrize("waited_s", [-1.0, float("nan"), float("inf"), 1e12, True, "1"])
def test_waits_that_are_none_are_refused(session, waited_s):
    with pytest.raises(BadValueError, match="wait"):
        session.generate(PROMPT, performance(), 2, waited_s=waited_s)


def test_service_levels_that_are_none_are_refused(session):
    with pytest.raises(UnknownNameError, match=r"service level 'chatbt'.*chatbot"):
        session.generate(PROMPT, performance(), 2, slo="chatbt")
    with pytest.raises(BadValueError, match="service level 5"):
        session.generate(PROMPT, performance(), 2, slo=5)
    for ttft_s, tpot_s in ((1e300, 1e-3), (1e-3, 1e9)):
        with pytest.raises(BadValueError, match="due after"):
            session.generate(PROMPT, performance(), 2, slo=ServiceLevel("absurd", ttft_s, tpot_s))
    assert session.generate(PROMPT, performance(), 2, GREEDY).token_ids


def test_a_prompt_may_be_tokens(session, lm):
    ids = lm.encode(PROMPT)
    asked, given = session.generate(PROMPT, performance(), 5, GREEDY), session.generate(ids, performance(), 5, GREEDY)
    assert given.token_ids == asked.token_ids
    assert given.prompt == asked.prompt
    assert given.figures == asked.figures
    assert session.generate(np.array(ids), performance(), 1, GREEDY).token_ids == asked.token_ids[:1]


@pytest.mark.parametrize(
    ("prompt", "named"),
    [([], "empty"), ([5, 10**6], "token 1000000"), ([-1], "token -1"), ([5] * 600, "600 tokens"), (5, "int")],
)
def test_tokens_that_are_no_prompt_are_refused(session, prompt, named):
    with pytest.raises(BadValueError, match=named):
        session.generate(prompt, performance(), 2)


def test_a_listener_may_end_the_response(session, layers):
    expected = session.generate(PROMPT, performance(), 6, GREEDY)
    seen = []

    def third(token):
        seen.append(token)
        return len(seen) == 3

    answer = session.generate(PROMPT, performance(), 6, GREEDY, on_token=third)
    assert answer.token_ids == seen == expected.token_ids[:3]
    assert answer.figures["tokens"] == 3
    assert answer.points.shape == (3, layers)


def test_without_a_reference_only_the_quality_is_unknown(session, layers):
    known = session.generate(PROMPT, exits_at(4, layers), 8, GREEDY)
    other = session.generate(PROMPT, exits_at(4, layers), 8, GREEDY, reference=False)
    assert other.token_ids == known.token_ids
    quality = ("agreement", "dnll")
    assert {k: v for k, v in other.summary().items() if k not in quality} == {
        k: v for k, v in known.summary().items() if k not in quality
    }
    assert all(known.summary()[name] is not None and other.summary()[name] is None for name in quality)
    full = session.generate(PROMPT, performance(), 8, GREEDY, reference=False).summary()
    assert (full["agreement"], full["dnll"]) == (1, 0)


def test_a_model_without_a_probe_serves_who_reads_none(lm, layers):
    bare = replace(lm, probe=None)
    with pytest.raises(BadValueError, match="no exit probe"):
        LiveSession(bare, Scenario.load("default"))
    live = LiveSession(bare, Scenario.load("default", probe=False))
    answer = live.generate(PROMPT, exits_at(4, layers), 6, GREEDY)
    live.close()
    assert answer.figures["probe_j"] == 0
    assert answer.figures["depth"] < 6 * layers


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_listener_that_fails_leaves_the_session_usable(session, error):
    expected = session.generate(PROMPT, performance(), 6, GREEDY)

    def fail(token):
        if token == expected.token_ids[2]:
            raise error("gone")

    with pytest.raises(error, match="gone"):
        session.generate(PROMPT, performance(), 6, GREEDY, on_token=fail)
    again = session.generate(PROMPT, performance(), 6, GREEDY)
    assert again.token_ids == expected.token_ids
    assert again.figures == expected.figures


def test_the_model_is_only_touched_while_a_layer_runs(session, lm):
    before = [dict(layer.__dict__) for layer in lm.model.model.layers]
    session.generate(PROMPT, performance(), 3, GREEDY)
    assert [dict(layer.__dict__) for layer in lm.model.model.layers] == before


def test_signals_are_shown_as_a_trace_set_shows_them():
    rng = np.random.default_rng(0)
    drawn = np.stack([rng.random(500), 10 ** rng.uniform(-8, 2, 500)], -1).astype(np.float32)
    drawn[:4] = [[0, 0], [1, 1], [1, 1e-9], [0.5, 50]]
    shown = np.array([scaled_signal(*row) for row in drawn.tolist()], np.float32)
    assert np.allclose(shown, scaled_signals(drawn), atol=1e-7)


def test_reading_the_probe_of_one_state_is_reading_it(lm):
    hidden = torch.randn(20, lm.shape.hidden_size, generator=torch.Generator().manual_seed(0)) * 3
    read = ProbeReader(lm.probe)
    for depth in range(1, lm.shape.layers):
        for state in hidden:
            assert read(state, depth) == pytest.approx(lm.probe.signals(state, depth).tolist(), rel=1e-4)
    exact = lm.probe.signals(hidden[0].bfloat16(), 3).tolist()
    assert read(hidden[0].bfloat16(), 3) == pytest.approx(exact, rel=1e-4)
    assert read(torch.zeros(lm.shape.hidden_size), 1) == pytest.approx(
        lm.probe.signals(torch.zeros(lm.shape.hidden_size), 1).tolist(), rel=1e-4
    )


def steady_chip(folder):
    """The default chip, but for a leakage that does not grow with the temperature: costs depend on shapes alone."""
    text = (resources.files("clone_rl.hw_emulator") / "chips" / "asic28-sram.toml").read_text(encoding="utf-8")
    changed = re.sub(r"(?m)^leakage_per_kelvin *=.*$", "leakage_per_kelvin = 0.0", text)
    assert changed != text
    (folder / "steady.toml").write_text(changed, encoding="utf-8")
    return str(folder / "steady.toml")


@pytest.mark.parametrize("kv", KV)
def test_the_ledger_of_shapes_costs_what_the_kernel_charged(lm, layers, tmp_path, kv):
    quiet = Scenario.load("default", policy_macs=1000, kv=kv, chip=steady_chip(tmp_path), interference=Interference(1.0))
    live = LiveSession(lm, quiet)
    answer = live.generate(PROMPT, mixed(layers, 3), 14, GREEDY)
    cost = answer.ledger.total(live.emulator)
    wake_s = float(live.emulator.constants[0]["wake_s"])
    assert answer.ledger.counts()["VF_SWITCH"] == answer.figures["switches"]
    assert {"propagate": "KV_FILL", "exact": "CATCHUP"}.get(kv, "LAYER") in answer.ledger.counts()
    assert wake_s + cost.latency_s == pytest.approx(answer.emitted_s[-1], rel=1e-9)
    assert cost.energy_j == pytest.approx(answer.figures["energy_j"] - answer.figures["idle_j"], rel=1e-9)
