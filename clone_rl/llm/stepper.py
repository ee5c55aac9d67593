"""Run a decoder-only model one layer at a time, by record and replay.

The model's own decoder forward runs once per token with its layers only recording their arguments, so embeddings, masks,
rotary tables and caches stay the model's business. Then the real layers run one by one, and anything may happen between two
of them. Attaching proves itself on a short input or refuses. The model is touched only inside a call: between two calls it
is exactly what it was.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import TracebackType
from typing import Any, TypeVar, cast

import torch
from transformers import DynamicCache

from clone_rl.errors import BadValueError, UnknownNameError, UnsupportedModelError
from clone_rl.hw_emulator.ledger import KV
from clone_rl.llm.anatomy import Anatomy, first_tensor, replaced, same_logits

F = TypeVar("F", bound=Callable[..., Any])

_PROOF = (4, 2)  # tokens of the self-test: prefilled, stepped


def inferring(method: F) -> F:
    """``torch.inference_mode()`` for what runs at every layer: to enter a mode that is on already takes time too."""
    entering = torch.inference_mode()(method)

    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs) if torch.is_inference_mode_enabled() else entering(*args, **kwargs)

    return cast(F, call)


class _Written(Exception):  # noqa: N818
    """Raised inside a layer right after it stored its keys and values, to skip the rest of it."""


class StepCache(DynamicCache):  # type: ignore[misc]
    """Keys and values of one request, written layer by layer.

    Attributes:
        storing: Layers that have stored something.
        writing: Whether a layer is to stop as soon as it has stored.
        ragged: Whether some layers lack positions that others have.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        self.storing: set[int] = set()
        self.writing, self.ragged = False, False

    def update(self, keys: Any, values: Any, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Store, and stop the layer that stores where only that was wanted of it."""
        stored = super().update(keys, values, layer_idx, *args, **kwargs)
        self.storing.add(layer_idx)
        if self.writing:
            raise _Written
        return stored


def _passed_on(hidden: torch.Tensor) -> torch.Tensor:
    return hidden


def check_kv(kv: str) -> str:
    """A K/V strategy by name.

    Raises:
        UnknownNameError: Not one of ``KV``.
    """
    if kv not in KV:
        raise UnknownNameError("K/V strategy", kv, KV)
    return kv


class Stepper:
    """Explicit stepping of one model, batch of one, decoding with a cache.

    Hooks that others registered on a layer fire twice per token: once while the model plans (``planning`` is True then) and
    once when the layer runs.

    Args:
        model: A ``transformers`` causal language model in evaluation mode, or a ``LanguageModel``.

    Attributes:
        anatomy: The model's layers and tail.
        layers: Number of decoder layers.
        planning: Whether the layers are only recording at this moment.
        strategies: K/V strategies of ``KV`` that the self-test found to work.

    Raises:
        UnsupportedModelError: The model cannot be stepped, with the reason.
    """

    def __init__(self, model: Any) -> None:
        self.anatomy: Anatomy = getattr(model, "anatomy", None) or Anatomy(model)
        self.model = self.anatomy.model
        self.layers = len(self.anatomy.layers)
        self.planning = False
        self.strategies: tuple[str, ...] = KV
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._planned, self._recorders = list(self.anatomy.layers), [self._recorder] * self.layers
        if self.anatomy.norm is not None and self.anatomy.direct:  # of states that no layer made: time for nothing
            self._planned.append(self.anatomy.norm)
            self._recorders.append(_passed_on)
        takes = inspect.signature(self.model.forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        self._first: torch.Tensor | None = None
        self._prove()

    def __enter__(self) -> Stepper:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.detach()

    def detach(self) -> None:
        """Let go of what the last token left behind; the model itself was given back after every call."""
        self._calls, self._first = [], None

    def _recorder(self, *args: Any, **kwargs: Any) -> Any:
        hidden, args = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), args)
        if self._first is None:
            self._first = hidden
        self._calls.append((args, kwargs))
        return (hidden,) if self.anatomy.wraps else hidden

    def new_cache(self) -> StepCache:
        """An empty cache."""
        return StepCache(self.model.config)

    @inferring
    def prefill(self, ids: torch.Tensor, cache: StepCache) -> torch.Tensor:
        """Run a whole prompt at full depth; ``ids`` (1, P), returns the last position's logits (vocabulary,).

        Raises:
            BadValueError: Not one sequence, or longer than the model's context.
        """
        if ids.ndim != 2 or ids.shape[0] != 1 or ids.shape[1] < 1:
            raise BadValueError(f"ids of shape {tuple(ids.shape)}", "one sequence at a time: (1, tokens)")
        if cache.get_seq_length() + ids.shape[1] > self.anatomy.context:
            raise BadValueError(
                f"{cache.get_seq_length() + ids.shape[1]} tokens exceed the context of {self.anatomy.context}",
                "shorten the prompt",
            )
        return self.model(input_ids=ids, past_key_values=cache, use_cache=True, **self._last_only).logits[0, -1].float()  # type: ignore[no-any-return]

    @inferring
    def plan(self, token: int, cache: StepCache) -> torch.Tensor:
        """Let the model prepare a decode step of one token; returns the hidden state before layer 0, (1, 1, hidden)."""
        self._calls, self._first, self.planning = [], None, True
        ids = torch.tensor([[token]], device=self.anatomy.device)
        try:
            with replaced(self._planned, self._recorders):
                self.anatomy.decoder(input_ids=ids, past_key_values=cache, use_cache=True)
        finally:
            self.planning = False
        if self._first is None or len(self._calls) != self.layers:
            raise UnsupportedModelError(f"the decoder called {len(self._calls)} of {self.layers} layers")
        return self._first

    @inferring
    def run(self, index: int, hidden: torch.Tensor, cache: StepCache) -> torch.Tensor:
        """Run one decoder layer of the planned token; it stores its keys and values.

        Args:
            index: Which layer, from 0.
            hidden: (1, 1, hidden) its input.
            cache: The cache that the token was planned with.

        Raises:
            BadValueError: No token is planned, or no such layer.
        """
        if not 0 <= index < len(self._calls):
            raise BadValueError(f"layer {index} of {len(self._calls)} planned ones", "plan a token, then run layers from 0 on")
        args, kwargs = self._calls[index]
        if cache.ragged:
            args, kwargs = _trimmed(args, kwargs, cache.layers[index])
        return first_tensor(self.anatomy.layers[index](hidden, *args, **kwargs))

    def write_kv(self, index: int, hidden: torch.Tensor, cache: StepCache) -> None:
        """Store the keys and values that a layer makes of this state, and do nothing else of it (CALM's propagation)."""
        cache.writing = True
        try:
            self.run(index, hidden, cache)
        except _Written:
            pass
        finally:
            cache.writing = False

    def fill(self, cache: StepCache, depth: int, hidden: torch.Tensor, kv: str) -> None:
        """Settle the caches of the layers that an exit skips.

        Args:
            cache: The request's cache.
            depth: Layers that ran.
            hidden: (1, 1, hidden) the state that the token left with.
            kv: Strategy, one of ``KV``.
        """
        for index in range(depth, self.layers):
            if kv == "propagate" and index in cache.storing:
                self.write_kv(index, hidden, cache)
            elif kv == "exact":
                hidden = self.run(index, hidden, cache)
        cache.ragged |= kv == "skip" and depth < self.layers

    def glimpse(self, cache: StepCache, depth: int, hidden: torch.Tensor) -> torch.Tensor:
        """The state after the last layer, had this token not left after ``depth`` layers; the caches stay as they are."""
        for index in range(depth, self.layers):
            with _unchanged(cache.layers[index]):
                hidden = self.run(index, hidden, cache)
        return hidden

    @inferring
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """What leaving at this state (1, 1, hidden) would emit: (vocabulary,)."""
        return self.anatomy.tail(hidden)[0, -1].float()

    def check_strategy(self, kv: str) -> str:
        """A K/V strategy that this model can serve.

        Raises:
            UnknownNameError: Not one of ``KV``.
            BadValueError: The self-test found that it does not work with this model.
        """
        if check_kv(kv) not in self.strategies:
            raise BadValueError(
                f"kv={kv!r} does not work with {type(self.model).__name__}", f"choose one of {', '.join(self.strategies)}"
            )
        return kv

    def _prove(self) -> None:
        """Step the last tokens of a short input and compare with the model's own decoding; then try every K/V strategy."""
        prefilled, stepped = _PROOF
        ids = torch.arange(5, 5 + prefilled + stepped, device=self.anatomy.device)[None] % self.anatomy.tokens
        name = type(self.model).__name__
        if self.model.training:
            raise UnsupportedModelError(f"{name} is in training mode", "call model.eval() first")
        cache, own = self.new_cache(), self.new_cache()
        if any(base.__name__.startswith("LinearAttention") for layer in cache.layers for base in type(layer).__mro__):
            raise UnsupportedModelError(f"{name} has recurrent layers: the state of a skipped layer cannot be filled in")
        try:
            self.prefill(ids[:, :prefilled], cache)
            self.prefill(ids[:, :prefilled], own)
        except Exception as error:
            raise UnsupportedModelError(
                f"{name} does not decode with keys and values alone, as recurrent layers do not: {error}"
            ) from None
        shared = {i for i, layer in enumerate(cache.layers) if type(layer).__name__ == "DummyLayer"}
        silent = sorted(set(range(self.layers)) - cache.storing - shared)
        if silent:
            raise UnsupportedModelError(f"{name} has layers that store no keys and values, as recurrent layers do: {silent}")
        try:
            for position in range(prefilled, prefilled + stepped):
                self._compare(int(ids[0, position]), cache, self.prefill(ids[:, position : position + 1], own))
            self.strategies = tuple(kv for kv in KV if self._serves(kv, ids[:, :prefilled]))
        except UnsupportedModelError:
            raise
        except Exception as error:
            raise UnsupportedModelError(f"{name}: its layers do not run one by one: {error}") from None
        if "propagate" not in self.strategies:
            raise UnsupportedModelError(f"{name}: a layer does not stop once its keys and values are stored")
        self.detach()

    def _compare(self, token: int, cache: StepCache, expected: torch.Tensor) -> None:
        """Step one token and compare with the model's own logits."""
        name, hidden = type(self.model).__name__, self.plan(token, cache)
        for index in range(self.layers):
            hidden = self.run(index, hidden, cache)
        found = self.logits(hidden)
        if not same_logits(found.to(self.model.dtype), expected.to(self.model.dtype)):
            raise UnsupportedModelError(f"{name}: stepping does not reproduce the model's logits")
        if float(expected.max() - expected[found.argmax()]) > 1e-2 * float(expected.std()):
            raise UnsupportedModelError(f"{name}: stepping does not choose the model's token")

    def _serves(self, kv: str, ids: torch.Tensor) -> bool:
        """Whether tokens of mixed depth go through with one K/V strategy, leaving the positions that it should."""
        cache, last = self.new_cache(), ids.shape[1] - 1
        try:
            self.prefill(ids[:, :last], cache)
            if kv == "skip" and not self._indifferent(int(ids[0, last]), cache):
                return False
            for depth in (1, self.layers):
                hidden = self.plan(int(ids[0, last]), cache)
                for index in range(depth):
                    hidden = self.run(index, hidden, cache)
                self.fill(cache, depth, hidden, kv)
        except (RuntimeError, ValueError, IndexError):
            return False
        lengths = {cache.layers[index].get_seq_length() for index in cache.storing if index > 0}
        return bool(hidden.isfinite().all()) and lengths <= {last + (1 if kv == "skip" else 2)}

    @inferring
    def _indifferent(self, token: int, cache: StepCache) -> bool:
        """Whether it does not matter in which order a layer's cached positions lie.

        It does where attention biases each position by its place in the cache (ALiBi): a place left out would move others.
        """
        hidden = self.plan(token, cache)
        for index in range(self.layers):
            layer = cache.layers[index]
            with _unchanged(layer):
                expected = self.run(index, hidden, cache)
            with _unchanged(layer):
                if index in cache.storing:
                    layer.keys, layer.values = layer.keys.flip(-2), layer.values.flip(-2)
                if not same_logits(self.run(index, hidden, cache), expected):
                    return False
            hidden = expected
        return True


@contextmanager
def _unchanged(layer: Any) -> Iterator[None]:
    """Run the block, then put back what a layer of a cache held: its tensors are replaced, never written to."""
    before = dict(vars(layer))
    try:
        yield
    finally:
        vars(layer).clear()
        vars(layer).update(before)


def _trimmed(args: tuple[Any, ...], kwargs: dict[str, Any], layer: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A mask over every position, cut to the newest ones that this layer has."""
    keys = getattr(layer, "keys", None)
    positions = 1 + (0 if keys is None else keys.shape[-2])

    def cut(value: Any) -> Any:
        is_mask = isinstance(value, torch.Tensor) and value.ndim == 4 and value.shape[-2] == 1
        return value[..., -positions:] if is_mask and value.shape[-1] > positions else value

    return tuple(cut(a) for a in args), {name: cut(value) for name, value in kwargs.items()}
