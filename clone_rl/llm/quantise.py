"""The weight formats that the chip stores: signed integers with one scale per group, and how they travel on disk.

The package's own: decoder matrices are 4-bit with one float16 scale per 64 inputs; the tied embedding and head is 8-bit with
one scale per row; norms stay float32. The language model runs on exactly these values, so the precision of the weights that
the emulator charges is the precision that was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from clone_rl.hw_emulator.precision import BITS, Precision

GROUP = 64
"""Inputs that share one scale in a 4-bit matrix."""

_LEAST_GROUP = 16
_F8, _F8_MAX = torch.float8_e4m3fn, 448.0
_SCALE_MIN, _SCALE_MAX = 1e-7, 65504.0  # of float16

Q4_MAX, Q8_MAX = 7, 127


def weight_bits(name: str, tensor: torch.Tensor) -> int:
    """Bits per weight that the format gives to a named parameter: 4, 8 or 32 (kept as it is)."""
    if tensor.ndim != 2:
        return 32
    # Two 4-bit weights share a byte.
    return 8 if "embed" in name or "lm_head" in name or tensor.shape[1] % 2 else 4


def group_size(inputs: int) -> int:
    """Inputs that share a scale in a 4-bit matrix: 64, or the next smaller even divisor, or where that is tiny a whole row.

    >>> [group_size(inputs) for inputs in (256, 32, 90, 134)]
    [64, 32, 30, 134]
    """
    fits = (g for g in range(GROUP, _LEAST_GROUP - 1, -1) if inputs % g == 0 and (g % 2 == 0 or inputs % 2))
    return next(fits, inputs)


def quantise(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a matrix to integers.

    Args:
        weight: Float matrix, shape (out, in).
        bits: 4 (a scale per ``group_size`` inputs) or 8 (a scale per row).

    Returns:
        ``(q, scale)``: int8 of shape (out, groups, in / groups) and float16 of shape (out, groups, 1).
    """
    top, groups = (Q4_MAX, weight.shape[1] // group_size(weight.shape[1])) if bits == 4 else (Q8_MAX, 1)
    blocks = weight.detach().float().reshape(weight.shape[0], groups, -1)
    scale = (blocks.abs().amax(-1, keepdim=True) / top).clamp(_SCALE_MIN, _SCALE_MAX).half()
    return (blocks / scale.float()).round().clamp(-top, top).to(torch.int8), scale


def dequantise(q: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The float32 matrix, shape (out, in), that a quantised one stands for."""
    return (q.float() * scale.float()).reshape(q.shape[0], -1)


def fake_quantise(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """The nearest matrix that the format can store, as float32."""
    return dequantise(*quantise(weight, bits))


def stored_as(weight: torch.Tensor, form: str) -> torch.Tensor:
    """The nearest matrix that a number format can store.

    Args:
        weight: Float matrix, shape (out, in).
        form: Key of ``BITS``; formats of 16 bits and more change nothing.
    """
    if BITS[form] > 8:
        return weight
    if form == "fp8":
        scale = (weight.abs().amax(-1, keepdim=True).float() / _F8_MAX).clamp_min(_SCALE_MIN)
        return (weight.float() / scale).to(_F8).float() * scale
    return fake_quantise(weight, BITS[form])


@torch.no_grad()
def quantise_model(model: Any, precision: Precision) -> None:
    """Round a model's matrices in place to what the chip would store: decoder matrices, and embeddings with the head.

    Args:
        model: A ``transformers`` causal language model.
        precision: ``weights`` is the format of the decoder, ``head`` that of embeddings and head.
    """
    head = model.get_output_embeddings()
    done: set[int] = set()
    for module in model.modules():
        if module is head or isinstance(module, nn.Embedding):
            form = precision.head
        elif isinstance(module, nn.Linear | Conv1D):
            form = precision.weights
        else:
            continue
        # A tied head is the embedding's tensor: once.
        if BITS[form] > 8 or id(module.weight) in done:
            continue
        done.add(id(module.weight))
        # Conv1D of GPT-2 keeps (in, out).
        matrix = module.weight.T if isinstance(module, Conv1D) else module.weight
        matrix.copy_(stored_as(matrix, form))


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
