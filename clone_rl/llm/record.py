"""Record traces: what every exit of every token of a response shows and would emit.

One full pass per document; the heads of all exits are read for many tokens at a time.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from clone_rl.bars import Bar
from clone_rl.envs.trace import PER_DOCUMENT, PER_TOKEN, SPLITS, TraceSet, content_sha256
from clone_rl.errors import BadValueError
from clone_rl.llm.anatomy import Anatomy
from clone_rl.llm.documents import Document, Responses, answered
from clone_rl.llm.exits import exit_statistics, hidden_statistics
from clone_rl.llm.model import LanguageModel
from clone_rl.version import __version__

Columns = dict[str, NDArray[Any]]
"""What is recorded of each token of one response, by name of the column; float16, as a trace set is stored."""


class Kept(Protocol):
    """Columns of documents that are recorded, by key of the document."""

    def __contains__(self, key: str, /) -> bool: ...

    def __getitem__(self, key: str, /) -> Columns: ...

    def __setitem__(self, key: str, columns: Columns, /) -> None: ...


def record(
    lm: LanguageModel,
    documents: Sequence[Document],
    responses: Responses | None = None,
    command: str = "",
    kept: Kept | None = None,
    quiet: bool = False,
) -> TraceSet:
    """Record documents; those without a response are answered by the model first.

    What is recorded of a document depends on it, the model and ``responses`` alone, never on its neighbours.

    Args:
        lm: The model, with its probe.
        documents: What to record; a second one of the same key is left out.
        responses: How responses are drawn, and what the card says of them.
        command: What the user ran, for the card.
        kept: Columns by key of document: those in it are not recorded again, new ones are put into it one by one.
        quiet: No progress bar.

    Returns:
        A trace set with its provenance.

    Raises:
        BadValueError: No documents, a model without a probe, or one whose values are not finite.
    """
    if not documents:
        raise BadValueError("no prompts", "give at least one")
    lm.need_probe()
    responses = responses or Responses()
    kept = {} if kept is None else kept
    chosen = list({document.key: document for document in documents}.values())
    missing = [document for document in chosen if document.key not in kept]
    done = len(chosen) - len(missing)
    for document in Bar(missing, "record", len(chosen), unit="request", disable=quiet, initial=done, dynamic_ncols=True):
        kept[document.key] = measure(lm, answered(lm, document, responses))
    return _trace_set(lm, chosen, [kept[document.key] for document in chosen], responses, command)


@torch.inference_mode()
def measure(lm: LanguageModel, document: Document) -> Columns:
    """The columns of one document's response, one row per token.

    Args:
        lm: The model, with its probe.
        document: A document with a response.

    Returns:
        ``PER_TOKEN`` columns, float16, in the shapes of ``TraceSet``.

    Raises:
        BadValueError: A value is not finite.
    """
    ids = torch.tensor([document.ids], device=lm.anatomy.device)
    first, targets = document.prompt_tokens - 1, ids[0, document.prompt_tokens :]
    states = [state[0, first:] for state in _states(lm.anatomy, ids[:, :-1])]
    quality = exit_statistics(lm.anatomy, states[1:], targets)
    probe, exits = lm.need_probe(), states[1:-1]
    found = {
        "signal": torch.stack([probe.signals(state, layer) for layer, state in enumerate(exits, 1)], 1),
        "agree": quality.agree.T,
        "kl": quality.kl.T,
        "dnll": quality.dnll.T,
        "hidden": torch.stack([hidden_statistics(*pair) for pair in zip(states[:-2], exits, strict=True)], 1),
        "margin": quality.margin.T,
        "entropy": quality.entropy.T,
    }
    columns = {name: value.to(torch.float16).cpu().numpy() for name, value in found.items()}
    for name, column in columns.items():
        if not np.isfinite(column).all():
            raise BadValueError(
                f"{lm.name} gives values that are not finite ({name}, in a {document.kind} request)",
                "load the model in another precision",
            )
    return columns


def _states(anatomy: Anatomy, ids: torch.Tensor) -> list[torch.Tensor]:
    """The residual stream before the first layer and after every layer."""
    before: list[torch.Tensor] = []
    hook = anatomy.layers[0].register_forward_pre_hook(
        lambda _m, args, kwargs: before.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    try:
        after = anatomy.states(ids)
    finally:
        hook.remove()
    return [*before, *after]


def origin(lm: LanguageModel, responses: Responses) -> dict[str, Any]:
    """What has to be the same in documents that become one set."""
    probe = lm.need_probe()
    found = {
        "layers": lm.shape.layers,
        "shape": lm.shape.as_dict(),
        "model": lm.name,
        "model_sha256": lm.sha256,
        "precision": lm.precision,
        "probe_sha256": probe.sha256,
        "probe_dots": probe.dots,
        "sampling": asdict(responses.sampling),
        "kv": "exact",
    }
    return dict(json.loads(json.dumps(found)))  # as a card that was read back


def check_alike(card: dict[str, Any], other: dict[str, Any], what: str) -> None:
    """Whether two recordings can become one.

    Raises:
        BadValueError: They differ in what ``origin`` holds; the name of the first difference is given.
    """
    for name, value in other.items():
        if name != "model" and card.get(name) != value:
            raise BadValueError(
                f"{what} has another {name.replace('_', ' ')}: {card.get(name)!r}, not {value!r}",
                "record into another folder with --out",
            )


def _trace_set(
    lm: LanguageModel, documents: list[Document], rows: list[Columns], responses: Responses, command: str
) -> TraceSet:
    kinds = sorted({document.kind for document in documents})
    columns = {name: np.concatenate([row[name] for row in rows]).astype(np.float32) for name in PER_TOKEN}
    columns["prompt_tokens"] = np.array([document.prompt_tokens for document in documents])
    columns["split"] = np.array([SPLITS.index(document.split) for document in documents])
    columns["kind"] = np.array([kinds.index(document.kind) for document in documents])
    columns["sampled"] = np.array([int(document.sampled) for document in documents])
    columns["offset"] = np.cumsum([0, *(len(row["agree"]) for row in rows)])
    card = {
        **origin(lm, responses),
        "mode": responses.mode,
        "max_new_tokens": responses.max_new_tokens,
        "version": __version__,
        "command": command,
        "kinds": kinds,
    }
    return _with_figures(card, [document.key for document in documents], columns)


def _with_figures(card: dict[str, Any], keys: list[str], columns: dict[str, Any]) -> TraceSet:
    """A trace set whose card counts and hashes what is in it."""
    counts = Counter(zip(columns["kind"].tolist(), columns["split"].tolist(), strict=True))
    lengths = np.diff(columns["offset"])
    figures = {
        "requests": {kind: {split: counts[k, s] for s, split in enumerate(SPLITS)} for k, kind in enumerate(card["kinds"])},
        "tokens": int(columns["offset"][-1]),
        # The last token of a response needs no place in the context.
        "cut_by_context": int((columns["prompt_tokens"] + lengths > card["shape"]["context"]).sum()),
        "prompts_sha256": hashlib.sha256(" ".join(keys).encode()).hexdigest(),
        "keys": " ".join(keys),
    }
    whole = {**card, **figures}
    return TraceSet(card={**whole, "sha256": content_sha256(whole, columns)}, **columns)


def keys_of(traces: TraceSet) -> list[str]:
    """The keys of a set's documents, in order; none where its card does not hold them."""
    return str(traces.card.get("keys", "")).split()


def join(first: TraceSet, second: TraceSet) -> TraceSet:
    """One set of the documents of two whose origins are alike (see ``check_alike``), in order."""
    kinds = sorted({*first.kinds, *second.kinds})
    columns = {name: np.concatenate([getattr(first, name), getattr(second, name)]) for name in (*PER_TOKEN, *PER_DOCUMENT)}
    columns["kind"] = np.concatenate([np.array([kinds.index(k) for k in one.kinds])[one.kind] for one in (first, second)])
    columns["offset"] = np.concatenate([first.offset, first.offset[-1] + second.offset[1:]])
    added = {name: second.card[name] for name in ("command", "version", "mode", "max_new_tokens")}
    card = {
        **first.card,
        "mode": first.card["mode"] if first.card["mode"] == second.card["mode"] else "mixed",
        "max_new_tokens": max(first.card["max_new_tokens"], second.card["max_new_tokens"]),
        "kinds": kinds,
        "appended": [*first.card.get("appended", []), {**added, "requests": len(second.split)}],
    }
    return _with_figures(card, [*keys_of(first), *keys_of(second)], columns)
