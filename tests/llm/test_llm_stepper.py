import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, CohereConfig, MambaConfig, RecurrentGemmaConfig

from clone_rl.errors import UnsupportedModelError
from clone_rl.llm.stepper import Stepper

pytest_plugins = ["llm_models"]

# Scales under which the greedy text of the random model varies.
FAMILIES = {
    "llama": 3,
    "qwen2": 20,
    "qwen3": 12,
    "mistral": 3,
    "mistral with a sliding window": 3,
    "gemma": 3,
    "gemma3": 3,
    "gemma3 with a full layer first": 5,
    "gpt2": 3,
    "gpt-neox": 3,
}
IDS = torch.arange(7, 15)[None]
LENGTH = 28


def greedy(model, tokens):
    out = model.generate(IDS, attention_mask=torch.ones_like(IDS), do_sample=False, max_new_tokens=tokens)
    return out[0, IDS.shape[1] :].tolist()


def advance(stepper, cache, token, depth):
    """Run the first layers of a token; returns the state."""
    hidden = stepper.plan(token, cache)
    for index in range(depth):
        hidden = stepper.run(index, hidden)
    return hidden


@pytest.mark.parametrize("family", FAMILIES)
def test_stepping_gives_the_greedy_text_of_the_model_token_for_token(tiny, family):
    model = tiny(family, FAMILIES[family])
    expected = greedy(model, LENGTH)
    assert len(set(expected)) >= 5
    stepper = Stepper(model)
    cache = stepper.new_cache()
    found = [int(stepper.prefill(IDS, cache).argmax())]
    while len(found) < LENGTH:
        found.append(int(stepper.logits(advance(stepper, cache, found[-1], stepper.layers)).argmax()))
    assert found == expected
    assert greedy(model, LENGTH) == expected  # attached, the model still works by itself


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_exit_is_the_model(tiny, family):
    model = tiny(family, FAMILIES[family])
    stepper = Stepper(model)
    cache = stepper.new_cache()
    stepper.prefill(IDS[:, :-1], cache)
    logits = stepper.logits(advance(stepper, cache, int(IDS[0, -1]), stepper.layers))
    with torch.inference_mode():
        assert torch.allclose(logits, model(input_ids=IDS).logits[0, -1].float(), rtol=1e-3, atol=1e-4)


def exits(stepper, measure):
    """Logits of many tokens that leave at changing depths; ``measure`` runs the rest of the layers first and forgets it."""
    cache = stepper.new_cache()
    stepper.prefill(IDS, cache)
    seen = []
    for number in range(LENGTH):
        depth = (1, 3, 4, 2, 1)[number % 5]
        hidden = deep = advance(stepper, cache, number * 7 % 60, depth)
        seen.append(stepper.logits(hidden))
        for index in range(depth, stepper.layers) if measure else ():
            deep = stepper.run(index, deep)
            stepper.forget_last(cache, index)
        for index in range(depth, stepper.layers):
            stepper.write_kv(index, hidden)
        assert [layer.get_seq_length() for layer in cache.layers] == [IDS.shape[1] + number + 1] * stepper.layers
    return torch.stack(seen)


@pytest.mark.parametrize("family", FAMILIES)
def test_mixed_exit_depths_leave_every_cache_equally_long(tiny, family):
    exits(Stepper(tiny(family, FAMILIES[family])), measure=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_measuring_an_exit_against_full_depth_leaves_no_trace(tiny, family):
    stepper = Stepper(tiny(family, FAMILIES[family]))
    assert torch.equal(exits(stepper, measure=True), exits(stepper, measure=False))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_skipped_layers_get_the_keys_and_values_of_the_exit_state(tiny, depth):
    model = tiny("llama")
    stepper = Stepper(model)
    cache = stepper.new_cache()
    stepper.prefill(IDS, cache)
    hidden = advance(stepper, cache, 3, depth)
    for index in range(depth, stepper.layers):
        stepper.write_kv(index, hidden)
    with torch.inference_mode():
        position = torch.tensor([[IDS.shape[1]]])
        cos, sin = model.model.rotary_emb(hidden, position)
        for index in range(depth, stepper.layers):
            layer = model.model.layers[index]
            normed = layer.input_layernorm(hidden)
            key, value = (
                p(normed).view(1, 1, -1, 8).transpose(1, 2) for p in (layer.self_attn.k_proj, layer.self_attn.v_proj)
            )
            turned = torch.cat((-key[..., 4:], key[..., :4]), -1)
            stored = cache.layers[index]
            assert torch.allclose(stored.values[..., -1:, :], value, atol=1e-6)
            assert torch.allclose(stored.keys[..., -1:, :], key * cos + turned * sin, atol=1e-5)


def test_an_early_exit_is_the_shared_norm_and_head_on_the_state(tiny):
    model = tiny("llama")
    stepper = Stepper(model)
    cache = stepper.new_cache()
    stepper.prefill(IDS[:, :-1], cache)
    with torch.inference_mode():
        states = model(input_ids=IDS, output_hidden_states=True).hidden_states
        for depth in (1, 2, 3):
            cache = stepper.new_cache()
            stepper.prefill(IDS[:, :-1], cache)
            hidden = advance(stepper, cache, int(IDS[0, -1]), depth)
            assert torch.allclose(hidden[0, -1], states[depth][0, -1], atol=1e-5)
            assert torch.allclose(stepper.logits(hidden), model.lm_head(model.model.norm(states[depth]))[0, -1], atol=1e-4)


def test_planning_does_not_touch_the_cache(tiny):
    stepper = Stepper(tiny("llama"))
    cache = stepper.new_cache()
    stepper.prefill(IDS, cache)
    before = [layer.keys.clone() for layer in cache.layers]
    first = stepper.plan(9, cache)
    assert torch.equal(stepper.plan(9, cache), first)
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(cache.layers, before, strict=True))


