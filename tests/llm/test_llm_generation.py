import math

import pytest
import torch
import torch.nn.functional as F

from clone_rl.agents.controller import Decision
from clone_rl.errors import BadValueError, UnknownNameError
from clone_rl.hw_emulator.ledger import KV
from clone_rl.llm.generation import generate
from clone_rl.llm.sampling import Sampling
from clone_rl.llm.stepper import Stepper

pytest_plugins = ["llm_models"]

PROMPT = torch.arange(7, 27)[None]
LENGTH = 40
LLAMAS = ["llama", "mistral with a sliding window"]


def draw(seed):
    """A rule that leaves after 1 to 4 layers, drawn for each token; its states at the exits."""
    generator = torch.Generator().manual_seed(seed)
    seen, wanted = [], []

    def rule(layer, hidden):
        if layer == 0:
            wanted.append(int(torch.randint(1, 5, (1,), generator=generator)))
        if layer == wanted[-1]:
            seen.append(hidden[0, 0].clone())
        return layer == wanted[-1]

    return rule, seen


class ByHand:
    """Llama in its own words, one position at a time, with a list of keys and values per layer."""

    def __init__(self, model, kv):
        self.model, self.kv, config = model, kv, model.config
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.size = config.hidden_size // self.heads
        self.window = getattr(config, "sliding_window", None) or 10**6
        self.held = [[] for _ in model.model.layers]
        self.position = 0

    def norm(self, module, x):
        return module.weight * x / (x.pow(2).mean() + self.model.config.rms_norm_eps).sqrt()

    def turned(self, x):
        """Rotary positions, as rotations of pairs."""
        half = self.size // 2
        angle = self.position / 10000 ** (torch.arange(half) / half)
        a, b = x[..., :half], x[..., half:]
        return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), -1)

    def keys_and_values(self, layer, x):
        attention, normed = layer.self_attn, self.norm(layer.input_layernorm, x)
        key = attention.k_proj.weight @ normed
        value = attention.v_proj.weight @ normed
        return self.turned(key.view(self.kv_heads, self.size)), value.view(self.kv_heads, self.size)

    def layer(self, index, x):
        layer, held = self.model.model.layers[index], self.held[index]
        held.append(self.keys_and_values(layer, x))
        query = layer.self_attn.q_proj.weight @ self.norm(layer.input_layernorm, x)
        query = self.turned(query.view(self.heads, self.size))
        mixed = []
        for head in range(self.heads):
            of = head * self.kv_heads // self.heads
            keys, values = (torch.stack([pair[i][of] for pair in held[-self.window :]]) for i in (0, 1))
            weights = (keys @ query[head] / math.sqrt(self.size)).softmax(0)
            mixed.append(weights @ values)
        x = x + layer.self_attn.o_proj.weight @ torch.cat(mixed)
        normed, mlp = self.norm(layer.post_attention_layernorm, x), layer.mlp
        return x + mlp.down_proj.weight @ (F.silu(mlp.gate_proj.weight @ normed) * (mlp.up_proj.weight @ normed))

    @torch.no_grad()
    def token(self, token, depth):
        """One position that leaves after ``depth`` layers: its state there and its logits."""
        x = self.model.model.embed_tokens.weight[token]
        for index in range(depth):
            x = self.layer(index, x)
        rest = x
        for index in range(depth, len(self.held)):
            if self.kv == "propagate":
                self.held[index].append(self.keys_and_values(self.model.model.layers[index], x))
            elif self.kv == "exact":
                rest = self.layer(index, rest)
        self.position += 1
        return x, self.model.lm_head.weight @ self.norm(self.model.model.norm, x)


@pytest.mark.parametrize("family", LLAMAS)
@pytest.mark.parametrize("kv", KV)
def test_a_strategy_equals_a_loop_written_by_hand(tiny, family, kv):
    model, (rule, seen) = tiny(family), draw(seed=3)
    out = generate(model, PROMPT, rule, kv, LENGTH, return_dict_in_generate=True)
    assert len(set(out.depths)) == 4
    ids, hand, seen = out.sequences[0].tolist(), ByHand(model, kv), iter(seen)
    first = PROMPT.shape[1] - 1
    for position, token in enumerate(ids[:-1]):
        depth = out.depths[position - first] if position > first else 4
        state, logits = hand.token(token, depth)
        if position >= first:
            assert int(logits.argmax()) == ids[position + 1]
        if depth < 4:
            assert float((next(seen) - state).norm()) <= 2e-3 * float(state.norm())


def test_strategies_differ_when_depths_are_mixed(tiny):
    model = tiny("llama")
    texts = {kv: generate(model, PROMPT, draw(seed=3)[0], kv, LENGTH).tolist()[0] for kv in KV}
    assert texts["propagate"] != texts["exact"] != texts["skip"] != texts["propagate"]


def test_a_fixed_exit_is_a_shorter_model(tiny):
    """Layers that no token reads make no difference, whatever their caches hold."""
    model = tiny("llama")
    found = [generate(model, PROMPT, lambda layer, _: layer == 2, kv, LENGTH) for kv in KV]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_an_exit_before_the_first_layer_is_not_taken(tiny):
    out = generate(tiny("llama"), PROMPT, lambda *_: True, max_new_tokens=5, return_dict_in_generate=True)
    assert out.depths == [4, 1, 1, 1, 1]


