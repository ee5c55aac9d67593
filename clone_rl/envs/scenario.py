"""A scenario: which chip, traces, service levels, interference and rules an episode is drawn from. Plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from clone_rl.envs.signals import EXTRA_SIGNALS
from clone_rl.errors import BadFileError, BadValueError, UnknownNameError
from clone_rl.hw_emulator.chip import load_chip
from clone_rl.hw_emulator.ledger import KV
from clone_rl.hw_emulator.switching import mechanism
from clone_rl.tables import load_toml, read_table, shipped

GRANULARITIES = ("request", "phase", "token", "layer")
DEADLINES = ("carry-over", "per-token")


@dataclass(frozen=True)
class ServiceLevel:
    """A class of requests: targets of the time to first token and per output token, in seconds."""

    name: str
    ttft_s: float
    tpot_s: float


@dataclass(frozen=True)
class Interference:
    """Two-state Markov chain over time slots that stretches every latency by ``slowdown`` while it is busy.

    It runs in wall-clock slots of its own, so every controller meets the same interference at the same time.
    """

    slowdown: float = 1.44
    slot_s: float = 1e-3
    mean_idle_s: float = 20e-3
    mean_busy_s: float = 10e-3


@dataclass(frozen=True)
class Weights:
    """Reward weights per event, in units of the energy of one full-depth token at the top operating point."""

    late: float = 2.0
    disagree: float = 2.0
    kl: float = 2.0


@dataclass(frozen=True)
class Scenario:
    """Everything that defines an episode besides the seed.

    Attributes:
        name: Shown in results.
        chip: Name of a shipped chip, or a path to a chip file.
        traces: Name of a shipped trace set, or a folder.
        slo: Classes that requests are drawn from, uniformly.
        slack_low, slack_high: Range of the factor on both targets, drawn per request.
        interference: The co-runner.
        weights: Of the reward.
        switching: Switching mechanism; empty takes the chip's own.
        deadline: ``carry-over`` (token i is due at TTFT + i TPOT from the request's start) or ``per-token``.
        granularity: Where the operating point may change.
        decision_delay: 0, or 1 for a decision that takes effect at the next boundary.
        policy_macs: Multiply-accumulates charged for each decision.
        probe: Whether the exit probe is read (and charged) at every boundary.
        kv: Keys and values of skipped layers: ``propagate`` (filled from the exit state at once), ``exact`` (recomputed when
            the layer runs next) or ``skip`` (never there). A replay charges each truthfully; the quality it scores is the
            trace's, recorded with exact keys and values.
        signals: Extra scalars of the observation, of ``signals.EXTRA_SIGNALS``, in this order after the standard ones.
    """

    name: str
    chip: str
    traces: str
    slo: tuple[ServiceLevel, ...]
    slack_low: float = 1.0
    slack_high: float = 2.0
    interference: Interference = Interference()
    weights: Weights = Weights()
    switching: str = ""
    deadline: str = "carry-over"
    granularity: str = "layer"
    decision_delay: int = 0
    policy_macs: int = 0
    probe: bool = True
    kv: str = "propagate"
    signals: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        load_chip(self.chip)
        if self.switching:
            mechanism(self.switching)
        for what, value, known in (
            ("deadline mode", self.deadline, DEADLINES),
            ("granularity", self.granularity, GRANULARITIES),
            ("kv", self.kv, KV),
        ):
            if value not in known:
                raise UnknownNameError(what, value, known)
        # TOML and JSON have lists.
        object.__setattr__(self, "signals", _signals(self.signals))
        if self.decision_delay not in (0, 1):
            raise BadValueError(f"decision_delay is {self.decision_delay}", "0 or 1")
        if self.decision_delay and self.granularity == "request":
            raise BadValueError("granularity 'request' with decision_delay 1", "a delayed decision would never take effect")
        if self.policy_macs < 0:
            raise BadValueError(f"policy_macs is {self.policy_macs}", "0 or more")
        if not self.slo:
            raise BadValueError("the scenario has no [[slo]] class", "add one with name, ttft_s and tpot_s")
        if not 0 < self.slack_low <= self.slack_high:
            raise BadValueError(f"slack from {self.slack_low} to {self.slack_high}", "0 < slack_low <= slack_high")
        if self.interference.slowdown < 1:
            raise BadValueError(f"slowdown is {self.interference.slowdown}", "1 means none")


def _signals(names: Any) -> tuple[str, ...]:
    """Names of extra signals, each known and given once."""
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise BadValueError(f"signals is {names!r}", 'a list of names, such as ["margin"]')
    for name in names:
        if name not in EXTRA_SIGNALS:
            raise UnknownNameError("signal", str(name), EXTRA_SIGNALS)
    if len(set(names)) < len(names):
        raise BadValueError(f"signals {list(names)} name one twice", "each adds one scalar")
    return tuple(names)


def parse_scenario(table: dict[str, Any], source: str) -> Scenario:
    """Build a scenario from a parsed TOML table.

    Raises:
        BadFileError: A key is unknown, missing or out of range.
        BadValueError: Values do not go together.
        UnknownNameError: Unknown chip, switching mechanism, deadline mode, granularity, kv or signal.
    """
    table = dict(table)
    if "interference" in table:
        table["interference"] = read_table(Interference, table["interference"], f"{source}: [interference]")
    if "weights" in table:
        table["weights"] = read_table(Weights, table["weights"], f"{source}: [weights]", {"late", "disagree", "kl"})
    classes = table.get("slo", [])
    if not isinstance(classes, list):
        raise BadFileError(f"{source}: slo is not a list of tables", "write [[slo]]")
    table["slo"] = tuple(read_table(ServiceLevel, row, f"{source}: slo[{i}]") for i, row in enumerate(classes))
    return read_table(Scenario, table, source, {"decision_delay", "policy_macs"})


def scenario_names() -> list[str]:
    """Names of the shipped scenarios."""
    return shipped("clone_rl.envs", "scenarios")


def _load(name: str) -> Scenario:
    return parse_scenario(load_toml("scenario", name, "clone_rl.envs", "scenarios"), name)


def load_scenario(name: str, **changes: Any) -> Scenario:
    """A shipped scenario by name or a user's by path, with fields replaced.

    Raises:
        UnknownNameError: No shipped scenario has this name, or a change names an unknown field.
        BadFileError: The file is missing or malformed.

    >>> load_scenario("default", switching="pmic").switching
    'pmic'
    """
    scenario = _load(name)
    for key in changes:
        if key not in Scenario.__dataclass_fields__:
            raise UnknownNameError("scenario field", key, Scenario.__dataclass_fields__)
    return replace(scenario, **changes)
