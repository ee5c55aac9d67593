import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

from stable_baselines3.common.monitor import Monitor

from clone_rl.agents.sb3 import Sb3VecEnv
from clone_rl.envs import ENV_IDS
from clone_rl.errors import BadValueError

IDS = list(ENV_IDS)


def make_vec(env_id, trace_folder, **kwargs):
    return gym.make_vec(env_id, 4, vectorization_mode="vector_entry_point", traces=trace_folder, **kwargs).unwrapped


@pytest.mark.parametrize("limit", [None, 7])
@pytest.mark.parametrize("env_id", IDS)
def test_the_adapter_tells_what_the_native_environment_tells(trace_folder, env_id, limit):
    native = make_vec(env_id, trace_folder, max_episode_steps=limit)
    adapter = Sb3VecEnv(make_vec(env_id, trace_folder, max_episode_steps=limit), reward_scale=0.1)
    adapter.seed(8)
    assert (adapter.reset() == native.reset(seed=8)[0]).all()
    rng, returns, lengths, ended = np.random.default_rng(0), np.zeros(4), np.zeros(4), 0
    for _ in range(300):
        actions = rng.integers(0, native.control.heads, (4, len(native.control.heads)))
        actions = actions[:, 0] if actions.shape[1] == 1 else actions
        seen, reward, terminated, truncated, info = native.step(actions)
        observation, scaled, done, infos = adapter.step(actions)
        assert (observation == seen).all()
        assert scaled.dtype == np.float32
        np.testing.assert_allclose(scaled, 0.1 * reward, rtol=1e-6)
        assert (done == (terminated | truncated)).all()
        returns += reward
        lengths += 1
        for i in range(4):
            if not done[i]:
                assert infos[i] == {}
                continue
            ended += 1
            assert (infos[i]["terminal_observation"] == info["final_obs"][i]).all()
            assert infos[i]["TimeLimit.truncated"] == (truncated[i] and not terminated[i])
            assert infos[i]["episode"]["r"] == pytest.approx(returns[i], rel=1e-12)
            assert infos[i]["episode"]["l"] == lengths[i]
            assert infos[i]["figures"]["energy_j"] == info["final_info"]["figures"]["energy_j"][i]
            returns[i] = lengths[i] = 0
    assert ended > 5


def test_an_environment_that_resets_in_the_next_step_is_refused(trace_folder):
    env = gym.make_vec(IDS[0], 2, vectorization_mode="sync", traces=trace_folder)
    with pytest.raises(BadValueError, match="SAME_STEP"):
        Sb3VecEnv(env)


def test_a_reset_forgets_what_was_running(trace_folder):
    adapter = Sb3VecEnv(make_vec(IDS[1], trace_folder))
    adapter.reset()
    for _ in range(2):
        adapter.step(np.full((4, 6), 3))
    adapter.reset()
    length = 0
    while True:
        length += 1
        *_, done, infos = adapter.step(np.full((4, 6), 3))
        if done.any():
            assert infos[int(done.argmax())]["episode"]["l"] == length
            break


def test_it_answers_for_a_monitor_and_hands_out_masks_row_by_row(trace_folder):
    adapter = Sb3VecEnv(make_vec(IDS[0], trace_folder))
    adapter.reset()
    assert adapter.env_is_wrapped(Monitor) == [True] * 4
    assert adapter.env_is_wrapped(gym.Wrapper) == [False] * 4
    assert [mask.shape for mask in adapter.env_method("action_masks")] == [(9,)] * 4
    assert adapter.get_attr("num_envs") == [4] * 4
    adapter.close()
