import os
import signal
import subprocess
import sys
import time

import pytest
from fake_sysfs import FakeSysfs

import clone_rl.cli.hardware as command

pytest_plugins = ["cli_running", "fake_sysfs", "fake_zeus"]


@pytest.fixture(autouse=True)
def quick(monkeypatch, no_zeus):
    monkeypatch.setattr(command, "_SETTLE_S", 0.0)


@pytest.fixture
def hardware(run_cli, machine):
    """``clone-rl hardware`` on a machine with a fake sysfs and a short load."""
    return lambda *options: run_cli("hardware", "--sysfs", machine.root, "--seconds", 0.002, *options)


def test_a_machine_without_any_says_so_and_uses_the_emulator(hardware):
    told = hardware("--try")
    assert told.code == 0
    assert "nothing in " in told.out
    assert "as in most virtual machines" in told.out
    assert "No clock of this machine was set: these are emulated, asic28-sram" in told.out
    found = hardware("--try", "--json").json
    assert [each["name"] for each in found["actuators"] if each["usable"]] == ["emulated"]
    assert not any(each["usable"] for each in found["meters"])
    tried = found["tried"]
    assert (tried["actuator"], tried["meter"]) == ("emulated", "emulated")
    rows = tried["points"]
    assert [row["point"] for row in rows] == list(range(8))
    assert all(row["energy_j"] > 0 for row in rows)
    assert rows[0]["time_s"] > rows[-1]["time_s"]


def test_a_system_without_sysfs_has_the_emulator(run_cli, here, monkeypatch):
    monkeypatch.setattr(command, "_SYSFS", str(here / "nowhere"))
    found = run_cli("hardware", "--json").json
    assert [each["name"] for each in found["actuators"] if each["usable"]] == ["emulated"]


def test_the_list_alone_sets_nothing(hardware, machine):
    machine.cpufreq()
    assert hardware("--json").json["tried"] is None
    assert machine.writes == []


def test_every_point_of_all_clocks_is_tried_with_energy_and_limits_come_back(hardware, machine, monkeypatch):
    folders, package = [machine.cpufreq(f"policy{n}", cores=str(n)) for n in range(2)], machine.rapl(energy_uj=0)
    load = command._load

    def heat(*how):
        (package / "energy_uj").write_text(str(int((package / "energy_uj").read_text()) + 3_000_000))
        return load(*how)

    monkeypatch.setattr(command, "_load", heat)
    cores = os.sched_getaffinity(0)
    tried = hardware("--try", "--points", 3, "--json").json["tried"]
    assert (tried["actuator"], tried["meter"]) == ("cpu", "rapl")
    for row, hz in zip(tried["points"], (8e8, 16e8, 24e8), strict=True):
        assert row["devices"] == [{"device": f"policy{n}", "frequency_hz": hz, "granted_hz": hz} for n in range(2)]
        assert row["energy_j"] == pytest.approx(3.0)
        assert row["power_w"] == pytest.approx(3.0 / row["time_s"])
    for folder in folders:
        assert [(folder / f"scaling_{end}_freq").read_text() for end in ("min", "max")] == ["800000\n", "2400000\n"]
    assert os.sched_getaffinity(0) == cores
    assert "then the limits went back" in hardware("--try", "--points", 3).out


def test_clocks_without_a_meter_have_no_energy(hardware, machine):
    machine.cpufreq()
    told = hardware("--try", "--points", 2)
    assert "No meter could be used, so there is no energy." in told.out
    assert hardware("--try", "--json").json["tried"]["points"][0]["energy_j"] is None


def test_a_meter_without_clocks_is_read_as_well(hardware, machine):
    machine.rapl()
    tried = hardware("--try", "--json").json["tried"]
    assert (tried["actuator"], tried["meter"]) == ("emulated", "rapl")
    assert [(row["point"], row["energy_j"]) for row in tried["points"]] == [(None, 0.0)]
    assert "no clock could be set" in hardware("--try").out


def test_a_dry_run_tells_every_write_and_does_none(hardware, machine):
    folder = machine.devfreq()
    told = hardware("--dry-run", "--points", 2, "--actuator", "17000000.gpu")
    assert f"would write 306000000 to {folder}/min_freq" in told.out
    tried = hardware("--dry-run", "--points", 2, "--actuator", "17000000.gpu", "--json").json["tried"]
    assert len(tried["writes"]) == 6  # two points, and back
    assert machine.writes == []


def test_an_interrupt_gives_the_limits_back(hardware, machine, monkeypatch):
    folder = machine.cpufreq()

    def interrupted(*how):
        assert (folder / "scaling_min_freq").read_text() == "2400000\n"
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_load", interrupted)
    assert hardware("--try").code == 130
    assert (folder / "scaling_min_freq").read_text() == "800000\n"


def test_a_kill_gives_the_limits_back(tmp_path):
    machine = FakeSysfs(tmp_path / "sys")
    folder = machine.cpufreq(cores="")
    call = [sys.executable, "-m", "clone_rl.cli.main", "hardware", "--try", "--sysfs", str(machine.root), "--seconds", "50"]
    running = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while (folder / "scaling_min_freq").read_text() != "2400000\n" and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (folder / "scaling_min_freq").read_text() == "2400000\n"
    running.send_signal(signal.SIGTERM)
    assert running.wait(30) == 128 + signal.SIGTERM
    assert (folder / "scaling_min_freq").read_text() == "800000\n"


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        (["--sysfs", "nowhere"], "bad_file", "no sysfs at nowhere"),
        (["--points", 0], "bad_value", "points is 0"),
        (["--seconds", -1], "bad_value", "seconds is -1"),
        (["--try", "--actuator", "/etc"], "bad_file", "not in the sysfs of"),
        (["--try", "--actuator", "../../../etc"], "bad_file", "no such sysfs node"),
        (["--try", "--actuator", "cpu"], "device", "no cpufreq policy"),
        (["--try", "--actuator", "nvml"], "missing_extra", "without zeus"),
        (["--try", "--meter", "joules"], "unknown_name", "unknown meter 'joules'"),
        (["--try", "--meter", "rapl"], "device", "no RAPL"),
    ],
)
def test_what_cannot_be_done_is_said(hardware, options, kind, words):
    error = hardware(*options, "--json").error
    assert error["kind"] == kind
    assert words in error["message"]
