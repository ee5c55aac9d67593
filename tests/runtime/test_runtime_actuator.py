import errno
import gc
import inspect
import logging
import os
import re
import stat
from pathlib import Path

import pytest
from fake_sysfs import as_nobody, put
from fake_zeus import Gpu, Soc, ZeusGPUInitError, ZeusGPUNoPermissionError

from clone_rl.errors import BadFileError, BadValueError, DeviceError, MissingExtraError
from clone_rl.runtime import EmulatedActuator, sysfs
from clone_rl.runtime.actuators import ActuatorGroup, FrequencyNode, NvmlActuator, SysfsActuator
from clone_rl.runtime.actuators.points import between, spread
from clone_rl.runtime.machine import find_actuators, open_actuator

pytest_plugins = ["fake_sysfs", "fake_zeus"]


def test_a_chip_starts_at_its_top_point():
    actuator = EmulatedActuator(8)
    assert (actuator.operating_point, actuator.changes) == (7, 0)


@pytest.mark.parametrize("points", [1, 2, 8])
def test_every_point_of_the_chip_can_be_set(points):
    actuator = EmulatedActuator(points)
    for point in range(points):
        actuator.set(point)
        assert actuator.operating_point == point


@pytest.mark.parametrize("point", [-1, 8, 100])
def test_a_point_that_the_chip_does_not_have_is_refused_and_changes_nothing(point):
    actuator = EmulatedActuator(8)
    actuator.set(3)
    with pytest.raises(BadValueError, match=rf"operating point {point}.*0 to 7"):
        actuator.set(point)
    assert (actuator.operating_point, actuator.changes) == (3, 1)


def test_only_real_changes_are_counted():
    actuator = EmulatedActuator(8)
    for point in (7, 7, 3, 3, 4, 7, 7):
        actuator.set(point)
    assert actuator.changes == 3


# Frequencies of points


@pytest.mark.parametrize("points", [2, 3, 5, 8, 11, 30])
def test_points_reach_from_the_lowest_to_the_highest_frequency_and_never_fall(points):
    found = spread([5, 1, 4, 2, 3, 5], points)
    assert (len(found), found[0], found[-1]) == (points, 1, 5)
    assert list(found) == sorted(found)
    assert set(found) == {1, 2, 3, 4, 5} or points < 5
    assert all(abs(hz - (1 + 4 * point / (points - 1))) <= 0.5 for point, hz in enumerate(found))


def test_a_range_is_split_in_steps_that_the_device_counts_in():
    assert between(800_000_000, 1_000_000_000, 4, 1000) == (800_000_000, 866_666_000, 933_333_000, 1_000_000_000)
    assert between(7, 7, 3) == (7, 7, 7)


# sysfs: what is set


@pytest.mark.parametrize("name", ["17000000.gpu", "17000000.ga10b", "17000000.gv11b", "57000000.gpu"])
@pytest.mark.parametrize("parent", ["devices/platform/bus@0", "devices"])
def test_a_jetsons_gpu_runs_at_the_frequency_of_each_point(machine, name, parent):
    folder = machine.devfreq(name, parent=parent)
    with SysfsActuator(name, 8, root=machine.root) as gpu:
        for point in (0, 7, 3, 4, 1, 0, 7):
            gpu.set(point)
            held = gpu.frequencies_hz[point]
            assert FrequencyNode(folder, machine.root).limits_hz() == (held, held)
            assert (gpu.operating_point, gpu.granted_hz) == (point, held)
    assert gpu.frequencies_hz[0], gpu.frequencies_hz[-1] == (306_000_000, 1_300_500_000)


@pytest.mark.parametrize("device", ["class/devfreq/17000000.gpu", "devices/platform/bus@0/17000000.gpu/devfreq/17000000.gpu"])
def test_a_device_can_be_given_by_its_path(machine, device):
    folder = machine.devfreq()
    with SysfsActuator(machine.root / device, 2, root=machine.root) as gpu:
        gpu.set(0)
        assert (folder / "max_freq").read_text() == "306000000\n"


def test_max_is_written_first_on_the_way_up_and_min_on_the_way_down(machine):
    machine.devfreq(mhz=(100, 200, 300))
    with SysfsActuator("17000000.gpu", 3, root=machine.root) as gpu:
        for point in (0, 2, 1):
            gpu.set(point)
    names = [name for _, name, _ in machine.writes]
    assert names == ["min_freq", "max_freq", "max_freq", "min_freq", "min_freq", "max_freq", "max_freq", "min_freq"]


