"""One decision at a time, fast: a controller's rule called without the checks and conversions that batches need."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import isfinite
from typing import Any

import numba
import numpy as np
from numba import njit, types
from numba.experimental import structref
from numpy.typing import NDArray

from clone_rl.agents.controller import Controller, RuleController
from clone_rl.agents.policy import Policy
from clone_rl.agents.rule import decide
from clone_rl.envs.compiling import entry
from clone_rl.errors import BadValueError

NOT_FINITE = -(2**62)
"""Stands for an action where the observation is not of finite numbers."""

Ask = Callable[[], int]
"""Decides on what lies in the observation's buffer."""


@structref.register
class _QuestionType(types.StructRef):
    """Numba's type of a ``_Question``."""

    def preprocess_fields(self, fields: Any) -> Any:
        return tuple((name, types.unliteral(kind)) for name, kind in fields)


class _Question(structref.StructRefProxy):
    """A rule with its memory, the observation and the place for its choice: one pointer to pass."""

    def __new__(cls, *fields: Any) -> Any:
        return structref.StructRefProxy.__new__(cls, *fields)


structref.define_proxy(_Question, _QuestionType, ["rule", "seen", "memory", "action"])


def _decided(question: Any) -> int:
    seen = question.seen
    for i in range(len(seen)):
        if not np.isfinite(seen[i]):
            return NOT_FINITE
    decide(question.rule, seen, question.memory, question.action)
    return int(question.action[0])


_kept, _made = njit(cache=True)(_decided), njit(_decided)
_PACKAGE = __name__.partition(".")[0]


def _ask_rule(controller: RuleController, seen: NDArray[np.float32]) -> Ask:
    rule = controller.rule
    question = _Question(rule, seen, controller.memory(1)[0], np.zeros(1, np.int64))
    function = _kept if type(rule).__module__.partition(".")[0] == _PACKAGE else _made  # as ``agents.rule.Loop`` has it
    return partial(entry(function, numba.typeof(question)), question)


def _ask_numpy(policy: Policy, seen: NDArray[np.float32]) -> Ask:
    layers = [(weight.dot, bias, np.zeros_like(bias)) for weight, bias in policy.layers]
    times_last, last_bias, logits = layers.pop()
    square, add, tanh = seen.dot, np.add, np.tanh

    def ask() -> int:
        if not isfinite(square(seen)) and not np.isfinite(seen).all():
            return NOT_FINITE
        x = seen
        for times, bias, out in layers:
            add(times(x, out), bias, out)
            x = tanh(out, out)
        return int(add(times_last(x, logits), last_bias, logits).argmax())

    return ask


def _ask_batch(controller: Controller, seen: NDArray[np.float32]) -> Ask:
    row = seen[None]

    def ask() -> int:
        if not np.isfinite(seen).all():
            return NOT_FINITE
        value = np.asarray(controller.act(row)).reshape(-1)[0]
        if int(value) != value:
            raise BadValueError(f"action {value}", "an integer")
        return int(value)

    return ask


def asking(controller: Controller, seen: NDArray[np.float32], compiled: bool) -> Ask:
    """How a controller is asked in one request, from the start of it.

    Args:
        controller: Of layer control.
        seen: (width,) where each observation is written before the controller is asked.
        compiled: Run its rule as machine code; else a policy is computed by NumPy. A controller that has no rule is called.

    Raises:
        BadValueError: NumPy is to compute what is no policy.
    """
    if not compiled:
        if not isinstance(controller, Policy):
            raise BadValueError(f"controller {controller.name!r} by NumPy", "only a policy; leave compiled=False out")
        return _ask_numpy(controller, seen)
    return _ask_rule(controller, seen) if isinstance(controller, RuleController) else _ask_batch(controller, seen)
