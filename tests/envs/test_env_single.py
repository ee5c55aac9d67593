import json
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env

import clone_rl
from clone_rl.envs import ENV_IDS, check_env_id
from clone_rl.envs.observation import N_OBS, OBSERVATION
from clone_rl.envs.single import LayerControlEnv
from clone_rl.errors import BadValueError, UnknownNameError

IDS = list(ENV_IDS)


def play(env, seed, rng):
    done, steps, seen = False, 0, [env.reset(seed=seed)[0]]
    while not done:
        observation, reward, done, truncated, info = env.step(rng.integers(0, env.unwrapped.control.heads).squeeze())
        seen.append(observation)
        assert env.observation_space.contains(observation)
        assert type(reward) is float
        assert type(done) is bool
        assert truncated is False
        steps += 1
    return np.array(seen), info


@pytest.mark.parametrize("env_id", IDS)
def test_gymnasiums_checker_has_nothing_to_say(trace_folder, env_id):
    env = gym.make(env_id, traces=trace_folder, render_mode="ansi").unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env)


@pytest.mark.parametrize("env_id", IDS)
def test_stable_baselines_checker_has_nothing_to_say(trace_folder, env_id):
    from stable_baselines3.common.env_checker import check_env as sb3_check_env

    env = gym.make(env_id, traces=trace_folder).unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sb3_check_env(env)


@pytest.mark.parametrize("env_id", IDS)
def test_a_spec_survives_json(trace_folder, env_id):
    text = gym.make(env_id, traces=trace_folder, switching="pmic", slack_low=1.5).spec.to_json()
    assert json.loads(text)["kwargs"]["switching"] == "pmic"
    env = gym.make(EnvSpec.from_json(text))
    assert env.unwrapped.control.scenario.slack_low == 1.5
    assert env.unwrapped.control.scenario.traces == trace_folder


@pytest.mark.parametrize("env_id", IDS)
def test_the_shipped_traces_play(env_id):
    env = gym.make(env_id)
    for split in ("train", "validation", "test"):
        env = gym.make(env_id, split=split)
        seen, info = play(env, 0, np.random.default_rng(0))
        assert (np.abs(seen) <= 1).all()
        assert info["figures"]["tokens"] >= 1


@pytest.mark.parametrize("env_id", IDS)
def test_an_episode_ends_with_its_figures(trace_folder, env_id, traces):
    seen, info = play(gym.make(env_id, traces=trace_folder), 4, np.random.default_rng(0))
    figures = info["figures"]
    document = figures["document"]
    assert figures["tokens"] == traces.offset[document + 1] - traces.offset[document]
    assert traces.split[document] == 0
    assert figures["depth"] <= 10 * figures["tokens"]
    assert all(type(value) in (int, float) for value in figures.values())
    assert seen.shape[1] == N_OBS == len(OBSERVATION)


def test_every_split_draws_its_own_documents(trace_folder, traces):
    for index, split in enumerate(("train", "validation", "test")):
        env = gym.make(IDS[1], traces=trace_folder, split=split)
        drawn = {play(env, seed, np.random.default_rng(0))[1]["figures"]["document"] for seed in range(40)}
        assert {int(traces.split[d]) for d in drawn} == {index}
        assert len(drawn) > 3


def test_a_document_can_be_asked_for(trace_folder):
    env = gym.make(IDS[0], traces=trace_folder).unwrapped
    env.reset(seed=0, options={"document": 29})
    done = False
    while not done:
        *_, done, _, info = env.step(7)
    assert info["figures"]["document"] == 29
    for document in (30, -1, 1.0, True, "3"):
        with pytest.raises(BadValueError, match="0 to 29"):
            env.reset(options={"document": document})
    with pytest.raises(BadValueError, match="no option 'documents'"):
        env.reset(options={"documents": 3})


def test_resets_without_a_seed_go_on_to_other_requests(trace_folder):
    env = gym.make(IDS[0], traces=trace_folder)
    first = [env.reset(seed=1)[0].tobytes(), *(env.reset()[0].tobytes() for _ in range(5))]
    again = [env.reset(seed=1)[0].tobytes(), *(env.reset()[0].tobytes() for _ in range(5))]
    assert first == again
    assert len(set(first)) == 6


@pytest.mark.parametrize(
    ("env_id", "action"),
    [
        pytest.param(IDS[0], float("nan"), id="NaN"),
        pytest.param(IDS[0], 1.0, id="float"),
        pytest.param(IDS[0], True, id="bool"),
        pytest.param(IDS[0], None, id="None"),
        pytest.param(IDS[0], "3", id="text"),
        pytest.param(IDS[0], 9, id="above"),
        pytest.param(IDS[0], -1, id="below"),
        pytest.param(IDS[0], 2**64 - 1, id="huge"),
        pytest.param(IDS[0], [1, 2], id="two"),
        pytest.param(IDS[0], [], id="none"),
        pytest.param(IDS[0], [[1, 2], [3]], id="ragged"),
        pytest.param(IDS[1], 3, id="scalar for many"),
        pytest.param(IDS[1], [7, 7, 7, 7, 7], id="too short"),
        pytest.param(IDS[1], [7, 7, 7, 7, 8, 0], id="point out of range"),
        pytest.param(IDS[1], [7, 7, 7, 7, 7, 5], id="depth out of range"),
        pytest.param(IDS[1], [0.0] * 6, id="floats"),
    ],
)
def test_bad_actions_are_refused(trace_folder, env_id, action):
    env = gym.make(env_id, disable_env_checker=True, traces=trace_folder).unwrapped
    env.reset(seed=0)
    with pytest.raises(BadValueError):
        env.step(action)


@pytest.mark.parametrize("action", [3, np.int64(3), np.int32(3), np.uint8(3), np.array(3), np.array([3])])
def test_integers_of_any_kind_are_actions(trace_folder, action):
    env = gym.make(IDS[0], disable_env_checker=True, traces=trace_folder).unwrapped
    env.reset(seed=0)
    env.step(action)
    assert env.render() is None


def test_rendering_says_where_the_request_stands(trace_folder):
    env = gym.make(IDS[0], traces=trace_folder, render_mode="ansi")
    env.reset(seed=0)
    env.step(3)
    line = env.render()
    assert len(line.splitlines()) == 4
    assert line.splitlines()[1].startswith("token 0/")
    assert "0.72 V 260 MHz" in line


def test_an_unknown_render_mode_is_refused(trace_folder):
    with pytest.raises(BadValueError, match="render_mode"):
        LayerControlEnv(traces=trace_folder, render_mode="human")


def test_an_unknown_environment_gets_a_suggestion():
    assert check_env_id(IDS[0]) == IDS[0]
    with pytest.raises(UnknownNameError, match="did you mean 'clone_rl/LayerControl-v0'"):
        check_env_id("clone_rl/LayerControl-v1")


@pytest.mark.parametrize("module", ["clone_rl", "clone_rl.hw_emulator", "clone_rl.envs.vector"])
def test_importing_the_lower_floors_imports_no_torch(module):
    code = f"import sys, {module}; print(sorted({{'torch', 'stable_baselines3', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_registering_again_is_harmless():
    from clone_rl.envs import register

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        register()
    assert clone_rl.__version__