@pytest.mark.parametrize("kv", KV)
def test_the_ledger_tells_the_same_story_as_the_depths(tiny, kv):
    out = generate(tiny("llama"), PROMPT, draw(seed=4)[0], kv, LENGTH, return_dict_in_generate=True)
    counts, events = out.ledger.counts(), out.ledger.events
    assert counts["HEAD"] == LENGTH == len(out.depths)
    assert counts["PREFILL"] == 4
    assert counts["EMBED"] == LENGTH - 1
    assert counts["LAYER"] + counts.get("CATCHUP", 0) == sum(out.depths[1:])
    early = [depth for depth in out.depths if depth < 4]
    if kv == "propagate":
        assert [event.layer for event in events if event.kind == "KV_FILL"] == early
        assert out.ledger.missing == [0] * 4
    else:
        assert "KV_FILL" not in counts
        caught = sum(event.rows - 1 for event in events if event.kind == "CATCHUP")
        assert caught + sum(out.ledger.missing) == sum(4 - depth for depth in early)
        assert (caught > 0) == (kv == "exact")


def test_decisions_of_points_are_in_the_ledger(tiny):
    def rule(layer, hidden):
        return Decision(layer % 2, layer == 3)

    out = generate(tiny("llama"), PROMPT, rule, max_new_tokens=3, return_dict_in_generate=True)
    kinds = [(event.kind, event.point) for event in out.ledger.events[5:]]
    # The first decision comes with the first decode step: the prompt runs at the top point.
    token = [
        ("POLICY", 1),
        ("VF_SWITCH", 0),
        ("EMBED", 0),
        ("LAYER", 0),
        ("POLICY", 0),
        ("VF_SWITCH", 1),
        ("LAYER", 1),
        ("POLICY", 1),
        ("VF_SWITCH", 0),
        ("LAYER", 0),
        ("POLICY", 0),
        ("KV_FILL", 0),
        ("HEAD", 0),
    ]
    assert kinds[:13] == [("POLICY", None), *token[1:]]
    assert kinds[13:] == [("POLICY", 0), *token[2:]]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failing_rule_leaves_the_model_as_it_was(tiny, error):
    model = tiny("llama")
    expected = generate(model, PROMPT, max_new_tokens=6)

    def rule(layer, hidden):
        if layer == 2:
            raise error
        return False

    with pytest.raises(error):
        generate(model, PROMPT, rule)
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert torch.equal(generate(model, PROMPT, max_new_tokens=6), expected)
    assert torch.equal(model.generate(PROMPT, do_sample=False, max_new_tokens=6), expected)


def test_sampling_is_seeded(tiny):
    stepper, hot = Stepper(tiny("llama")), Sampling(temperature=5.0)
    texts = [generate(stepper, PROMPT, sampling=hot, seed=seed, max_new_tokens=12).tolist() for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def test_an_end_token_ends_the_text(tiny):
    model, told = tiny("llama"), []
    full = generate(model, PROMPT, max_new_tokens=12)[0].tolist()
    end = full[25]
    expected = full[: full.index(end, 20) + 1]
    assert generate(model, PROMPT, max_new_tokens=12, end_ids=[end], on_token=told.append)[0].tolist() == expected
    assert told == expected[20:]
    model.generation_config.eos_token_id = [end, 3]
    assert generate(model, PROMPT, max_new_tokens=12)[0].tolist() == expected
    assert model.generate(PROMPT, do_sample=False, max_new_tokens=12)[0].tolist() == expected


def test_a_list_of_tokens_is_a_prompt(tiny):
    model = tiny("llama")
    expected = generate(model, PROMPT, max_new_tokens=3)
    ones = torch.ones_like(PROMPT)
    assert torch.equal(generate(model, PROMPT[0].tolist(), max_new_tokens=3, attention_mask=ones), expected)
    assert torch.equal(generate(model, PROMPT.int(), max_new_tokens=3), expected)


def padded():
    mask = torch.ones_like(PROMPT)
    mask[0, :3] = 0
    return {"attention_mask": mask}


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        (PROMPT, padded(), r"attention_mask hides tokens \(.*drop the padded tokens"),
        (PROMPT, {"attention_mask": torch.ones(1, 3)}, r"attention_mask of shape \(1, 3\)"),
        (PROMPT.repeat(2, 1), {}, r"input_ids of shape \(2, 20\) \(one sequence at a time"),
        (torch.zeros(1, 0, dtype=torch.long), {}, "input_ids are empty"),
        ([], {}, "input_ids are empty"),
        ("a story", {}, "input_ids are a str"),
        ([[1, 2], [3]], {}, "input_ids are a list"),
        (torch.rand(1, 4), {}, r"input_ids of type torch.float32"),
        ([3, 160], {}, r"token 160 in input_ids \(the model has tokens 0 to 159"),
        ([3, -1], {}, "token -1 in input_ids"),
        (PROMPT, {"max_new_tokens": 0}, "max_new_tokens is 0"),
        (PROMPT, {"max_new_tokens": "8"}, "max_new_tokens is '8'"),
        (PROMPT, {"max_new_tokens": 109}, r"exceed the context of 128 \(ask for at most 108 new tokens"),
        (torch.full((1, 200), 3), {}, "ask for at most 0 new tokens"),
    ],
)
def test_bad_input_is_named(tiny, ids, options, message):
    with pytest.raises(BadValueError, match=message):
        generate(tiny("llama"), ids, **options)


def test_an_unknown_strategy_is_named(tiny):
    with pytest.raises(UnknownNameError, match=r"unknown K/V strategy 'exct' \(did you mean 'exact'"):
        generate(tiny("llama"), PROMPT, kv="exct")


def test_a_strategy_that_a_model_cannot_serve_is_named(tiny):
    with pytest.raises(BadValueError, match="kv='skip' does not work with BloomForCausalLM"):
        generate(tiny("bloom"), PROMPT, kv="skip")


def test_the_whole_context_can_be_used(tiny):
    model = tiny("gpt2")
    found = generate(model, PROMPT, max_new_tokens=108)
    assert torch.equal(found, model.generate(PROMPT, do_sample=False, max_new_tokens=108))