def test_the_fake_kernel_refuses_the_other_order(machine):
    folder = machine.devfreq(mhz=(100, 200, 300), limits=(100_000_000, 100_000_000))
    with pytest.raises(OSError, match="Invalid argument"):
        sysfs.write(folder / "min_freq", 300_000_000)


def test_a_point_in_force_is_not_written_again(machine):
    machine.devfreq()
    with SysfsActuator("17000000.gpu", 8, root=machine.root) as gpu:
        for point in (3, 3, 3, 5, 5):
            gpu.set(point)
        assert (gpu.changes, len(machine.writes)) == (2, 4)


def test_cores_are_set_in_kilohertz_and_read_in_hertz(machine):
    folder = machine.cpufreq()
    with SysfsActuator("policy0", 3, root=machine.root) as cores:
        assert cores.frequencies_hz == (800_000_000, 1_600_000_000, 2_400_000_000)
        cores.set(1)
        assert (folder / "scaling_min_freq").read_text() == (folder / "scaling_max_freq").read_text() == "1600000\n"
        assert cores.granted_hz == 1_600_000_000
        assert cores.node.cores() == (0, 1)


def test_cores_without_a_list_split_their_range(machine):
    machine.cpufreq(listed=False)
    with SysfsActuator("policy0", 5, root=machine.root) as cores:
        assert cores.frequencies_hz == tuple(hz * 1_000_000 for hz in (800, 1200, 1600, 2000, 2400))


def test_a_devfreq_device_without_a_list_splits_its_limits(machine):
    (machine.devfreq(mhz=(100, 300)) / "available_frequencies").unlink()
    with SysfsActuator("17000000.gpu", 3, root=machine.root) as gpu:
        assert gpu.frequencies_hz == (100_000_000, 200_000_000, 300_000_000)


def test_a_userspace_governor_is_told_the_speed_and_its_limits_stay(machine):
    machine.cpufreq(governor="userspace", setspeed=1_600_000)
    with SysfsActuator("policy0", 3, root=machine.root) as cores:
        cores.set(0)
        assert cores.granted_hz == 800_000_000
    assert machine.writes == [("policy0", "scaling_setspeed", 800_000), ("policy0", "scaling_setspeed", 1_600_000)]


def test_the_place_of_older_kernels_serves_as_well(machine):
    folder = machine.root / "devices/system/cpu/cpu0/cpufreq"
    folder.parent.mkdir()
    machine.cpufreq().rename(folder)
    with SysfsActuator(folder, 2, root=machine.root) as cores:
        cores.set(0)
        assert (cores.node.name, cores.granted_hz) == ("cpu0", 800_000_000)


def test_no_point_is_above_the_limit_that_the_power_mode_has_set(machine):
    machine.devfreq(limits=(306_000_000, 612_000_000))
    with SysfsActuator("17000000.gpu", 8, root=machine.root) as gpu:
        assert gpu.frequencies_hz[-1] == 612_000_000
    with pytest.raises(BadValueError, match=r"from 306000000 to 612000000 Hz"):
        SysfsActuator("17000000.gpu", 2, (306_000_000, 714_000_000), root=machine.root)


def test_clocks_that_were_pinned_to_the_top_can_still_go_down(machine):
    machine.devfreq(limits=(1_300_500_000, 1_300_500_000))
    with SysfsActuator("17000000.gpu", 2, root=machine.root) as gpu:
        gpu.set(0)
        assert gpu.granted_hz == 306_000_000


def test_frequencies_of_ones_own_are_used(machine):
    machine.devfreq()
    with SysfsActuator("17000000.gpu", 2, (510_000_000, 816_000_000), root=machine.root) as gpu:
        gpu.set(1)
        assert gpu.granted_hz == 816_000_000


@pytest.mark.parametrize("hz", [(510_000_000,), (816_000_000, 510_000_000), (1, 510_000_000), ()])
def test_frequencies_that_do_not_fit_are_refused(machine, hz):
    machine.devfreq()
    with pytest.raises(BadValueError, match=r"one for each of 2 points, rising, from 306000000 to 1300500000 Hz"):
        SysfsActuator("17000000.gpu", 2, hz, root=machine.root)


def test_what_the_kernel_grants_is_read_back(machine):
    machine.devfreq()
    machine.cap = 800_000_000  # hot
    with SysfsActuator("17000000.gpu", 2, root=machine.root) as gpu:
        gpu.set(0)
        assert (gpu.granted_hz, gpu.clamped) == (306_000_000, 0)
        gpu.set(1)
        assert (gpu.granted_hz, gpu.clamped) == (800_000_000, 1)
        assert gpu.node.limits_hz() == (800_000_000, 800_000_000)


