"""Model folders on disk: what is refused, and how the rest becomes a network, offline and without running its code."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig
from transformers.utils import logging

from clone_rl.errors import BadFileError, BadValueError, UnsupportedModelError
from clone_rl.hw_emulator.families import FAMILIES
from clone_rl.hw_emulator.workload import Workload
from clone_rl.llm.model_files import digest as digest
from clone_rl.llm.model_files import read_object as read_object
from clone_rl.llm.model_files import weight_files as weight_files

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Types that a network can compute in, by name."""

OFFLINE = {"local_files_only": True, "trust_remote_code": False}
"""Passed to every ``from_pretrained``: nothing is looked up in a hub and no code of a folder is run."""

_ANYTHING_ELSE = ("vision_config", "audio_config", "encoder")
_NAMED = 4  # keys that an error spells out


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the warnings and progress bars of ``transformers`` to itself; what they tell is checked here."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def reason(error: Exception) -> str:
    """The last line of an error's message, where libraries put what went wrong; its class where it has none."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


def check_config(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse what is no plain decoder; architectures without known sizes are left to ``Workload.from_config``.

    Raises:
        UnsupportedModelError: An adapter, an encoder-decoder, a model with images or sound, a model whose layers are code in
            the folder, or weights that are quantised already.
    """
    kind = config.get("model_type")
    if (folder / "adapter_config.json").exists():
        raise UnsupportedModelError(f"{folder} is an adapter", "merge it into its model and save that (merge_and_unload)")
    if config.get("is_encoder_decoder"):
        raise UnsupportedModelError(f"{folder}: model_type {kind!r} is an encoder-decoder", "give a decoder-only model")
    if other := next((key for key in _ANYTHING_ELSE if config.get(key)), None):
        raise UnsupportedModelError(
            f"{folder}: model_type {kind!r} is more than a language model: it has a {other}", "save its text decoder by itself"
        )
    if config.get("auto_map") and kind not in FAMILIES:
        raise UnsupportedModelError(
            f"{folder}: model_type {kind!r} needs Python code that comes with the model; trust_remote_code is never used",
            f"convert it to an architecture of transformers, one of {', '.join(FAMILIES)}",
        )
    if found := config.get("quantization_config") or config.get("compression_config"):
        method = found.get("quant_method", "") if isinstance(found, Mapping) else ""
        raise UnsupportedModelError(
            f"{folder}: its weights are quantised already ({method or 'quantization_config'})",
            "give the float16, bfloat16 or float32 weights: they are quantised on load",
        )


def load_network(
    folder: Path, shape: Workload, files: list[Path], dtype: torch.dtype, state: Mapping[str, torch.Tensor] | None = None
) -> Any:
    """A ``transformers`` model in evaluation mode, every weight of it from the files.

    Args:
        folder: With ``config.json`` and, without ``state``, weights that ``from_pretrained`` reads.
        shape: What ``config.json`` describes.
        files: The weight files.
        dtype: What it computes in.
        state: The weights, where the files are in a format of this package.

    Raises:
        BadFileError: The weights are broken, are not all there, do not fit ``config.json``, or are not finite.
    """
    misfit = f"{files[0]} does not fit config.json"
    described = shape.layers * shape.layer_parameters + shape.head_parameters
    # A weight takes two bytes or more, packed half a byte: config.json alone must not make a model of any size.
    if described > sum(path.stat().st_size for path in files) * (2 if state is not None else 1):
        raise BadFileError(misfit, f"config.json describes {described} weights, more than there can be in the files")
    source: dict[str, Any] = {"pretrained_model_name_or_path": None, "state_dict": state}
    if state is None:
        safe = files[0].suffix == ".safetensors"
        source = {"pretrained_model_name_or_path": folder, "use_safetensors": safe, "weights_only": True, **OFFLINE}
    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder, **OFFLINE)
            network = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
            # Sizes that differ are collected here instead of raised, to be named below.
            model, found = network.from_pretrained(
                config=config, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **source
            )
    except Exception as error:  # torch, safetensors, transformers and its validators each have their own
        raise BadFileError(f"{folder} is not a model that transformers can load", reason(error)) from None
    wrong = {what: sorted(map(_key, found[f"{what}_keys"])) for what in ("mismatched", "missing", "unexpected")}
    if any(wrong.values()):
        raise BadFileError(misfit, "; ".join(f"{what} {_some(keys)}" for what, keys in wrong.items() if keys))
    if shape.tied and model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
        raise BadFileError(misfit, "config.json ties the head to the embedding, and the file has two that differ")
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise BadFileError(f"{folder}: {name} is not finite", "its training diverged, or the file is damaged")
    return model.eval()


def _key(found: Any) -> str:
    """A key, or where the version tells them a key with the shape in the file and the one that config.json asks for."""
    return found if isinstance(found, str) else f"{found[0]} {tuple(found[1])} for {tuple(found[2])}"


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
    return ", ".join(keys[:_NAMED]) + more


def shape_of(config: Mapping[str, Any], folder: Path, precision: str = "") -> Workload:
    """What the emulator charges for a model.

    Args:
        config: Its ``config.json``.
        folder: Named in errors.
        precision: One of ``PRECISIONS``; empty for the emulator's default.

    Raises:
        BadFileError: A size is missing or makes no sense.
        UnsupportedModelError: An architecture whose sizes are not known, such as a mixture of experts.
        UnknownNameError: Unknown precision.
    """
    try:
        return Workload.from_config(config, **({"precision": precision} if precision else {}))
    except (BadFileError, BadValueError, UnsupportedModelError) as error:
        kind = UnsupportedModelError if isinstance(error, UnsupportedModelError) else BadFileError
        raise kind(f"{folder / 'config.json'}: {error.message.removeprefix('model config: ')}", error.hint) from None


def end_tokens(model: Any, vocab_size: int, fallback: int | None = None) -> frozenset[int]:
    """Tokens that end a text: the generation config's, else the model's, else the tokenizer's.

    Args:
        model: A ``transformers`` model.
        vocab_size: Tokens from here on are never emitted.
        fallback: The tokenizer's end token, or None.
    """
    configs = (getattr(model, "generation_config", None), model.config)
    found = next((e for c in configs if (e := getattr(c, "eos_token_id", None)) is not None), fallback)
    many = found if isinstance(found, list | tuple) else [found]
    return frozenset(int(token) for token in many if token is not None and 0 <= token < vocab_size)
