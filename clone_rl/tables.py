"""Typed TOML tables: data files that ship with the package or belong to the user, read strictly."""

from __future__ import annotations

import math
import re
import sys
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, fields
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from clone_rl.errors import BadFileError, UnknownNameError, reason
from clone_rl.ranges import ranges_of

T = TypeVar("T")

_UNIT = re.compile(r"(bytes|j|w|s|hz|v|c|f|mm2|k)(_per_\w+)?")
_KINDS: dict[Any, str] = {int: "an integer", float: "a number", bool: "true or false", str: "a text in quotes"}


def shipped(package: str, folder: str) -> list[str]:
    """Names of the TOML files in a folder of a package."""
    entries = (resources.files(package) / folder).iterdir()
    return sorted(entry.name.removesuffix(".toml") for entry in entries if entry.name.endswith(".toml"))


def load_toml(what: str, name: str, package: str, folder: str) -> dict[str, Any]:
    """Parse a shipped file by name, or a user's file by a path that ends in ``.toml``.

    Raises:
        UnknownNameError: No shipped file has this name.
        BadFileError: The file is missing or not TOML.
    """
    if not name.endswith(".toml"):
        known = shipped(package, folder)
        if name not in known:
            raise UnknownNameError(what, name, known, "or give a path that ends in .toml")
        return tomllib.loads((resources.files(package) / folder / f"{name}.toml").read_text(encoding="utf-8"))
    try:
        return tomllib.loads(Path(name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadFileError(f"no such {what} file: {name}", f"those that ship: {', '.join(shipped(package, folder))}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadFileError(f"{name} is not a {what} file: {reason(error)}") from None


def _meant(key: str, known: Collection[str]) -> str:
    """What may have been meant by an unknown key."""
    with_unit = [name for name in known if name.startswith(f"{key}_") and _UNIT.fullmatch(name[len(key) + 1 :])]
    if len(with_unit) == 1:
        return f"keys carry their unit: did you mean {with_unit[0]!r}?"
    return UnknownNameError("key", key, known).hint


def _named(what: str, keys: Sequence[str]) -> list[str]:
    return [f"{what} key{'s' if len(keys) > 1 else ''} {', '.join(map(repr, keys))}"] if keys else []


def check_keys(*tables: tuple[type[Any], Any, str]) -> None:
    """Look for what is missing and what is unknown in all tables of a file, so that one error names it all.

    Args:
        *tables: Dataclass, what was parsed, and the place that errors name; what is no table is left to ``read_table``.

    Raises:
        BadFileError: There is something.
    """
    found, hints = list[str](), list[tuple[str, str]]()
    for cls, table, where in tables:
        if not isinstance(table, Mapping):
            continue
        known = get_type_hints(cls)
        needed = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
        unknown, missing = [key for key in table if key not in known], [name for name in needed if name not in table]
        if unknown or missing:
            found.append(f"{where}: {'; '.join(_named('unknown', unknown) + _named('missing', missing))}")
            hints += [(key, _meant(str(key), known)) for key in unknown]
    if found:
        single = len(hints) == 1
        meant = "; ".join(hint if single else f"{key!r}: {hint}" for key, hint in hints)
        raise BadFileError("; ".join(found), meant or "the files that ship have every key")


def read_table(
    cls: type[T], table: Any, where: str, may_be_zero: Collection[str] = (), may_be_negative: Collection[str] = ()
) -> T:
    """Build a dataclass from a table: known keys only, declared types only, numbers finite, positive and in their ranges.

    Args:
        cls: A dataclass; fields of type int, float, bool and str are checked, others are passed on as they are. What is
            declared with a ``ranges.Range`` lies in it.
        table: What was parsed.
        where: File and section, named in errors.
        may_be_zero: Numeric fields that may be 0.
        may_be_negative: Numeric fields of any sign, such as temperatures.

    Raises:
        BadFileError: The table breaks one of these rules.
    """
    if not isinstance(table, dict):
        raise BadFileError(f"{where} is {table!r}, not a table", "write keys with values")
    check_keys((cls, table, where))
    hints, ranges = get_type_hints(cls), ranges_of(cls)
    values: dict[str, Any] = {}
    for field in fields(cls):  # type: ignore[arg-type]
        if field.name not in table:
            continue
        value, kind = table[field.name], hints[field.name]
        if kind in (int, float) and type(value) is int and abs(value) > sys.float_info.max:
            raise BadFileError(f"{where}: {field.name} has {len(str(value))} digits", "write a finite number")
        if kind is float and type(value) is int:
            value = float(value)
        if kind in (int, float, bool, str) and type(value) is not kind:
            raise BadFileError(f"{where}: {field.name} is {value!r}", f"write {_KINDS[kind]}")
        if kind in (int, float):
            if not math.isfinite(value):
                raise BadFileError(f"{where}: {field.name} is {value!r}", "write a finite number")
            allowed = ranges.get(field.name)
            signed = field.name in may_be_negative or (allowed is not None and allowed.low < 0)
            zero = field.name in may_be_zero or (allowed is not None and allowed.allows(0.0))
            if not signed and (value < 0 or (value == 0 and not zero)):
                raise BadFileError(f"{where}: {field.name} is {value!r}", "write a positive number")
            if allowed is not None:
                allowed.check(value, f"{where}: {field.name}", BadFileError)
        values[field.name] = value
    return cls(**values)
