"""``clone-rl hardware``: the actuators and meters of this machine, and a short load at each operating point."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clone_rl.cli.options import add_command
from clone_rl.cli.text import aligned
from clone_rl.errors import BadFileError, BadValueError

if TYPE_CHECKING:
    from clone_rl.runtime import Actuator
    from clone_rl.runtime.actuators import SysfsActuator
    from clone_rl.runtime.machine import Found
    from clone_rl.runtime.meters import Meter

_SYSFS = "/sys"
_LONGEST_S = 60.0
_SETTLE_S = 0.1  # users of Jetson's devfreq wait this long after a write
_CHIP, _PROMPT, _TOKENS = "asic28-sram", 128, 64


def add(commands: Any) -> None:
    """The parser of ``clone-rl hardware``."""
    text = "List the actuators and meters of this machine; --try runs a short load at each operating point."
    parser = add_command(commands, "hardware", text, hardware)
    parser.add_argument("--try", dest="tried", action="store_true", help="set every operating point and measure a load at it")
    parser.add_argument(
        "--dry-run", action="store_true", help="with --try: run nothing, and say what would be written to which file"
    )
    parser.add_argument(
        "--actuator",
        default="",
        help="emulated, cpu (all of its clocks), a cpufreq policy, a devfreq device or the path of either, nvml, nvml:1 ... "
        "(default: cpu where it may be set, emulated elsewhere)",
    )
    parser.add_argument(
        "--meter",
        default="",
        help="rapl or ina3221, with :NAME,NAME for some of its zones or rails, soc, nvml, nvml:1 ... "
        "(default: the first usable one, of those that see the processor)",
    )
    parser.add_argument("--points", type=int, default=8, help="operating points (default: 8)")
    parser.add_argument("--seconds", type=float, default=0.5, help="load at the top point, s (default: 0.5)")
    parser.add_argument(
        "--sysfs", default=_SYSFS, help="where sysfs is, in a container perhaps that of its host (default: '/sys')"
    )


def hardware(options: argparse.Namespace) -> dict[str, Any]:
    """``clone-rl hardware``."""
    from clone_rl.cli.timing import check_seconds
    from clone_rl.runtime.machine import find_actuators, find_meters

    check_seconds(options.seconds, _LONGEST_S)
    if not 1 <= options.points <= 1000:
        raise BadValueError(f"points is {options.points}", "1 to 1000")
    root = Path(options.sysfs)
    if options.sysfs != _SYSFS and not root.is_dir():
        raise BadFileError(f"no sysfs at {options.sysfs}", "a folder with class and devices in it")
    actuators, meters = find_actuators(options.points, root), find_meters(root)
    if not options.json:
        print(_listed("actuator", actuators), _listed("meter", meters), sep="\n\n")
    result: dict[str, Any] = {
        "actuators": [asdict(each) for each in actuators],
        "meters": [asdict(each) for each in meters],
        "tried": None,
    }
    if options.tried or options.dry_run:
        actuator = options.actuator or _default_actuator(actuators)
        meter = options.meter or next((each.name for each in meters if each.usable and each.name != "nvml"), "")
        tried = _try(options, actuator, meter, root)
        if not options.json:
            print("", _text(tried), sep="\n")
        result["tried"] = tried
    return result


def _default_actuator(found: list[Found]) -> str:
    """All of the processor's clocks, if each of them may be set: the load is one of the processor."""
    clocks = [each.usable for each in found if each.name.startswith("policy")]
    return "cpu" if clocks and all(clocks) else "emulated"


def _listed(title: str, found: list[Found]) -> str:
    table = aligned([
        (title, "", [each.name for each in found]),
        ("usable", "", ["yes" if each.usable else "no" for each in found]),
        ("", "", [each.reason for each in found]),
    ])  # fmt: skip
    return "\n".join([table, *(f"  {each.name}: {each.fix}" for each in found if each.fix)])


def _try(options: argparse.Namespace, actuator: str, meter: str, root: Path) -> dict[str, Any]:
    """Every operating point of an actuator, lowest first, with what a load took there."""
    from clone_rl.runtime.actuators import ActuatorGroup
    from clone_rl.runtime.machine import open_actuator, open_meter

    result: dict[str, Any] = {"actuator": actuator, "meter": meter or None, "dry_run": options.dry_run, "writes": []}
    if actuator == "emulated":
        if not meter or options.dry_run:
            return result | {"meter": "emulated", "points": _emulated()}
        with open_meter(meter, root) as counting:
            return result | {"points": [{"point": None, "devices": [], **_measured(_load(options.seconds), counting)}]}
    opened = open_actuator(actuator, options.points, root, options.dry_run, result["writes"].append)
    devices, rows = _devices(opened), []
    with ExitStack() as stack:
        stack.enter_context(_ending_well())
        group = stack.enter_context(ActuatorGroup(opened))
        counter = stack.enter_context(open_meter(meter, root)) if meter and not options.dry_run else None
        stack.enter_context(_on_core(next((core for each in devices for core in each.node.cores()), None)))
        repeats = 0
        if not options.dry_run:
            group.set(options.points - 1)
            time.sleep(_SETTLE_S)
            repeats = _load(options.seconds)
        for point in range(options.points):
            group.set(point)
            row: dict[str, Any] = {"point": point, "devices": [_state(each, point) for each in devices]}
            if not options.dry_run:
                time.sleep(_SETTLE_S)
                row |= _measured(repeats, counter)
            rows.append(row)
    return result | {"points": rows}


