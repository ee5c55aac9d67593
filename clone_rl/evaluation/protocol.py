"""The paired protocol: every controller meets the same requests, service levels and interference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clone_rl.agents.controller import Controller
from clone_rl.agents.own import accepted
from clone_rl.agents.rollout import run_requests
from clone_rl.envs.control import Control
from clone_rl.envs.scenario import Limits
from clone_rl.errors import BadValueError
from clone_rl.evaluation.regret import Clairvoyant, Regret, spread
from clone_rl.evaluation.rows import Origin, request_rows
from clone_rl.evaluation.setting import Setting
from clone_rl.evaluation.summary import paired, summarise, winner


class Runner(Protocol):
    """Runs a controller over requests: a replay of recorded traces, or the model in the loop."""

    def __call__(
        self, control: Control, controller: Controller, split: str, documents: NDArray[np.int64], seed: int
    ) -> NDArray[np.void]:
        """(R,) records of ``clone_rl.envs.figures.FIGURES``; request i has ``seed + i``."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """Results of several controllers on the same requests.

    Attributes:
        scenario, split, seed: What was run.
        seeds: The evaluation seeds; ``seed`` is the first. Requests of one seed share no draws with those of another.
        rows: One row per controller and evaluation seed: the keys of ``summary.summarise``, and ``seed``.
        summary: One row per controller, over all seeds.
        best: The controller with the least energy of those within the constraints; empty where there is none.
        requests: One row per controller and request, as ``clone_rl.evaluation.rows`` writes them.
        setting: What was run, in one line for people.
        notes: What could not be measured, and why.
    """

    scenario: str
    split: str
    seed: int
    seeds: list[int]
    rows: list[dict[str, Any]]
    summary: list[dict[str, Any]]
    best: str
    requests: list[dict[str, Any]]
    setting: Setting
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        found = {"scenario": self.scenario, "split": self.split, "seed": self.seed, "seeds": self.seeds, "rows": self.rows}
        found |= {"setting": self.setting.as_json()}
        return {**found, "summary": self.summary, "best": self.best, "notes": self.notes}


def check_asked(controllers: Sequence[Controller], least: int, **numbers: int | None) -> None:
    """Refuse names that stand for two controllers, and numbers below ``least``.

    Raises:
        BadValueError: Which of them.
    """
    names = [c.name for c in controllers]
    if len(set(names)) < len(names):
        raise BadValueError(f"controllers {', '.join(names)}", "give each of them once, or objects names of their own")
    for name, number in numbers.items():
        if number is not None and number < least:
            raise BadValueError(f"{name.replace('_', ' ')} is {number}", f"at least {least}")


def chosen_documents(control: Control, split: str, repeats: int = 1, requests: int | None = None) -> NDArray[np.int64]:
    """(R,) documents of the requests of one evaluation seed.

    Args:
        control: The scenario.
        split: ``train``, ``validation`` or ``test``.
        repeats: Draws for each document.
        requests: Documents at most, spread evenly over the split; None takes all.

    Raises:
        UnknownNameError: Unknown split.
        BadValueError: The set has no documents of it, or a number is below 1.
    """
    check_asked([], 1, repeats=repeats, requests=requests)
    documents = control.traces.documents(split)
    if requests is not None:
        documents = documents[spread(len(documents), requests)]
    return np.repeat(documents, repeats)


def evaluation_seeds(seed: int, seeds: int, requests: int) -> list[int]:
    """The first key of each evaluation seed of so many requests; no two requests share one."""
    return [seed + k * requests for k in range(seeds)]


def evaluate(
    control: Control,
    controllers: Sequence[Controller],
    split: str = "test",
    seed: int = 0,
    repeats: int = 1,
    limits: Limits | None = None,
    progress: Callable[[Sequence[Controller]], Iterable[Controller]] = iter,
    *,
    seeds: int = 1,
    requests: int | None = None,
    oracle_requests: int = 0,
    oracle_progress: Callable[[Sequence[Any]], Iterable[Any]] = iter,
    origin: Origin | None = None,
    run: Runner = run_requests,
) -> Evaluation:
    """Run every controller on every document of a split.

    The draws of a request (service level, slack, interference, chip) are keyed by one number. Request i of R has ``seed + i``
    in the first evaluation seed, ``seed + R + i`` in the second and so on, so that no two requests share draws and each
    evaluation seed can be run again by itself: ``rows`` name it by its first key.

    Args:
        control: The scenario.
        controllers: Who is judged; names must differ. Anything with ``act`` will do, see ``clone_rl.agents.own.accepted``.
        split: ``train``, ``validation`` or ``test``.
        seed: The first evaluation seed.
        repeats: Draws for each document within one evaluation seed.
        limits: What ``within_constraints`` means; the scenario's if None.
        progress: Wraps the list of controllers (a progress bar).
        seeds: Evaluation seeds.
        requests: Documents at most, spread evenly over the split; None takes all.
        oracle_requests: Requests of each evaluation seed on which regret is measured, spread evenly; 0 measures none.
        oracle_progress: Wraps what the oracle solves, one item for each controller and one for all, by seed.
        origin: Where scenario and controllers come from, for rows that can be replayed; found out by itself if None.
        run: What runs requests.

    Raises:
        BadValueError: Something is no controller, two have one name, or a number is too small.
        UnknownNameError: Unknown split.
    """
    controllers = [accepted(one) for one in controllers]
    check_asked(controllers, 1, repeats=repeats, seeds=seeds, requests=requests)
    check_asked(controllers, 0, seed=seed, oracle_requests=oracle_requests)
    limits, documents = limits or control.scenario.limits, chosen_documents(control, split, repeats, requests)
    origin = origin or Origin()
    firsts = evaluation_seeds(seed, seeds, len(documents))
    strata, power_w = control.traces.kind[documents], control.emulator.chip.limit_w
    found = {c.name: [run(control, c, split, documents, first) for first in firsts] for c in progress(controllers)}

    clairvoyant, known = Clairvoyant(control, split, limits), dict[tuple[str, int], Regret]()
    if oracle_requests:
        which = spread(len(documents), oracle_requests)
        for k, controller in oracle_progress([(k, c) for k in range(seeds) for c in controllers]):
            own = found[controller.name][k][which]
            energies = clairvoyant.measure(controller, documents[which], firsts[k] + which, own)
            known[controller.name, k] = Regret(which, *energies)

    rows, summary, lines = [], [], []
    for controller in controllers:
        name, settings = controller.name, controller.describe()
        parts = found[name]
        regrets = [known.get((name, k)) for k in range(seeds)]
        for k, first in enumerate(firsts):
            row = summarise(name, parts[k], strata, limits, power_w, first, regrets[k])
            rows.append({**row, "seed": first, "settings": settings})
            lines += request_rows(control, controller, split, first, parts[k], limits, origin, regrets[k])
        pooled = np.concatenate(parts)
        over = Regret.join(regrets, len(documents))
        row = summarise(name, pooled, np.tile(strata, seeds), limits, power_w, seed, over)
        summary.append({**row, "seed": seed, "settings": settings})
    best = winner(summary)
    if best:
        reference = np.concatenate(found[best])
        for row in summary:
            row |= paired(np.concatenate(found[row["name"]]), reference, np.tile(strata, seeds), seed)
    else:
        for row in summary:
            row |= {"over_best": None, "over_best_ci": None}
    setting = Setting.of(control, split, len(documents), seeds, limits, "live" if origin.live else "replay")
    return Evaluation(control.scenario.name, split, seed, firsts, rows, summary, best, lines, setting, clairvoyant.notes)
