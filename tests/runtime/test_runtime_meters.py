import gc
import threading
import time

import pytest
from fake_sysfs import as_nobody, put
from fake_zeus import ZeusBaseError

from clone_rl.errors import BadFileError, BadValueError, DeviceError, MissingExtraError, UnknownNameError
from clone_rl.runtime.machine import find_meters, open_meter
from clone_rl.runtime.meters import Ina3221Meter, NvmlMeter, RaplMeter, ZeusSocMeter
from clone_rl.runtime.meters.ina3221 import rails

pytest_plugins = ["fake_sysfs", "fake_zeus"]

NEVER_S = 1e6
"""A period that no test waits for, so that only the test itself looks."""


class Clock:
    """Time that passes when told."""

    now_s = 100.0

    def __call__(self):
        return self.now_s


def count(folder, energy_uj):
    put(folder, energy_uj=energy_uj)


def wait_for_a_look(meter):
    """Until the meter's thread has seen something."""
    seen, deadline = meter._energy_j, time.monotonic() + 10
    while meter._energy_j == seen and time.monotonic() < deadline:
        time.sleep(0.001)


# RAPL


def test_energy_of_packages_and_their_memory_is_added_up_from_now_on(machine):
    package, memory = machine.rapl("0", "package-0", 5_000_000), machine.rapl("0:1", "dram", 1_000_000)
    machine.rapl("0:0", "core", 1)
    machine.rapl("1", "psys", 1)
    with RaplMeter(root=machine.root, period_s=NEVER_S) as meter:
        assert meter.names == ("package-0", "package-0/dram")
        assert meter.energy_j() == 0.0
        count(package, 7_500_000)
        assert meter.energy_j() == 2.5
        count(memory, 1_250_000)
        assert meter.energy_j() == meter.energy_j() == 2.75


def test_a_counter_may_run_over_again_and_again(machine):
    package = machine.rapl(energy_uj=9_000_000, size_uj=10_000_000)
    with RaplMeter(root=machine.root, period_s=NEVER_S) as meter:
        for number in range(1, 6):
            count(package, (9_000_000 + number * 4_000_000) % 10_000_000)
            assert meter.energy_j() == pytest.approx(4.0 * number)


def test_a_thread_sees_a_counter_run_over_while_nobody_asks(machine):
    package = machine.rapl(energy_uj=9_000_000, size_uj=10_000_000)
    with RaplMeter(root=machine.root, period_s=0.002) as meter:
        for energy_uj in (3_000_000, 9_000_000, 3_000_000):
            count(package, energy_uj)
            wait_for_a_look(meter)
        assert meter.energy_j() == pytest.approx(14.0)


def test_several_packages_are_all_counted(machine):
    folders = [machine.rapl(str(number), f"package-{number}", 0) for number in range(2)]
    with RaplMeter(root=machine.root, period_s=NEVER_S) as meter:
        for folder in folders:
            count(folder, 1_000_000)
        assert meter.energy_j() == 2.0


def test_zones_can_be_chosen(machine):
    machine.rapl("0", "package-0")
    core = machine.rapl("0:0", "core", 0)
    with RaplMeter(("package-0/core",), machine.root, NEVER_S) as meter:
        count(core, 500_000)
        assert meter.energy_j() == 0.5
    with pytest.raises(BadValueError, match=r"zones of RAPL are psys.*some of package-0, package-0/core"):
        RaplMeter(("psys",), machine.root)


def test_counters_that_may_not_be_read_are_named_with_what_allows_them(foreign_machine):
    folders = [foreign_machine.rapl("0", "package-0"), foreign_machine.rapl("0:0", "dram")]
    for folder in folders:
        (folder / "energy_uj").chmod(0)
    with as_nobody(), pytest.raises(DeviceError, match=r"cannot read .*energy_uj: Permission denied") as caught:
        RaplMeter(root=foreign_machine.root)
    hint = caught.value.hint
    assert f"chmod g+r {folders[0]}/energy_uj {folders[1]}/energy_uj" in hint
    assert 'SUBSYSTEM=="powercap", KERNEL=="intel-rapl:*"' in hint
    assert "g+r /sys%p/energy_uj" in hint


