"""Tables of measurements and of other simulators' results, read from a folder that the user names."""

from __future__ import annotations

import csv
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

from clone_rl.errors import BadFileError

Row = dict[str, Any]


def read_tables(
    folder: Path | None,
    pattern: str,
    numbers: Collection[str],
    texts: Collection[str] = (),
    may_be_zero: Collection[str] = (),
) -> dict[Path, list[Row]]:
    """Rows of every CSV file under a folder whose name matches a pattern.

    Args:
        folder: Searched recursively; None holds no tables.
        pattern: Of file names, as in ``Path.rglob``.
        numbers: Columns that hold positive numbers.
        texts: Columns that hold text. Columns that are not named are ignored.
        may_be_zero: Those of ``numbers`` that may be 0.

    Returns:
        By path in alphabetical order, rows with these columns; files without a row are left out.

    Raises:
        BadFileError: No such folder, or a file lacks a column or holds something else in it.
    """
    if folder is None:
        return {}
    if not folder.is_dir():
        raise BadFileError(f"no such folder of reference tables: {folder}")
    tables = {path: _read(path, numbers, texts, may_be_zero) for path in sorted(folder.rglob(pattern))}
    return {path: rows for path, rows in tables.items() if rows}


def read_rows(folder: Path | None, pattern: str, numbers: Collection[str], texts: Collection[str] = ()) -> list[Row]:
    """All rows of ``read_tables`` together; arguments and errors as there."""
    return [row for rows in read_tables(folder, pattern, numbers, texts).values() for row in rows]


def _read(path: Path, numbers: Collection[str], texts: Collection[str], may_be_zero: Collection[str]) -> list[Row]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            for column in (*numbers, *texts):
                if column not in (reader.fieldnames or ()):
                    raise BadFileError(f"{path} has no column {column!r}", f"columns read: {', '.join((*numbers, *texts))}")
            return [
                {c: _number(row[c], path, reader.line_num, c, c in may_be_zero) for c in numbers}
                | {c: _text(row[c], path, reader.line_num, c) for c in texts}
                for row in reader
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadFileError(f"{path} is not a CSV table: {error}") from None


def _number(value: str | None, path: Path, line: int, column: str, may_be_zero: bool) -> float:
    try:
        number = float(value or "")
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and (number > 0 or (number == 0 and may_be_zero))):
        raise BadFileError(f"{path}, line {line}: {column} is {value!r}", "write a positive number")
    return number


def _text(value: str | None, path: Path, line: int, column: str) -> str:
    if not value:
        raise BadFileError(f"{path}, line {line}: {column} is empty")
    return value
