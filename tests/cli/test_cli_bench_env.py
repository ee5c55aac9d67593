import math

import pytest

from clone_rl.cli import bench_env, timing

pytest_plugins = ["cli_running"]


@pytest.fixture
def quick(monkeypatch):
    """A few steps, twice."""
    monkeypatch.setattr(timing, "_FEWEST", 2)
    for name, value in {"_SINGLE_STEPS": 50, "_VECTOR_STEPS": 3, "_STARTS": 1, "_PPO_ROWS": 4}.items():
        monkeypatch.setattr(bench_env, name, value)
    monkeypatch.setattr(bench_env, "_PPO", {**bench_env._PPO, "n_steps": 4, "batch_size": 8})


@pytest.mark.slow
def test_every_figure_is_there_under_its_name(run_cli, quick, snapshot):
    result = run_cli("bench", "env", "--seconds", "1e-9", "--no-start", "--json").json
    ratios, values = result["ratios"], result["values"]
    assert set(ratios) == set(bench_env.BARS)
    assert {"single_vs_cartpole", "vector_256_vs_cartpole", "vector_1024_vs_cartpole", "ppo_vs_cartpole"} == set(ratios)
    assert all(0 < ratio < 1000 for ratio in ratios.values())
    for name in ratios:
        stem = name.removesuffix("_vs_cartpole")
        assert values[f"{stem}_per_cpu_s"] > 0
        assert values[f"{stem}_cartpole_per_cpu_s"] > 0
    assert values["ppo_free_per_cpu_s"] > 0
    assert values["eval_decisions_per_cpu_s"] > 10_000
    assert 100 < values["bytes_per_row"] < 10_000
    assert 0 < values["import_s"] < 60
    assert values["start_cold_s"] is values["start_warm_s"] is None
    assert {"cpu", "numba", "gymnasium"} < set(result["machine"])
    assert snapshot() == {}


@pytest.mark.slow
def test_people_see_a_table_and_what_was_skipped(run_cli, quick, monkeypatch):
    def no_training():
        raise ImportError("No module named 'stable_baselines3'")

    monkeypatch.setattr(bench_env, "ppo_jobs", no_training)
    out = run_cli("bench", "env", "--seconds", "1e-9", "--no-start").out
    lines = [line.split() for line in out.splitlines()]
    assert [line[0] for line in lines[3:6]] == ["single", "vector_256", "vector_1024"]
    assert "decisions per second" in out
    assert "skipped ppo: No module named 'stable_baselines3'" in out


def test_the_two_take_turns_and_the_ratio_is_of_speeds(monkeypatch):
    clock, order = [0.0], []

    def job(name, seconds, steps):
        def run():
            order.append(name)
            clock[0] += seconds
            return steps

        return run

    monkeypatch.setattr(timing.time, "process_time", lambda: clock[0])
    ratio, speeds = bench_env.compare({"ours": job("ours", 2.0, 30), "theirs": job("theirs", 1.0, 10)}, seconds=20)
    assert math.isclose(ratio, 1.5)
    assert speeds == {"ours": 15.0, "theirs": 10.0}
    assert order == ["ours", "theirs"] * 8


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "1e9"])
def test_times_out_of_range_are_refused(run_cli, seconds):
    error = run_cli("bench", "env", f"--seconds={seconds}", "--json").error
    assert error["kind"] == "bad_value"
    assert "seconds is" in error["message"]


@pytest.mark.slow
def test_the_package_is_imported_fast_and_a_row_evaluates_fast():
    """Loose bars, for a machine that does other things as well; the measured figures are in docs/environment.md."""
    assert bench_env._seconds_of(bench_env._IMPORT) < 5
    assert bench_env.eval_decisions_per_cpu_s(0.5) > 1_000_000


@pytest.mark.slow
def test_an_environment_is_not_slower_than_half_of_cartpole():
    for jobs in (bench_env.single_jobs(), bench_env.vector_jobs(256), bench_env.vector_jobs(1024)):
        assert bench_env.compare(jobs, 1.0)[0] > 0.5
