"""The hyperparameters that ship for rl-zoo3, which is not installed here: docs/rl-zoo3.md says how it is run."""

import ast
import inspect
from importlib.resources import files

import pytest

pytest.importorskip("stable_baselines3")
pytest.importorskip("yaml")

import yaml
from stable_baselines3 import PPO

from clone_rl.agents.policy import Policy
from clone_rl.envs import ENV_IDS

ZOO = yaml.safe_load((files("clone_rl.agents") / "zoo" / "ppo.yml").read_text())
OWN = {"n_timesteps", "n_envs", "normalize"}


def test_every_environment_has_hyperparameters():
    assert set(ZOO) == set(ENV_IDS)


@pytest.mark.parametrize("env_id", list(ENV_IDS))
def test_they_are_arguments_of_ppo_and_of_the_zoo(env_id):
    assert set(ZOO[env_id]) - OWN <= set(inspect.signature(PPO).parameters)
    assert ZOO[env_id]["batch_size"] <= ZOO[env_id]["n_envs"] * ZOO[env_id]["n_steps"]
    assert ast.literal_eval(ZOO[env_id]["normalize"]) == {"norm_obs": False, "norm_reward": True}


def test_the_network_is_that_of_the_shipped_policy():
    widths = [bias.size for _, bias in Policy.load("default").layers[:-1]]
    assert f"pi={widths}" in ZOO["clone_rl/LayerControl-v0"]["policy_kwargs"]
