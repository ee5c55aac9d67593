"""What is recorded and replayed: prompts with their responses, as tokens.

A response is given where there is one (the exact answer of a prompt, the next tokens of a text): it is then teacher-forced.
Otherwise it is the model's own, drawn by seeded sampling at full depth, because the greedy prose of a small model loops and
loops are trivially easy to leave early.
"""

from __future__ import annotations

import hashlib
from bisect import bisect
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import torch

from clone_rl.envs.trace import SPLITS
from clone_rl.errors import BadFileError, BadValueError, UnknownNameError
from clone_rl.hw_emulator.workload import is_count
from clone_rl.llm.model import LanguageModel
from clone_rl.llm.prompts import Prompt
from clone_rl.llm.sampling import Sampling

MODES = ("auto", "teacher-forced", "free-running")
"""Whose response: the given one where there is one and otherwise the model's own; always the given; always the model's own."""

TEXT = "text"
"""Kind of the documents that are cut from text."""

_UP_TO = (60, 80)
"""Percentiles of the hash of a text up to which it is for training, and then for validation."""

_SHORTEST = 8
"""Tokens that the response of a window of text has at least."""


@dataclass(frozen=True)
class Document:
    """One request.

    Attributes:
        kind: Request type.
        split: One of ``clone_rl.envs.trace.SPLITS``.
        ids: Tokens of the prompt, then those of the response; the prompt alone while the model has not answered it.
        prompt_tokens: How many of them are the prompt's.
        sampled: Whether the response is the model's own.
        seed: Of the sampling.
    """

    kind: str
    split: str
    ids: tuple[int, ...]
    prompt_tokens: int
    sampled: bool
    seed: int = 0

    @property
    def key(self) -> str:
        """Tells documents apart, answered or not: 16 hexadecimal digits."""
        given: object = self.seed if self.sampled else self.ids[self.prompt_tokens :]
        what = (self.kind, self.split, self.ids[: self.prompt_tokens], self.sampled, given)
        return hashlib.sha256(repr(what).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Responses:
    """Where the responses come from.

    Attributes:
        mode: One of ``MODES``.
        max_new_tokens: Longest response that is drawn or cut from text, tokens; an exact answer is never cut short.
        sampling: Of the model's own responses.

    Raises:
        UnknownNameError: ``mode`` is not one of ``MODES``.
        BadValueError: ``max_new_tokens`` is below 1.
    """

    mode: str = "auto"
    max_new_tokens: int = 80
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UnknownNameError("mode", self.mode, MODES)
        if not is_count(self.max_new_tokens) or self.max_new_tokens < 1:
            raise BadValueError(f"max_new_tokens is {self.max_new_tokens!r}", "a whole number, at least 1")


def prompt_documents(
    lm: LanguageModel, prompts: Iterable[tuple[str, Prompt]], responses: Responses | None = None
) -> list[Document]:
    """Documents of prompts; those without a given response are not answered yet.

    Args:
        lm: The model, for its tokens and its context.
        prompts: (split, prompt) pairs.
        responses: Whose responses.

    Raises:
        UnknownNameError: A split that does not exist.
        BadValueError: A prompt that is empty or fills the context, or one without an answer where all are to be given.
    """
    mode = (responses or Responses()).mode
    found = []
    for split, prompt in prompts:
        if split not in SPLITS:
            raise UnknownNameError("split", split, SPLITS)
        ids, answer = lm.encode_prompt(prompt.text), []
        if mode != "free-running" and prompt.answer:
            answer = [*_tokens(lm, prompt.answer), *_end(lm)]
        elif mode == "teacher-forced":
            raise BadValueError(
                f"the prompt {_shown(prompt.text)!r} has no answer to force", "give one ('answer'), or use --mode auto"
            )
        # The last token is only a target: it needs no place in the context.
        whole = tuple([*ids, *answer][: lm.shape.context + 1])
        found.append(Document(prompt.kind, split, whole, len(ids), not answer, prompt.seed % 2**31))
    return found


def text_documents(
    lm: LanguageModel,
    texts: Iterable[str],
    responses: Responses | None = None,
    prompt_tokens: int = 32,
    most: int = 400,
    split: str = "",
) -> list[Document]:
    """Windows of text: the first tokens of each are the prompt, the next ones its response.

    Texts take turns in giving a window, in an order that depends on what they say alone, and each begins at a place of its
    own, so that neither long texts nor first pages prevail.

    Args:
        lm: The model, for its tokens and its context.
        texts: The texts.
        responses: Whose responses, and how long a window is.
        prompt_tokens: Tokens of text in a prompt, beside those that the model wants at its start.
        most: Windows to take at most.
        split: Split of them all; without one 60 % of the texts are for training, 20 % each for validation and test.

    Raises:
        UnknownNameError: A split that does not exist.
        BadValueError: A prompt without tokens, one that fills the context, or no windows asked for.
        BadFileError: No text is long enough for a window.
    """
    responses = responses or Responses()
    if split and split not in SPLITS:
        raise UnknownNameError("split", split, SPLITS)
    if most < 1:
        raise BadValueError(f"{most} windows of text", "at least 1")
    room = lm.shape.context - len(lm.start_ids)
    if not 1 <= prompt_tokens <= room - _SHORTEST:
        raise BadValueError(f"{prompt_tokens} prompt tokens", f"1 to {room - _SHORTEST}, for the model's context")
    size = min(prompt_tokens + responses.max_new_tokens, room + 1)
    given = responses.mode != "free-running"

    def windows(text: str, digest: bytes) -> Iterator[Document]:
        ids = [*_tokens(lm, text), *_end(lm)]
        pieces = [ids[at : at + size] for at in range(0, len(ids), size)]
        pieces = [piece for piece in pieces if len(piece) >= min(size, prompt_tokens + _SHORTEST)]
        first = int.from_bytes(digest[8:16]) % max(1, len(pieces))
        for number, piece in enumerate(pieces[first:] + pieces[:first]):
            whole = (*lm.start_ids, *piece[: size if given else prompt_tokens])
            seed = int.from_bytes(hashlib.sha256(digest + number.to_bytes(4)).digest()[:4]) % 2**31
            head = len(lm.start_ids) + prompt_tokens
            yield Document(TEXT, split or _split(digest), whole, head, not given, seed)

    digests = {text: hashlib.sha256(text.encode()).digest() for text in texts}
    ordered = sorted(digests, key=digests.__getitem__)
    found = list(islice(_in_turn(windows(text, digests[text]) for text in ordered), most))
    if not found:
        raise BadFileError(
            f"no text is longer than {prompt_tokens + _SHORTEST} tokens", "give more text, or fewer --prompt-tokens"
        )
    return found


def documents(
    lm: LanguageModel, prompts: Iterable[tuple[str, Prompt]], responses: Responses | None = None
) -> Iterator[Document]:
    """The documents of prompts with their responses; the same arguments always give the same ones.

    Args:
        lm: The model that answers where no answer is given.
        prompts: (split, prompt) pairs.
        responses: Whose responses, and how they are drawn.

    Raises:
        CloneRLError: As ``prompt_documents``.
    """
    responses = responses or Responses()
    return (answered(lm, document, responses) for document in prompt_documents(lm, prompts, responses))


def answered(lm: LanguageModel, document: Document, responses: Responses) -> Document:
    """The document with its response: as it is, or with one that the model draws now."""
    if len(document.ids) > document.prompt_tokens:
        return document
    most = min(responses.max_new_tokens, lm.shape.context - document.prompt_tokens)
    response = respond(lm, list(document.ids), most, responses.sampling, document.seed)
    return replace(document, ids=(*document.ids, *response))


@torch.inference_mode()
def respond(lm: LanguageModel, prompt: Sequence[int], most: int, sampling: Sampling, seed: int) -> list[int]:
    """The model's own response at full depth, with the end token if it came within ``most`` tokens."""
    generator = torch.Generator().manual_seed(seed)
    device = lm.anatomy.device
    cache, ids = None, torch.tensor([list(prompt)], device=device)
    response: list[int] = []
    while len(response) < most:
        out = lm.model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        token = sampling.pick(out.logits[0, -1].float().cpu(), generator)
        response.append(token)
        if token in lm.end_ids:
            break
        ids = torch.tensor([[token]], device=device)
    return response


def _tokens(lm: LanguageModel, text: str) -> list[int]:
    """Tokens of a text that goes on from something else."""
    return lm.encode(text)[len(lm.start_ids) :]


def _end(lm: LanguageModel) -> list[int]:
    """The token that ends a given response; none where the model knows no end."""
    return [min(lm.end_ids)] if lm.end_ids else []


def _split(digest: bytes) -> str:
    return SPLITS[bisect(_UP_TO, int.from_bytes(digest[:8]) % 100)]


def _in_turn(sources: Iterable[Iterator[Document]]) -> Iterator[Document]:
    """One item of each source, then the next of each, until all are empty."""
    waiting = deque(sources)
    while waiting:
        source = waiting.popleft()
        for item in islice(source, 1):
            yield item
            waiting.append(source)


def _shown(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
