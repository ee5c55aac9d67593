"""Language models on disk: the embedded one, a folder in its format, or any decoder-only Hugging Face model.

A folder in the package's own format holds ``config.json`` and ``tokenizer.json`` (Hugging Face formats),
``model.safetensors`` (weights as the chip stores them, see ``quantise``), ``probe.safetensors`` and ``card.json``. In a
Hugging Face folder a probe is optional, and the weights are rounded on load to the precision that the emulator charges.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from clone_rl.errors import BadFileError, BadValueError, UnknownNameError
from clone_rl.hw_emulator.precision import PRECISIONS
from clone_rl.hw_emulator.workload import Workload
from clone_rl.llm.anatomy import Anatomy
from clone_rl.llm.checkpoint import (
    DTYPES,
    OFFLINE,
    check_config,
    end_tokens,
    load_network,
    quiet,
    reason,
    shape_of,
)
from clone_rl.llm.model_files import EMBEDDED as EMBEDDED
from clone_rl.llm.model_files import PROBE, digest, model_folder, no_probe, read_object, weight_files
from clone_rl.llm.probe import Probe, load_probe
from clone_rl.llm.quantise import quantise_model, unpack
from clone_rl.llm.tokenizer import END_ID, Text, load_tokenizer

FILES = ("card.json", "config.json", "model.safetensors", PROBE, "tokenizer.json")
"""A folder in the package's own format."""

_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A causal language model that can leave early.

    Attributes:
        name: As it was asked for.
        model: The ``transformers`` model in evaluation mode; its weights are the quantised ones.
        tokenizer: Text to tokens and back.
        probe: Exit signals, or None where none were fitted yet.
        shape: What the emulator charges.
        sha256: Hash of the weights and the probe: which model a trace set is of.
        card: How it was made, where the folder says so.
        start_ids: What comes before a text.
        end_ids: Any of these ends a text; empty where the model never ends one.
        precision: Name of the number formats that the emulator charges.
    """

    name: str
    model: Any
    tokenizer: Text
    probe: Probe | None
    shape: Workload
    sha256: str
    card: dict[str, Any]
    start_ids: tuple[int, ...]
    end_ids: frozenset[int]
    precision: str

    def __reduce__(self) -> tuple[Any, ...]:
        """Of a model that a folder holds, no weights: they are read there."""
        for (name, *how), (_, lm) in _loaded.items():
            if lm is self:
                return _read_again, (name if name == EMBEDDED else str(Path(name).resolve()), *how, self.sha256)
        return type(self), tuple(getattr(self, part.name) for part in fields(self))

    def __deepcopy__(self, _: dict[int, Any]) -> Self:
        return self  # nothing writes to it between two calls

    @cached_property
    def anatomy(self) -> Anatomy:
        """Layers and tail, proven on a short input once.

        Raises:
            UnsupportedModelError: The model cannot be run layer by layer, with the reason.
        """
        return Anatomy(self.model)

    @cached_property
    def hf_tokenizer(self) -> Any:
        """The tokenizer as ``transformers`` has it, with the start of a text that the model was trained with.

        Raises:
            BadFileError: The folder's own cannot be loaded.
        """
        if (folder := Path(self.name)).is_dir() and not is_packed(folder):
            try:
                return AutoTokenizer.from_pretrained(folder, **OFFLINE)
            except Exception as error:  # every tokenizer class has its own
                raise BadFileError(f"{self.name}: its tokenizer cannot be loaded", reason(error)) from None
        backend = Tokenizer.from_str(self.tokenizer.backend.to_str())
        special = [(str(backend.id_to_token(token)), token) for token in self.start_ids]
        if special and not self.tokenizer.start_ids:
            single = " ".join([token for token, _ in special] + ["$A"])
            backend.post_processor = TemplateProcessing(single=single, special_tokens=special)
        ends = [backend.id_to_token(token) for token in sorted(self.end_ids)]
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, **({"eos_token": ends[0], "pad_token": ends[0]} if ends else {})
        )

    def need_probe(self) -> Probe:
        """The exit probe.

        Raises:
            BadValueError: There is none.
        """
        if self.probe is None:
            raise no_probe(self.name)
        return self.probe

    def encode(self, text: str) -> list[int]:
        """Tokens of a prompt, with the document start.

        Raises:
            BadValueError: The text is not Unicode, or holds a token that the model has no embedding for.
        """
        ids = [*self.start_ids, *self.tokenizer.encode(text)]
        if (largest := max(ids, default=0)) >= self.shape.vocab_size:
            token = self.tokenizer.backend.id_to_token(largest)
            raise BadValueError(f"the text holds {token!r}, which the model has no embedding for", "leave it out")
        return ids

    def encode_prompt(self, text: str) -> list[int]:
        """Tokens of a prompt that leaves room for a response.

        Raises:
            BadValueError: The prompt is empty or fills the context, or as ``encode``.
        """
        if not text.strip():
            raise BadValueError("the prompt is empty", "write something for the model to continue")
        ids = self.encode(text)
        if len(ids) >= self.shape.context:
            raise BadValueError(
                f"the prompt has {len(ids)} tokens and the context {self.shape.context}",
                f"shorten it to at most {self.shape.context - 1} tokens",
            )
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of tokens, without the document end."""
        return self.tokenizer.decode(ids)


