"""MaskablePPO and RecurrentPPO of sb3-contrib through the same adapter."""

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("sb3_contrib")

import torch
from sb3_contrib import MaskablePPO, RecurrentPPO
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported

from clone_rl.agents.sb3 import Sb3VecEnv
from clone_rl.envs import ENV_IDS

torch.set_num_threads(1)

SMALL = {"n_steps": 32, "batch_size": 64, "n_epochs": 2, "seed": 3, "device": "cpu"}


class Watched(Sb3VecEnv):
    """Counts exits, and those that were not allowed."""

    exits = refused = 0

    def step_async(self, actions):
        exits = np.asarray(actions) == self.action_space.n - 1
        self.exits += exits.sum()
        self.refused += (exits & ~self.env.action_masks()[:, -1]).sum()
        super().step_async(actions)


def make(env_id, trace_folder, kind=Sb3VecEnv):
    env = gym.make_vec(env_id, 8, vectorization_mode="vector_entry_point", traces=trace_folder).unwrapped
    return kind(env, reward_scale=0.1)


def weights(model):
    return [value.numpy().tobytes() for value in model.policy.state_dict().values()]


@pytest.mark.slow
@pytest.mark.parametrize("env_id", list(ENV_IDS))
@pytest.mark.parametrize(("algorithm", "policy"), [(MaskablePPO, "MlpPolicy"), (RecurrentPPO, "MlpLstmPolicy")])
def test_it_learns_through_the_adapter_and_equal_seeds_give_equal_weights(trace_folder, algorithm, policy, env_id):
    found = []
    for _ in range(2):
        model = algorithm(policy, make(env_id, trace_folder), **SMALL)
        before = weights(model)
        found.append(weights(model.learn(512)))
    assert found[0] == found[1] != before
    assert model.num_timesteps == 512
    assert {"r", "l"} <= set(model.ep_info_buffer[-1])


@pytest.mark.slow
def test_maskable_ppo_never_exits_where_it_may_not(trace_folder):
    env = make("clone_rl/LayerControl-v0", trace_folder, Watched)
    assert is_masking_supported(env)
    model = MaskablePPO("MlpPolicy", env, **SMALL).learn(2048)
    assert env.exits > 50
    assert env.refused == 0
    observation, rng = env.reset(), np.random.default_rng(0)
    for _ in range(100):
        masks = get_action_masks(env)
        action, _ = model.predict(observation, action_masks=masks, deterministic=bool(rng.integers(2)))
        assert masks[np.arange(8), action].all()
        observation, *_ = env.step(action)
    mean, _ = evaluate_policy(model, env, n_eval_episodes=4)
    assert np.isfinite(mean)
    # Nobody else's are masked: the check above can fail.
    unmasked = make("clone_rl/LayerControl-v0", trace_folder, Watched)
    RecurrentPPO("MlpLstmPolicy", unmasked, **SMALL).learn(512)
    assert unmasked.refused > 0


@pytest.mark.slow
def test_a_recurrent_policy_is_asked_with_its_state(trace_folder):
    env = make("clone_rl/LayerControl-v0", trace_folder)
    model = RecurrentPPO("MlpLstmPolicy", env, **SMALL).learn(256)
    observation, state, starts = env.reset(), None, np.ones(8, bool)
    for _ in range(50):
        action, state = model.predict(observation, state=state, episode_start=starts)
        observation, _, starts, _ = env.step(action)
    assert state[0].shape == (1, 8, 256)
