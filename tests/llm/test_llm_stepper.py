import pytest
import torch
from llm_models import TINY_LAYERS
from torch import nn

from clone_rl.errors import BadValueError, UnknownNameError, UnsupportedModelError
from clone_rl.llm.stepper import Stepper

pytest_plugins = ["llm_models"]

# One of each kind of attention, of cache layer, of tail and of arguments to the layers.
FAMILIES = [
    "llama",
    "qwen2 with a tied head",
    "mistral with a sliding window",
    "gemma2 with soft-capped logits",
    "gemma3",
    "gemma3 with a full layer first",
    "gemma4 with shared keys and values",
    "gpt2",
    "gpt-neox",
    "cohere",
    "falcon with alibi",
]
IDS = torch.arange(7, 27)[None]  # longer than every window
LENGTH = 10


def greedy(model, tokens=8):
    out = model.generate(IDS, attention_mask=torch.ones_like(IDS), do_sample=False, max_new_tokens=tokens)
    return out[0, IDS.shape[1] :].tolist()


def patched(model):
    """Modules that carry a forward of their own."""
    return [module for module in model.modules() if "forward" in module.__dict__]


def prefilled(stepper, ids=IDS):
    cache = stepper.new_cache()
    stepper.prefill(ids, cache)
    return cache


def advance(stepper, cache, token, depth):
    """Run the first layers of a token; returns the state."""
    hidden = stepper.plan(token, cache)
    for index in range(depth):
        hidden = stepper.run(index, hidden, cache)
    return hidden


def contents(cache):
    """Everything that the layers of a cache hold, with copies of the tensors."""
    return [
        {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in vars(layer).items()}
        for layer in cache.layers
    ]


