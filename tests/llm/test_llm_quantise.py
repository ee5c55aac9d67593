import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from clone_rl.hw_emulator.precision import BITS, PRECISIONS
from clone_rl.llm.quantise import (
    GROUP,
    dequantise,
    fake_quantise,
    group_size,
    pack,
    quantise,
    quantise_model,
    stored_as,
    unpack,
    weight_bits,
)

pytest_plugins = ["llm_models"]

SEEDS = st.integers(0, 10_000)
SCALES = st.floats(1e-3, 30)


def random(shape, seed, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def state(seed, scale=1.0):
    return {
        "model.embed_tokens.weight": random((40, 96), seed, scale),
        "model.layers.0.self_attn.q_proj.weight": random((24, 2 * GROUP), seed + 1, scale),
        "model.layers.0.mlp.down_proj.weight": random((8, 3 * GROUP), seed + 2, scale),
        "model.layers.0.input_layernorm.weight": random((96,), seed + 3, scale),
        "model.norm.weight": random((96,), seed + 4, scale),
    }


@pytest.mark.parametrize(
    ("name", "shape", "bits"),
    [
        ("model.embed_tokens.weight", (4, 64), 8),
        ("lm_head.weight", (4, 64), 8),
        ("model.layers.3.mlp.up_proj.weight", (4, 64), 4),
        ("model.layers.3.input_layernorm.weight", (64,), 32),
        ("model.embed_norm.weight", (64,), 32),
        ("model.layers.3.mlp.down_proj.weight", (4, 63), 8),
    ],
)
def test_bits_follow_the_role_of_a_tensor(name, shape, bits):
    assert weight_bits(name, torch.zeros(shape)) == bits


@given(SEEDS, SCALES)
def test_what_comes_back_from_disk_is_what_was_simulated_bit_by_bit(seed, scale):
    before = state(seed, scale)
    after = unpack(pack(before))
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        bits = weight_bits(name, tensor)
        assert torch.equal(after[name], tensor if bits == 32 else fake_quantise(tensor, bits))


@given(SEEDS, SCALES, st.sampled_from([4, 8]))
def test_quantising_twice_changes_nothing(seed, scale, bits):
    once = fake_quantise(random((16, 2 * GROUP), seed, scale), bits)
    assert torch.equal(fake_quantise(once, bits), once)


@given(SEEDS, SCALES, st.sampled_from([4, 8]))
def test_the_error_is_at_most_half_a_step(seed, scale, bits):
    weight = random((16, 2 * GROUP), seed, scale)
    q, step = quantise(weight, bits)
    error = (dequantise(q, step) - weight).abs().reshape(q.shape)
    # The largest of a group may lie beyond the last integer by what float16 rounds off the scale, at most 2^-11 of it.
    assert (error <= step.float() * max(0.5, q.abs().max() * 2**-11) * 1.001).all()
    assert int(q.abs().max()) == (7 if bits == 4 else 127)


def test_each_group_of_inputs_has_a_scale_of_its_own():
    weight = torch.ones(1, 2 * GROUP)
    weight[0, :GROUP] = 0.01
    assert torch.allclose(fake_quantise(weight, 4), weight, rtol=1e-3)
    assert fake_quantise(weight, 8)[0, 0] == pytest.approx(0.01, abs=0.5 / 127)


def test_a_matrix_of_zeros_stays_zero():
    assert torch.equal(fake_quantise(torch.zeros(4, GROUP), 4), torch.zeros(4, GROUP))


def test_two_4_bit_weights_share_a_byte_and_scales_are_float16():
    packed = pack(state(0))
    assert packed["model.layers.0.self_attn.q_proj.weight.q4"].numel() == 24 * 2 * GROUP / 2
    assert packed["model.layers.0.self_attn.q_proj.weight.q4"].dtype == torch.uint8
    assert packed["model.layers.0.self_attn.q_proj.weight.scale"].shape == (24, 2, 1)
    assert packed["model.embed_tokens.weight.q8"].numel() == 40 * 96
    assert packed["model.embed_tokens.weight.scale"].shape == (40, 1, 1)
    assert {t.dtype for n, t in packed.items() if n.endswith("scale")} == {torch.float16}


def test_norms_are_kept_in_float32():
    before = state(3)
    packed = pack(before)
    assert torch.equal(packed["model.norm.weight"], before["model.norm.weight"])
    assert packed["model.norm.weight"].dtype == torch.float32


def test_quantised_weights_without_their_scale_are_refused():
    packed = pack(state(0))
    del packed["model.embed_tokens.weight.scale"]
    with pytest.raises(KeyError):
        unpack(packed)


def test_the_embedded_model_runs_on_weights_that_the_chip_can_store(lm):
    kept = dict(lm.model.named_parameters())
    assert sum(weight_bits(name, p) == 4 for name, p in kept.items()) == 7 * lm.shape.layers
    for name, parameter in kept.items():
        if (bits := weight_bits(name, parameter)) < 32:
            assert torch.equal(fake_quantise(parameter, bits), parameter), name


@pytest.mark.parametrize(("inputs", "group"), [(64, 64), (896, 64), (576, 64), (32, 32), (90, 30), (45, 45), (67, 67), (1, 1)])
def test_matrices_of_any_width_are_quantised_in_the_largest_groups_that_fit(inputs, group):
    weight = random((5, inputs), 1)
    q, scale = quantise(weight, 4)
    assert (group_size(inputs), q.shape) == (group, (5, inputs // group, group))
    assert ((dequantise(q, scale) - weight).abs().reshape(q.shape) <= 0.51 * scale.float()).all()


@pytest.mark.parametrize("inputs", [32, 90, 67, 320])
def test_matrices_of_any_width_come_back_from_disk(inputs):
    before = {"layers.0.weight": random((6, inputs), 2)}
    expected = fake_quantise(before["layers.0.weight"], weight_bits("layers.0.weight", before["layers.0.weight"]))
    assert torch.equal(unpack(pack(before))["layers.0.weight"], expected)


def test_weights_beyond_every_scale_are_capped_rather_than_lost():
    found = fake_quantise(torch.tensor([[1e6, -1e6] * 32]), 4)
    assert found.isfinite().all()
    assert found[0, 0] == 7 * 65504


@pytest.mark.parametrize("form", BITS)
def test_each_number_format_rounds_to_what_it_can_store(form):
    weight = random((12, 128), 3)
    found = stored_as(weight, form)
    spread = float((found - weight).abs().max())
    assert torch.equal(found, weight) is (BITS[form] > 8)
    assert spread <= {"int4": 0.3, "int8": 0.02, "fp8": 0.15}.get(form, 0.0)
    levels = max(len(row.unique()) for row in found.reshape(-1, GROUP))
    assert levels <= {"int4": 15, "int8": 255, "fp8": 255}.get(form, GROUP)


def test_fp8_keeps_small_weights_where_int8_loses_them():
    weight = torch.tensor([[1.0, 1e-3]])
    assert stored_as(weight, "int8")[0, 1] == 0
    assert stored_as(weight, "fp8")[0, 1] == pytest.approx(1e-3, rel=0.07)


def test_a_models_matrices_are_rounded_in_place_and_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.inner, self.turned = nn.Embedding(10, 32), nn.Linear(32, 32), Conv1D(8, 32)
            self.norm, self.lm_head = nn.LayerNorm(32), nn.Linear(32, 10, bias=False)
            self.lm_head.weight = self.embed.weight

        def get_output_embeddings(self):
            return self.lm_head

    torch.manual_seed(0)
    model = Tied()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quantise_model(model, PRECISIONS["int4"])
    assert model.lm_head.weight is model.embed.weight
    expected = {
        "embed.weight": fake_quantise(before["embed.weight"], 8),
        "lm_head.weight": fake_quantise(before["embed.weight"], 8),
        "inner.weight": fake_quantise(before["inner.weight"], 4),
        "turned.weight": fake_quantise(before["turned.weight"].T, 4).T,
    }
    for name, found in model.state_dict().items():
        assert torch.equal(found, expected.get(name, before[name])), name
