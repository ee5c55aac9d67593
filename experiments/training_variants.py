"""What changes of the training do to the policy, each trained and then judged on the test requests beside tuned pacing.

    python experiments/training_variants.py --out variants            # all of them, some minutes each
    python experiments/training_variants.py wide signals --seed 1 --out variants

Rows are added to OUT/results.json as they come; what is there already is not trained again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from stable_baselines3 import PPO

from clone_rl.agents import ppo
from clone_rl.agents.constraints import Multiplier
from clone_rl.agents.foresight import Foresight
from clone_rl.agents.ppo import aimed_at
from clone_rl.agents.train_config import TrainConfig
from clone_rl.agents.training import run_training
from clone_rl.cli.controllers import make_controller
from clone_rl.envs.control import load_control
from clone_rl.envs.scenario import Limits, Scenario
from clone_rl.envs.scenario_file import write_scenario
from clone_rl.envs.signals import EXTRA_SIGNALS
from clone_rl.evaluation.protocol import evaluate
from clone_rl.files import replacing

STEPS, EVALUATION_SEEDS = 6_000_000, 4


@dataclass(frozen=True)
class Variant:
    """How a training differs from the shipped one.

    Attributes:
        text: For people.
        config: Fields of ``TrainConfig``; ``steps`` is a factor.
        constants: Of ``clone_rl.agents.ppo``.
        learner: Arguments of SB3's PPO.
        signals: What the policy sees besides the standard scalars.
    """

    text: str
    config: dict[str, Any] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    learner: dict[str, Any] = field(default_factory=dict)
    signals: tuple[str, ...] = ()


class _Blind(Foresight):
    """Shows the critic nothing of what is to come."""

    def _shown(self, observation: NDArray[np.float32]) -> NDArray[np.float32]:
        shown = super()._shown(observation)
        shown[:, self.seen :] = 0.0
        return shown


def _slowly(limits: Limits, name: str) -> Multiplier:
    """A price that acts little on the error at hand, and more on the sum of those before."""
    return replace(aimed_at(limits, name), proportional=0.3)


@dataclass
class _Tightening(Multiplier):
    """A limit three times as wide at first, which tightens to its own within the first half of the training."""

    steps: int = 46

    def __post_init__(self) -> None:
        super().__post_init__()
        self._own, self._taken = self.limit, 0
        self.limit *= 3.0

    def update(self, measured: float) -> float:
        self._taken += 1
        self.limit = self._own * max(1.0, 3.0 - 2.0 * self._taken / self.steps)
        return super().update(measured)


def _cold(*_: Any, **__: Any) -> float:
    """Clone nothing: the actor keeps its first weights, with the exit made improbable."""
    return 0.0


VARIANTS = {
    "shipped": Variant("as shipped, but for the decisions"),
    "blind": Variant("a critic that sees what the actor sees", constants={"Foresight": _Blind}),
    "steps": Variant(
        "a fourth as many steps, a third as large", constants={"_LEARNING_RATE": (1e-3, 2e-5)}, learner={"batch_size": 8192}
    ),
    "prices": Variant("prices that act little on the error at hand", constants={"aimed_at": _slowly}),
    "wide": Variant("network of 64 and 64 units (5,289 parameters; shipped 961)", constants={"_HIDDEN": (64, 64)}),
    "signals": Variant("the six extra signals of the exits as well", signals=EXTRA_SIGNALS),
    "long": Variant("20 million decisions", config={"steps": 10 / 3}),
    "horizon": Variant("gamma 0.99 (shipped 0.999)", learner={"gamma": 0.99}),
    "lambda": Variant("GAE lambda 0.9 (shipped 0.97)", learner={"gae_lambda": 0.9}),
    "rollout": Variant("rollouts four times as long", config={"rollout": 512}),
    "entropy": Variant("five times the entropy bonus", constants={"_ENTROPY": (1.5e-2, 5e-4)}),
    "cold": Variant("no warm start", constants={"clone": _cold}),
    "coins": Variant(
        "disagreements as they fall, not by their expectation",
        constants={"expected_outcome": lambda control: control.world.outcome},
    ),
    "curriculum": Variant(
        "limits three times as wide at first, tightened over half of the training",
        constants={"aimed_at": lambda limits, name: _Tightening(aimed_at(limits, name).limit, ppo._PRICE)},
    ),
    "token": Variant("decisions per token (TokenControl, no warm start)", config={"env_id": "clone_rl/TokenControl-v0"}),
}


def _train(variant: Variant, scenario: str, steps: int, seed: int) -> Any:
    """The policy of one variant."""
    config = {**variant.config, "steps": round(steps * variant.config.get("steps", 1)), "seed": seed}
    learner: Callable[..., Any] = lambda *args, **settings: PPO(*args, **{**settings, **variant.learner})  # noqa: E731
    with patch.multiple(ppo, PPO=learner, **variant.constants):
        return run_training(TrainConfig(scenario=scenario, **config), None, resume=False)


def main() -> int:
    """Train and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=f"of {', '.join(VARIANTS)} (default: all)")
    parser.add_argument("--scenario", default="default")
    parser.add_argument("--steps", type=int, default=STEPS, help="decisions of each (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="variants", help="folder (default: %(default)r)")
    options = parser.parse_args()
    if unknown := set(options.variants) - set(VARIANTS):
        parser.error(f"no variant {', '.join(sorted(unknown))}: {', '.join(VARIANTS)}")
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name in options.variants or VARIANTS:
        key = f"{options.scenario} {name} {options.steps} {options.seed}"
        if key in found:
            continue
        variant = VARIANTS[name]
        scenario = options.scenario
        if variant.signals:
            scenario = str(folder / f"{name}.toml")
            write_scenario(Path(scenario), Scenario.load(options.scenario, signals=list(variant.signals)))
        policy = _train(variant, scenario, options.steps, options.seed)
        control = load_control("layer", options.scenario)
        result = evaluate(control, [make_controller("pace", control), policy], "test", seeds=EVALUATION_SEEDS)
        pace, own = result.summary
        ratio = own["energy_per_token_j"] / pace["energy_per_token_j"] - 1
        found[key] = {"variant": {**asdict(variant), "constants": sorted(variant.constants)}, "over_pace": ratio, **own}
        with replacing(path) as aside:
            aside.write_text(json.dumps(found, indent=1, default=str) + "\n")
        print(
            f"{variant.text}: {own['energy_per_token_j'] * 1e6:.3f} uJ/token, {ratio:+.2%} of pace's, "
            f"late {own['miss_rate']:.2%}, differs {own['disagreement']:.2%}, dNLL {own['dnll']:+.4f}, "
            f"within constraints: {own['within_constraints']}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
