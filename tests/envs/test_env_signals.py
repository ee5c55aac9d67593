"""Signals that a scenario adds to the observation."""

import gymnasium as gym
import numpy as np
import pytest

from clone_rl.envs.control import load_control
from clone_rl.envs.observation import OBSERVATION
from clone_rl.envs.rows import Rows
from clone_rl.envs.scenario import Scenario
from clone_rl.envs.signals import BOUNDS, EXTRA_SIGNALS
from clone_rl.envs.trace import HIDDEN
from clone_rl.envs.world import observation_names
from clone_rl.errors import BadValueError, UnknownNameError
from clone_rl.hw_emulator.emulator import PROBE

TOP, EXIT = 7, 8
ORDER = ("entropy", "norm", "depth", "margin", "cosine", "change")


def scaled(value, name):
    return np.float32(np.clip(np.float64(value) / BOUNDS[EXTRA_SIGNALS.index(name)], -1, 1))


def begin(trace_folder, kind="layer", **changes):
    control = load_control(kind, traces=trace_folder, **changes)
    rows = Rows(control.world, 1, len(control.heads))
    seen = rows.reset(np.array([2]), np.array([0]))
    return control, rows, seen


def test_each_scalar_is_the_traces_value_at_its_place(trace_folder):
    control, rows, seen = begin(trace_folder, signals=ORDER)
    traces, rng, left, checked = control.traces, np.random.default_rng(0), None, set()
    assert observation_names(control.scenario) == (*OBSERVATION, *ORDER)
    while True:
        s, shown = rows.state[0], dict(zip(ORDER, seen[0, 16:], strict=True))
        row, token, layer = int(s["row"]), int(s["token"]), int(s["layer"])
        at_boundary = token > 0 and layer > 0
        for index, name in enumerate(HIDDEN):
            expected = scaled(traces.hidden[row + token, layer - 1, index], name) if at_boundary else 0.0
            assert shown[name] == expected
        for name in ("margin", "entropy"):
            column = getattr(traces, name)
            assert shown[name] == (scaled(column[row + token - 1, left - 1], name) if left else 0.0)
        assert shown["depth"] == np.float32((left or 0) / 10)
        checked.add(left)
        if s["done"]:
            break
        before, depth = token, float(s["depth"])
        seen = rows.step(np.array([[rng.choice([3, EXIT], p=[0.8, 0.2])]])).observation
        if rows.state[0]["token"] > before:
            left = int(rows.state[0]["depth"] - depth)
    assert len(checked) > 3


def test_the_standard_scalars_and_the_dynamics_do_not_depend_on_free_signals(trace_folder):
    (_, plain, a), (_, more, b) = (begin(trace_folder, signals=names) for names in ((), ("depth", "margin", "entropy")))
    rng = np.random.default_rng(0)
    assert a.shape == (1, 16)
    while not plain.state[0]["done"]:
        assert a.tobytes() == b[:, :16].tobytes()
        action = rng.integers(0, 9, (1, 1))
        a, b = plain.step(action).observation, more.step(action).observation
        assert plain.state.tobytes() == more.state.tobytes()


@pytest.mark.parametrize(
    ("names", "dots"), [((), 2), (("margin", "entropy", "depth"), 2), (("change",), 3), (EXTRA_SIGNALS, 5)]
)
def test_what_is_read_from_the_residual_is_charged_like_a_dot_product_of_the_probe(trace_folder, names, dots):
    emulator = load_control("layer", traces=trace_folder, signals=names).emulator
    assert emulator.work[PROBE]["macs_per_row"] == 256 * dots
    if dots > 2:
        plain = load_control("layer", traces=trace_folder).emulator
        assert emulator.cost(PROBE, 3).energy_j > plain.cost(PROBE, 3).energy_j


def test_token_control_and_a_scenario_without_a_probe_see_nothing_of_the_residual(trace_folder):
    for kind, changes in (("token", {}), ("layer", {"probe": False})):
        control, rows, _ = begin(trace_folder, kind, signals=HIDDEN, **changes)
        rng = np.random.default_rng(0)
        for _ in range(30):
            seen = rows.step(rng.integers(0, control.heads, (1, len(control.heads))), autoreset=True).observation
            assert not seen[0, 16:].any()


@pytest.mark.parametrize("env_id", ["clone_rl/LayerControl-v0", "clone_rl/TokenControl-v0"])
def test_spaces_and_both_kinds_of_environment_agree_on_the_width(trace_folder, env_id):
    signals = ["margin", "cosine"]
    vector = gym.make_vec(env_id, 3, vectorization_mode="vector_entry_point", traces=trace_folder, signals=signals)
    singles = [gym.make(env_id, traces=trace_folder, signals=signals) for _ in range(3)]
    assert vector.single_observation_space.shape == singles[0].observation_space.shape == (18,)
    heads, rng, ended = vector.unwrapped.control.heads, np.random.default_rng(0), False
    seen = vector.reset(seed=5)[0]
    for i, env in enumerate(singles):
        assert env.reset(seed=5 + i)[0].tobytes() == seen[i].tobytes()
    while not ended:
        actions = rng.integers(0, heads, (3, len(heads)))
        actions = actions[:, 0] if len(heads) == 1 else actions
        seen, _, terminated, _, info = vector.step(actions)
        for i, env in enumerate(singles):
            own, _, done, _, _ = env.step(actions[i])
            assert own.tobytes() == (info["final_obs"][i] if done else seen[i]).tobytes()
        ended = terminated.any()


def test_a_file_and_a_list_may_name_signals_and_a_way_with_keys_and_values():
    levels = [{"name": "a", "ttft_s": 0.02, "tpot_s": 5e-4}]
    table = {"name": "mine", "chip": "asic28-sram", "traces": "default", "slo": levels}
    scenario = Scenario.parse({**table, "signals": ["margin"], "kv": "exact"}, "mine.toml")
    assert (scenario.signals, scenario.kv) == (("margin",), "exact")
    assert Scenario.load("default", signals=["norm"]).signals == ("norm",)
    assert Scenario.load("default").signals == ()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"signals": ["margins"]}, UnknownNameError, "did you mean 'margin'"),
        ({"signals": [3]}, UnknownNameError, "signal"),
        ({"signals": "margin"}, BadValueError, "list of names"),
        ({"signals": 3}, BadValueError, "list of names"),
        ({"signals": ["norm", "norm"]}, BadValueError, "twice"),
        ({"kv": "exakt"}, UnknownNameError, "did you mean 'exact'"),
    ],
    ids=str,
)
def test_unknown_signals_and_ways_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        Scenario.load("default", **changes)
