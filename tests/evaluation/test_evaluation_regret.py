"""Regret to the clairvoyant oracle, in its parts."""

import dataclasses

import numpy as np
import pytest

from clone_rl.agents.controller import RuleController
from clone_rl.agents.heuristics import Fixed, Pace
from clone_rl.agents.oracle_set import oracle_set, recorded_depths
from clone_rl.agents.rollout import run_requests
from clone_rl.agents.stopping import best_depths
from clone_rl.envs.control import load_control
from clone_rl.envs.scenario import Limits
from clone_rl.errors import BadValueError
from clone_rl.evaluation import regret as measuring
from clone_rl.evaluation.protocol import evaluate
from clone_rl.evaluation.regret import Clairvoyant, Regret, spread

FAST, SLOW, PACE = Fixed("performance", 7), Fixed("powersave", 0), Pace(8, 0.9, 0.3)
LIMITS = Limits(0.1, 0.1, 0.1)


@pytest.fixture(scope="module")
def judged(control):
    return evaluate(control, [FAST, SLOW, PACE], "test", 3, limits=LIMITS, oracle_requests=2)


def test_keys_of_their_own_are_the_requests_that_follow_one_another(control):
    documents = control.traces.documents("test")[:2]
    one, other = (oracle_set(control, "test", documents, key, LIMITS, gap=1.0) for key in (7, np.array([7, 8])))
    assert (one.figures == other.figures).all()
    depths = [recorded_depths(control, PACE, "test", documents, key) for key in (7, np.array([7, 8]))]
    assert all((a == b).all() for a, b in zip(*depths, strict=True))


def test_regret_is_energy_over_that_of_the_oracle_on_the_same_requests(control, judged):
    which = spread(9, 2)
    documents, keys = control.traces.documents("test")[which], 3 + which
    oracle_j = oracle_set(control, "test", documents, keys, LIMITS, gap=1.0).energy_j
    stopping = best_depths(control.traces, "test", LIMITS)
    given = [stopping[control.traces.offset[d] : control.traces.offset[d + 1]] for d in documents]
    stopping_j = oracle_set(control, "test", documents, keys, LIMITS, given, gap=1.0).energy_j
    for row, controller in zip(judged.rows, (FAST, SLOW, PACE), strict=True):
        spent = run_requests(control, controller, "test", control.traces.documents("test"), 3)["energy_j"][which].sum()
        depths = recorded_depths(control, controller, "test", documents, keys)
        exits_j = oracle_set(control, "test", documents, keys, LIMITS, depths, gap=1.0).energy_j
        assert row["regret"] == pytest.approx(spent / oracle_j - 1.0, rel=1e-9)
        assert row["vf_regret"] == pytest.approx((spent - exits_j) / oracle_j, rel=1e-9)
        assert row["vf_regret"] + row["exit_regret"] == pytest.approx(row["regret"], rel=1e-9)
        low, high = row["regret_ci"]
        assert low - 1e-12 <= row["regret"] <= high + 1e-12
        assert row["regret_requests"] == 2
        assert row["causal_regret"] == pytest.approx(stopping_j / oracle_j - 1.0, rel=1e-9)
        assert row["causal_regret"] < row["exit_regret"]
    fast, slow, pace = judged.rows
    assert fast["regret"] > pace["regret"] > -0.05
    assert fast["exit_regret"] == slow["exit_regret"] > 0  # both run at full depth


def test_what_two_controllers_have_in_common_is_solved_once(control, monkeypatch):
    asked = []
    solve = measuring.oracle_set
    monkeypatch.setattr(measuring, "oracle_set", lambda *a, **k: asked.append(a[5]) or solve(*a, **k))
    evaluate(control, [FAST, SLOW], "test", limits=LIMITS, oracle_requests=1)
    assert [depths is None for depths in asked] == [True, False, False]  # free, at full depth, of the best stopping rule


def test_rows_carry_what_the_oracle_spent(judged):
    rows = [row for row in judged.requests if row["controller"] == "pace"]
    assert [row["request"] for row in rows if row["oracle_j"] is not None] == [0, 8]
    spent, oracle_j = (sum(rows[i][name] for i in (0, 8)) for name in ("energy_j", "oracle_j"))
    assert judged.summary[2]["regret"] == pytest.approx(spent / oracle_j - 1.0)


def test_several_seeds_are_joined_in_the_order_of_the_requests():
    one = Regret(np.array([0, 4]), np.array([1.0, 2.0]), np.array([3.0, 4.0]), np.array([2.0, 3.0]))
    both = Regret.join([one, one], 5)
    assert both.which.tolist() == [0, 4, 5, 9]
    assert both.oracle_j.tolist() == [1.0, 2.0] * 2
    assert both.stopping_j.tolist() == [2.0, 3.0] * 2
    assert Regret.join([one, None], 5) is None


def test_without_a_schedule_there_is_no_regret_and_the_reason_is_given(trace_folder):
    strict = load_control("layer", traces=trace_folder, split="test", slack_low=1e-3, slack_high=1e-3)
    judged = evaluate(strict, [FAST], "test", limits=Limits(0.0, 0.0, 0.0), oracle_requests=1)
    assert judged.rows[0]["regret"] is None
    assert judged.rows[0]["regret_requests"] == 0
    assert "no clairvoyant schedule holds miss <= 0" in judged.notes[0]
    assert judged.requests[0]["oracle_j"] is None
    exact = load_control("layer", traces=trace_folder, split="test", kv="exact")
    judged = evaluate(exact, [FAST], "test", oracle_requests=1)
    assert judged.rows[0]["regret"] is None
    assert any("kv" in note or "propagated" in note for note in judged.notes)


def test_controllers_that_change_their_mind_are_refused(control):
    class Moody(RuleController):
        name, kind, macs, probes = "moody", "layer", 0, False
        rule, act = PACE.rule, PACE.act

    figures = run_requests(control, FAST, "test", control.traces.documents("test")[:1], 0)
    with pytest.raises(BadValueError, match="other depths"):
        Clairvoyant(control, "test", LIMITS).measure(PACE, control.traces.documents("test")[:1], np.array([0]), figures)


def test_a_part_that_is_unknown_is_not_made_up(control):
    figures = run_requests(control, FAST, "test", control.traces.documents("test"), 0)
    found = Regret(np.array([0]), figures["energy_j"][:1] / 2, np.array([np.nan]), np.array([np.nan]))
    row = found.as_json(figures, np.zeros(9, int), 0)
    assert row["regret"] == pytest.approx(1.0)
    assert (row["vf_regret"], row["exit_regret"], row["causal_regret"]) == (None, None, None)
    none = dataclasses.replace(found, oracle_j=np.array([np.nan]))
    assert none.as_json(figures, np.zeros(9, int), 0)["regret"] is None
