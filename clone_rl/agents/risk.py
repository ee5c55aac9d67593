"""What leaving at an exit can be expected to cost, given what a controller sees there.

Whether an exit agrees with full depth is a coin flip to a controller, and a rare, dear one: in the advantages of PPO it drowns
what an operating point saves. Training is therefore scored by the flip's expectation (Rao-Blackwell), which a small network
learns from the training tokens; controllers are judged, as ever, by what happened.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from clone_rl.bars import Bar
from clone_rl.envs.control import Control
from clone_rl.interrupt import stop_here

_HIDDEN = 48
_EPOCHS, _BATCH, _LEARNING_RATE, _DECAY = 8, 2048, 3e-3, 1e-2
_NATS = (-2.0, 4.0)  # single tokens beyond would decide the fit
DISAGREE, DNLL, KL = range(3)
"""Columns of ``World.outcome``."""


def _features(seen: NDArray[np.float32]) -> torch.Tensor:
    """(T, E, 3 + E) the probe as it is observed at every exit, its agreement at the exit before, and which exit it is."""
    tokens, exits, _ = seen.shape
    before = np.concatenate([np.zeros_like(seen[:, :1, :1]), seen[:, :-1, :1]], 1)
    which = np.broadcast_to(np.eye(exits, dtype=np.float32), (tokens, exits, exits))
    return torch.from_numpy(np.concatenate([seen, before, which], 2, dtype=np.float32))


def expected_outcome(control: Control, seed: int = 0) -> NDArray[np.float32]:
    """``World.outcome`` with expectations for what a token happened to cost.

    Args:
        control: The scenario; the training tokens of its traces are learned from.
        seed: Of the fit, which leaves the global random numbers alone.

    Returns:
        (T, L - 1, 3) chance of disagreement, dNLL as it was, and expected dNLL, nats, in place of the KL, for every exit.
    """
    traces, world = control.traces, control.world
    learned = np.zeros(len(world.outcome), bool)
    learned[traces.decoded(traces.documents("train"))] = True
    outcome, x = np.array(world.outcome), _features(world.seen)
    if not learned.any():
        return outcome
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = torch.nn.Sequential(
            torch.nn.Linear(x.shape[2], _HIDDEN),
            torch.nn.Tanh(),
            torch.nn.Linear(_HIDDEN, _HIDDEN),
            torch.nn.Tanh(),
            torch.nn.Linear(_HIDDEN, 2),
        )
        rows = x[torch.from_numpy(learned)].flatten(0, 1)
        happened = torch.from_numpy(outcome[learned]).flatten(0, 1)
        differs, nats = happened[:, DISAGREE], happened[:, DNLL].clamp(*_NATS)
        optimiser = torch.optim.AdamW(net.parameters(), _LEARNING_RATE, weight_decay=_DECAY)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, _EPOCHS * -(-len(rows) // _BATCH))
        for _ in Bar(range(_EPOCHS), desc="what exits cost", unit="epoch"):
            for some in torch.randperm(len(rows)).split(_BATCH):
                stop_here()
                chance, cost = net(rows[some]).unbind(1)
                loss = torch.nn.functional.binary_cross_entropy_with_logits(chance, differs[some])
                loss = loss + torch.nn.functional.mse_loss(torch.nn.functional.softplus(cost), nats[some])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
    with torch.no_grad():
        chance, cost = net(x).unbind(2)
        outcome[..., DISAGREE] = torch.sigmoid(chance).numpy()
        outcome[..., KL] = torch.nn.functional.softplus(cost).numpy()
    return outcome
