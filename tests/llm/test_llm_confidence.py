import pytest
import torch

from clone_rl.errors import BadValueError, UnknownNameError
from clone_rl.llm.confidence import MEASURES, HeadConfidence
from clone_rl.llm.generation import generate
from clone_rl.llm.stepper import Stepper

pytest_plugins = ["llm_models"]


@pytest.fixture(scope="module")
def stepper(tiny):
    return Stepper(tiny("llama"))


def test_measures_are_those_of_the_distribution(stepper):
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    p = logits.softmax(-1)
    values = {measure: HeadConfidence(stepper, measure=measure).value(logits) for measure in MEASURES}
    assert values["top1"] == pytest.approx(float(p[0]))
    assert values["margin"] == pytest.approx(float(p[0] - p[1]))
    assert values["entropy"] == pytest.approx(float(-(p * p.log()).sum()))


@pytest.mark.parametrize(("threshold", "depth", "reads"), [(0.0, 1, 1), (1.1, 4, 3)])
def test_every_reading_of_the_head_is_charged_once(stepper, threshold, depth, reads):
    rule = HeadConfidence(stepper, threshold)
    out = generate(stepper, [5, 6, 7], rule, max_new_tokens=6, return_dict_in_generate=True)
    assert out.depths == [4] + 5 * [depth]
    assert rule.reads == 5 * reads
    # A token that leaves is emitted from the logits that were read; one that never does runs the head once more.
    assert out.ledger.counts()["HEAD"] == 1 + 5 * (reads + (depth == 4))


def test_only_the_named_exits_are_read(stepper):
    rule = HeadConfidence(stepper, 0.0, exits=[2])
    out = generate(stepper, [5, 6, 7], rule, max_new_tokens=4, return_dict_in_generate=True)
    assert out.depths == [4, 2, 2, 2]


def test_a_rule_that_is_sure_more_easily_leaves_earlier(stepper):
    depths = []
    for threshold in (0.1, 0.5, 0.9):
        rule = HeadConfidence(stepper, threshold, "margin")
        depths.append(sum(generate(stepper, [5, 6, 7], rule, max_new_tokens=30, return_dict_in_generate=True).depths))
    assert depths == sorted(depths)
    assert depths[0] < depths[-1]


def test_bad_settings_are_named(stepper):
    with pytest.raises(UnknownNameError, match="topl"):
        HeadConfidence(stepper, measure="topl")
    with pytest.raises(BadValueError, match="threshold is -1"):
        HeadConfidence(stepper, -1)
    with pytest.raises(BadValueError, match="exit after layer 4"):
        HeadConfidence(stepper, exits=[1, 4])
