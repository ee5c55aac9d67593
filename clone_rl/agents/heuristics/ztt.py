"""A DQN that sets the clock once per token, after zTT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clone_rl.agents.controller import RuleController
from clone_rl.agents.heuristics.baseline import Baseline, Parameter, Parameters
from clone_rl.agents.heuristics.chip_table import ChipTable
from clone_rl.agents.heuristics.exit_bars import fixed_depth
from clone_rl.agents.rule import rule
from clone_rl.envs.compiling import inlined
from clone_rl.envs.control import Control
from clone_rl.envs.observation import OBSERVATION
from clone_rl.envs.randomness import uniform
from clone_rl.envs.scenario import Limits, TargetScale

_PHASE, _LAYER = OBSERVATION.index("phase"), OBSERVATION.index("layer")
_POINT, _BUSY, _SLACK = OBSERVATION.index("point"), OBSERVATION.index("busy"), OBSERVATION.index("slack")
_TTFT, _TPOT, _HEADROOM = OBSERVATION.index("ttft"), OBSERVATION.index("tpot"), OBSERVATION.index("headroom")

STATE = ("clock", "power", "temperature", "rate", "busy", "slack", "target")
"""zTT's seven are clock, power and temperature of two processors and the frame rate. Here is one chip, so the co-runner, the
slack and the target, which is a constant there, take the places of the second."""

CLOCK, POWER, TEMPERATURE, RATE, BUSY, SLACK, TARGET = range(len(STATE))
FASTEST = 4.0
"""Token rates are clipped to so many times the target, and divided by it."""

HIDDEN = 12
"""Units of both hidden layers; zTT has 6 for 9 actions (Jetson_tx2/agent.py)."""

_CHOSEN, _SPENT, _TARGET_S, _SCRATCH = range(4)  # of memory
_READ, _WRITTEN = _SCRATCH + len(STATE), _SCRATCH + len(STATE) + 64  # two layers' activations, in turn
_STREAM = 4  # of random numbers, beside those of ``envs.randomness``


class Network(NamedTuple):
    """The Q-network, with ReLU between its layers.

    Attributes:
        weights: For each layer, (in, out).
        biases: For each layer, (out,).
    """

    weights: tuple[NDArray[np.float64], ...]
    biases: tuple[NDArray[np.float64], ...]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of a forward pass."""
        return sum(weight.size for weight in self.weights)


class ZttRule(NamedTuple):
    """``Ztt``, compiled."""

    table: ChipTable
    network: Network
    depth: int


class ExploreRule(NamedTuple):
    """The same while it learns: random points now and then, and a log of what it saw and did at every token.

    Attributes:
        table, network, depth: As in ``ZttRule``.
        epsilon: Share of random points.
        seed: Of them.
        states: (N, 7) written, in turn.
        actions: (N,) written; those of a request's first token have N_POINTS added, see ``dqn.transitions``.
        written: (1,) how many.
    """

    table: ChipTable
    network: Network
    depth: int
    epsilon: float
    seed: int
    states: NDArray[np.float64]
    actions: NDArray[np.int64]
    written: NDArray[np.int64]


@inlined
def _sense(table: Any, observation: Any, memory: Any) -> None:
    """Write the state at a token's start into memory, and begin to time the token."""
    top, at = len(table.head_s) - 1, _SCRATCH
    prefill = observation[_PHASE] == 0
    point = int(np.rint(observation[_POINT] * top))
    rate = FASTEST
    if memory[_SPENT] > 0.0:
        rate = min(FASTEST, memory[_TARGET_S] / memory[_SPENT])
    memory[at + CLOCK], memory[at + POWER] = table.frequency[point], table.power[point]
    memory[at + TEMPERATURE], memory[at + RATE] = observation[_HEADROOM], rate / FASTEST
    memory[at + BUSY], memory[at + SLACK] = observation[_BUSY], observation[_SLACK]
    memory[at + TARGET] = observation[_TTFT] if prefill else observation[_TPOT]
    memory[_TARGET_S] = observation[_TTFT] * table.ttft_s if prefill else observation[_TPOT] * table.tpot_s
    memory[_SPENT] = 0.0


@inlined
def _time(table: Any, observation: Any, memory: Any) -> None:
    """Count the next layer, and the head with the first one, towards the token's time."""
    point, phase = int(memory[_CHOSEN]), int(observation[_PHASE])
    seconds = table.layer_s[phase, point] + (table.head_s[point] if observation[_LAYER] == 0 else 0.0)
    memory[_SPENT] += seconds * (table.slowdown if observation[_BUSY] > 0 else 1.0)


@inlined
def _greedy(network: Any, memory: Any) -> int:
    """The point of the highest value at the state in memory."""
    read, written, last = _SCRATCH, _WRITTEN, len(network.weights) - 1
    for layer in range(len(network.weights)):
        weight, bias = network.weights[layer], network.biases[layer]
        for j in range(len(bias)):
            total = bias[j]
            for i in range(weight.shape[0]):
                total += memory[read + i] * weight[i, j]
            memory[written + j] = total if total > 0.0 or layer == last else 0.0
        read, written = written, _READ if written == _WRITTEN else _WRITTEN
    best = 0
    for j in range(1, len(network.biases[last])):
        if memory[read + j] > memory[read + best]:
            best = j
    return best


