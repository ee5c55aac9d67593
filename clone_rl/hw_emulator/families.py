"""Hugging Face configurations by model family: where each keeps its sizes, and what it leaves unsaid."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clone_rl.errors import BadFileError, UnknownNameError, UnsupportedModelError
from clone_rl.tables import load_toml, shipped

_KEYS = {
    "layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "heads": "num_attention_heads",
    "ff_size": "intermediate_size",
    "vocab_size": "vocab_size",
    "context": "max_position_embeddings",
}
_GPT2_KEYS = {
    "layers": "n_layer",
    "hidden_size": "n_embd",
    "heads": "n_head",
    "ff_size": "n_inner",
    "vocab_size": "vocab_size",
    "context": "n_positions",
}

# What a configuration leaves out because it is the family's default; values: the transformers configuration classes.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"kv_heads": 8},
    "qwen2": {},
    "qwen3": {"head_dim": 128},
    "gemma": {"tied": True, "head_dim": 256},
    "gemma2": {"tied": True, "kv_heads": 4, "head_dim": 256, "norms": 4, "window_every": 2},
    "gemma3_text": {
        "tied": True, "heads": 8, "kv_heads": 4, "head_dim": 256, "vocab_size": 262208, "context": 131072, "norms": 4,
        "window_every": 6,
    },
    "phi": {"gated": False, "norms": 1},
    "phi3": {},
    "gpt2": {"keys": _GPT2_KEYS, "gated": False, "tied": True},
    "opt": {"keys": {**_KEYS, "ff_size": "ffn_dim"}, "gated": False, "tied": True},
    "gpt_neox": {"gated": False},
    "starcoder2": {"gated": False, "tied": True, "kv_heads": 2},
    "stablelm": {},
    "granite": {},
    "olmo": {},
    "olmo2": {},
    "smollm3": {"tied": True, "kv_heads": 4},
}  # fmt: skip
"""Model types that can be read."""

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_REQUIRED = ("layers", "hidden_size", "heads", "vocab_size")


def shape_names() -> list[str]:
    """Names of the published model shapes that ship with the package."""
    return shipped("clone_rl.hw_emulator", "shapes")


def _from_cache(model_id: str) -> Path | None:
    """``config.json`` of a model id in the local Hugging Face cache, newest snapshot first."""
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    hub = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    found = sorted(hub.glob(f"models--{model_id.replace('/', '--')}/snapshots/*/config.json"), key=os.path.getmtime)
    return found[-1] if found else None


def _find(name: str) -> Mapping[str, Any] | Path:
    path = Path(name)
    if path.is_dir():
        return path / "config.json"
    if path.suffix == ".json" or path.is_file():
        return path
    if name in shape_names():
        return load_toml("model shape", name, "clone_rl.hw_emulator", "shapes")
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and (cached := _from_cache(name)):
        return cached
    raise UnknownNameError(
        "model", name, shape_names(), "or give a config.json, a model folder, or a model id in the local Hugging Face cache"
    )


def read_config(config: Mapping[str, Any] | str | Path) -> dict[str, Any]:
    """Fields of ``Workload`` that a configuration determines; arguments and errors as in ``Workload.from_config``."""
    source, name, found = "model config", "", config
    if isinstance(config, str | Path):
        source, name = str(config), Path(config).name
        found = _find(source)
        if isinstance(found, Path):
            name = found.parent.name if found.name == "config.json" else found.stem
            found = _load_json(found)
    if not isinstance(found, Mapping):
        raise BadFileError(f"{source} is not a JSON object", "give the config.json of a decoder-only model")
    if isinstance(found.get("text_config"), Mapping):
        found = found["text_config"]
    sizes = _sizes(found, source)
    return sizes | {"name": str(name or found.get("_name_or_path") or found["model_type"])}


def _load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadFileError(f"no such model config: {path}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise BadFileError(f"{path} is not JSON: {error}") from None


def _sizes(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    kind = config.get("model_type")
    experts = next((key for key in _EXPERTS if config.get(key)), None)
    if experts or (isinstance(kind, str) and ("moe" in kind or kind in {"mixtral", "dbrx"})):
        raise UnsupportedModelError(
            f"{source}: model_type {kind!r} is a mixture of experts" + (f" ({experts} {config[experts]})" if experts else ""),
            "its work depends on the router: use a dense decoder",
        )
    if not isinstance(kind, str):
        raise BadFileError(f"{source}: model_type is {kind!r}", f"one of {', '.join(FAMILIES)}")
    if kind not in FAMILIES:
        error, known = UnknownNameError("architecture", kind, FAMILIES), f"known: {', '.join(FAMILIES)}"
        near = error.hint.startswith("did you mean")
        raise UnsupportedModelError(f"{source}: model_type: {error.message}", f"{error.hint}; {known}" if near else known)
    family = FAMILIES[kind]
    keys = family.get("keys", _KEYS)
    values: dict[str, Any] = {}
    for field, key in keys.items():
        if config.get(key) is None:
            if field in family:
                values[field] = family[field]
                continue
            if field in _REQUIRED or (field == "ff_size" and kind != "gpt2"):
                raise BadFileError(f"{source}: model config has no {key!r}", f"a {kind} config.json has it")
            values[field] = 4 * values["hidden_size"] if field == "ff_size" else 2048
        else:
            values[field] = _integer(config[key], key, source)
    if (width := config.get("word_embed_proj_dim")) not in (None, values["hidden_size"]):
        raise UnsupportedModelError(
            f"{source}: word_embed_proj_dim is {width}", f"only embeddings as wide as hidden_size, {values['hidden_size']}"
        )
    shared = config.get("num_key_value_heads", family.get("kv_heads"))
    values["kv_heads"] = values["heads"] if shared is None else _integer(shared, "num_key_value_heads", source)
    width = config.get("head_dim")
    values["head_dim"] = family.get("head_dim", 0) if width is None else _integer(width, "head_dim", source)
    if values["heads"] % values["kv_heads"]:
        raise BadFileError(
            f"{source}: num_key_value_heads is {values['kv_heads']}", f"a divisor of num_attention_heads, {values['heads']}"
        )
    if not values["head_dim"] and values["hidden_size"] % values["heads"]:
        raise BadFileError(
            f"{source}: num_attention_heads is {values['heads']}", f"a divisor of hidden_size, {values['hidden_size']}"
        )
    return values | {
        "gated": family.get("gated", True),
        "norms": family.get("norms", 2),
        "tied": bool(config.get("tie_word_embeddings", family.get("tied", False))),
        "windows": _windows(config, kind, values["layers"], source),
    }


def _integer(value: Any, key: str, source: str, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise BadFileError(f"{source}: {key} is {value!r}", f"an integer, at least {least}")
    return value


def _windows(config: Mapping[str, Any], kind: str, layers: int, source: str) -> tuple[int, ...]:
    """Sliding window of each layer, or nothing where every layer sees everything."""
    window = config.get("sliding_window")
    types = config.get("layer_types")
    if types is not None:
        if not isinstance(types, list | tuple) or len(types) != layers:
            raise BadFileError(f"{source}: layer_types is {types!r}", f"a list with one entry for each of {layers} layers")
        unknown = next((t for t in types if t not in ("full_attention", "sliding_attention")), None)
        if unknown is not None:
            raise UnsupportedModelError(
                f"{source}: layer_types has {unknown!r}", "layers of full_attention and sliding_attention are supported"
            )
        if "sliding_attention" not in types or not window:
            return ()
        size = _integer(window, "sliding_window", source)
        return tuple(size if t == "sliding_attention" else 0 for t in types)
    if not window or config.get("use_sliding_window") is False or kind == "llama":
        return ()
    size = _integer(window, "sliding_window", source)
    if kind in ("qwen2", "qwen3"):
        if not config.get("use_sliding_window"):
            return ()
        first = _integer(config.get("max_window_layers", layers), "max_window_layers", source, 0)
        return tuple(size if layer >= first else 0 for layer in range(layers)) if first < layers else ()
    every = config.get("sliding_window_pattern") or FAMILIES[kind].get("window_every", 0)
    every = _integer(every, "sliding_window_pattern", source, 0)
    if every:
        # Every n-th layer sees everything (Gemma 2: n = 2, Gemma 3: n = 6).
        return tuple(0 if (layer + 1) % every == 0 else size for layer in range(layers))
    return (size,) * layers
