"""Controllers of a user's own: what they have to have, what is taken where they lack it, and what they may answer."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from clone_rl.agents.controller import Actions, Controller, Observations, RuleController
from clone_rl.envs.control import Control
from clone_rl.errors import BadValueError, CloneRLError
from clone_rl.own_code import code_sha256, load_code, said

_KINDS = ("layer", "token")
_DEFAULTS: dict[str, Any] = {"kind": "layer", "macs": 0, "probes": True}
_MEANT = {
    "name": "a text",
    "kind": "'layer' or 'token'",
    "macs": "multiply-accumulates of one decision, a whole number from 0 up",
    "probes": "True if it reads the exit probe, else False",
    "describe": "a method that returns its settings as plain data: texts, numbers, lists, tables",
}
_NOT_WHOLE = {"f": "floats", "U": "texts", "S": "texts", "b": "booleans"}


@dataclass(frozen=True, eq=False)
class OwnController:
    """A controller with what it lacked: in everything else the one that it was.

    Attributes:
        inner: It.
        name, kind, macs, probes: As of ``Controller``.
        source: Text that it was found by, see ``clone_rl.own_code``; empty for an object.
        sha256: Hash of the file that it came from; empty where there is none.
    """

    inner: Any
    name: str
    kind: str
    macs: int
    probes: bool
    source: str = ""
    sha256: str = ""

    def act(self, observations: Observations) -> Actions:
        """As the inner one."""
        found: Actions = self.inner.act(observations)
        return found

    def describe(self) -> dict[str, Any]:
        """As the inner one; nothing where it does not say."""
        return dict(self.inner.describe()) if hasattr(self.inner, "describe") else {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.inner, name)


class _OwnRule(OwnController, RuleController):
    """The same of a compiled controller."""

    act = RuleController.act

    @property
    def rule(self) -> Any:
        return self.inner.rule

    @property
    def components(self) -> int:
        return int(self.inner.components)

    def memory(self, rows: int) -> Any:
        return self.inner.memory(rows)


def accepted(given: Any) -> Controller:
    """A controller that has all that a controller has.

    Args:
        given: An object with ``act``. Where it has no more, its class gives the name, it decides per layer, for nothing, and
            is charged for the exit probe.

    Returns:
        It, or an ``OwnController`` where it lacks something.

    Raises:
        BadValueError: It has no ``act``, or something of it is wrong.
    """
    check_controller(given)
    whole = all(hasattr(given, name) for name in ("name", *_DEFAULTS, "describe"))
    return given if whole else _wrapped(given)


def own_controller(given: Any, control: Control, source: str = "", sha256: str = "") -> Controller:
    """The controller that an object is, or that a class or function makes.

    A class or function is called with the scenario's ``Control`` where it has a parameter ``control``, or a single one without
    a default; else without arguments.

    Args:
        given: Object, class or function.
        control: The scenario.
        source, sha256: As of ``OwnController``.

    Raises:
        BadValueError: It cannot be called so, it raises, or what comes is no controller, see ``accepted``.
    """
    made = given
    if isinstance(given, type) or not hasattr(given, "act"):
        made = _made(given, control, repr(source) if source else _called(given))
    check_controller(made, source)
    return _wrapped(made, source, sha256) if source else accepted(made)


def load_controller(text: str, control: Control) -> Controller:
    """The controller that code of a user's own makes.

    Args:
        text: ``package.module:name`` or ``file.py:name``, see ``clone_rl.own_code``.
        control: The scenario.

    Raises:
        BadValueError, BadFileError: As ``own_controller`` and ``clone_rl.own_code.load_code``.
    """
    sha256 = code_sha256("controller", text)
    found = own_controller(load_code("controller", text), control, text, sha256)
    inner = getattr(found, "inner", found)
    if taken := {name: value for name, value in _DEFAULTS.items() if not hasattr(inner, name)}:
        words = ", ".join(f"{name} {value!r}" for name, value in taken.items())
        print(f"clone-rl: {text} does not say everything; taken: {words} (see docs/baselines.md)", file=sys.stderr)
    return found


def asked(controller: Controller, control: Control, observations: Observations, *memory: Any, ranged: bool = True) -> Actions:
    """What a controller answers, checked.

    Args:
        controller: Who decides.
        control: Whose actions it takes.
        observations: (N, width) what it sees.
        *memory: Of a compiled controller.
        ranged: Refuse actions that the chip does not have; else they are left to a shield.

    Returns:
        (N, heads) int64.

    Raises:
        BadValueError: It raised, or its answer is of another type, shape or range.
    """
    rows = len(observations)
    try:
        found = controller.act(observations, *memory)
    except CloneRLError:
        raise
    except Exception as error:
        raise BadValueError(f"controller {controller.name!r} raised {said(error)}", "mend its act(observations)") from error
    try:
        array = np.asarray(found)
    except ValueError:
        array = np.array(None)
    wanted = f"act returns {rows} row(s) of {len(control.heads)} integer(s)"
    if array.dtype.kind not in "iu":
        plain = array.size and array.dtype.kind != "O"
        bad = f", such as {array.flat[0].item()!r}" if plain else ""
        what = _NOT_WHOLE.get(array.dtype.kind, array.dtype.name) if plain else type(found).__name__
        raise BadValueError(f"controller {controller.name!r} returned {what}{bad}", wanted)
    if array.shape not in ((rows, len(control.heads)), *[(rows,)] * (len(control.heads) == 1)):
        raise BadValueError(f"controller {controller.name!r} returned actions of shape {array.shape}", wanted)
    if not ranged:
        return array.astype(np.int64).reshape(rows, len(control.heads))
    try:
        return control.check(array, rows)
    except BadValueError as error:
        raise BadValueError(f"controller {controller.name!r}: {error.message}", error.hint) from None


def check_controller(given: Any, source: str = "") -> None:
    """Refuse what is no controller; what it lacks has a default, but for ``act``.

    Args:
        given: An object.
        source: Text that it was found by, for errors.

    Raises:
        BadValueError: It has no ``act``, or something of it is wrong.
    """
    label = repr(source) if source else _called(given)
    if isinstance(given, str):
        raise BadValueError(f"{given!r} is a name, no controller", "clone_rl.agents.registry.controller gives one")
    if isinstance(given, type):
        raise BadValueError(f"controller {label} is a class", f"give an object: {given.__name__}(...)")
    if not callable(getattr(given, "act", None)):
        raise BadValueError(f"controller {label} has no method act", "act(observations) gives actions, see docs/baselines.md")
    checks: dict[str, Callable[[Any], bool]] = {
        "name": lambda value: isinstance(value, str) and bool(value.strip()) and value.isprintable(),
        "kind": lambda value: isinstance(value, str) and value in _KINDS,
        "macs": lambda value: isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) >= 0,
        "probes": lambda value: isinstance(value, bool | np.bool_),
        "describe": callable,
    }
    for name, good in checks.items():
        if hasattr(given, name) and not good(getattr(given, name)):
            raise BadValueError(f"controller {label} has {name} {getattr(given, name)!r}", _MEANT[name])
    if hasattr(given, "describe"):
        _check_settings(given, label)


def _check_settings(given: Any, label: str) -> None:
    try:
        settings = given.describe()
        json.dumps(settings, allow_nan=False)
    except CloneRLError:
        raise
    except Exception as error:
        raise BadValueError(f"describe() of controller {label}: {said(error)}", _MEANT["describe"]) from error
    if not isinstance(settings, dict):
        raise BadValueError(f"describe() of controller {label} gives {type(settings).__name__}", "a dict of plain data")


def _called(given: Any) -> str:
    """What to call a thing in errors."""
    name = given.__name__ if isinstance(given, type) or inspect.isroutine(given) else getattr(given, "name", None)
    return repr(name) if isinstance(name, str) else f"of type {type(given).__name__}"


def _made(given: Any, control: Control, label: str) -> Any:
    """What a class or function gives."""
    if not callable(given):
        raise BadValueError(
            f"controller {label} is {type(given).__name__}, neither an object with act nor what makes one",
            "act(observations) gives actions, see docs/baselines.md",
        )
    try:
        parameters = inspect.signature(given).parameters.values()
    except (TypeError, ValueError):
        parameters = {}.values()
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p for p in parameters if p.default is p.empty and p.kind not in variable]
    by_name = [p for p in parameters if p.name == "control" and p.kind is not inspect.Parameter.POSITIONAL_ONLY]
    if [p for p in needed if p not in by_name][bool(not by_name) :]:
        names = ", ".join(p.name for p in needed)
        raise BadValueError(
            f"controller {label} needs arguments: {names}",
            "it is called with the scenario's control, or with nothing; name a function without arguments that makes it",
        )
    try:
        if by_name:
            return given(control=control)
        return given(control) if needed else given()
    except CloneRLError:
        raise
    except Exception as error:
        raise BadValueError(f"controller {label} cannot be made: {said(error)}", "mend that code") from error


def _wrapped(given: Any, source: str = "", sha256: str = "") -> OwnController:
    kind = _OwnRule if isinstance(given, RuleController) else OwnController
    values = {name: getattr(given, name, value) for name, value in _DEFAULTS.items()}
    return kind(given, getattr(given, "name", type(given).__name__), **values, source=source, sha256=sha256)
