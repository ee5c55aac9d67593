import dataclasses
from importlib import resources

import numpy as np
import pytest
import reference

from clone_rl.envs.control import load_control
from clone_rl.envs.rows import Rows
from clone_rl.envs.scenario import Interference, Weights
from clone_rl.envs.state import ENERGY_TERMS
from clone_rl.hw_emulator.ledger import KV
from clone_rl.hw_emulator.workload import stored_workload

SETTINGS = {
    "default": {},
    "bare": {"probe": False, "switching": "ideal"},
    "policy": {"policy_macs": 900},
    "delay": {"decision_delay": 1, "policy_macs": 900},
    "delay, no probe": {"decision_delay": 1, "probe": False, "deadline": "per-token"},
    "pmic": {"switching": "pmic", "policy_macs": 900, "deadline": "per-token"},
    "os": {"switching": "os", "granularity": "token"},
    "per request": {"granularity": "request", "switching": "pmic"},
    "per phase": {"granularity": "phase", "policy_macs": 900},
    "per token, delayed": {"granularity": "token", "decision_delay": 1, "deadline": "per-token"},
    "crowded": {"interference": Interference(3.0, 1e-4, 3e-4, 5e-4), "slack_low": 0.5, "slack_high": 0.5},
    "quiet": {"interference": Interference(1.0), "weights": Weights(0.0, 0.5, 7.0)},
    "per group": {"granularity": "group", "groups": 3},
    "per group, delayed": {"granularity": "group", "groups": 4, "decision_delay": 1},
    "warm, linear regulator": {"ambient_c": 60.0, "regulator": "ldo"},
    "streamed": {"chip": "asic28-lpddr4", "policy_macs": 900},
    "board": {"chip": "orin-agx", "policy_macs": 900, "interference": Interference(slot_s=0.1, mean_idle_s=2, mean_busy_s=1)},
    "exact": {"kv": "exact", "signals": ("margin", "norm", "depth")},
    "exact, delayed": {"kv": "exact", "decision_delay": 1, "policy_macs": 900, "deadline": "per-token"},
    "exact, streamed": {"kv": "exact", "chip": "asic28-lpddr4"},
    "exact, board": {"kv": "exact", "chip": "orin-agx"},
    "skip": {"kv": "skip", "signals": ("norm", "change", "cosine", "margin", "entropy", "depth")},
    "skip, delayed": {"kv": "skip", "decision_delay": 1, "switching": "pmic"},
    "skip, streamed": {"kv": "skip", "chip": "asic28-lpddr4", "probe": False, "signals": ("cosine", "entropy")},
}


def assert_same_request(kernel, s):
    for name in ENERGY_TERMS:
        assert kernel[name] == pytest.approx(s.energy[name.removesuffix("_j")], rel=1e-9, abs=1e-18), name
    for name in ("clock_s", "due_s", "die_c", "package_c"):
        assert kernel[name] == pytest.approx(getattr(s, name.rpartition("_")[0]), rel=1e-9), name
    for name in ("token", "layer", "done", "point", "busy", "slot", "late", "switches", "depth", "prompt", "tokens"):
        assert kernel[name] == getattr(s, name), name
    for name in ("disagree", "dnll", "kl_sum"):
        assert kernel[name] == pytest.approx(getattr(s, name), rel=1e-9, abs=1e-12), name


@pytest.mark.parametrize("kind", ["layer", "token"])
@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)
def test_the_kernel_equals_the_readable_reference(trace_folder, kind, changes):
    run_beside_reference(load_control(kind, traces=trace_folder, **{"groups": 4, **changes}), kind)


def run_beside_reference(control, kind):
    """Random requests, step by step."""
    decide = reference.layer_decision if kind == "layer" else reference.token_decision
    rng = np.random.default_rng(3)
    chances = np.ones(control.heads[0])
    chances[-1] = 0.7  # exits that are neither rare nor always
    chances /= chances.sum()
    for seed, episode in ((0, 0), (1, 0), (12345678901, 3)):
        rows, s = Rows(control.world, 1, len(control.heads)), reference.start(control, seed, episode)
        seen = rows.reset(np.array([seed]), np.array([episode]))
        assert_same_request(rows.state[0], s)
        while not s.done:
            np.testing.assert_allclose(seen[0], np.array(reference.observation(s), np.float32), rtol=3e-7, atol=1e-7)
            action = rng.choice(len(chances), 1, p=chances) if kind == "layer" else rng.integers(0, control.heads)
            out = rows.step(control.check(action, 1))
            seen = out.observation
            expected = decide(s, int(action[0]) if kind == "layer" else action)
            assert out.reward[0] == pytest.approx(expected, rel=1e-9, abs=1e-12)
            assert bool(out.terminated[0]) == s.done
            assert_same_request(rows.state[0], s)
        result = rows.figures()
        assert result["energy_j"][0] == pytest.approx(sum(s.energy.values()), rel=1e-9)
        assert result["energy_j"][0] == pytest.approx(sum(result[name][0] for name in ENERGY_TERMS), rel=1e-9)
        assert result["document"][0] == s.document


def test_random_numbers_equal_the_readable_ones_and_lie_in_the_unit_interval():
    from clone_rl.envs.randomness import uniform

    keys = np.random.default_rng(0).integers(0, 2**31, (200, 4))
    drawn = [uniform(*key) for key in keys]
    assert drawn == [reference.uniform(*map(int, key)) for key in keys]
    assert 0 <= min(drawn) < 0.1
    assert 0.9 < max(drawn) < 1


@pytest.mark.parametrize("kv", KV)
def test_the_kernel_equals_the_reference_with_sliding_windows_and_a_throttled_die(tmp_path, traces, kv):
    """Two kinds of layers, and an ambient temperature at which the top points are not allowed."""
    text = (resources.files("clone_rl.hw_emulator") / "chips" / "asic28-sram.toml").read_text(encoding="utf-8")
    chip = tmp_path / "hot.toml"
    chip.write_text(
        text.replace("throttle_c = 85.0", "throttle_c = 25.001").replace("limit_c = 95.0", "limit_c = 25.02"), encoding="utf-8"
    )
    shape = dataclasses.replace(stored_workload(traces.card["shape"], "traces"), windows=(16, 0) * 5)
    folder = tmp_path / "traces"
    dataclasses.replace(traces, card={**traces.card, "shape": shape.as_dict()}).save(folder)
    control = load_control("layer", traces=str(folder), chip=str(chip), policy_macs=900, kv=kv)
    assert len(control.emulator.classes) == 2
    run_beside_reference(control, "layer")
    top = control.emulator.top
    rows = Rows(control.world, 1, 1)
    rows.reset(np.array([0]), np.array([0]))
    points = []
    while not rows.state[0]["done"]:
        rows.step(np.array([[top]]))
        points.append(int(rows.state[0]["point"]))
    assert min(points) < top
