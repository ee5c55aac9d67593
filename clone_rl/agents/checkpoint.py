"""Checkpoints of training: all that the rest of a run depends on, so that a resumed run is the same run, bit for bit.

They are taken between an update and the next rollout, where nothing is half done, and hold tensors and plain data only: no
code runs when one is read.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from clone_rl.agents.tuned import chip_sha256
from clone_rl.envs.control import Control
from clone_rl.envs.state import STATE
from clone_rl.errors import BadFileError
from clone_rl.files import replacing

FORMAT = 3
NAME = "checkpoint.pt"
_FIELDS = json.dumps(STATE.descr)


def learner_state(model: OnPolicyAlgorithm) -> dict[str, Any]:
    """What the rest of a run depends on, of SB3's learner and all random numbers; the environment is not in it."""
    numpy_random: Any = np.random.get_state()
    _, keys, *rest = numpy_random
    logger: Any = getattr(model, "_logger", None)
    values = logger.name_to_value if logger else {}
    plain = {name: float(value) for name, value in values.items() if isinstance(value, int | float | np.number)}
    last = model._last_obs
    return {
        "policy": model.policy.state_dict(),
        "optimiser": model.policy.optimizer.state_dict(),
        "timesteps": model.num_timesteps,
        "sb3_updates": getattr(model, "_n_updates", 0),
        "torch_random": torch.get_rng_state(),
        "numpy_random": [torch.from_numpy(keys.astype(np.int64)), *rest],
        "observation": None if last is None else torch.from_numpy(np.array(last)),
        "starts": None if last is None else torch.from_numpy(np.array(model._last_episode_starts)),
        "episodes": [dict(episode) for episode in model.ep_info_buffer or ()],
        # Of the last update: SB3 writes them after the next rollout.
        "unwritten": {name: value for name, value in plain.items() if "tensorboard" not in logger.name_to_excluded[name]},
    }


def restore_learner(model: OnPolicyAlgorithm, state: dict[str, Any]) -> None:
    """Put a learner and all random numbers where ``learner_state`` found them; its logger is to have ``unwritten``."""
    model.policy.load_state_dict(state["policy"])
    model.policy.optimizer.load_state_dict(state["optimiser"])
    model.num_timesteps, model._n_updates = state["timesteps"], state["sb3_updates"]
    torch.set_rng_state(state["torch_random"])
    keys, *rest = state["numpy_random"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))
    if state["observation"] is not None:
        model._last_obs = state["observation"].numpy()
        model._last_episode_starts = state["starts"].numpy()
    model.ep_info_buffer = deque(state["episodes"], maxlen=model._stats_window_size)
    model.ep_success_buffer = deque(maxlen=model._stats_window_size)


def made_for(control: Control) -> dict[str, str]:
    """Hashes of what a run is trained on. The scenario's limits are not in it: a run keeps its own."""
    scenario = control.scenario.as_dict()
    scenario.pop("limits", None)
    return {
        "scenario": _hash(json.dumps(scenario, sort_keys=True)),
        "chip": chip_sha256(control.emulator.chip),
        "traces": str(control.traces.card.get("sha256", "")),
    }


def _shown(value: Any) -> str:
    """A setting for people: data by its name."""
    return f"{value.get('name')!r} (other content)" if isinstance(value, dict) else repr(value)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def write_checkpoint(folder: Path, content: dict[str, Any]) -> None:
    """Replace ``checkpoint.pt``; whenever the program is killed, the file before it or this one is there, whole."""
    # Through a file of Python's own, which keeps what the system said of a full disk.
    with replacing(folder / NAME) as aside, aside.open("wb") as file:
        torch.save({"format": FORMAT, "fields": _FIELDS, **content}, file)


def read_checkpoint(folder: Path, config: dict[str, Any], made: dict[str, str]) -> dict[str, Any]:
    """The content of ``checkpoint.pt``, and removes what a killed run left beside it.

    Args:
        folder: Run folder.
        config: Configuration of the run that is to continue; its ``steps`` may differ.
        made: What ``made_for`` says now.

    Raises:
        BadFileError: There is none, it is damaged, or it is of another configuration, scenario, chip, trace set or version.
    """
    path = folder / NAME
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
        version = (state["format"], state["fields"])
    except FileNotFoundError:
        raise BadFileError(f"no checkpoint in {folder}", "the run stopped before its first checkpoint; start again") from None
    except Exception as error:
        raise BadFileError(f"{path} is not a checkpoint ({type(error).__name__})", "start a new run") from None
    if version != (FORMAT, _FIELDS):
        raise BadFileError(f"{path} was made by another version of clone-rl", "start a new run")
    before = state["config"]
    different = [name for name in config if name != "steps" and config[name] != before.get(name)]
    if different or set(config) != set(before):
        named = ", ".join(f"{name} was {_shown(before.get(name))} and is {_shown(config[name])}" for name in different)
        raise BadFileError(f"{path} was made with another configuration: {named}", "resume with the run's own config.json")
    if changed := [name for name, value in made.items() if state["made_for"].get(name) != value]:
        raise BadFileError(
            f"{path} was made with another {' and '.join(changed)}",
            "a file has changed since; undo that, or start a new run",
        )
    for left in folder.glob(f".{NAME}.*"):
        left.unlink(missing_ok=True)
    return state
