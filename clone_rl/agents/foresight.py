"""A critic that knows what is to come: an input-dependent baseline (Mao et al., ICLR 2019, arXiv 1807.02264).

What a token costs depends most on which of its exits would do, and no action changes that: it is recorded. A critic that sees
the tokens to come takes this luck out of the advantages, and leaves them unbiased. The actor sees what a controller sees.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import MlpExtractor
from stable_baselines3.common.vec_env import VecEnvWrapper

from clone_rl.agents.risk import DISAGREE, KL
from clone_rl.agents.sb3 import Sb3VecEnv

_AHEAD = 4  # tokens that are shown one by one; those behind them as a sum
_NATS = 4.0  # dearer exits are as bad
_OF_REQUEST = ("growth", "slowdown", "to_busy", "to_idle")  # fields of ``STATE``


class Foresight(VecEnvWrapper):
    """Appends to observations, for the critic, what the trace holds for a row.

    Behind the observation come, of the token at hand, the chance of a disagreement and the nats of every exit, and what the
    rest of it would cost if left at its cheapest exit; the same of each of the next four tokens; of all tokens to come, the
    sum, and how many they are; and the time until the co-runner may change. Where chips differ from request to request, which
    one it is follows, how its leakage has grown with temperature, and how strong and how frequent the co-runner is.

    Args:
        venv: The native environment as SB3 sees it, its outcomes as training scores them.

    Attributes:
        seen: Scalars of the observation itself, which come first.
    """

    def __init__(self, venv: Sb3VecEnv) -> None:
        self._rows, self._world = venv.env._rows, venv.env.control.world
        outcome, space = self._world.outcome, venv.observation_space
        assert isinstance(space, Box)
        self.seen, self._exits = space.shape[0], outcome.shape[1]
        self._wrong, self._nats = outcome[..., DISAGREE], np.clip(outcome[..., KL], 0.0, _NATS)
        self._risk = np.concatenate([self._wrong, self._nats], 1)
        chips = len(self._world.prices.reference_j)
        self._chip = np.eye(chips) if chips > 1 else None
        of_request = chips + len(_OF_REQUEST) if chips > 1 else 0
        more = np.full(self._risk.shape[1] + 1 + _AHEAD + 3 + of_request, np.inf, np.float32)
        self._nothing = np.zeros_like(more)
        super().__init__(venv, Box(np.append(space.low, -more), np.append(space.high, more), dtype=np.float32))
        self.price(1.0, 1.0)

    def price(self, disagree: float, dnll: float) -> None:
        """What a disagreement and a nat cost, in full-depth tokens at the top point."""
        layers, tokens = self._exits + 1, len(self._wrong)
        depth = np.arange(1, layers + 1) / layers
        cost = np.concatenate([depth[:-1] + disagree * self._wrong + dnll * self._nats, np.ones((tokens, 1))], 1)
        # (T, L) from each exit on, the cheapest.
        self._cheapest = np.minimum.accumulate(cost[:, ::-1], 1)[:, ::-1]
        self._sums = np.concatenate([[0.0], np.cumsum(self._cheapest[:, 0])])

    def _shown(self, observation: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, width) observations with what is to come."""
        state = self._rows.state
        decoding, layer = state["token"] > 0, state["layer"].astype(np.int64)
        at, end = state["row"] + state["token"].astype(np.int64), state["row"] + state["tokens"]
        following = np.minimum(at + 1, end)
        rest = np.where(decoding, self._cheapest[at, np.maximum(layer - 1, 0)], 1.0)  # the exit at hand is still open
        columns = [observation, self._risk[at] * decoding[:, None], (rest - layer / (self._exits + 1))[:, None]]
        ahead = at[:, None] + np.arange(1, _AHEAD + 1)
        inside = ahead < end[:, None]
        columns.append(np.where(inside, self._cheapest[np.where(inside, ahead, 0), 0], 0.0))
        # Scaled to be of the order of 1, as all else is.
        columns.append(((self._sums[end] - self._sums[following]) / 64.0)[:, None])
        columns.append(((end - following) / 128.0)[:, None])
        columns.append(((state["slot_end_s"] - state["clock_s"]) / self._world.rules[0]["slot_s"])[:, None])
        if self._chip is not None:
            columns += [self._chip[state["variant"]], np.stack([state[name] for name in _OF_REQUEST], 1)]
        return np.concatenate(columns, 1, dtype=np.float32)

    def reset(self) -> NDArray[np.float32]:
        """Observations of new episodes."""
        return self._shown(np.asarray(self.venv.reset()))

    def step_wait(self) -> Any:
        """Step; behind the last observation of an episode nothing is to come."""
        observation, reward, done, infos = self.venv.step_wait()
        for i in np.flatnonzero(done):
            infos[i]["terminal_observation"] = np.append(infos[i]["terminal_observation"], self._nothing)
        return self._shown(np.asarray(observation)), reward, done, infos


class _First(torch.nn.Module):
    """The first scalars of an observation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., : self.width]


class ForesightPolicy(ActorCriticPolicy):
    """An SB3 policy whose actor sees the first scalars of an observation, and whose critic sees all.

    Args:
        *args, **settings: As of ``ActorCriticPolicy``.
        seen: How many the actor sees.
    """

    def __init__(self, *args: Any, seen: int, **settings: Any) -> None:
        self._seen = seen
        super().__init__(*args, **settings)

    def _build_mlp_extractor(self) -> None:
        super()._build_mlp_extractor()
        actor = MlpExtractor(self._seen, self.net_arch, self.activation_fn, self.device)
        self.mlp_extractor.policy_net = torch.nn.Sequential(_First(self._seen), *actor.policy_net)
