"""Structures of compiled code that take one pointer to pass, where arrays would be taken apart at every call."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.experimental import structref


class PointerType(types.StructRef):
    """Numba's type of a ``Pointer``: each has one of its own, decorated with ``structref.register``."""

    def preprocess_fields(self, fields: Any) -> Any:
        """Fields are of whatever value, not of the one that they are made with."""
        return tuple((name, types.unliteral(kind)) for name, kind in fields)


class Pointer(structref.StructRefProxy):
    """A structure as Python holds it; ``structref.define_proxy`` joins it to its type and names its fields."""

    def __new__(cls, *fields: Any) -> Any:  # noqa: D102
        return structref.StructRefProxy.__new__(cls, *fields)
