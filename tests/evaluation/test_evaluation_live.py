"""The protocol with a source of tokens in the loop. Here it tells what a trace set holds: then live is replay, bit for bit."""

import numpy as np
import pytest
from called import Called
from recorded import Recorded

from clone_rl.agents.controller import RuleController
from clone_rl.agents.heuristics import Fixed, Pace
from clone_rl.agents.policy import Policy
from clone_rl.agents.rollout import run_requests
from clone_rl.envs.control import load_control
from clone_rl.envs.scenario import Limits
from clone_rl.errors import BadValueError
from clone_rl.evaluation.live import LiveRunner, beside_replay
from clone_rl.evaluation.protocol import evaluate
from clone_rl.evaluation.rows import Origin

FAST, PACE = Fixed("performance", 7), Pace(8, 0.9, 0.3)


@pytest.fixture(scope="module")
def test_control(trace_folder):
    return load_control("layer", traces=trace_folder, split="test")


def runner_of(traces, **options):
    source, ticks = Recorded(traces, **options), []
    return LiveRunner(source, {d: d for d in range(len(traces.split))}, lambda: ticks.append(1)), ticks


def test_a_source_that_tells_what_was_recorded_gives_the_figures_of_the_replay(test_control):
    runner, ticks = runner_of(test_control.traces)
    documents = test_control.traces.documents("test")[::2]
    for controller in (FAST, PACE):
        live = runner(test_control, controller, "test", documents, 17)
        replayed = run_requests(test_control, controller, "test", documents, 17)
        for name in live.dtype.names:
            assert live[name].tolist() == replayed[name].tolist(), name
    assert len(ticks) == 2 * len(documents)
    assert runner.source.asked[: len(documents)] == [(int(d), 17 + i) for i, d in enumerate(documents)]


def test_under_the_shield_a_source_that_tells_what_was_recorded_gives_the_figures_of_the_replay():
    control = load_control("layer", "bursty", "test")
    longest, prompts = int(np.diff(control.traces.offset).max()), control.traces.prompt_tokens
    runner, _ = runner_of(control.traces, longest=longest)
    every, limits = control.traces.documents("test"), Limits(0.01, 0.01, 0.01)
    # A replay's shield knows that no recorded context is longer than these.
    documents = every[prompts[every] + longest <= control.prices.prefill[0]][::25]
    assert len(documents) > 4
    for controller in (PACE, Policy.load("bursty")):
        live = runner(control, controller, "test", documents, 17, shield=True, limits=limits)
        replayed = run_requests(control, controller, "test", documents, 17, shield=True, limits=limits)
        for name in live.dtype.names:
            assert live[name].tolist() == replayed[name].tolist(), name
        bare = runner(control, controller, "test", documents, 17)
        assert live["energy_j"].sum() > bare["energy_j"].sum()
    tight = load_control("layer", "bursty", "test", slack_low=0.5, slack_high=0.5)
    wanted = [(True, False), (True, True)]
    live, replayed = ([run(tight, PACE, "test", documents, 17, *how) for how in wanted] for run in (runner, run_requests))
    for one, other in zip(live, replayed, strict=True):
        assert one["energy_j"].tolist() == other["energy_j"].tolist()
    assert live[1]["disagree"].sum() > live[0]["disagree"].sum()
    called, compiled = (runner(control, c, "test", documents, 17, shield=True, limits=limits) for c in (Called(PACE), PACE))
    for name in called.dtype.names:
        assert called[name].tolist() == compiled[name].tolist(), name


def test_live_rows_say_so_and_keep_what_answered(test_control):
    runner, _ = runner_of(test_control.traces)
    found = evaluate(test_control, [PACE], "test", requests=2, run=runner, origin=Origin(live={"model": "mine"}))
    assert {(row["mode"], row["live"]["model"]) for row in found.requests} == {("live", "mine")}
    assert found.rows == evaluate(test_control, [PACE], "test", requests=2).rows


def test_what_differs_from_the_replay_is_shown_beside_it(test_control):
    runner, _ = runner_of(test_control.traces, flaw=0.25)
    live, replayed = (evaluate(test_control, [FAST, PACE], "test", requests=4, **how).summary for how in ({"run": runner}, {}))
    fast, pace = beside_replay(live, replayed)
    assert (fast["energy_ratio"], fast["disagreement_points"], fast["miss_points"]) == (1.0, 0.0, 0.0)
    assert pace["energy_ratio"] == pytest.approx(1.0)
    assert pace["replay"]["disagreement"] == replayed[1]["disagreement"]
    assert pace["disagreement_points"] == pytest.approx(100 * (live[1]["disagreement"] - replayed[1]["disagreement"]))
    assert pace["disagreement_points"] > 5


def test_what_cannot_run_live_is_refused(test_control, trace_folder):
    runner, _ = runner_of(test_control.traces)
    documents = test_control.traces.documents("test")[:1]

    class PerToken(RuleController):
        name, kind, macs, probes = "tokens", "token", 0, False

    with pytest.raises(BadValueError, match="decides per token"):
        runner(test_control, PerToken(), "test", documents, 0)
    exact = load_control("layer", traces=trace_folder, split="test", kv="exact")
    with pytest.raises(BadValueError, match="kv 'propagate'"):
        runner(exact, FAST, "test", documents, 0)
