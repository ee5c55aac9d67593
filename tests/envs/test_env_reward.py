"""Rewards and costs of a user's own, and rows that are reset by hand."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from clone_rl.envs import ENV_IDS
from clone_rl.envs.state import ENERGY, LATE, SWITCHES
from clone_rl.errors import BadValueError, UnknownNameError


class Steady:
    terms = ("energy", "switches")

    def __call__(self, amounts):
        return -amounts[:, [ENERGY, SWITCHES]] * [1.0, 0.25]


def late_only(amounts):
    return amounts[:, [LATE]]


def bad(amounts):
    return amounts[0]


def drive(env_id, trace_folder, **changes):
    env = gym.make_vec(env_id, 4, vectorization_mode="vector_entry_point", traces=trace_folder, **changes)
    heads = env.unwrapped.control.heads
    return env, lambda rng: rng.integers(0, heads, (4, len(heads))).squeeze(1 if len(heads) == 1 else ())


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_a_reward_of_ones_own_takes_the_place_of_the_scenarios(trace_folder, env_id):
    env, actions = drive(env_id, trace_folder, reward=Steady(), cost=late_only)
    singles = [
        gym.make(env_id, disable_env_checker=True, traces=trace_folder, reward=Steady(), cost=late_only) for _ in range(4)
    ]
    env.reset(seed=3)
    for i, single in enumerate(singles):
        single.reset(seed=3 + i)
    rng, sums, ended = np.random.default_rng(0), np.zeros(4), 0
    for _ in range(300):
        chosen = actions(rng)
        _, reward, terminated, _, info = env.step(chosen)
        sums += reward
        assert info["cost"].shape == (4, 1)
        for i, single in enumerate(singles):
            _, own, done, _, own_info = single.step(chosen[i])
            assert own == reward[i]
            if done:
                ended += 1
                terms = own_info["reward_terms"]
                assert set(terms) == {"energy", "switches"}
                assert sum(terms.values()) == pytest.approx(sums[i])
                assert info["final_info"]["reward_terms"]["energy"][i] == terms["energy"]
                single.reset()
        sums[terminated] = 0
    assert ended > 3


def test_a_reward_can_be_named_in_a_specification(trace_folder):
    named = f"{Steady.__module__}:Steady"
    env = gym.make("clone_rl/LayerControl-v0", traces=trace_folder, reward=named)
    assert gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json())).unwrapped._reward.terms == Steady.terms


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": "nowhere:Reward"}, "No module"),
        ({"reward": "numpy:nothing"}, "nothing"),
        ({"reward": "text"}, "package.module:name"),
        ({"reward": 3}, "not callable"),
        ({"reward": late_only}, "a tuple of names"),
        ({"cost": bad}, "gives shape"),
    ],
    ids=["no module", "no such name", "text", "number", "no terms", "shape"],
)
def test_what_is_no_reward_is_refused(trace_folder, changes, message):
    with pytest.raises(BadValueError, match=message):
        gym.make("clone_rl/LayerControl-v0", traces=trace_folder, **changes)


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_without_autoreset_a_row_waits_for_its_mask(trace_folder, env_id):
    env, actions = drive(env_id, trace_folder, autoreset_mode="Disabled")
    other, _ = drive(env_id, trace_folder)
    assert env.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    seen, expected = env.reset(seed=1)[0], other.reset(seed=1)[0]
    rng, ended = np.random.default_rng(0), 0
    for _ in range(400):
        chosen = actions(rng)
        seen, reward, terminated, _, info = env.step(chosen)
        expected, theirs, _, _, their_info = other.step(chosen)
        assert reward.tobytes() == theirs.tobytes()
        assert ("figures" in info) == terminated.any()
        if terminated.any():
            ended += 1
            assert info["figures"]["energy_j"].tolist() == their_info["final_info"]["figures"]["energy_j"].tolist()
            seen, _ = env.reset(options={"reset_mask": terminated})
        assert seen.tobytes() == expected.tobytes()
    assert ended > 3


def test_a_row_that_is_over_stays_as_it_is(trace_folder):
    env, actions = drive("clone_rl/TokenControl-v0", trace_folder, autoreset_mode="Disabled")
    env.reset(seed=1)
    rng = np.random.default_rng(0)
    for _ in range(40):
        seen, reward, terminated, _, info = env.step(actions(rng))
    assert terminated.all()
    again, reward, terminated, _, info = env.step(actions(rng))
    assert again.tobytes() == seen.tobytes()
    assert terminated.all()
    assert not reward.any()
    assert "figures" not in info


@pytest.mark.parametrize(
    "mask", [np.zeros(4, bool), np.ones(3, bool), np.ones(4), [True] * 4, None], ids=["none", "short", "float", "list", "None"]
)
def test_masks_that_make_no_sense_are_refused(trace_folder, mask):
    env, _ = drive("clone_rl/LayerControl-v0", trace_folder, autoreset_mode="Disabled")
    env.reset(seed=0)
    with pytest.raises(BadValueError, match="reset_mask"):
        env.reset(options={"reset_mask": mask})


def test_modes_and_options_are_checked(trace_folder):
    with pytest.raises(UnknownNameError, match="autoreset mode"):
        drive("clone_rl/LayerControl-v0", trace_folder, autoreset_mode="NextStep")
    env, _ = drive("clone_rl/LayerControl-v0", trace_folder)
    with pytest.raises(BadValueError, match="call reset"):
        env.step(np.zeros(4, int))
    env.reset(seed=0)
    with pytest.raises(BadValueError, match="use 'Disabled'"):
        env.reset(options={"reset_mask": np.ones(4, bool)})
    with pytest.raises(BadValueError, match="only one"):
        env.reset(options={"document": 3})
