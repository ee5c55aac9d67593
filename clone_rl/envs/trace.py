"""Traces: what each exit of each token would have shown and emitted, recorded once and replayed without the model.

A trace set is a folder of columns (one ``.npy`` each) and a ``card.json`` that says where they come from.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clone_rl.errors import BadFileError, BadValueError, UnknownNameError, reason
from clone_rl.files import building

FORMAT = 2

Column = NDArray[np.float16] | NDArray[np.float32]
"""Half precision on disk, single in memory."""

SIGNALS = ("agree", "kl")
"""What the exit probe predicts at a boundary: probability of agreement with full depth, and KL(full || exit) in nats."""

HIDDEN = ("norm", "change", "cosine")
"""Statistics of the residual stream h_i after layer i: log10 of its RMS, |h_i - h_(i-1)| / |h_i|, cosine(h_i, h_(i-1))."""

SPLITS = ("train", "validation", "test")

PER_TOKEN = ("signal", "agree", "kl", "dnll", "hidden", "margin", "entropy")
"""Columns with a row for every token, stored in half precision."""

PER_DOCUMENT = ("prompt_tokens", "split", "kind", "sampled")
"""Columns with a row for every document, stored as integers; ``offset`` has one more."""

_DIMENSIONS = dict.fromkeys(("offset", *PER_DOCUMENT), 1) | dict.fromkeys(PER_TOKEN, 2) | {"signal": 3, "hidden": 3}

CHUNK = 1 << 16
"""Rows of a column to look at in one go: a set may be larger than memory."""


def column_shapes(documents: int, tokens: int, layers: int) -> dict[str, tuple[int, ...]]:
    """The shape of every column of a set."""
    exits = layers - 1
    return {
        "offset": (documents + 1,),
        **dict.fromkeys(PER_DOCUMENT, (documents,)),
        "signal": (tokens, exits, len(SIGNALS)),
        "hidden": (tokens, exits, len(HIDDEN)),
        **dict.fromkeys(("agree", "kl", "dnll"), (tokens, exits)),
        **dict.fromkeys(("margin", "entropy"), (tokens, exits + 1)),
    }


@dataclass(frozen=True)
class TraceSet:
    """Documents (requests) of tokens; D documents, T tokens in all, L layers, exits after layers 1 to L - 1.

    The columns of a loaded set with a row for every token lie on disk, memory-mapped in half precision: ``read`` gives rows of
    them in single precision, and ``packed`` what the kernel replays.

    Attributes:
        card: Provenance: ``layers``, ``kinds``, ``model``, ``model_sha256``, ``probe``, ``precision`` and so on.
        offset: (D + 1,) first token of each document.
        prompt_tokens: (D,) tokens of the prompt.
        split: (D,) index into ``SPLITS``.
        kind: (D,) index into ``card["kinds"]``.
        sampled: (D,) 1 where the response is the model's own, 0 where the text was given (teacher-forced).
        signal: (T, L - 1, 2) the probe's outputs after layer 1, 2, ...; see ``SIGNALS``.
        agree: (T, L - 1) 1 where the exit's top token is full depth's.
        kl: (T, L - 1) KL(full || exit), nats.
        dnll: (T, L - 1) increase of the negative log-likelihood of the token in the text, nats.
        hidden: (T, L - 1, 3) the residual stream after layer 1, 2, ...; see ``HIDDEN``.
        margin: (T, L) log-probability of the top token less that of the second, nats, in the distribution that leaving after
            layer 1, 2, ... emits; the last column is full depth.
        entropy: (T, L) entropy of that distribution, nats.

    Raises:
        BadFileError: Columns do not fit together.
    """

    card: dict[str, Any]
    offset: NDArray[np.int64]
    prompt_tokens: NDArray[np.int64]
    split: NDArray[np.int64]
    kind: NDArray[np.int64]
    sampled: NDArray[np.int64]
    signal: Column
    agree: Column
    kl: Column
    dnll: Column
    hidden: Column
    margin: Column
    entropy: Column
    source: str = field(default="memory", compare=False)

    def __post_init__(self) -> None:
        documents, tokens = len(self.offset) - 1, len(self.signal)
        for name, shape in column_shapes(documents, tokens, int(self.card["layers"])).items():
            if getattr(self, name).shape != shape:
                raise BadFileError(f"{self.source}: column {name!r} has shape {getattr(self, name).shape}, not {shape}")
        lengths = np.diff(self.offset)
        if documents < 1 or self.offset[0] != 0 or self.offset[-1] != tokens or (lengths < 1).any():
            raise BadFileError(f"{self.source}: every document needs at least one token and offsets must ascend from 0")
        if (self.prompt_tokens < 1).any():
            raise BadFileError(f"{self.source}: a prompt has no tokens")
        for name, known in (("kind", len(self.kinds)), ("split", len(SPLITS))):
            if not ((getattr(self, name) >= 0) & (getattr(self, name) < known)).all():
                raise BadFileError(f"{self.source}: column {name!r} names something that does not exist")
        # What lies on disk is looked at when it is read.
        held = [name for name in PER_TOKEN if not isinstance(getattr(self, name), np.memmap)]
        if not all(np.isfinite(getattr(self, name)).all() for name in held):
            raise BadFileError(f"{self.source}: a value is not finite")

    def read(self, name: str, rows: Any = slice(None)) -> NDArray[np.float32]:
        """Rows of a column with one for every token, in single precision.

        Args:
            name: One of ``PER_TOKEN``.
            rows: Which rows, as NumPy takes them.

        Raises:
            BadFileError: A value is not finite.
        """
        found = np.ascontiguousarray(getattr(self, name)[rows], np.float32)
        if not np.isfinite(found).all():
            raise BadFileError(f"{self.source}: a value of column {name!r} is not finite", "record it again")
        return found

    @cached_property
    def packed(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What the kernel replays: (T, L - 1, 2) see ``scaled_signals``, and (T, L - 1, 3) disagreement, dNLL and KL.

        Raises:
            BadFileError: A value is not finite.
        """
        outcome = np.stack([1.0 - self.read("agree"), self.read("dnll"), self.read("kl")], 2)
        return scaled_signals(self.read("signal")), outcome

    @property
    def layers(self) -> int:
        """Decoder layers of the recorded model."""
        return int(self.card["layers"])

    @property
    def kinds(self) -> list[str]:
        """Names of the request types."""
        return list(self.card["kinds"])

    @property
    def probe_dots(self) -> int:
        """Dot products with the residual stream that the recorded model's probe takes at a boundary."""
        return int(self.card.get("probe_dots", len(SIGNALS)))

    def documents(self, split: str) -> NDArray[np.int64]:
        """Indices of the documents of a split.

        Raises:
            UnknownNameError: Not one of ``SPLITS``.
            BadValueError: The set has none.
        """
        if split not in SPLITS:
            raise UnknownNameError("split", split, SPLITS)
        found = np.flatnonzero(self.split == SPLITS.index(split))
        if len(found) == 0:
            raise BadValueError(
                f"{self.source} has no {split} documents",
                f"record prompts: clone-rl record --prompt-file FILE --split {split}",
            )
        return found

    def decoded(self, documents: NDArray[np.int64]) -> NDArray[np.int64]:
        """(N,) tokens of documents that were decoded: all but each one's first, which comes from prefill and has no exits."""
        return np.concatenate([np.arange(self.offset[d] + 1, self.offset[d + 1]) for d in documents])

    def mean_tokens(self, split: str = "train") -> NDArray[np.float64]:
        """Mean response length of each kind on a split: the length predictor of the observation."""
        lengths, chosen = np.diff(self.offset), self.split == SPLITS.index(split)
        overall = float(lengths[chosen].mean()) if chosen.any() else float(lengths.mean())
        means = np.full(len(self.kinds), overall)
        for index in range(len(means)):
            if (rows := chosen & (self.kind == index)).any():
                means[index] = lengths[rows].mean()
        return means

    def save(self, folder: Path) -> None:
        """Write the set; the folder appears only when it is complete.

        Raises:
            BadFileError: ``folder`` exists.
        """
        if folder.exists():
            raise BadFileError(f"{folder} exists", "choose another folder or remove it")
        with building(folder) as aside:
            for name in _DIMENSIONS:
                column = getattr(self, name)
                # float16 keeps what a probe, a probability and a difference of nats are good for, at half the size.
                np.save(aside / f"{name}.npy", column.astype(np.float16) if name in PER_TOKEN else column.astype(np.int32))
            (aside / "card.json").write_text(json.dumps({"format": FORMAT, **self.card}, indent=2) + "\n", encoding="utf-8")


