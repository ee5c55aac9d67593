"""One policy for many limits: the family, its file, the environment that draws limits, and training."""

import gymnasium as gym
import numpy as np
import pytest

from clone_rl.agents.family import LOOSEST, TIGHTEST, PolicyFamily, shown, times
from clone_rl.agents.policy import Policy
from clone_rl.agents.train_config import TrainConfig
from clone_rl.cli.controllers import make_controller
from clone_rl.envs.observation import N_OBS
from clone_rl.envs.scenario import Limits
from clone_rl.envs.state import AMOUNTS
from clone_rl.errors import BadValueError, PolicyFileError
from clone_rl.evaluation.protocol import evaluate
from clone_rl.evaluation.replay import groups, mismatches
from clone_rl.evaluation.rows import Origin, read_rows, write_rows
from clone_rl.runtime import RuntimeController

BASE = {"miss": 0.01, "disagree": 0.02, "dnll": 0.04}


@pytest.fixture(scope="module")
def family():
    rng = np.random.default_rng(3)
    sizes = (N_OBS + 1, 24, 16, 9)
    shapes = list(zip(sizes[1:], sizes[:-1], strict=True))
    layers = tuple((rng.normal(0, 0.7, s).astype(np.float32), rng.normal(0, 0.3, s[0]).astype(np.float32)) for s in shapes)
    return PolicyFamily(layers, (9,), {"limits": BASE}, "many")


@pytest.fixture(scope="module")
def file(family, tmp_path_factory):
    path = tmp_path_factory.mktemp("family") / "policy.safetensors"
    family.save(path)
    return path


@pytest.mark.parametrize("scale", [TIGHTEST, 0.8, 1.0, LOOSEST])
def test_what_is_folded_decides_as_the_whole_network(family, scale):
    seen = np.random.default_rng(0).uniform(-1, 1, (500, N_OBS)).astype(np.float32)
    whole = np.concatenate([seen, np.full((500, 1), shown(scale), np.float32)], 1)
    policy = family.at(scale)
    np.testing.assert_allclose(policy.logits(seen), family.logits(whole), rtol=1e-4, atol=1e-5)
    assert (policy.act(seen)[:, 0] == family.logits(whole).argmax(1)).mean() > 0.998
    assert policy.macs == Policy.load("default").macs == family.macs - 24
    assert policy.parameters < 1000


def test_limits_are_shown_from_half_to_twice():
    assert [shown(scale) for scale in (0.5, 1.0, 2.0)] == [-1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("limits", "scale"),
    [
        (None, 1.0),
        (Limits(**BASE), 1.0),
        (Limits(0.01, 0.01, 0.04), 0.5),  # the tightest counts
        (Limits(0.016, 0.04, 0.08), 1.6),
        (Limits(1.0, 0.5, np.inf), LOOSEST),  # held as the loosest that it was trained for
        (times(Limits(**BASE), TIGHTEST), TIGHTEST),
    ],
)
def test_limits_choose_the_policy(family, limits, scale):
    found, wanted = family.within(limits), family.at(scale)
    for one, two in zip(found.layers, wanted.layers, strict=True):
        assert all((a == b).all() for a, b in zip(one, two, strict=True))
    assert Limits(**found.card["limits"]) == times(Limits(**BASE), scale)


def test_limits_that_it_was_not_trained_for_are_refused_by_name(family):
    with pytest.raises(BadValueError, match=r"max_disagree is 0\.009, and policy 'many' was trained for 0\.01 to 0\.04"):
        family.within(Limits(0.01, 0.009, 0.04))
    with pytest.raises(BadValueError, match="max_miss is 0"):
        family.within(Limits(0.0, 0.02, 0.04))
    with pytest.raises(PolicyFileError, match="no limits"):
        PolicyFamily(family.layers, (9,), {}).within()


def test_a_file_gives_the_policy_for_the_limits_that_are_asked_for(family, file, control):
    assert Policy.load(file).sha256 == family.at(1.0).sha256
    tight = Policy.load(file, Limits(0.005, 0.02, 0.04))
    assert tight.sha256 == family.at(0.5).sha256 != family.at(1.0).sha256
    assert make_controller(str(file), control, Limits(0.005, 0.02, 0.04)).sha256 == tight.sha256
    with pytest.raises(BadValueError, match="max_miss"):
        make_controller(str(file), control, Limits(0.001, 0.02, 0.04))
    runtime = RuntimeController.load(str(file), limits=Limits(0.005, 0.02, 0.04))
    assert isinstance(runtime.controller, Policy)
    assert runtime.controller.sha256 == tight.sha256
    plain = Policy.load("default")
    assert Policy.load("default", Limits(0.5, 0.5, 0.5)).sha256 == plain.sha256


def test_rows_of_other_limits_are_run_again_with_the_policy_for_those(file, control, tmp_path):
    rows, limits = tmp_path / "rows.csv", Limits(0.02, 0.04, 0.06)
    policy = Policy.load(file, limits)
    origin = Origin("clone-rl evaluate", {policy.name: str(file)})
    write_rows(rows, evaluate(control, [policy], "test", 1, limits=limits, origin=origin).requests)
    assert mismatches(groups(read_rows(rows), rows)) == []


