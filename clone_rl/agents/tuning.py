"""Tune a baseline on the training split: the same search, with the same budget, for each of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clone_rl.agents.controller import Controller
from clone_rl.agents.heuristics import Baseline, find_baseline
from clone_rl.agents.heuristics.baseline import Parameter
from clone_rl.agents.judge import Judge
from clone_rl.agents.tuned import identity
from clone_rl.envs.control import Control
from clone_rl.envs.randomness import check_seed
from clone_rl.envs.scenario import Limits
from clone_rl.errors import BadValueError, MissingExtraError

if TYPE_CHECKING:
    import optuna

TRIALS = 100
"""Evaluations of the training split that each baseline gets, that of the start included."""

_RANDOM_TRIALS = 10  # before the sampler models anything; Optuna's default


@dataclass(frozen=True)
class Tuned:
    """What a search found.

    Attributes:
        baseline: Its name.
        controller: The baseline with the best settings.
        settings: Plain data that ``Baseline.make`` takes.
        parameters: The point of the search space that they come from.
        trials: Evaluations that the search took; 1 where there is nothing to tune.
        seed: Of the search, and of the requests that it judged by.
        limits: What had to hold.
        within_constraints: Whether it did, as ``judge.Judge`` holds it.
        start: Figures of the untuned baseline on the training split, see ``judge.figures_of``.
        train: Figures of the tuned one.
    """

    baseline: str
    controller: Controller
    settings: dict[str, Any]
    parameters: dict[str, float]
    trials: int
    seed: int
    limits: Limits
    within_constraints: bool
    start: dict[str, float]
    train: dict[str, float]


def tune(
    baseline: str | Baseline,
    control: Control,
    limits: Limits | None = None,
    trials: int = TRIALS,
    seed: int = 0,
    storage: Path | None = None,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Tuned:
    """Search the settings with the least energy per token within the limits on the training split.

    Where none holds them, those that break them least. The search is Optuna's TPE sampler from ``Baseline.start`` on. It is
    a function of the seed, however often it is interrupted and resumed.

    Args:
        baseline: One of ``clone_rl.agents.baselines()``, or one of one's own.
        control: The scenario.
        limits: What has to hold; the scenario's if None.
        trials: Evaluations of the training split.
        seed: Of the search, service levels and interference.
        storage: Journal of the trials: a search with the same arguments goes on from it. None keeps it in memory.
        progress: Wraps the trials to be made (a progress bar).

    Raises:
        UnknownNameError: No baseline has this name.
        BadValueError: Fewer trials than 1, or a negative seed.
        MissingExtraError: Optuna is not installed.

    >>> from clone_rl.envs.control import load_control
    >>> tuned = tune("static", load_control("layer"), trials=3)
    >>> tuned.train["energy_per_token_j"] <= tuned.start["energy_per_token_j"]
    True
    """
    spec, seed = baseline if isinstance(baseline, Baseline) else find_baseline(baseline), check_seed(seed)
    if trials < 1:
        raise BadValueError(f"{trials} trials", "at least 1")
    limits = limits or control.scenario.limits
    judge, space = Judge(control, limits, seed), spec.space(control)
    if not space:
        settings = spec.fit(control, limits, seed, {})
        controller = spec.make(control, settings)
        excess, figures, _ = judge(controller)
        return Tuned(spec.name, controller, settings, {}, 1, seed, limits, excess == 0.0, figures, figures)

    made: dict[str, tuple[dict[str, Any], Controller, float, dict[str, float]]] = {}

    def tried(parameters: dict[str, float]) -> tuple[dict[str, Any], Controller, float, dict[str, float]]:
        """What a point comes to; each is worked out once."""
        if (key := json.dumps(parameters, sort_keys=True)) not in made:
            settings = spec.fit(control, limits, seed, parameters)
            made[key] = (settings, controller := spec.make(control, settings), *judge(controller)[:2])
        return made[key]

    first = _clipped(spec.start(control, limits, seed), space)
    study = _study(spec, identity(control, limits), space, seed, storage)
    if not study.trials:
        study.enqueue_trial(first)
    reference_j = float(control.prices.reference_j[0])
    done = sum(trial.state.is_finished() and trial.value is not None for trial in study.trials)
    for number in progress(range(done, trials)):
        study.sampler = _sampler(seed, number)
        trial = study.ask()
        _, _, excess, figures = tried(_suggest(trial, space))
        energy = figures["energy_per_token_j"] / reference_j
        # Below 1 within the limits, whatever the energy: any setting that holds them is better than all that do not.
        study.tell(trial, 1.0 + excess if excess > 0.0 else energy / (1.0 + energy))
    start_figures = tried(first)[3]
    best = {name: study.best_params[name] for name in space}
    settings, controller, excess, figures = tried(best)
    return Tuned(spec.name, controller, settings, best, trials, seed, limits, excess == 0.0, start_figures, figures)


def _clipped(start: dict[str, float], space: dict[str, Parameter]) -> dict[str, float]:
    """A start within its space, whole where that is."""
    inside = {name: min(max(start[name], p.low), p.high) for name, p in space.items()}
    return {name: int(value) if space[name].whole else float(value) for name, value in inside.items()}


def _suggest(trial: optuna.Trial, space: dict[str, Parameter]) -> dict[str, float]:
    """The next point of a space."""
    return {
        name: trial.suggest_int(name, int(p.low), int(p.high), log=p.log)
        if p.whole
        else trial.suggest_float(name, p.low, p.high, log=p.log)
        for name, p in space.items()
    }


def _sampler(seed: int, number: int) -> optuna.samplers.BaseSampler:
    """A sampler for one trial, so that a trial depends on the seed and on those before it, not on where a process began."""
    from optuna.samplers import TPESampler

    mixed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    return TPESampler(seed=mixed, n_startup_trials=_RANDOM_TRIALS)


def _study(spec: Baseline, key: dict[str, Any], space: dict[str, Parameter], seed: int, storage: Path | None) -> optuna.Study:
    """The study of a search, new or from its journal; its name tells searches in one journal apart."""
    try:
        import optuna
        from optuna.storages import JournalStorage

        from clone_rl.agents.trial_journal import TrialJournal
    except ImportError:
        raise MissingExtraError("tuning needs Optuna", "pip install 'clone-rl[train]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    backend = None if storage is None else JournalStorage(TrialJournal(storage))
    of = json.dumps([key, seed, {name: asdict(p) for name, p in space.items()}], sort_keys=True)
    name = f"{spec.name}-{hashlib.sha256(of.encode()).hexdigest()[:16]}"
    study = optuna.create_study(study_name=name, storage=backend, load_if_exists=True)
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)  # what an interrupt left half done
    return study
