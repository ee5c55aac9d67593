"""Text that probes are fitted, calibrated and judged on, and what every exit of every token of it shows and would emit."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from clone_rl.bars import Bar
from clone_rl.errors import BadFileError, BadValueError
from clone_rl.llm.anatomy import Anatomy
from clone_rl.llm.corpus import held_out, read_documents
from clone_rl.llm.exits import exit_statistics
from clone_rl.llm.probe import normalised
from clone_rl.llm.prompts import KINDS, make_prompt, reserved_texts

PROSE = "prose"
TEXT_KINDS = (PROSE, *KINDS[1:])
"""Kinds of text: continuous prose, and the exact answers of the shipped request types."""

TEMPLATE_SHARE = 0.2
"""Share of the tokens that answers of templates get."""

_WINDOW, _FROM = 192, 32  # tokens, and the first position whose exits count: before it there is too little to go by
_SEEDS = {"fit": 5_000_000_000, "calibrate": 7_000_000_000, "judge": 6_000_000_000}  # of prompts, apart from all others
_SHARES = {"fit": 0.7, "calibrate": 0.15, "judge": 0.15}
_FEWEST_DOCUMENTS, _PASSAGE = 48, 1500  # below so many, documents are cut into passages of at least so many characters
_FEWEST_TOKENS = 200
_MOST_PROMPTS = 50_000  # to look through for answers that fit the context


class Encoder(Protocol):
    """Text to tokens, without tokens that the text does not hold."""

    def __call__(self, text: str, /) -> Sequence[int]: ...  # noqa: D102


class Sample(NamedTuple):
    """One window of text.

    Attributes:
        ids: Its tokens.
        start: First position whose exits count.
        kind: One of ``TEXT_KINDS``.
    """

    ids: list[int]
    start: int
    kind: str

    @property
    def tokens(self) -> int:
        """Positions that count: those with a successor."""
        return len(self.ids) - 1 - self.start


@dataclass(frozen=True)
class Samples:
    """Three slices of text that share no document.

    Attributes:
        fit, calibrate, judge: Their windows.
        text_sha256: Hash of the documents that they were drawn from.
    """

    fit: list[Sample]
    calibrate: list[Sample]
    judge: list[Sample]
    text_sha256: str


class Encoding(NamedTuple):
    """How a model wants its text; ``encoding_of`` a ``LanguageModel``.

    Attributes:
        encode: Text to tokens, with nothing added.
        start: Tokens that every text begins with.
        end: Tokens that end an answer; may be empty.
        context: Longest input, tokens.
    """

    encode: Encoder
    start: tuple[int, ...]
    end: tuple[int, ...]
    context: int


def _passages(document: str) -> Iterator[str]:
    """A document in passages of whole lines."""
    lines: list[str] = []
    for line in document.splitlines(keepends=True):
        lines.append(line)
        if sum(map(len, lines)) >= _PASSAGE:
            yield "".join(lines)
            lines = []
    yield "".join(lines)


def _windows(encoding: Encoding, documents: Sequence[str], tokens: float) -> list[Sample]:
    """The first windows of all documents, then their second ones and so on, until ``tokens`` positions count."""
    size = min(_WINDOW, encoding.context)
    width = size - len(encoding.start)

    def cut(document: str) -> Iterator[Sample]:
        ids = encoding.encode(document)
        for at in range(0, len(ids), width):
            window = Sample([*encoding.start, *ids[at : at + width]], min(_FROM, size // 2), PROSE)
            if window.tokens > 0:
                yield window

    found: list[Sample] = []
    waiting = [cut(document) for document in documents]
    while waiting:
        going = []
        for source in waiting:
            if tokens <= 0:
                return found
            for window in islice(source, 1):
                found.append(window)
                tokens -= window.tokens
                going.append(source)
        waiting = going
    return found


def _templates(encoding: Encoding, seed: int, tokens: float) -> Iterator[Sample]:
    """Exact answers of template prompts in turn, none of which control is trained or judged on."""
    reserved = _reserved()
    for number, kind in zip(range(_MOST_PROMPTS), cycle(KINDS[1:]), strict=False):
        if tokens <= 0:
            return
        prompt = make_prompt(kind, seed + number)
        head = [*encoding.start, *encoding.encode(prompt.text)]
        sample = Sample([*head, *encoding.encode(prompt.answer), *encoding.end], len(head) - 1, kind)
        if len(sample.ids) <= encoding.context and prompt.text not in reserved:
            yield sample
            tokens -= sample.tokens


@cache
def _reserved() -> frozenset[str]:
    return reserved_texts()


def read_samples(encoding: Encoding, folder: Path, tokens: int, seed: int = 0) -> Samples:
    """Windows of a folder of text, and answers of templates, in slices for fitting, calibrating and judging.

    Documents that pretraining holds out are judged on first. A folder of few documents is dealt out by the passage.

    Args:
        encoding: How the model wants its text.
        folder: Text as ``corpus`` reads it.
        tokens: Positions that count, of all slices together; fewer where the folder holds fewer.
        seed: Of the order of the documents.

    Raises:
        BadFileError: The folder is missing, is not text, or holds too little of it.
        BadValueError: Too few tokens were asked for.
    """
    if tokens < (least := round(_FEWEST_TOKENS / min(_SHARES.values()) / (1 - TEMPLATE_SHARE))):
        raise BadValueError(f"{tokens} tokens", f"ask for at least {least}")
    documents = read_documents(folder)
    text_sha256 = hashlib.sha256("\0".join(documents).encode()).hexdigest()
    if len(documents) < _FEWEST_DOCUMENTS:
        documents = [passage for document in documents for passage in _passages(document)]
    random.Random(seed).shuffle(documents)
    held = [document for document in documents if held_out(document)]
    rest = [document for document in documents if not held_out(document)]
    wanted = {name: tokens * share * (1 - TEMPLATE_SHARE) for name, share in _SHARES.items()}
    judge = _windows(encoding, held, wanted["judge"])
    hands = {"fit": [d for i, d in enumerate(rest) if i % 6 > 1], "calibrate": rest[::6], "judge": rest[1::6]}
    slices: dict[str, list[Sample]] = {}
    for name, hand in hands.items():
        found = judge if name == "judge" else []
        found = found + _windows(encoding, hand, wanted[name] - count_tokens(found))
        if count_tokens(found) < _FEWEST_TOKENS:
            raise BadFileError(
                f"{folder} holds too little text: {count_tokens(found)} tokens to {name} on",
                f"every slice needs {_FEWEST_TOKENS}; give more documents, or longer ones",
            )
        share = TEMPLATE_SHARE / (1 - TEMPLATE_SHARE)
        slices[name] = [*found, *_templates(encoding, _SEEDS[name], count_tokens(found) * share)]
    return Samples(**slices, text_sha256=text_sha256)


def count_tokens(samples: Sequence[Sample]) -> int:
    """Positions that count."""
    return sum(sample.tokens for sample in samples)


@dataclass(frozen=True)
class Exits:
    """What every exit of T tokens shows and would emit; L layers.

    Attributes:
        hidden: (L - 1, T, width) normalised half-precision states after layers 1 to L - 1.
        agree: (L - 1, T) 1 where the exit's top token is full depth's.
        kl: (L - 1, T) KL(full || exit), nats.
        dnll: (L - 1, T) increase of the target's negative log-likelihood over full depth, nats.
        nll: (T,) negative log-likelihood at full depth, nats.
        kind: (T,) index into ``TEXT_KINDS``.
    """

    hidden: torch.Tensor
    agree: torch.Tensor
    kl: torch.Tensor
    dnll: torch.Tensor
    nll: torch.Tensor
    kind: torch.Tensor


@torch.no_grad()
def run_exits(anatomy: Anatomy, samples: Sequence[Sample], label: str, quiet: bool = False) -> Exits:
    """Run samples at full depth, teacher-forced.

    Args:
        anatomy: The model.
        samples: Windows of text.
        label: Of the progress bar.
        quiet: No progress bar.
    """
    hidden, columns, kinds = [], [], []
    with Bar(total=count_tokens(samples), desc=label, unit="token", disable=quiet) as bar:
        for sample in samples:
            ids = torch.tensor([sample.ids], device=anatomy.device)
            states = [state[0, sample.start : -1] for state in anatomy.states(ids)]
            columns.append(exit_statistics(anatomy, states, ids[0, sample.start + 1 :]))
            # Normalised, because the range of half precision is too small for the residual streams of some models.
            hidden.append(torch.stack([normalised(state).half() for state in states[:-1]]).cpu())
            kinds.append(torch.full((sample.tokens,), TEXT_KINDS.index(sample.kind)))
            bar.update(sample.tokens)
    named = {n: torch.cat([getattr(c, n) for c in columns], -1).cpu() for n in ("agree", "kl", "dnll", "nll")}
    return Exits(hidden=torch.cat(hidden, 1), kind=torch.cat(kinds), **named)
