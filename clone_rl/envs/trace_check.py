"""Checks of a trace set: what a replay relies on, and what whoever reads its results has to know, one by one."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clone_rl.envs.trace import (
    CHUNK,
    FORMAT,
    HIDDEN,
    PER_DOCUMENT,
    PER_TOKEN,
    SIGNALS,
    SPLITS,
    column_shapes,
    content_sha256,
    read_card,
    trace_folder,
)
from clone_rl.errors import CloneRLError, reason
from clone_rl.hw_emulator.ledger import KV
from clone_rl.hw_emulator.workload import is_count, stored_workload

_NOISE = 2.0**-10
"""Step of half precision at 1, relative to a bound that rounding may overstep."""

_AGAIN = "record the set again with clone-rl record"
_DAMAGED = "the file was damaged or edited: take a fresh copy, or record the set again"


@dataclass(frozen=True)
class Check:
    """One thing that has to hold of a trace set.

    Attributes:
        name: What is looked at; unique.
        wants: What has to hold.
        passed: Whether it does; None where it could not be looked at, because a check before it failed.
        found: The first offence and its place, requests and tokens counted from 0; empty where there is none.
        fix: What to do about it.
    """

    name: str
    wants: str
    passed: bool | None
    found: str = ""
    fix: str = ""

    def as_json(self) -> dict[str, Any]:
        """Plain data; ``passed`` is called ``pass``."""
        return {"name": self.name, "wants": self.wants, "pass": self.passed, "found": self.found, "fix": self.fix}


def check_traces(name: str) -> list[Check]:
    """Look at everything in a trace set.

    Args:
        name: Of a shipped set, or the path of a folder.

    Returns:
        Every check, in one order. Those of values show only their first offence.

    Raises:
        UnknownNameError: Neither a shipped set nor a folder.
        BadFileError: The folder has no card that can be read.
    """
    folder = trace_folder(name)
    parts, checks, stopped = _Parts(folder, read_card(folder)), [], False
    for rule in _RULES:
        offence = "" if stopped else rule.offence(parts)
        checks.append(Check(rule.name, rule.wants, None if stopped else not offence, offence, rule.fix if offence else ""))
        stopped = stopped or (rule.needed and bool(offence))
    return checks


@dataclass(frozen=True)
class _Parts:
    """A set as it lies on disk, fitting or not; the columns come with the rule that looks at their files."""

    folder: Path
    card: dict[str, Any]
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def vocabulary(self) -> int:
        return stored_workload(self.card["shape"], "card.json").vocab_size

    def place(self, token: int, layer: int) -> str:
        """Where a row of a column is."""
        offset = self.columns["offset"]
        request = int(np.searchsorted(offset, token, "right")) - 1
        return f"request {request}, token {token - offset[request]} of it, after layer {layer + 1}"


@dataclass(frozen=True)
class _Rule:
    """How one check is made.

    Attributes:
        offence: The first one, in words; empty where there is none.
        needed: Nothing after it can be looked at where it does not hold.
    """

    name: str
    wants: str
    offence: Callable[[_Parts], str]
    fix: str
    needed: bool = False


def _count(value: Any) -> bool:
    return is_count(value) and value >= 1


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _hash(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


_PROVENANCE: dict[str, Callable[[Any], bool]] = {
    "model": _text,
    "model_sha256": _hash,
    "precision": _text,
    "probe_sha256": _hash,
    "probe_dots": _count,
    "prompts_sha256": _hash,
    "sampling": lambda value: isinstance(value, dict) and {"temperature", "top_k"} <= value.keys(),
    "kv": lambda value: value in KV,
    "mode": _text,
    "version": _text,
    "command": lambda value: isinstance(value, str),
}


def _format(parts: _Parts) -> str:
    card, kinds = parts.card, parts.card["kinds"]
    if card.get("format") != FORMAT:
        return f"card.json has format {card.get('format')!r}, not {FORMAT}"
    if not _count(card.get("layers")):
        return f"card.json has {card.get('layers')!r} layers"
    if not kinds or not all(map(_text, kinds)) or len(set(kinds)) < len(kinds):
        return f"card.json has kinds {kinds!r}, not names that differ"
    return ""


def _provenance(parts: _Parts) -> str:
    for name, fits in _PROVENANCE.items():
        if name not in parts.card:
            return f"card.json has no {name!r}"
        if not fits(parts.card[name]):
            return f"card.json has {name} {parts.card[name]!r}"
    return ""


def _shape(parts: _Parts) -> str:
    try:
        workload = stored_workload(parts.card.get("shape"), "card.json")
    except CloneRLError as error:
        return error.message
    if workload.layers != parts.card["layers"]:
        return f"card.json has {parts.card['layers']} layers and a model of {workload.layers}"
    return ""


def _columns(parts: _Parts) -> str:
    for name in ("offset", *PER_DOCUMENT, *PER_TOKEN):
        file = f"{name}.npy"
        try:
            column = np.load(parts.folder / file, mmap_mode="r" if name in PER_TOKEN else None, allow_pickle=False)
        except FileNotFoundError:
            return f"there is no {file}"
        except (OSError, EOFError, ValueError) as error:
            return f"{file} cannot be read: {reason(error)}"
        if name in PER_TOKEN and column.dtype != np.float16:
            return f"{file} holds {column.dtype}, not float16"
        if name not in PER_TOKEN and column.dtype.kind not in "iu":
            return f"{file} holds {column.dtype}, not integers"
        # As loading has them: differences of unsigned numbers would wrap around.
        parts.columns[name] = column if name in PER_TOKEN else column.astype(np.int64)
    documents, tokens = parts.columns["offset"].size - 1, parts.columns["signal"].shape[:1]
    shapes = column_shapes(documents, tokens[0] if tokens else 0, parts.card["layers"])
    for name, shape in shapes.items():
        if parts.columns[name].shape != shape:
            return f"{name}.npy has shape {parts.columns[name].shape}, not {shape}"
    return ""


def _offset(parts: _Parts) -> str:
    offset, tokens = parts.columns["offset"], len(parts.columns["signal"])
    if len(offset) < 2:
        return "there are no requests"
    if offset[0] != 0:
        return f"the first request begins at token {offset[0]}, not 0"
    if len(short := np.flatnonzero(np.diff(offset) < 1)):
        return f"request {short[0]} has {np.diff(offset)[short[0]]} tokens"
    if offset[-1] != tokens:
        return f"the last request ends at token {offset[-1]} of {tokens}"
    return ""


def _between(name: str, least: int, most: Callable[[_Parts], float]) -> Callable[[_Parts], str]:
    """The first request whose entry of a column is out of its range."""

    def offence(parts: _Parts) -> str:
        column, highest = parts.columns[name], most(parts)
        bad = np.flatnonzero((column < least) | (column > highest))
        if not len(bad):
            return ""
        return f"request {bad[0]} has {column[bad[0]]}, not {least} " + ("or more" if highest == math.inf else f"to {highest}")

    return offence


def _first(parts: _Parts, name: str, bad: Callable[[NDArray[np.float32]], NDArray[np.bool_]]) -> str:
    """The first value of a column with a row for every token that is bad."""
    column = parts.columns[name]
    for start in range(0, len(column), CHUNK):
        values = np.asarray(column[start : start + CHUNK], np.float32)
        if len(found := np.argwhere(bad(values))):
            row, layer = (int(i) for i in found[0][:2])
            return f"{parts.place(start + row, layer)}: {name} is {values[tuple(found[0])]:.4g}"
    return ""


def _finite(parts: _Parts) -> str:
    return next((found for name in PER_TOKEN if (found := _first(parts, name, lambda x: ~np.isfinite(x)))), "")


def _signal(parts: _Parts) -> str:
    chance = SIGNALS.index("agree")

    def bad(x: NDArray[np.float32]) -> NDArray[np.bool_]:
        found = x < 0
        found[..., chance] |= x[..., chance] > 1
        return found

    return _first(parts, "signal", bad)


def _hidden(parts: _Parts) -> str:
    change, cosine = HIDDEN.index("change"), HIDDEN.index("cosine")

    def bad(x: NDArray[np.float32]) -> NDArray[np.bool_]:
        found = np.zeros(x.shape, np.bool_)
        found[..., change] = x[..., change] < 0
        found[..., cosine] = np.abs(x[..., cosine]) > 1 + _NOISE
        return found

    return _first(parts, "hidden", bad)


def _entropy(parts: _Parts) -> str:
    most = math.log(parts.vocabulary) * (1 + _NOISE)
    return _first(parts, "entropy", lambda x: (x < -_NOISE) | (x > most))


def _keys(parts: _Parts) -> str:
    keys, documents = parts.card.get("keys"), len(parts.columns["split"])
    if not isinstance(keys, str):
        return "card.json has no 'keys' of the requests"
    listed, seen = keys.split(), dict[str, int]()
    if len(listed) != documents:
        return f"card.json has {len(listed)} keys and the columns {documents} requests"
    for request, key in enumerate(listed):
        if (other := seen.setdefault(key, request)) != request:
            return f"request {request} has the key of request {other}: {key}"
    if hashlib.sha256(" ".join(listed).encode()).hexdigest() != parts.card.get("prompts_sha256"):
        return "prompts_sha256 in card.json is not the hash of its keys"
    return ""


def _document(parts: _Parts, request: int) -> bytes:
    """What tells a document apart, in whatever split it is.

    A given response belongs to it. What the model answered itself is known by its prompt, which alone makes the first row.
    """
    columns = parts.columns
    start, end = columns["offset"][request : request + 2]
    rows = slice(start, start + 1 if columns["sampled"][request] else end)
    digest = hashlib.sha256(f"{columns['prompt_tokens'][request]} {columns['sampled'][request]}".encode())
    for name in ("hidden", "signal"):
        digest.update(np.ascontiguousarray(columns[name][rows]).tobytes())
    return digest.digest()


def _splits(parts: _Parts) -> str:
    split, seen = parts.columns["split"], dict[bytes, int]()
    for request in range(len(split)):
        first = seen.setdefault(_document(parts, request), request)
        if split[first] != split[request]:
            return f"request {request} ({_split(split[request])}) is request {first} ({_split(split[first])})"
    return ""


def _split(index: int) -> str:
    return SPLITS[index] if 0 <= index < len(SPLITS) else str(index)


def _counts(parts: _Parts) -> str:
    columns, card = parts.columns, parts.card
    for k, kind in enumerate(card["kinds"]):
        for s, split in enumerate(SPLITS):
            counted = int(((columns["kind"] == k) & (columns["split"] == s)).sum())
            said = card.get("requests")
            for key in (kind, split):
                said = said.get(key) if isinstance(said, dict) else None
            if said != counted:
                return f"card.json has {said} {kind} requests for {split} and the columns {counted}"
    if card.get("tokens") != (tokens := int(columns["offset"][-1])):
        return f"card.json has {card.get('tokens')} tokens and the columns {tokens}"
    return ""


def _content(parts: _Parts) -> str:
    if missing := [name for name in ("sha256", "model_sha256", "keys") if not _text(parts.card.get(name))]:
        return f"card.json has no {missing[0]!r}"
    if (found := content_sha256(parts.card, parts.columns)) != parts.card["sha256"]:
        return f"the content hashes to {found[:12]} and card.json says {parts.card['sha256'][:12]}"
    return ""


_RULES = (
    _Rule("format", f"format {FORMAT}, with the number of layers and the kinds", _format, _AGAIN, needed=True),
    _Rule("provenance", "model, precision, probe, prompts, sampling and version", _provenance, _AGAIN),
    _Rule("shape", "of the model, as deep as the columns", _shape, _AGAIN, needed=True),
    _Rule("columns", "all there, of their types, in shapes that fit together", _columns, _DAMAGED, needed=True),
    _Rule("offset", "ascends from 0 to the last token: no response is empty", _offset, _DAMAGED, needed=True),
    _Rule("prompt_tokens", "1 or more", _between("prompt_tokens", 1, lambda _: math.inf), _AGAIN),
    _Rule("split", f"0 to {len(SPLITS) - 1}", _between("split", 0, lambda _: len(SPLITS) - 1), _DAMAGED),
    _Rule("kind", "one of the card's", _between("kind", 0, lambda parts: len(parts.card["kinds"]) - 1), _DAMAGED),
    _Rule("sampled", "0 or 1", _between("sampled", 0, lambda _: 1), _DAMAGED),
    _Rule("finite", "every number of every token", _finite, "another precision helps: clone-rl record --precision"),
    _Rule("signal", "a probability from 0 to 1, and a KL of 0 or more", _signal, "fit the probe again with clone-rl probe"),
    _Rule("agree", "0 or 1", lambda parts: _first(parts, "agree", lambda x: (x != 0) & (x != 1)), _AGAIN),
    _Rule("kl", "0 or more", lambda parts: _first(parts, "kl", lambda x: x < -_NOISE), _AGAIN),
    _Rule("hidden", "change of 0 or more, cosine from -1 to 1", _hidden, _AGAIN),
    _Rule("margin", "0 or more", lambda parts: _first(parts, "margin", lambda x: x < 0), _AGAIN),
    _Rule("entropy", "from 0 to the logarithm of the vocabulary", _entropy, _AGAIN),
    _Rule("keys", "one for every request, all different, as hashed in the card", _keys, _AGAIN),
    _Rule("splits", "no document is in two", _splits, "record the set again, every prompt with one split"),
    _Rule("counts", "requests by kind and split, and tokens, as the card has them", _counts, _DAMAGED),
    _Rule("content", "hashes to the card's sha256", _content, _DAMAGED),
)
