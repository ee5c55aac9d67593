"""The embedded model, tiny random ones, and one thread: models this small lose more to synchronising than they gain.

A plugin of the tests beside it: PYTEST_DONT_REWRITE.
"""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from clone_rl.llm.model import load_model

torch.set_num_threads(1)

TINY_LAYERS = 4
_SIZES = {
    "vocab_size": 64,
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
_FULL = "full_attention"
CONFIGS = {
    "llama": (LlamaConfig, {}),
    "qwen2": (Qwen2Config, {}),
    "qwen3": (Qwen3Config, _HEAD),
    "mistral": (MistralConfig, {"sliding_window": None}),
    "mistral with a sliding window": (MistralConfig, {"sliding_window": 8}),
    "gemma": (GemmaConfig, _HEAD),
    "gemma2 with soft-capped logits": (Gemma2Config, {**_HEAD, "final_logit_softcapping": 1.0}),
    "gemma3": (Gemma3TextConfig, {**_HEAD, "sliding_window": 8}),
    "gemma3 with a full layer first": (
        Gemma3TextConfig,
        {**_HEAD, "sliding_window": 16, "layer_types": [_FULL, _FULL, _FULL, "sliding_attention"]},
    ),
    "gpt-neox": (GPTNeoXConfig, {"num_key_value_heads": None}),
}


def tiny_model(family, scale=3.0, seed=0):
    """A model with random weights of one family; the scale makes its greedy text vary."""
    if family == "gpt2":
        sizes = {"n_embd": 32, "n_layer": TINY_LAYERS, "n_head": 4, "n_positions": 128}
        config = GPT2Config(
            **sizes, vocab_size=64, tie_word_embeddings=False, bos_token_id=0, eos_token_id=None, pad_token_id=0
        )
    else:
        cls, changes = CONFIGS[family]
        config = cls(**{k: v for k, v in (_SIZES | changes).items() if k != "num_key_value_heads" or v})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(scale)
    return model


@pytest.fixture(scope="session")
def tiny():
    """Factory of tiny models."""
    return tiny_model


@pytest.fixture(scope="session")
def lm():
    """The embedded model."""
    return load_model()
