"""Deep Q-learning of ``ztt``'s network: rounds of exploration in compiled code, then updates."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clone_rl.agents.controller import RuleController
from clone_rl.agents.heuristics.chip_table import ChipTable
from clone_rl.agents.heuristics.ztt import FASTEST, HIDDEN, POWER, RATE, STATE, TEMPERATURE, ExploreRule, Network, Ztt, scratch
from clone_rl.agents.judge import Judge
from clone_rl.agents.rollout import charged_for
from clone_rl.agents.runner import PolicyRunner
from clone_rl.envs.control import Control
from clone_rl.envs.scenario import Limits

_ROUNDS, _UPDATES, _BATCH = 8, 200, 512  # zTT: an update after every frame, 64 a batch
_TARGET_EVERY = 100
_EPSILON = 0.7  # factor a round, from 1 on; zTT has 0.95 a frame


class Transitions(NamedTuple):
    """What happened at M tokens.

    Attributes:
        states: (M, 7) at each token's start, see ``ztt.STATE``.
        actions: (M,) operating points.
        next_states: (M, 7) at the start of the token after it.
        ends: (M,) where nothing more is known of the request: its last token is not seen from another one.
    """

    states: NDArray[np.float64]
    actions: NDArray[np.int64]
    next_states: NDArray[np.float64]
    ends: NDArray[np.bool_]


def rewards(next_states: NDArray[np.float64], beta: float, margin: float) -> NDArray[np.float64]:
    """ZTT's reward of what was sensed after the token: rate, temperature and power.

    ``min(1, rate / target) + 0.2 tanh(T_target - T) + beta / power``, with -2 in the second's place where it is too hot
    (get_reward of Jetson_tx2/agent.py). T_target is where the chip throttles; power is a share of the top point's.

    Args:
        next_states: (M, 7).
        beta: Weight of power.
        margin: The target rate is so much above what the service level asks for.

    Returns:
        (M,)
    """
    headroom_k = 100.0 * next_states[:, TEMPERATURE]
    cool = np.where(headroom_k > 0.0, 0.2 * np.tanh(headroom_k), -2.0)
    in_time = np.minimum(1.0, FASTEST * next_states[:, RATE] / (1.0 + margin))
    return np.asarray(in_time + cool + beta / next_states[:, POWER])


def transitions(states: NDArray[np.float64], actions: NDArray[np.int64], points: int) -> Transitions:
    """Transitions of a log of ``ExploreRule``, whose requests follow one another."""
    begins = actions >= points
    follows = np.flatnonzero(~begins[1:])
    last = np.append(begins[1:], True)  # tokens after which another request begins
    return Transitions(states[follows], actions[follows] % points, states[follows + 1], last[follows + 1])


class _Explorer(RuleController):
    """Runs an ``ExploreRule``."""

    name = "ztt"

    def __init__(self, rule: ExploreRule) -> None:
        self._rule = rule

    @property
    def rule(self) -> ExploreRule:
        return self._rule

    def memory(self, rows: int) -> NDArray[np.float64]:
        return scratch(rows)


class Learning(NamedTuple):
    """How to learn.

    Attributes:
        beta: Weight of power in the reward.
        margin: Of the target rate, see ``rewards``.
        bandit: zTT's target as it runs, the reward alone, as its transitions all end (``done = 1``); otherwise that of the
            decision process, with what comes after.
        discount: Of what comes after; 0.99 in zTT's code, where it never takes effect.
        learning_rate: Of Adam, at first; it falls to nothing.
    """

    beta: float
    margin: float
    bandit: int
    discount: float
    learning_rate: float


class _Learner:
    """The Q-network while it learns: forward, gradient and Adam (arXiv 1412.6980).

    For a network this small a tensor library would spend its time on calls.
    """

    def __init__(self, sizes: tuple[int, ...], rng: np.random.Generator) -> None:
        self.parts: list[NDArray[np.float64]] = []  # weight, bias, weight, ...
        for fan_in, fan_out in pairwise(sizes):
            self.parts += [rng.normal(0.0, (2.0 / fan_in) ** 0.5, (fan_in, fan_out)), np.zeros(fan_out)]
        self._mean, self._square = ([np.zeros_like(part) for part in self.parts] for _ in range(2))
        self._steps = 0

    @property
    def network(self) -> Network:
        """As it stands."""
        parts = [part.copy() for part in self.parts]
        return Network(tuple(parts[::2]), tuple(parts[1::2]))

    def layers(self, states: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        """What goes into each layer, and what comes out of the last: (M, width) each."""
        found = [states]
        for at in range(0, len(self.parts), 2):
            out = found[-1] @ self.parts[at] + self.parts[at + 1]
            found.append(np.maximum(out, 0.0) if at + 2 < len(self.parts) else out)
        return found

    def gradients(
        self, states: NDArray[np.float64], actions: NDArray[np.int64], target: NDArray[np.float64]
    ) -> list[NDArray[np.float64]]:
        """Of half the mean squared error of the values of ``actions``, for each of ``parts``."""
        found, rows = self.layers(states), np.arange(len(actions))
        wrong = np.zeros_like(found[-1])
        wrong[rows, actions] = (found[-1][rows, actions] - target) / len(actions)
        out: list[NDArray[np.float64]] = []
        for at in range(len(self.parts) - 2, -1, -2):
            entering = found[at // 2]
            out[:0] = [entering.T @ wrong, wrong.sum(0)]
            wrong = (wrong @ self.parts[at].T) * (entering > 0.0)
        return out

    def descend(self, gradients: list[NDArray[np.float64]], rate: float) -> None:
        """One step of Adam."""
        self._steps += 1
        for part, gradient, mean, square in zip(self.parts, gradients, self._mean, self._square, strict=True):
            mean += 0.1 * (gradient - mean)
            square += 0.001 * (gradient**2 - square)
            scale = np.sqrt(square / (1.0 - 0.999**self._steps)) + 1e-8
            part -= rate * mean / (1.0 - 0.9**self._steps) / scale


def train(control: Control, depth: int, how: Learning, limits: Limits, seed: int) -> Network:
    """Learn the Q-network on the training split; the best of all rounds, as tuning judges them.

    Args:
        control: The scenario.
        depth: Layers of a decoded token.
        how: Reward, target and step size.
        limits: What tells the best.
        seed: Of weights, exploration and batches.
    """
    rng = np.random.default_rng(seed)
    table, documents = ChipTable.of(control), control.traces.documents("train")
    tokens = int(np.diff(control.traces.offset)[documents].sum())
    learner = _Learner((len(STATE), HIDDEN, HIDDEN, control.points), rng)
    judge, best, kept = Judge(control, limits, seed), (np.inf, np.inf), learner.network
    charged = charged_for(control, Ztt(table, kept, depth, {}), "train")
    memory: list[Transitions] = []
    for number in range(_ROUNDS):
        log = (np.zeros((tokens, len(STATE))), np.zeros(tokens, np.int64), np.zeros(1, np.int64))
        explorer = _Explorer(ExploreRule(table, learner.network, depth, _EPSILON**number, seed * _ROUNDS + number, *log))
        PolicyRunner(charged, explorer).run(documents, seed + number * tokens)
        memory.append(transitions(log[0], log[1], control.points))
        states, actions, after, ends = (np.concatenate(column) for column in zip(*memory, strict=True))
        if not len(actions):
            break  # responses of one token: nothing follows prefill
        gained, goes_on = rewards(after, how.beta, how.margin), ~ends & (not how.bandit)
        for update in range(_UPDATES):
            if update % _TARGET_EVERY == 0:  # the target network
                target = gained + how.discount * goes_on * learner.layers(after)[-1].max(1)
            rows = rng.integers(0, len(actions), _BATCH)
            rate = how.learning_rate * (1.0 - number / _ROUNDS)
            learner.descend(learner.gradients(states[rows], actions[rows], target[rows]), rate)
        learned = learner.network
        excess, figures, _ = judge(Ztt(table, learned, depth, {}))
        if (score := (excess, figures["energy_per_token_j"])) < best:
            best, kept = score, learned
    return kept
