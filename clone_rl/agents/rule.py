"""A controller's rule as compiled code, so that evaluation runs controller and kernel in one loop.

A rule is a named tuple of what it reads, and a function that Numba chooses by the tuple's class::

    class Fixed(NamedTuple):
        point: int

    @rule(Fixed)
    def _fixed(self, observation, memory, action):
        action[0] = self.point
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numba.extending import overload
from numpy.typing import NDArray

from clone_rl.envs.compiling import compiled

F = TypeVar("F", bound=Callable[..., None])

_OPTIONS: Any = {"_nrt": False, "error_model": "numpy", "forceinline": True}


def decide(self: Any, observation: NDArray[np.float32], memory: NDArray[np.float64], action: NDArray[np.int64]) -> None:
    """Write a decision into ``action``; inside compiled code only, where the rule's own function stands for it.

    Args:
        self: Named tuple whose class was given to ``rule``.
        observation: (width,) what the controller sees.
        memory: (M,) what it keeps during a request, zeros at its start.
        action: (heads,) its choice.
    """
    raise NotImplementedError("rules run in compiled code; call act_on")


def rule(kind: type) -> Callable[[F], F]:
    """Register the function of a named tuple's class: ``(self, observation, memory, action)``, in what Numba compiles."""

    def register(function: F) -> F:
        def chosen(self: Any, observation: Any, memory: Any, action: Any) -> F | None:  # noqa: ARG001
            return function if getattr(self, "instance_class", None) is kind else None

        # Numba wants both to have one signature, annotations included.
        chosen.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
        overload(decide, jit_options=_OPTIONS)(chosen)
        return function

    return register


def ships(rule: Any) -> bool:
    """Whether this package has the class of a rule and those of the rules in it: code compiled for others is not kept on disk.

    The index of what is kept names the classes, and could not be read where they cannot be imported.
    """
    return type(rule).__module__.partition(".")[0] == __name__.partition(".")[0] and all(
        ships(part) for part in rule if isinstance(part, tuple)
    )


class Loop:
    """A function of a rule, compiled for each kind of rule that comes; the machine code of what ships is kept on disk.

    Args:
        function: Its first argument is the rule.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._kept, self._made = compiled(function), compiled(function, cache=False)

    def __call__(self, rule: Any, *args: Any) -> Any:
        """Run it."""
        return (self._kept if ships(rule) else self._made)(rule, *args)


@Loop
def _act_on(rule: Any, observations: Any, memory: Any, actions: Any) -> None:
    for i in range(len(observations)):
        decide(rule, observations[i], memory[i], actions[i])


def act_on(rule: Any, observations: NDArray[np.float32], memory: NDArray[np.float64], heads: int) -> NDArray[np.int64]:
    """(N, heads) decisions for (N, width) observations; ``memory``, (N, M), is changed in place."""
    actions = np.zeros((len(observations), heads), np.int64)
    _act_on(rule, np.ascontiguousarray(observations, np.float32), memory, actions)
    return actions