def is_packed(folder: Path) -> bool:
    """Whether a folder is in the package's own format, complete or not: packed weights, or a card."""
    if (folder / "card.json").is_file():
        return True
    try:
        with safe_open(folder / "model.safetensors", "pt") as file:
            return any(key.endswith((".q4", ".q8")) for key in file.keys())  # noqa: SIM118 (it is no mapping)
    except Exception:  # absent or damaged: told where it is needed
        return False


def _check_vocabulary(text: Text, shape: Workload, folder: Path) -> None:
    if text.size > shape.vocab_size:
        raise BadFileError(
            f"{folder}: its tokenizer has {text.size} tokens and its model {shape.vocab_size}",
            "they are of two models: copy the tokenizer that belongs to the weights",
        )


def _read_probe(folder: Path, shape: Workload) -> Probe:
    return load_probe(folder / PROBE, shape.layers - 1, shape.hidden_size)


def _read_packed(folder: Path, name: str, precision: str, dtype: torch.dtype) -> LanguageModel:
    for file in FILES:
        if not (folder / file).is_file():
            raise BadFileError(f"{folder} is not a model folder: no {file}")
    config, card = read_object(folder / "config.json"), read_object(folder / "card.json")
    shape = shape_of(config, folder)
    if precision not in ("", shape.precision.name):
        raise BadValueError(f"{name} is stored in {shape.precision.name}, not {precision}", "leave the precision out")
    try:
        state = unpack(load_file(folder / "model.safetensors"))
    except Exception as error:  # safetensors, torch, or a scale that is not there
        raise BadFileError(f"{folder}/model.safetensors is damaged: {reason(error)}") from None
    try:
        text = Text(load_tokenizer(folder / "tokenizer.json"))
    except Exception as error:  # tokenizers raises nothing more specific
        raise BadFileError(f"{folder}/tokenizer.json is no tokenizer: {reason(error)}") from None
    _check_vocabulary(text, shape, folder)
    files = [folder / "model.safetensors", folder / PROBE]
    return LanguageModel(
        name=name,
        model=load_network(folder, shape, files[:1], dtype, state),
        tokenizer=text,
        probe=_read_probe(folder, shape),
        shape=shape,
        sha256=digest(files),
        card=card,
        start_ids=(END_ID,),
        end_ids=frozenset({END_ID}),
        precision=shape.precision.name,
    )


