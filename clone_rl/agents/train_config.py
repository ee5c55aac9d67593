"""What a training run is told."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from clone_rl.envs import check_env_id
from clone_rl.envs.scenario import Limits, Scenario, absolute, as_table, scenario_names
from clone_rl.envs.trace import trace_names
from clone_rl.errors import BadValueError
from clone_rl.hw_emulator.chip import chip_names, load_chip

_MOST = 2**26
"""Decisions between two updates: some ten gigabytes."""


@dataclass(frozen=True)
class TrainConfig:
    """What to train. The field docs are the help of ``clone-rl train``.

    Attributes:
        env_id: Environment: clone_rl/LayerControl-v0 or clone_rl/TokenControl-v0.
        scenario: Scenario, a shipped name or a TOML file; plain data from a program.
        chip: Chip, a shipped name or a TOML file; plain data from a program; empty takes the scenario's.
        traces: Trace set, a shipped name or a folder; empty takes the scenario's.
        steps: Decisions to train for (rounded up to whole rollouts).
        seed: Seed of everything random.
        envs: Parallel environments.
        rollout: Decisions of each environment between two updates.
        max_miss: Highest share of late tokens, 0 to 1; None takes the scenario's.
        max_disagree: Highest share of tokens that differ from full depth, 0 to 1; None takes the scenario's.
        max_dnll: Highest increase of the negative log-likelihood, nats per token; None takes the scenario's.
        checkpoint_every: Updates between two checkpoints.
        conditioned: Train one policy for half to twice these limits; see docs/results.md.

    Raises:
        UnknownNameError: No such environment.
        BadValueError: A count, the seed or a limit is out of range.
    """

    env_id: str = "clone_rl/LayerControl-v0"
    scenario: str | dict[str, Any] = "default"
    chip: str | dict[str, Any] = ""
    traces: str = ""
    steps: int = 1_000_000
    seed: int = 0
    envs: int = 256
    rollout: int = 128
    max_miss: float | None = None
    max_disagree: float | None = None
    max_dnll: float | None = None
    checkpoint_every: int = 5
    conditioned: bool = False

    def __post_init__(self) -> None:
        check_env_id(self.env_id)
        for name in ("steps", "envs", "rollout", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise BadValueError(f"{name} is {getattr(self, name)}", "at least 1")
        if not 0 <= self.seed < 2**31:
            raise BadValueError(f"seed is {self.seed}", f"0 or more, at most {2**31 - 1}")
        if self.envs * self.rollout < 2:
            raise BadValueError(f"envs x rollout is {self.envs * self.rollout}", "at least 2 decisions between two updates")
        if self.envs * self.rollout > _MOST:
            raise BadValueError(f"envs x rollout is {self.envs * self.rollout}", f"at most {_MOST}: they are kept in memory")
        limits = Limits().but(self.max_miss, self.max_disagree, self.max_dnll)
        for name, share in (("max_miss", limits.miss), ("max_disagree", limits.disagree)):
            if share > 1:
                raise BadValueError(f"{name} is {share}", "a share: 0 to 1")
        if self.conditioned:
            if self.env_id != "clone_rl/LayerControl-v0":
                raise BadValueError(f"conditioned training of {self.env_id}", "take clone_rl/LayerControl-v0")
            for name, limit in asdict(limits).items():
                if not 0 < limit < math.inf:
                    raise BadValueError(f"conditioned training around max_{name} {limit}", "above 0 and finite: it is scaled")
        if limits.dnll == math.inf:
            raise BadValueError(f"max_dnll is {limits.dnll}", "a finite number of nats per token, 0 or more")

    def limits(self, scenario: Scenario) -> Limits:
        """What training has to hold in a scenario."""
        return scenario.limits.but(self.max_miss, self.max_disagree, self.max_dnll)

    def load(self) -> Scenario:
        """The scenario, with the chip and the traces that are asked for."""
        return Scenario.load(self.scenario, **self.changes)

    def resolved(self, scenario: Scenario | None = None) -> Self:
        """The same with limits written out, and the content in the place of files: what a run keeps, whatever becomes of them.

        Args:
            scenario: As ``load`` gives it, where that was done.

        Raises:
            CloneRLError: As ``Scenario.load``.
        """
        scenario = scenario or self.load()
        limits = self.limits(scenario)
        kept: dict[str, Any] = {"traces": absolute(self.traces, trace_names())}
        if isinstance(self.scenario, str) and self.scenario not in scenario_names():
            kept["scenario"] = Scenario.load(self.scenario).self_contained().as_dict()
        if isinstance(self.chip, str) and self.chip not in ("", *chip_names()):
            kept["chip"] = as_table(load_chip(self.chip))
        return replace(self, max_miss=limits.miss, max_disagree=limits.disagree, max_dnll=limits.dnll, **kept)

    def shown(self) -> dict[str, Any]:
        """Its fields for people: names in the place of content."""
        return {name: value.get("name") if isinstance(value, dict) else value for name, value in asdict(self).items()}

    @property
    def changes(self) -> dict[str, Any]:
        """Fields of the scenario that are replaced."""
        return {name: value for name, value in (("chip", self.chip), ("traces", self.traces)) if value}