@inlined
def _leaves(self: Any, observation: Any) -> bool:
    """Whether the token has run its layers."""
    decoded = observation[_PHASE] > 0 and observation[_LAYER] > 0
    return bool(decoded and int(np.rint(observation[_LAYER] * self.table.layers)) >= self.depth)


@rule(ZttRule)
def _ztt(self: Any, observation: Any, memory: Any, action: Any) -> None:
    if _leaves(self, observation):
        action[0] = len(self.table.head_s)
        return
    if observation[_LAYER] == 0:
        _sense(self.table, observation, memory)
        memory[_CHOSEN] = _greedy(self.network, memory)
    _time(self.table, observation, memory)
    action[0] = int(memory[_CHOSEN])


@rule(ExploreRule)
def _explore(self: Any, observation: Any, memory: Any, action: Any) -> None:
    points = len(self.table.head_s)
    if _leaves(self, observation):
        action[0] = points
        return
    if observation[_LAYER] == 0:
        begins = memory[_TARGET_S] == 0.0
        _sense(self.table, observation, memory)
        row = self.written[0]
        for i in range(len(STATE)):
            self.states[row, i] = memory[_SCRATCH + i]
        chosen = _greedy(self.network, memory)
        if uniform(self.seed, row, _STREAM, 0) < self.epsilon:
            chosen = int(uniform(self.seed, row, _STREAM, 1) * points)
        memory[_CHOSEN] = chosen
        self.actions[row] = chosen + points if begins else chosen
        self.written[0] = row + 1
    _time(self.table, observation, memory)
    action[0] = int(memory[_CHOSEN])


@dataclass(frozen=True)
class Ztt(RuleController):
    """The clock from a learned Q-network, once per token; every decoded token leaves at one depth.

    zTT (MobiSys 2021) sets the clocks of a phone once per frame. It has no exits and no notion of their quality, so the depth
    is a constant, as in ``static``.

    Attributes:
        table: The chip.
        network: The Q-network: state to value of each operating point.
        depth: Layers of a decoded token.
        trained: What it was trained with, for the record.
        name: Shown in results.
    """

    table: ChipTable
    network: Network
    depth: int
    trained: Mapping[str, Any]
    name: str = "ztt"
    kind: ClassVar[str] = "layer"
    probes: ClassVar[bool] = False

    @property
    def scale(self) -> TargetScale:
        """That of the chip table, by which it reads targets."""
        return self.table.scale

    @property
    def macs(self) -> int:
        """The network's, once per token, spread over the token's layers."""
        return -(-self.network.macs // self.depth)

    @cached_property
    def rule(self) -> ZttRule:
        """The same, compiled."""
        return ZttRule(self.table, self.network, self.depth)

    def memory(self, rows: int) -> NDArray[np.float64]:
        """(rows, M) choice, timer, target, state and room for the activations of two layers."""
        return scratch(rows)

    def describe(self) -> dict[str, Any]:
        """What it was trained with, and its depth."""
        return {"depth": self.depth, **self.trained}


def scratch(rows: int) -> NDArray[np.float64]:
    """(rows, M) memory of the rules of this module: 64 activations at most in a layer."""
    return np.zeros((rows, _WRITTEN + 64))


class ZttBaseline(Baseline):
    """``Ztt``, trained on the training split by ``dqn.train``."""

    name = "ztt"
    source = "zTT (MobiSys 2021; github.com/ztt-21/zTT, Jetson_tx2/agent.py)"

    def space(self, control: Control) -> dict[str, Parameter]:  # noqa: ARG002
        """Weight of power in the reward, reserve, target, its discount and the learning rate."""
        return {
            "beta": Parameter(0.002, 0.5, log=True),
            "margin": Parameter(0.0, 0.6),
            "bandit": Parameter(0, 1, whole=True),
            "discount": Parameter(0.5, 0.99),
            "learning_rate": Parameter(1e-3, 3e-2, log=True),
        }

    def start(self, control: Control, limits: Limits, seed: int) -> dict[str, float]:  # noqa: ARG002
        """The source as it runs, a bandit (its beta over power is 0.02 to 0.07), with something in reserve."""
        return {"beta": 0.03, "margin": 0.15, "bandit": 1, "discount": 0.99, "learning_rate": 1e-2}

    def fit(self, control: Control, limits: Limits, seed: int, chosen: Parameters) -> dict[str, Any]:
        """Train the network, at the least depth that holds the limits on quality."""
        from clone_rl.agents.heuristics.dqn import Learning, train

        depth = fixed_depth(control.traces, "train", limits)
        network = train(control, depth, Learning(**chosen), limits, seed)  # type: ignore[arg-type]
        layers = {name: [part.tolist() for part in parts] for name, parts in network._asdict().items()}
        return {**chosen, "depth": depth, **layers}

    def make(self, control: Control, settings: Mapping[str, Any]) -> Ztt:
        """From the network's weights and the depth."""
        trained = dict(settings)
        network = Network(*(tuple(np.array(part, np.float64) for part in trained.pop(name)) for name in Network._fields))
        return Ztt(ChipTable.of(control), network, trained.pop("depth"), trained)