@pytest.mark.parametrize(("name", "text"), [("energy_uj", "lots"), ("max_energy_range_uj", "0")])
def test_a_counter_that_counts_nothing_is_refused(machine, name, text):
    (machine.rapl() / name).write_text(text)
    with pytest.raises(DeviceError, match=name if text != "0" else "run over at"):
        RaplMeter(root=machine.root)


def test_a_zone_outside_of_sysfs_is_refused(machine, tmp_path):
    machine.link("powercap", put(tmp_path / "intel-rapl:0", name="package-0", energy_uj=1, max_energy_range_uj=9))
    with pytest.raises(BadFileError, match="not in the sysfs of"):
        RaplMeter(root=machine.root)


# INA3221


def test_power_is_voltage_times_current_and_its_mean_is_integrated(machine):
    clock, folder = Clock(), machine.ina3221(VDD_IN=(5000, 1000), VDD_CPU_GPU_CV=(5000, 400))
    with Ina3221Meter(root=machine.root, period_s=NEVER_S, clock=clock) as meter:
        assert meter.names == ("VDD_IN",)
        clock.now_s += 2.0
        assert meter.energy_j() == pytest.approx(10.0)  # 5 W
        put(folder, curr1_input=3000)
        clock.now_s += 1.0
        assert meter.energy_j() == pytest.approx(20.0)  # 5 W, then 15 W
        assert meter.energy_j() == pytest.approx(20.0)


def test_the_rails_of_an_agx_orin_are_added_up_and_its_memory_is_not_counted_twice(machine):
    clock = Clock()
    machine.ina3221(3, VDD_GPU_SOC=(10_000, 300), VDD_CPU_CV=(10_000, 200), VIN_SYS_5V0=(5000, 800))
    machine.ina3221(4, NC=(0, 0), VDDQ_VDD2_1V8AO=(5000, 100))
    assert list(rails(machine.root)) == ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"]
    with Ina3221Meter(root=machine.root, period_s=NEVER_S, clock=clock) as meter:
        clock.now_s += 1.0
        assert meter.energy_j() == pytest.approx(9.0)


def test_rails_can_be_chosen_and_have_to_be_where_the_module_is_not_known(machine):
    clock = Clock()
    machine.ina3221(LEFT=(1000, 1000), RIGHT=(2000, 1000))
    with pytest.raises(BadValueError, match=r"not known.*some of LEFT, RIGHT, none of them fed by another"):
        Ina3221Meter(root=machine.root)
    with pytest.raises(BadValueError, match="rails are UP"):
        Ina3221Meter(("UP",), machine.root)
    with Ina3221Meter(("RIGHT",), machine.root, NEVER_S, clock) as meter:
        clock.now_s += 1.0
        assert meter.energy_j() == pytest.approx(2.0)


def test_a_thread_follows_a_power_that_changes_while_nobody_asks(machine):
    folder, start = machine.ina3221(VDD_IN=(1000, 0)), time.monotonic()
    with Ina3221Meter(root=machine.root, period_s=0.002) as meter:
        put(folder, curr1_input=1_000_000)  # 1 kW
        wait_for_a_look(meter)
        put(folder, curr1_input=0)
        assert 0.0 < meter.energy_j() <= 1000.0 * (time.monotonic() - start)  # two looks alone would see nothing


def test_energy_does_not_fall_where_the_sensor_reads_below_zero(machine):
    clock, folder = Clock(), machine.ina3221(VDD_IN=(5000, 100))
    with Ina3221Meter(root=machine.root, period_s=NEVER_S, clock=clock) as meter:
        seen = []
        for current in (100, -8, -8, 50):
            put(folder, curr1_input=current)
            clock.now_s += 1.0
            seen.append(meter.energy_j())
    assert seen == sorted(seen)


def test_other_sensors_are_no_monitor(machine):
    put(machine.ina3221(VDD_IN=(1, 1)), name="coretemp")
    with pytest.raises(DeviceError, match="no INA3221 in"):
        Ina3221Meter(root=machine.root)


# What all of them share


def test_a_look_that_fails_is_bridged_and_one_that_is_asked_for_raises(machine):
    clock, folder = Clock(), machine.ina3221(VDD_IN=(5000, 1000))
    with Ina3221Meter(root=machine.root, period_s=NEVER_S, clock=clock) as meter:
        put(folder, curr1_input="busy")
        clock.now_s += 1.0
        meter.look()
        assert meter.missed == 1
        with pytest.raises(DeviceError, match="curr1_input holds 'busy'"):
            meter.energy_j()
        put(folder, curr1_input=1000)
        clock.now_s += 1.0
        assert meter.energy_j() == pytest.approx(10.0)


