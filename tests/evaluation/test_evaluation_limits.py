"""The limits of a scenario decide where nothing else is said."""

import pytest

from clone_rl.agents.heuristics import Fixed, tune_pace
from clone_rl.envs.control import load_control
from clone_rl.envs.scenario import Limits
from clone_rl.evaluation.protocol import evaluate

LOOSE = {"miss": 1.0, "disagree": 0.2, "dnll": 0.2}
SLOW = Fixed("powersave", 0)


@pytest.fixture(scope="module")
def loose(trace_folder):
    return load_control("layer", traces=trace_folder, limits=LOOSE)


def test_who_is_within_limits_is_judged_by_the_scenarios(control, loose):
    strict, lenient = (evaluate(each, [SLOW]).summary[0] for each in (control, loose))
    assert strict["miss_rate"] == lenient["miss_rate"] > control.scenario.limits.miss
    assert not strict["within_constraints"]
    assert lenient["within_constraints"]


def test_limits_that_are_given_go_before_the_scenarios(control, loose):
    assert evaluate(control, [SLOW], limits=Limits(**LOOSE)).summary[0]["within_constraints"]
    assert not evaluate(loose, [SLOW], limits=Limits()).summary[0]["within_constraints"]


def test_pacing_is_tuned_to_the_scenarios_limits(control, loose):
    strict, lenient = tune_pace(control), tune_pace(loose)
    assert strict == tune_pace(loose, Limits())
    assert lenient == tune_pace(control, Limits(**LOOSE))
    assert (lenient.agree_bar, lenient.kl_bar) != (strict.agree_bar, strict.kl_bar)
