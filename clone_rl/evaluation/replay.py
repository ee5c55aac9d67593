"""Running result rows again: the same scenario, traces and controllers have to give the same figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clone_rl.agents.controller import Controller
from clone_rl.agents.heuristics import baselines, find_baseline
from clone_rl.agents.labels import called
from clone_rl.agents.lut import LutPolicy, load_policy
from clone_rl.agents.own import load_controller
from clone_rl.agents.policy import Policy, is_policy_path, policy_names
from clone_rl.agents.rollout import run_requests
from clone_rl.agents.tuned import chip_sha256, traces_sha256
from clone_rl.envs.control import Control
from clone_rl.envs.figures import as_dict
from clone_rl.envs.scenario import Limits, Scenario, scenario_names
from clone_rl.envs.trace import load_traces
from clone_rl.errors import BadFileError, BadValueError, CloneRLError, PolicyFileError, UnknownNameError
from clone_rl.evaluation.regret import Clairvoyant
from clone_rl.evaluation.rows import CLAIRVOYANT, MEASURED, scenario_sha256
from clone_rl.own_code import code_sha256, names_code

_ALIKE = (
    "scenario", "changes", "scenario_sha256", "chip", "chip_sha256", "traces", "traces_sha256", "split", "mode", "live",
    "controller", "policy", "policy_sha256", "settings",
)  # fmt: skip
"""Columns that rows run by one controller share."""


@dataclass(frozen=True)
class Mismatch:
    """A figure that came out otherwise.

    Attributes:
        row: Number of the row, from 1.
        controller, request: Of the row.
        figure: Its name.
        written, replayed: Both values.
    """

    row: int
    controller: str
    request: int
    figure: str
    written: float
    replayed: float

    def __str__(self) -> str:
        return (
            f"row {self.row} ({self.controller}, request {self.request}): {self.figure} is {self.written!r} in the file and "
            f"{self.replayed!r} when it is run again"
        )


@dataclass(frozen=True)
class Group:
    """Rows that one controller ran in one scenario.

    Attributes:
        control: The scenario, made ready.
        controller: Who decided.
        rows: ``(number, row)``.
    """

    control: Control
    controller: Controller
    rows: list[tuple[int, Mapping[str, Any]]]

    @property
    def live(self) -> Mapping[str, Any]:
        """Model and sampling; empty on a replay."""
        found: Mapping[str, Any] = self.rows[0][1]["live"]
        return found


LiveRunner = Callable[[Group], Any]
"""Runs the requests of a group with the model in the loop: records of ``FIGURES``, one for each row."""


def scenario_of(row: Mapping[str, Any], where: str) -> Scenario:
    """The scenario of a row.

    Raises:
        UnknownNameError: No scenario has its name.
        BadFileError: It is not the one that the row was made with.
    """
    table = dict(row["changes"])
    if row["scenario"] in scenario_names():
        table = {**Scenario.load(row["scenario"]).as_dict(), **table}
    elif "slo" not in table:
        raise UnknownNameError("scenario", row["scenario"], scenario_names())
    scenario = Scenario.parse({name: value for name, value in table.items() if value is not None}, f"{where}: scenario")
    if (scenario.chip_name, scenario.traces) != (row["chip"], row["traces"]):
        raise BadFileError(f"{where}: chip or traces are not those of its scenario", "the file was altered; evaluate again")
    if scenario_sha256(scenario) != row["scenario_sha256"]:
        raise BadFileError(
            f"{where} was made with another version of scenario {row['scenario']!r}",
            f"sha256 {row['scenario_sha256'][:12]}, here {scenario_sha256(scenario)[:12]}; evaluate again",
        )
    return scenario


def control_of(row: Mapping[str, Any], where: str) -> Control:
    """The scenario of a row, made ready.

    Raises:
        CloneRLError: As ``scenario_of``; a chip or a trace set that is missing, or is another one.
    """
    scenario = scenario_of(row, where)
    traces = load_traces(scenario.traces)
    if (here := traces_sha256(traces)) != row["traces_sha256"]:
        raise BadFileError(
            f"{where} was made with other traces than {scenario.traces!r} holds",
            f"sha256 {row['traces_sha256'][:12]}, here {here[:12]}; give the set that it was made with, or evaluate again",
        )
    control = Control.of("layer", scenario, traces, row["split"])
    if (here := chip_sha256(control.emulator.chip)) != row["chip_sha256"]:
        raise BadFileError(
            f"{where} was made with another chip than {scenario.chip_name!r} is",
            f"sha256 {row['chip_sha256'][:12]}, here {here[:12]}; evaluate again",
        )
    return control


def controller_of(row: Mapping[str, Any], control: Control, beside: Path, where: str) -> Controller:
    """The controller of a row.

    Args:
        row: The row.
        control: Its scenario.
        beside: Folder of the file of rows, where policies are looked for as well.
        where: File and row, for errors.

    Raises:
        PolicyFileError: The policy is missing, or is another one.
        UnknownNameError: No baseline and no policy has its name.
        BadFileError: Its settings are not a baseline's, or the code that it came from is missing or has changed.
    """
    if names_code(row["policy"]):
        return _own(row, control, beside, where)
    if row["policy_sha256"]:
        policy = _policy(row["policy"], beside, Limits(row["max_miss"], row["max_disagree"], row["max_dnll"]))
        if policy.sha256 != row["policy_sha256"]:
            raise PolicyFileError(
                f"{where} was made with another policy than {row['policy']!r} is",
                f"sha256 {row['policy_sha256'][:12]}, here {policy.sha256[:12]}; give the one that it was made with",
            )
        return called(policy, row["controller"])
    if row["controller"] not in baselines():
        raise UnknownNameError("controller", row["controller"], baselines())
    with _settings(row["controller"], where):
        found = find_baseline(row["controller"]).make(control, row["settings"])
        found.describe()
        return found


def _own(row: Mapping[str, Any], control: Control, beside: Path, where: str) -> Controller:
    """A controller of the user's own code, which is run only if its file is the one of the row."""
    source = row["policy"]
    place, _, name = source.rpartition(":")
    if place.endswith(".py") and not Path(place).exists() and (beside / Path(place).name).exists():
        source = f"{beside / Path(place).name}:{name}"
    try:
        here = code_sha256("controller", source)
    except CloneRLError as error:
        raise BadFileError(
            f"{where}: {error.message}", "run this where the rows were written, or put the file beside them"
        ) from None
    if not here or here != row["policy_sha256"]:
        raise BadFileError(
            f"{where} was made with other code than {source!r} is now",
            f"sha256 {row['policy_sha256'][:12]}, here {here[:12] or 'no file'}; give the one that it was made with",
        )
    return called(load_controller(source, control), row["controller"])


