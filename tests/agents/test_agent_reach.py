import math

import numpy as np
import pytest

from clone_rl.agents.heuristics import Fixed, Pace
from clone_rl.agents.reach import Reach, broken, reach, verdict
from clone_rl.agents.rollout import run_requests
from clone_rl.envs.control import load_control
from clone_rl.envs.scenario import Limits
from clone_rl.errors import BadValueError


def tight(trace_folder, tpot_s):
    return load_control(
        "layer", traces=trace_folder, slo=[{"name": "a", "ttft_s": 1.0, "tpot_s": tpot_s}], deadline="per-token"
    )


def late(control, controller, split):
    figures = run_requests(control, controller, split, control.traces.documents(split), 0)
    return figures["late"].sum() / figures["tokens"].sum()


def test_where_everything_is_in_time_every_limit_can_be_held(control):
    found = reach(control, Limits())
    assert found.best == 0.0
    assert found.check(Limits(0.0, 0.0, 0.0), "default") == ""


def test_a_limit_that_full_depth_breaks_and_exits_may_hold_is_warned_of(trace_folder):
    control = tight(trace_folder, 0.17e-3)
    found = reach(control, Limits(0.01, 0.0, 0.0))
    assert found.best == max(late(control, Fixed("performance", 7), split) for split in ("train", "validation")) > 0.05
    assert max(found.floor.values()) == 0.0
    assert f"the best reachable that is known in scenario 'mine' is {found.best:.4g}" in found.check(Limits(0.01), "mine")
    # Where more may exit, more is in time.
    assert reach(control, Limits(0.01, 1.0, 10.0)).best < found.best


def test_a_limit_that_nothing_can_hold_is_refused_with_the_best_that_is_reached(trace_folder):
    control = tight(trace_folder, 1e-6)
    found = reach(control, Limits())
    first = Pace(control.points, 0.0, math.inf, floor=control.points - 1)
    assert found.floor["train"] == late(control, first, "train") > 0.5
    with pytest.raises(BadValueError, match=r"max_miss is 0.01 and cannot be held in scenario 'mine'") as raised:
        found.check(Limits(), "mine")
    assert f"{found.best:.4g}" in raised.value.hint
    assert found.check(Limits(found.best), "mine") == ""


def test_no_controller_is_less_late_than_the_floor(trace_folder):
    control = tight(trace_folder, 0.05e-3)
    found, rng = reach(control, Limits()), np.random.default_rng(0)
    for _ in range(20):
        pace = Pace(control.points, rng.uniform(), rng.uniform(), int(rng.integers(3)), int(rng.integers(8)))
        assert all(late(control, pace, split) >= found.floor[split] for split in found.floor)


def test_a_verdict_names_each_limit_that_is_not_held():
    row = {"miss_rate": 0.03, "disagreement": 0.01, "dnll": 0.021}
    found = verdict(Limits(0.01, 0.02, 0.02), row, Reach({"train": 0.0, "validation": 0.002}, {}))
    assert found["max_miss"] == {"limit": 0.01, "measured": 0.03, "held": False, "best_reachable": 0.002}
    assert found["max_disagree"]["held"]
    assert broken(found) == [
        "max_miss 0.01 is not held: 0.03 (best reachable: 0.002)",
        "max_dnll 0.02 is not held: 0.021 (best reachable: 0)",
    ]
