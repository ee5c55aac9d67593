"""What people read: the table on a terminal, and rows in a file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clone_rl.files import replacing

_COLUMNS = (
    ("controller", "name", 1.0, "{}"),
    ("uJ/token", "energy_per_token_j", 1e6, "{:.3f}"),
    ("mW", "avg_power_w", 1e3, "{:.2f}"),
    ("late", "miss_rate", 100.0, "{:.2f} %"),
    ("differs", "disagreement", 100.0, "{:.2f} %"),
    ("dNLL", "dnll", 1.0, "{:+.4f}"),
    ("depth", "mean_depth", 1.0, "{:.2f}"),
    ("TTFT p50", "ttft_p50_s", 1e3, "{:.1f} ms"),
    ("TPOT p50", "tpot_p50_s", 1e3, "{:.3f} ms"),
    ("within limits", "within_limits", 1.0, "{}"),
)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table of summary rows, with the 95 % interval of the energy."""
    cells = [[title for title, *_ in _COLUMNS]]
    for row in rows:
        line = []
        for _, key, factor, form in _COLUMNS:
            value = row[key]
            if isinstance(value, bool):
                value = "yes" if value else "no"
            text = form.format(value if isinstance(value, str) else value * factor)
            if key == "energy_per_token_j":
                low, high = row[f"{key}_ci"]
                text += f" [{low * factor:.3f}, {high * factor:.3f}]"
            line.append(text)
        cells.append(line)
    widths = [max(len(line[i]) for line in cells) for i in range(len(_COLUMNS))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write one CSV line per row; the file appears complete or not at all."""
    with replacing(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
