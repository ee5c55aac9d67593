"""Look-up table controllers: a policy as comparisons and a ROM, for a chip without room for a network."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clone_rl.agents.controller import RuleController
from clone_rl.agents.origin import trained_scale
from clone_rl.agents.policy import Policy
from clone_rl.agents.rule import rule
from clone_rl.agents.weights import Weights, packed, read_card, write_weights
from clone_rl.envs.compiling import inlined
from clone_rl.envs.observation import OBSERVATION
from clone_rl.envs.scenario import Limits, TargetScale
from clone_rl.errors import PolicyFileError
from clone_rl.hw_emulator.asic import POLICY_INPUTS

FORMAT = "lut-1"

LEVELS = 255
"""Scalars are read as ``round((x + 1) / 2 * LEVELS)``: one byte each."""

_NODE_BYTES = 6  # scalar and threshold, a byte each; two links of two bytes


def quantised(observations: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(N, width) bytes of observations within [-1, 1], as tables read them."""
    x = np.asarray(observations, np.float64)
    return np.rint((np.clip(x, -1.0, 1.0) + 1.0) * (LEVELS / 2)).astype(np.uint8)


@inlined
def _level(x: float) -> int:
    return int(np.rint((min(1.0, max(-1.0, x)) + 1.0) * (LEVELS / 2)))


class TreeRule(NamedTuple):
    """A decision tree in a ROM, the root first.

    Attributes:
        scalar: (K,) which scalar node k reads.
        threshold: (K,) it goes right if the scalar's level is at least this.
        left, right: (K,) next node, which comes later; ``-1 - a`` is action a.
    """

    scalar: NDArray[np.int64]
    threshold: NDArray[np.int64]
    left: NDArray[np.int64]
    right: NDArray[np.int64]


class GridRule(NamedTuple):
    """A table addressed by the bins of a few scalars.

    Attributes:
        scalars: (F,) which are read.
        ends: (F,) where each one's edges end.
        edges: (E,) ascending for each scalar; its bin is the number of edges that its level reaches.
        table: (cells,) actions, the last scalar's bin running fastest.
    """

    scalars: NDArray[np.int64]
    ends: NDArray[np.int64]
    edges: NDArray[np.int64]
    table: NDArray[np.int64]


@rule(TreeRule)
def _tree(self: Any, observation: Any, memory: Any, action: Any) -> None:  # noqa: ARG001
    node = 0
    while node >= 0:
        high = _level(observation[self.scalar[node]]) >= self.threshold[node]
        node = self.right[node] if high else self.left[node]
    action[0] = -1 - node


@rule(GridRule)
def _grid(self: Any, observation: Any, memory: Any, action: Any) -> None:  # noqa: ARG001
    cell, start = 0, 0
    for f in range(len(self.scalars)):
        level, bin_ = _level(observation[self.scalars[f]]), 0
        for e in range(start, self.ends[f]):
            if level >= self.edges[e]:
                bin_ += 1
        cell = cell * (self.ends[f] - start + 1) + bin_
        start = self.ends[f]
    action[0] = self.table[cell]


_RULES: dict[str, type[TreeRule | GridRule]] = {"tree": TreeRule, "grid": GridRule}


def _depth(tree: TreeRule) -> int:
    """Longest way from the root to an action, in comparisons."""
    below = np.ones(len(tree.left), np.int64)
    for node in range(len(below) - 1, -1, -1):
        below[node] += max(below[link] if (link := side[node]) >= 0 else 0 for side in (tree.left, tree.right))
    return int(below[0])


def _check(table: TreeRule | GridRule, width: int, actions: int) -> None:
    """Refuse a table that reads or chooses what is not there, or that would not end."""
    scalars = table.scalar if isinstance(table, TreeRule) else table.scalars
    sound = all(part.ndim == 1 for part in table) and len(scalars) > 0 and scalars.min() >= 0 and scalars.max() < width
    if sound and isinstance(table, TreeRule):
        nodes = len(scalars)
        sound = all(len(part) == nodes for part in table) and all(
            (((links > np.arange(nodes)) & (links < nodes)) | ((links < 0) & (links >= -actions))).all()
            for links in (table.left, table.right)
        )
    elif sound and isinstance(table, GridRule):
        counts = np.diff(table.ends, prepend=0)
        sound = len(table.ends) == len(scalars) and bool((counts >= 0).all()) and table.ends[-1] == len(table.edges)
        sound = sound and math.prod(int(n) + 1 for n in counts) == len(table.table)
        sound = sound and table.table.min() >= 0 and table.table.max() < actions
    if not sound:
        raise PolicyFileError("a look-up table whose parts do not fit together", "the file is altered; export it again")


