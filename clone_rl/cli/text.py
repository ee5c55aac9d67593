"""Text for terminals: aligned columns, and numbers in the unit that suits them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

_PREFIXES = "fpnum kMGT"
Column = tuple[str, str, Sequence[Any]]
"""Title, unit (empty for text and plain numbers), and values; None and NaN are shown as a dash."""


def _prefix(value: float) -> tuple[float, str]:
    """Factor and letter of the unit in which a value has one to three digits before the point."""
    step = math.floor(math.log10(abs(value)) / 3 + 1e-12) if value and math.isfinite(value) else 0
    step = min(4, max(-5, step))
    return 1000.0**step, _PREFIXES[step + 5].strip()


def quantity(value: float | None, unit: str) -> str:
    """A number with its unit.

    >>> quantity(2.0925e-4, "s"), quantity(5e8, "Hz"), quantity(0.0, "W"), quantity(None, "W")
    ('209.2 us', '500 MHz', '0 W', '-')
    """
    if value is None:
        return "-"
    factor, letter = _prefix(value)
    return f"{value / factor:.4g} {letter}{unit}"


def mebibytes(size_bytes: float) -> str:
    """A size in memory.

    >>> mebibytes(8388608), mebibytes(655360)
    ('8 MiB', '640 KiB')
    """
    return f"{size_bytes / 2**20:.4g} MiB" if size_bytes >= 2**20 else f"{size_bytes / 1024:.4g} KiB"


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _largest(values: Sequence[Any]) -> float:
    return max((abs(v) for v in values if isinstance(v, int | float) and math.isfinite(v)), default=0.0)


def aligned(columns: Sequence[Column], together: str = "") -> str:
    """Columns under their titles and units; numbers to the right, each column in one unit.

    Args:
        columns: From left to right.
        together: Unit whose columns share one prefix, so that they can be compared.

    >>> print(aligned([("point", "", ["low", "top"]), ("time", "s", [2e-3, 5e-4])]))
    point  time
             ms
    low       2
    top     0.5
    """
    shown = []
    for title, unit, values in columns:
        seen = [v for _, other, all_of in columns if other == unit for v in all_of] if unit and unit == together else values
        factor, letter = _prefix(_largest(seen)) if unit else (1.0, "")
        cells = [_cell(v / factor if unit and isinstance(v, int | float) else v) for v in values]
        lines = [title, f"{letter}{unit}", *cells]
        width = max(len(line) for line in lines)
        text = any(isinstance(v, str) for v in values)
        shown.append([line.ljust(width) if text else line.rjust(width) for line in lines])
    lines = ["  ".join(cells).rstrip() for cells in zip(*shown, strict=True)]
    return "\n".join(line for i, line in enumerate(lines) if line or i != 1)


def quality(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """What limits are on: late tokens, tokens that differ from full depth, dNLL; of rows or figures with these keys."""
    return [
        ("late", "", [f"{row['miss_rate']:.2%}" for row in rows]),
        ("differs", "", [f"{row['disagreement']:.2%}" for row in rows]),
        ("dNLL", "", [f"{row['dnll']:+.4f}" for row in rows]),
    ]


def as_text(argument: str) -> str:
    r"""An argument as the text that was typed, in a terminal of whatever encoding.

    >>> as_text("h\udcc3\udca9llo")
    'héllo'
    """
    try:
        return argument.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a character, which no terminal sends
        return argument


def plain(value: Any) -> Any:
    """The same data as JSON can hold it: no NaN, no infinity."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
