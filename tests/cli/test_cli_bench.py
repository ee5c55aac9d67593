import json
import os
import sys
from pathlib import Path

import pytest

from clone_rl.cli import bench
from clone_rl.hw_emulator import systolic_cycles

pytest_plugins = ["cli_running"]

QUICK = ("bench", "emulator", "--seconds", "0.05", "--json")


def test_the_emulator_is_measured_alone(run_cli, snapshot):
    result = run_cli(*QUICK, "--no-peers").json
    values = result["values"]
    assert values["layer_costs_per_cpu_s"] > 20_000
    assert values["layer_costs_per_cpu_s"] > values["layer_calls_per_cpu_s"] > 1_000
    assert 0 < values["cpu_s_per_gemm"] < values["systolic_cycles_cpu_s_per_gemm"]
    assert values["scalesim_cpu_s_per_gemm"] is None
    assert result["ratios"]["vs_scalesim"] is None
    assert result["skipped"] == "--no-peers"
    assert {"cpu", "cores", "python", "numba", "numpy"} == set(result["machine"])
    assert snapshot() == {}


def test_people_see_what_was_skipped(run_cli):
    done = run_cli("bench", "emulator", "--seconds", "0.05", "--no-peers")
    assert done.code == 0
    assert "per second" in done.out
    assert "SCALE-Sim 3.0.0 skipped: --no-peers" in done.out


@pytest.mark.parametrize(("shift", "code"), [(0, 0), (1, 1)])
def test_a_peer_is_compared_in_time_and_cycles(run_cli, monkeypatch, shift, code):
    found = [(2.0, systolic_cycles(*gemm, 32, 32) + shift) for gemm in bench.GEMMS]
    monkeypatch.setattr(bench, "scalesim", lambda: found)
    done = run_cli(*QUICK)
    assert done.code == code
    result = json.loads(done.out)
    values, ratios = result["values"], result["ratios"]
    assert values["scalesim_cpu_s_per_gemm"] == 2.0
    assert ratios["vs_scalesim"] == pytest.approx(2.0 / values["cpu_s_per_gemm"])
    assert ratios["vs_scalesim_python_call"] == pytest.approx(2.0 * values["layer_calls_per_cpu_s"])
    assert [gemm["cycles"] == gemm["scalesim_cycles"] for gemm in result["gemms"]] == [not shift] * 3
    assert "skipped" not in result
    shown = run_cli(*QUICK[:-1])
    assert shown.code == code
    assert shown.out.count("DIFFERENT" if shift else "same") >= 3


@pytest.mark.parametrize("gemm", bench.GEMMS)
def test_the_cost_function_counts_the_cycles_of_the_closed_form(gemm):
    assert bench.array_cycles(*gemm) == systolic_cycles(*gemm, 32, 32)


def test_without_a_network_the_peer_is_skipped(run_cli, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    commands = []

    def run(command, stdin=""):
        commands.append(command)
        if "pip" in command:
            raise bench.PeerError("-m pip install: no network")
        return ""

    monkeypatch.setattr(bench, "_run", run)
    done = run_cli(*QUICK)
    assert done.json["skipped"] == "-m pip install: no network"
    assert done.json["ratios"]["vs_scalesim"] is None
    assert done.err.startswith("installing SCALE-Sim 3.0.0 into ")
    assert [command[2] for command in commands] == ["venv", "pip"]
    assert not list((tmp_path / "cache").rglob(".ready"))


def test_an_environment_that_is_ready_is_used_again(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "clone-rl" / "scalesim-3.0.0"
    folder.mkdir(parents=True)
    (folder / ".ready").touch()
    monkeypatch.setattr(bench, "_run", lambda *_: pytest.fail("something was installed"))
    assert bench.scalesim_python() == folder / "bin" / "python"


def test_what_a_failing_program_said_is_the_reason():
    with pytest.raises(bench.PeerError, match=r"-c import sys; sys.exit\('so it is'\): so it is"):
        bench._run([sys.executable, "-c", "import sys; sys.exit('so it is')"])
    with pytest.raises(bench.PeerError, match="none"):
        bench._run(["/none"])
    assert bench._run([sys.executable, "-c", "print(input())"], "hello") == "hello\n"


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "1e9"])
def test_times_out_of_range_are_refused(run_cli, seconds):
    error = run_cli("bench", "emulator", f"--seconds={seconds}", "--json").error
    assert error["kind"] == "bad_value"
    assert "seconds is" in error["message"]


def test_help_names_the_defaults(run_cli, capsys):
    with pytest.raises(SystemExit):
        run_cli("bench", "emulator", "--help")
    out = capsys.readouterr().out
    assert "(default: 1.0)" in " ".join(out.split())
    assert "SCALE-Sim" in out
    assert run_cli("bench", "--json").error["message"].endswith("SUBJECT")


@pytest.mark.slow
def test_scalesim_counts_the_same_cycles(run_cli, tmp_path):
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    if not (cache / "clone-rl" / "scalesim-3.0.0" / ".ready").exists():
        pytest.skip("SCALE-Sim is not installed: run clone-rl bench emulator once")
    result = run_cli(*QUICK).json
    assert all(gemm["cycles"] == gemm["scalesim_cycles"] for gemm in result["gemms"])
    assert result["ratios"]["vs_scalesim"] > 1000