def _read_tokenizer(folder: Path) -> tuple[Text, int | None]:
    """The tokenizer of a Hugging Face folder, and its end token."""
    if not any((folder / file).is_file() for file in _VOCABULARIES):
        raise BadFileError(f"{folder} has no tokenizer", f"copy the model's tokenizer.json into it (or {_VOCABULARIES[1]})")
    try:
        with quiet():
            found = AutoTokenizer.from_pretrained(folder, **OFFLINE)
    except Exception as error:  # every tokenizer class has its own
        raise BadFileError(f"{folder}: its tokenizer cannot be loaded", reason(error)) from None
    if not isinstance(backend := getattr(found, "backend_tokenizer", None), Tokenizer):
        raise BadFileError(f"{folder}: {type(found).__name__} is a slow tokenizer", "save it with a tokenizer.json")
    return Text(backend), found.eos_token_id


def _read_hf(folder: Path, name: str, precision: str, dtype: torch.dtype, allow_pickle: bool) -> LanguageModel:
    config = read_object(folder / "config.json")
    check_config(config, folder)
    shape = shape_of(config, folder, precision)
    files = weight_files(folder, allow_pickle)
    text, end = _read_tokenizer(folder)
    _check_vocabulary(text, shape, folder)
    probe_file = folder / PROBE
    probe = _read_probe(folder, shape) if probe_file.is_file() else None
    model = load_network(folder, shape, files, dtype)
    quantise_model(model, shape.precision)
    return LanguageModel(
        name=name,
        model=model,
        tokenizer=text,
        probe=probe,
        shape=shape,
        sha256=digest([*files, probe_file] if probe else files),
        card={},
        start_ids=text.start_ids,
        end_ids=end_tokens(model, shape.vocab_size, end),
        precision=shape.precision.name,
    )


_Stamp = tuple[tuple[str, int, int], ...]
_loaded: dict[tuple[str, str, str, bool], tuple[_Stamp, LanguageModel]] = {}


def _stamp(folder: Path) -> _Stamp:
    """What changes when a file of a folder does."""
    files = ((path, path.stat()) for path in sorted(folder.iterdir()) if path.is_file())
    return ((str(folder.resolve()), 0, 0), *((path.name, stat.st_size, stat.st_mtime_ns) for path, stat in files))


def _read_again(name: str, precision: str, dtype: str, allow_pickle: bool, sha256: str) -> LanguageModel:
    lm = load_model(name, precision, dtype=dtype, allow_pickle=allow_pickle)
    if lm.sha256 != sha256:
        raise BadFileError(f"{name} holds another model than when the copy was made", "make the environment anew")
    return lm


def load_model(
    name: str = EMBEDDED, precision: str = "", *, dtype: str = "float32", allow_pickle: bool = False
) -> LanguageModel:
    """Load the embedded model by name, or a model folder by path; again only when a file of it changed.

    Args:
        name: ``"default"`` or a folder: the package's own format, or a decoder-only Hugging Face model.
        precision: One of ``PRECISIONS``, what a Hugging Face model is rounded to and charged at; empty for the emulator's
            default. The package's own format has its own.
        dtype: What the network computes in: float32, bfloat16 or float16.
        allow_pickle: Read ``pytorch_model.bin`` where a folder has no safetensors.

    Raises:
        UnknownNameError: No such model, precision or dtype.
        BadFileError: The folder is incomplete or damaged, or its files do not fit together.
        UnsupportedModelError: Not a dense decoder that can be read without running its code.
        BadValueError: Another precision than the one that the weights are stored in.
    """
    if not isinstance(precision, str):
        raise UnknownNameError("precision", str(precision), PRECISIONS)
    if dtype not in DTYPES:
        raise UnknownNameError("dtype", dtype, DTYPES)
    folder, key = model_folder(name), (name, precision, dtype, allow_pickle)
    try:
        stamp = _stamp(folder)
        if key in _loaded and _loaded[key][0] == stamp:
            return _loaded[key][1]
        if is_packed(folder):
            lm = _read_packed(folder, name, precision, DTYPES[dtype])
        else:
            lm = _read_hf(folder, name, precision, DTYPES[dtype], allow_pickle)
    except OSError as error:  # unreadable, or changed while it was read
        raise BadFileError(f"{folder} is not a model folder: {error}") from None
    _loaded[key] = (stamp, lm)
    return lm
