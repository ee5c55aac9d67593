"""Weights that are stored in a number of bits that no named format has."""

from __future__ import annotations

from dataclasses import dataclass

from clone_rl.hw_emulator.precision import Precision


@dataclass(frozen=True)
class Stored(Precision):
    """Formats of a model, and the bits that layers and head really store per weight.

    Attributes:
        stored_bits: Per weight, scales included: 4.9 in llama.cpp's Q4_K_M, 1.58 in a ternary model.
    """

    stored_bits: float = 8.0

    def bits(self, part: str) -> float:
        """Bits per number; see ``Precision.bits``."""
        return self.stored_bits if part in ("weights", "head") else super().bits(part)


def stored(bits: float, activations: str = "fp16") -> Stored:
    """INT4 products (INT8 from 5 bits on) of weights stored in ``bits``; activations and K/V cache in one format."""
    number = "int4" if bits < 5 else "int8"
    return Stored(number, number, activations, activations, 0, f"{bits:g} bits", bits)
