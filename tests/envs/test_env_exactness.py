"""Every id on every shipped scenario: rows against single environments, bit for bit, and energy that adds up."""

import gymnasium as gym
import numpy as np
import pytest

import clone_rl
from clone_rl.envs import ENV_IDS
from clone_rl.envs.figures import as_dict
from clone_rl.envs.scenario import scenario_names
from clone_rl.envs.state import ENERGY_TERMS

ROWS = 20


@pytest.mark.slow
@pytest.mark.parametrize("scenario", scenario_names())
@pytest.mark.parametrize("env_id", ENV_IDS)
def test_rows_are_single_environments_bit_for_bit(env_id, scenario):
    steps = 100_000 if scenario in ("default", "many-chips") else 20_000
    assert clone_rl.__version__
    vector = gym.make_vec(env_id, ROWS, vectorization_mode="vector_entry_point", scenario=scenario)
    singles = [gym.make(env_id, disable_env_checker=True, scenario=scenario).unwrapped for _ in range(ROWS)]
    heads, rng, ended = vector.unwrapped.control.heads, np.random.default_rng(0), 0
    seen, _ = vector.reset(seed=7)
    assert seen.tobytes() == b"".join(env.reset(seed=7 + i)[0].tobytes() for i, env in enumerate(singles))
    for _ in range(steps // ROWS):
        actions = rng.integers(0, heads, (ROWS, len(heads)))
        actions = actions[:, 0] if len(heads) == 1 else actions
        seen, reward, terminated, _, info = vector.step(actions)
        for i, env in enumerate(singles):
            last, own, done, _, own_info = env.step(int(actions[i]) if len(heads) == 1 else actions[i])
            assert own == reward[i]
            assert done == terminated[i]
            assert own_info["cost"].tobytes() == info["cost"][i].tobytes()
            if done:
                ended += 1
                figures = own_info["figures"]
                assert figures["energy_j"] == pytest.approx(sum(figures[term] for term in ENERGY_TERMS), rel=1e-9)
                assert info["final_obs"][i].tobytes() == last.tobytes()
                for group in ("figures", "kpis"):
                    assert own_info[group] == as_dict(info["final_info"][group][i])
                last = env.reset()[0]
            assert last.tobytes() == seen[i].tobytes()
    assert ended > 20
