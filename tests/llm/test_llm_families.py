import pytest
import torch
import transformers
from llm_models import CONFIGS, TINY_LAYERS, vary
from transformers import AutoModelForCausalLM

from clone_rl.errors import UnsupportedModelError
from clone_rl.llm.generation import generate
from clone_rl.llm.stepper import Stepper

pytest_plugins = ["llm_models"]

PROMPT = torch.arange(7, 27)[None]  # longer than every window
LENGTH = 48
EXITS = 24
# The other families are close relatives of these.
COMMON = [
    "llama",
    "qwen2 with sliding layers",
    "qwen3",
    "mistral with a sliding window",
    "gemma",
    "gemma2 with soft-capped logits",
    "gemma3",
    "gemma4 with shared keys and values",
    "gpt2 with a tied head",
    "gpt-neo",
    "gpt-neox",
    "phi3",
    "falcon with alibi",
    "bloom",
    "granite",
    "cohere",
    "qwen2-moe",
    "gpt-oss",
    "opt",
]
FAMILIES = [pytest.param(family, marks=() if family in COMMON else pytest.mark.slow) for family in CONFIGS]
# Attention that biases a position by its place in the cache would shift where a place is left out.
PLACED = {"falcon with alibi", "bloom", "mpt"}
IN_HALF_PRECISION = [
    "llama",
    "qwen2 with a tied head",
    "mistral with a sliding window",
    "gemma3",
    "gemma2 with soft-capped logits",
    "gpt2",
    "cohere",
]
OLD = int(transformers.__version__.partition(".")[0]) < 5


def greedy(model, tokens=LENGTH):
    return model.generate(PROMPT, attention_mask=torch.ones_like(PROMPT), do_sample=False, max_new_tokens=tokens)


def patched(model):
    """Modules that carry a forward of their own."""
    return [name for name, module in model.named_modules() if "forward" in module.__dict__]


def mixed(seed=0, layers=TINY_LAYERS):
    """A rule that leaves after 1 to all layers, drawn for each token, and what it saw when it did."""
    generator = torch.Generator().manual_seed(seed)
    seen, wanted = [], []

    def rule(layer, hidden):
        if layer == 0:
            wanted.append(int(torch.randint(1, layers + 1, (1,), generator=generator)))
        if layer == wanted[-1]:
            seen.append(hidden.clone())
        return layer == wanted[-1]

    return rule, seen


def same_state(found, expected):
    """Equal but for rounding, which layers with large weights blow up."""
    return bool((found - expected).norm() <= 2e-3 * expected.norm())


@torch.no_grad()
def full_pass(stepper, ids, depths=None):
    """States after every layer and logits, without a cache; at ``depths`` a position's state stays as it was there."""
    states, hooks = [], []

    def hook(index):
        def after(module, args, kwargs, out):
            before = args[0] if args else kwargs["hidden_states"]
            state = (out[0] if isinstance(out, tuple) else out).clone()
            for position, depth in (depths or {}).items():
                if index >= depth:
                    state[:, position] = before[:, position]
            states.append(state)
            return (state, *out[1:]) if isinstance(out, tuple) else state

        return after

    for index, layer in enumerate(stepper.anatomy.layers):
        hooks.append(layer.register_forward_hook(hook(index), with_kwargs=True))
    try:
        return states, stepper.model(input_ids=ids, use_cache=False).logits
    finally:
        for each in hooks:
            each.remove()


@pytest.mark.parametrize("family", FAMILIES)
def test_without_exits_the_text_is_the_greedy_text_of_the_model(tiny, family):
    model = tiny(family)
    expected = greedy(model)
    assert len(set(expected[0, PROMPT.shape[1] :].tolist())) >= 8  # otherwise equality says little
    stepper = Stepper(model)
    assert stepper.strategies == (("propagate", "exact") if family in PLACED else ("propagate", "exact", "skip"))
    found = generate(stepper, PROMPT, max_new_tokens=LENGTH, return_dict_in_generate=True)
    assert torch.equal(found.sequences, expected)
    assert found.depths == [TINY_LAYERS] * LENGTH
    assert patched(model) == []
    assert torch.equal(greedy(model, 4), expected[:, : PROMPT.shape[1] + 4])


