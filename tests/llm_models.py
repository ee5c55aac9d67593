"""The embedded model, tiny random ones of many families, and one thread: models this small lose more to synchronising
than they gain.

A plugin of the tests beside it: PYTEST_DONT_REWRITE.
"""

import zlib

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from clone_rl.llm.probe import Probe

torch.set_num_threads(1)

TINY_LAYERS = 4
VOCAB = 160
_GAIN = 4.0
_GAINS = {"falcon with alibi": 1.5, "gemma3 with a tied head": 8.0}
_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": TINY_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": None,
    "pad_token_id": 0,
}
_HEAD = {"head_dim": 8}
_NO_GROUPS = {"num_key_value_heads": None}
_GPT = {"n_embd": 32, "n_layer": TINY_LAYERS, "n_head": 4, "n_positions": 128}
_FULL, _SLIDING = "full_attention", "sliding_attention"
_FALCON = {**_NO_GROUPS, "ffn_hidden_size": 48, "new_decoder_architecture": False, "multi_query": True}

# Name of the configuration's class, and what differs from _SIZES; None leaves a size out.
CONFIGS = {
    "llama": ("LlamaConfig", {}),
    "llama with a tied head": ("LlamaConfig", {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", {}),
    "qwen2 with a tied head": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen2 with sliding layers": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
    ),
    "qwen3": ("Qwen3Config", _HEAD),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "mistral with a sliding window": ("MistralConfig", {"sliding_window": 8}),
    "gemma": ("GemmaConfig", _HEAD | {"tie_word_embeddings": True}),
    "gemma2 with soft-capped logits": (
        "Gemma2Config",
        _HEAD | {"final_logit_softcapping": 5.0, "sliding_window": 8, "query_pre_attn_scalar": 8},
    ),
    "gemma3": ("Gemma3TextConfig", _HEAD | {"sliding_window": 8, "query_pre_attn_scalar": 8}),
    "gemma3 with a tied head": (
        "Gemma3TextConfig",
        _HEAD | {"sliding_window": 8, "query_pre_attn_scalar": 8, "tie_word_embeddings": True},
    ),
    "gemma3 with a full layer first": (
        "Gemma3TextConfig",
        _HEAD | {"sliding_window": 16, "layer_types": [_FULL, _FULL, _FULL, _SLIDING], "query_pre_attn_scalar": 8},
    ),
    "gpt2": ("GPT2Config", _GPT),
    "gpt2 with a tied head": ("GPT2Config", _GPT | {"tie_word_embeddings": True}),
    "gpt-neo": ("GPTNeoConfig", _GPT | {"num_layers": 4, "attention_types": [[["global", "local"], 2]], "window_size": 8}),
    "gpt-neox": ("GPTNeoXConfig", _NO_GROUPS),
    "gptj": ("GPTJConfig", _GPT | {"rotary_dim": 4}),
    "phi": ("PhiConfig", {}),
    "phi3": ("Phi3Config", {}),
    "falcon with rotary positions": ("FalconConfig", _FALCON),
    "falcon with alibi": ("FalconConfig", _FALCON | {"alibi": True}),
    "bloom": ("BloomConfig", {"n_layer": TINY_LAYERS, "n_head": 4}),
    "olmo2": ("Olmo2Config", {}),
    "granite": ("GraniteConfig", {"logits_scaling": 7.0, "residual_multiplier": 0.7, "embedding_multiplier": 2.0}),
    "cohere": ("CohereConfig", {"logit_scale": 0.2, "tie_word_embeddings": True}),
    "cohere2": ("Cohere2Config", _HEAD | {"logit_scale": 0.2, "sliding_window": 8}),
    "stablelm": ("StableLmConfig", {}),
    "starcoder2": ("Starcoder2Config", {}),
    "opt": ("OPTConfig", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "smollm3": ("SmolLM3Config", {}),
    "qwen2-moe": (
        "Qwen2MoeConfig",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    ),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "glm4": ("Glm4Config", _HEAD),
    "mpt": ("MptConfig", {"d_model": 32, "n_layers": TINY_LAYERS, "n_heads": 4, "max_seq_len": 128}),
    "gpt-bigcode": ("GPTBigCodeConfig", _GPT),
    "llama with dynamic rotary positions": (
        "LlamaConfig",
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 32}},
    ),
    "gemma4 with shared keys and values": (
        "Gemma4TextConfig",
        _HEAD
        | {
            "global_head_dim": 8,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": VOCAB,
            "num_kv_shared_layers": 2,
            "sliding_window": 8,
            "layer_types": [_SLIDING, _FULL] * 2,
        },
    ),
    "gpt-oss": ("GptOssConfig", _HEAD | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8}),
}
"""Families that can be stepped."""


def tiny_config(family):
    """The configuration of one family."""
    name, changes = CONFIGS[family]
    if not hasattr(transformers, name):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    return getattr(transformers, name)(
        **{key: value for key, value in (_SIZES | changes).items() if key not in _omitted(changes)}
    )


def _omitted(changes):
    return {"num_key_value_heads"} if changes.get("num_key_value_heads", 0) is None else set()


def vary(model, gain=_GAIN, seed=0):
    """Weights under which the greedy text of a random model varies: each layer outweighs the token that came in."""
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            # By name, so that versions that order their parameters differently draw the same.
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
            drawn = torch.randn(parameter.shape, generator=generator).to(parameter)
            if parameter.ndim == 1:
                parameter.add_(drawn, alpha=0.1)
            elif parameter is model.get_input_embeddings().weight:
                parameter.copy_(drawn / gain**2)
            else:
                parameter.copy_(drawn * gain / parameter.shape[-1] ** 0.5)
    return model


def tiny_model(family, gain=None, seed=0):
    """A model with random weights of one family."""
    torch.manual_seed(seed)
    gain = gain or _GAINS.get(family, _GAIN)
    model = vary(AutoModelForCausalLM.from_config(tiny_config(family)).eval(), gain, seed)
    model.generation_config.eos_token_id = None
    return model


def tiny_probe(exits, width, seed=0):
    """A probe with random weights of three units."""
    generator = torch.Generator().manual_seed(seed)
    return Probe(*(torch.randn(s, generator=generator) for s in ((exits, 3, width), (exits, 3), (exits, 2, 3), (exits, 2))))


@pytest.fixture(scope="session")
def tiny():
    """Factory of tiny models."""
    return tiny_model


@pytest.fixture(scope="session")
def lm():
    """The embedded model."""
    from clone_rl.llm.model import load_model

    return load_model()
