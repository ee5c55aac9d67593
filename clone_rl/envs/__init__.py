"""Gymnasium environments of LLM generation under voltage, frequency and exit control.

Importing ``clone_rl`` registers ``clone_rl/LayerControl-v0`` and ``clone_rl/TokenControl-v0``.
"""

from __future__ import annotations

import gymnasium

from clone_rl.errors import UnknownNameError

ENV_IDS = {"clone_rl/LayerControl-v0": "LayerControl", "clone_rl/TokenControl-v0": "TokenControl"}
"""Registered ids, and the stem of their classes' names."""


def register() -> None:
    """Register every id with Gymnasium; safe to call again."""
    for env_id, stem in ENV_IDS.items():
        if env_id not in gymnasium.registry:
            gymnasium.register(
                id=env_id,
                entry_point=f"clone_rl.envs.single:{stem}Env",
                vector_entry_point=f"clone_rl.envs.vector:{stem}VectorEnv",
            )


def scenarios() -> list[str]:
    """Names of the shipped scenarios, see ``clone_rl.envs.scenario.Scenario``."""
    from clone_rl.envs.scenario import scenario_names

    return scenario_names()


def check_env_id(env_id: str) -> str:
    """The id itself.

    Raises:
        UnknownNameError: Not one of ``ENV_IDS``.
    """
    if env_id not in ENV_IDS:
        raise UnknownNameError("environment", env_id, ENV_IDS)
    return env_id
