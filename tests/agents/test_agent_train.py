import pytest

pytest.importorskip("stable_baselines3")

import torch

from clone_rl.agents.policy import Policy
from clone_rl.agents.train_config import TrainConfig
from clone_rl.agents.training import train
from clone_rl.envs.scenario import Limits
from clone_rl.errors import BadValueError, RunExistsError

torch.set_num_threads(1)

TOML = """
name = "tight"
chip = "asic28-sram"
traces = "{traces}"
deadline = "per-token"
[[slo]]
name = "a"
ttft_s = 1.0
tpot_s = {tpot}
"""


def small(trace_folder, **changes):
    settings = {"env_id": "clone_rl/TokenControl-v0", "steps": 2048, "envs": 16, "rollout": 64, "seed": 5}
    return TrainConfig(**{"traces": trace_folder, **settings, **changes})


def bits(policy):
    return [part.tobytes() for layer in policy.layers for part in layer]


def test_it_gives_a_policy_with_or_without_a_folder(trace_folder, tmp_path):
    policy = train(small(trace_folder))
    kept = train(small(trace_folder), tmp_path / "a" / "run")
    assert bits(policy) == bits(kept) == bits(Policy.load(str(tmp_path / "a" / "run")))
    assert (policy.name, kept.name) == ("policy", "run")
    assert kept.card["decisions_trained"] == 2048
    assert Limits(**kept.card["limits"]) == Limits()


def test_a_folder_is_resumed_and_never_overwritten(trace_folder, tmp_path):
    once = train(small(trace_folder), tmp_path)
    with pytest.raises(RunExistsError, match="holds a run"):
        train(small(trace_folder), tmp_path)
    assert bits(train(small(trace_folder), str(tmp_path), resume=True)) == bits(once)


def test_a_run_without_a_checkpoint_begins_again(trace_folder, tmp_path):
    assert bits(train(small(trace_folder), tmp_path, resume=True)) == bits(train(small(trace_folder)))


def test_limits_are_tried_before_anything_is_written(tmp_path, trace_folder):
    path = tmp_path / "tight.toml"
    path.write_text(TOML.format(traces=trace_folder, tpot=1e-6))
    with pytest.raises(BadValueError, match=r"max_miss is 0\.02 and cannot be held in scenario 'tight'"):
        train(small("", scenario=str(path), max_miss=0.02), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    path.write_text(TOML.format(traces=trace_folder, tpot=0.17e-3))
    with pytest.warns(UserWarning, match="best reachable"):
        train(small("", scenario=str(path), max_miss=0.02, max_disagree=0.0), tmp_path / "run")


@pytest.mark.parametrize(
    ("limit", "value"),
    [
        *(("max_miss", value) for value in (-0.1, 1.1, float("nan"), float("inf"))),
        *(("max_disagree", value) for value in (-1, 2, float("nan"), float("inf"))),
        *(("max_dnll", value) for value in (-0.01, float("nan"), float("inf"))),
    ],
)
def test_limits_out_of_range_are_refused(limit, value):
    with pytest.raises(BadValueError):
        TrainConfig(**{limit: value})


def test_any_subset_of_limits_may_be_given(trace_folder):
    assert TrainConfig(max_dnll=3.0).max_miss is None
    policy = train(small(trace_folder, steps=1024, max_disagree=0.5))
    assert policy.card["limits"] == {"miss": 0.01, "disagree": 0.5, "dnll": 0.02}