@contextmanager
def _settings(controller: str, where: str) -> Iterator[None]:
    """Whatever settings that were altered do to a rule is a sentence.

    Raises:
        BadFileError: They did.
    """
    try:
        yield
    except CloneRLError:
        raise
    except Exception as error:
        said = str(error).strip().splitlines() or [""]
        raise BadFileError(
            f"{where}: no settings of {controller}: {type(error).__name__} {said[0][:120]}",
            "the file was altered; evaluate again",
        ) from None


def _policy(name: str, beside: Path, limits: Limits) -> Policy | LutPolicy:
    """A policy where the row says, or from the folder of the rows, or beside them, as in a run folder that was moved."""
    if name in policy_names():
        return Policy.load(name, limits)
    here = Path(name)
    places = [here, beside / here, beside / here.name, beside / "policy.safetensors"] if is_policy_path(name) else []
    for place in places:
        if place.exists():
            return load_policy(place, limits)
    raise PolicyFileError(f"no policy {name!r}", "run this where the rows were written, or put the policy beside them")


def groups(rows: Sequence[Mapping[str, Any]], source: Path) -> list[Group]:
    """Rows by controller and scenario, with both at hand.

    Args:
        rows: As ``rows.read_rows`` gives them.
        source: Their file.

    Raises:
        CloneRLError: A scenario, chip, trace set, policy or baseline that is not the one of the rows.
    """
    sorted_rows: dict[str, list[tuple[int, Mapping[str, Any]]]] = {}
    for number, row in enumerate(rows, 1):
        sorted_rows.setdefault(repr([row[name] for name in _ALIKE]), []).append((number, row))
    controls: dict[str, Control] = {}
    found = []
    for alike in sorted_rows.values():
        number, row = alike[0]
        where = f"{source}, row {number}"
        key = repr([row[name] for name in _ALIKE[:8]])
        if key not in controls:
            controls[key] = control_of(row, where)
        control = controls[key]
        known = set(control.traces.documents(row["split"]).tolist())
        for number, each in alike:
            if each["document"] not in known:
                raise BadFileError(f"{source}, row {number}: no {row['split']} document {each['document']}", "evaluate again")
            if each["kind"] != (kind := control.traces.kinds[control.traces.kind[each["document"]]]):
                raise BadFileError(f"{source}, row {number} is a {kind} request, not {each['kind'][:60]!r}", "evaluate again")
        found.append(Group(control, controller_of(row, control, source.parent, where), alike))
    return found


