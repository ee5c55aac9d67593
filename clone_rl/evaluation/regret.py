"""Regret: what a controller spends beyond a clairvoyant that holds the same limits on the same requests, and on what."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clone_rl.agents.controller import Controller
from clone_rl.agents.oracle_set import oracle_set, recorded_depths
from clone_rl.agents.stopping import best_depths
from clone_rl.envs.control import Control
from clone_rl.envs.scenario import Limits
from clone_rl.errors import BadValueError
from clone_rl.evaluation.statistics import Clusters

_ANY_GAP = 1.0  # schedules are wanted here, not bounds


def spread(count: int, most: int) -> NDArray[np.int64]:
    """At most so many of ``count`` indices, evenly spread.

    >>> spread(10, 4).tolist(), spread(3, 9).tolist()
    ([0, 3, 6, 9], [0, 1, 2])
    """
    return np.linspace(0, count - 1, min(most, count)).astype(np.int64)


@dataclass(frozen=True)
class Regret:
    """What a clairvoyant would have spent on some of a controller's requests.

    Attributes:
        which: (M,) indices of those requests among the controller's.
        oracle_j: (M,) energy of feasible clairvoyant schedules that hold the limits on these M; NaN where there are none.
        exits_j: (M,) the same with the controller's own exits: only operating points are chosen anew, and only the miss rate
            is held. NaN where there are none.
        stopping_j: (M,) the same with the exits of the best causal stopping rule, see ``clone_rl.agents.stopping``.
    """

    which: NDArray[np.int64]
    oracle_j: NDArray[np.float64]
    exits_j: NDArray[np.float64]
    stopping_j: NDArray[np.float64]

    @classmethod
    def none(cls) -> Regret:
        """Not measured."""
        return cls(np.zeros(0, np.int64), np.zeros(0), np.zeros(0), np.zeros(0))

    @classmethod
    def join(cls, found: Sequence[Regret | None], requests: int) -> Regret | None:
        """Those of several evaluation seeds of so many requests as one; None where one is missing."""
        parts = [part for part in found if part is not None]
        if len(parts) < len(found):
            return None
        return cls(
            np.concatenate([part.which + k * requests for k, part in enumerate(parts)]),
            np.concatenate([part.oracle_j for part in parts]),
            np.concatenate([part.exits_j for part in parts]),
            np.concatenate([part.stopping_j for part in parts]),
        )

    def as_json(self, figures: NDArray[np.void], strata: NDArray[np.int64], seed: int) -> dict[str, Any]:
        """Shares of the oracle's energy.

        Args:
            figures: (R,) records of the controller's requests.
            strata: (R,) their types.
            seed: Of the bootstrap.

        Returns:
            ``regret`` (energy over the oracle's, minus 1) with ``regret_ci``, its parts ``vf_regret`` (beyond the clairvoyant
            points for the controller's own exits; what deciding costs included) and ``exit_regret`` (of those exits), which
            add up to it, ``causal_regret``, the part of the latter that no causal policy can remove, and
            ``regret_requests``; None and 0 where nothing was measured.
        """
        empty = dict.fromkeys(("regret", "regret_ci", "vf_regret", "exit_regret", "causal_regret"))
        if not len(self.which) or np.isnan(self.oracle_j).any():
            return {**empty, "regret_requests": 0}
        own = figures[self.which]
        total, spent = float(self.oracle_j.sum()), float(own["energy_j"].sum())
        low, high = Clusters(own["document"], strata[self.which], seed).interval(own["energy_j"], self.oracle_j)
        found = {**empty, "regret": spent / total - 1.0, "regret_ci": [low - 1.0, high - 1.0], "regret_requests": len(own)}
        if not np.isnan(self.exits_j).any():
            exits = float(self.exits_j.sum())
            found |= {"vf_regret": (spent - exits) / total, "exit_regret": (exits - total) / total}
            if not np.isnan(self.stopping_j).any():
                found["causal_regret"] = (float(self.stopping_j.sum()) - total) / total
        return found


class Clairvoyant:
    """The oracle on requests of an evaluation; what two controllers have in common is solved once.

    Args:
        control: The scenario.
        split: Of the documents.
        limits: What has to hold.

    Attributes:
        notes: Why something could not be solved.
    """

    def __init__(self, control: Control, split: str, limits: Limits) -> None:
        self._control, self._split, self._limits = control, split, limits
        self._solved: dict[str, NDArray[np.float64]] = {}
        self._stopping: NDArray[np.int64] | None = None
        self.notes: list[str] = []

    def measure(
        self, controller: Controller, documents: NDArray[np.int64], keys: NDArray[np.int64], figures: NDArray[np.void]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """The oracle beside one controller.

        Args:
            controller: Who is measured.
            documents, keys: (M,) of the requests.
            figures: (M,) records of how it ran them.

        Returns:
            (M,) energies with free exits, with the controller's own and with those of the best causal stopping rule, joules;
            NaN where there is no schedule.

        Raises:
            BadValueError: The controller does something else each time.
        """
        oracle_j = self._solve(documents, keys, None, "the oracle")
        depths = recorded_depths(self._control, controller, self._split, documents, keys)
        if [int(d.sum()) for d in depths] != figures["depth"].astype(int).tolist():
            raise BadValueError(f"controller {controller.name!r} ran other depths the second time", "make it deterministic")
        exits_j = self._solve(documents, keys, depths, f"the oracle with the exits of {controller.name}")
        stopping_j = self._solve(documents, keys, self._causal(documents), "the oracle with the best stopping rule")
        return oracle_j, exits_j, stopping_j

    def _causal(self, documents: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Layers that each token runs under the best causal stopping rule, one array for each document."""
        traces = self._control.traces
        if self._stopping is None:
            self._stopping = best_depths(traces, self._split, self._limits)
        return [self._stopping[traces.offset[document] : traces.offset[document + 1]] for document in documents]

    def _solve(
        self,
        documents: NDArray[np.int64],
        keys: NDArray[np.int64],
        depths: Sequence[NDArray[np.int64]] | None,
        what: str,
    ) -> NDArray[np.float64]:
        """(M,) energies; NaN where there is no schedule, which is noted."""
        parts = [documents, keys, *(depths or [])]
        mark = hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()
        if mark not in self._solved:
            try:
                found = oracle_set(self._control, self._split, documents, keys, self._limits, depths, gap=_ANY_GAP)
                self._solved[mark] = np.asarray(found.figures["energy_j"], np.float64)
            except BadValueError as error:
                self.notes.append(f"no regret: {what}: {error}")
                self._solved[mark] = np.full(len(keys), np.nan)
        return self._solved[mark]