# sysfs: what comes back


def limits(folder):
    return [int((folder / name).read_text()) for name in ("min_freq", "max_freq")]


@pytest.mark.parametrize("before", [(306_000_000, 1_300_500_000), (408_000_000, 918_000_000), (714_000_000, 714_000_000)])
@pytest.mark.parametrize("last", [0, 1, 7])
def test_limits_come_back(machine, before, last):
    folder = machine.devfreq(limits=before)
    with SysfsActuator("17000000.gpu", 8, root=machine.root) as gpu:
        gpu.set(last)
        assert limits(folder) == [gpu.frequencies_hz[last]] * 2
    assert limits(folder) == list(before)


def test_limits_come_back_after_an_exception_and_when_the_actuator_is_forgotten(machine):
    folder = machine.devfreq()
    before = limits(folder)
    with pytest.raises(ZeroDivisionError), SysfsActuator("17000000.gpu", 8, root=machine.root) as gpu:
        gpu.set(0)
        raise ZeroDivisionError
    assert limits(folder) == before
    gpu = SysfsActuator("17000000.gpu", 8, root=machine.root)
    gpu.set(0)
    assert limits(folder) != before
    del gpu
    gc.collect()
    assert limits(folder) == before


def test_nothing_is_written_without_need(machine):
    machine.devfreq()
    with SysfsActuator("17000000.gpu", 8, root=machine.root) as gpu:
        pass
    gpu.close()
    assert machine.writes == []
    with pytest.raises(BadValueError, match="closed"):
        gpu.set(0)


def test_a_forked_child_leaves_the_limits_to_its_parent(machine, monkeypatch):
    machine.devfreq()
    with SysfsActuator("17000000.gpu", 8, root=machine.root) as gpu:
        gpu.set(0)
        written = len(machine.writes)
        monkeypatch.setattr(os, "getpid", lambda: -1)
    assert len(machine.writes) == written


def test_a_device_is_in_one_hand_at_a_time(machine):
    """The second would give the limits of the first back for good."""
    folder = machine.devfreq()
    before = limits(folder)
    with SysfsActuator("17000000.gpu", 2, root=machine.root) as gpu:
        gpu.set(0)
        with pytest.raises(DeviceError, match="in the hands of another actuator"):
            SysfsActuator(folder, 2, root=machine.root)
        SysfsActuator(folder, 2, dry_run=True, root=machine.root).close()
        (found,) = [each for each in find_actuators(2, machine.root) if each.name == "17000000.gpu"]
        assert not found.usable
    with pytest.raises(BadValueError, match="one for each of 2 points") as refused:
        SysfsActuator(folder, 2, (1, 2), root=machine.root)
    with SysfsActuator(folder, 2, root=machine.root) as gpu:
        gpu.set(1)
    assert refused.value  # which still knows of the actuator that was not made
    assert limits(folder) == before


def test_limits_that_do_not_come_back_are_said_and_an_exception_in_the_block_is_kept(machine, monkeypatch):
    machine.devfreq()

    def broken(path, value):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    gpu = SysfsActuator("17000000.gpu", 8, root=machine.root)
    gpu.set(0)
    monkeypatch.setattr(sysfs, "write", broken)
    with pytest.raises(DeviceError, match=r"does not go back to 306000000 to 1300500000 Hz.*Input/output error"):
        gpu.__exit__(None, None, None)
    monkeypatch.setattr(sysfs, "write", machine.write)
    with pytest.raises(ZeroDivisionError) as caught, SysfsActuator("17000000.gpu", 8, root=machine.root) as gpu:
        gpu.set(1)
        monkeypatch.setattr(sysfs, "write", broken)
        raise ZeroDivisionError
    assert "does not go back" in caught.value.__notes__[0]


def test_after_a_failure_the_same_point_is_set_again(machine, monkeypatch):
    machine.devfreq()
    with SysfsActuator("17000000.gpu", 8, root=machine.root) as gpu:
        gpu.set(3)
        with monkeypatch.context() as patch:

            def busy(path, value):
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

            patch.setattr(sysfs, "write", busy)
            with pytest.raises(DeviceError, match=r"cannot write .*min_freq: Device or resource busy"):
                gpu.set(0)
        assert gpu.operating_point is None
        gpu.set(3)
        gpu.set(0)
        assert gpu.granted_hz == 306_000_000


