import json

import pytest

from clone_rl.errors import BadFileError, BadValueError, CloneRLError, UnsupportedModelError
from clone_rl.hw_emulator import ModelShape, load_chip
from clone_rl.hw_emulator.workload import kv_fill_work, layer_work

LLAMA = {
    "model_type": "llama",
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 16,
    "intermediate_size": 8192,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
}


def test_shape_of_a_llama_config():
    shape = ModelShape.from_config(LLAMA)
    assert shape == ModelShape(16, 2048, 32, 8, 8192, 128256, 64, True, 131072)
    assert shape.layer_parameters == 2048 * (2048 + 512 + 512 + 2048) + 3 * 2048 * 8192
    assert shape.head_parameters == 2048 * 128256


def test_a_config_without_grouped_queries_has_as_many_key_value_heads_as_heads():
    config = {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}
    assert ModelShape.from_config(config).kv_heads == 32


def test_a_head_dim_of_its_own_is_kept_and_text_models_are_found_inside():
    shape = ModelShape.from_config({"text_config": {**LLAMA, "head_dim": 128}})
    assert shape.head_dim == 128
    assert shape.products[0] == (2048, 32 * 128)


@pytest.mark.parametrize("key", ["num_local_experts", "num_experts", "n_routed_experts"])
def test_mixtures_of_experts_are_refused(key):
    with pytest.raises(UnsupportedModelError, match="mixture-of-experts"):
        ModelShape.from_config({**LLAMA, key: 8})


@pytest.mark.parametrize("key", ["hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size", "vocab_size"])
def test_a_config_without_a_size_is_refused(key):
    with pytest.raises(BadFileError, match=key):
        ModelShape.from_config({k: v for k, v in LLAMA.items() if k != key})


@pytest.mark.parametrize("name", ["layers", "hidden_size", "heads", "kv_heads", "ff_size", "vocab_size", "context"])
def test_sizes_below_one_are_refused(name):
    sizes = {"layers": 2, "hidden_size": 64, "heads": 2, "kv_heads": 1, "ff_size": 128}
    with pytest.raises(BadValueError, match=f"{name} is 0"):
        ModelShape(**{**sizes, name: 0})


def test_a_config_file_on_disk(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA), encoding="utf-8")
    assert ModelShape.from_file(path) == ModelShape.from_config(LLAMA)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"{", id="not JSON"),
        pytest.param(b"\xff\xfe\x00", id="binary"),
        pytest.param(b"[1, 2]", id="not an object"),
        pytest.param(json.dumps({**LLAMA, "hidden_size": "wide"}).encode(), id="text for a size"),
        pytest.param(json.dumps({**LLAMA, "num_attention_heads": 0}).encode(), id="no heads"),
        pytest.param(None, id="missing"),
    ],
)
def test_a_bad_config_file_is_refused(tmp_path, content):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CloneRLError):
        ModelShape.from_file(path)


def test_a_layer_reads_its_four_bit_weights_and_their_scales_once():
    shape = ModelShape.from_config(LLAMA)
    work = layer_work(load_chip("asic28-sram"), shape)
    assert work["weight_bytes"] == pytest.approx(shape.layer_parameters * (4 + 16 / 64) / 8)
    assert work["macs_per_row"] == shape.layer_parameters


def test_filling_no_caches_is_no_work():
    assert not any(kv_fill_work(load_chip("asic28-sram"), ModelShape.from_config(LLAMA), 0).values())
