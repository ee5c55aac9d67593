"""Copies of environments, which workers in other processes get, go on as the original does."""

import copy
import pickle
from functools import partial

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest

from clone_rl.envs import ENV_IDS
from clone_rl.envs.state import AMOUNTS

IDS = list(ENV_IDS)
STAGES = {"fresh": None, "reset": 0, "under way": 57}
COPIES = {
    "pickle": lambda env: pickle.loads(pickle.dumps(env)),
    "deepcopy": copy.deepcopy,
    "cloudpickle": lambda env: cloudpickle.loads(cloudpickle.dumps(env)),
}


class EnergyOnly:
    terms = ("energy",)

    def __call__(self, amounts):
        return -amounts[:, [AMOUNTS.index("energy")]]


def go_on(env, steps, choose=1, begin=False):
    """Everything that is seen of so many random steps, as text, whose floats are exact."""
    space = copy.deepcopy(env.action_space)
    space.seed(choose)
    seen = [env.reset(seed=3)] if begin else []
    for _ in range(steps):
        seen.append(env.step(space.sample()))
        if not hasattr(env.unwrapped, "num_envs") and seen[-1][2]:
            seen.append(env.reset())
    return [_plain(each) for each in seen]


def _plain(value):
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return np.asarray(value).tolist() if not np.isscalar(value) and value is not None else value


def same(one, other):
    return repr(one) == repr(other)


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("env_id", IDS)
def test_a_copy_goes_on_as_the_original_does(trace_folder, env_id, rows, stage, how):
    """And neither moves the other."""
    settings = {"traces": trace_folder, "kv": "exact", "randomise": {"slowdown": [1.0, 1.5]}, "reward": EnergyOnly()}
    env = gym.make_vec(env_id, rows, **settings) if rows else gym.make(env_id, **settings)
    if STAGES[stage] is not None:
        go_on(env, STAGES[stage], begin=True)
    twin = COPIES[how](env)
    third = COPIES[how](twin)
    expected = go_on(env, 400, 2, begin=stage == "fresh")
    assert len({repr(each) for each in expected}) > 100
    assert same(go_on(twin, 400, 2, begin=stage == "fresh"), expected)
    assert same(go_on(third, 400, 2, begin=stage == "fresh"), expected)


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_has_weights_of_its_own(trace_folder, how):
    """What ``set_weights`` writes to is what the copy's kernel reads."""
    env = gym.make_vec(IDS[0], 3, traces=trace_folder).unwrapped
    env.reset(seed=0)
    twin, plain = COPIES[how](env), COPIES[how](env)
    twin.set_weights(late=0.0, disagree=1000.0, kl=0.0)
    expected = go_on(env, 200)
    assert not same(go_on(twin, 200), expected)
    assert same(go_on(plain, 200), expected)


def _given(env):
    return env


@pytest.mark.slow
@pytest.mark.parametrize("env_id", IDS)
def test_workers_that_are_spawned_get_environments_under_way(trace_folder, env_id):
    """SB3's, for real."""
    vec_env = pytest.importorskip("stable_baselines3.common.vec_env")
    envs = [gym.make(env_id, traces=trace_folder) for _ in range(2)]
    for env in envs:
        go_on(env, 20, begin=True)
    here = vec_env.DummyVecEnv([partial(_given, copy.deepcopy(env)) for env in envs])
    there = vec_env.SubprocVecEnv([partial(_given, env) for env in envs], start_method="spawn")
    try:
        heads, rng = envs[0].unwrapped.control.heads, np.random.default_rng(0)
        for _ in range(60):
            actions = rng.integers(0, heads, (2, len(heads)))
            actions = actions[:, 0] if len(heads) == 1 else actions
            ours, theirs = here.step(actions), there.step(actions)
            assert np.array_equal(ours[0], theirs[0])
            assert np.array_equal(ours[1], theirs[1].astype(np.float32))  # DummyVecEnv rounds rewards
            assert np.array_equal(ours[2], theirs[2])
    finally:
        there.close()