ODDS_SCALE = 6.0
"""Log-odds of agreement that are observed as 1: exits are decided from 0.9 to 0.99, which a probability hardly tells apart."""

_DECADES = 3.0
_LEAST = 1e-6


def scaled_signals(signal: NDArray[np.float32]) -> NDArray[np.float32]:
    """The probe's outputs (..., 2) as they are observed, within [-1, 1].

    Log-odds of agreement / ``ODDS_SCALE``; and log10 of the predicted KL / 3 + 1, 1 for a nat or more and -1 for a millionth.
    """
    chance = np.clip(signal[..., 0].astype(np.float64), _LEAST, 1.0 - _LEAST)
    kl = np.maximum(signal[..., 1].astype(np.float64), _LEAST)
    scaled = np.stack([np.log(chance / (1.0 - chance)) / ODDS_SCALE, np.log10(kl) / _DECADES + 1.0], -1)
    return np.clip(scaled, -1.0, 1.0).astype(np.float32)


def shown_agreement(chance: float) -> float:
    """Log-odds of a probability of agreement as they are observed, not cut off; infinite for 0 and 1."""
    return math.log(chance / (1.0 - chance)) / ODDS_SCALE if 0.0 < chance < 1.0 else math.copysign(math.inf, chance - 0.5)


def shown_kl(kl: float) -> float:
    """A KL (nats) as it is observed, not cut off; minus infinity for 0 and below."""
    return math.log10(kl) / _DECADES + 1.0 if kl > 0.0 else -math.inf


