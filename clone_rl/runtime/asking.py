"""One decision at a time, fast: a controller's rule called without the checks and conversions that batches need."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import isfinite
from typing import Any

import numba
import numpy as np
from numba import njit
from numba.experimental import structref
from numpy.typing import NDArray

from clone_rl.agents.controller import Controller, RuleController
from clone_rl.agents.policy import Policy
from clone_rl.agents.rule import decide, ships
from clone_rl.code_cache import kept
from clone_rl.envs.compiling import entry
from clone_rl.envs.pointer import Pointer, PointerType
from clone_rl.errors import BadValueError

NOT_FINITE = -(2**62)
"""Stands for an action where the observation is not of finite numbers."""

Ask = Callable[[], int]
"""Decides on what lies in the observation's buffer."""


@structref.register
class _QuestionType(PointerType):
    """Numba's type of a ``_Question``."""


class _Question(Pointer):
    """A rule with its memory, the observation and the place for its choice: one pointer to pass."""


structref.define_proxy(_Question, _QuestionType, ["rule", "seen", "memory", "action"])


def _decided(question: Any) -> int:
    seen = question.seen
    for i in range(len(seen)):
        if not np.isfinite(seen[i]):
            return NOT_FINITE
    decide(question.rule, seen, question.memory, question.action)
    return int(question.action[0])


_kept, _made = kept(_decided), njit(_decided)


def _ask_rule(controller: RuleController, width: int) -> tuple[NDArray[np.float32], Ask]:
    rule, seen = controller.rule, np.zeros(width, np.float32)
    question = _Question(rule, seen, controller.memory(1)[0], np.zeros(1, np.int64))
    return seen, partial(entry(_kept if ships(rule) else _made, numba.typeof(question)), question)


def _ask_numpy(policy: Policy, width: int) -> tuple[NDArray[np.float32], Ask]:
    # Every layer's input ends in a 1 that its bias is multiplied by: a product costs less than a product and a sum.
    inputs = [np.ones(1 + count, np.float32) for count in (width, *(len(bias) for _, bias in policy.layers))]
    products = [np.column_stack(layer).dot for layer in policy.layers]
    seen, *hidden, logits = (each[:-1] for each in inputs)
    layers = list(zip(products, inputs, hidden, strict=False))
    times_last, last, square, tanh, best = products[-1], inputs[-2], seen.dot, np.tanh, logits.argmax

    def ask() -> int:
        if not isfinite(square(seen)) and not np.isfinite(seen).all():
            return NOT_FINITE
        for times, x, out in layers:
            tanh(times(x, out), out)
        times_last(last, logits)
        return int(best())

    return seen, ask


def _ask_batch(controller: Controller, width: int) -> tuple[NDArray[np.float32], Ask]:
    seen = np.zeros(width, np.float32)
    row = seen[None]

    def ask() -> int:
        if not np.isfinite(seen).all():
            return NOT_FINITE
        found = np.asarray(controller.act(row))
        if found.size != 1:
            raise BadValueError(f"act returned actions of shape {found.shape}", "one integer for one observation")
        value = found.item()
        if int(value) != value:
            raise BadValueError(f"action {value}", "an integer")
        return int(value)

    return seen, ask


def asking(controller: Controller, width: int, compiled: bool) -> tuple[NDArray[np.float32], Ask]:
    """How a controller is asked in one request, from the start of it.

    Args:
        controller: Of layer control.
        width: Numbers that it observes.
        compiled: Run its rule as machine code; else a policy is computed by NumPy. A controller that has no rule is called.

    Returns:
        (width,) float32 where each observation is to be written, and what to call then.

    Raises:
        BadValueError: NumPy is to compute what is no policy.
    """
    if not compiled:
        if not isinstance(controller, Policy):
            raise BadValueError(f"controller {controller.name!r} by NumPy", "only a policy; leave compiled=False out")
        return _ask_numpy(controller, width)
    return _ask_rule(controller, width) if isinstance(controller, RuleController) else _ask_batch(controller, width)
