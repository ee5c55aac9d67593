"""Language models with an exit probe: the embedded one, or a folder in the same format.

A folder holds ``config.json`` and ``tokenizer.json`` (Hugging Face formats), ``model.safetensors`` (weights as the chip
stores them, see ``quantise``), ``probe.safetensors`` and ``card.json``.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from clone_rl.errors import BadFileError, BadValueError, CloneRLError, UnknownNameError
from clone_rl.hw_emulator.workload import Workload
from clone_rl.llm.probe import Probe, load_probe
from clone_rl.llm.quantise import unpack
from clone_rl.llm.tokenizer import END_ID, load_tokenizer

EMBEDDED = "default"
"""Name of the model that ships with the package."""

FILES = ("card.json", "config.json", "model.safetensors", "probe.safetensors", "tokenizer.json")


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model that can leave early.

    Attributes:
        name: As it was asked for.
        model: The ``transformers`` model, float32, evaluation mode; its weights are the quantised ones.
        tokenizer: Text to tokens and back.
        probe: Exit signals.
        shape: What the emulator charges.
        sha256: Hash of the weights and the probe: which model a trace set is of.
        card: How it was made.
    """

    name: str
    model: Any
    tokenizer: Tokenizer
    probe: Probe
    shape: Workload
    sha256: str
    card: dict[str, Any]

    def encode(self, text: str) -> list[int]:
        """Tokens of a prompt, with the document start."""
        return [END_ID, *self.tokenizer.encode(text).ids]

    def encode_prompt(self, text: str) -> list[int]:
        """Tokens of a prompt that leaves room for a response.

        Raises:
            BadValueError: The prompt is empty or fills the context.
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

    def decode(self, ids: list[int]) -> str:
        """Text of tokens, without the document end."""
        return str(self.tokenizer.decode(ids))


@torch.inference_mode()
def hidden_states(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Residual stream after every decoder layer at full depth; ``ids`` (1, T), returns (L, T, hidden)."""
    decoder = model.get_decoder()
    states: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _m, _a, out: states.append(out[0] if isinstance(out, tuple) else out))
        for layer in decoder.layers
    ]
    try:
        decoder(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat(states)


def _read(folder: Path, name: str) -> LanguageModel:
    for file in FILES:
        if not (folder / file).is_file():
            raise BadFileError(f"{folder} is not a model folder: no {file}")
    try:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        shape = Workload.from_config(config)
        state = unpack(load_file(folder / "model.safetensors"))
        digest = hashlib.sha256((folder / "model.safetensors").read_bytes() + (folder / "probe.safetensors").read_bytes())
        tokenizer = load_tokenizer(folder / "tokenizer.json")
    except CloneRLError as error:
        raise BadFileError(f"{folder} is not a model folder: {error.message}", error.hint) from None
    except Exception as error:  # tokenizers raises nothing more specific
        raise BadFileError(f"{folder} is not a model folder: {error}") from None
    try:
        model = LlamaForCausalLM(LlamaConfig(**config))
        missing, unexpected = model.load_state_dict(state, strict=False)
    except Exception as error:  # torch, transformers and its validators each have their own
        reason = str(error).strip().splitlines()[-1].strip()
        raise BadFileError(f"{folder}/model.safetensors does not fit config.json", reason) from None
    if unexpected or [key for key in missing if key != "lm_head.weight"]:
        raise BadFileError(
            f"{folder}/model.safetensors does not fit config.json", f"missing {missing}, unexpected {unexpected}"
        )
    model.tie_weights()
    model.eval()
    return LanguageModel(
        name=name,
        model=model,
        tokenizer=tokenizer,
        probe=load_probe(folder / "probe.safetensors"),
        shape=shape,
        sha256=digest.hexdigest(),
        card=card,
    )


def load_model(name: str = EMBEDDED) -> LanguageModel:
    """Load the embedded model by name, or a folder in its format.

    Raises:
        UnknownNameError: Neither.
        BadFileError: The folder is incomplete or its files do not fit together.
    """
    return _load(name)


@cache
def _load(name: str) -> LanguageModel:
    if name == EMBEDDED:
        return _read(Path(str(resources.files("clone_rl.llm") / "embedded")), name)
    if Path(name).is_dir():
        return _read(Path(name), name)
    raise UnknownNameError("model", name, [EMBEDDED])
