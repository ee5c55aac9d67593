"""Tuned settings of baselines as data files: one per scenario, and what they were tuned for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clone_rl.envs.control import Control
from clone_rl.envs.scenario import Limits
from clone_rl.envs.trace import TraceSet
from clone_rl.errors import BadFileError, reason
from clone_rl.files import replacing
from clone_rl.hw_emulator.chip import Chip

FORMAT = 1

_NOT_THE_WORLD = ("name", "chip", "traces", "model", "policy_macs", "probe", "signals", "weights", "limits")
"""Fields of a scenario that are told apart on their own, or that a baseline does not depend on."""


def plain_sha256(content: Any) -> str:
    """Hash of plain data."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def chip_sha256(chip: Chip) -> str:
    """Hash of what a chip does; how it is described is for people."""
    return plain_sha256({name: value for name, value in asdict(chip).items() if name != "description"})


def traces_sha256(traces: TraceSet) -> str:
    """The hash of a set's card, or of what is replayed where it has none."""
    if known := traces.card.get("sha256"):
        return str(known)
    digest = hashlib.sha256(json.dumps(traces.card["shape"], sort_keys=True).encode())
    for column in (traces.offset, traces.split, traces.prompt_tokens, traces.kind, *traces.packed):
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()


def identity(control: Control, limits: Limits) -> dict[str, Any]:
    """What settings are tuned for: hashes of a scenario's chip, traces and rules, and the limits."""
    scenario = control.scenario
    rules = {name: value for name, value in scenario.as_dict().items() if name not in _NOT_THE_WORLD}
    return {
        "chip": chip_sha256(control.emulator.chip),
        "traces": traces_sha256(control.traces),
        "rules": plain_sha256(rules),
        "limits": asdict(limits),
    }


def tuned_path(scenario: str) -> Path:
    """Where the settings of a shipped scenario lie, or would."""
    return Path(str(resources.files("clone_rl.agents") / "tuned" / f"{scenario}.json"))


def read_tuned(path: Path) -> dict[str, Any]:
    """A file of tuned settings.

    Raises:
        BadFileError: Missing, or not one.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadFileError(f"no such file: {path}", "write one with clone-rl tune --out") from None
    except (OSError, ValueError) as error:
        raise BadFileError(f"{path} is not a file of tuned settings: {reason(error)}") from None
    sections = ("tuned_for", "baselines")
    if (
        not isinstance(content, dict)
        or content.get("format") != FORMAT
        or not all(isinstance(content.get(name), dict) for name in sections)
    ):
        raise BadFileError(f"{path} is not a file of tuned settings of format {FORMAT}", "write one with clone-rl tune --out")
    return content


def write_tuned(path: Path, scenario: str, tuned_for: Mapping[str, Any], entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Write settings; those of other baselines in the file stay, if they were tuned for the same.

    Args:
        path: The file, which appears complete or not at all.
        scenario: Name, for people.
        tuned_for: An ``identity``.
        entries: By baseline: ``settings`` and whatever else is to be kept about them.

    Raises:
        BadFileError: What is there is something else.
    """
    kept: dict[str, Any] = {}
    if path.exists() and (before := read_tuned(path))["tuned_for"] == tuned_for:
        kept = before["baselines"]
    content = {"format": FORMAT, "scenario": scenario, "tuned_for": tuned_for, "baselines": {**kept, **entries}}
    with replacing(path) as aside:
        aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


class Stored(NamedTuple):
    """What a file has to say about a baseline.

    Attributes:
        settings: Its settings; None where there are none for what is wanted.
        reason: Why not.
        others: Whether the file is for something else.
    """

    settings: dict[str, Any] | None
    reason: str = ""
    others: bool = False


def stored_settings(path: Path, name: str, wanted: Mapping[str, Any]) -> Stored:
    """Settings of a baseline from a file.

    Args:
        path: The file; it may be missing.
        name: Of the baseline.
        wanted: The ``identity`` that they have to be tuned for.

    Raises:
        BadFileError: The file is there and is not one of tuned settings.
    """
    if not path.exists():
        return Stored(None, "nothing is stored")
    content = read_tuned(path)
    if others := [what for what, value in wanted.items() if content["tuned_for"].get(what) != value]:
        return Stored(None, f"other {' and '.join(others)}", others=True)
    entry = content["baselines"].get(name)
    if not isinstance(entry, dict) or not isinstance(entry.get("settings"), dict):
        return Stored(None, "nothing is stored")
    return Stored(entry["settings"])
