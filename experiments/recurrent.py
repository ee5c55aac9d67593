"""Does memory help? PPO with and without an LSTM, from the same teacher, at the same fixed prices of what the limits are on.

    python experiments/recurrent.py --steps 3000000 --out recurrent.json

Prices are near those that the training of ``default`` ends with (``multiplier/`` of its TensorBoard), in full-depth tokens.
Both clone tuned pacing, and are judged on the test requests by what they are trained for: energy and priced lateness,
disagreement and dNLL, in full-depth tokens per token.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from clone_rl.agents import ppo
from clone_rl.agents.policy import Policy
from clone_rl.agents.risk import expected_outcome
from clone_rl.agents.rollout import run_requests
from clone_rl.agents.sb3 import Sb3VecEnv
from clone_rl.cli.controllers import make_controller
from clone_rl.envs.control import load_control
from clone_rl.envs.vector import LayerControlVectorEnv
from clone_rl.files import replacing

PRICES = {"late": 1.0, "disagree": 1.56, "kl": 0.45}
_MACS = Policy.load("default").macs  # charged to both: what is asked is whether memory helps, not what it takes
_UNITS, _ENVS, _CLONE_STEPS, _CLONE_EPOCHS = 32, 256, 400, 60


class _Called:
    """An SB3 policy as a controller that is asked for all requests at once."""

    name, kind, macs, probes = "sb3", "layer", _MACS, True

    def __init__(self, model: Any) -> None:
        self._model, self._state = model, None

    def act(self, observations: NDArray[np.float32]) -> NDArray[np.int64]:
        """The most probable actions."""
        actions, self._state = self._model.predict(
            observations, self._state, np.full(len(observations), self._state is None), deterministic=True
        )
        return np.asarray(actions, np.int64).reshape(len(observations), 1)

    def describe(self) -> dict[str, Any]:
        """Nothing to set."""
        return {}


def _cost(figures: NDArray[np.void], reference_j: float) -> dict[str, float]:
    """Means per token, and what they come to at the prices."""
    tokens = figures["tokens"].sum()
    means = {name: float(figures[name].sum() / tokens) for name in ("energy_j", "late", "disagree", "dnll", "depth")}
    priced = PRICES["late"] * means["late"] + PRICES["disagree"] * means["disagree"] + PRICES["kl"] * means["dnll"]
    return {**means, "cost": means["energy_j"] / reference_j + priced}


def _actor(model: Any) -> list[Any]:
    """Parameters of the policy, without those of the value function."""
    policy = model.policy
    parts = [
        policy.mlp_extractor.policy_net,
        policy.action_net,
        *([policy.lstm_actor] if isinstance(model, RecurrentPPO) else []),
    ]
    return [parameter for part in parts for parameter in part.parameters()]


def _clone(model: Any, env: LayerControlVectorEnv, seed: int) -> float:
    """Fit the actor to what tuned pacing does, and halve its logits; the mean probability of its actions in the end."""
    teacher = make_controller("pace", env.control)
    observation, starts = env.reset(seed=seed)[0], np.ones(_ENVS, bool)
    seen: list[Any] = []
    done: list[Any] = []
    begins: list[Any] = []
    for _ in range(_CLONE_STEPS):
        actions = teacher.act(observation)[:, 0]
        for column, entries in ((seen, observation), (done, actions), (begins, starts)):
            column.append(entries)
        observation, _, terminated, truncated, _ = env.step(actions)
        starts = terminated | truncated
    # One row of a batch for each step of an environment, those of one environment together.
    x, y, first = (torch.as_tensor(np.stack(column, 1)) for column in (seen, done, begins))
    recurrent, optimiser = isinstance(model, RecurrentPPO), torch.optim.Adam(_actor(model), 3e-3)
    for _ in range(_CLONE_EPOCHS):
        for some in torch.randperm(_ENVS, generator=torch.Generator().manual_seed(seed)).split(32):
            flat = x[some].flatten(0, 1), y[some].flatten()
            if recurrent:
                nothing = torch.zeros(1, len(some), _UNITS)
                states = RNNStates((nothing, nothing), (nothing, nothing))
                _, likelihood, _ = model.policy.evaluate_actions(*flat, states, first[some].flatten().float())
            else:
                _, likelihood, _ = model.policy.evaluate_actions(*flat)
            optimiser.zero_grad()
            (-likelihood.mean()).backward()
            optimiser.step()
    with torch.no_grad():
        for logits in model.policy.action_net.parameters():
            logits *= ppo._SHARPNESS
    return float(likelihood.detach().exp().mean())


class _Frozen(BaseCallback):
    """Holds the actor while the value function has its first updates."""

    def __init__(self) -> None:
        super().__init__()
        self._rollouts = 0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        for parameter in _actor(self.model):
            parameter.requires_grad_(self._rollouts >= ppo.VALUE_ONLY)
        self._rollouts += 1


def _trained(recurrent: bool, steps: int, seed: int) -> tuple[Any, float]:
    torch.set_num_threads(1)
    env = LayerControlVectorEnv(num_envs=_ENVS, scenario="default", split="train", policy_macs=_MACS)
    env.set_outcome(expected_outcome(env.control))
    env.set_weights(**PRICES)
    shared: dict[str, Any] = {
        "learning_rate": 1e-3, "n_steps": 128, "batch_size": 2048, "n_epochs": 4, "gamma": 0.999, "gae_lambda": 0.97,
        "ent_coef": 1e-3, "target_kl": 0.03, "seed": seed, "device": "cpu",
    }  # fmt: skip
    layers = {"net_arch": {"pi": list(ppo._HIDDEN), "vf": [64, 64]}}
    adapter = Sb3VecEnv(env, ppo._REWARD_SCALE)
    model: Any
    if recurrent:
        model = RecurrentPPO("MlpLstmPolicy", adapter, policy_kwargs={**layers, "lstm_hidden_size": _UNITS}, **shared)
    else:
        model = PPO("MlpPolicy", adapter, policy_kwargs=layers, **shared)
    cloned = _clone(model, env, seed)
    return model.learn(steps, callback=_Frozen(), progress_bar=True) if steps else model, cloned


def main() -> int:
    """Train both and compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3_000_000, help="decisions of each (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="training seeds (default: %(default)s)")
    parser.add_argument("--out", default="recurrent.json", help="file (default: %(default)r)")
    options = parser.parse_args()
    control = load_control("layer", "default", "test")
    documents, reference_j = control.traces.documents("test"), float(control.prices.reference_j[0])
    found: list[dict[str, Any]] = []

    def judge(name: str, controller: Any, **more: Any) -> None:
        row = {"name": name, **more, **_cost(run_requests(control, controller, "test", documents, 0), reference_j)}
        found.append(row)
        with replacing(Path(options.out)) as aside:
            aside.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{name}: cost {row['cost']:.4f}, {row['energy_j'] * 1e6:.3f} uJ/token, {more}", flush=True)

    for name in ("pace", "default"):
        judge(name, make_controller(name, control))
    for seed in range(options.seeds):
        for recurrent in (False, True):
            began_s = time.monotonic()
            model, cloned = _trained(recurrent, options.steps, seed)
            told = {"seed": seed, "steps": options.steps, "cloned": cloned, "seconds": round(time.monotonic() - began_s)}
            judge("recurrent" if recurrent else "feedforward", _Called(model), **told)
    return 0


if __name__ == "__main__":
    sys.exit(main())
