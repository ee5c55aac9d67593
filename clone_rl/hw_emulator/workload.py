"""What a decoder-only transformer asks of a chip, as shapes alone: no weights are needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any

from clone_rl.errors import BadFileError, BadValueError, UnknownNameError
from clone_rl.hw_emulator.precision import PRECISIONS, Precision, precision_named

_LARGEST = {"layers": 1024, "context": 2**30}
_LARGEST_SIZE = 2**24
"""Beyond any model there is: what is larger is a slip of the pen, and would take hours."""

LORA_TARGETS = ("query", "key", "value", "output", "gate", "up", "down")
"""Weight matrices that a LoRA adapter can sit beside."""


@dataclass(frozen=True)
class Workload:
    """Sizes and number formats of a decoder-only transformer.

    Attributes:
        layers: Decoder layers.
        hidden_size: Residual width.
        heads, kv_heads: Query heads, and key/value heads (equal without grouped-query attention).
        ff_size: Width of the feed-forward network.
        vocab_size: Tokens in the vocabulary.
        head_dim: Width of a head; 0 means ``hidden_size / heads``.
        gated: Whether the feed-forward network has a gate (three matrices) or not (two).
        context: Longest supported context in tokens.
        norms: Normalisations of the residual per layer.
        windows: Sliding window of each layer in tokens, 0 for full attention; empty where no layer has one.
        tied: Whether the head shares the embedding's weights.
        precision: Number formats.
        lora_rank: Rank of the LoRA adapters; 0 for none.
        lora_targets: Which of ``LORA_TARGETS`` they sit beside.
        adapters: How many run at once (CLONE's soft mixture).
        name: For display.

    Raises:
        BadValueError: A size is not positive, or sizes do not fit together.
        UnknownNameError: Unknown LoRA target.
    """

    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    ff_size: int
    vocab_size: int = 2048
    head_dim: int = 0
    gated: bool = True
    context: int = 256
    norms: int = 2
    windows: tuple[int, ...] = ()
    tied: bool = True
    precision: Precision = PRECISIONS["int4"]
    lora_rank: int = 0
    lora_targets: tuple[str, ...] = ("query", "value")
    adapters: int = 1
    name: str = "model"

    def __post_init__(self) -> None:
        if self.head_dim == 0 and is_count(self.heads) and is_count(self.hidden_size) and self.heads > 0:
            object.__setattr__(self, "head_dim", self.hidden_size // self.heads)
        for name in (
            "layers", "hidden_size", "heads", "kv_heads", "ff_size", "vocab_size", "head_dim", "context", "adapters",
        ):  # fmt: skip
            if not is_count(getattr(self, name)) or getattr(self, name) < 1:
                raise BadValueError(f"{name} is {getattr(self, name)!r}", "sizes are integers, at least 1")
            if getattr(self, name) > (largest := _LARGEST.get(name, _LARGEST_SIZE)):
                raise BadValueError(f"{name} is {getattr(self, name)}", f"at most {largest}")
        if self.heads % self.kv_heads:
            raise BadValueError(f"{self.heads} heads and {self.kv_heads} kv_heads", "query heads share key/value heads evenly")
        if not is_count(self.lora_rank):
            raise BadValueError(f"lora_rank is {self.lora_rank!r}", "0 for no adapter, or its rank")
        if self.windows and (len(self.windows) != self.layers or not all(map(is_count, self.windows))):
            raise BadValueError(f"windows {self.windows}", f"one for each of {self.layers} layers, 0 for full attention")
        for target in self.lora_targets:
            if target not in LORA_TARGETS:
                raise UnknownNameError("LoRA target", target, LORA_TARGETS)

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any] | str | Path, precision: str | Precision = "int4", **changes: Any
    ) -> Workload:
        """Workload of a Hugging Face model.

        Args:
            config: A ``config.json`` as a mapping, its path, a model folder, a model id in the local Hugging Face cache, or
                one of ``shape_names()``. No weights are read and nothing is downloaded.
            precision: One of ``PRECISIONS``, or a ``Precision``.
            **changes: Fields to set, such as ``lora_rank=8`` or ``context=4096``.

        Raises:
            BadFileError: The file is missing, is not JSON, or lacks a size.
            UnsupportedModelError: A mixture of experts, a recurrent model, or an unknown architecture.
            UnknownNameError: Unknown precision, field or model.

        >>> Workload.from_config("llama-3.2-1b").layer_parameters
        60817408
        """
        from clone_rl.hw_emulator.families import read_config

        for key in changes:
            if key not in cls.__dataclass_fields__:
                raise UnknownNameError("workload field", key, cls.__dataclass_fields__)
        sizes = read_config(config)
        if "windows" not in changes and "layers" in changes and changes["layers"] != sizes["layers"]:
            sizes["windows"] = ()
        return cls(**{**sizes, "precision": precision_named(precision), **changes})

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Workload:
        """The inverse of ``as_dict``; fields that an older file lacks take their defaults.

        Raises:
            TypeError: Not such a mapping.
        """
        values = dict(stored)
        for key in ("windows", "lora_targets"):
            if key in values:
                values[key] = tuple(values[key])
        if "precision" in values:
            values["precision"] = Precision(**values["precision"])
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as a trace card stores it."""
        return asdict(self)

    def with_precision(self, precision: str | Precision) -> Workload:
        """The same model in other number formats."""
        return replace(self, precision=precision_named(precision))

    @property
    def products(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of each weight matrix of one decoder layer, by ``LORA_TARGETS``."""
        query, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        products = {
            "query": (self.hidden_size, query),
            "key": (self.hidden_size, kv),
            "value": (self.hidden_size, kv),
            "output": (query, self.hidden_size),
        }
        if self.gated:
            products["gate"] = (self.hidden_size, self.ff_size)
        return products | {"up": (self.hidden_size, self.ff_size), "down": (self.ff_size, self.hidden_size)}

    @property
    def lora_products(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of the low-rank matrices of one decoder layer, all active adapters together."""
        rank = self.lora_rank * self.adapters
        beside = [self.products[target] for target in self.lora_targets if target in self.products] if rank else []
        return [pair for inputs, outputs in beside for pair in ((inputs, rank), (rank, outputs))]

    @property
    def layer_parameters(self) -> int:
        """Weights of one decoder layer, without norms and adapters."""
        return sum(k * n for k, n in self.products.values())

    @property
    def head_parameters(self) -> int:
        """Weights of the head."""
        return self.hidden_size * self.vocab_size

    @property
    def lora_parameters(self) -> int:
        """Weights of the active adapters of one decoder layer."""
        return sum(k * n for k, n in self.lora_products)

    @property
    def layer_bytes(self) -> float:
        """Stored weights of one decoder layer, without adapters."""
        return self.layer_parameters * self.precision.bits("weights") / 8

    @property
    def head_bytes(self) -> float:
        """Stored weights of the head."""
        return self.head_parameters * self.precision.bits("head") / 8

    @property
    def lora_bytes(self) -> float:
        """Stored weights of the active adapters of one decoder layer, in the head's format."""
        return self.lora_parameters * self.precision.bits("head") / 8

    @property
    def adapter_bytes(self) -> float:
        """Stored weights of the active adapters of all layers."""
        return self.lora_bytes * self.layers

    @property
    def weight_bytes(self) -> float:
        """Weights that one full-depth token reads: every layer and the head."""
        return self.layers * self.layer_bytes + self.head_bytes

    @property
    def kv_bytes_per_token(self) -> float:
        """Keys and values of one position in one layer."""
        return 2 * self.kv_heads * self.head_dim * self.precision.bits("kv") / 8

    @property
    def macs_per_token(self) -> int:
        """Multiply-accumulates of one full-depth token without attention scores."""
        return self.layers * self.layer_parameters + self.head_parameters

    def window_of(self, layer: int) -> float:
        """Positions that a layer's attention sees; infinite without a sliding window."""
        window = self.windows[layer] if self.windows else 0
        return float(window) if window else float("inf")


def is_count(value: object) -> bool:
    """Whether this is a whole number, Python's or NumPy's, of 0 or more."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 0


def stored_workload(stored: Any, source: str) -> Workload:
    """A workload from a file's plain data.

    Raises:
        BadFileError: It is not one.
    """
    try:
        return Workload.from_dict(stored)
    except (TypeError, ValueError, KeyError) as error:
        raise BadFileError(f"{source}: no model shape: {error}", "record it again") from None
