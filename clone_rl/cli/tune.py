"""``clone-rl tune``: search the settings of baselines on the training split, and keep them as data files."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from clone_rl.cli.options import add_command
from clone_rl.cli.run_folder import command_line, create_run, free_name, keeping, read_config
from clone_rl.cli.text import Column, aligned, quality
from clone_rl.errors import BadFileError, BadValueError, StoppedError
from clone_rl.version import __version__

_KEPT = ("baselines", "scenario", "chip", "traces", "trials", "seed", "max_miss", "max_disagree", "max_dnll", "out", "command")
"""What a run folder keeps of the options, for ``--resume``."""

_SPLITS = ("train", "validation")
"""What figures are of."""


def add(commands: Any) -> argparse.ArgumentParser:
    """The parser of ``clone-rl tune``, but for the options that other commands have as well."""
    text = "Tune baselines on the training split, each by the same search, and write their settings."
    parser = add_command(commands, "tune", text, tune)
    parser.add_argument("baselines", nargs="*", metavar="BASELINE", help="baselines, or all (default: all)")
    parser.add_argument("--traces", default="", help="shipped trace set or folder (default: the scenario's)")
    parser.add_argument("--trials", type=int, default=100, help="settings to try for each baseline (default: 100)")
    parser.add_argument(
        "--out", default="", help="JSON file for the settings; a folder where --scenario is all (default: in the run folder)"
    )
    parser.add_argument("--runs", default="runs", help="folder of run folders (default: 'runs')")
    parser.add_argument("--name", default="", help="name of the run folder; must be new (default: tune, tune-2, ...)")
    parser.add_argument("--resume", default="", metavar="RUN", help="continue the search of this folder, as it was asked for")
    return parser


def _chosen(names: list[str]) -> list[str]:
    """Baselines to tune, each once.

    Raises:
        UnknownNameError: One is unknown.
    """
    from clone_rl.agents.heuristics import baselines, find_baseline

    known = baselines()
    if not names or "all" in names:
        return known
    return [find_baseline(name).name for name in dict.fromkeys(names)]


def _outputs(out: str, scenarios: list[str], folder: Path) -> dict[str, Path]:
    """The file for each scenario's settings.

    Raises:
        BadFileError: It cannot be written.
    """
    from clone_rl.agents.tuned import read_tuned

    single = len(scenarios) == 1
    if not out:
        return {name: folder / f"{Path(name).stem}.json" for name in scenarios}
    path = Path(out)
    if single and path.suffix != ".json":
        raise BadValueError(f"out {out}", "a JSON file: end it in .json")
    if not (path.parent if single else path).is_dir():
        raise BadFileError(f"no such folder: {path.parent if single else path}", "create it first")
    paths = {name: path if single else path / f"{name}.json" for name in scenarios}
    for each in paths.values():
        if each.exists():
            read_tuned(each)  # settings may be added to a file of settings, and to nothing else
    return paths


def tune(options: argparse.Namespace) -> dict[str, Any]:
    """``clone-rl tune``."""
    from clone_rl.envs import scenarios as shipped
    from clone_rl.envs.control import load_control
    from clone_rl.envs.scenario import Limits

    if options.resume:
        folder = Path(options.resume)
        try:
            kept = {name: read_config(folder)["tune"][name] for name in _KEPT}
        except (KeyError, TypeError):
            raise BadFileError(
                f"{folder / 'config.json'} is not of a search", "resume the folder of a clone-rl tune"
            ) from None
    else:
        kept = {name: getattr(options, name, None) for name in _KEPT} | {"command": command_line()}
        kept["baselines"] = _chosen(options.baselines)
        folder = Path(options.runs) / options.name if options.name else free_name(Path(options.runs), "tune")
    if kept["trials"] < 1:
        raise BadValueError(f"trials is {kept['trials']}", "at least 1")
    Limits().but(kept["max_miss"], kept["max_disagree"], kept["max_dnll"])  # checked before a run folder is made
    names = shipped() if kept["scenario"] == "all" else [kept["scenario"]]
    changes = {key: kept[key] for key in ("chip", "traces") if kept[key]}
    controls = {name: load_control("layer", name, "train", **changes) for name in names}
    paths = _outputs(kept["out"], names, folder)
    if not options.resume:
        create_run(folder, {"tune": kept})
    try:
        with keeping(folder, f"clone-rl tune --resume {folder}"):
            rows = [row for name in names for row in _tune_all(controls[name], kept, folder, paths[name])]
    except KeyboardInterrupt:
        raise StoppedError(
            f"the search stopped; its trials are in {folder}", f"continue with: clone-rl tune --resume {folder}"
        ) from None
    if not options.json:
        print(*_settings(controls, kept), _table(rows), sep="\n")
    print("settings: " + ", ".join(map(str, paths.values())), file=sys.stderr)
    return {"run_dir": str(folder), "files": [str(path) for path in paths.values()], "tuned": rows}


def _tune_all(control: Any, kept: Mapping[str, Any], folder: Path, path: Path) -> list[dict[str, Any]]:
    """Tune baselines for one scenario; each is written as soon as it is done."""
    from clone_rl.agents.judge import figures_of
    from clone_rl.agents.rollout import run_requests
    from clone_rl.agents.tuned import identity, write_tuned
    from clone_rl.agents.tuning import tune
    from clone_rl.bars import Bar

    limits = control.scenario.limits.but(kept["max_miss"], kept["max_disagree"], kept["max_dnll"])
    tuned_for, held_out = identity(control, limits), control.traces.documents("validation")
    rows = []
    for name in kept["baselines"]:
        began = time.monotonic()
        bar = partial(Bar, desc=f"{control.scenario.name}: {name}", unit="trial")
        found = tune(name, control, limits, kept["trials"], kept["seed"], folder / "trials.journal", bar)
        validation = figures_of(run_requests(control, found.controller, "validation", held_out, kept["seed"]))
        row = {
            "baseline": name,
            "within_constraints": found.within_constraints,
            "trials": found.trials,
            "seed": found.seed,
            "limits": asdict(limits),
            "start": found.start,
            "train": found.train,
            "validation": validation,
        }
        entry = {"command": kept["command"], "version": __version__, **row, "parameters": found.parameters}
        write_tuned(path, control.scenario.name, tuned_for, {name: {**entry, "settings": found.settings}})
        settings = found.controller.describe()
        seconds = round(time.monotonic() - began, 3)
        requests = {split: len(control.traces.documents(split)) for split in _SPLITS}
        where = {"scenario": control.scenario.name, "chip": control.emulator.chip.name, "requests": requests}
        rows.append({**where, **row, "settings": settings, "seconds": seconds})
        if not found.within_constraints:
            print(f"clone-rl: {name} cannot hold the limits in {control.scenario.name}; it breaks them least", file=sys.stderr)
    return rows


def _settings(controls: Mapping[str, Any], kept: Mapping[str, Any]) -> list[str]:
    """What the figures are of, a line for each scenario."""
    from clone_rl.evaluation.setting import limits_line

    lines = []
    for control in controls.values():
        limits = control.scenario.limits.but(kept["max_miss"], kept["max_disagree"], kept["max_dnll"])
        counts = " and ".join(f"{len(control.traces.documents(split))} {split}" for split in _SPLITS)
        where = f"{control.scenario.name} on {control.emulator.chip.name}"
        lines.append(f"{where}; {counts} requests x 1 seed; replayed, no shield; {limits_line(limits)}")
    return lines


def _table(rows: list[dict[str, Any]]) -> str:
    """What was found, for people: figures on both splits."""
    columns: list[Column] = [
        ("scenario", "", [row["scenario"] for row in rows]),
        ("baseline", "", [row["baseline"] for row in rows]),
    ]
    for split, mark in (("train", "train"), ("validation", "val.")):
        found = [row[split] for row in rows]
        columns += [
            (f"{mark} uJ", "", [f"{f['energy_per_token_j'] * 1e6:.3f}" for f in found]),
            *quality(found),
            ("depth", "", [f"{f['mean_depth']:.2f}" for f in found]),
        ]
    columns += [
        ("within", "", ["yes" if row["within_constraints"] else "no" for row in rows]),
        ("seconds", "", [f"{row['seconds']:.1f}" for row in rows]),
    ]
    return aligned(columns)
