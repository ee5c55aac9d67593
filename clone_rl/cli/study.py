"""``clone-rl study``: experiments over many scenarios, each cell of which is worked out once."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clone_rl.cli.options import add_command, field_docs
from clone_rl.cli.run_folder import create_run, free_name, keeping, read_config, write_json
from clone_rl.cli.study_unseen import add_unseen, run_unseen
from clone_rl.cli.text import Column, aligned, plain
from clone_rl.errors import BadFileError, BadValueError, StoppedError
from clone_rl.files import replacing

if TYPE_CHECKING:
    from clone_rl.evaluation.granularity import GranularityStudy

COLUMNS = (
    "chip", "granularity", "switch_s", "controller", "role", "energy_per_token_j", "lower_bound_per_token_j", "regret",
    "miss_rate", "disagreement", "dnll", "mean_depth", "switches_per_token", "overhead", "avg_power_w", "within_constraints",
    "requests", "tokens", "seed", "energy_j", "lower_bound_j", "gap", "mixed_tokens", "adjacent_changes", "refused",
)  # fmt: skip
_SPLIT = ("energy_per_token_j", "miss_rate", "disagreement", "dnll", "mean_depth", "switches_per_token")


def add(commands: Any) -> argparse.ArgumentParser:
    """The parser of ``clone-rl study``; returned is that of ``unseen``, but for the options that other commands share."""
    text = "Work through an experiment over many scenarios: granularity, unseen."
    studies = commands.add_parser("study", help=text, description=text)
    actions = studies.add_subparsers(dest="action", required=True, metavar="STUDY")
    text = (
        "How often may V/f change, and how long may a change take, before it stops to pay: the best tuned heuristic and the "
        "clairvoyant oracle for every chip, granularity and switching time. Rows, a table and a picture in the run folder."
    )
    _add_granularity(add_command(actions, "granularity", text, granularity))
    text = (
        "Controllers as they were tuned and trained, under conditions that they have not met (co-runner, service levels, "
        "ambient temperature, chip), with and without the shield: who holds the limits, and who spends least?"
    )
    unseen = add_command(actions, "unseen", text, run_unseen)
    add_unseen(unseen)
    return unseen


def _add_granularity(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    if {"study", "granularity"} <= set(sys.argv[1:]):
        _add_study(parser)
    parser.add_argument("--jobs", type=int, default=1, help="cells to work on at a time, a process each (default: 1)")
    parser.add_argument("--runs", default="runs", help="folder of run folders (default: 'runs')")
    parser.add_argument("--name", default="", help="name of the run folder; must be new (default: study, study-2, ...)")
    parser.add_argument("--resume", default="", metavar="RUN", help="continue the study of this folder, as it was asked for")


def _add_study(parser: argparse.ArgumentParser) -> None:
    """One option for every field of a study."""
    from clone_rl.evaluation.granularity import GranularityStudy

    docs = field_docs(GranularityStudy)
    for field in fields(GranularityStudy):
        several = isinstance(field.default, tuple)
        shown = " ".join(f"'{name}'" for name in field.default) if isinstance(field.default, tuple) else repr(field.default)
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=int if isinstance(field.default, int) else str,
            nargs="+" if several else None,
            default=field.default,
            help=f"{docs[field.name]} (default: {shown})".replace("%", "%%"),
        )


def _asked(options: argparse.Namespace) -> GranularityStudy:
    """The study that the options describe, or that of the folder which is resumed.

    Raises:
        BadFileError: The folder is not of such a study.
    """
    from clone_rl.evaluation.granularity import GranularityStudy

    if not options.resume:
        return GranularityStudy(**{field.name: getattr(options, field.name) for field in fields(GranularityStudy)})
    try:
        return GranularityStudy(**read_config(Path(options.resume))["granularity"])
    except (KeyError, TypeError):
        raise BadFileError(
            f"{Path(options.resume) / 'config.json'} is not of a study of granularity",
            "resume the folder of a clone-rl study granularity",
        ) from None


def granularity(options: argparse.Namespace) -> dict[str, Any]:
    """``clone-rl study granularity``.

    Raises:
        StoppedError: Ctrl-C; finished cells are kept.
    """
    from clone_rl.bars import Bar
    from clone_rl.evaluation.granularity import run_study
    from clone_rl.evaluation.granularity_figure import draw_granularity

    study = _asked(options)
    if options.jobs < 1:
        raise BadValueError(f"jobs is {options.jobs}", "1 or more")
    study.controls()  # names and files are checked before a run folder is made
    if options.resume:
        folder = Path(options.resume)
    else:
        folder = Path(options.runs) / options.name if options.name else free_name(Path(options.runs), "study")
        create_run(folder, {"granularity": asdict(study)})
    try:
        with keeping(folder, f"clone-rl study granularity --resume {folder}"):
            found = run_study(study, folder, options.jobs, partial(_bar, Bar))
    except KeyboardInterrupt:
        raise StoppedError(
            f"the study stopped; finished cells are in {folder}",
            f"continue with: clone-rl study granularity --resume {folder}",
        ) from None
    results, table, picture = folder / "results.json", folder / "cells.csv", folder / "granularity.png"
    write_json(results, plain(found))
    _write_csv(table, found["cells"])
    draw_granularity(picture, found)
    if not options.json:
        print(_setting(study), _table(found["cells"]), sep="\n")
        print(f"rows: {results}, {table}; picture: {picture}")
    return {"run_dir": str(folder), "files": [str(results), str(table), str(picture)], **found}


def _bar(bar: Any, stage: str, total: int, done: int) -> Any:
    return bar(total=total, initial=done, unit="cell", desc=f"granularity: {stage}")


def _setting(study: GranularityStudy) -> str:
    """What the table is of."""
    from clone_rl.envs.scenario import Scenario
    from clone_rl.evaluation.setting import limits_line

    return (
        f"{study.scenario}, its times scaled to each chip; test split, all requests and the {study.requests} of the oracle, "
        f"1 seed; replayed, no shield; {limits_line(Scenario.load(study.scenario).limits)}"
    )


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows without what has no place in a table; ``test_split_*`` are of all test requests."""
    with replacing(path) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, *(f"test_split_{name}" for name in _SPLIT)])
        for row in rows:
            split = row.get("test_split", {})
            writer.writerow([*(row.get(name) for name in COLUMNS), *(split.get(name) for name in _SPLIT)])


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """For people: a line for each cell."""
    by_role: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_role.setdefault(row["role"], []).append(row)
    heuristic, oracle, points = (by_role[role] for role in ("heuristic", "oracle", "oracle-points"))
    policies = {(row["chip"], row["granularity"], row["switch_s"]): row for row in by_role.get("policy", [])}

    def energy(found: Sequence[Mapping[str, Any] | None], title: str) -> Column:
        joules = [None if row is None or row["energy_per_token_j"] is None else row["energy_per_token_j"] for row in found]
        return (title, "", ["-" if value is None else f"{value * 1e6:.4g}" for value in joules])

    columns: list[Column] = [
        ("chip", "", [row["chip"] for row in heuristic]),
        ("V/f per", "", [row["granularity"] for row in heuristic]),
        ("switch", "s", [row["switch_s"] for row in heuristic]),
        ("heuristic", "", [row["controller"] for row in heuristic]),
        energy([row["test_split"] for row in heuristic], "test uJ"),
        ("within", "", ["yes" if row["within_constraints"] else "no" for row in heuristic]),
        energy(heuristic, "same uJ"),
        energy(points, "points uJ"),
        energy(oracle, "oracle uJ"),
        ("regret", "", ["-" if row["regret"] is None else f"{row['regret']:.1%}" for row in heuristic]),
    ]
    if policies:
        found = [policies.get((row["chip"], row["granularity"], row["switch_s"])) for row in heuristic]
        columns.insert(-1, energy(found, "ppo uJ"))
    return aligned(columns)
