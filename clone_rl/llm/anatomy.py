"""The parts of a decoder-only model that early exit needs, found in any Hugging Face model and proven before they are used.

Nothing is subclassed and no architecture is written down: the list of decoder layers is found by its length, and what turns
the state of a layer into logits (final norm, head, scales, caps) is either called directly, where that reproduces the
model's own logits, or borrowed from the model by letting its layers return the given state ("injection").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from clone_rl.errors import UnsupportedModelError

Forward = Callable[..., Any]

_PROOF_TOKENS = 6
_EXACT = 1e-5


def plain_model(model: Any) -> Any:
    """The ``transformers`` model itself, also where a ``LanguageModel`` is given."""
    return model.model if hasattr(model, "shape") and hasattr(model, "probe") else model


def _text_config(model: Any) -> Any:
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "get_output_embeddings"):
        raise UnsupportedModelError(f"{type(model).__name__} is not a transformers model", "load it with AutoModelForCausalLM")
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{type(model).__name__} is an encoder-decoder", "give a decoder-only model")
    text = config.get_text_config(decoder=True)
    if getattr(text, "num_hidden_layers", None) is None:
        raise UnsupportedModelError(f"{type(model).__name__} does not say how many decoder layers it has")
    return text


def _decoder(model: Any) -> Any:
    """What runs between tokens and final states, without the head."""
    decoder = model.get_decoder()
    # Before transformers 5, some families answer with the whole model.
    return model.base_model if decoder is model else decoder


def _decoder_layers(decoder: Any, count: int) -> nn.ModuleList:
    for module in decoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise UnsupportedModelError(f"{type(decoder).__name__} has no list of {count} decoder layers")


@contextmanager
def replaced(layers: Sequence[nn.Module], forwards: Sequence[Forward]) -> Iterator[None]:
    """Run the block with other ``forward`` functions; what was there, an instance attribute or none, comes back."""
    # Through __dict__, because Module.__setattr__ is slow and accelerate keeps its hooks in an instance attribute.
    before = [layer.__dict__.get("forward") for layer in layers]
    try:
        for layer, forward in zip(layers, forwards, strict=True):
            layer.__dict__["forward"] = forward
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            if own is None:
                layer.__dict__.pop("forward", None)
            else:
                layer.__dict__["forward"] = own


def first_tensor(out: Any) -> torch.Tensor:
    """The hidden state in what a layer returned: a tensor, or the first of a tuple."""
    return out[0] if isinstance(out, tuple) else out  # type: ignore[no-any-return]


class Anatomy:
    """Layers and tail of one model.

    Args:
        model: A ``transformers`` causal language model, or a ``LanguageModel``.

    Attributes:
        model: The ``transformers`` model.
        decoder: What runs between tokens and final states.
        layers: The decoder layers, in order.
        norm: The final norm, where one was found.
        width: Size of the residual stream.
        context: Longest sequence, tokens.
        tokens: Size of the vocabulary, as the embedding has it.
        vocab: The same, as the head has it.
        wraps: Whether layers return tuples (older versions and some families do).
        direct: Whether the tail is called directly; otherwise by injection.

    Raises:
        UnsupportedModelError: No layers, no head, or logits that cannot be reproduced from a layer's state; with the reason.
    """

    def __init__(self, model: Any) -> None:
        self.model = plain_model(model)
        config = _text_config(self.model)
        self.decoder = _decoder(self.model)
        self.layers = list(_decoder_layers(self.decoder, config.num_hidden_layers))
        self.width = int(config.hidden_size)
        self.context = int(getattr(config, "max_position_embeddings", 0) or 2**20)
        self.tokens = int(self.model.get_input_embeddings().weight.shape[0])
        self._head = self.model.get_output_embeddings()
        if self._head is None:
            raise UnsupportedModelError(f"{type(self.model).__name__} has no language-modelling head")
        norms = [m for m in self.decoder.children() if getattr(getattr(m, "weight", None), "shape", None) == (self.width,)]
        self.norm = norms[-1] if norms else None
        self.direct, self.wraps = False, False
        self._prove()

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return self.model.get_input_embeddings().weight.device  # type: ignore[no-any-return]

    def states(self, ids: torch.Tensor) -> list[torch.Tensor]:
        """Residual stream after every layer at full depth.

        Args:
            ids: (batch, tokens).

        Returns:
            One (batch, tokens, width) tensor per layer; gradients pass where they are enabled.
        """
        found: list[torch.Tensor] = []
        hooks = [layer.register_forward_hook(lambda _m, _a, out: found.append(first_tensor(out))) for layer in self.layers]
        try:
            self.decoder(input_ids=ids, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        return found

    def tail(self, hidden: torch.Tensor) -> torch.Tensor:
        """What leaving at these states would emit.

        Args:
            hidden: (batch, tokens, width) states after any layer.

        Returns:
            (batch, tokens, vocabulary) logits, as the model itself would finish them.
        """
        if self.direct and self.norm is not None:
            return self._head(self.norm(hidden))  # type: ignore[no-any-return]
        with replaced(self.layers, [lambda *_a, **_k: (hidden,) if self.wraps else hidden] * len(self.layers)):
            ids = torch.zeros(hidden.shape[:2], dtype=torch.long, device=self.device)
            return self.model(input_ids=ids, use_cache=False).logits  # type: ignore[no-any-return]

    @torch.no_grad()
    def _prove(self) -> None:
        name = type(self.model).__name__
        ids = torch.arange(5, 5 + _PROOF_TOKENS, device=self.device)[None] % self.tokens
        outputs: list[Any] = []
        hook = self.layers[-1].register_forward_hook(lambda _m, _a, out: outputs.append(out))
        try:
            expected = self.model(input_ids=ids, use_cache=False).logits
            hook.remove()
            shorter = self.model(input_ids=ids[:, :-1], use_cache=False).logits
        except Exception as error:
            raise UnsupportedModelError(f"{name} cannot run a short input: {error}") from None
        finally:
            hook.remove()
        if not same_logits(shorter, expected[:, :-1]):
            raise UnsupportedModelError(f"{name} is not causal: what follows a token depends on later ones")
        if len(outputs) != 1:
            raise UnsupportedModelError(f"{name}: the last decoder layer ran {len(outputs)} times in one pass")
        self.wraps, last = isinstance(outputs[0], tuple), first_tensor(outputs[0])
        if last.shape != (*ids.shape, self.width):
            raise UnsupportedModelError(
                f"{name}: its layers pass states of shape {tuple(last.shape)}, not (batch, tokens, {self.width})"
            )
        self.vocab = int(expected.shape[-1])
        if self.norm is not None:
            try:
                # The same operations give the same bits; a soft cap changes small logits very little.
                self.direct = same_logits(self._head(self.norm(last)), expected, _EXACT)
            except (RuntimeError, TypeError):  # the wrong norm for these states
                self.direct = False
        try:
            same = self.direct or same_logits(self.tail(last), expected)
        except Exception as error:
            raise UnsupportedModelError(f"{name}: its layers cannot be replaced: {error}") from None
        if not same:
            raise UnsupportedModelError(f"{name}: stepping does not reproduce the model's logits")


def same_logits(found: torch.Tensor, expected: torch.Tensor, tolerance: float | None = None) -> bool:
    """Whether logits agree, relative to their spread; to the precision of their type unless a tolerance is given."""
    if found.shape != expected.shape:
        return False
    if tolerance is None:
        tolerance = 5e-2 if expected.dtype in (torch.bfloat16, torch.float16) else 1e-3
    spread = float(expected.float().std()) + 1e-6
    return bool((found.float() - expected.float()).abs().max() <= tolerance * max(spread, 1e-3))