def same(one, other):
    return all(
        a.keys() == b.keys() and all(torch.equal(v, b[k]) if isinstance(v, torch.Tensor) else v == b[k] for k, v in a.items())
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_exit_is_the_model(tiny, family):
    model = tiny(family)
    stepper = Stepper(model)
    cache = prefilled(stepper, IDS[:, :-1])
    logits = stepper.logits(advance(stepper, cache, int(IDS[0, -1]), stepper.layers))
    with torch.inference_mode():
        torch.testing.assert_close(logits, model(input_ids=IDS).logits[0, -1].float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_of_the_layers(tiny, family):
    stepper = Stepper(tiny(family))
    with torch.inference_mode():
        states = stepper.anatomy.states(IDS)
    assert len(states) == stepper.layers == TINY_LAYERS
    cache = prefilled(stepper, IDS[:, :-1])
    hidden = stepper.plan(int(IDS[0, -1]), cache)
    assert hidden.shape == (1, 1, stepper.anatomy.width)
    for index, expected in enumerate(states):
        hidden = stepper.run(index, hidden, cache)
        assert float((hidden[0, 0] - expected[0, -1]).norm()) <= 1e-3 * float(expected[0, -1].norm())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kv", ["propagate", "exact", "skip"])
def test_a_glimpse_of_full_depth_leaves_no_trace(tiny, family, kv):
    stepper = Stepper(tiny(family))
    if kv not in stepper.strategies:
        with pytest.raises(BadValueError, match="choose one of propagate, exact"):
            stepper.check_strategy(kv)
        return
    plain, measured = prefilled(stepper), prefilled(stepper)
    for number in range(LENGTH):
        depth, token = (1, 3, 4, 2, 1)[number % 5], number * 7 % 60
        hidden = advance(stepper, plain, token, depth)
        stepper.fill(plain, depth, hidden, kv)
        other = advance(stepper, measured, token, depth)
        before = contents(measured)
        deep = stepper.glimpse(measured, depth, other)
        assert same(contents(measured), before)
        assert torch.equal(deep, other) == (depth == stepper.layers)
        stepper.fill(measured, depth, other, kv)
        assert torch.equal(hidden, other)
    assert same(contents(plain), contents(measured))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_glimpse_is_what_full_depth_would_have_been(tiny, family):
    stepper = Stepper(tiny(family))
    full, exits = prefilled(stepper), prefilled(stepper)
    for number in range(LENGTH):
        depth, token = (1, 3, 2)[number % 3], number * 7 % 60
        hidden = advance(stepper, exits, token, depth)
        deep = stepper.glimpse(exits, depth, hidden)
        stepper.fill(exits, depth, hidden, "exact")
        assert torch.equal(deep, advance(stepper, full, token, stepper.layers))
    assert same(contents(full), contents(exits))


def test_planning_does_not_touch_the_cache(tiny):
    stepper = Stepper(tiny("gemma3"))
    cache = prefilled(stepper)
    before = contents(cache)
    first = stepper.plan(9, cache)
    assert torch.equal(stepper.plan(9, cache), first)
    assert same(contents(cache), before)


def test_one_stepper_serves_requests_in_turn(tiny):
    """A request whose caches are ragged does not disturb another one, and nobody has to finish first."""
    stepper = Stepper(tiny("gemma2 with soft-capped logits"))

    def steps(cache, token, depth, kv):
        hidden = advance(stepper, cache, token, depth)
        stepper.fill(cache, depth, hidden, kv)
        return stepper.logits(hidden)

    plan = [(number * 11 % 60, (1, 4, 2, 3)[number % 4]) for number in range(12)]
    alone = []
    for kv in ("skip", "exact"):
        cache = prefilled(stepper)
        alone.append([steps(cache, token, depth, kv) for token, depth in plan])
    ragged, whole = prefilled(stepper), prefilled(stepper)
    for (token, depth), first, second in zip(plan, *alone, strict=True):
        assert torch.equal(steps(ragged, token, depth, "skip"), first)
        assert torch.equal(steps(whole, token, depth, "exact"), second)


class BrokenError(Exception):
    pass


@pytest.mark.parametrize("error", [BrokenError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["planning", "running", "writing"])
def test_an_error_within_leaves_the_model_as_it_was(tiny, where, error):
    model = tiny("llama")
    expected = greedy(model)
    stepper = Stepper(model)
    cache = prefilled(stepper)
    failing = model.model.norm if where == "planning" else model.model.layers[2].input_layernorm

    def fail(*_):
        raise error

    hidden = stepper.plan(3, cache)
    hook = failing.register_forward_hook(fail)
    with pytest.raises(error):
        if where == "planning":
            stepper.plan(3, cache)
        elif where == "running":
            stepper.run(2, hidden, cache)
        else:
            stepper.write_kv(2, hidden, cache)
    hook.remove()
    assert patched(model) == []
    assert not stepper.planning
    assert not cache.writing
    assert greedy(model) == expected


def test_a_forward_that_somebody_else_had_installed_runs_and_stays(tiny):
    """Accelerate keeps its device hooks in an instance attribute."""
    model = tiny("llama")
    expected = greedy(model)
    calls, layers = [], model.model.layers

    def hooked(index, original):
        def forward(*args, **kwargs):
            calls.append(index)
            return original(*args, **kwargs)

        return forward

    own = {index: hooked(index, layers[index].forward) for index in (1, 3)}
    for index, forward in own.items():
        layers[index].forward = forward
    stepper = Stepper(model)
    cache = prefilled(stepper)
    calls.clear()
    hidden = advance(stepper, cache, 5, 2)
    assert calls == [1]
    stepper.fill(cache, 2, hidden, "propagate")
    assert calls == [1, 3]
    assert patched(model) == [layers[1], layers[3]]
    assert all(layers[index].__dict__["forward"] is forward for index, forward in own.items())
    assert greedy(model) == expected


def test_hooks_fire_while_planning_and_while_running(tiny):
    model = tiny("llama")
    with Stepper(model) as stepper:
        cache, seen = prefilled(stepper), []
        model.model.layers[1].register_forward_hook(lambda *_: seen.append(stepper.planning))
        advance(stepper, cache, 5, stepper.layers)
        assert seen == [True, False]


def test_states_may_be_passed_by_name(tiny):
    model = tiny("llama")
    expected = greedy(model)
    for layer in model.model.layers:
        # As a decoder that calls its layers with keywords only.
        call = layer.__class__.__call__
        layer.__class__ = type("ByName", (layer.__class__,), {"__call__": by_name(call)})
    stepper = Stepper(model)
    cache = prefilled(stepper, IDS[:, :-1])
    assert int(stepper.logits(advance(stepper, cache, int(IDS[0, -1]), 4)).argmax()) == expected[0]


def by_name(call):
    return lambda self, hidden, *args, **kwargs: call(self, *args, hidden_states=hidden, **kwargs)


def test_two_steppers_work_on_one_model(tiny):
    model = tiny("llama")
    first, second = Stepper(model), Stepper(model)
    one, other = prefilled(first), prefilled(second)
    for token in (3, 9, 27):
        assert torch.equal(advance(first, one, token, 4), advance(second, other, token, 4))
    first.detach()
    assert patched(model) == []


def test_gradients_pass_through_states_and_tail(tiny):
    """Pretraining and probes use the same anatomy."""
    model = tiny("llama")
    anatomy = Stepper(model).anatomy
    anatomy.tail(anatomy.states(IDS)[1]).sum().backward()
    assert float(model.model.layers[0].mlp.down_proj.weight.grad.abs().sum()) > 0
    assert model.model.layers[2].mlp.down_proj.weight.grad is None


def test_a_longer_text_can_be_trained_on_after_stepping(tiny):
    """Rotary tables that grow with the text are left as ordinary tensors."""
    model = tiny("llama with dynamic rotary positions")
    stepper = Stepper(model)
    cache = prefilled(stepper, torch.arange(5, 50)[None])
    advance(stepper, cache, 3, 4)
    model(input_ids=torch.arange(5, 50)[None]).logits.sum().backward()
    assert model.model.layers[0].mlp.down_proj.weight.grad is not None


def test_an_unknown_strategy_is_named(tiny):
    with pytest.raises(UnknownNameError, match="did you mean 'propagate'"):
        Stepper(tiny("llama")).check_strategy("propagat")


def test_a_model_in_training_mode_is_refused(tiny):
    model = tiny("llama").train()
    with pytest.raises(UnsupportedModelError, match="is in training mode"):
        Stepper(model)


def test_a_model_without_a_list_of_layers_is_refused(tiny):
    model = tiny("llama")
    model.model.layers = nn.ModuleList(list(model.model.layers)[:3])
    with pytest.raises(UnsupportedModelError, match="no list of 4 decoder layers"):
        Stepper(model)


def test_a_model_without_a_final_norm_is_stepped_through_its_own_tail(tiny):
    model = tiny("llama")
    model.model.norm = nn.Identity()
    stepper = Stepper(model)
    assert not stepper.anatomy.direct
    hidden = torch.randn(1, 1, 32)
    torch.testing.assert_close(stepper.logits(hidden), model.lm_head(hidden)[0, 0])


def test_logits_that_depend_on_more_than_the_last_state_are_refused(tiny):
    model = tiny("llama")
    kept = []
    model.model.layers[0].register_forward_hook(lambda _m, _a, out: kept.append(out))
    head = model.lm_head.forward
    model.lm_head.forward = lambda hidden: head(hidden) + kept[-1].mean(-1, keepdim=True) * torch.arange(160)
    with pytest.raises(UnsupportedModelError, match="does not reproduce"):
        Stepper(model)
    assert patched(model) == [model.lm_head]


def test_layers_that_look_back_at_more_than_their_input_are_refused(tiny):
    model = tiny("llama")
    first, second = model.model.layers[0], model.model.layers[2]
    kept = []
    first.register_forward_pre_hook(lambda _m, args: kept.append(args[0]))
    second.register_forward_hook(lambda _m, _a, out: out + 5 * len(kept))
    with pytest.raises(UnsupportedModelError):
        Stepper(model)
    assert patched(model) == []


def test_a_cache_that_is_written_behind_its_back_is_refused(tiny):
    """Keys and values that a layer keeps for itself cannot be filled in after an exit."""
    model = tiny("llama")
    attention = model.model.layers[2].self_attn
    original = attention.forward

    def forward(*args, **kwargs):
        return original(*args, **kwargs | {"past_key_values": None})

    attention.forward = forward
    with pytest.raises(UnsupportedModelError, match=r"store no keys and values, as recurrent layers do: \[2\]"):
        Stepper(model)