def replayed(group: Group) -> Any:
    """(R,) records of a group's requests, run again from the traces."""
    documents = np.array([row["document"] for _, row in group.rows])
    keys = np.array([row["seed"] for _, row in group.rows])
    # Requests whose keys follow one another are run together, as they were.
    ends = np.flatnonzero(np.append(np.diff(keys) != 1, True)) + 1
    parts, begin = [], 0
    with _settings(group.controller.name, f"row {group.rows[0][0]}"):
        for end in ends.tolist():
            split = group.rows[begin][1]["split"]
            parts.append(run_requests(group.control, group.controller, split, documents[begin:end], int(keys[begin])))
            begin = end
    return np.concatenate(parts)


def mismatches(found: Iterable[Group], live: LiveRunner | None = None, tolerance: float = 0.0) -> list[Mismatch]:
    """Figures that are not what the rows say, in the order of the rows.

    Args:
        found: Groups of rows.
        live: Runs those with the model in the loop.
        tolerance: Relative difference that is let pass; another processor may round otherwise.

    Raises:
        BadValueError: Live rows and nothing to run them.
    """
    wrong = []
    for group in found:
        if group.live and live is None:
            raise BadValueError("rows with the model in the loop", "run them again with clone-rl validate rows")
        figures = live(group) if group.live and live else replayed(group)
        for (number, row), record in zip(group.rows, figures, strict=True):
            again = as_dict(record)
            for name in MEASURED:
                if abs(again[name] - row[name]) > tolerance * max(abs(again[name]), abs(row[name])):
                    wrong.append(Mismatch(number, row["controller"], row["request"], name, row[name], again[name]))
    return sorted(wrong, key=lambda one: one.row)


def oracle_mismatches(found: Iterable[Group], tolerance: float = 0.0) -> list[Mismatch]:
    """The oracle's figures that come out otherwise when it is asked again.

    Args:
        found: Groups of rows.
        tolerance: As of ``mismatches``.
    """
    wrong, asked = [], dict[tuple[int, str, Limits], Clairvoyant]()
    for group in found:
        by_seed: dict[tuple[int, Limits], list[tuple[int, Mapping[str, Any]]]] = {}
        for number, row in group.rows:
            if row["oracle_j"] is not None:
                limits = Limits(row["max_miss"], row["max_disagree"], row["max_dnll"])
                by_seed.setdefault((row["evaluation_seed"], limits), []).append((number, row))
        for (_, limits), rows in by_seed.items():
            documents, keys = (np.array([row[name] for _, row in rows]) for name in ("document", "seed"))
            split = rows[0][1]["split"]
            # Groups of one scenario share its control, and what the oracle solves for all of them.
            clairvoyant = asked.setdefault((id(group.control), split, limits), Clairvoyant(group.control, split, limits))
            own = replayed(Group(group.control, group.controller, rows))
            energies = clairvoyant.measure(group.controller, documents, keys, own)
            for name, again in zip(CLAIRVOYANT, energies, strict=True):
                for (number, row), value in zip(rows, again.tolist(), strict=True):
                    written = np.nan if row[name] is None else row[name]
                    if not abs(value - written) <= tolerance * abs(written) and not (np.isnan(value) and np.isnan(written)):
                        wrong.append(Mismatch(number, row["controller"], row["request"], name, written, value))
    return wrong
