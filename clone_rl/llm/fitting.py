"""A probe from text to figures: run the model, fit, calibrate and judge on text that neither saw."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch

from clone_rl.errors import BadValueError
from clone_rl.llm.anatomy import Anatomy
from clone_rl.llm.probe import Probe, calibrated, fit_probe
from clone_rl.llm.quality import judged, quality_report
from clone_rl.llm.samples import Encoding, Samples, count_tokens, run_exits

if TYPE_CHECKING:
    from clone_rl.llm.model import LanguageModel

_MEMORY_SHARE = 0.5
"""Share of the machine's memory that the states may take."""


def encoding_of(lm: LanguageModel) -> Encoding:
    """How a loaded model wants its text."""
    start = tuple(lm.start_ids)
    end = (min(lm.end_ids),) if lm.end_ids else ()
    return Encoding(lambda text: lm.encode(text)[len(start) :], start, end, lm.shape.context)


def fit_and_judge(anatomy: Anatomy, samples: Samples, seed: int = 0, quiet: bool = False) -> tuple[Probe, dict[str, Any]]:
    """Fit a model's probe and measure it.

    Args:
        anatomy: The model.
        samples: Text in three slices.
        seed: Of the fit.
        quiet: No progress bars.

    Returns:
        The calibrated probe, and the report of ``quality.quality_report`` with ``tokens_by_slice``.

    Raises:
        BadValueError: The model has a single layer, its states are not finite, or those of so many tokens exceed the memory.
    """
    exits = len(anatomy.layers) - 1
    if exits < 1:
        raise BadValueError("a model of one layer has no exit", "give a deeper one")
    tokens = {name: count_tokens(getattr(samples, name)) for name in ("fit", "calibrate", "judge")}
    _check_memory(exits * anatomy.width, tokens)
    fit = run_exits(anatomy, samples.fit, "1/3 fit", quiet)
    if not (fit.hidden.isfinite().all() and fit.kl.isfinite().all()):
        raise BadValueError("the model's states or logits are not finite", "check its weights, or load it in float32")
    probe = fit_probe(fit.hidden, fit.agree, fit.kl, seed=seed)
    del fit
    other = run_exits(anatomy, samples.calibrate, "2/3 calibrate", quiet)
    probe = calibrated(probe, other.hidden, other.agree, other.kl)
    slices = [other, run_exits(anatomy, samples.judge, "3/3 judge", quiet)]
    with torch.no_grad():
        report = quality_report(*(judged(exits, probe.all_signals(exits.hidden)) for exits in slices))
    return probe, {**report, "tokens_by_slice": tokens}


def _check_memory(values: int, tokens: dict[str, int]) -> None:
    """Refuse what would not fit: ``values`` half-precision numbers for each token."""
    most = _MEMORY_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (2 * values)
    if (wanted := sum(tokens.values())) > most:
        raise BadValueError(
            f"the states of {wanted} tokens take {wanted * values * 2 / 2**30:.0f} GiB", f"ask for at most {most:.0f} tokens"
        )
