import dataclasses
import json

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

import torch

from clone_rl.agents.policy import Policy
from clone_rl.agents.ppo import Training
from clone_rl.agents.train_config import TrainConfig
from clone_rl.envs.scenario import Limits, Scenario
from clone_rl.errors import BadFileError, BadValueError, UnknownNameError

torch.set_num_threads(1)


def small(trace_folder, **changes):
    # Six updates: the actor stands still in the first four.
    settings = {"steps": 6144, "envs": 16, "rollout": 64, "checkpoint_every": 2, "seed": 5}
    return TrainConfig(traces=trace_folder, **{**settings, **changes})


def train(config, folder, resume=False):
    folder.mkdir(exist_ok=True)
    training = Training(config, folder, resume)
    if not resume:
        training.start()
    training.learn()
    return training


def weights(training):
    return [part.tobytes() for layer in training.policy().layers for part in layer]


@pytest.fixture(scope="module")
def trained(trace_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return train(small(trace_folder), folder), folder


@pytest.mark.slow
def test_training_twice_with_one_seed_gives_the_same_bits(trained, trace_folder, tmp_path):
    assert weights(train(small(trace_folder), tmp_path / "again")) == weights(trained[0])


@pytest.mark.slow
def test_another_seed_gives_another_policy(trained, trace_folder, tmp_path):
    short = small(trace_folder, steps=1024)
    one, other = (Training(dataclasses.replace(short, seed=seed), tmp_path) for seed in (5, 6))
    assert weights(one) != weights(other)
    assert weights(one) != weights(trained[0])


@pytest.mark.slow
def test_the_trained_policy_is_a_file_that_acts_as_the_network(trained, tmp_path):
    policy = trained[0].policy("mine")
    policy.save(tmp_path / "mine.safetensors")
    loaded = Policy.load(str(tmp_path / "mine.safetensors"))
    observations = np.random.default_rng(0).uniform(-1, 1, (200, 16)).astype(np.float32)
    model = trained[0].model
    to_come = np.zeros((200, model.observation_space.shape[0] - 16), np.float32)  # which the critic sees
    own, _ = model.predict(np.concatenate([observations, to_come], 1), deterministic=True)
    assert (loaded.act(observations)[:, 0] == own).mean() > 0.99
    assert loaded.parameters < 1000
    assert trained[0].env.control.scenario.policy_macs == loaded.macs
    assert loaded.card["decisions"] == 6144
    assert json.dumps(loaded.card)


@pytest.mark.slow
def test_a_run_resumes_from_its_checkpoint(trained, trace_folder, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes((trained[1] / "checkpoint.pt").read_bytes())
    longer = Training(small(trace_folder, steps=8192), tmp_path, resume=True)
    assert weights(longer) == weights(trained[0])
    assert longer.model.num_timesteps == 6144
    assert (longer.updates, longer.warm_start) == (trained[0].updates, trained[0].warm_start)
    assert {n: m.state() for n, m in longer.multipliers.items()} == {n: m.state() for n, m in trained[0].multipliers.items()}
    assert (longer.best().layers[0][0] == trained[0].best().layers[0][0]).all()
    longer.learn()
    assert longer.model.num_timesteps == 8192
    assert weights(longer) != weights(trained[0])


@pytest.mark.slow
def test_the_warm_start_imitates_its_teacher(trained):
    assert trained[0].warm_start["cloned"] > 0.7


@pytest.mark.slow
def test_a_finished_run_stays_as_it_is(trained, trace_folder, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes((trained[1] / "checkpoint.pt").read_bytes())
    assert weights(train(small(trace_folder), tmp_path, resume=True)) == weights(trained[0])


@pytest.mark.slow
def test_a_checkpoint_of_another_configuration_is_refused(trained, trace_folder):
    with pytest.raises(BadFileError, match="another configuration"):
        Training(small(trace_folder, seed=6), trained[1], resume=True)


@pytest.mark.parametrize("content", [None, b"", b"not a checkpoint", b"\x80\x02N."], ids=["none", "empty", "text", "pickle"])
def test_without_a_checkpoint_there_is_nothing_to_resume(trace_folder, tmp_path, content):
    if content is not None:
        (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(BadFileError, match="checkpoint"):
        Training(small(trace_folder), tmp_path, resume=True)


def test_token_control_starts_cold(trace_folder, tmp_path):
    training = Training(small(trace_folder, env_id="clone_rl/TokenControl-v0"), tmp_path)
    training.start()
    assert training.warm_start is None
    assert training.policy().heads == (8, 8, 8, 8, 8, 5)


def test_multipliers_reach_the_reward(trace_folder, tmp_path):
    training = Training(small(trace_folder), tmp_path)
    training.multipliers["miss"].value = 12.5
    training.apply_multipliers()
    assert training.env.control.world.rules[0]["late"] == 12.5


@pytest.mark.parametrize(
    "changes", [{"steps": 0}, {"envs": 0}, {"rollout": -1}, {"checkpoint_every": 0}, {"seed": -1}, {"max_miss": -0.1}], ids=str
)
def test_a_configuration_that_makes_no_sense_is_refused(changes):
    with pytest.raises(BadValueError):
        TrainConfig(**changes)


def test_training_holds_the_scenarios_limits_where_nothing_else_is_said(trace_folder, tmp_path):
    scenario = Scenario.load("default", limits={"miss": 0.2, "disagree": 0.3, "dnll": 0.4})
    training = Training(small(trace_folder, scenario=scenario, max_disagree=0.1), tmp_path)
    assert training.limits == Limits(0.2, 0.1, 0.4)
    aims = {name: price.limit for name, price in training.multipliers.items()}
    assert aims == pytest.approx({"miss": 0.95 * 0.2, "disagree": 0.95 * 0.1, "dnll": 0.95 * 0.4})
    assert training.policy().card["limits"] == {"miss": 0.2, "disagree": 0.1, "dnll": 0.4}
    assert training.config.max_miss == 0.2
    assert Training(small(trace_folder), tmp_path).limits == Limits()


def test_an_unknown_environment_is_refused_with_a_suggestion():
    with pytest.raises(UnknownNameError, match="did you mean"):
        TrainConfig(env_id="clone_rl/LayerControl")
