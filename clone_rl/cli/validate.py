"""``clone-rl validate``: whether figures in files still hold."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from clone_rl.cli.options import add_command
from clone_rl.errors import BadValueError

_SHOWN = 10
"""Mismatches that people are shown."""

_ROUNDING = 1e-9


def add(commands: Any) -> None:
    """The parser of ``clone-rl validate``."""
    text = "Check figures in files: rows."
    parser = commands.add_parser("validate", help=text, description=text)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    text = "Run every row of clone-rl evaluate --out again; exit code 1 if a figure differs."
    rows = add_command(actions, "rows", text, validate)
    rows.add_argument("file", metavar="FILE", help="CSV or JSON file, or run folder with rows.csv")
    rows.add_argument(
        "--oracle", action="store_true", help="solve the clairvoyant oracle again as well, which takes as long as it did"
    )
    rows.add_argument(
        "--tolerance", type=float, default=0.0,
        help="relative difference of figures that passes; other processors may round otherwise (default: 0)",
    )  # fmt: skip


def validate(options: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """``clone-rl validate rows``; exit code 1 if a figure differs."""
    from dataclasses import asdict
    from functools import partial

    from clone_rl.bars import Bar
    from clone_rl.cli.live_requests import run_rows_live
    from clone_rl.evaluation.replay import groups, mismatches, oracle_mismatches
    from clone_rl.evaluation.rows import read_rows
    from clone_rl.version import __version__

    if not 0.0 <= options.tolerance < 1.0:
        raise BadValueError(f"tolerance is {options.tolerance}", "0 or more, below 1")
    path = Path(options.file)
    path = path / "rows.csv" if path.is_dir() else path
    rows = read_rows(path)
    found = groups(rows, path)
    bar_of = partial(Bar, unit="controller", delay=2.0, disable=None, dynamic_ncols=True)
    wrong = mismatches(bar_of(found, desc="rows"), run_rows_live, options.tolerance)
    if options.oracle:
        wrong += oracle_mismatches(bar_of(found, desc="oracle"), options.tolerance)
    broken = len({one.row for one in wrong})
    if not options.json:
        for one in wrong[:_SHOWN]:
            print(one)
        if len(wrong) > _SHOWN:
            print(f"... and {len(wrong) - _SHOWN} more figures")
        print(f"{len(rows) - broken} of {len(rows)} rows give the same figures again")
        if wrong and all(abs(m.written - m.replayed) <= _ROUNDING * max(abs(m.written), abs(m.replayed)) for m in wrong):
            print("they differ by rounding alone, as between processors: --tolerance 1e-9 lets that pass")
        elif wrong and (writer := rows[wrong[0].row - 1]["clone_rl"]) != __version__:
            print(f"the rows were written by clone-rl {writer}; this is {__version__}")
    result = {"file": str(path), "rows": len(rows), "matching": len(rows) - broken, "mismatches": [asdict(m) for m in wrong]}
    return result, int(bool(wrong))