@dataclass(frozen=True)
class LutPolicy(RuleController):
    """A policy of layer control as a decision tree or a grid, read off bytes.

    Attributes:
        table: What the chip looks up.
        actions: How many there are to choose from.
        card: Where it comes from: ``source``, ``source_sha256``, ``scenario``, ``chip`` and so on.
        name: Shown in results.
        probes: Whether it reads the exit probe.
        signals: As of ``Policy``.

    Raises:
        PolicyFileError: Parts do not fit together.
    """

    table: TreeRule | GridRule
    actions: int
    card: dict[str, Any] = field(default_factory=dict)
    name: str = "lut"
    probes: bool = True
    signals: tuple[str, ...] = ()
    kind: ClassVar[str] = "layer"

    def __post_init__(self) -> None:
        _check(self.table, len(OBSERVATION) + len(self.signals), self.actions)

    @property
    def heads(self) -> tuple[int, ...]:
        """Choices of the one action component."""
        return (self.actions,)

    @cached_property
    def scale(self) -> TargetScale | None:
        """As of ``Policy``."""
        return trained_scale(self.card)

    @property
    def shape(self) -> str:
        """``tree`` or ``grid``."""
        return "tree" if isinstance(self.table, TreeRule) else "grid"

    @property
    def scalars(self) -> list[str]:
        """Names of the scalars that it reads."""
        read = self.table.scalar if isinstance(self.table, TreeRule) else self.table.scalars
        names = (*OBSERVATION, *self.signals)
        return [names[index] for index in np.unique(read)]

    @cached_property
    def steps(self) -> int:
        """Look-ups one after the other: the depth of a tree, 1 of a grid."""
        return _depth(self.table) if isinstance(self.table, TreeRule) else 1

    @property
    def rom_bytes(self) -> int:
        """A tree's nodes; a grid's actions, packed, and its edges of one byte."""
        if isinstance(self.table, TreeRule):
            return _NODE_BYTES * len(self.table.scalar)
        bits = max(1, (self.actions - 1).bit_length())
        return -(-len(self.table.table) * bits // 8) + len(self.table.edges)

    @property
    def macs(self) -> int:
        """What is charged: each look-up as the emulator's table address, one multiply-accumulate for every scalar."""
        return POLICY_INPUTS * self.steps

    @property
    def rule(self) -> TreeRule | GridRule:
        """The table."""
        return self.table

    def describe(self) -> dict[str, Any]:
        """Its size and the hash of its file."""
        return {"shape": self.shape, "rom_bytes": self.rom_bytes, "steps": self.steps, "sha256": self.sha256}

    @cached_property
    def content(self) -> bytes:
        """The table as a safetensors file."""
        return packed({name: part.astype(np.int16) for name, part in self.table._asdict().items()})

    @property
    def sha256(self) -> str:
        """Hash of ``content``: of the file, wherever it lies."""
        return hashlib.sha256(self.content).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write ``path`` (.safetensors) and the card beside it (.json); each appears complete or not at all."""
        card = {
            **self.card,
            "name": self.name,
            "format": FORMAT,
            "shape": self.shape,
            "observation": [*OBSERVATION, *self.signals],
            "actions": self.actions,
            "probes": self.probes,
            "rom_bytes": self.rom_bytes,
            "steps": self.steps,
        }
        write_weights(path, self.content, card)

    @classmethod
    def load(cls, path: str | Path) -> LutPolicy:
        """Load a table: its ``.safetensors`` file or its card.

        Raises:
            PolicyFileError: Missing, truncated, altered, or made for other observations.
            MissingExtraError: safetensors is not installed.
        """
        path = Path(path).with_suffix(".safetensors")
        tensors, card, signals, conditioned = Weights.read(path, "look-up table", FORMAT, "export it again")
        if conditioned:
            raise PolicyFileError(f"{path} reads limits, and a look-up table has those of one policy", "export it again")
        try:
            kind = _RULES[card["shape"]]
            table = kind(*(np.ascontiguousarray(tensors[name], np.int64) for name in kind._fields))
            return cls(table, int(card["actions"]), card, str(card.get("name", path.stem)), bool(card["probes"]), signals)
        except (KeyError, TypeError, ValueError) as error:
            raise PolicyFileError(f"{path} is not a look-up table: {error}") from None


def is_lut_path(name: str) -> bool:
    """Whether a controller's name is the file of a look-up table."""
    card = read_card(Path(name)) if name.endswith((".safetensors", ".json")) else None
    return card is not None and card.get("format") == FORMAT


def load_policy(name: str | Path, limits: Limits | None = None) -> Policy | LutPolicy:
    """A policy as ``Policy.load`` finds it, or a look-up table by its file.

    Raises:
        UnknownNameError, BadValueError, PolicyFileError, MissingExtraError: As of ``Policy.load`` and ``LutPolicy.load``.
    """
    return LutPolicy.load(name) if is_lut_path(str(name)) else Policy.load(name, limits)
