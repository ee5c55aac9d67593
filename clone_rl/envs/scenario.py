"""A scenario: which chip, traces, service levels, interference and rules an episode is drawn from. Plain data."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Self

from clone_rl.envs.randomise import Randomise
from clone_rl.envs.signals import EXTRA_SIGNALS
from clone_rl.envs.trace import trace_names
from clone_rl.errors import BadFileError, BadValueError, UnknownNameError
from clone_rl.hw_emulator.chip import Asic, Chip, check_chip, chip_names, load_chip, parse_chip
from clone_rl.hw_emulator.families import shape_names
from clone_rl.hw_emulator.ledger import KV
from clone_rl.hw_emulator.switching import mechanism
from clone_rl.hw_emulator.voltage import REGULATORS
from clone_rl.ranges import Range, check_ranges
from clone_rl.tables import check_keys, load_toml, read_table, shipped

GRANULARITIES = ("request", "phase", "token", "group", "layer")
DEADLINES = ("carry-over", "per-token")
MOST_GROUPS, DEFAULT_GROUPS = 8, 5
"""Layer groups: the cost of a PPO update grows with the number of action components."""

_TARGET = Range("seconds", 1e-9, 1e5)
_MEAN = Range("seconds", 1e-7, 1e6)
_MOST_WEIGHT = 1e9
"""Prices of whole requests stay numbers."""


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not _number(value) or not 0 < value <= sys.float_info.max:
            raise BadValueError(f"{name} is {value!r}", "a finite number above 0")


@dataclass(frozen=True)
class ServiceLevel:
    """A class of requests: targets of the time to first token and per output token, in seconds.

    Scenarios have targets within ``_TARGET``; a request may ask for the impossible.

    Raises:
        BadValueError: A target is not finite and above 0.
    """

    name: str
    ttft_s: Annotated[float, _TARGET]
    tpot_s: Annotated[float, _TARGET]

    def __post_init__(self) -> None:
        _positive(**{f"{self.name}: ttft_s": self.ttft_s, f"{self.name}: tpot_s": self.tpot_s})


@dataclass(frozen=True)
class TargetScale:
    """The targets that are observed as 1: a unit, which has to be that of a controller's training wherever it decides.

    Raises:
        BadValueError: A target is not finite and above 0.
    """

    ttft_s: float
    tpot_s: float

    def __post_init__(self) -> None:
        _positive(**{"scale: ttft_s": self.ttft_s, "scale: tpot_s": self.tpot_s})


@dataclass(frozen=True)
class Interference:
    """Two-state Markov chain over time slots that stretches every latency by ``slowdown`` while it is busy.

    It runs in wall-clock slots of its own, so every controller meets the same interference at the same time.

    Raises:
        BadValueError: A time is not above 0 or beyond reason, or the slowdown below 1.
    """

    slowdown: Annotated[float, Range("times as long", 0, 1000)] = 1.44
    slot_s: Annotated[float, Range("seconds", 1e-7, 1e4)] = 1e-3
    mean_idle_s: Annotated[float, _MEAN] = 20e-3
    mean_busy_s: Annotated[float, _MEAN] = 10e-3

    def __post_init__(self) -> None:
        _positive(**asdict(self))
        if self.slowdown < 1:
            raise BadValueError(f"slowdown is {self.slowdown}", "1 means none")
        check_ranges(self, "interference: ", BadValueError)


@dataclass(frozen=True)
class Weights:
    """Reward weights per event, in units of the energy of one full-depth token at the top operating point.

    Raises:
        BadValueError: A weight is negative or not finite.
    """

    late: float = 2.0
    disagree: float = 2.0
    kl: float = 2.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not _number(value) or not 0 <= value <= sys.float_info.max:
                raise BadValueError(f"weight {name} is {value!r}", "a finite number, 0 or more")
            if value > _MOST_WEIGHT:
                raise BadValueError(f"weight {name} is {value!r}", f"energies of a token, at most {_MOST_WEIGHT:g}")


@dataclass(frozen=True)
class Limits:
    """Means per token that a controller has to stay within.

    Attributes:
        miss: Share of tokens later than their due time.
        disagree: Share of tokens whose exit disagrees with full depth.
        dnll: Increase of the negative log-likelihood, nats per token.

    Raises:
        BadValueError: A limit is negative or not a number.
    """

    miss: float = 0.01
    disagree: float = 0.02
    dnll: float = 0.02

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not _number(value) or not value >= 0:
                raise BadValueError(f"limit {name} is {value!r}", "limits are numbers, 0 or more")

    def but(self, miss: float | None = None, disagree: float | None = None, dnll: float | None = None) -> Self:
        """These limits, with those that are given in place of their own.

        >>> Limits().but(miss=0.05)
        Limits(miss=0.05, disagree=0.02, dnll=0.02)
        """
        given = {"miss": miss, "disagree": disagree, "dnll": dnll}
        return replace(self, **{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class Scenario:
    """Everything that defines an episode besides the seed.

    Attributes:
        name: Shown in results.
        chip: Name of a shipped chip, a path to a chip file, or a ``Chip``, which plain data has as a table.
        traces: Name of a shipped trace set, or a folder. Files that a scenario file names are looked for beside it first.
        slo: Classes that requests are drawn from, uniformly.
        model: The model that the chip runs, a shape's name or a ``config.json``; empty: the one that the traces were recorded
            from. Another one than that is refused.
        slack_low, slack_high: Range of the factor on both targets, drawn per request.
        interference: The co-runner.
        weights: Of the reward.
        limits: What a controller is to stay within, where nothing else is said.
        switching: Switching mechanism, or the time of every change such as ``100 ns``; empty takes the chip's own.
        regulator: Voltage regulator; empty takes the chip's own.
        ambient_c: Ambient temperature, Celsius; None takes the chip's own.
        deadline: ``carry-over`` (token i is due at TTFT + i TPOT from the request's start) or ``per-token``.
        granularity: Where the operating point may change.
        groups: Layer groups, of granularity ``group`` and of token control, at most the layers of the model; None takes five,
            or as many as there are layers.
        decision_delay: 0, or 1 for a decision that takes effect at the next boundary.
        policy_macs: Multiply-accumulates charged for each decision.
        probe: Whether the exit probe is read (and charged) at every boundary.
        kv: Keys and values of skipped layers: ``propagate`` (filled from the exit state at once), ``exact`` (recomputed when
            the layer runs next) or ``skip`` (never there). A replay charges each truthfully; the quality it scores is the
            trace's, recorded with exact keys and values.
        signals: Extra scalars of the observation, of ``signals.EXTRA_SIGNALS``, in this order after the standard ones.
        randomise: What differs from episode to episode.
        scale: Targets that are observed as 1, longer ones too; None takes the longest that can be drawn. It stays when classes
            are replaced: a target looks the same beside whatever others. A policy brings its own, see
            ``clone_rl.agents.rollout.charged_scenario``.

    Raises:
        BadValueError: Values are out of range or do not go together.
        UnknownNameError: Unknown chip, mechanism, regulator, deadline mode, granularity, kv or signal.
    """

    name: str
    chip: str | Chip
    traces: str
    slo: tuple[ServiceLevel, ...]
    model: str = ""
    slack_low: float = 1.0
    slack_high: float = 2.0
    interference: Interference = Interference()
    weights: Weights = Weights()
    limits: Limits = Limits()
    switching: str = ""
    regulator: str = ""
    ambient_c: float | None = None
    deadline: str = "carry-over"
    granularity: str = "layer"
    groups: int | None = None
    decision_delay: int = 0
    policy_macs: int = 0
    probe: bool = True
    kv: str = "propagate"
    signals: tuple[str, ...] = ()
    randomise: Randomise = field(default_factory=Randomise)
    scale: TargetScale = None  # type: ignore[assignment]  # never None once made

    def __post_init__(self) -> None:
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
        if self.groups is not None and not 1 <= self.groups <= MOST_GROUPS:
            raise BadValueError(f"{self.groups} layer groups", f"1 to {MOST_GROUPS}")
        if self.policy_macs < 0:
            raise BadValueError(f"policy_macs is {self.policy_macs}", "0 or more")
        if not self.slo:
            raise BadValueError("the scenario has no [[slo]] class", "add one with name, ttft_s and tpot_s")
        names = [level.name for level in self.slo]
        if (twice := next((name for name in names if names.count(name) > 1), None)) is not None:
            raise BadValueError(f"two [[slo]] classes are called {twice!r}", "requests ask for a class by its name")
        if not 0 < self.slack_low <= self.slack_high < math.inf:
            raise BadValueError(f"slack from {self.slack_low} to {self.slack_high}", "0 < slack_low <= slack_high, finite")
        if self.interference.slowdown * self.randomise.slowdown[0] < 1:
            raise BadValueError(f"a slowdown of {self.interference.slowdown} times {self.randomise.slowdown[0]}", "at least 1")
        if self.scale is None:
            object.__setattr__(self, "scale", self._longest_targets())
        self.load_chip()

    def _longest_targets(self) -> TargetScale:
        most = self.slack_high * self.randomise.targets[1]
        return TargetScale(max(c.ttft_s for c in self.slo) * most, max(c.tpot_s for c in self.slo) * most)

    @classmethod
    def load(cls, name: str | Mapping[str, Any] | Scenario = "default", /, **changes: Any) -> Self:
        """A shipped scenario by name or a user's by path, with fields replaced; tables may be given in part.

        Args:
            name: Of a shipped scenario, or a path that ends in ``.toml``; plain data and a scenario are taken as well.
            **changes: Fields, as objects of this module or as plain data, as a TOML file would have them.

        Raises:
            UnknownNameError: No shipped scenario has this name, or a change names an unknown field.
            BadFileError: The file is missing or malformed, or a change is of the wrong type.
            BadValueError: Values are out of range or do not go together.

        >>> Scenario.load("default", switching="pmic", interference={"slowdown": 2.0}).interference.slowdown
        2.0
        """
        if isinstance(name, str):
            table = _beside(load_toml("scenario", name, "clone_rl.envs", "scenarios"), name)
        elif not isinstance(name, Mapping | Scenario):
            raise BadValueError(f"scenario is {name!r}", "a name, a path that ends in .toml, plain data, or a Scenario")
        else:
            table = dict(name) if isinstance(name, Mapping) else name.as_dict()
            name = str(table.get("name", "without a name"))
        own = dict(table)
        for key, value in changes.items():
            if key not in cls.__dataclass_fields__:
                raise UnknownNameError("scenario field", key, cls.__dataclass_fields__)
            value = as_table(value)
            before = table.get(key)
            in_part = isinstance(value, Mapping) and isinstance(before, Mapping) and key != "chip"
            table[key] = dict(before or {}, **value) if in_part else value
        found = cls.parse(table, f"scenario {name}" if changes else name)
        if "slo" not in own or "scale" in table or not _TARGETS & changes.keys():
            return found
        # Its own targets keep the scale that they are known by; longer ones stretch it.
        rest = {key: value for key, value in table.items() if key not in _TARGETS}
        known = cls.parse(rest | {key: own[key] for key in _TARGETS & own.keys()}, name).scale
        ttft_s, tpot_s = max(known.ttft_s, found.scale.ttft_s), max(known.tpot_s, found.scale.tpot_s)
        return replace(found, scale=TargetScale(ttft_s, tpot_s))

    @classmethod
    def parse(cls, table: Mapping[str, Any], source: str) -> Self:
        """A scenario from a parsed TOML table.

        Args:
            table: The whole file.
            source: Named in errors.

        Raises:
            BadFileError: A key is unknown, missing or of the wrong type.
            BadValueError, UnknownNameError: As the class.
        """
        table = dict(table)
        classes = table.get("slo", [])
        if isinstance(classes, str | Mapping) or not isinstance(classes, Sequence):
            raise BadFileError(f"{source}: slo is not a list of tables", "write [[slo]]")
        rows = [(ServiceLevel, row, f"{source}: slo[{i}]") for i, row in enumerate(classes)]
        parts = [(section, table[key], f"{source}: [{key}]") for key, section, _ in _SECTIONS if key in table]
        check_keys((cls, table, source), *rows, *parts)
        for key, section, zero in _SECTIONS:
            if key in table and not (key == "scale" and table[key] is None):
                table[key] = read_table(section, table[key], f"{source}: [{key}]", zero)
        table["slo"] = tuple(read_table(*row) for row in rows)
        for key, kind, wanted in (("ambient_c", int | float, "a number"), ("groups", int, "an integer")):
            value = table.get(key)
            if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
                raise BadFileError(f"{source}: {key} is {value!r}", f"write {wanted}")
        if isinstance(table.get("chip"), Mapping):
            table["chip"] = parse_chip(dict(table["chip"]), f"{source}: [chip]")
        elif not isinstance(table.get("chip", ""), str | Chip):
            raise BadFileError(f"{source}: chip is {table['chip']!r}", "write a name, a path or a table")
        return read_table(cls, table, source, {"decision_delay", "policy_macs"})

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as a TOML file would have it: what ``parse`` takes."""
        own = self.scale == self._longest_targets()
        return {key: value for key, value in as_table(self).items() if value is not None and not (own and key == "scale")}

    @property
    def chip_name(self) -> str:
        """What the chip is called: as it was named, or by its own name."""
        return self.chip if isinstance(self.chip, str) else self.chip.name

    def self_contained(self) -> Self:
        """The same for whoever has none of its files: the content of a chip file, and absolute paths of traces and model."""
        chip = self.chip if isinstance(self.chip, Chip) or self.chip in chip_names() else load_chip(self.chip)
        return replace(self, chip=chip, traces=absolute(self.traces, trace_names()), model=absolute(self.model, shape_names()))

    def load_chip(self) -> Chip:
        """The chip, with the scenario's regulator and ambient temperature.

        Raises:
            BadValueError: A regulator is asked of a board, or the ambient temperature is not below that of throttling.
            UnknownNameError, BadFileError: As ``hw_emulator.load_chip``.
        """
        chip = load_chip(self.chip) if isinstance(self.chip, str) else self.chip
        if self.regulator:
            if self.regulator not in REGULATORS:
                raise UnknownNameError("regulator", self.regulator, REGULATORS)
            if not isinstance(chip, Asic):
                raise BadValueError(f"regulator {self.regulator!r} on {chip.name}", "a board's losses are in its laws")
            chip = replace(chip, power=replace(chip.power, regulator=self.regulator))
        if self.ambient_c is not None:
            if not -273.15 < self.ambient_c < chip.thermal.throttle_c:
                raise BadValueError(
                    f"ambient_c is {self.ambient_c}", f"below {chip.thermal.throttle_c}, where throttling begins"
                )
            chip = replace(chip, thermal=replace(chip.thermal, ambient_c=float(self.ambient_c)))
        check_chip(chip, f"{chip.name} in scenario {self.name}")
        return chip


_SECTIONS: tuple[tuple[str, type[Any], set[str]], ...] = (
    ("interference", Interference, set()),
    ("weights", Weights, {"late", "disagree", "kl"}),
    ("limits", Limits, {"miss", "disagree", "dnll"}),
    ("randomise", Randomise, {"seed"}),
    ("scale", TargetScale, set()),
)


_TARGETS = {"slo", "slack_low", "slack_high", "randomise", "interference"}
"""Fields that the longest targets follow from, with what has to go together with them."""


def _beside(table: dict[str, Any], file: str) -> dict[str, Any]:
    """A scenario's table with the files that it names where they lie: beside it, or as they are."""
    known = {"chip": chip_names(), "traces": trace_names(), "model": shape_names()}
    for key, names in known.items():
        value = table.get(key)
        if isinstance(value, str) and value and value not in names and (there := Path(file).parent / value).exists():
            table[key] = str(there)
    return table


def absolute(name: str, known: Sequence[str]) -> str:
    """A path from wherever one stands; a name as it is."""
    return str(Path(name).resolve()) if name and name not in known and Path(name).exists() else name


def as_table(value: Any) -> Any:
    """Scenarios, chips and their parts as tables and lists, as a TOML file would have them; everything else as it is."""
    if is_dataclass(value) and not isinstance(value, type):
        table = {part.name: as_table(getattr(value, part.name)) for part in fields(value)}
        return {name: each for name, each in table.items() if each is not None}
    if isinstance(value, Mapping):
        return {name: as_table(each) for name, each in value.items()}
    if isinstance(value, tuple | list):
        return [as_table(each) for each in value]
    return value


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


def scenario_names() -> list[str]:
    """Names of the shipped scenarios."""
    return shipped("clone_rl.envs", "scenarios")
