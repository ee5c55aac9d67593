"""``clone-rl bench env``: the environments beside Gymnasium's CartPole, training beside training, start-up, memory."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from clone_rl.cli.text import aligned
from clone_rl.cli.timing import check_seconds, interleaved, machine, per_cpu_second

BARS = {
    "single_vs_cartpole": 1.0,
    "vector_256_vs_cartpole": 1.0,
    "vector_1024_vs_cartpole": 1.0,
    "ppo_vs_cartpole": 0.9,
}
"""What each ratio of speeds is meant to reach."""

_OURS, _THEIRS = "clone_rl/LayerControl-v0", "CartPole-v1"
_LONGEST_S = 600.0
_SINGLE_STEPS, _VECTOR_STEPS, _STARTS = 5_000, 100, 5
_PPO = {"n_steps": 128, "batch_size": 4096, "n_epochs": 4, "policy_kwargs": {"net_arch": [64, 64]}, "device": "cpu"}
_PPO_ROWS = 256

_IMPORT = """
import sys, time
start = time.perf_counter()
import clone_rl
seconds = time.perf_counter() - start
assert "torch" not in sys.modules
print(seconds)
"""
_START = f"""
import time
import gymnasium as gym, clone_rl
start = time.perf_counter()
env = gym.make_vec("{_OURS}", 2, vectorization_mode="vector_entry_point")
env.reset(seed=0)
env.step(env.action_space.sample())
print(time.perf_counter() - start)
"""

Jobs = dict[str, Callable[[], int]]
"""Jobs, ``ours`` and ``theirs`` among them, each of which returns how many steps it takes, the same every time."""


def single_jobs() -> Jobs:
    """Random actions in one environment, through ``gym.make`` with all its wrappers."""
    import gymnasium as gym

    def job(env_id: str) -> Callable[[], int]:
        env: Any = gym.make(env_id)
        actions = np.random.default_rng(0).integers(0, env.action_space.n, _SINGLE_STEPS).tolist()
        env.reset(seed=0)

        def steps() -> int:
            for action in actions:
                _, _, terminated, truncated, _ = env.step(action)
                if terminated or truncated:
                    env.reset()
            return _SINGLE_STEPS

        return steps

    return {"ours": job(_OURS), "theirs": job(_THEIRS)}


def _vector(env_id: str, rows: int) -> Any:
    import gymnasium as gym

    return gym.make_vec(env_id, rows, vectorization_mode="vector_entry_point")


def vector_jobs(rows: int) -> Jobs:
    """Random actions in the native vector environments."""

    def job(env_id: str) -> Callable[[], int]:
        env = _vector(env_id, rows)
        actions = np.random.default_rng(0).integers(0, env.single_action_space.n, (_VECTOR_STEPS, rows))
        env.reset(seed=0)

        def steps() -> int:
            for action in actions:
                env.step(action)
            return _VECTOR_STEPS * rows

        return steps

    return {"ours": job(_OURS), "theirs": job(_THEIRS)}


def ppo_jobs() -> Jobs:
    """One rollout and its updates of Stable-Baselines3's PPO; ``free`` is the same of an environment that takes no time.

    Raises:
        ImportError: It is not installed.
    """
    import torch
    from stable_baselines3 import PPO

    from clone_rl.agents.sb3 import Sb3VecEnv
    from clone_rl.cli.bench_peers import PeerVecEnv, StillEnv

    torch.set_num_threads(1)

    def job(env: Any) -> Callable[[], int]:
        model = PPO("MlpPolicy", env, seed=0, **_PPO)  # type: ignore[arg-type]

        def learn() -> int:
            before = model.num_timesteps
            model.learn(1, reset_num_timesteps=False)
            return int(model.num_timesteps - before)

        return learn

    ours = _vector(_OURS, _PPO_ROWS)
    return {
        "ours": job(Sb3VecEnv(ours)),
        "theirs": job(PeerVecEnv(_vector(_THEIRS, _PPO_ROWS))),
        "free": job(PeerVecEnv(StillEnv(ours))),
    }


def compare(jobs: Jobs, seconds: float) -> tuple[float, dict[str, float]]:
    """Ratio of speeds, ours to theirs, and the steps of each job per CPU second.

    They take turns, so that all see the machine in the same moods; the ratio is the median over neighbours.

    Args:
        jobs: Each is called once more before the clock starts, which compiles it.
        seconds: CPU time to spend at least.
    """
    steps: dict[str, int] = {}

    def counted(name: str) -> Callable[[], None]:
        def run() -> None:
            steps[name] = jobs[name]()

        return run

    times = interleaved({name: counted(name) for name in jobs}, seconds)
    speeds = {name: [steps[name] / time for time in each] for name, each in times.items()}
    ratio = median(ours / theirs for ours, theirs in zip(speeds["ours"], speeds["theirs"], strict=True))
    return ratio, {name: median(each) for name, each in speeds.items()}


def eval_decisions_per_cpu_s(seconds: float) -> float:
    """Layer decisions of the pacing baseline, controller and kernel in one compiled loop."""
    from clone_rl.agents.heuristics import Pace
    from clone_rl.agents.rollout import charged_for
    from clone_rl.agents.runner import PolicyRunner
    from clone_rl.envs.control import load_control

    control = load_control("layer")
    pace = Pace(control.points, agree_bar=0.9, kl_bar=0.3)
    runner, documents = PolicyRunner(charged_for(control, pace, "test"), pace), control.traces.documents("test")
    return per_cpu_second(lambda: int(runner.run(documents, 0)["decisions"].sum()), seconds)


def _seconds_of(code: str, **environment: str) -> float:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def measure_env(seconds: float, start_up: bool = True) -> dict[str, Any]:
    """All figures.

    Args:
        seconds: CPU time to spend at least on each comparison.
        start_up: Also measure from import to first step, which compiles everything anew.

    Returns:
        ``ratios`` of steps per CPU second, and ``values``: ``<name>_per_cpu_s`` and its peer's, ``ppo_free_per_cpu_s``
        (training on an environment of the same spaces that takes no time, which none can outdo),
        ``eval_decisions_per_cpu_s``, ``bytes_per_row`` (what a row holds from step to step), ``import_s``, ``start_cold_s``
        and ``start_warm_s`` (from import to the end of the first step, without and with compiled code on disk; None where not
        measured).
    """
    from clone_rl.envs.control import load_control
    from clone_rl.envs.rows import Rows

    ratios: dict[str, float | None] = dict.fromkeys(BARS)
    values: dict[str, float | None] = {}
    result: dict[str, Any] = {"ratios": ratios, "values": values}
    makers: dict[str, Callable[[], Jobs]] = {
        "single": single_jobs,
        "vector_256": lambda: vector_jobs(256),
        "vector_1024": lambda: vector_jobs(1024),
        "ppo": ppo_jobs,
    }
    for name, make in makers.items():
        try:
            jobs = make()
        except ImportError as error:
            result["skipped"] = f"{name}: {error}"
            continue
        ratios[f"{name}_vs_cartpole"], speeds = compare(jobs, seconds)
        values |= {f"{name}_per_cpu_s": speeds["ours"], f"{name}_cartpole_per_cpu_s": speeds["theirs"]}
        if "free" in speeds:
            values[f"{name}_free_per_cpu_s"] = speeds["free"]
    values["eval_decisions_per_cpu_s"] = eval_decisions_per_cpu_s(seconds)
    rows = Rows(load_control("layer").world, 1)
    values["bytes_per_row"] = rows.state.nbytes + rows.missing.nbytes + rows.pending.nbytes
    values["import_s"] = median(_seconds_of(_IMPORT) for _ in range(_STARTS))
    values |= {"start_cold_s": None, "start_warm_s": None}
    if start_up:
        with tempfile.TemporaryDirectory() as folder:
            for name in ("start_cold_s", "start_warm_s"):
                values[name] = _seconds_of(_START, NUMBA_CACHE_DIR=folder)
    return result


def bench_env(options: argparse.Namespace) -> dict[str, Any]:
    """``clone-rl bench env``."""
    check_seconds(options.seconds, _LONGEST_S)
    import gymnasium

    result = measure_env(options.seconds, not options.no_start)
    result["machine"] = machine() | {"gymnasium": gymnasium.__version__}
    if not options.json:
        print(_text(result))
    return result


def _text(result: dict[str, Any]) -> str:
    ratios, values, at = result["ratios"], result["values"], result["machine"]
    names = [name.removesuffix("_vs_cartpole") for name, ratio in ratios.items() if ratio is not None]
    table = aligned(
        [
            ("steps per CPU second", "", names),
            ("clone_rl", "", [f"{values[f'{n}_per_cpu_s']:,.0f}" for n in names]),
            ("CartPole-v1", "", [f"{values[f'{n}_cartpole_per_cpu_s']:,.0f}" for n in names]),
            ("ratio", "", [f"{ratios[f'{n}_vs_cartpole']:.2f}" for n in names]),
            ("bar", "", [f"{BARS[f'{n}_vs_cartpole']:.2f}" for n in names]),
        ]
    )
    lines = [
        f"{at['cpu']}, {at['cores']} cores, Python {at['python']}, Numba {at['numba']}, Gymnasium {at['gymnasium']}; CPU time",
        "",
        table,
        "",
        f"evaluation with a baseline: {values['eval_decisions_per_cpu_s']:,.0f} decisions per second",
        f"a row: {values['bytes_per_row']:.0f} bytes; import clone_rl: {values['import_s']:.2f} s",
    ]
    if free := values.get("ppo_free_per_cpu_s"):
        share, most = values["ppo_per_cpu_s"] / free, free / values["ppo_cartpole_per_cpu_s"]
        lines.append(f"PPO takes {share:.0%} of the steps that it would where the environment took no time (ratio {most:.2f})")
    if values["start_cold_s"] is not None:
        lines.append(f"import to first step: {values['start_cold_s']:.1f} s, then {values['start_warm_s']:.2f} s")
    if "skipped" in result:
        lines.append(f"skipped {result['skipped']}")
    return "\n".join(lines)
