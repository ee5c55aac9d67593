"""Train a controller: SB3's PPO on the native vector environment, warm-started, within limits."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import LinearSchedule

from clone_rl.agents.checkpoint import learner_state, made_for, read_checkpoint, restore_learner, write_checkpoint
from clone_rl.agents.constraints import Multiplier
from clone_rl.agents.foresight import Foresight, ForesightPolicy
from clone_rl.agents.judge import Judge
from clone_rl.agents.origin import origin_of
from clone_rl.agents.policy import Policy
from clone_rl.agents.risk import expected_outcome
from clone_rl.agents.sb3 import Sb3VecEnv
from clone_rl.agents.telemetry import board, hyperparameters, mean_point, per_token
from clone_rl.agents.train_config import TrainConfig
from clone_rl.agents.tuning import tune
from clone_rl.agents.warm_start import clone, demonstrations
from clone_rl.bars import Bar
from clone_rl.envs import ENV_IDS
from clone_rl.envs import vector as vector_envs
from clone_rl.envs.control import load_control
from clone_rl.envs.scenario import Limits
from clone_rl.interrupt import stop_here

# A gamma of 0.99 ended 1 % worse than 0.999: slack is spent tokens later.
_HIDDEN = (24, 16)  # 961 parameters with 8 operating points: a deployable policy has fewer than 1,000
VALUE_ONLY = 4  # updates before the actor moves: an untrained value function would undo the warm start
_REWARD_SCALE = 0.1
_LEARNING_RATE = (3e-3, 2e-5)  # from, to; nearly all decisions are beyond doubt, so that steps are small nevertheless
_BATCH = 2048
_CLONE_STEPS, _CLONE_EPOCHS = 400, 30
_TEACHER_TRIALS, _STEPS_PER_TRIAL = 300, 20_000  # at most, of the teacher's search; a short training takes a short one
_EXIT_BIAS = -3.0  # logit of the exit action without a warm start: random exits are nearly always wrong
_SHARPNESS = 0.5  # of the cloned logits: a teacher's copy is so sure of itself that it explores nothing
_ENTROPY = (3e-3, 1e-4)  # weight, from, to: a geometric line
_PRICE = 1.0  # of every constraint at first, in full-depth tokens at the top point; the best stopping rule's is near it
_AIM = 0.95  # of each limit: multipliers that aim at the limit itself leave every other policy just beyond it
_JUDGE_EVERY = 2  # updates between two runs of the policy as it would be deployed, without exploration


class _Loop(BaseCallback):
    """What happens around rollouts and updates: checkpoints, multipliers, logs, the progress bar."""

    def __init__(self, run: Training, bar: Bar) -> None:
        super().__init__()
        self.run, self.bar = run, bar
        self._sums: dict[str, float] = {}
        self._since_s = time.monotonic()

    def _on_rollout_start(self) -> None:
        run = self.run
        # Between an update and the next rollout, where nothing is half done.
        if run.updates % run.config.checkpoint_every == 0:
            run.save_checkpoint()
        self._sums = {}
        first, last = _ENTROPY
        run.model.ent_coef = first * (last / first) ** min(1.0, run.model.num_timesteps / run.config.steps)
        frozen = run.updates < VALUE_ONLY and run.warm_start is not None
        for parameter in run.actor_parameters():
            parameter.requires_grad_(not frozen)

    def _on_step(self) -> bool:
        stop_here()
        for info in self.locals["infos"]:
            if info:
                for name, value in info["figures"].items():
                    self._sums[name] = self._sums.get(name, 0.0) + value
        return True

    def _on_rollout_end(self) -> None:
        run, sums = self.run, self._sums
        if tokens := sums.get("tokens", 0):
            for name, value in per_token(sums).items():
                self.logger.record(f"explore/{name}", value)
            for name in ("reward_energy", "reward_late", "reward_disagree", "reward_kl"):
                self.logger.record(f"reward/{name.removeprefix('reward_')}", sums[name] / tokens)
        for name, value in mean_point(self.locals["rollout_buffer"].observations, run.env.control).items():
            self.logger.record(f"explore/{name}", value)
        if run.updates % run.judge_every == 0:
            means = run.judge()
            for name, value in means.items():
                self.logger.record(f"control/{name}", value)
            run.record_best()
            self.bar.set_postfix(
                uJ=f"{means['energy_per_token_j'] * 1e6:.2f}",
                late=f"{means['miss_rate']:.2%}",
                differs=f"{means['disagreement']:.2%}",
                depth=f"{means['mean_depth']:.1f}",
            )
        for name, multiplier in run.multipliers.items():
            self.logger.record(f"multiplier/{name}", multiplier.value)
        now_s = time.monotonic()
        self.logger.record("time/decisions_per_s", run.config.envs * run.config.rollout / (now_s - self._since_s))
        self._since_s = now_s
        run.updates += 1
        self.bar.update(min(run.config.steps, run.model.num_timesteps) - self.bar.n)


def aimed_at(limits: Limits, name: str) -> Multiplier:
    """The price of one limit, where training starts."""
    return Multiplier(_AIM * float(getattr(limits, name)), _PRICE)


def _macs(config: TrainConfig, stem: str) -> int:
    """Multiply-accumulates of a decision of the policy to be trained."""
    kind = "layer" if stem == "LayerControl" else "token"
    control = load_control(kind, config.scenario, **config.changes)
    sizes = (*control.observation_space.shape, *_HIDDEN, sum(control.heads))
    return sum(a * b for a, b in pairwise(sizes))


class Training:
    """One training run.

    Args:
        config: What to train.
        folder: Run folder, which must exist; ``checkpoint.pt`` and ``tensorboard/`` are written there. None keeps nothing.
        resume: Continue from ``folder/checkpoint.pt``: the same run, bit for bit, as one that was never interrupted.

    Attributes:
        config: What to train, with the limits that the scenario gave.
        limits: What the policy has to hold.
        model: SB3's PPO.
        multipliers: The price of each constraint.
        warm_start: The teacher's settings and how well it was cloned; None after a cold start.

    Raises:
        BadFileError: There is no checkpoint to resume, or it is of another configuration, scenario, chip or trace set.
    """

    judge_every = _JUDGE_EVERY

    def __init__(self, config: TrainConfig, folder: Path | None = None, resume: bool = False) -> None:
        self.folder, self.updates = folder, 0
        self._unwritten: dict[str, float] = {}
        self.warm_start: dict[str, Any] | None = None
        self._best: tuple[tuple[float, float], Policy] | None = None
        torch.manual_seed(config.seed)
        torch.set_num_threads(1)  # networks this small lose more to synchronisation than a second core gives
        stem = ENV_IDS[config.env_id]
        self.env = getattr(vector_envs, f"{stem}VectorEnv")(
            num_envs=config.envs, scenario=config.scenario, split="train", policy_macs=_macs(config, stem), **config.changes
        )
        self.scenario = config.load()
        self.config = config = config.resolved(self.scenario)
        self.limits = limits = config.limits(self.scenario)
        self.multipliers = self._priced()
        self._judge = Judge(self.env.control, limits, config.seed)
        self.env.set_outcome(expected_outcome(self.env.control))
        self.adapter = self._adapted(_REWARD_SCALE)
        self.foresight = Foresight(self.adapter)
        self.model = PPO(
            ForesightPolicy,
            self.foresight,
            learning_rate=LinearSchedule(*_LEARNING_RATE, 1.0),
            n_steps=config.rollout,
            batch_size=min(_BATCH, config.envs * config.rollout),
            n_epochs=4,
            gamma=0.999,
            gae_lambda=0.97,
            ent_coef=_ENTROPY[0],
            clip_range=0.2,
            target_kl=0.03,
            policy_kwargs={"net_arch": {"pi": list(_HIDDEN), "vf": [64, 64]}, "seen": self.foresight.seen},
            seed=config.seed,
            device="cpu",
        )
        if resume and folder is not None:
            self._restore(folder)

    def _priced(self) -> dict[str, Multiplier]:
        """The price of each constraint at first."""
        return {name: aimed_at(self.limits, name) for name in asdict(self.limits)}

    def _adapted(self, reward_scale: float) -> Sb3VecEnv:
        """The environment as SB3 sees it."""
        return Sb3VecEnv(self.env, reward_scale)

    def actor_parameters(self) -> list[Any]:
        """Parameters of the policy, without those of the value function."""
        policy = self.model.policy
        return [*policy.mlp_extractor.policy_net.parameters(), *policy.action_net.parameters()]

    def apply_multipliers(self) -> None:
        """Hand the prices to the environment as reward weights."""
        m = self.multipliers
        self.env.set_weights(late=m["miss"].value, disagree=m["disagree"].value, kl=m["dnll"].value)
        self.foresight.price(m["disagree"].value, m["dnll"].value)

    def judge(self) -> dict[str, float]:
        """Run the actor as it would be deployed; move the multipliers; keep it if it is the best so far.

        The multipliers follow what the most probable actions come to, not the exploring policy, whose random exits are nearly
        always wrong. The best has the least energy within the limits; where none is within, it breaks them least.

        Returns:
            Means per token on the training split.
        """
        policy = self.policy()
        excess, figures, measured = self._judge(policy)
        if self.updates >= VALUE_ONLY:
            for name, multiplier in self.multipliers.items():
                multiplier.update(getattr(measured, name))
            self.apply_multipliers()
        score = (excess, figures["energy_per_token_j"])
        if self._best is None or score < self._best[0]:
            self._best = (score, policy)
        return figures

    def start(self) -> None:
        """Warm start: tune pacing and clone it, into ``warm_start``. Token control starts cold."""
        if self.env.control.kind != "layer":
            return
        observations, actions, described = self._demonstrations(_CLONE_STEPS)
        with torch.no_grad():
            self.actor_parameters()[-1][-1] = _EXIT_BIAS
        agreement = clone(self.model.policy, observations, actions, _CLONE_EPOCHS, self.config.seed, show=True)
        with torch.no_grad():
            for logits in self.actor_parameters()[-2:]:
                logits *= _SHARPNESS
        self.warm_start = {**described, "cloned": round(agreement, 4)}

    def _demonstrations(self, steps: int) -> tuple[NDArray[np.float32], NDArray[np.int64], dict[str, Any]]:
        """What tuned pacing saw and did, and its settings."""
        bar = partial(Bar, desc="warm start: tune pacing", unit="trial")
        trials = max(1, min(_TEACHER_TRIALS, self.config.steps // _STEPS_PER_TRIAL))
        pace = tune("pace", self.env.control, self.limits, trials, self.config.seed, progress=bar).controller
        return *demonstrations(self.env, pace, steps, self.config.seed), pace.describe()

    def learn(self) -> None:
        """Train to ``config.steps``; a finished run is left as it is.

        Raises:
            KeyboardInterrupt: Ctrl-C; the last checkpoint is there.
        """
        config, model = self.config, self.model
        if (remaining := config.steps - model.num_timesteps) <= 0:
            return
        done, folder = model.num_timesteps, self.folder and self.folder / "tensorboard"
        model.set_logger(board(folder, done + 1 if done else None))
        if not done:
            exclude = ("stdout", "log", "json", "csv")
            model.logger.record("hyperparameters", hyperparameters(config.shown(), self._settings()), exclude)
        for name, value in self._unwritten.items():
            model.logger.record(name, value)
        self.apply_multipliers()
        bar = Bar(total=config.steps, initial=done, desc="train", unit="dec", unit_scale=True)
        try:
            model.learn(remaining, callback=_Loop(self, bar), reset_num_timesteps=False)
            self.judge()
            self.record_best()
            model.logger.dump(model.num_timesteps)
        finally:
            bar.close()  # an error is reported on a line of its own
            model.logger.close()
        self.save_checkpoint()

    def _settings(self) -> dict[str, Any]:
        """What is not in the configuration, for the summary of hyperparameters."""
        names = ("batch_size", "n_epochs", "gamma", "gae_lambda", "target_kl")
        return {
            **{name: getattr(self.model, name) for name in names},
            "learning_rate": _LEARNING_RATE[0],
            "learning_rate_end": _LEARNING_RATE[1],
            "hidden": " ".join(map(str, _HIDDEN)),
            "warm_start": self.warm_start is not None,
            "reward_scale": _REWARD_SCALE,
            "entropy": _ENTROPY[0],
            "entropy_end": _ENTROPY[1],
            "sharpness": _SHARPNESS,
            "aim": _AIM,
        }

    def record_best(self) -> None:
        """Log the energy of the best policy so far, and by how much it breaks the limits."""
        if self._best is not None:
            excess, energy_j = self._best[0]
            self.model.logger.record("best/excess", excess)
            self.model.logger.record("best/energy_per_token_j", energy_j)

    def best(self) -> Policy:
        """The best policy that ``judge`` has seen; the actor as it stands before that."""
        return self._best[1] if self._best else self.policy()

    def save_checkpoint(self) -> None:
        """Replace ``checkpoint.pt`` in the folder, if there is one."""
        if self.folder is None:
            return
        best = None
        if self._best is not None:
            score, policy = self._best
            best = (score, policy.card["decisions"], [tuple(map(torch.from_numpy, layer)) for layer in policy.layers])
        content = {
            "config": asdict(self.config),
            "made_for": made_for(self.env.control),
            "learner": learner_state(self.model),
            "rows": {name: torch.from_numpy(array) for name, array in self.adapter.get_state().items()},
            "updates": self.updates,
            "warm_start": self.warm_start,
            "multipliers": {name: m.state() for name, m in self.multipliers.items()},
            "best": best,
        }
        write_checkpoint(self.folder, content)

    def _restore(self, folder: Path) -> None:
        state = read_checkpoint(folder, asdict(self.config), made_for(self.env.control))
        restore_learner(self.model, state["learner"])
        self._unwritten = state["learner"]["unwritten"]
        self.adapter.set_state({name: array.numpy() for name, array in state["rows"].items()})
        self.updates, self.warm_start = state["updates"], state["warm_start"]
        for name, multiplier in self.multipliers.items():
            multiplier.restore(state["multipliers"][name])
        if state["best"] is not None:
            score, decisions, layers = state["best"]
            weights = tuple((weight.numpy(), bias.numpy()) for weight, bias in layers)
            policy = self.policy()
            self._best = (tuple(score), replace(policy, layers=weights, card={**policy.card, "decisions": decisions}))

    def _weights(self) -> tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]:
        """Of the actor's layers."""
        arrays = [parameter.detach().numpy().copy() for parameter in self.actor_parameters()]
        return tuple(zip(arrays[::2], arrays[1::2], strict=True))

    def _card(self, name: str) -> dict[str, Any]:
        """What a policy's file says of where it comes from."""
        control = self.env.control
        return {
            "name": name,
            "env_id": self.config.env_id,
            "scenario": self.scenario.name,
            "chip": self.scenario.chip_name,
            **origin_of(self.scenario),
            "traces_sha256": control.traces.card.get("sha256", ""),
            "model_sha256": control.traces.card.get("model_sha256", ""),
            "limits": asdict(self.limits),
            "config": self.config.shown(),
            "decisions": int(self.model.num_timesteps),
        }

    def policy(self, name: str = "policy") -> Policy:
        """The actor as it stands, as weights."""
        control = self.env.control
        return Policy(self._weights(), control.heads, self._card(name), name, signals=control.scenario.signals)
