"""Published figures that ship with the package, each with its source; see ``published.toml``."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from typing import Any


@cache
def published() -> dict[str, Any]:
    """The parsed file, by table."""
    path = resources.files("clone_rl.hw_emulator") / "validation" / "published.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))
