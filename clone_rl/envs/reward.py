"""Rewards and constraint costs of a user's own, made of what a step amounted to.

The scenario's ``weights`` are the built-in reward, which the kernel computes. Anything else is a callable from the amounts
of N steps to their terms, and is given to an environment as an object, or by the name ``package.module:name`` or
``file.py:name``, which an environment's specification can carry as text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clone_rl.envs.state import AMOUNTS, N_COSTS
from clone_rl.errors import BadValueError
from clone_rl.own_code import load_code

Cost = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""(N, len(AMOUNTS)) amounts to (N, C) constraint costs, C of the user's choice."""


class Reward(Protocol):
    """A reward of several terms.

    Attributes:
        terms: Names of the terms; the final info has the sum of each.

    >>> import numpy as np
    >>> class EnergyAndDelay:
    ...     terms = ("energy", "late")
    ...     def __call__(self, amounts):
    ...         return -amounts[:, [AMOUNTS.index("energy"), AMOUNTS.index("late")]] * [1.0, 5.0]
    >>> amounts = np.zeros((1, len(AMOUNTS)))
    >>> amounts[0, AMOUNTS.index("late")] = 1.0
    >>> EnergyAndDelay()(amounts).tolist()
    [[-0.0, -5.0]]
    """

    terms: tuple[str, ...]

    def __call__(self, amounts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Terms (N, len(terms)) of N steps, which add up to the reward, from their ``state.AMOUNTS`` (N, len(AMOUNTS))."""
        ...


def resolve(what: str, given: Any) -> Any:
    """The callable that was given, or that a text names, see ``clone_rl.own_code``; a class is called without arguments.

    Raises:
        BadValueError: There is no such thing, or it is not callable.
        BadFileError: There is no such file.
    """
    if isinstance(given, str):
        given = load_code(what, given)
    if isinstance(given, type):
        given = given()
    if not callable(given):
        raise BadValueError(f"{what} {given!r} is not callable", f"a function of amounts (N, {len(AMOUNTS)})")
    return given


def check_reward(given: Any) -> Reward:
    """A usable reward.

    Raises:
        BadValueError: As ``resolve``, or its terms do not come out one for each name.
    """
    reward: Reward = resolve("reward", given)
    names = getattr(reward, "terms", None)
    if not isinstance(names, tuple) or not names or not all(isinstance(name, str) for name in names):
        raise BadValueError(f"reward {given!r} has terms {names!r}", "a tuple of names")
    _check_shape("reward", given, reward(np.zeros((2, len(AMOUNTS)))), (2, len(names)))
    return reward


def check_cost(given: Any) -> Cost:
    """Usable constraint costs.

    Raises:
        BadValueError: As ``resolve``, or the costs of N steps are not of shape (N, C).
    """
    cost: Cost = resolve("cost", given)
    found = np.asarray(cost(np.zeros((2, len(AMOUNTS)))))
    _check_shape("cost", given, found, (2, found.shape[-1] if found.ndim == 2 else 1))
    return cost


def costs_of(cost: Cost | None, amounts: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, C) constraint costs of N steps: a user's own, or late tokens, disagreements and nats of dNLL."""
    return np.asarray(cost(amounts)) if cost else amounts[:, :N_COSTS]


def _check_shape(what: str, given: Any, found: Any, shape: tuple[int, int]) -> None:
    if np.shape(found) != shape:
        raise BadValueError(f"{what} {given!r} gives shape {np.shape(found)} for 2 steps", f"{shape}")