@pytest.mark.parametrize("changes", [{"max_dnll": 0.0}, {"max_miss": 0.0}, {"env_id": "clone_rl/TokenControl-v0"}])
def test_what_cannot_be_scaled_is_not_trained_for(changes):
    with pytest.raises(BadValueError, match="conditioned training"):
        TrainConfig(conditioned=True, **changes)


def conditioned(trace_folder, rows=4):
    """The environment that draws limits; every amount of its native one is a cost."""
    pytest.importorskip("stable_baselines3")
    from clone_rl.agents.conditioned import ConditionedVecEnv

    env = gym.make_vec(
        "clone_rl/LayerControl-v0",
        rows,
        vectorization_mode="vector_entry_point",
        traces=trace_folder,
        cost=lambda amounts: amounts,
    ).unwrapped
    return ConditionedVecEnv(env, 0.1)


def test_limits_are_drawn_for_every_episode_and_stay_for_its_length(trace_folder):
    env, few = conditioned(trace_folder), conditioned(trace_folder, 2)
    env.seed(5)
    few.seed(5)
    drawn = env.reset()[:, -1]
    assert (few.reset()[:, -1] == drawn[:2]).all()  # of the row's own seed
    rng, ended, all_drawn = np.random.default_rng(0), 0, list(drawn)
    for _ in range(400):
        observation, _, done, infos = env.step(rng.integers(0, 9, 4))
        assert (observation[~done, -1] == drawn[~done]).all()
        for i in np.flatnonzero(done):
            assert infos[i]["terminal_observation"].shape == (N_OBS + 1,)
            assert infos[i]["terminal_observation"][-1] == drawn[i]
            assert observation[i, -1] != drawn[i]
        ended += int(done.sum())
        drawn = observation[:, -1].copy()
        all_drawn += list(drawn[done])
        assert env.observation_space.contains(observation[0])
    assert ended > 5
    assert min(all_drawn) < -0.3 < 0.3 < max(all_drawn)


def test_rewards_are_at_the_prices_of_the_episode(trace_folder, monkeypatch):
    env = conditioned(trace_folder)
    table = np.array([[5.0, 8.0, 1.0], [4.0, 4.0, 1.0], [3.0, 2.0, 1.0], [2.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    env.set_prices(table)
    env.seed(1)
    drawn = env.reset()[:, -1]
    seen, step = [], env.env.step
    monkeypatch.setattr(env.env, "step", lambda actions: seen.append(step(actions)) or seen[-1])
    rng, paid = np.random.default_rng(0), 0
    for _ in range(300):
        observation, reward, _, _ = env.step(rng.integers(0, 9, 4))
        late, disagree, _, kl, energy = seen[-1][4]["cost"][:, :5].T
        levels = np.linspace(-1.0, 1.0, 5)
        prices = [np.interp(drawn, levels, column) for column in table.T]
        wanted = -(energy + prices[0] * late + prices[1] * disagree + prices[2] * kl)
        np.testing.assert_allclose(reward, 0.1 * wanted, rtol=1e-5, atol=1e-7)
        paid += int((late + disagree > 0).sum())
        drawn = observation[:, -1].copy()
    assert AMOUNTS[:5] == ("late", "disagree", "dnll", "kl", "energy")
    assert paid > 10


def test_a_state_that_is_put_back_has_its_limits(trace_folder):
    env, other = conditioned(trace_folder), conditioned(trace_folder)
    for one in (env, other):
        one.set_prices(np.arange(15.0).reshape(5, 3))
        one.seed(2)
        one.reset()
    rng = np.random.default_rng(0)
    for _ in range(150):
        env.step(rng.integers(0, 9, 4))
    other.set_state(env.get_state())
    for _ in range(50):
        actions = rng.integers(0, 9, 4)
        (seen, reward, *_), (again, rewarded, *_) = env.step(actions), other.step(actions)
        assert (seen == again).all()
        assert (reward == rewarded).all()


@pytest.mark.slow
def test_training_is_the_same_after_an_interruption(trace_folder, tmp_path, monkeypatch):
    pytest.importorskip("stable_baselines3")
    from clone_rl.agents import ppo
    from clone_rl.agents.training import train

    monkeypatch.setattr(ppo, "_CLONE_STEPS", 20)
    monkeypatch.setattr(ppo, "_CLONE_EPOCHS", 2)
    config = TrainConfig(steps=8192, traces=trace_folder, envs=16, rollout=64, conditioned=True, checkpoint_every=1)
    whole = train(config, tmp_path / "whole")
    keep, kept = ppo.Training.save_checkpoint, []

    def stop_at_the_sixth(self):
        keep(self)
        kept.append(self.updates)
        if len(kept) == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ppo.Training, "save_checkpoint", stop_at_the_sixth)
        train(config, tmp_path / "parts")
    parts = train(config, tmp_path / "parts", resume=True)
    assert parts.sha256 == whole.sha256 == Policy.load(tmp_path / "whole").sha256
    assert [part.card["decisions_trained"] for part in (parts, whole)] == [8192, 8192]
    assert set(whole.card["warm_start"]) == {"0.5", "0.707107", "1", "1.41421", "2", "cloned"}
    assert Policy.load(tmp_path / "whole", times(Limits(), 0.5)).sha256 != whole.sha256
