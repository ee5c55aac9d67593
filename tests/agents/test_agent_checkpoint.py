import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

import torch

from clone_rl.agents.checkpoint import NAME
from clone_rl.agents.ppo import Training
from clone_rl.agents.train_config import TrainConfig
from clone_rl.errors import BadFileError

torch.set_num_threads(1)

TOML = """
name = "mine"
chip = "asic28-sram"
traces = "{traces}"
kv = "{kv}"
decision_delay = {delay}
[[slo]]
name = "a"
ttft_s = {ttft}
tpot_s = 0.4e-3
"""


class KilledError(Exception):
    pass


def small(trace_folder, **changes):
    settings = {"steps": 6144, "envs": 16, "rollout": 64, "checkpoint_every": 2, "seed": 5}
    return TrainConfig(**{"traces": trace_folder, **settings, **changes})


def train(config, folder, resume=False, kill_at=None):
    """Train in a folder; with ``kill_at``, an error at that decision ends it as suddenly as a signal would."""
    folder.mkdir(exist_ok=True)
    training = Training(config, folder, resume)
    if not resume:
        training.start()
    if kill_at is not None:
        step = training.adapter.step_wait

        def dying():
            if training.model.num_timesteps >= kill_at:
                raise KilledError
            return step()

        training.adapter.step_wait = dying
        with pytest.raises(KilledError):
            training.learn()
    else:
        training.learn()
    return training


def same(one, other):
    """Whether two checkpoints hold the same bits."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and one.numpy().tobytes() == other.numpy().tobytes()
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one if key != "t")
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def checkpoint(folder):
    return torch.load(folder / NAME, weights_only=True)


def scalars(folder):
    """(tag, step) -> value of a run's curves, without those that time a machine.

    A set: files of one second and process, which only tests write, are read in no order, and what one hides is there twice.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), {"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("time/")]
    return {tag: {(e.step, e.value) for e in events.Scalars(tag)} for tag in tags}


@pytest.fixture(scope="module")
def whole(trace_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    train(small(trace_folder), folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kill_at", [0, 1000, 2048, 3000, 5120, 6128])
def test_a_run_that_was_killed_and_resumed_is_the_run_that_was_not(whole, trace_folder, tmp_path, kill_at):
    train(small(trace_folder), tmp_path, kill_at=kill_at)
    left = checkpoint(tmp_path)["learner"]["timesteps"]
    assert kill_at - left <= 2 * 1024  # checkpoint_every updates of envs x rollout decisions
    torch.rand(7), np.random.rand(7)  # another process has other random numbers
    train(small(trace_folder), tmp_path, resume=True)
    assert same(checkpoint(tmp_path), checkpoint(whole))
    assert scalars(tmp_path) == scalars(whole)


@pytest.mark.slow
def test_many_kills_are_as_good_as_none(whole, trace_folder, tmp_path):
    train(small(trace_folder), tmp_path, kill_at=2500)
    for kill_at in (2060, 4000, 4200, 5800):
        train(small(trace_folder), tmp_path, resume=True, kill_at=kill_at)
    train(small(trace_folder), tmp_path, resume=True)
    assert same(checkpoint(tmp_path), checkpoint(whole))
    assert scalars(tmp_path) == scalars(whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env_id", "kv", "delay"),
    [
        ("clone_rl/LayerControl-v0", "exact", 1),
        ("clone_rl/TokenControl-v0", "skip", 0),
        ("clone_rl/TokenControl-v0", "exact", 1),
    ],
)
def test_whatever_a_row_holds_is_resumed(trace_folder, tmp_path, env_id, kv, delay):
    path = tmp_path / "mine.toml"
    path.write_text(TOML.format(traces=trace_folder, kv=kv, delay=delay, ttft=16e-3))
    config = small("", env_id=env_id, scenario=str(path), steps=3072, checkpoint_every=1)
    train(config, tmp_path / "whole")
    train(config, tmp_path / "parts", kill_at=2500)
    train(config, tmp_path / "parts", resume=True)
    assert same(checkpoint(tmp_path / "parts"), checkpoint(tmp_path / "whole"))


@pytest.mark.slow
def test_what_a_kill_left_half_written_is_removed(whole, trace_folder, tmp_path):
    (tmp_path / NAME).write_bytes((whole / NAME).read_bytes())
    (tmp_path / f".{NAME}.4711").write_bytes(b"half")
    Training(small(trace_folder), tmp_path, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"seed": 6}, {"scenario": "hot"}, {"chip": "orin-nano"}, {"max_miss": 0.5}], ids=str)
def test_a_checkpoint_of_another_configuration_is_refused_by_name(whole, trace_folder, changes):
    (name,) = changes
    with pytest.raises(BadFileError, match=f"another configuration: .*{name} was"):
        Training(small(trace_folder, **changes), whole, resume=True)


@pytest.mark.slow
def test_a_run_keeps_its_scenario_and_is_refused_with_a_file_that_has_changed(trace_folder, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(TOML.format(traces=trace_folder, kv="propagate", delay=0, ttft=16e-3))
    by_path = small("", scenario=str(path), steps=1024)
    config = by_path.resolved()
    train(by_path, tmp_path / "run")
    path.write_text(path.read_text() + "[limits]\nmiss = 0.3\n")
    assert Training(config, tmp_path / "run", resume=True).limits.miss == 0.01
    path.write_text(TOML.format(traces=trace_folder, kv="propagate", delay=0, ttft=17e-3))
    with pytest.raises(BadFileError, match="another configuration: scenario was 'mine'"):
        Training(by_path, tmp_path / "run", resume=True)
    path.unlink()
    assert Training(config, tmp_path / "run", resume=True).model.num_timesteps == 1024


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("format"), "not a checkpoint"),
        (lambda state: state.update(format=1), "another version"),
        (lambda state: state.update(fields="[]"), "another version"),
        (lambda state: state["made_for"].update(traces="other"), "made with another traces"),
        (lambda state: state["config"].update(novelty=1), "another configuration"),
    ],
)
def test_a_checkpoint_of_another_version_or_trace_set_is_refused(whole, trace_folder, tmp_path, change, message):
    state = checkpoint(whole)
    change(state)
    torch.save(state, tmp_path / NAME)
    with pytest.raises(BadFileError, match=message):
        Training(small(trace_folder), tmp_path, resume=True)


def test_without_a_folder_nothing_is_written(trace_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    training = Training(small(trace_folder, steps=1024, env_id="clone_rl/TokenControl-v0"))
    training.learn()
    assert training.model.num_timesteps == 1024
    assert not list(tmp_path.iterdir())
