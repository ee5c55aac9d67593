"""Run a decoder-only model one layer at a time, by record and replay.

The model's own decoder forward runs once per token with its layers only recording their arguments, so embeddings, masks,
rotary tables and caches stay the model's business. Then the real layers run one by one, and anything may happen between two
of them. Attaching proves itself on a short input or refuses.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from clone_rl.errors import UnsupportedModelError

_PLAIN, _RECORD = 0, 1


class _Written(Exception):  # noqa: N818
    """Raised inside a layer right after it stored its keys and values, to skip the rest of it."""


def _decoder_layers(model: Any) -> nn.ModuleList:
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    for module in model.get_decoder().modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise UnsupportedModelError(f"{type(model).__name__} has no list of {count} decoder layers")


class Stepper:
    """Explicit stepping of one model, batch of one, decoding with a cache.

    Args:
        model: A ``transformers`` causal language model in evaluation mode.

    Attributes:
        layers: Number of decoder layers.

    Raises:
        UnsupportedModelError: The model cannot be stepped, with the reason.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.decoder = model, model.get_decoder()
        self._modules = _decoder_layers(model)
        self.layers = len(self._modules)
        self._head = model.get_output_embeddings()
        width = model.config.get_text_config(decoder=True).hidden_size
        norms = [m for m in self.decoder.children() if getattr(getattr(m, "weight", None), "shape", None) == (width,)]
        if not norms or self._head is None:
            raise UnsupportedModelError(f"{type(model).__name__} has no final norm and head that can be called alone")
        self._norm = norms[-1]
        self._mode, self._writing, self._tuple = _PLAIN, False, False
        self._calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
        # An instance attribute may be there already (accelerate's hooks live in one): it is kept and put back.
        self._saved = [module.__dict__.get("forward") for module in self._modules]
        for module in self._modules:
            module.forward = self._wrapped(module.forward)
        try:
            self._prove()
        except BaseException:
            self.detach()
            raise

    def detach(self) -> None:
        """Give the model back exactly as it was."""
        for module, forward in zip(self._modules, self._saved, strict=True):
            if forward is None:
                module.__dict__.pop("forward", None)
            else:
                module.forward = forward

    def _wrapped(self, original: Any) -> Any:
        def forward(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._mode == _PLAIN:
                return original(hidden, *args, **kwargs)
            self._calls.append((hidden, args, kwargs))
            return (hidden,) if self._tuple else hidden

        return forward

    def new_cache(self) -> DynamicCache:
        """An empty cache that this stepper can write to layer by layer."""
        cache = DynamicCache(config=self.model.config)
        update = cache.update

        def stop_after(*args: Any, **kwargs: Any) -> Any:
            stored = update(*args, **kwargs)
            if self._writing:
                raise _Written
            return stored

        cache.update = stop_after
        return cache

    @torch.inference_mode()
    def prefill(self, ids: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        """Run a whole prompt at full depth; ``ids`` (1, P), returns the last position's logits (vocabulary,)."""
        return self.model(input_ids=ids, past_key_values=cache, use_cache=True).logits[0, -1].float()  # type: ignore[no-any-return]

    @torch.inference_mode()
    def plan(self, token: int, cache: DynamicCache) -> torch.Tensor:
        """Let the model prepare a decode step of one token; returns the hidden state before layer 0, (1, 1, hidden)."""
        self._mode, self._calls = _RECORD, []
        try:
            ids = torch.tensor([[token]], device=self.model.device)
            self.decoder(input_ids=ids, past_key_values=cache, use_cache=True)
        finally:
            self._mode = _PLAIN
        if len(self._calls) != self.layers:
            raise UnsupportedModelError(f"the decoder called {len(self._calls)} of {self.layers} layers")
        return self._calls[0][0]  # type: ignore[no-any-return]

    @torch.inference_mode()
    def run(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        """Run one decoder layer of the planned token; it stores its keys and values."""
        _, args, kwargs = self._calls[index]
        out: Any = self._modules[index](hidden, *args, **kwargs)
        return out[0] if isinstance(out, tuple) else out  # type: ignore[no-any-return]

    @torch.inference_mode()
    def write_kv(self, index: int, hidden: torch.Tensor) -> None:
        """Store the keys and values that a layer makes of this state, and do nothing else of it (CALM's propagation)."""
        self._writing = True
        try:
            self.run(index, hidden)
        except _Written:
            pass
        finally:
            self._writing = False

    @staticmethod
    def forget_last(cache: DynamicCache, index: int) -> None:
        """Drop the newest position of one layer's cache."""
        layer = cache.layers[index]
        layer.keys, layer.values = layer.keys[..., :-1, :], layer.values[..., :-1, :]
        if hasattr(layer, "cumulative_length"):  # a sliding window counts what it has dropped as well
            layer.cumulative_length -= 1

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """What leaving at this state would emit: the shared norm and head, (vocabulary,)."""
        return self._head(self._norm(hidden))[0, -1].float()  # type: ignore[no-any-return]

    @torch.inference_mode()
    def _prove(self) -> None:
        """Step one token of a short input and compare with the model's own forward."""
        ids = torch.arange(5, 10, device=self.model.device)[None]
        seen: list[bool] = []
        hook = self._modules[0].register_forward_hook(lambda _m, _a, out: seen.append(isinstance(out, tuple)))
        expected = self.model(input_ids=ids, use_cache=True).logits[0, -1].float()
        hook.remove()
        self._tuple = seen[0]
        cache = self.new_cache()
        if not all(hasattr(layer, "keys") for layer in cache.layers):
            raise UnsupportedModelError("recurrent layers: the state of a skipped layer cannot be filled in")
        self.prefill(ids[:, :-1], cache)
        hidden = self.plan(int(ids[0, -1]), cache)
        for index in range(self.layers):
            hidden = self.run(index, hidden)
        if not torch.allclose(self.logits(hidden), expected, rtol=2e-3, atol=2e-3):
            raise UnsupportedModelError("stepping does not reproduce the model's logits")
        before = [layer.get_seq_length() for layer in cache.layers]
        hidden = self.plan(int(ids[0, -1]), cache)
        for index in range(self.layers):
            self.write_kv(index, hidden)
        if [layer.get_seq_length() for layer in cache.layers] != [n + 1 for n in before]:
            raise UnsupportedModelError("the layers do not store keys and values through Cache.update")