@pytest.mark.parametrize("family", IN_HALF_PRECISION)
def test_in_bfloat16_too(tiny, family):
    model = tiny(family).to(torch.bfloat16)
    expected = greedy(model, EXITS)
    assert len(set(expected[0, PROMPT.shape[1] :].tolist())) >= 8
    assert torch.equal(generate(model, PROMPT, max_new_tokens=EXITS), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_propagated_keys_and_values_are_those_of_a_state_that_no_layer_changes_any_more(tiny, family):
    stepper, (rule, seen) = Stepper(tiny(family)), mixed(seed=1)
    out = generate(stepper, PROMPT, rule, "propagate", EXITS, return_dict_in_generate=True)
    assert len(set(out.depths)) == TINY_LAYERS
    first = PROMPT.shape[1] - 1
    depths = {first + number: depth for number, depth in enumerate(out.depths)}
    states, logits = full_pass(stepper, out.sequences[:, :-1], depths)
    assert logits[0, first:].argmax(-1).tolist() == out.sequences[0, first + 1 :].tolist()
    early = [(position, depth) for position, depth in depths.items() if depth < TINY_LAYERS]
    for (position, depth), hidden in zip(early, seen, strict=True):
        assert same_state(states[depth - 1][0, position], hidden[0, 0])


@pytest.mark.parametrize("family", FAMILIES)
def test_exact_keys_and_values_leave_the_states_of_full_depth(tiny, family):
    stepper, (rule, seen) = Stepper(tiny(family)), mixed(seed=2)
    out = generate(stepper, PROMPT, rule, "exact", EXITS, return_dict_in_generate=True)
    assert len(set(out.depths)) == TINY_LAYERS
    first, seen = PROMPT.shape[1] - 1, iter(seen)
    states, logits = full_pass(stepper, out.sequences[:, :-1])
    for number, depth in enumerate(out.depths):
        position = first + number
        expected = logits[0, position]
        if depth < TINY_LAYERS:
            assert same_state(states[depth - 1][0, position], next(seen)[0, 0])
            with torch.no_grad():
                expected = stepper.anatomy.tail(states[depth - 1][:, position : position + 1])[0, 0]
        assert int(expected.argmax()) == int(out.sequences[0, position + 1])


def decoder(name, **sizes):
    shared = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 4}
    config = getattr(transformers, name)(**shared | sizes)
    return AutoModelForCausalLM.from_config(config)


SIZES = {"intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
_MAMBA = {"mamba_d_state": 4, "pad_token_id": 0}


def falcon_h1():
    heads = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
    return decoder("FalconH1Config", **SIZES, **_MAMBA, **heads, head_dim=8)


def jamba():
    turns = {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "num_experts": 2}
    return decoder("JambaConfig", **SIZES, **_MAMBA, **turns, use_mamba_kernels=False, mamba_dt_rank=2)


def qwen3_next():
    linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
    return decoder("Qwen3NextConfig", **SIZES, **linear, **experts, head_dim=8)


def recurrent_gemma():
    sizes = {key: SIZES[key] for key in ("intermediate_size", "num_attention_heads")}
    return decoder("RecurrentGemmaConfig", **sizes, lru_width=32, attention_window_size=16)


def t5():
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 4, "num_heads": 4}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=64, **sizes))


def bert():
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}
    return transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=64, **sizes))


def four_streams():
    shared = {"num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 8}
    inputs = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 64, "activation_sparsity_pattern": [0.0] * 4}
    return decoder("Gemma3nTextConfig", **SIZES, **shared, **inputs, head_dim=8, laurel_rank=4)


def classifier():
    config = transformers.LlamaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=4, **SIZES)
    return transformers.LlamaForSequenceClassification(config)


def no_head():
    return transformers.LlamaModel(transformers.LlamaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=4, **SIZES))


REFUSED = {
    "mamba": (lambda: decoder("MambaConfig", state_size=4), "Mamba.* recurrent layers"),
    "mamba2": (
        lambda: decoder("Mamba2Config", state_size=4, num_heads=8, head_dim=8, n_groups=1),
        "Mamba2.* recurrent layers",
    ),
    "recurrent gemma": (recurrent_gemma, "RecurrentGemma.* recurrent layers"),
    "falcon h1": (falcon_h1, "FalconH1.* recurrent layers"),
    "jamba": (jamba, "Jamba.* recurrent layers"),
    "qwen3 next": (qwen3_next, "Qwen3Next.* recurrent layers"),
    "t5": (t5, "T5.* is an encoder-decoder"),
    "bert": (bert, "BertForMaskedLM cannot run a short input" if OLD else "BertForMaskedLM is not causal"),
    "gemma3n": (four_streams, r"Gemma3n.* pass states of shape \(4, 1, 6, 32\)"),
    "a classifier": (classifier, "LlamaForSequenceClassification has no language-modelling head"),
    "a model without a head": (no_head, "LlamaModel has no language-modelling head"),
    "no language model": (lambda: torch.nn.Linear(2, 2), "Linear is not a transformers model"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_stepped_is_refused_by_name_and_left_alone(name):
    make, reason = REFUSED[name]
    model = make().eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UnsupportedModelError, match=reason):
        Stepper(model)
    assert patched(model) == []
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_flat_soft_cap_is_noticed():
    """Weights so small that capping changes the logits of the self-test very little."""
    sizes = SIZES | {"head_dim": 8, "final_logit_softcapping": 30.0}
    model = vary(decoder("Gemma2Config", **sizes).eval(), 0.3)
    stepper = Stepper(model)
    assert not stepper.anatomy.direct
    with torch.no_grad():
        hidden = 1e3 * torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(0))
        model.get_output_embeddings().weight.mul_(100)
        assert float(stepper.anatomy.tail(hidden).abs().max()) <= 30.0
