"""Result rows: one per controller and request, each with all that it takes to run it again, as CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clone_rl.agents.controller import Controller
from clone_rl.agents.lut import LutPolicy
from clone_rl.agents.own import OwnController
from clone_rl.agents.policy import Policy
from clone_rl.agents.tuned import chip_sha256, plain_sha256, traces_sha256
from clone_rl.envs.control import Control
from clone_rl.envs.figures import FIGURES, as_dict
from clone_rl.envs.scenario import Limits, Scenario, scenario_names
from clone_rl.errors import BadFileError, BadValueError
from clone_rl.evaluation.regret import Regret
from clone_rl.files import replacing
from clone_rl.version import __version__

VERSION = 1
"""Of the rows; rows of another version are refused."""

_TOLD_APART = ("name", "chip", "traces")
"""Fields of a scenario whose content has a hash of its own, or that only people read."""

IDENTITY = {
    "rows_version": int,
    "clone_rl": str,  # version of the package
    "command": str,
    "scenario": str,
    "changes": dict,  # fields that differ from the shipped scenario of this name; all of them where none has it
    "scenario_sha256": str,
    "chip": str,
    "chip_sha256": str,
    "traces": str,
    "traces_sha256": str,
    "split": str,
    "mode": str,  # replay or live
    "live": dict,  # model and sampling of a live row
    "controller": str,
    "policy": str,  # name, path, or module:class of one's own code; empty for baselines
    "policy_sha256": str,  # of its file
    "settings": dict,
    "max_miss": float,
    "max_disagree": float,
    "max_dnll": float,
    "limit_w": float,  # of the chip's average power
    "evaluation_seed": int,
    "request": int,
    "seed": int,  # key of the request's draws
    "kind": str,
}
"""Columns that say what a row is of, with their types."""

MEASURED = {name: int if FIGURES[name].kind == "i" else float for name in FIGURES.names or ()}
"""Columns that are measured: ``clone_rl.envs.figures.FIGURES``."""

MODES = ("replay", "live")

CLAIRVOYANT = ("oracle_j", "oracle_exits_j", "oracle_stopping_j")
"""Energy of the clairvoyant schedule, of that with the controller's own exits, and of that with those of the best causal
stopping rule; empty where they were not asked for."""


@dataclass(frozen=True)
class Origin:
    """What an evaluation does not know of itself.

    Attributes:
        command: That was typed.
        policies: What was typed for a policy, by its name; shipped policies need no entry.
        live: Model and sampling, where the model is in the loop; empty on a replay.
    """

    command: str = ""
    policies: Mapping[str, str] = field(default_factory=dict)
    live: Mapping[str, Any] = field(default_factory=dict)


def scenario_sha256(scenario: Scenario) -> str:
    """Hash of a scenario's rules; chip and traces have their own."""
    return plain_sha256({name: value for name, value in scenario.as_dict().items() if name not in _TOLD_APART})


def scenario_changes(scenario: Scenario) -> dict[str, Any]:
    """Fields that differ from the shipped scenario of the same name, all of them where none has it; None takes one away."""
    table = scenario.as_dict()
    if scenario.name not in scenario_names():
        return table
    shipped = Scenario.load(scenario.name).as_dict()
    return {name: table.get(name) for name in sorted({*table, *shipped}) if table.get(name) != shipped.get(name)}


def request_rows(
    control: Control,
    controller: Controller,
    split: str,
    seed: int,
    figures: NDArray[np.void],
    limits: Limits,
    origin: Origin,
    regret: Regret | None = None,
) -> list[dict[str, Any]]:
    """The rows of one controller and evaluation seed.

    Args:
        control: The scenario.
        controller: Who decided.
        split: Of the documents.
        seed: The evaluation seed; request i has ``seed + i``.
        figures: (R,) records of its requests.
        limits: What was to be held.
        origin: Where scenario and controller come from.
        regret: What the oracle found of some of them.
    """
    scenario, kinds = control.scenario.self_contained(), control.traces.kinds
    policy, sha256 = _source(controller, origin)
    shared = {
        "rows_version": VERSION,
        "clone_rl": __version__,
        "command": origin.command,
        "scenario": scenario.name,
        "changes": scenario_changes(scenario),
        "scenario_sha256": scenario_sha256(scenario),
        "chip": scenario.chip_name,
        "chip_sha256": chip_sha256(control.emulator.chip),
        "traces": scenario.traces,
        "traces_sha256": traces_sha256(control.traces),
        "split": split,
        "mode": "live" if origin.live else "replay",
        "live": dict(origin.live),
        "controller": controller.name,
        "policy": policy,
        "policy_sha256": sha256,
        "settings": controller.describe(),
        "max_miss": float(limits.miss),
        "max_disagree": float(limits.disagree),
        "max_dnll": float(limits.dnll),
        "limit_w": float(control.emulator.chip.limit_w),
        "evaluation_seed": seed,
    }
    known: dict[int, list[float]] = {}
    if regret is not None:
        solved_j = (regret.oracle_j, regret.exits_j, regret.stopping_j)
        energies = (np.where(np.isnan(e), np.inf, e).tolist() for e in solved_j)
        known = {int(i): found for i, *found in zip(regret.which, *energies, strict=True)}
    rows = []
    for i, record in enumerate(figures):
        own = {"request": i, "seed": seed + i, "kind": kinds[control.traces.kind[int(record["document"])]]}
        solved = (value if math.isfinite(value) else None for value in known.get(i, [math.inf] * len(CLAIRVOYANT)))
        rows.append({**shared, **own, **as_dict(record), **dict(zip(CLAIRVOYANT, solved, strict=True))})
    return rows


