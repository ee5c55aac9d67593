"""What a decoder-only transformer asks of the chip: MACs, bytes and special-function elements, as shapes alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clone_rl.errors import BadFileError, BadValueError, UnsupportedModelError
from clone_rl.hw_emulator.chip import Chip

WORK = np.dtype(
    [
        ("macs_per_row", "f8"),  # linear layers, per token
        ("macs_per_score", "f8"),  # attention, per token and context position
        ("weight_bytes", "f8"),  # read once, whatever the number of rows
        ("dram_bytes", "f8"),  # the part of weight_bytes that is not resident in SRAM
        ("kv_bytes_per_score", "f8"),  # cache read per token and context position
        ("kv_bytes_per_row", "f8"),  # cache written per token
        ("activation_bytes_per_row", "f8"),
        ("elements_per_row", "f8"),  # norm, rotary, activation
        ("softmax_per_score", "f8"),
        ("array_cycles", "f8"),  # weight-stationary array: cycles besides the rows, all products
        ("array_cycles_per_row", "f8"),
    ]
)
"""One schedulable piece of work: a decoder layer, the head, a probe. Zero where a term does not apply."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder-only transformer.

    Attributes:
        layers: Decoder layers.
        hidden_size: Residual width.
        heads, kv_heads: Query heads, and key/value heads (equal without grouped-query attention).
        ff_size: Width of the feed-forward network.
        vocab_size: Tokens in the vocabulary.
        head_dim: Width of a head; 0 means ``hidden_size / heads``.
        gated: Whether the feed-forward network has a gate (three matrices) or not (two).
        context: Longest supported context in tokens.

    Raises:
        BadValueError: A size is not positive.
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

    def __post_init__(self) -> None:
        if self.head_dim == 0 and self.heads > 0:
            object.__setattr__(self, "head_dim", self.hidden_size // self.heads)
        for name in ("layers", "hidden_size", "heads", "kv_heads", "ff_size", "vocab_size", "head_dim", "context"):
            if getattr(self, name) < 1:
                raise BadValueError(f"{name} is {getattr(self, name)}", "sizes are at least 1")

    @property
    def products(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of each weight matrix of one decoder layer."""
        query, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        ff = [(self.hidden_size, self.ff_size)] * (2 if self.gated else 1) + [(self.ff_size, self.hidden_size)]
        return [(self.hidden_size, query), (self.hidden_size, kv), (self.hidden_size, kv), (query, self.hidden_size), *ff]

    @property
    def layer_parameters(self) -> int:
        """Weights of one decoder layer, without norms."""
        return sum(k * n for k, n in self.products)

    @property
    def head_parameters(self) -> int:
        """Weights of the head."""
        return self.hidden_size * self.vocab_size

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelShape:
        """Shape of a Hugging Face ``config.json``.

        Raises:
            UnsupportedModelError: A mixture of experts, whose work depends on the router.
            BadFileError: A size is missing.
        """
        if not isinstance(config, Mapping):
            raise BadFileError("model config is not a JSON object", "give the config.json of a decoder-only model")
        config = config.get("text_config", config)
        if any(config.get(key) for key in ("num_local_experts", "num_experts", "n_routed_experts")):
            raise UnsupportedModelError("mixture-of-experts models are not supported", "use a dense decoder")
        try:
            hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
            return cls(
                layers=int(config["num_hidden_layers"]),
                hidden_size=hidden,
                heads=heads,
                kv_heads=int(config.get("num_key_value_heads") or heads),
                ff_size=int(config["intermediate_size"]),
                vocab_size=int(config["vocab_size"]),
                head_dim=int(config.get("head_dim") or 0),
                gated=config.get("model_type") not in {"gpt_neox", "phi", "opt", "falcon"},
                context=int(config.get("max_position_embeddings") or 2048),
            )
        except KeyError as error:
            raise BadFileError(f"model config has no {error}", "give the config.json of a decoder-only model") from None
        except (TypeError, ValueError) as error:
            raise BadFileError(f"model config: {error}", "sizes are integers") from None

    @classmethod
    def from_file(cls, path: Path) -> ModelShape:
        """Shape of a ``config.json`` on disk.

        Raises:
            BadFileError: The file is missing or not JSON, or a size is missing.
            UnsupportedModelError: A mixture of experts.
        """
        try:
            return cls.from_config(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise BadFileError(f"no such model config: {path}") from None
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise BadFileError(f"{path} is not JSON: {error}") from None


def _group_overhead(bits: int) -> float:
    return 1 + 16 / (64 * bits) if bits == 4 else 1.0


def _linear(chip: Chip, products: list[tuple[int, int]], bits: int, weights_per_weight: float = 1.0) -> dict[str, float]:
    """Terms that a set of weight matrices contributes; the columns of each product are split over the tiles."""
    rows, columns, tiles = chip.compute.array_rows, chip.compute.array_columns, chip.compute.tiles
    blocks = sum(-(-k // rows) * -(-n // (columns * tiles)) for k, n in products)
    parameters = sum(k * n for k, n in products)
    return {
        "macs_per_row": parameters,
        "weight_bytes": parameters * bits / 8 * weights_per_weight,
        "activation_bytes_per_row": sum(k + n for k, n in products) * chip.compute.activation_bits / 8,
        "array_cycles": blocks * (2 * rows + columns - 2) - len(products),
        "array_cycles_per_row": blocks,
    }


def layer_work(chip: Chip, model: ModelShape) -> dict[str, float]:
    """One decoder layer; ``dram_bytes`` is left at 0."""
    bits = chip.compute.weight_bits
    query, kv = model.heads * model.head_dim, model.kv_heads * model.head_dim
    work = _linear(chip, model.products, bits, _group_overhead(bits))
    work |= {
        "macs_per_score": 2.0 * query,
        "kv_bytes_per_score": 2.0 * kv * chip.compute.activation_bits / 8,
        "kv_bytes_per_row": 2.0 * kv * chip.compute.activation_bits / 8,
        "elements_per_row": 2.0 * model.hidden_size + query + kv + model.ff_size,
        "softmax_per_score": float(model.heads),
    }
    return work


def head_work(chip: Chip, model: ModelShape) -> dict[str, float]:
    """The final norm, the head, and the choice of a token."""
    work = _linear(chip, [(model.hidden_size, model.vocab_size)], chip.compute.head_bits)
    return work | {"elements_per_row": float(model.hidden_size + model.vocab_size)}


def kv_fill_work(chip: Chip, model: ModelShape, skipped: int) -> dict[str, float]:
    """Keys and values of the layers that an exit skips, from the exit state: one fused product (CALM's state copy)."""
    bits, kv = chip.compute.weight_bits, model.kv_heads * model.head_dim
    work = _linear(chip, [(model.hidden_size, 2 * kv * skipped)] if skipped else [], bits, _group_overhead(bits))
    work["kv_bytes_per_row"] = 2.0 * kv * skipped * chip.compute.activation_bits / 8
    work["elements_per_row"] = float(model.hidden_size * skipped + kv * skipped)
    return work


def probe_work(chip: Chip, model: ModelShape, signals: int) -> dict[str, float]:
    """One read of the exit probe: a norm of the residual and ``signals`` dot products, 8-bit weights."""
    work = _linear(chip, [(model.hidden_size, signals)], 8)
    return work | {"elements_per_row": float(model.hidden_size + signals)}


def policy_work(chip: Chip, macs: int) -> dict[str, float]:
    """One decision of a controller with this many multiply-accumulates, 8-bit weights."""
    work = _linear(chip, [(macs, 1)] if macs else [], 8)
    return work | {"array_cycles": 0.0, "array_cycles_per_row": float(macs), "activation_bytes_per_row": 0.0}