def _state(device: SysfsActuator, point: int) -> dict[str, Any]:
    return {
        "device": device.node.name,
        "frequency_hz": device.frequencies_hz[point],
        "granted_hz": device.granted_hz,
    }


def _measured(repeats: int, meter: Meter | None) -> dict[str, Any]:
    """Time and energy of the load."""
    before_j, start = meter.energy_j() if meter else None, time.perf_counter()
    _load(None, repeats)
    taken_s = time.perf_counter() - start
    taken_j = None if meter is None or before_j is None else meter.energy_j() - before_j
    return {"time_s": taken_s, "energy_j": taken_j, "power_w": None if taken_j is None else taken_j / taken_s}


def _devices(actuator: Actuator) -> list[SysfsActuator]:
    """Those of an actuator that sysfs knows."""
    from clone_rl.runtime.actuators import ActuatorGroup, SysfsActuator

    members = actuator.actuators if isinstance(actuator, ActuatorGroup) else (actuator,)
    return [each for each in members if isinstance(each, SysfsActuator)]


def _emulated() -> list[dict[str, Any]]:
    """The same for the emulated chip: a request of the embedded model at each of its points."""
    import json
    from importlib import resources

    from clone_rl.hw_emulator import Emulator, Workload, load_chip
    from clone_rl.hw_emulator.report import request_costs

    config = json.loads((resources.files("clone_rl") / "llm" / "embedded" / "config.json").read_text(encoding="utf-8"))
    emulator = Emulator(load_chip(_CHIP), Workload.from_config(config, "int4", name="default"), context=_PROMPT + _TOKENS)
    rows = []
    for cost in request_costs(emulator, _PROMPT, _TOKENS):
        hz = float(emulator.points[cost.point]["frequency_hz"])
        rows.append({
            "point": cost.point, "devices": [{"device": _CHIP, "frequency_hz": hz, "granted_hz": hz}],
            "time_s": cost.total.latency_s, "energy_j": cost.total.energy_j, "power_w": cost.total.power_w,
        })  # fmt: skip
    return rows


def _load(seconds: float | None, repeats: int = 0) -> int:
    """Multiply matrices on one core, for a time or as often as said; returns how often."""
    import numpy as np

    left = np.random.default_rng(0).standard_normal((192, 192), np.float32)
    right, done, start = left.T.copy(), 0, time.perf_counter()
    while done < repeats if seconds is None else time.perf_counter() - start < seconds:
        left @ right
        done += 1
    return done


@contextmanager
def _on_core(core: int | None) -> Iterator[None]:
    """Run on one core, whose clock is the one that changes; anywhere if it is None or not ours to use."""
    before = os.sched_getaffinity(0) if core is not None else set()
    if core not in before:
        yield
        return
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def _ending_well() -> Iterator[None]:
    """A polite kill ends this process like Ctrl-C does, so that limits come back."""
    before = signal.getsignal(signal.SIGTERM)
    with suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        with suppress(ValueError):
            signal.signal(signal.SIGTERM, before)


def _text(tried: dict[str, Any]) -> str:
    if tried["dry_run"] and tried["actuator"] != "emulated":
        return "\n".join(tried["writes"])
    rows = tried["points"]
    shown = [row["devices"][0] if row["devices"] else {"frequency_hz": None, "granted_hz": None} for row in rows]
    table = aligned([
        ("point", "", [row["point"] for row in rows]),
        ("asked", "Hz", [each["frequency_hz"] for each in shown]),
        ("granted", "Hz", [each["granted_hz"] for each in shown]),
        ("time", "s", [row["time_s"] for row in rows]),
        ("energy", "J", [row["energy_j"] for row in rows]),
        ("power", "W", [row["power_w"] for row in rows]),
    ])  # fmt: skip
    if tried["meter"] == "emulated":
        said = (
            f"No clock of this machine was set: these are emulated, {_CHIP} with the embedded model, "
            f"a prompt of {_PROMPT} tokens and {_TOKENS} further tokens."
        )
    elif tried["actuator"] == "emulated":
        said = "Matrix products on one core; no clock could be set, so it ran as the system lets it."
    else:
        said = f"{tried['actuator']}: the same matrix products on one core at every point; then the limits went back."
        if tried["meter"] is None:
            said += " No meter could be used, so there is no energy."
    return f"{said}\n{table}"