def _source(controller: Controller, origin: Origin) -> tuple[str, str]:
    """Where a controller comes from and the hash of its file; both empty for baselines, and for bare objects."""
    if isinstance(controller, OwnController):
        return controller.source, controller.sha256
    if isinstance(controller, Policy | LutPolicy):
        return origin.policies.get(controller.name, controller.name), controller.sha256
    return "", ""


def records(rows: Sequence[Mapping[str, Any]]) -> NDArray[np.void]:
    """The figures of rows as (R,) records of ``FIGURES``."""
    found = np.zeros(len(rows), FIGURES)
    for name in MEASURED:
        found[name] = [row[name] for row in rows]
    return found


def check_rows_path(path: Path) -> Path:
    """A path that rows may be written to.

    Raises:
        BadValueError: Neither CSV nor JSON.
    """
    if path.suffix not in (".csv", ".json"):
        raise BadValueError(f"rows file {path}", "end it in .csv or .json")
    return path


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows; the file appears complete or not at all, and every float comes back as it is.

    Raises:
        BadValueError: Neither CSV nor JSON.
    """
    with replacing(check_rows_path(path)) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        if path.suffix == ".json":
            json.dump({"rows": list(rows)}, file, indent=0, allow_nan=False)
            file.write("\n")
            return
        writer = csv.DictWriter(file, [*IDENTITY, *MEASURED, *CLAIRVOYANT])
        writer.writeheader()
        for row in rows:
            writer.writerow({k: json.dumps(v, allow_nan=False) if isinstance(v, dict) else v for k, v in row.items()})


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read rows.

    Raises:
        BadFileError: Missing, no rows, of another version, or a value that is not what its column holds; row and column are
            named.
        BadValueError: Neither CSV nor JSON.
    """
    found = _parsed(check_rows_path(path))
    for number, row in enumerate(found, 1):
        where = f"{path}, row {number}"
        if not isinstance(row, dict) or "rows_version" not in row:
            raise BadFileError(
                f"{where} has no rows_version", "write rows with clone-rl evaluate --out; older ones cannot be run again"
            )
        if str(row["rows_version"]) != str(VERSION):
            raise BadFileError(
                f"{where} is of version {row['rows_version']}; clone-rl {__version__} reads version {VERSION}",
                f"read it with clone-rl {row.get('clone_rl') or 'of the version that wrote it'}, or evaluate again",
            )
        columns = {*IDENTITY, *MEASURED, *CLAIRVOYANT}
        if others := columns ^ set(row):
            name = min(map(str, others))
            raise BadFileError(f"{where}: column {name!r} is {'missing' if name in columns else 'unknown'}", "evaluate again")
        for name, kind in {**IDENTITY, **MEASURED}.items():
            row[name] = _value(row[name], kind, f"{where}, {name}")
        for name in CLAIRVOYANT:
            row[name] = None if row[name] in ("", None) else _value(row[name], float, f"{where}, {name}")
        if row["mode"] not in MODES or bool(row["live"]) != (row["mode"] == "live"):
            raise BadFileError(f"{where}: mode is {row['mode'][:60]!r}", "the file was altered; evaluate again")
        if row["tokens"] < 1 or row["time_s"] <= 0 or row["document"] < 0 or not 0 <= row["seed"] < 2**62:
            raise BadFileError(f"{where} is of no request", "evaluate again")
    return found


def _parsed(path: Path) -> list[Any]:
    """What a file holds, not looked into."""
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise BadFileError(f"no such file: {path}", "write one with clone-rl evaluate --out") from None
    except OSError as error:
        raise BadFileError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadFileError(f"{path} is not a text file", "give a file of clone-rl evaluate --out") from None
    if path.suffix == ".json":
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BadFileError(f"{path} is not JSON: {error}") from None
        found = content.get("rows") if isinstance(content, dict) else None
    else:
        try:
            lines = csv.DictReader(io.StringIO(text, newline=""), strict=True, restkey="more")
            found = [dict(line) for line in lines]
        except csv.Error as error:
            raise BadFileError(f"{path} is not CSV: {error}") from None
    if not isinstance(found, list) or not found:
        raise BadFileError(f"{path} holds no rows", "write them with clone-rl evaluate --out")
    return found


def _value(value: Any, kind: type, where: str) -> Any:
    """A value as its column has it, from JSON or from the text of a CSV file.

    Raises:
        BadFileError: It is none.
    """
    try:
        if kind is dict:
            value = json.loads(value) if isinstance(value, str) else value
        elif isinstance(value, str) and kind in (int, float):
            value = kind(value)
        elif kind is float and type(value) is int:
            value = float(value)
    except (ValueError, OverflowError, RecursionError):
        pass
    if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
        named = {int: "a whole number", float: "a number", str: "a text", dict: "a JSON object"}[kind]
        raise BadFileError(f"{where} is {str(value)[:60]!r}, not {named}", "the file was altered; evaluate again")
    return value
