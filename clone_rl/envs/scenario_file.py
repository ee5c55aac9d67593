"""Scenarios as TOML files, so that what a program put together can be named on a command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clone_rl.envs.scenario import Scenario
from clone_rl.files import replacing


def _value(value: Any) -> str:
    """A scalar, or a list of them."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return repr(value)


def _lines(table: Mapping[str, Any], path: str) -> list[str]:
    """A table: its values, then its tables and lists of tables under their headers."""
    lines, below = [], []
    for name, value in table.items():
        key = name if name.replace("_", "").isalnum() else json.dumps(name)
        here = f"{path}.{key}" if path else key
        if isinstance(value, Mapping):
            below += ["", f"[{here}]", *_lines(value, here)]
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for entry in value:
                below += ["", f"[[{here}]]", *_lines(entry, here)]
        else:
            lines.append(f"{key} = {_value(value)}")
    return lines + below


def scenario_toml(scenario: Scenario) -> str:
    """The text of a file that ``Scenario.load`` reads back as the same scenario.

    >>> import tomllib
    >>> default = Scenario.load("default", switching="100 ns")
    >>> Scenario.parse(tomllib.loads(scenario_toml(default)), "again") == default
    True
    """
    return "\n".join(_lines(scenario.as_dict(), "")) + "\n"


def write_scenario(path: Path, scenario: Scenario, note: str = "") -> Path:
    """Write a scenario; the file appears complete or not at all.

    Args:
        path: Ends in ``.toml``.
        scenario: What to write.
        note: First line, as a comment.
    """
    with replacing(path) as aside:
        aside.write_text((f"# {note}\n\n" if note else "") + scenario_toml(scenario), encoding="utf-8")
    return path
