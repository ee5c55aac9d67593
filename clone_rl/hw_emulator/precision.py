"""Number formats: what weights, activations and caches are stored as, and which multiplier a product needs."""

from __future__ import annotations

from dataclasses import dataclass

from clone_rl.errors import BadValueError, UnknownNameError

BITS = {"int4": 4, "int8": 8, "fp8": 8, "fp16": 16, "bf16": 16, "fp32": 32}
"""Bits of a stored number, by format."""

_FLOATS = {"fp8", "fp16", "bf16", "fp32"}


@dataclass(frozen=True)
class Precision:
    """Formats of a model.

    Attributes:
        weights, head, activations, kv: Keys of ``BITS``.
        group: Weights that share a float16 scale; 0 where none is stored. Applies to formats below 8 bits.
        name: For display.

    Raises:
        UnknownNameError: Unknown format.
        BadValueError: Negative group.
    """

    weights: str
    head: str
    activations: str
    kv: str
    group: int = 0
    name: str = "custom"

    def __post_init__(self) -> None:
        for value in (self.weights, self.head, self.activations, self.kv):
            if value not in BITS:
                raise UnknownNameError("number format", value, BITS)
        if self.group < 0:
            raise BadValueError(f"group is {self.group}", "0 or more weights share a scale")

    def bits(self, part: str) -> float:
        """Bits per number of ``weights``, ``head``, ``activations`` or ``kv``, scales included."""
        stored = getattr(self, part)
        scale = 16 / self.group if part == "weights" and self.group and BITS[stored] < 8 else 0.0
        return BITS[stored] + scale

    def multiplier(self, part: str) -> str:
        """Format of the multiplier for ``weights``, ``head`` or ``kv`` times activations."""
        stored = getattr(self, part)
        if stored in _FLOATS or self.activations not in _FLOATS:
            return str(stored)
        return self.activations  # integers are converted before a floating-point product


PRECISIONS = {
    # The embedded model's own: INT4 in groups of 64, tied embedding and head INT8.
    "int4": Precision("int4", "int8", "int8", "int8", 64, "int4"),
    "int8": Precision("int8", "int8", "int8", "int8", 0, "int8"),
    "fp8": Precision("fp8", "fp8", "fp8", "fp8", 0, "fp8"),
    "fp16": Precision("fp16", "fp16", "fp16", "fp16", 0, "fp16"),
    "bf16": Precision("bf16", "bf16", "bf16", "bf16", 0, "bf16"),
    "fp32": Precision("fp32", "fp32", "fp32", "fp32", 0, "fp32"),
}
"""Named precisions."""


def precision_named(name: str | Precision) -> Precision:
    """Look up a precision; passes one that is given as such.

    Raises:
        UnknownNameError: Not one of ``PRECISIONS``.

    >>> precision_named("int4").bits("weights")
    4.25
    """
    if isinstance(name, Precision):
        return name
    if not isinstance(name, str) or name not in PRECISIONS:
        raise UnknownNameError("precision", str(name), PRECISIONS)
    return PRECISIONS[name]