# sysfs: dry run, permissions


def test_a_dry_run_says_what_it_would_write_and_writes_nothing(machine, caplog):
    folder = machine.devfreq()
    for path in folder.iterdir():
        path.chmod(0o444)
    said = []
    with SysfsActuator("17000000.gpu", 2, dry_run=True, root=machine.root, log=said.append) as gpu:
        for point in (0, 0, 1, 0):
            gpu.set(point)
    assert machine.writes == []
    assert gpu.granted_hz is None
    for path in folder.iterdir():
        path.chmod(0o644)
    with SysfsActuator("17000000.gpu", 2, root=machine.root) as gpu:
        for point in (0, 0, 1, 0):
            gpu.set(point)
    assert said == [f"would write {value} to {folder / name}" for _, name, value in machine.writes]
    assert len(said) == 8
    with caplog.at_level(logging.INFO), SysfsActuator("17000000.gpu", 2, dry_run=True, root=machine.root) as gpu:
        gpu.set(1)
    assert "would write 1300500000" in caplog.text


def test_files_that_may_not_be_written_are_named_with_what_allows_them(foreign_machine):
    folder = foreign_machine.devfreq()
    (folder / "min_freq").chmod(0o644)
    (folder / "max_freq").chmod(0o444)
    with as_nobody(), pytest.raises(DeviceError) as caught:
        SysfsActuator("17000000.gpu", 8, root=foreign_machine.root)
    assert "Permission denied" in caught.value.message
    hint = caught.value.hint
    assert f"chmod g+w {folder}/min_freq {folder}/max_freq" in hint
    assert 'SUBSYSTEM=="devfreq", KERNEL=="17000000.gpu", RUN+="/bin/chgrp ' in hint
    assert 'RUN+="/bin/chmod g+w /sys%p/min_freq /sys%p/max_freq"' in hint
    assert "sudo" not in hint
    assert limits(folder) == [306_000_000, 1_300_500_000]


