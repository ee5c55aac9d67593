"""Gymnasium environments of LLM generation under voltage, frequency and exit control.

Importing ``clone_rl`` registers ``clone_rl/LayerControl-v0`` and ``clone_rl/TokenControl-v0``, which replay traces, and
``clone_rl/LiveLayerControl-v0``, the model in the loop.
"""

from __future__ import annotations

import gymnasium

from clone_rl.errors import UnknownNameError

ENV_IDS = {"clone_rl/LayerControl-v0": "LayerControl", "clone_rl/TokenControl-v0": "TokenControl"}
"""Ids that replay traces, which is what is trained on, and the stem of their classes' names."""

LIVE_ID = "clone_rl/LiveLayerControl-v0"
"""The model in the loop; its class is two floors up, and only ``gymnasium.make`` imports it."""


def register() -> None:
    """Register every id with Gymnasium; safe to call again."""
    for env_id, stem in ENV_IDS.items():
        if env_id not in gymnasium.registry:
            gymnasium.register(
                id=env_id,
                entry_point=f"clone_rl.envs.single:{stem}Env",
                vector_entry_point=f"clone_rl.envs.vector:{stem}VectorEnv",
            )
    if LIVE_ID not in gymnasium.registry:
        gymnasium.register(id=LIVE_ID, entry_point="clone_rl.llm.env:ModelLayerControlEnv")


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
