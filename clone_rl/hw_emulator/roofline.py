"""The roofline of a chip loaded with a model: what compute and memories allow, and where each piece of work lies under it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from clone_rl.hw_emulator.chip import Asic, Board
from clone_rl.hw_emulator.cost import work_latency, work_parts
from clone_rl.hw_emulator.emulator import HEAD, LAYER, Emulator

_KEPT = ("window", "block_rows")
"""Fields of ``WORK`` that are no sums."""


def _is_attention(field: str) -> bool:
    """Whether a field of ``WORK`` is of attention and its cache."""
    return field.endswith(("_per_score", "_per_read")) or field.startswith("kv_bytes")


@dataclass(frozen=True)
class Roof:
    """What the chip allows at an operating point.

    Attributes:
        point: Operating point.
        macs_per_s: Peak by number format of the model's multiplications, that of the weights first; of a board the measured
            rate of large products.
        bytes_per_s: Bandwidth by memory: ``"SRAM"`` of an ASIC, ``"DRAM"`` where there is one, and ``"stream"``, the fastest
            that a board's runtime has been measured to stream weights.
    """

    point: int
    macs_per_s: dict[str, float]
    bytes_per_s: dict[str, float]


@dataclass(frozen=True)
class Placed:
    """A piece of work under the roof.

    Attributes:
        piece: Such as ``"projections"`` or ``"attention"``.
        phase: ``"decode"`` or ``"prefill"``.
        point: Operating point.
        memory: Which memory takes it longest, and whose bytes ``macs_per_byte`` counts.
        macs_per_byte: Arithmetic intensity.
        macs_per_s: Rate at which it runs.
    """

    piece: str
    phase: str
    point: int
    memory: str
    macs_per_byte: float
    macs_per_s: float


def roofs(emulator: Emulator, points: Sequence[int]) -> list[Roof]:
    """The roofs at some operating points."""
    chip, constants = emulator.chip, emulator.constants[0]
    formats = dict.fromkeys(emulator.workload.precision.multiplier(part) for part in ("weights", "head", "kv"))
    found = []
    for k in points:
        clock_hz = float(emulator.points[k]["frequency_hz"])
        bytes_per_s = {"DRAM": float(constants["dram_bytes_per_s"])} if chip.dram else {}
        if isinstance(chip, Asic):
            peaks = {number: chip.macs_per_cycle(number) * clock_hz for number in formats}
            bytes_per_s["SRAM"] = float(constants["sram_bytes_per_cycle"]) * clock_hz
        else:
            assert isinstance(chip, Board)
            peaks = {next(iter(formats)): chip.board.gemm_macs_per_cycle * clock_hz}
            bytes_per_s["stream"] = chip.board.stream_bytes_per_cycle * clock_hz
        found.append(Roof(k, peaks, bytes_per_s))
    return found


def _pieces(emulator: Emulator) -> dict[str, Any]:
    """Records of ``WORK`` by name: each kind of layer taken apart, and the head."""
    workload = emulator.workload
    bare = emulator
    if workload.lora_rank:
        bare = Emulator(emulator.chip, replace(workload, lora_rank=0), emulator.switching, context=emulator.context)
    pieces: dict[str, Any] = {}
    for index in emulator.classes:
        whole = bare.work[LAYER + index]
        projections, attention = whole.copy(), whole.copy()
        for name in set(whole.dtype.names) - set(_KEPT):
            (projections if _is_attention(name) else attention)[name] = 0.0
        window = workload.window_of(index)
        pieces["projections"] = projections
        pieces[f"attention, window {window:.0f}" if math.isfinite(window) else "attention"] = attention
    if workload.lora_rank:
        added = emulator.work[LAYER].copy()
        for name in set(added.dtype.names) - set(_KEPT):
            if math.isfinite(added[name]):
                added[name] -= bare.work[LAYER][name]
        pieces["LoRA"] = added
    return pieces | {"head": emulator.work[HEAD]}


def place(emulator: Emulator, prompt: int, context: int, points: Sequence[int]) -> list[Placed]:
    """Every kind of work in decode and prefill, at some operating points.

    Args:
        emulator: A chip loaded with a model.
        prompt: Tokens of the prefill.
        context: Positions that a decode step attends to.
        points: Operating points.
    """
    placed = []
    for roof in roofs(emulator, points):
        for piece, work in _pieces(emulator).items():
            # The head runs once after a prefill: the same work as in a decode step.
            phases = {"decode": (1.0, float(context), False), "prefill": (float(prompt), 0.0, True)}
            for phase, (rows, before, causal) in phases.items():
                if piece == "head" and phase == "prefill":
                    continue
                scores, _, _, sram, read, written, _ = work_parts(emulator.constants[0], work, rows, before, causal)
                macs = rows * float(work["macs_per_row"]) + scores * float(work["macs_per_score"])
                moved = {"DRAM": read + written, "SRAM": sram}
                if work["lpu_cycles_per_row"] > 0:
                    # Adapters have a memory of their own, which no roof of the array stands for.
                    moved, slowest = {"LoRA unit": emulator.workload.lora_bytes}, "LoRA unit"
                else:
                    slowest = max(set(moved) & set(roof.bytes_per_s), key=lambda name: moved[name] / roof.bytes_per_s[name])
                seconds = work_latency(emulator.constants[0], emulator.points[roof.point], work, rows, before, causal)
                placed.append(Placed(piece, phase, roof.point, slowest, macs / moved[slowest], macs / seconds))
    return placed
