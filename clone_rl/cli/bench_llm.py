"""``clone-rl bench llm``: what stepping through a model costs beside its own ``generate``: CPU time, one thread."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from typing import Any

from clone_rl.cli.text import aligned
from clone_rl.cli.timing import check_seconds, interleaved, machine, one_thread

FAMILIES = ("llama", "qwen2", "gemma3", "gpt2", "embedded")
"""Small models with random weights, and the one that ships."""

BARS = {"stepper_vs_generate": 1.05, "half_exit_vs_generate": 0.8, "record_vs_forward": 0.5}
"""What each ratio is meant to stay below; ``record_vs_forward`` above."""

_LONGEST_S = 600.0
_PROMPT, _NEW = 16, 64  # tokens
_SIZES = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def small_model(family: str) -> Any:
    """A model of 8 layers and width 256 with random weights."""
    import torch
    from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, LlamaConfig, Qwen2Config

    makers = {"llama": LlamaConfig, "qwen2": Qwen2Config, "gemma3": Gemma3TextConfig, "gpt2": GPT2Config}
    names = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
    names |= {"max_position_embeddings": "n_positions"}
    grouped = ("intermediate_size", "num_key_value_heads", "head_dim")
    sizes = _SIZES if family != "gpt2" else {names.get(k, k): v for k, v in _SIZES.items() if k not in grouped}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(makers[family](**sizes)).eval()


def _ratio(times: list[float], base: list[float]) -> float:
    """Median over the repetitions, each compared with its neighbour."""
    return median(time / other for time, other in zip(times, base, strict=True))


def decoding_jobs(model: Any) -> dict[str, Callable[[], Any]]:
    """One response each: the model's own greedy one, through the stepper, and with exits at half depth."""
    import torch
    from transformers import GenerationConfig

    from clone_rl.llm.generation import generate
    from clone_rl.llm.stepper import Stepper

    stepper = Stepper(model)
    half = stepper.layers // 2
    ids = torch.arange(1, 1 + _PROMPT)[None]
    ones = torch.ones_like(ids)
    config = GenerationConfig(max_new_tokens=_NEW, do_sample=False, pad_token_id=0)

    def ours(**options: Any) -> Any:
        return generate(stepper, ids, max_new_tokens=_NEW, end_ids=(), **options)

    return {
        "generate": lambda: stepper.model.generate(ids, attention_mask=ones, generation_config=config),
        "stepper": ours,
        "half_exit": lambda: ours(controller=lambda layers, _: layers == half),
    }


def _recording_jobs(lm: Any) -> dict[str, Callable[[], Any]]:
    """A plain forward pass with the head at every position, and all that is recorded of the same tokens."""
    import torch

    from clone_rl.llm.documents import Document
    from clone_rl.llm.record import measure

    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, lm.anatomy.tokens, (min(256, lm.shape.context),), generator=generator).tolist()
    document, ids = Document("bench", "test", tuple(tokens), 1, False), torch.tensor([tokens[:-1]])

    def forward() -> Any:
        with torch.inference_mode():
            return lm.model(input_ids=ids, use_cache=False).logits

    return {"forward": forward, "record": lambda: measure(lm, document)}


def measure_llm(seconds: float, families: tuple[str, ...] = FAMILIES) -> dict[str, Any]:
    """All figures.

    Args:
        seconds: CPU time to spend at least on each family, and on recording.
        families: Some of ``FAMILIES``.

    Returns:
        ``ratios`` and ``values`` (milliseconds per token, and tokens per second of recording).
    """
    from clone_rl.llm.model import load_model

    ratios: dict[str, dict[str, float]] = {name: {} for name in BARS}
    values: dict[str, dict[str, Any]] = {}
    with one_thread():
        for family in families:
            jobs = decoding_jobs(load_model() if family == "embedded" else small_model(family))
            same = jobs["generate"]().tolist() == jobs["stepper"]().tolist()
            times = interleaved(jobs, seconds)
            values[family] = {f"{name}_ms_per_token": 1e3 * median(each) / _NEW for name, each in times.items()}
            values[family] |= {"same_text": same, "repetitions": len(times["generate"])}
            ratios["stepper_vs_generate"][family] = _ratio(times["stepper"], times["generate"])
            ratios["half_exit_vs_generate"][family] = _ratio(times["half_exit"], times["generate"])
        if "embedded" in families:
            times = interleaved(_recording_jobs(load_model()), seconds)
            values["embedded"] |= {f"{name}_s": median(each) for name, each in times.items()}
            ratios["record_vs_forward"]["embedded"] = _ratio(times["forward"], times["record"])
    return {"ratios": ratios, "values": values}


def bench_llm(options: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """``clone-rl bench llm``; exit code 1 if the stepper writes another text than the model."""
    check_seconds(options.seconds, _LONGEST_S)
    import torch
    import transformers

    result = measure_llm(options.seconds)
    result["machine"] = machine() | {"torch": torch.__version__, "transformers": transformers.__version__}
    if not options.json:
        print(_text(result))
    return result, int(not all(value["same_text"] for value in result["values"].values()))


def _text(result: dict[str, Any]) -> str:
    ratios, values, at = result["ratios"], result["values"], result["machine"]
    names = list(values)
    table = aligned(
        [
            ("family", "", names),
            ("generate", "s", [values[n]["generate_ms_per_token"] / 1e3 for n in names]),
            ("stepper", "s", [values[n]["stepper_ms_per_token"] / 1e3 for n in names]),
            ("ratio", "", [ratios["stepper_vs_generate"][n] for n in names]),
            ("half exit", "s", [values[n]["half_exit_ms_per_token"] / 1e3 for n in names]),
            ("ratio", "", [ratios["half_exit_vs_generate"][n] for n in names]),
            ("text", "", ["same" if values[n]["same_text"] else "DIFFERENT" for n in names]),
        ],
        together="s",
    )
    return "\n".join(
        [
            f"{at['cpu']}, Python {at['python']}, torch {at['torch']}, transformers {at['transformers']}; "
            "CPU time per token, one thread",
            "",
            table,
            "",
            f"recording all exits of the embedded model: {ratios['record_vs_forward']['embedded']:.2g} times the speed "
            "of a plain forward pass",
        ]
    )
