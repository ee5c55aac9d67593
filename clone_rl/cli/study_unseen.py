"""``clone-rl study unseen``: controllers under conditions that neither tuning nor training met."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from clone_rl.cli.text import Column, aligned, plain, quality


def add_unseen(parser: argparse.ArgumentParser) -> None:
    """Options of the command, but for those that other commands have as well."""
    parser.add_argument(
        "controllers", nargs="+", metavar="CONTROLLER",
        help="baselines, shipped policies, or policy files; the first is what the others are compared with",
    )  # fmt: skip
    parser.add_argument("--split", default="test", help="train, validation or test (default: 'test')")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="evaluation seeds (default: 1)")
    parser.add_argument(
        "--requests", type=int, default=None, metavar="N", help="documents at most, spread evenly (default: all of the split)"
    )
    parser.add_argument("--tuned", default="", help="file of clone-rl tune with settings of baselines (default: what ships)")


def run_unseen(options: argparse.Namespace) -> dict[str, Any]:
    """``clone-rl study unseen``."""
    from clone_rl.bars import Bar
    from clone_rl.cli.controllers import compared
    from clone_rl.cli.scenario import control_of
    from clone_rl.evaluation.protocol import chosen_documents
    from clone_rl.evaluation.setting import Setting
    from clone_rl.evaluation.unseen import unseen

    control = control_of(options, options.controllers, options.split)
    limits, controllers = compared(options, control)
    bar_of = partial(Bar, desc="unseen", unit="condition", delay=2.0, disable=None, dynamic_ncols=True)
    rows = unseen(control, controllers, options.split, options.seed, options.seeds, limits, options.requests, bar_of)
    requests = len(chosen_documents(control, options.split, 1, options.requests))
    setting = replace(Setting.of(control, options.split, requests, options.seeds, limits), shield=None)
    if not options.json:
        print(setting)
        print(_table(rows))
    found = {"scenario": control.scenario.name, "split": options.split, "setting": setting.as_json(), "rows": rows}
    return plain(found)  # type: ignore[no-any-return]


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """For people: a line for each condition and controller, without and with the shield."""
    bare, shielded = ([row for row in rows if row["shield"] is kind] for kind in (False, True))
    columns: list[Column] = [
        ("condition", "", [row["condition"] for row in bare]),
        ("controller", "", [row["name"] for row in bare]),
    ]
    for part, rest in ((bare, ""), (shielded, ", shield")):
        columns += [
            (f"uJ/token{rest}", "", [f"{row['energy_per_token_j'] * 1e6:.3f}" for row in part]),
            ("over the first", "", [f"{row['over_first']:+.1%}" for row in part]),
            *quality(part),
            ("within", "", ["yes" if row["within_constraints"] else "no" for row in part]),
        ]
    return aligned(columns)
