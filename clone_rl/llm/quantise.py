"""The weight format that the chip stores: signed integers with one scale per group, and how they travel on disk.

Decoder matrices are 4-bit with one float16 scale per 64 inputs; the tied embedding and head is 8-bit with one scale per
row; norms stay float32. The language model runs on exactly these values, so the precision that the emulator charges is
the precision that was measured.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

GROUP = 64
"""Inputs that share one scale in a 4-bit matrix."""

Q4_MAX, Q8_MAX = 7, 127


def weight_bits(name: str, tensor: torch.Tensor) -> int:
    """Bits per weight that the format gives to a named parameter: 4, 8 or 32 (kept as it is)."""
    if tensor.ndim != 2:
        return 32
    return 8 if "embed" in name or "lm_head" in name else 4


def quantise(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a matrix to integers.

    Args:
        weight: Float matrix, shape (out, in); for 4 bits ``in`` is a multiple of ``GROUP``.
        bits: 4 (a scale per group of inputs) or 8 (a scale per row).

    Returns:
        ``(q, scale)``: int8 of shape (out, groups, in / groups) and float16 of shape (out, groups, 1).
    """
    top, groups = (Q4_MAX, weight.shape[1] // GROUP) if bits == 4 else (Q8_MAX, 1)
    blocks = weight.detach().float().reshape(weight.shape[0], groups, -1)
    scale = (blocks.abs().amax(-1, keepdim=True) / top).clamp_min(1e-7).half()
    return (blocks / scale.float()).round().clamp(-top, top).to(torch.int8), scale


def dequantise(q: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The float32 matrix, shape (out, in), that a quantised one stands for."""
    return (q.float() * scale.float()).reshape(q.shape[0], -1)


def fake_quantise(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """The nearest matrix that the format can store, as float32."""
    return dequantise(*quantise(weight, bits))


def pack(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors to be written to disk: ``name.q4`` (two weights a byte) or ``name.q8`` with ``name.scale``, or ``name``."""
    packed: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        bits = weight_bits(name, tensor)
        if bits == 32:
            packed[name] = tensor.detach().float().contiguous()
            continue
        q, packed[f"{name}.scale"] = quantise(tensor, bits)
        if bits == 4:
            nibbles = (q.reshape(q.shape[0], q.shape[1], -1, 2) + 8).to(torch.uint8)
            packed[f"{name}.q4"] = (nibbles[..., 0] | (nibbles[..., 1] << 4)).contiguous()
        else:
            packed[f"{name}.q8"] = q.contiguous()
    return packed


def unpack(packed: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Float32 parameters from what ``pack`` wrote.

    Raises:
        KeyError: A quantised tensor has no scale beside it.
    """
    state: dict[str, torch.Tensor] = {}
    for key, tensor in packed.items():
        name, _, form = key.rpartition(".")
        if form == "q4":
            q = torch.stack(((tensor & 15).to(torch.int8) - 8, (tensor >> 4).to(torch.int8) - 8), -1)
            state[name] = dequantise(q.reshape(tensor.shape[0], tensor.shape[1], -1), packed[f"{name}.scale"])
        elif form == "q8":
            state[name] = dequantise(tensor, packed[f"{name}.scale"])
        elif form != "scale":
            state[key] = tensor
    return state
