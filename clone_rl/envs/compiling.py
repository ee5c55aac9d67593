"""How the lower floors compile: the options of Numba that the kernel and everything around it share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS: dict[str, Any] = {"cache": True, "_nrt": False, "error_model": "numpy"}


def compiled(function: F, cache: bool = True) -> F:
    """Compile without reference counts, which would be nine tenths of a step: what it runs neither keeps nor makes arrays."""
    return cast(F, njit(**{**_OPTIONS, "cache": cache})(function))


def inlined(function: F) -> F:
    """The same, into its callers: a call puts every array of the world on the stack, which takes longer than most callees."""
    return cast(F, njit(forceinline=True, **_OPTIONS)(function))


def entry(function: Any, *signature: Any) -> Callable[..., Any]:
    """The compiled function for arguments of these types, without the look at them that Numba takes in each call."""
    if signature not in function.overloads:
        function.compile(signature)
    return function.get_overload(signature)  # type: ignore[no-any-return]
