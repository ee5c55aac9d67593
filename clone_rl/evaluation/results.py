"""What result rows add up to: summaries of every controller, over all requests and by request type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clone_rl.envs.scenario import Limits
from clone_rl.errors import BadFileError
from clone_rl.evaluation.live import beside_replay
from clone_rl.evaluation.regret import Regret
from clone_rl.evaluation.rows import CLAIRVOYANT, records
from clone_rl.evaluation.setting import Setting
from clone_rl.evaluation.summary import paired, summarise, winner

_SETTING = (
    "scenario", "scenario_sha256", "chip", "chip_sha256", "traces", "traces_sha256", "split", "max_miss", "max_disagree",
    "max_dnll", "limit_w",
)  # fmt: skip
"""Columns that rows of one comparison share."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Results:
    """A comparison of controllers, read off its rows.

    Attributes:
        setting: What all rows share.
        limits: What was to be held.
        mode: ``replay``, or ``live`` where nothing was replayed.
        summary: One row per controller, as ``protocol.Evaluation.summary``.
        best: Who has the least energy within the constraints; empty where nobody is.
        kinds: By request type: one row per controller.
        live: One row per controller with the model in the loop, beside its replay; empty where there are none.
        origins: By controller: ``policy``, ``policy_sha256``, ``settings``.
        commands: That wrote the rows.
        versions: Of the package that wrote them.
        requests: Number of rows per controller.
        seeds: Evaluation seeds.
    """

    setting: dict[str, Any]
    limits: Limits
    mode: str
    summary: list[dict[str, Any]]
    best: str
    kinds: dict[str, list[dict[str, Any]]]
    live: list[dict[str, Any]]
    origins: dict[str, dict[str, Any]]
    commands: list[str]
    versions: list[str]
    requests: int
    seeds: list[int]

    @property
    def told(self) -> Setting:
        """What was run, in one line for people."""
        setting, seeds = self.setting, len(self.seeds)
        scenario, chip, split = (str(setting[name]) for name in ("scenario", "chip", "split"))
        return Setting(scenario, chip, split, self.requests // seeds, seeds, self.limits, self.mode)


def regret_of(rows: Sequence[Row]) -> Regret | None:
    """What the oracle found of one controller's rows; None where it was not asked."""
    which = [i for i, row in enumerate(rows) if row["oracle_j"] is not None]
    if not which:
        return None
    return Regret(
        np.array(which),
        *(np.array([np.nan if rows[i][name] is None else rows[i][name] for i in which]) for name in CLAIRVOYANT),
    )


class _Comparison:
    """Rows of one comparison and mode, by controller."""

    def __init__(self, rows: Sequence[Row], limits: Limits, limit_w: float) -> None:
        self.by_controller: dict[str, list[Row]] = {}
        for row in rows:
            self.by_controller.setdefault(row["controller"], []).append(row)
        self._types = {kind: k for k, kind in enumerate(sorted({row["kind"] for row in rows}))}
        self._limits, self._limit_w = limits, limit_w

    def strata(self, rows: Sequence[Row]) -> NDArray[np.int64]:
        return np.array([self._types[row["kind"]] for row in rows])

    def summary(self, kind: str = "") -> list[dict[str, Any]]:
        """One row per controller, of one request type only where one is given; regret is of all requests together."""
        found = []
        for name, rows in self.by_controller.items():
            chosen = [row for row in rows if not kind or row["kind"] == kind]
            regret = None if kind else regret_of(chosen)
            seed = int(chosen[0]["seed"])
            found.append(summarise(name, records(chosen), self.strata(chosen), self._limits, self._limit_w, seed, regret))
        return found

    def compared(self) -> tuple[list[dict[str, Any]], str]:
        """The summary with everybody's distance to the winner, and the winner."""
        summary = self.summary()
        best = winner(summary)
        for row in summary:
            row |= {"over_best": None, "over_best_ci": None}
            if best:
                own, other = self.by_controller[row["name"]], self.by_controller[best]
                row |= paired(records(own), records(other), self.strata(own), int(own[0]["seed"]))
        return summary, best


def _check_paired(comparison: _Comparison, where: str) -> None:
    """Every controller has the same requests, in the same order.

    Raises:
        BadFileError: They differ.
    """
    keys = {
        name: [(row["document"], row["seed"], row["kind"]) for row in rows] for name, rows in comparison.by_controller.items()
    }
    first = next(iter(keys))
    for name, own in keys.items():
        if own != keys[first]:
            raise BadFileError(
                f"{where}: controllers {first!r} and {name!r} have other requests", "compare rows of one evaluation"
            )
        if len(set(own)) < len(own):
            raise BadFileError(f"{where}: controller {name!r} has a request twice", "compare rows of one evaluation")


def gather(rows: Sequence[Row], where: str) -> Results:
    """Add rows up.

    Args:
        rows: As ``rows.read_rows`` gives them.
        where: Their file, for errors.

    Raises:
        BadFileError: They are of several scenarios, splits or limits, or controllers met different requests.
    """
    first = rows[0]
    setting = {name: first[name] for name in _SETTING}
    for number, row in enumerate(rows, 1):
        if other := [name for name in _SETTING if row[name] != setting[name]]:
            raise BadFileError(
                f"{where}, row {number}: {other[0]} is {row[other[0]]!r}, and {setting[other[0]]!r} in row 1",
                "a report is of one evaluation; give each a file of its own",
            )
    limits = Limits(first["max_miss"], first["max_disagree"], first["max_dnll"])
    modes = {
        mode: _Comparison(chosen, limits, first["limit_w"])
        for mode in ("replay", "live")
        if (chosen := [row for row in rows if row["mode"] == mode])
    }
    if not modes:
        raise BadFileError(f"{where}: mode is {first['mode']!r}", "replay or live")
    for one in modes.values():
        _check_paired(one, where)
    mode, main = next(iter(modes.items()))
    summary, best = main.compared()
    live: list[dict[str, Any]] = []
    if set(modes) == {"replay", "live"}:
        replayed = {row["name"]: row for row in summary}
        lively = [row for row in modes["live"].summary() if row["name"] in replayed]
        live = beside_replay(lively, [replayed[row["name"]] for row in lively])
    heads = {name: own[0] for name, own in main.by_controller.items()}
    return Results(
        setting,
        limits,
        mode,
        summary,
        best,
        {kind: main.summary(kind) for kind in sorted({row["kind"] for row in rows})},
        live,
        {name: {key: head[key] for key in ("policy", "policy_sha256", "settings")} for name, head in heads.items()},
        sorted({row["command"] for row in rows}),
        sorted({row["clone_rl"] for row in rows}),
        len(next(iter(main.by_controller.values()))),
        sorted({row["evaluation_seed"] for row in rows}),
    )
