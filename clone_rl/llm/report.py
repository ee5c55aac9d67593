"""How good a model and its exits are on held-out text and on tasks with one right answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from clone_rl.llm.anatomy import Anatomy
from clone_rl.llm.corpus import held_out, read_documents
from clone_rl.llm.exits import exit_statistics
from clone_rl.llm.fitting import encoding_of, fit_and_judge
from clone_rl.llm.model import LanguageModel
from clone_rl.llm.pretrain import exit_losses
from clone_rl.llm.prompts import KINDS, make_prompt, reserved_texts
from clone_rl.llm.quality import judged, quality_report
from clone_rl.llm.samples import Encoding, read_samples, run_exits
from clone_rl.llm.windows import stream

_ANSWERS_SEED = 6_500_000_000  # prompts that nothing was trained, fitted or controlled on
_CONTEXT = 256


@torch.inference_mode()
def exact_match(anatomy: Anatomy, encoding: Encoding, prompts: int = 100) -> dict[str, list[float]]:
    """Share of prompts with one right answer that greedy decoding answers exactly, by kind and by fixed exit.

    A greedy answer is the right one if and only if every token of it is the most probable one after the right tokens before
    it, so one pass over prompt and answer tells; keys and values are those of full depth.

    Args:
        anatomy: The model.
        encoding: How it wants its text.
        prompts: Of each kind.

    Returns:
        By kind, L shares: after layer 1 to L. A kind whose prompts do not fit the context is left out.
    """
    reserved = reserved_texts()
    found: dict[str, list[float]] = {}
    for kind in KINDS[1:]:
        right, count = torch.zeros(len(anatomy.layers)), 0
        for seed in range(_ANSWERS_SEED, _ANSWERS_SEED + 4 * prompts):
            prompt = make_prompt(kind, seed)
            head = [*encoding.start, *encoding.encode(prompt.text)]
            ids = torch.tensor([[*head, *encoding.encode(prompt.answer), *encoding.end]], device=anatomy.device)
            if prompt.text in reserved or ids.shape[1] > encoding.context:
                continue
            states = [state[0, len(head) - 1 : -1] for state in anatomy.states(ids)]
            target = ids[0, len(head) :]
            right += (exit_statistics(anatomy, states, target).top == target).all(-1).float().cpu()
            count += 1
            if count == prompts:
                break
        if count:
            found[kind] = (right / count).tolist()
    return found


def report(lm: LanguageModel, text: Path, tokens: int = 60_000, seed: int = 0) -> dict[str, Any]:
    """Measure a model; nothing is trained but, where it has no exit probe, one to report with.

    Args:
        lm: The model, at the precision that the chip charges.
        text: Folder of text; documents that pretraining holds out are measured on, or all where there are none of them.
        tokens: Positions to calibrate thresholds and to judge on.
        seed: Of the order of the documents.

    Returns:
        ``val_loss`` (nats, full depth), ``losses`` (every exit), ``agreement``, ``kl``, ``dnll`` (lists, by exit), and of
        ``quality.quality_report``: ``layers``, ``depth_at_quality``, ``kinds``; ``exact_match`` by kind and layer.

    Raises:
        BadFileError: No usable text.
    """
    documents = read_documents(text)
    held = [document for document in documents if held_out(document)] or documents
    encoding = encoding_of(lm)
    samples = read_samples(encoding, text, tokens, seed)
    start = lm.start_ids[0] if lm.start_ids else min(lm.end_ids, default=0)
    context = min(_CONTEXT, lm.shape.context)
    losses = exit_losses(lm.anatomy, stream(lambda texts: map(lm.tokenizer.encode, texts), held, start), context)
    if lm.probe is None:
        _, quality = fit_and_judge(lm.anatomy, samples, seed)
    else:
        slices = [
            run_exits(lm.anatomy, rows, name) for name, rows in (("calibrate", samples.calibrate), ("judge", samples.judge))
        ]
        with torch.no_grad():
            quality = quality_report(*(judged(exits, lm.probe.all_signals(exits.hidden)) for exits in slices))
    return {
        "model": lm.name,
        "model_sha256": lm.sha256,
        "precision": lm.precision,
        "parameters": sum(p.numel() for p in lm.model.parameters()),
        "val_loss": losses[-1],
        "losses": losses,
        **{name: [row[name] for row in quality["layers"]] for name in ("agreement", "kl", "dnll")},
        **quality,
        "exact_match": exact_match(lm.anatomy, encoding),
    }
