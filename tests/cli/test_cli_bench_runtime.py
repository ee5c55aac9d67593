import json

import pytest

from clone_rl.cli import bench_runtime, timing

pytest_plugins = ["cli_running"]


SERVED = {"4": {"requests": 8, "requests_per_s": 2.0, "tokens_per_s": 32.0, "p50_s": 1.5, "p99_s": 2.5}}


@pytest.fixture
def quick(monkeypatch):
    """A few decisions and tokens, once."""
    monkeypatch.setattr(timing, "_FEWEST", 1)
    for name, value in {"_DECISIONS": 20, "_NEW": 4}.items():
        monkeypatch.setattr(bench_runtime, name, value)
    prompts = bench_runtime._prompts
    monkeypatch.setattr(bench_runtime, "_prompts", lambda lm: prompts(lm)[:1])
    monkeypatch.setattr(bench_runtime, "bench_server", lambda _seconds: SERVED)  # it has tests of its own


def test_every_figure_is_there_under_its_name(run_cli, quick, snapshot):
    result = run_cli("bench", "runtime", "--seconds", "1e-9", "--json").json
    ratios, values = result["ratios"], result["values"]
    assert set(ratios) == set(bench_runtime.BARS)
    assert {
        "numpy_vs_predict_p50",
        "compiled_vs_predict_p50",
        "attached_vs_generate_tokens_per_s",
        "exiting_vs_generate_tokens_per_s",
    } <= set(ratios)
    for name in ("numpy", "compiled"):
        assert values[f"{name}_p50_s"] < values["predict_p50_s"]
        assert ratios[f"{name}_vs_predict_p50"] == pytest.approx(values[f"{name}_p50_s"] / values["predict_p50_s"])
    for name in ("attached", "exiting"):
        ratio = values[f"{name}_tokens_per_s"] / values["generate_tokens_per_s"]
        assert ratios[f"{name}_vs_generate_tokens_per_s"] == pytest.approx(ratio)
    assert values["same_text"]
    assert values["server"] == SERVED
    assert {"cpu", "torch", "transformers"} < set(result["machine"])
    assert snapshot() == {}


def test_people_see_tables_and_what_was_skipped(run_cli, quick, monkeypatch):
    def no_predict(_policy):
        raise ImportError("No module named 'stable_baselines3'")

    monkeypatch.setattr(bench_runtime, "decision_jobs", no_predict)
    lines = run_cli("bench", "runtime", "--seconds", "1e-9").out.splitlines()
    assert "one thread" in lines[0]
    assert [line.split()[0] for line in lines[3:6]] == ["generate", "attached", "exiting"]
    assert lines[4].endswith(" same")
    assert [line.split() for line in lines[-4:] if line[:1].isdigit() or line.startswith("server")][-1][0] == "4"
    assert lines[-1] == "skipped decision: No module named 'stable_baselines3'"


def test_another_text_is_a_failure(run_cli, quick, monkeypatch):
    jobs = bench_runtime.generation_jobs
    monkeypatch.setattr(bench_runtime, "generation_jobs", lambda *of: jobs(*of) | {"attached": lambda *_, **__: [1]})
    monkeypatch.setitem(bench_runtime.SECTIONS, "decision", lambda _: ({}, {}))
    done = run_cli("bench", "runtime", "--seconds", "1e-9", "--json")
    assert done.code == 1
    assert not json.loads(done.out)["values"]["same_text"]


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "1e9"])
def test_times_out_of_range_are_refused(run_cli, seconds):
    error = run_cli("bench", "runtime", f"--seconds={seconds}", "--json").error
    assert error["kind"] == "bad_value"
    assert "seconds is" in error["message"]