def test_a_closed_meter_keeps_its_sum_and_its_thread_ends(machine):
    package, before = machine.rapl(energy_uj=0), set(threading.enumerate())
    with RaplMeter(root=machine.root, period_s=NEVER_S) as meter:
        (watcher,) = set(threading.enumerate()) - before
        count(package, 1_000_000)
    count(package, 9_000_000)
    assert meter.energy_j() == 1.0
    meter.close()
    watcher.join(10)
    assert not watcher.is_alive()


def test_the_thread_of_a_forgotten_meter_ends(machine):
    machine.rapl()
    before = set(threading.enumerate())
    meter = RaplMeter(root=machine.root, period_s=NEVER_S)
    (watcher,) = set(threading.enumerate()) - before
    del meter
    gc.collect()
    watcher.join(10)
    assert not watcher.is_alive()


@pytest.mark.parametrize("period_s", [0, -1.0, float("nan"), float("inf")])
def test_a_period_is_above_zero(machine, period_s):
    machine.rapl()
    with pytest.raises(BadValueError, match="period is"):
        RaplMeter(root=machine.root, period_s=period_s)


# zeus


def test_a_gpus_own_counter_counts_from_now_on(zeus):
    with NvmlMeter(0) as meter:
        assert meter.energy_j() == 0.0
        zeus.gpu.total_mj += 2500
        assert meter.energy_j() == 2.5
        zeus.gpu.total_mj = 0  # the driver was loaded again
        assert meter.energy_j() == 2.5
        zeus.gpu.total_mj = 9000
    zeus.gpu.total_mj = 99_000
    assert meter.energy_j() == 4.0


def test_a_gpu_without_a_counter_is_refused(zeus):
    zeus.gpu.counts = False
    with pytest.raises(DeviceError, match=r"GPU 0 has no energy counter.*Volta"):
        NvmlMeter(0)


def test_a_driver_that_fails_is_explained_and_does_not_hide_another_error(zeus):
    with pytest.raises(ZeroDivisionError), NvmlMeter(0) as meter:
        zeus.gpu.fails = ZeusBaseError("GPU is lost")
        with pytest.raises(DeviceError, match="cannot read the energy of GPU 0: GPU is lost"):
            meter.energy_j()
        raise ZeroDivisionError


def test_a_jetson_is_counted_by_zeus_where_it_measures_the_input(zeus):
    with ZeusSocMeter() as meter:
        zeus.soc.total_mj = 1100.0
        assert meter.energy_j() == 1.0
    zeus.soc.total_mj = None
    with pytest.raises(DeviceError, match=r"no energy of all of this module.*Ina3221Meter"):
        ZeusSocMeter()


def test_without_zeus_the_extra_is_named(no_zeus):
    for make in (NvmlMeter, ZeusSocMeter):
        with pytest.raises(MissingExtraError, match=r"without zeus \(pip install 'clone-rl\[hardware\]'\)"):
            make()


# By name


def test_names_of_meters_open_them_or_say_why_not(machine, no_zeus):
    assert [each.name for each in find_meters(machine.root) if each.usable] == []
    assert all(each.reason and each.fix for each in find_meters(machine.root))
    machine.rapl()
    machine.ina3221(VDD_IN=(1, 1))
    assert {each.name: each.reason for each in find_meters(machine.root) if each.usable} == {
        "rapl": "package-0",
        "ina3221": "VDD_IN",
    }
    with open_meter("rapl", machine.root) as meter:
        assert meter.energy_j() == 0.0
    machine.rapl("0:2", "core")
    with open_meter("rapl:package-0/core,package-0", machine.root) as meter:
        assert meter.names == ("package-0/core", "package-0")
    with pytest.raises(BadValueError, match="rails are X"):
        open_meter("ina3221:X", machine.root)
    with pytest.raises(UnknownNameError, match=r"unknown meter 'rappl'.*did you mean 'rapl'"):
        open_meter("rappl", machine.root)


def test_another_gpu_than_the_first_has_its_number(zeus):
    assert open_meter("nvml:0").energy_j() == 0.0
    with pytest.raises(BadValueError, match="GPU 7"):
        open_meter("nvml:7")
