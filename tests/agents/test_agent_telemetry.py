"""What TensorBoard shows of a run, read back from its event files."""

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from clone_rl.agents.ppo import Training
from clone_rl.agents.telemetry import METRICS, mean_point
from clone_rl.agents.train_config import TrainConfig
from clone_rl.envs.observation import OBSERVATION

torch.set_num_threads(1)

SCALARS = {
    *(
        f"{who}/{name}"
        for who in ("explore", "control")
        for name in ("energy_per_token_j", "miss_rate", "disagreement", "dnll")
    ),
    *("explore/mean_depth", "control/mean_depth", "explore/mean_point", "explore/mean_voltage_v", "explore/mean_frequency_hz"),
    *("multiplier/miss", "multiplier/disagree", "multiplier/dnll"),
    *("reward/energy", "reward/late", "reward/disagree", "reward/kl"),
    *("time/decisions_per_s", "best/energy_per_token_j", "best/excess", "train/value_loss", "rollout/ep_rew_mean"),
}


@pytest.fixture(scope="module")
def run(trace_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = TrainConfig("clone_rl/TokenControl-v0", traces=trace_folder, steps=6144, envs=16, rollout=64, seed=5)
    training = Training(config, folder)
    training.learn()
    return training, EventAccumulator(str(folder / "tensorboard"), {"scalars": 0}).Reload()


def test_the_scalars_that_people_need_are_there_at_every_update(run):
    training, events = run
    assert set(events.Tags()["scalars"]) >= SCALARS
    for tag in sorted(SCALARS):
        values = events.Scalars(tag)
        assert np.isfinite([event.value for event in values]).all()
        if tag.startswith(("explore", "multiplier", "reward", "time")):
            assert [event.step for event in values] == list(range(1024, 6145, 1024))
    assert [event.value for event in events.Scalars("time/decisions_per_s")] > [0.0]
    assert events.Scalars("multiplier/miss")[-1].value != events.Scalars("multiplier/miss")[0].value
    voltages = training.env.control.emulator.points["voltage_v"]
    assert all(voltages[0] <= event.value <= voltages[-1] for event in events.Scalars("explore/mean_voltage_v"))


def test_the_best_figures_are_those_of_the_policy_that_is_kept(run):
    training, events = run
    excess, energy_j = training._best[0]
    assert events.Scalars("best/excess")[-1].value == pytest.approx(excess, rel=1e-6)
    assert events.Scalars("best/energy_per_token_j")[-1].value == pytest.approx(energy_j, rel=1e-6)


def test_the_hyperparameters_are_shown_beside_the_figures_that_they_led_to(run):
    _, events = run
    found = {}
    for content in events.summary_metadata.values():
        if content.plugin_data.plugin_name == "hparams":
            data = plugin_data_pb2.HParamsPluginData.FromString(content.plugin_data.content)
            found[data.WhichOneof("data")] = data
    assert set(found) == {"experiment", "session_start_info", "session_end_info"}
    told = found["session_start_info"].session_start_info.hparams
    assert (told["steps"].number_value, told["seed"].number_value, told["scenario"].string_value) == (6144, 5, "default")
    assert (told["max_miss"].number_value, told["gamma"].number_value, told["warm_start"].bool_value) == (0.01, 0.999, False)
    shown = {metric.name.tag for metric in found["experiment"].experiment.metric_infos}
    assert shown == set(METRICS) <= set(events.Tags()["scalars"])


def test_the_mean_operating_point_counts_decisions(control):
    observations = np.zeros((2, 3, len(OBSERVATION)), np.float32)
    observations[..., OBSERVATION.index("point")] = np.array([[0, 0, 7], [7, 7, 3]]) / 7
    found, points = mean_point(observations, control), control.emulator.points
    assert found["mean_point"] == pytest.approx(24 / 6)
    for key, name in (("mean_voltage_v", "voltage_v"), ("mean_frequency_hz", "frequency_hz")):
        assert found[key] == pytest.approx((2 * points[name][0] + 3 * points[name][7] + points[name][3]) / 6)
