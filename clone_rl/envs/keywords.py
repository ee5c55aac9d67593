"""Keywords of environments: any that nobody takes is named, with those that there are."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

import gymnasium

from clone_rl.envs.scenario import Scenario
from clone_rl.errors import UnknownNameError


def check_keywords(made: type, changes: Iterable[str], how: str = "make") -> None:
    """Look whether what an environment was given besides its own arguments are fields of a scenario.

    Args:
        made: The environment's class, whose arguments may be meant as well.
        changes: Names of the others.
        how: Function of Gymnasium that makes it, whose arguments may be meant too.

    Raises:
        UnknownNameError: One is not.
    """
    fields = Scenario.__dataclass_fields__
    own = {*fields, *_arguments(made.__init__)}  # type: ignore[misc]
    for name in changes:
        if name not in fields:
            theirs = set(_arguments(getattr(gymnasium, how))) - {"id", name}
            raise UnknownNameError("keyword", name, own | theirs)


def _arguments(function: object) -> list[str]:
    parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    return [each.name for each in parameters if each.name != "self" and each.kind is not each.VAR_KEYWORD]
