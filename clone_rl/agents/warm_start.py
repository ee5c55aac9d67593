"""Behaviour cloning of a tuned heuristic: where PPO starts, because from scratch it first unlearns to exit."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from clone_rl.agents.controller import Controller
from clone_rl.bars import Bar
from clone_rl.interrupt import stop_here


def demonstrations(
    env: Any, controller: Controller, steps: int, seed: int, deviate: float = 0.1
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Observations and what the controller does there, along rollouts in which some actions are random.

    Args:
        env: Native vector environment.
        controller: The teacher.
        steps: Steps of every row.
        seed: Of the rollouts and the random actions.
        deviate: Share of random actions, which show states that the teacher alone would not reach.

    Returns:
        (M, 16) float32 observations and (M, heads) actions.
    """
    rng = np.random.default_rng(seed)
    observation, _ = env.reset(seed=seed)
    seen, done = [], []
    for _ in range(steps):
        stop_here()
        action = controller.act(observation)
        seen.append(observation)
        done.append(action)
        random = rng.integers(0, env.control.heads, size=action.shape)
        taken = np.where(rng.random((len(action), 1)) < deviate, random, action)
        observation = env.step(taken)[0]
    return np.concatenate(seen), np.concatenate(done)


def clone(
    policy: Any,
    observations: NDArray[np.float32],
    actions: NDArray[np.int64],
    epochs: int,
    seed: int,
    batch: int = 512,
    show: bool = False,
) -> float:
    """Fit an SB3 policy's actor by maximum likelihood; ``show`` draws a progress bar.

    Returns:
        Share of demonstrated actions that the fitted policy's most probable action equals.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.from_numpy(observations)
    y = torch.from_numpy(actions).squeeze(1) if actions.shape[1] == 1 else torch.from_numpy(actions)
    optimiser = torch.optim.Adam([*policy.mlp_extractor.policy_net.parameters(), *policy.action_net.parameters()], lr=3e-3)
    steps = epochs * -(-len(x) // batch)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.05, steps)
    for _ in Bar(range(epochs), desc="warm start: clone it", unit="epoch", disable=not show):
        for rows in torch.randperm(len(x), generator=generator).split(batch):
            loss = -policy.get_distribution(x[rows]).log_prob(y[rows]).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    with torch.no_grad():
        return float((policy.get_distribution(x).mode() == y).float().mean())
