import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

import torch
from stable_baselines3 import PPO

from clone_rl.agents.foresight import Foresight, ForesightPolicy
from clone_rl.agents.sb3 import Sb3VecEnv
from clone_rl.envs.vector import LayerControlVectorEnv

PRICES = (1.5, 0.7)


@pytest.fixture
def env():
    env = Foresight(Sb3VecEnv(LayerControlVectorEnv(num_envs=8)))
    env.price(*PRICES)
    return env


def cheapest(outcome, layer, layers):
    """What the rest of a token costs at its cheapest exit, the one at this boundary included."""
    costs = [1.0]
    for depth in range(max(1, layer), layers):
        wrong, _, nats = outcome[depth - 1]
        costs.append(depth / layers + PRICES[0] * wrong + PRICES[1] * min(4.0, max(0.0, nats)))
    return min(costs)


def expected(env):
    """What the critic is to be shown of every row, token by token and exit by exit."""
    inner = env.venv.env
    world, layers = inner.control.world, inner.control.traces.layers
    rows = []
    for s in inner._rows.state:
        first, token, layer, tokens = (int(s[name]) for name in ("row", "token", "layer", "tokens"))
        here = world.outcome[first + token]
        risk = [*here[:, 0], *np.clip(here[:, 2], 0.0, 4.0)] if token else [0.0] * 2 * (layers - 1)
        later = [cheapest(world.outcome[first + t], 0, layers) for t in range(token + 1, tokens)]
        rest = (cheapest(here, layer, layers) if token else 1.0) - layer / layers
        ahead = [*later, 0.0, 0.0, 0.0, 0.0][:4]
        slots = (s["slot_end_s"] - s["clock_s"]) / world.rules[0]["slot_s"]
        rows.append([*risk, rest, *ahead, sum(later) / 64.0, len(later) / 128.0, slots])
    return np.array(rows)


def test_what_is_to_come_is_what_the_trace_holds(env):
    """At every step of some requests, of which several end."""
    rng = np.random.default_rng(0)
    observation, ended = env.reset(), 0
    exit_ = env.action_space.n - 1
    for _ in range(1200):
        np.testing.assert_allclose(observation[:, env.seen :], expected(env), rtol=1e-5, atol=1e-6)
        action = rng.integers(0, exit_, env.num_envs)
        allowed = env.venv.env.action_masks()[:, -1]
        observation, _, done, infos = env.step(np.where(allowed & (rng.random(env.num_envs) < 0.5), exit_, action))
        assert observation.dtype == np.float32
        for i in np.flatnonzero(done):
            last = infos[i]["terminal_observation"]
            assert last.shape == env.observation_space.shape
            assert not last[env.seen :].any()
        ended += int(done.sum())
    assert ended > 8


def test_the_observation_itself_is_untouched(env):
    bare = Sb3VecEnv(LayerControlVectorEnv(num_envs=8))
    env.seed(3)
    bare.seed(3)
    np.testing.assert_array_equal(env.reset()[:, : env.seen], bare.reset())
    for _ in range(50):
        action = np.full(8, 2)
        shown, reward, *_ = env.step(action)
        plain, same, *_ = bare.step(action)
        np.testing.assert_array_equal(shown[:, : env.seen], plain)
        np.testing.assert_array_equal(reward, same)


def test_the_critic_knows_the_chip_where_chips_differ():
    env = Foresight(Sb3VecEnv(LayerControlVectorEnv(num_envs=8, scenario="many-chips")))
    shown = env.reset()
    assert shown.shape[1:] == env.observation_space.shape
    state = env.venv.env._rows.state
    which, rest = shown[:, -20:-4], shown[:, -4:]
    assert (which.sum(1) == 1).all()
    np.testing.assert_array_equal(which.argmax(1), state["variant"])
    assert len(set(state["variant"])) > 1
    np.testing.assert_allclose(rest.T, [state[name] for name in ("growth", "slowdown", "to_busy", "to_idle")], rtol=1e-6)


def test_only_the_critic_sees_it(env):
    """Other things to come change a value, never an action."""
    model = PPO(ForesightPolicy, env, n_steps=8, device="cpu", seed=0, policy_kwargs={"seen": env.seen})
    x = torch.from_numpy(env.reset())
    other = x.clone()
    other[:, env.seen :] += 1.0
    with torch.no_grad():
        one, two = (model.policy.get_distribution(seen).distribution.logits for seen in (x, other))
        assert torch.equal(one, two)
        assert not torch.equal(model.policy.predict_values(x), model.policy.predict_values(other))
        other[:, : env.seen] += 1.0
        assert not torch.equal(one, model.policy.get_distribution(other).distribution.logits)


def test_dearer_mistakes_make_tokens_dearer(env):
    before = env.reset()[:, -3].copy()
    env.price(10 * PRICES[0], 10 * PRICES[1])
    after = env._shown(before[:, None] * np.ones((1, env.seen), np.float32))[:, -3]
    assert (after >= before).all()
    assert (after > before).any()