def scaled_signal(chance: float, kl: float) -> tuple[float, float]:
    """``scaled_signals`` of one boundary, without the detour of arrays."""
    shown = shown_agreement(min(max(chance, _LEAST), 1.0 - _LEAST)), shown_kl(max(kl, _LEAST))
    return min(max(shown[0], -1.0), 1.0), min(max(shown[1], -1.0), 1.0)


def content_sha256(card: dict[str, Any], columns: dict[str, NDArray[Any]]) -> str:
    """Hash of a set's model, documents and columns, whatever precision they are held in.

    Args:
        card: With ``model_sha256``, ``kinds`` and ``keys``.
        columns: All of them, by name.
    """
    digest = hashlib.sha256(json.dumps([card["model_sha256"], card["kinds"], card["keys"].split()]).encode())
    for name in sorted(columns):
        wide = np.float32 if name in PER_TOKEN else np.int64
        for start in range(0, len(columns[name]), CHUNK):
            digest.update(np.ascontiguousarray(columns[name][start : start + CHUNK], wide).tobytes())
    return digest.hexdigest()


def blank_trace(layers: int, prompt_tokens: int, tokens: int) -> TraceSet:
    """One document to be filled in while a live model generates it.

    Args:
        layers: Decoder layers of the model.
        prompt_tokens: Length of the prompt.
        tokens: Most tokens that the response may have.
    """
    exits = layers - 1
    one = np.zeros(1, np.int64)
    return TraceSet(
        card={"layers": layers, "kinds": ["live"]},
        offset=np.array([0, tokens]),
        prompt_tokens=np.array([prompt_tokens]),
        split=one,
        kind=one.copy(),
        sampled=np.ones(1, np.int64),
        signal=np.zeros((tokens, exits, len(SIGNALS)), np.float32),
        agree=np.ones((tokens, exits), np.float32),
        kl=np.zeros((tokens, exits), np.float32),
        dnll=np.zeros((tokens, exits), np.float32),
        hidden=np.zeros((tokens, exits, len(HIDDEN)), np.float32),
        margin=np.zeros((tokens, layers), np.float32),
        entropy=np.zeros((tokens, layers), np.float32),
        source="live",
    )


def trace_names() -> list[str]:
    """Names of the shipped trace sets."""
    folder = resources.files("clone_rl.envs") / "traces"
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(("_", ".")))


def trace_folder(name: str) -> Path:
    """The folder of a shipped trace set, or of any by its path.

    Raises:
        UnknownNameError: Neither a shipped set nor a folder.
    """
    if name in trace_names():
        return Path(str(resources.files("clone_rl.envs") / "traces" / name))
    if Path(name).is_dir():
        return Path(name).resolve()
    raise UnknownNameError("trace set", name, trace_names(), "or give a folder")


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a trace set, of whatever format.

    Raises:
        BadFileError: There is none, or it is not one.
    """
    try:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadFileError(f"{folder} is not a trace set: no card.json", "record one with clone-rl record") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadFileError(f"{folder} is not a trace set: card.json: {reason(error)}", "record it again") from None
    if not isinstance(card, dict) or not isinstance(card.get("kinds"), list):
        raise BadFileError(f"{folder}: card.json is not the card of a trace set", "record it again")
    return card


def _read(folder: Path) -> TraceSet:
    card = read_card(folder)
    try:
        if card.get("format") != FORMAT:
            raise BadFileError(f"{folder} has trace format {card.get('format')!r}, not {FORMAT}", "record it again")
        columns: dict[str, Any] = {}
        for name, dimensions in _DIMENSIONS.items():
            column = np.load(folder / f"{name}.npy", mmap_mode="r" if name in PER_TOKEN else None, allow_pickle=False)
            if column.ndim != dimensions:
                raise BadFileError(f"{folder}: column {name!r} has {column.ndim} dimensions, not {dimensions}")
            columns[name] = column if name in PER_TOKEN else np.ascontiguousarray(column, np.int64)
        return TraceSet(card=card, source=str(folder), **columns)
    except FileNotFoundError as error:
        raise BadFileError(
            f"{folder} is not a trace set: no {Path(error.filename).name}", "record one with clone-rl record"
        ) from None
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise BadFileError(f"{folder} is not a trace set: {reason(error)}") from None


@lru_cache(maxsize=32)
def _loaded(folder: str, _written_ns: int) -> TraceSet:
    return _read(Path(folder))


def load_traces(name: str) -> TraceSet:
    """Load a shipped trace set by name, or any by the path of its folder; the same set again is the same object.

    Raises:
        UnknownNameError: Neither a shipped set nor a folder.
        BadFileError: The folder is not a complete trace set of this format.
    """
    folder = trace_folder(name)
    card = folder / "card.json"
    return _loaded(str(folder), card.stat().st_mtime_ns if card.exists() else 0)
