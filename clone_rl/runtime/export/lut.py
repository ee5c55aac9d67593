"""A look-up table for a policy: trees and grids of several sizes are fitted and judged, and the best is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clone_rl.agents.judge import Judge, Judgement
from clone_rl.agents.lut import LEVELS, GridRule, LutPolicy, TreeRule, quantised
from clone_rl.agents.origin import SCALE, origin_of
from clone_rl.agents.policy import Policy
from clone_rl.envs.control import Control
from clone_rl.errors import BadValueError
from clone_rl.runtime.export.observations import collect
from clone_rl.runtime.export.tables import fit_grid, fit_tree

NODES = (32, 64, 128, 256)
"""Comparisons at most, of the trees that are tried."""

CELLS = ((1024, 4), (4096, 6))
"""Cells and scalars at most, of the grids that are tried."""


@dataclass(frozen=True)
class Candidate:
    """A table and what it came to on the training and validation requests."""

    table: LutPolicy
    judged: Judgement

    @property
    def rank(self) -> tuple[float, float, int]:
        """Less is better: who breaks the limits least, then energy, then size."""
        return self.judged.excess, self.judged.figures["energy_per_token_j"], self.table.rom_bytes

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        size = {"shape": self.table.shape, "rom_bytes": self.table.rom_bytes, "steps": self.table.steps}
        return {**size, "excess": self.judged.excess, **self.judged.figures}


def _fits(levels: NDArray[np.uint8], policy: Policy) -> list[Callable[[], TreeRule | GridRule]]:
    """What is tried, each fitted when it is called."""

    def decide(at: NDArray[np.uint8]) -> NDArray[np.int64]:
        return policy.act((at / (LEVELS / 2) - 1.0).astype(np.float32))[:, 0]

    choices = policy.heads[0]
    actions = decide(levels)
    trees = [partial(fit_tree, levels, actions, choices, nodes) for nodes in NODES]
    return [*trees, *(partial(fit_grid, levels, actions, choices, cells, scalars, decide) for cells, scalars in CELLS)]


def tabulate(
    policy: Policy,
    control: Control,
    seed: int = 0,
    rom_bytes: int | None = None,
    observations: int = 200_000,
    progress: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> list[Candidate]:
    """Look-up tables that do what a policy does, best first.

    They are fitted to observations of the training split, and judged as training judges policies: within the limits on
    the training and validation requests, then by energy. Equal arguments give equal tables.

    Args:
        policy: Of layer control.
        control: Its scenario.
        seed: Of observations and requests.
        rom_bytes: Largest table; None takes what is best.
        observations: To fit to.
        progress: Wraps the list of what is tried (a progress bar).

    Raises:
        BadValueError: The policy is of token control, or no table is that small.
    """
    if policy.kind != "layer":
        raise BadValueError(
            f"policy {policy.name!r} decides per token: {len(policy.heads)} choices at once, and a table holds one",
            "export it to onnx or c",
        )
    levels = quantised(collect(control, policy, "train", observations, seed))
    judge = Judge(control, control.scenario.limits, seed)
    source = {"source": policy.name, "source_sha256": policy.sha256, "scenario": control.scenario.name}
    scale = asdict(policy.scale or control.scenario.scale)
    card = {**source, "chip": control.emulator.chip.name, **origin_of(control.scenario), SCALE: scale}
    tables = [
        LutPolicy(fit(), policy.heads[0], card, f"{policy.name}-lut", policy.probes, policy.signals)
        for fit in progress(_fits(levels, policy))
    ]
    small = [table for table in tables if rom_bytes is None or table.rom_bytes <= rom_bytes]
    if not small:
        least = min(table.rom_bytes for table in tables)
        raise BadValueError(f"rom bytes is {rom_bytes}", f"the smallest table takes {least}")
    return sorted((Candidate(table, judge(table)) for table in small), key=lambda candidate: candidate.rank)
