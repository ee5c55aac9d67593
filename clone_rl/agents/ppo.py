"""Train a controller: SB3's PPO on the native vector environment, warm-started, within limits."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import LinearSchedule
from tqdm import tqdm

from clone_rl.agents.constraints import Multiplier
from clone_rl.agents.policy import Policy
from clone_rl.agents.rollout import run_requests
from clone_rl.agents.sb3 import Sb3VecEnv
from clone_rl.agents.tune import tune_pace
from clone_rl.agents.warm_start import clone, demonstrations
from clone_rl.envs import ENV_IDS, check_env_id
from clone_rl.envs import vector as vector_envs
from clone_rl.envs.control import load_control
from clone_rl.envs.figures import FIGURES
from clone_rl.envs.scenario import Limits, Scenario
from clone_rl.errors import BadFileError, BadValueError
from clone_rl.files import replacing


@dataclass(frozen=True)
class TrainConfig:
    """What to train. The field docs are the help of ``clone-rl train``.

    Attributes:
        env_id: Environment: clone_rl/LayerControl-v0 or clone_rl/TokenControl-v0.
        scenario: Scenario, a shipped name or a TOML file.
        chip: Chip, a shipped name or a TOML file; empty takes the scenario's.
        traces: Trace set, a shipped name or a folder; empty takes the scenario's.
        steps: Decisions to train for (rounded up to whole rollouts).
        seed: Seed of everything random.
        envs: Parallel environments.
        rollout: Decisions of each environment between two updates.
        max_miss: Highest share of late tokens; None takes the scenario's.
        max_disagree: Highest share of tokens that differ from full depth; None takes the scenario's.
        max_dnll: Highest increase of the negative log-likelihood, nats per token; None takes the scenario's.
        checkpoint_every: Updates between two checkpoints.
    """

    env_id: str = "clone_rl/LayerControl-v0"
    scenario: str = "default"
    chip: str = ""
    traces: str = ""
    steps: int = 1_000_000
    seed: int = 0
    envs: int = 256
    rollout: int = 128
    max_miss: float | None = None
    max_disagree: float | None = None
    max_dnll: float | None = None
    checkpoint_every: int = 5

    def __post_init__(self) -> None:
        check_env_id(self.env_id)
        for name in ("steps", "envs", "rollout", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise BadValueError(f"{name} is {getattr(self, name)}", "at least 1")
        if not 0 <= self.seed < 2**31:
            raise BadValueError(f"seed is {self.seed}", f"0 or more, at most {2**31 - 1}")
        if self.envs * self.rollout < 2:
            raise BadValueError(f"envs x rollout is {self.envs * self.rollout}", "at least 2 decisions between two updates")
        Limits().but(self.max_miss, self.max_disagree, self.max_dnll)  # checks them before a run folder is made

    def limits(self, scenario: Scenario) -> Limits:
        """What training has to hold in a scenario."""
        return scenario.limits.but(self.max_miss, self.max_disagree, self.max_dnll)

    def resolved(self, scenario: Scenario) -> Self:
        """The same with the scenario's limits written out: what a run keeps, whatever becomes of the scenario's file."""
        limits = self.limits(scenario)
        return replace(self, max_miss=limits.miss, max_disagree=limits.disagree, max_dnll=limits.dnll)

    @property
    def changes(self) -> dict[str, Any]:
        """Fields of the scenario that are replaced."""
        return {name: value for name, value in (("chip", self.chip), ("traces", self.traces)) if value}


# With gamma 0.98 and lambda 0.9 a policy never leaves "never exit": hence 0.999 and 0.97 below.
_HIDDEN = (24, 16)  # 961 parameters with 8 operating points: a deployable policy has fewer than 1,000
_VALUE_ONLY = 4  # updates before the actor moves: an untrained value function would undo the warm start
_REWARD_SCALE = 0.1
_CLONE_STEPS, _CLONE_EPOCHS = 400, 30
_EXIT_BIAS = -3.0  # logit of the exit action without a warm start: random exits are nearly always wrong
_SAFETY = 0.85  # training aims at this share of each limit, because a policy is judged on other requests
_JUDGE_EVERY = 2  # updates between two runs of the policy as it would be deployed, without exploration


def control_means(sums: dict[str, Any]) -> dict[str, float]:
    """Figures per token from sums over requests."""
    tokens = sums["tokens"]
    return {
        "energy_per_token_j": float(sums["energy_j"] / tokens),
        "miss_rate": float(sums["late"] / tokens),
        "disagreement": float(sums["disagree"] / tokens),
        "dnll": float(sums["dnll"] / tokens),
        "mean_depth": float(sums["depth"] / tokens),
        "switches_per_token": float(sums["switches"] / tokens),
    }


class _Progress(BaseCallback):
    """After every rollout: multipliers, logs, checkpoint, progress bar."""

    def __init__(self, run: Training) -> None:
        super().__init__()
        self.run = run
        self.bar: Any = None
        self._sums: dict[str, float] = {}
        self._began = time.monotonic()

    def _on_training_start(self) -> None:
        config = self.run.config
        self.bar = tqdm(
            total=config.steps,
            initial=self.run.model.num_timesteps,
            desc="train",
            unit="dec",
            unit_scale=True,
            file=sys.stderr,
        )

    def _on_rollout_start(self) -> None:
        self._sums = {}
        self._began = time.monotonic()
        frozen = self.run.updates < _VALUE_ONLY and self.run.warm_start is not None
        for parameter in self.run.actor_parameters():
            parameter.requires_grad_(not frozen)

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if info:
                for name, value in info["figures"].items():
                    self._sums[name] = self._sums.get(name, 0.0) + value
        return True

    def _on_rollout_end(self) -> None:
        run, sums = self.run, self._sums
        if tokens := sums.get("tokens", 0):
            for name, value in control_means(sums).items():
                self.logger.record(f"explore/{name}", value)
            for name in ("reward_energy", "reward_late", "reward_disagree", "reward_kl"):
                self.logger.record(f"reward/{name.removeprefix('reward_')}", sums[name] / tokens)
        if run.updates % _JUDGE_EVERY == 0:
            means = run.judge()
            for name, value in means.items():
                self.logger.record(f"control/{name}", value)
            for name, multiplier in run.multipliers.items():
                self.logger.record(f"multiplier/{name}", multiplier.value)
            self.bar.set_postfix(
                uJ=f"{means['energy_per_token_j'] * 1e6:.2f}",
                late=f"{means['miss_rate']:.2%}",
                differs=f"{means['disagreement']:.2%}",
                depth=f"{means['mean_depth']:.1f}",
            )
        config = run.config
        self.logger.record("time/decisions_per_s", config.envs * config.rollout / (time.monotonic() - self._began))
        run.updates += 1
        if run.updates % config.checkpoint_every == 0:
            # The update after this rollout is not in it: resuming repeats at most one interval.
            run.save_checkpoint()
        self.bar.update(min(config.steps, run.model.num_timesteps) - self.bar.n)

    def close(self) -> None:
        """End the progress bar."""
        if self.bar is not None:
            self.bar.close()


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
        folder: Run folder, which must exist; ``checkpoint.pt`` and ``tensorboard/`` are written there.
        resume: Continue from ``folder/checkpoint.pt``.

    Attributes:
        config: What to train, with the limits that the scenario gave.
        limits: What the policy has to hold.
        model: SB3's PPO.
        multipliers: The price of each constraint.
        warm_start: The teacher's settings and how well it was cloned; None after a cold start.

    Raises:
        BadFileError: There is no checkpoint to resume, or it is of another configuration.
    """

    def __init__(self, config: TrainConfig, folder: Path, resume: bool = False) -> None:
        self.folder, self.updates = folder, 0
        self.warm_start: dict[str, Any] | None = None
        self._best: tuple[tuple[float, float], Policy] | None = None
        torch.manual_seed(config.seed)
        torch.set_num_threads(1)  # networks this small lose more to synchronisation than a second core gives
        stem = ENV_IDS[config.env_id]
        self.env = getattr(vector_envs, f"{stem}VectorEnv")(
            num_envs=config.envs, scenario=config.scenario, split="train", policy_macs=_macs(config, stem), **config.changes
        )
        scenario = self.env.control.scenario
        self.config = config = config.resolved(scenario)
        self.limits = limits = config.limits(scenario)
        weights = scenario.weights
        self.multipliers = {
            "late": Multiplier(limits.miss * _SAFETY, weights.late),
            "disagree": Multiplier(limits.disagree * _SAFETY, weights.disagree),
            "dnll": Multiplier(limits.dnll * _SAFETY, weights.kl),
        }
        self.model = PPO(
            "MlpPolicy",
            Sb3VecEnv(self.env, _REWARD_SCALE),
            learning_rate=LinearSchedule(1e-3, 2e-5, 1.0),
            n_steps=config.rollout,
            batch_size=min(8192, config.envs * config.rollout),
            n_epochs=4,
            gamma=0.999,
            gae_lambda=0.97,
            ent_coef=0.0,
            clip_range=0.2,
            target_kl=0.03,
            policy_kwargs={"net_arch": {"pi": list(_HIDDEN), "vf": [64, 64]}},
            seed=config.seed,
            device="cpu",
        )
        if resume:
            self._restore()

    def actor_parameters(self) -> list[Any]:
        """Parameters of the policy, without those of the value function."""
        policy = self.model.policy
        return [*policy.mlp_extractor.policy_net.parameters(), *policy.action_net.parameters()]

    def apply_multipliers(self) -> None:
        """Hand the prices to the environment as reward weights."""
        m = self.multipliers
        self.env.set_weights(late=m["late"].value, disagree=m["disagree"].value, kl=m["dnll"].value)

    def judge(self) -> dict[str, float]:
        """Run the actor as it would be deployed; move the multipliers; keep it if it is the best so far.

        The multipliers follow the training requests of the most probable actions, not of the exploring policy, whose
        random exits are nearly always wrong. The best is the one with the least energy on the validation split among those
        within ``_SAFETY`` of the limits on both splits; where none is, the one that breaks them least.

        Returns:
            Means per token on the training split.
        """
        policy, limits = self.policy(), self.limits
        means, excess = {}, 0.0
        for split in ("train", "validation"):
            documents = self.env.control.traces.documents(split)
            figures = run_requests(self.env.control, policy, split, documents, self.config.seed)
            means[split] = control_means({name: figures[name].sum() for name in FIGURES.names or ()})
            for key, limit in (("miss_rate", limits.miss), ("disagreement", limits.disagree), ("dnll", limits.dnll)):
                excess += max(0.0, means[split][key] - _SAFETY * limit)
        if self.updates >= _VALUE_ONLY:
            for name, key in (("late", "miss_rate"), ("disagree", "disagreement"), ("dnll", "dnll")):
                self.multipliers[name].update(means["train"][key])
            self.apply_multipliers()
        score = (excess, means["validation"]["energy_per_token_j"])
        if self._best is None or score < self._best[0]:
            self._best = (score, policy)
        return means["train"]

    def start(self) -> None:
        """Warm start: tune pacing and clone it, into ``warm_start``. Token control starts cold."""
        if self.env.control.kind != "layer":
            return
        bar = partial(tqdm, desc="warm start: tune pacing", unit="setting", file=sys.stderr)
        pace = tune_pace(self.env.control, self.limits, self.config.seed, bar)
        observations, actions = demonstrations(self.env, pace, _CLONE_STEPS, self.config.seed)
        with torch.no_grad():
            self.actor_parameters()[-1][-1] = _EXIT_BIAS
        agreement = clone(self.model.policy, observations, actions, _CLONE_EPOCHS, self.config.seed, show=True)
        self.warm_start = {**pace.describe(), "cloned": round(agreement, 4)}

    def learn(self) -> None:
        """Train to ``config.steps``; on an interrupt the last checkpoint stays, and KeyboardInterrupt is passed on."""
        self.model.set_logger(configure(str(self.folder / "tensorboard"), ["tensorboard"]))
        self.apply_multipliers()
        if (remaining := self.config.steps - self.model.num_timesteps) > 0:
            progress = _Progress(self)
            try:
                self.model.learn(remaining, callback=progress, reset_num_timesteps=False)
            finally:
                progress.close()  # an error is reported on a line of its own
        self.judge()
        self.save_checkpoint()

    def best(self) -> Policy:
        """The best policy that ``judge`` has seen; the actor as it stands before that."""
        return self._best[1] if self._best else self.policy()

    def save_checkpoint(self) -> None:
        """Replace ``checkpoint.pt``."""
        state = {
            "config": asdict(self.config),
            "policy": self.model.policy.state_dict(),
            "optimiser": self.model.policy.optimizer.state_dict(),
            "timesteps": self.model.num_timesteps,
            "updates": self.updates,
            "warm_start": self.warm_start,
            "multipliers": {name: m.state() for name, m in self.multipliers.items()},
            "best": None
            if self._best is None
            else (self._best[0], [tuple(map(torch.from_numpy, layer)) for layer in self._best[1].layers]),
        }
        with replacing(self.folder / "checkpoint.pt") as aside:
            torch.save(state, aside)

    def _restore(self) -> None:
        path = self.folder / "checkpoint.pt"
        try:
            state = torch.load(path, weights_only=True)
        except FileNotFoundError:
            raise BadFileError(
                f"no checkpoint in {self.folder}", "the run stopped before its first checkpoint; start again"
            ) from None
        except Exception as error:
            raise BadFileError(f"{path} is not a checkpoint ({type(error).__name__})", "start a new run") from None
        same = {**asdict(self.config), "steps": 0} == {**state["config"], "steps": 0}
        if not same:
            raise BadFileError(f"{path} was made with another configuration", "resume with the run's own config.json")
        self.model.policy.load_state_dict(state["policy"])
        self.model.policy.optimizer.load_state_dict(state["optimiser"])
        self.model.num_timesteps = state["timesteps"]
        self.updates, self.warm_start = state["updates"], state["warm_start"]
        for name, multiplier in self.multipliers.items():
            multiplier.restore(state["multipliers"][name])
        if state["best"] is not None:
            score, layers = state["best"]
            weights = tuple((weight.numpy(), bias.numpy()) for weight, bias in layers)
            self._best = (tuple(score), replace(self.policy(), layers=weights))

    def policy(self, name: str = "policy") -> Policy:
        """The actor as it stands, as weights."""
        arrays = [parameter.detach().numpy().copy() for parameter in self.actor_parameters()]
        layers = tuple(zip(arrays[::2], arrays[1::2], strict=True))
        control = self.env.control
        card = {
            "name": name,
            "env_id": self.config.env_id,
            "scenario": control.scenario.name,
            "chip": control.scenario.chip,
            "traces_sha256": control.traces.card.get("sha256", ""),
            "model_sha256": control.traces.card.get("model_sha256", ""),
            "limits": asdict(self.limits),
            "config": asdict(self.config),
            "decisions": int(self.model.num_timesteps),
        }
        return Policy(layers, control.heads, card, name, signals=control.scenario.signals)
