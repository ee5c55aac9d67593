"""What people read on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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
    ("regret", "regret", 100.0, "{:.1f} %"),
    ("within constraints", "within_constraints", 1.0, "{}"),
)


def _cell(row: Mapping[str, Any], key: str, factor: float, form: str) -> str:
    value = row[key]
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = form.format(value if isinstance(value, str) else value * factor)
    if key == "energy_per_token_j":
        low, high = row[f"{key}_ci"]
        text += f" [{low * factor:.3f}, {high * factor:.3f}]"
    return text


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of summary rows, with the 95 % interval of the energy; what was measured for no row is left out."""
    columns = [column for column in _COLUMNS if any(row[column[1]] is not None for row in rows)]
    cells = [[title for title, *_ in columns]]
    cells += [[_cell(row, *column[1:]) for column in columns] for row in rows]
    return _markdown(cells)


def live_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of what a replay predicted and what the model in the loop gave."""
    cells = [["controller", "uJ/token: replay", "live", "ratio", "differs: replay", "live", "points", "late: replay", "live"]]
    for row in rows:
        before = row["replay"]
        cells.append(
            [
                row["name"],
                *(f"{one['energy_per_token_j'] * 1e6:.3f}" for one in (before, row)),
                f"{row['energy_ratio']:.4f}",
                *(f"{one['disagreement']:.2%}" for one in (before, row)),
                f"{row['disagreement_points']:+.2f}",
                *(f"{one['miss_rate']:.2%}" for one in (before, row)),
            ]
        )
    return _markdown(cells)


def _markdown(cells: Sequence[Sequence[str]]) -> str:
    """A table, its first line the titles."""
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)
