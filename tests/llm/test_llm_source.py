"""A model in the loop and its recorded trace are the same request where nothing that an exit does changes later tokens."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from clone_rl.agents.policy import Policy
from clone_rl.envs.control import load_control
from clone_rl.envs.live import LiveLayerControlEnv
from clone_rl.envs.trace import SPLITS
from clone_rl.errors import BadValueError
from clone_rl.hw_emulator.ledger import KV
from clone_rl.llm.documents import Document, Responses, documents
from clone_rl.llm.prompts import make_prompt
from clone_rl.llm.record import record
from clone_rl.llm.source import ModelSource

pytest_plugins = ["llm_models"]


@pytest.fixture(scope="module")
def recorded(lm, tmp_path_factory):
    """Teacher-forced documents and stories that the model told itself, with their trace set on disk."""
    kinds = ("arithmetic", "list", "question", "story") * 2
    prompts = [(SPLITS[n % 3], make_prompt(kind, n)) for n, kind in enumerate(kinds)]
    found = list(documents(lm, prompts, Responses(max_new_tokens=20)))
    folder = tmp_path_factory.mktemp("traces") / "set"
    traces = record(lm, found)
    traces.save(folder)
    return found, traces, str(folder)


def source_of(lm, found, traces, kv):
    return ModelSource(lm, found, kv, expected_tokens=dict(zip(traces.kinds, traces.mean_tokens(), strict=True)))


def random_rule(seed):
    rng = np.random.default_rng(seed)
    return lambda _observation: int(rng.integers(0, 8)) if rng.random() < 0.8 else 8


def policy_rule(_seed):
    policy = Policy.load("default")
    return lambda observation: int(policy.act(observation[None])[0, 0])


def play(env, document, rule, seed):
    """Everything that a controller and its judge see of one request."""
    observation, _ = env.reset(seed=seed, options={"document": document})
    seen, rewards, costs, actions, done = [observation], [], [], [], False
    while not done:
        actions.append(rule(observation))
        observation, reward, done, truncated, info = env.step(actions[-1])
        assert not truncated
        seen.append(observation)
        rewards.append(reward)
        costs.append(info["cost"])
    return actions, np.array(seen), np.array(rewards), np.array(costs), info["figures"]


@pytest.mark.parametrize("make_rule", [random_rule, policy_rule])
@pytest.mark.parametrize("changes", [{}, {"signals": ("norm", "change", "cosine", "margin", "entropy", "depth")}])
def test_an_exact_live_run_is_its_trace(lm, recorded, make_rule, changes):
    if changes and make_rule is policy_rule:
        pytest.skip("the shipped policy reads the 16 standard scalars")
    found, traces, folder = recorded
    source = source_of(lm, found, traces, "exact")
    live = LiveLayerControlEnv(source, lm.shape, kv="exact", **changes)
    replay = gym.make("clone_rl/LayerControl-v0", traces=folder, kv="exact", **changes).unwrapped
    exits = 0
    for document in range(len(found)):
        one = play(live, document, make_rule(document), document)
        other = play(replay, document, make_rule(document), document)
        assert one[0] == other[0]
        for name in ("energy_j", "time_s", "ttft_s", "tpot_s", "late", "depth", "switches", "kv_fill_j", "idle_j"):
            assert one[4][name] == pytest.approx(other[4][name], rel=1e-9, abs=1e-18), name
        # What the model shows is stored in half precision: a value at a boundary may round the other way.
        assert one[1] == pytest.approx(other[1], abs=2e-3)
        assert one[2] == pytest.approx(other[2], abs=2e-3)
        assert one[3] == pytest.approx(other[3], abs=2e-3)
        exits += sum(action == 8 for action in one[0])
    assert exits > 10


@pytest.mark.parametrize("kv", KV)
def test_what_an_exit_leaves_in_the_caches_decides_what_later_tokens_show(lm, recorded, kv):
    found, traces, folder = recorded
    longest = max(range(len(found)), key=lambda d: len(found[d].ids) - found[d].prompt_tokens)
    source = source_of(lm, found, traces, kv)
    live = play(LiveLayerControlEnv(source, lm.shape, kv=kv), longest, random_rule(1), 1)
    replay = play(gym.make("clone_rl/LayerControl-v0", traces=folder, kv=kv).unwrapped, longest, random_rule(1), 1)
    assert live[0] == replay[0]
    assert live[4]["energy_j"] == pytest.approx(replay[4]["energy_j"], rel=1e-9)
    same = np.allclose(live[1], replay[1], atol=2e-3)
    assert same == (kv == "exact")


def test_the_live_environment_passes_gymnasiums_checks(lm, recorded):
    found, traces, _ = recorded
    check_env(LiveLayerControlEnv(source_of(lm, found, traces, "propagate"), lm.shape), skip_render_check=True)


def test_a_prompt_alone_is_answered_by_the_model(lm):
    prompt = tuple(lm.encode("The king"))
    document = Document("story", "test", prompt, len(prompt), sampled=True)
    source = ModelSource(lm, [document], max_new_tokens=6)
    env = LiveLayerControlEnv(source, lm.shape)
    answers = []
    for seed in (1, 1, 2):
        play(env, 0, lambda _: 7, seed)
        answers.append(source.tokens)
    assert answers[0] == answers[1] != answers[2]
    assert all(1 <= len(answer) <= 6 for answer in answers)


def test_bad_use_is_named(lm, recorded):
    found, traces, _ = recorded
    source = source_of(lm, found, traces, "exact")
    with pytest.raises(BadValueError, match="no documents"):
        ModelSource(lm, [])
    with pytest.raises(BadValueError, match="max_new_tokens is 0"):
        ModelSource(lm, found, max_new_tokens=0)
    env = LiveLayerControlEnv(source, lm.shape, kv="exact")
    with pytest.raises(BadValueError, match="document 99"):
        env.reset(options={"document": 99})
    env.reset(seed=0)
    for action in (-1, 9, 1.5, None):
        with pytest.raises(BadValueError, match="action"):
            env.step(action)
    with pytest.raises(BadValueError, match="kv"):
        LiveLayerControlEnv(source, lm.shape, kv="skip")
    with pytest.raises(BadValueError, match="layers"):
        LiveLayerControlEnv(source, load_control("layer").emulator.workload.__class__(**{**lm.shape.__dict__, "layers": 4}))