def test_detaching_gives_the_model_back_exactly(tiny):
    model = tiny("llama")
    expected = greedy(model, 8)
    stepper = Stepper(model)
    assert all("forward" in layer.__dict__ for layer in model.model.layers)
    stepper.detach()
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert greedy(model, 8) == expected


def test_detaching_puts_back_a_forward_that_somebody_else_had_installed(tiny):
    model = tiny("llama")
    layer, calls = model.model.layers[1], []
    original = layer.forward

    def hooked(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    layer.forward = hooked
    stepper = Stepper(model)
    cache = stepper.new_cache()
    stepper.prefill(IDS, cache)
    calls.clear()
    advance(stepper, cache, 5, stepper.layers)
    assert calls == [1]
    stepper.detach()
    assert layer.__dict__["forward"] is hooked
    assert not any("forward" in other.__dict__ for other in model.model.layers if other is not layer)


def test_two_steppers_in_turn_work_on_one_model(tiny):
    model = tiny("llama")
    for _ in range(2):
        stepper = Stepper(model)
        exits(stepper, measure=True)
        stepper.detach()
    assert not any("forward" in layer.__dict__ for layer in model.model.layers)


def recurrent(cls, **sizes):
    return AutoModelForCausalLM.from_config(cls(vocab_size=64, hidden_size=32, num_hidden_layers=4, **sizes)).eval()


def mamba():
    return recurrent(MambaConfig, state_size=4)


def recurrent_gemma():
    return recurrent(RecurrentGemmaConfig, intermediate_size=48, num_attention_heads=4, lru_width=32, attention_window_size=16)


def scaled_logits():
    sizes = {"intermediate_size": 48, "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0}
    model = recurrent(CohereConfig, **sizes, logit_scale=0.01, eos_token_id=None)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)
    return model


@pytest.mark.parametrize(
    ("make", "reason"),
    [(mamba, "recurrent"), (recurrent_gemma, "recurrent"), (scaled_logits, "does not reproduce")],
)
def test_families_that_cannot_be_stepped_are_refused_and_left_alone(make, reason):
    model = make()
    with pytest.raises(UnsupportedModelError, match=reason):
        Stepper(model)
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_logits_that_are_changed_after_the_head_are_refused(tiny):
    with pytest.raises(UnsupportedModelError, match="does not reproduce"):
        Stepper(tiny("gemma2 with soft-capped logits", 8))


def test_a_model_without_a_list_of_layers_is_refused(tiny):
    model = tiny("llama")
    model.model.layers = nn.ModuleList(list(model.model.layers)[:3])
    with pytest.raises(UnsupportedModelError, match="no list of 4 decoder layers"):
        Stepper(model)


def test_a_model_without_a_final_norm_is_refused(tiny):
    model = tiny("llama")
    model.model.norm = nn.Identity()
    with pytest.raises(UnsupportedModelError, match="no final norm"):
        Stepper(model)


def test_layers_that_look_back_at_more_than_their_input_are_refused(tiny):
    model = tiny("llama")
    first, second = model.model.layers[0], model.model.layers[2]
    kept = []
    first.register_forward_pre_hook(lambda _m, args: kept.append(args[0]))
    second.register_forward_hook(lambda _m, _a, out: out + 5 * len(kept))
    with pytest.raises(UnsupportedModelError):
        Stepper(model)
    assert not any("forward" in layer.__dict__ for layer in model.model.layers)
