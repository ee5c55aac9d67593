"""How the lower floors compile: the options of Numba that the kernel and everything around it share."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit
from numba.core import event

from clone_rl.code_cache import kept

_LOG = logging.getLogger(__name__)
F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS: dict[str, Any] = {"_nrt": False, "error_model": "numpy"}


def compiled(function: F, cache: bool = True) -> F:
    """Compile without reference counts, which would be nine tenths of a step: what it runs neither keeps nor makes arrays."""
    return kept(function, **_OPTIONS) if cache else cast(F, njit(**_OPTIONS)(function))


def inlined(function: F) -> F:
    """The same, into its callers: a call puts every array of the world on the stack, which takes longer than most callees."""
    return kept(function, forceinline=True, **_OPTIONS)


def entry(function: Any, *signature: Any) -> Callable[..., Any]:
    """The compiled function for arguments of these types, without the look at them that Numba takes in each call."""
    if signature not in function.overloads:
        function.compile(signature)
    return function.get_overload(signature)  # type: ignore[no-any-return]


class Notice(event.Listener):
    """Tells once that code of this package is being compiled: half a minute in which nothing else is to be seen.

    Args:
        tell: Takes the sentence.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell, self._told = tell, False

    def on_start(self, event: Any) -> None:
        """Code was not on disk."""
        module = event.data["dispatcher"].py_func.__module__ or ""  # what Numba generates is of none
        if not self._told and module.startswith("clone_rl."):
            self._told = True
            self._tell("compiling for this machine, once: up to a minute")

    def on_end(self, event: Any) -> None:
        """Nothing more to say."""


event.register("numba:compile", Notice(_LOG.info))