def test_a_right_that_is_taken_away_in_between_is_named_too(foreign_machine):
    folder = foreign_machine.cpufreq()
    for path in folder.iterdir():
        path.chmod(0o666)
    with SysfsActuator("policy0", 3, root=foreign_machine.root) as cores, as_nobody():
        cores.set(0)
    for name in ("scaling_min_freq", "scaling_max_freq"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o666
    with SysfsActuator("policy0", 3, root=foreign_machine.root) as cores:
        (folder / "scaling_max_freq").chmod(0o444)
        with as_nobody(), pytest.raises(DeviceError, match=r"z .*/scaling_max_freq 0664 root .*") as caught:
            cores.set(0)
        assert "tmpfiles.d" in caught.value.hint
        (folder / "scaling_max_freq").chmod(0o666)
    assert (folder / "scaling_min_freq").read_text() == "800000\n"


def test_only_the_two_limits_are_opened_for_writing(machine, monkeypatch):
    machine.devfreq()
    opened, real = set(), os.open

    def watch(path, flags, *rest, **more):
        if flags & (os.O_WRONLY | os.O_RDWR):
            opened.add(Path(path).name)
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", watch)
    with SysfsActuator("17000000.gpu", 8, root=machine.root) as gpu:
        gpu.set(0)
    assert opened == {"min_freq", "max_freq"}


def test_a_read_only_mount_is_explained(machine, monkeypatch):
    machine.devfreq()

    def refuse(path, flags, *rest, **more):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    node = FrequencyNode("17000000.gpu", machine.root)
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(DeviceError, match=r"Read-only file system.*container"):
        sysfs.check(node.written(), "write")


# sysfs: what is no device


@pytest.mark.parametrize(
    "device",
    ["", ".", "..", "/", "nothing", "../../etc/passwd", "/etc/passwd", "/etc", "17000000.gpu/../../../..", "a\0b", "x" * 5000,
     "policy9", "policy0/../policy0/scaling_governor", "/sys/class/devfreq/17000000.gpu"],
)  # fmt: skip
def test_what_is_no_device_is_refused(machine, device):
    machine.devfreq()
    machine.cpufreq()
    with pytest.raises(BadFileError, match=r"no such sysfs node|is neither a devfreq|not in the sysfs of"):
        SysfsActuator(device, 8, root=machine.root)


@pytest.mark.parametrize("place", ["class/devfreq/17000000.gpu/../../..", "devices/platform", "devices/system/cpu/cpufreq"])
def test_other_nodes_of_sysfs_are_refused(machine, place):
    machine.devfreq()
    with pytest.raises(BadFileError, match="neither a devfreq device nor a cpufreq policy"):
        SysfsActuator(machine.root / place, 8, root=machine.root)


def test_a_folder_elsewhere_that_looks_like_a_device_is_refused(machine, tmp_path):
    elsewhere = put(tmp_path / "devices" / "gpu" / "devfreq" / "gpu", min_freq=1, max_freq=2, available_frequencies="1 2")
    machine.link("devfreq", elsewhere)
    for device in ("gpu", elsewhere, machine.root / "class/devfreq/gpu"):
        with pytest.raises(BadFileError, match="not in the sysfs of"):
            SysfsActuator(device, 2, root=machine.root)
    assert (elsewhere / "max_freq").read_text() == "2\n"


def test_another_file_system_mounted_into_sysfs_is_refused(machine, monkeypatch):
    folder, real = machine.devfreq(), os.stat

    def elsewhere(path, *rest, **more):
        found = real(path, *rest, **more)
        return os.stat_result((*found[:2], found.st_dev + 1, *found[3:10])) if str(path) == str(folder) else found

    monkeypatch.setattr(os, "stat", elsewhere)
    with pytest.raises(BadFileError, match="not in the sysfs of"):
        FrequencyNode("17000000.gpu", machine.root)


@pytest.mark.parametrize("name", ["min_freq", "max_freq"])
def test_a_link_or_folder_in_the_place_of_a_limit_is_refused_and_its_target_kept(machine, tmp_path, name):
    folder, target = machine.devfreq(), tmp_path / "precious"
    target.write_text("1000\n")
    (folder / name).unlink()
    (folder / name).symlink_to(target)
    with pytest.raises(BadFileError, match=f"has no file {name}"):
        SysfsActuator("17000000.gpu", 8, root=machine.root)
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(BadFileError, match=f"has no file {name}"):
        SysfsActuator("17000000.gpu", 8, root=machine.root)
    assert target.read_text() == "1000\n"


def test_a_link_that_comes_later_is_not_followed(machine, tmp_path):
    folder, target = machine.devfreq(), tmp_path / "precious"
    target.write_text("1000\n")
    gpu = SysfsActuator("17000000.gpu", 8, root=machine.root)
    (folder / "min_freq").unlink()
    (folder / "min_freq").symlink_to(target)
    with pytest.raises(DeviceError, match=r"Too many levels of symbolic links.*it is a link"):
        gpu.set(0)
    assert target.read_text() == "1000\n"


@pytest.mark.parametrize(("name", "text"), [("available_frequencies", "fast slow"), ("max_freq", "much"), ("max_freq", "")])
def test_files_that_hold_no_frequency_are_named(machine, name, text):
    (machine.devfreq() / name).write_text(text)
    with pytest.raises(DeviceError, match=name):
        SysfsActuator("17000000.gpu", 8, root=machine.root)


def test_a_limit_below_every_frequency_is_refused(machine):
    machine.devfreq(limits=(100, 200))
    with pytest.raises(BadValueError, match="no frequency from 306000000 Hz, its lowest, to 200 Hz"):
        SysfsActuator("17000000.gpu", 8, root=machine.root)


# Groups, names


def test_a_group_sets_all_and_gives_all_back(machine):
    folders = [machine.cpufreq(f"policy{number}", mhz) for number, mhz in ((0, (800, 1600)), (4, (600, 2000)))]
    emulated = EmulatedActuator(2)
    with ActuatorGroup(open_actuator("cpu", 2, machine.root), emulated) as group:
        group.set(0)
        assert [(folder / "scaling_max_freq").read_text() for folder in folders] == ["800000\n", "600000\n"]
        assert emulated.operating_point == 0
    assert [(folder / "scaling_max_freq").read_text() for folder in folders] == ["1600000\n", "2000000\n"]


def test_where_one_clock_may_not_be_set_none_is_held(machine):
    folder = machine.cpufreq("policy0")
    (machine.cpufreq("policy1") / "scaling_max_freq").write_text("none")
    with pytest.raises(DeviceError, match="policy1/scaling_max_freq holds 'none'") as caught:
        open_actuator("cpu", 2, machine.root)
    with SysfsActuator(folder, 2, root=machine.root):
        assert caught.value


def test_names_of_actuators_open_them_or_say_why_not(machine, no_zeus):
    assert isinstance(open_actuator("emulated", 3), EmulatedActuator)
    with pytest.raises(DeviceError, match="no cpufreq policy in"):
        open_actuator("cpu", 3, machine.root)
    with pytest.raises(MissingExtraError, match=r"clone-rl\[hardware\]"):
        open_actuator("nvml", 3, machine.root)
    machine.devfreq()
    machine.cpufreq("policy10")
    machine.cpufreq("policy2")
    found = {each.name: each for each in find_actuators(8, machine.root)}
    assert list(found) == ["emulated", "policy2", "policy10", "17000000.gpu", "nvml"]
    assert found["17000000.gpu"].reason == "devfreq, 8 frequencies from 306 to 1300.5 MHz"
    assert not found["nvml"].usable
    assert machine.writes == []


def test_a_machine_without_any_is_told_so(machine, no_zeus):
    found = find_actuators(8, machine.root)
    assert [each.name for each in found if each.usable] == ["emulated"]
    assert {each.name for each in found} == {"emulated", "cpufreq", "devfreq", "nvml"}
    assert all(each.reason and each.fix for each in found if not each.usable)


def test_the_page_on_actuators_runs_on_such_a_machine(machine, capsys):
    page = (Path(__file__).parents[2] / "docs" / "actuators.md").read_text(encoding="utf-8")
    folder = machine.devfreq()
    machine.ina3221(VDD_IN=(5000, 1000))
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(blocks) == 3
    for block in blocks:
        here = re.sub(r'SysfsActuator\("17000000.gpu", |Ina3221Meter\(', r"\g<0>root=ROOT, ", block)
        exec(compile(here, "actuators.md", "exec"), {"ROOT": machine.root})
        assert limits(folder) == [306_000_000, 1_300_500_000]
    assert capsys.readouterr().out.startswith("306000000 ")
    assert ("17000000.gpu", "max_freq", 624_750_000) in machine.writes


# NVML


def test_a_gpus_clock_is_locked_and_unlocked(zeus):
    with NvmlActuator(0, 3) as gpu:
        assert gpu.frequencies_hz == (345_000_000, 1_200_000_000, 1_980_000_000)
        for point in (2, 2, 0):
            gpu.set(point)
        assert zeus.gpu.calls == [(1980, 1980), (345, 345)]
    gpu.close()
    assert zeus.gpu.calls[2:] == ["reset"]
    with pytest.raises(BadValueError, match="closed"):
        gpu.set(1)


def test_a_gpu_that_was_never_locked_is_left_alone(zeus):
    with NvmlActuator(0, 3):
        pass
    said = []
    with NvmlActuator(0, 3, dry_run=True, log=said.append) as gpu:
        gpu.set(0)
    assert said == ["would lock the clock of GPU 0 to 345 MHz"]
    assert zeus.gpu.calls == []


def test_a_refusal_of_the_driver_is_explained_and_the_point_tried_again(zeus):
    with NvmlActuator(0, 3) as gpu:
        zeus.gpu.fails = ZeusGPUNoPermissionError("Insufficient Permissions")
        with pytest.raises(DeviceError, match=r"lock the clock of GPU 0 to 345 MHz: Insufficient.*ZEUSD_SOCK_PATH"):
            gpu.set(0)
        zeus.gpu.fails = None
        gpu.set(0)
    assert zeus.gpu.calls == [(345, 345), "reset"]


def test_no_gpu_is_no_traceback(zeus):
    with pytest.raises(BadValueError, match=r"GPU 1.*1 found"):
        NvmlActuator(1, 3)
    zeus.error = ZeusGPUInitError("NVML and AMDSMI unavailable")
    with pytest.raises(DeviceError, match="cannot find GPUs: NVML and AMDSMI unavailable"):
        NvmlActuator(0, 3)


def test_the_fake_has_the_names_of_zeus():
    gpu = pytest.importorskip("zeus.device.gpu.common")
    soc = pytest.importorskip("zeus.device.soc.jetson")
    for fake, real in ((Gpu, gpu.GPU), (Soc, soc.Jetson)):
        for name, method in vars(fake).items():
            if callable(method) and not name.startswith("_"):
                assert list(inspect.signature(method).parameters) == list(inspect.signature(getattr(real, name)).parameters)
    assert "total_energy_mj" in soc.JetsonMeasurement.__dataclass_fields__
    assert issubclass(gpu.ZeusGPUNoPermissionError, pytest.importorskip("zeus.exception").ZeusBaseError)
