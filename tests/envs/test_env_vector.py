import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from clone_rl.envs import ENV_IDS
from clone_rl.envs.figures import as_dict
from clone_rl.errors import BadValueError

IDS = list(ENV_IDS)


def make_vec(env_id, trace_folder, num_envs=3, **kwargs):
    return gym.make_vec(env_id, num_envs, vectorization_mode="vector_entry_point", traces=trace_folder, **kwargs)


def actions_of(env, rng):
    heads = env.unwrapped.control.heads
    actions = rng.integers(0, heads, (env.num_envs, len(heads)))
    return actions[:, 0] if len(heads) == 1 else actions


@pytest.mark.parametrize("env_id", IDS)
def test_row_i_equals_the_single_environment_with_seed_plus_i_bit_for_bit(trace_folder, env_id):
    vector = make_vec(env_id, trace_folder)
    singles = [gym.make(env_id, disable_env_checker=True, traces=trace_folder).unwrapped for _ in range(3)]
    rng, episodes = np.random.default_rng(0), 0
    seen, _ = vector.reset(seed=42)
    for i, env in enumerate(singles):
        assert env.reset(seed=42 + i)[0].tobytes() == seen[i].tobytes()
    for _ in range(5000):
        actions = actions_of(vector, rng)
        seen, reward, terminated, truncated, info = vector.step(actions)
        assert not truncated.any()
        assert ("final_obs" in info) == terminated.any()
        for i, env in enumerate(singles):
            last, own_reward, own_terminated, _, own_info = env.step(actions[i])
            assert own_reward == reward[i]
            assert own_terminated == terminated[i]
            assert own_info["cost"].tobytes() == info["cost"][i].tobytes()
            if own_terminated:
                episodes += 1
                assert info["final_obs"][i].tobytes() == last.tobytes()
                assert info["_final_obs"][i]
                assert info["_final_info"][i]
                figures = as_dict(info["final_info"]["figures"][i])
                assert figures == own_info["figures"]
                last = env.reset()[0]
            assert last.tobytes() == seen[i].tobytes()
    assert episodes > 100


@pytest.mark.parametrize("env_id", IDS)
def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(trace_folder, env_id):
    def run(seed):
        env, rng, seen = make_vec(env_id, trace_folder), np.random.default_rng(1), []
        seen.append(env.reset(seed=seed)[0])
        for _ in range(100):
            seen += env.step(actions_of(env, rng))[:4]
        return b"".join(part.tobytes() for part in seen)

    assert run(5) == run(5)
    assert run(5) != run(6)


def test_a_list_of_seeds_is_taken_row_by_row(trace_folder):
    env = make_vec(IDS[0], trace_folder)
    listed, counted = env.reset(seed=[9, 10, 11])[0], env.reset(seed=9)[0]
    assert listed.tobytes() == counted.tobytes()
    with pytest.raises(BadValueError, match="2 seeds"):
        env.reset(seed=[1, 2])


def test_resetting_without_a_seed_begins_the_next_requests(trace_folder):
    env, single = make_vec(IDS[0], trace_folder), gym.make(IDS[0], traces=trace_folder)
    for seed in (3, None, None):
        assert env.reset(seed=seed)[0][0].tobytes() == single.reset(seed=seed)[0].tobytes()


def test_a_row_without_a_seed_of_its_own_goes_on(trace_folder):
    """As each environment of Gymnasium's own vector environments does."""
    env = make_vec(IDS[0], trace_folder)
    singles = [gym.make(IDS[0], traces=trace_folder) for _ in range(3)]
    for seeds in ([1, 2, 3], [5, None, 7], [None, None, None], [None, 9, None]):
        seen = env.reset(seed=seeds)[0]
        for row, single, seed in zip(seen, singles, seeds, strict=True):
            assert row.tobytes() == single.reset(seed=seed)[0].tobytes()


def test_a_first_list_need_not_have_all_seeds(trace_folder):
    """A row without one draws it; the others are as if all had one."""
    env, full = make_vec(IDS[0], trace_folder), make_vec(IDS[0], trace_folder)
    seen, expected = env.reset(seed=[5, None, 7])[0], full.reset(seed=[5, 6, 7])[0]
    assert (seen[[0, 2]] == expected[[0, 2]]).all()
    env.step(np.full(3, 7))
    first, second = (make_vec(IDS[0], trace_folder) for _ in range(2))
    assert first.reset(seed=[5, None, 7])[0].tobytes() != second.reset(seed=[5, None, 7])[0].tobytes()
    with pytest.raises(BadValueError, match="seed"):
        env.reset(seed=[5, None, -1])


def test_rows_that_a_mask_leaves_alone_keep_their_seeds(trace_folder):
    """Their next request is the one that it would have been."""
    env = make_vec(IDS[0], trace_folder, autoreset_mode="Disabled")
    singles = [gym.make(IDS[0], traces=trace_folder) for _ in range(3)]
    env.reset(seed=[1, 2, 3])
    env.reset(seed=[7, 8, 9], options={"reset_mask": np.array([True, False, True])})
    for single, seed in zip(singles, (7, 2, 9), strict=True):
        single.reset(seed=seed)
    for row, single in zip(env.reset()[0], singles, strict=True):
        assert row.tobytes() == single.reset()[0].tobytes()


