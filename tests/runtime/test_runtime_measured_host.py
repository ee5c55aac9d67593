"""Hosts by their own measurements."""

import pytest
from hosts import measured, shown

from clone_rl.agents.controller import LayerCost
from clone_rl.agents.heuristics import Fixed
from clone_rl.envs.scenario import Scenario, ServiceLevel
from clone_rl.errors import BadValueError, UnknownNameError
from clone_rl.runtime import Decision, RuntimeController


def test_a_measured_host_reckons_with_its_own_times():
    level = ServiceLevel("mine", ttft_s=30e-3, tpot_s=8e-3)
    request = RuntimeController(Fixed("performance", 1), 2, host=measured(context=100)).begin("r", level, 10, 20)
    request.decide(busy=True)
    need_s = (1e-3 + 4 * (4e-3 + 5e-5)) * 1.5
    assert shown(request, "pressure") == pytest.approx(need_s / 30e-3)
    assert shown(request, "lowest_feasible") == 1.0  # (2 + 4 * 8.05) * 1.5 ms is too long
    assert shown(request, "context") == pytest.approx(0.1)
    assert (shown(request, "busy"), shown(request, "slack"), shown(request, "phase")) == (1.0, 0.5, 0.0)
    for _ in range(4):
        request.observe(LayerCost(5e-3, 1e-3))
        decision = request.decide()
    assert decision == Decision(1)
    assert shown(request, "phase") == 1.0 and shown(request, "layer") == 0.0
    need_s, left_s = 1e-3 + 4 * (1e-3 + 5e-5), 38e-3 - 20e-3
    assert shown(request, "pressure") == pytest.approx(need_s / left_s)
    assert shown(request, "lowest_feasible") == 0.0  # (2 + 4 * 2.05) ms and a switch
    assert shown(request, "slack") == 1.0


def test_a_measured_host_takes_what_it_is_not_told_from_the_scenario():
    level = ServiceLevel("mine", 30e-3, 8e-3)
    host, own = measured(slowdown=None), measured(slowdown=None, ambient_c=20.0, throttle_c=60.0)
    chip = Scenario.load("default").load_chip().thermal
    for each, headroom in ((host, (chip.throttle_c - chip.ambient_c) / 100.0), (own, 0.4)):
        request = RuntimeController(Fixed("performance", 1), 2, host=each).begin("r", level, 10, 20)
        request.decide(busy=True)
        assert shown(request, "pressure") == pytest.approx((1e-3 + 4 * (4e-3 + 5e-5)) * 1.44 / 30e-3)
        assert shown(request, "headroom") == pytest.approx(headroom)
        assert shown(request, "context") == pytest.approx(10 / 64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "layers is 0"),
        ({"slowdown": 0.5}, "slowdown is 0.5"),
        ({"head_s": [1e-3] * 3}, "head_s"),
        ({"head_s": [1e-3, float("nan")]}, "head_s"),
        ({"contexts": [64, 16]}, "ascend"),
        ({"ambient_c": 90.0, "throttle_c": 80.0}, "ambient_c 90.0 and throttle_c 80.0"),
        ({"throttle_c": float("nan")}, "throttle_c nan"),
        ({"scenario": "defualt"}, "did you mean 'default'"),
    ],
)
def test_bad_measurements_are_refused(changes, message):
    with pytest.raises((BadValueError, UnknownNameError), match=message):
        measured(**changes)


def test_one_operating_point_is_none():
    with pytest.raises(BadValueError, match="1 operating point"):
        measured(decode_s=[[1e-3], [1e-3]], prefill_s=[[1e-3], [1e-3]], head_s=[1e-3])
