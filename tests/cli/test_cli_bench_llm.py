import json

import pytest

from clone_rl.cli import bench_llm, timing

pytest_plugins = ["cli_running"]


@pytest.fixture
def quick(monkeypatch):
    """A few tokens, once."""
    monkeypatch.setattr(bench_llm, "_NEW", 4)
    monkeypatch.setattr(timing, "_FEWEST", 1)


def test_every_family_is_measured(run_cli, quick, snapshot):
    result = run_cli("bench", "llm", "--seconds", "1e-9", "--json").json
    assert set(result) == {"ratios", "values", "machine"}
    assert set(result["ratios"]) == set(bench_llm.BARS)
    for name in ("stepper_vs_generate", "half_exit_vs_generate"):
        assert set(result["ratios"][name]) == set(bench_llm.FAMILIES) == set(result["values"])
        assert all(0 < ratio < 20 for ratio in result["ratios"][name].values())
    assert 0 < result["ratios"]["record_vs_forward"]["embedded"] < 5
    for values in result["values"].values():
        assert values["same_text"]
        assert values["generate_ms_per_token"] > 0
        assert values["half_exit_ms_per_token"] > 0
    assert {"cpu", "torch", "transformers"} < set(result["machine"])
    assert snapshot() == {}


def test_people_see_a_table(run_cli, quick, monkeypatch):
    monkeypatch.setattr(bench_llm.measure_llm, "__defaults__", (("embedded",),))
    out = run_cli("bench", "llm", "--seconds", "1e-9").out.splitlines()
    assert "CPU time per token, one thread" in out[0]
    assert out[2].split() == ["family", "generate", "stepper", "ratio", "half", "exit", "ratio", "text"]
    assert out[4].startswith("embedded ")
    assert out[4].endswith(" same")
    assert out[-1].startswith("recording all exits of the embedded model: ")


def test_another_text_is_a_failure(run_cli, quick, monkeypatch):
    monkeypatch.setattr(bench_llm.measure_llm, "__defaults__", (("gpt2",),))
    jobs = bench_llm.decoding_jobs
    monkeypatch.setattr(bench_llm, "decoding_jobs", lambda model: jobs(model) | {"stepper": jobs(model)["half_exit"]})
    done = run_cli("bench", "llm", "--seconds", "1e-9", "--json")
    assert done.code == 1
    assert not json.loads(done.out)["values"]["gpt2"]["same_text"]


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "1e9"])
def test_times_out_of_range_are_refused(run_cli, seconds):
    error = run_cli("bench", "llm", f"--seconds={seconds}", "--json").error
    assert error["kind"] == "bad_value"
    assert "seconds is" in error["message"]


@pytest.mark.slow
@pytest.mark.parametrize("family", bench_llm.FAMILIES)
def test_stepping_costs_no_more_than_generating(monkeypatch, family):
    """The quickest of several repetitions, and more room than the bars leave: a busy machine is not a slow stepper."""
    from clone_rl.llm.model import load_model

    monkeypatch.setattr(bench_llm, "_NEW", 16)
    jobs = bench_llm.decoding_jobs(load_model() if family == "embedded" else bench_llm.small_model(family))
    best = {name: min(times) for name, times in bench_llm.interleaved(jobs, 0.3).items()}
    assert best["stepper"] <= 1.25 * best["generate"]
    assert best["half_exit"] <= 0.95 * best["generate"]
