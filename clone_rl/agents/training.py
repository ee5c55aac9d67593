"""Training as one call: from what is wanted to a policy."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from clone_rl.agents.checkpoint import NAME
from clone_rl.agents.conditioned import ConditionedTraining
from clone_rl.agents.family import PolicyFamily
from clone_rl.agents.policy import Policy
from clone_rl.agents.ppo import Training
from clone_rl.agents.reach import reach
from clone_rl.agents.train_config import TrainConfig
from clone_rl.envs.control import load_control
from clone_rl.errors import RunExistsError
from clone_rl.files import writing
from clone_rl.interrupt import postponing


def train(config: TrainConfig | None = None, folder: str | Path | None = None, resume: bool = False) -> Policy:
    """Train a policy, as ``clone-rl train`` does.

    Args:
        config: What to train; None is the default controller.
        folder: Run folder for checkpoints, TensorBoard's event files and the policy, made if missing; None keeps nothing.
        resume: Continue what the folder holds: bit for bit the run that was never interrupted. A run that was killed before
            its first checkpoint begins again.

    Returns:
        The policy with the least energy within the limits, of all that training came by.

    Raises:
        BadValueError: A limit that nothing can hold.
        RunExistsError: The folder holds a run, and ``resume`` is false.
        BadFileError: The checkpoint is damaged, or of another configuration, scenario, chip or trace set.
        KeyboardInterrupt: Ctrl-C; the last checkpoint is there.

    >>> from clone_rl.agents.training import train
    >>> policy = train(TrainConfig(steps=128, envs=4, rollout=32, env_id="clone_rl/TokenControl-v0"))
    >>> policy.parameters, policy.card["decisions_trained"]
    (1573, 128)
    """
    config, folder = config or TrainConfig(), None if folder is None else Path(folder)
    if folder is not None and not resume and (folder / NAME).exists():
        raise RunExistsError(f"run folder {folder} holds a run", "choose another folder, or resume it")
    control = load_control("layer", config.scenario, **config.changes)
    limits = config.limits(control.scenario)
    if warning := reach(control, limits, config.seed).check(limits, control.scenario.name):
        warnings.warn(warning, stacklevel=2)
    if folder is not None:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
    return run_training(config.resolved(control.scenario), folder, resume)


def run_training(
    config: TrainConfig, folder: Path | None, resume: bool, command: str = "", longer: Callable[[], str] | None = None
) -> Policy:
    """Train without asking whether the limits can be held.

    Args:
        config: What to train.
        folder: Run folder, which exists; None keeps nothing.
        resume: As of ``train``.
        command: That led here, for the policy's card.
        longer: Called where a run goes on to more steps than before, once its checkpoint is accepted; gives the command then.

    Raises:
        BadFileError, KeyboardInterrupt: As ``train``.
    """
    resume = resume and folder is not None and (folder / NAME).exists()
    with postponing():
        training = (ConditionedTraining if config.conditioned else Training)(config, folder, resume)
        if not resume:
            training.start()
        if longer and training.model.num_timesteps < config.steps:
            command = longer()
        training.learn()
    best = training.best()
    name = folder.name if folder else best.name
    card = {"name": name, "decisions_trained": int(training.model.num_timesteps), "warm_start": training.warm_start}
    policy = replace(best, name=name, card={**best.card, **card, "command": command})
    if folder is not None:
        policy.save(folder / "policy.safetensors")
    return policy.within(training.limits) if isinstance(policy, PolicyFamily) else policy
