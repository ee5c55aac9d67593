"""V12: energy of a decoded token on the AGX Orin over batch sizes and clocks, as EnergyLLM measured it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clone_rl.errors import BadFileError
from clone_rl.hw_emulator.chip import Board
from clone_rl.hw_emulator.emulator import HEAD, TERMS, Emulator
from clone_rl.hw_emulator.validation.check import Check, within, worst
from clone_rl.hw_emulator.validation.published import published
from clone_rl.hw_emulator.validation.reference import Row, read_tables
from clone_rl.hw_emulator.workload import Workload

Array = NDArray[np.float64]

FITTED = "fan_on"
"""In the name of the file that the board's constants are fitted to; others are held out."""


@dataclass(frozen=True)
class Grid:
    """Medians of one file; arrays by batch size and clock, NaN where nothing was measured.

    Attributes:
        batches: Sequences decoded at once.
        contexts: Positions that a step attends to, mean over the decoded tokens, by batch size.
        celsius: Die temperature, over the whole file.
        step_s: Seconds of one decode step.
        step_j: Joules of it.
    """

    batches: list[int]
    contexts: list[float]
    celsius: float
    step_s: Array
    step_j: Array

    @property
    def token_j(self) -> Array:
        """Joules of one token."""
        token_j: Array = self.step_j / np.array(self.batches)[:, None]
        return token_j


def workload() -> Workload:
    """The model that was measured."""
    return Workload.from_config(published()["energyllm"]["model"], "bf16")


def read_grids(reference: Path | None) -> dict[Path, Grid]:
    """Every file of EnergyLLM's AGX Orin measurements under a folder.

    Raises:
        BadFileError: No such folder, or a table breaks the rules of ``read_tables`` or has a clock that the board lacks.
    """
    columns = (
        "decode_freq_bin", "effective_batch_size", "decode_power_w", "decode_time", "num_prompt_tokens", "num_decode_tokens",
        "temperature",
    )  # fmt: skip
    return {
        path: _grid(path, rows) for path, rows in read_tables(reference, "agxorin_*fan*.csv", columns, (), columns[:1]).items()
    }


def _grid(path: Path, rows: list[Row]) -> Grid:
    clocks = len(Board.load("orin-agx-eager").operating_points)
    for row in rows:
        if row["decode_freq_bin"] not in range(clocks):
            raise BadFileError(f"{path}: decode_freq_bin is {row['decode_freq_bin']:g}", f"a clock from 0 to {clocks - 1}")
        if row["effective_batch_size"] < 1 or row["num_decode_tokens"] < 1:
            raise BadFileError(f"{path}: effective_batch_size or num_decode_tokens is below 1")
    batches = sorted({int(row["effective_batch_size"]) for row in rows})
    step_s, step_j = (np.full((len(batches), clocks), np.nan) for _ in range(2))
    contexts, decoded = [], published()["energyllm"]["decode_tokens"]
    for i, batch in enumerate(batches):
        of_batch = [row for row in rows if row["effective_batch_size"] == batch]
        contexts.append(float(np.median([row["num_prompt_tokens"] for row in of_batch])) / batch + decoded / 2)
        for k in range(clocks):
            # num_decode_tokens counts the tokens of all sequences.
            cell = [
                (row["decode_time"] * batch / row["num_decode_tokens"], row["decode_power_w"])
                for row in of_batch
                if row["decode_freq_bin"] == k
            ]
            if cell:
                step_s[i, k] = np.median([seconds for seconds, _ in cell])
                step_j[i, k] = np.median([seconds * watts for seconds, watts in cell])
    return Grid(batches, contexts, float(np.median([row["temperature"] for row in rows])), step_s, step_j)


def steps(emulator: Emulator, batch: int, context: float, celsius: float) -> dict[str, Array]:
    """``latency_s`` and each of ``TERMS`` of one decode step at every clock: all layers and the head."""
    table = emulator.table(context=context, tokens=batch, temperature_c=celsius)
    heads = [emulator.cost(HEAD, k, rows=batch, temperature_c=celsius) for k in range(len(emulator.points))]
    return {name: table[name].sum(0) + np.array([getattr(head, name) for head in heads]) for name in ("latency_s", *TERMS)}


def _token_j(emulator: Emulator, batch: int, context: float, celsius: float) -> Array:
    terms = steps(emulator, batch, context, celsius)
    return np.array(sum(terms[name] for name in TERMS)) / batch


def _least(name: str, token_j: Array, source: str, held_out: bool = False) -> Check:
    """Whether our clock of least energy is at most one step outside the measured range."""
    low, high = published()["energyllm"]["least_mhz"]
    clocks, k = _clocks_mhz(), int(np.nanargmin(token_j))
    passed = clocks.index(low) - 1 <= k <= clocks.index(high) + 1
    return Check(name, f"{low:g}-{high:g}", clocks[k], "1 clock", passed, source, None, held_out)


def _clocks_mhz() -> list[float]:
    return [point.frequency_hz / 1e6 for point in Board.load("orin-agx-eager").operating_points]


def _check_published() -> list[Check]:
    table, chip = published()["energyllm"], Board.load("orin-agx-eager")
    emulator, clocks = Emulator(chip, workload()), _clocks_mhz()
    ours = {batch: _token_j(emulator, batch, table["context"], chip.board.reference_c) for batch in table["batches"]}
    checks = [
        within(
            f"V12 EnergyLLM batch {row['batch']} at {row['clock_mhz']:g} MHz, J/token",
            row["joules_per_token"],
            ours[row["batch"]][clocks.index(row["clock_mhz"])],
            0.10,
            table["source"],
        )
        for row in table["rows"]
    ]
    return checks + [
        _least(f"V12 EnergyLLM batch {batch}, clock of least J/token, MHz", token_j, table["source"])
        for batch, token_j in ours.items()
    ]


def check_energyllm(reference: Path | None) -> list[Check]:
    """V12: the published cells and, of each file given, three batch sizes at all clocks."""
    table, chip = published()["energyllm"], Board.load("orin-agx-eager")
    checks, emulator = _check_published(), Emulator(chip, workload())
    for path, grid in read_grids(reference).items():
        held_out, source = FITTED not in path.stem, f"{table['source']}, {path.name}"
        for batch in [b for b in table["batches"] if b in grid.batches] or grid.batches:
            i = grid.batches.index(batch)
            measured, there = grid.token_j[i], np.isfinite(grid.token_j[i])
            ours = _token_j(emulator, batch, grid.contexts[i], grid.celsius)
            pairs = list(zip(measured[there].tolist(), ours[there].tolist(), strict=True))
            name = f"V12 {path.stem} batch {batch}"
            checks.append(worst(f"{name}, J/token at {len(pairs)} clocks", pairs, 0.10, source, held_out))
            least = _least(f"{name}, clock of least J/token, MHz", np.where(there, ours, np.nan), source, held_out)
            checks.append(least)
    return checks