@pytest.mark.parametrize("env_id", IDS)
def test_a_time_limit_truncates_and_says_so(trace_folder, env_id):
    env, rng = make_vec(env_id, trace_folder, max_episode_steps=2), np.random.default_rng(0)
    env.reset(seed=0)
    for step in range(1, 9):
        _, _, terminated, truncated, info = env.step(actions_of(env, rng))
        assert not terminated.any()
        assert truncated.all() == truncated.any() == (step % 2 == 0)
        if step % 2 == 0:
            assert all(last.shape == (16,) for last in info["final_obs"])
            assert (info["final_info"]["figures"]["energy_j"] > 0).all()


def test_arrays_of_one_step_are_not_written_by_the_next(trace_folder):
    env, rng = make_vec(IDS[0], trace_folder), np.random.default_rng(0)
    kept = [env.reset(seed=0)[0]]
    copies = [kept[0].copy()]
    for _ in range(50):
        seen, reward, *_, info = env.step(actions_of(env, rng))
        kept += [seen, reward, info["cost"]]
        copies += [seen.copy(), reward.copy(), info["cost"].copy()]
    assert all((a == b).all() for a, b in zip(kept, copies, strict=True))


def test_masks_say_where_an_exit_is_allowed(trace_folder):
    env, single = make_vec(IDS[0], trace_folder, 1), gym.make(IDS[0], traces=trace_folder).unwrapped
    env.reset(seed=0)
    single.reset(seed=0)
    allowed = []
    for _ in range(22):
        assert (env.unwrapped.action_masks()[0] == single.action_masks()).all()
        assert single.action_masks()[:-1].all()
        allowed.append(bool(single.action_masks()[-1]))
        env.step(np.array([4]))
        single.step(4)
    assert allowed == [False] * 11 + [True] * 9 + [False, True]


def test_weights_of_one_vector_environment_leave_others_alone(trace_folder):
    before, free, dear = (make_vec(IDS[0], trace_folder) for _ in range(3))
    free.unwrapped.set_weights(late=0.0, disagree=0.0, kl=0.0)
    dear.unwrapped.set_weights(late=7.0, disagree=100.0, kl=0.0)
    after = make_vec(IDS[0], trace_folder)
    envs, rng = (before, free, dear, after), np.random.default_rng(0)
    for env in envs:
        env.reset(seed=0)
    wrong = 0
    for _ in range(200):
        actions = actions_of(free, rng)
        old, none, high, new = (env.step(actions) for env in envs)
        cost = none[4]["cost"]
        wrong += (cost[:, 1] > 0).sum()
        np.testing.assert_allclose(none[1] - high[1], 7 * cost[:, 0] + 100 * cost[:, 1], atol=1e-9)
        assert (old[1] == new[1]).all()
        assert (old[1] <= none[1] + 1e-12).all()
    assert wrong > 5


@pytest.mark.parametrize("num_envs", [0, -1])
def test_a_vector_environment_needs_a_row(trace_folder, num_envs):
    with pytest.raises(BadValueError, match="num_envs"):
        make_vec(IDS[0], trace_folder, num_envs)


@pytest.mark.parametrize(
    ("env_id", "actions"),
    [
        pytest.param(IDS[0], np.zeros(2, int), id="too few rows"),
        pytest.param(IDS[0], np.array([0, 9, 0]), id="out of range"),
        pytest.param(IDS[0], np.array([0, -1, 0]), id="negative"),
        pytest.param(IDS[0], np.zeros(3), id="floats"),
        pytest.param(IDS[1], np.zeros((6, 3), int), id="transposed"),
        pytest.param(IDS[1], np.zeros(18, int), id="flat"),
        pytest.param(IDS[1], np.full((3, 6), 5), id="depth out of range"),
    ],
)
def test_bad_actions_of_a_vector_environment_are_refused(trace_folder, env_id, actions):
    env = make_vec(env_id, trace_folder)
    env.reset(seed=0)
    before = env.unwrapped.action_masks().tobytes()
    with pytest.raises(BadValueError):
        env.step(actions)
    assert env.unwrapped.action_masks().tobytes() == before


def test_a_vector_environment_does_not_render(trace_folder):
    with pytest.raises(BadValueError, match="render"):
        make_vec(IDS[0], trace_folder, render_mode="ansi")


def test_exits_are_scored_by_what_they_are_told(trace_folder):
    env = make_vec(IDS[0], trace_folder).unwrapped
    env.set_outcome(np.full_like(env.control.world.outcome, 0.25))
    with pytest.raises(BadValueError, match="call reset"):
        env.step(np.full(env.num_envs, 3))
    env.reset(seed=0)
    costs = [env.step(np.full(env.num_envs, 3 if step % 3 else 8))[4]["cost"] for step in range(200)]
    assert set(np.unique(np.stack(costs)[..., 1:])) == {0.0, 0.25}
    with pytest.raises(BadValueError, match="outcome"):
        env.set_outcome(env.control.world.outcome[1:])


@pytest.mark.parametrize("mode", ["SameStep", "Disabled"])
def test_gymnasiums_own_statistics_count_the_steps_of_episodes(trace_folder, mode):
    """Those before 1.4 took a row's next episode to begin one step later, whatever the environment says."""
    env = RecordEpisodeStatistics(make_vec(IDS[0], trace_folder, 2, max_episode_steps=3, autoreset_mode=mode))
    env.reset(seed=0)
    lengths = []
    for _ in range(12):
        *_, truncated, info = env.step(np.full(2, 7))
        if "episode" in info:
            lengths.append(info["episode"]["l"].tolist())
        if mode == "Disabled" and truncated.any():
            env.reset(options={"reset_mask": truncated})
    assert lengths == [[3, 3]] * 4
