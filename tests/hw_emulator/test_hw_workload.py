import dataclasses
import json
import os
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clone_rl.errors import BadFileError, BadValueError, CloneRLError, UnknownNameError, UnsupportedModelError
from clone_rl.hw_emulator import PRECISIONS, Precision, Workload, shape_names
from clone_rl.hw_emulator.families import FAMILIES
from clone_rl.hw_emulator.workload import stored_workload

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
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 128, "vocab_size": 120}
SIZES = {"layers": 2, "hidden_size": 64, "heads": 2, "kv_heads": 1, "ff_size": 128}


def config_of(kind, **changes):
    """A small configuration of a family, as the mapping that its config.json holds."""
    if kind == "gpt2":
        return {**GPT2, **changes}
    sizes = {**LLAMA, "model_type": kind, "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 4}
    sizes |= {"num_key_value_heads": 2, "vocab_size": 120, "max_position_embeddings": 128}
    sizes |= {"ffn_dim" if kind == "opt" else "intermediate_size": 96}
    if kind in ("opt", "gpt_neox"):
        del sizes["num_key_value_heads"]
    return {**sizes, **changes}


def write_config(folder, content):
    path = folder / "config.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


# Sizes.


def test_sizes_of_a_llama_config():
    workload = Workload.from_config(LLAMA)
    expected = Workload(16, 2048, 32, 8, 8192, 128256, 64, True, 131072, tied=False, name="llama")
    assert workload == expected
    assert workload.layer_parameters == 2048 * (2048 + 512 + 512 + 2048) + 3 * 2048 * 8192
    assert workload.head_parameters == 2048 * 128256
    assert workload.macs_per_token == 16 * workload.layer_parameters + workload.head_parameters
    assert workload.kv_bytes_per_token == 2 * 8 * 64


@pytest.mark.parametrize("absent", [True, False], ids=["absent", "null"])
def test_without_grouped_queries_there_are_as_many_key_value_heads_as_heads(absent):
    config = {**LLAMA, "num_key_value_heads": None}
    if absent:
        del config["num_key_value_heads"]
    assert Workload.from_config(config).kv_heads == 32


def test_a_head_dim_of_its_own_is_kept():
    workload = Workload.from_config({**LLAMA, "head_dim": 128})
    assert workload.products["query"] == (2048, 32 * 128)
    assert workload.products["output"] == (32 * 128, 2048)
    assert workload.products["key"] == (2048, 8 * 128)


def test_the_language_model_of_a_multi_modal_config_is_found_inside():
    config = {"model_type": "gemma3", "vision_config": {"hidden_size": 1152}, "text_config": config_of("gemma3_text")}
    assert Workload.from_config(config) == Workload.from_config(config_of("gemma3_text"))


def test_the_sizes_that_gemma_3_leaves_out_of_its_text_config_are_the_family_s():
    published = {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}
    workload = Workload.from_config({"model_type": "gemma3", "text_config": {**published, "sliding_window": 1024}})
    assert (workload.heads, workload.kv_heads, workload.head_dim, workload.vocab_size) == (8, 4, 256, 262208)
    assert workload.windows[:7] == (1024,) * 5 + (0, 1024)
    assert 3.8e9 < workload.macs_per_token < 3.9e9


def test_a_gpt2_feed_forward_network_is_four_times_as_wide_unless_it_says_so():
    assert Workload.from_config(GPT2).ff_size == 256
    assert Workload.from_config({**GPT2, "n_inner": 100}).ff_size == 100


@pytest.mark.parametrize("name", shape_names())
def test_shipped_shapes_hold_the_parameters_in_their_names(name):
    workload = Workload.from_config(name)
    said = {"gpt2": 0.124e9, "phi-3.5-mini": 3.8e9}
    published = said.get(name) or float(name.rsplit("-", 1)[1][:-1]) * (1e9 if name.endswith("b") else 1e6)
    total = workload.macs_per_token + (0 if workload.tied else workload.head_parameters)
    assert total == pytest.approx(published, rel=0.27 if name in ("llama-3.2-1b",) else 0.09)
    assert workload.name == name


# Against the real models of transformers.


@pytest.fixture(scope="module")
def transformers():
    """The library, quiet about the token ids of small vocabularies."""
    library = pytest.importorskip("transformers")
    library.logging.set_verbosity_error()
    return library


def saved_config(transformers, folder, kind, **changes):
    settings = {key: value for key, value in config_of(kind, **changes).items() if key != "model_type"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = transformers.AutoConfig.for_model(kind, pad_token_id=0, **settings)
        config.save_pretrained(folder)
    return config


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_has_the_weights_of_the_real_model(transformers, tmp_path, kind):
    import torch

    config = saved_config(transformers, tmp_path, kind, **({"word_embed_proj_dim": 64} if kind == "opt" else {}))
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    (layers,) = (m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 4)
    workload = Workload.from_config(tmp_path)
    for layer in layers:
        assert sum(p.numel() for p in layer.parameters() if p.dim() == 2) == workload.layer_parameters
    assert model.get_output_embeddings().weight.numel() == workload.head_parameters
    assert workload.tied == config.tie_word_embeddings
    norms = {name for name, m in layers[0].named_modules() if type(m).__name__.endswith("Norm") and m is not layers[0]}
    assert workload.norms == len({name for name in norms if "q_" not in name and "k_" not in name} or "12")


@pytest.mark.parametrize("kind", [kind for kind in FAMILIES if kind not in ("gpt2", "opt", "gpt_neox")])
def test_keys_that_a_config_leaves_out_have_the_family_s_defaults(transformers, kind):
    # Of these four, the class's default belongs to one size alone.
    given = config_of(kind, hidden_size=640, num_attention_heads=40)
    bare = {
        key: given[key] for key in given if key != "num_key_value_heads" or kind in ("qwen2", "qwen3", "gemma", "stablelm")
    }
    config = transformers.AutoConfig.for_model(**bare)
    workload = Workload.from_config(bare)
    assert workload.kv_heads == config.num_key_value_heads
    assert workload.head_dim == getattr(config, "head_dim", 16)
    assert workload.tied == config.tie_word_embeddings
    assert Workload.from_config({**bare, "tie_word_embeddings": not workload.tied}).tied is not workload.tied


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("gemma2", {"num_hidden_layers": 6, "sliding_window": 32}),
        ("gemma3_text", {"num_hidden_layers": 13, "sliding_window": 32}),
        ("qwen2", {"num_hidden_layers": 6, "sliding_window": 32, "use_sliding_window": True, "max_window_layers": 2}),
        ("qwen2", {"num_hidden_layers": 6, "sliding_window": 32, "use_sliding_window": False, "max_window_layers": 2}),
        ("qwen3", {"num_hidden_layers": 6, "sliding_window": 32, "use_sliding_window": True, "max_window_layers": 6}),
    ],
)
def test_sliding_windows_are_those_of_transformers_with_and_without_layer_types(transformers, tmp_path, kind, changes):
    config = saved_config(transformers, tmp_path, kind, **changes)
    expected = tuple(32 if kind == "sliding_attention" else 0 for kind in config.layer_types)
    stored = json.loads((tmp_path / "config.json").read_text())
    stored["sliding_window"] = 32  # some classes drop the one that they do not use
    without = {key: value for key, value in stored.items() if key != "layer_types"}
    for content in (stored, without):
        workload = Workload.from_config(content)
        assert tuple(workload.windows or (0,) * 6)[:6] == expected[:6]
        assert len(workload.windows) in (0, len(expected))


def test_mistral_slides_in_every_layer_and_llama_in_none():
    mistral, llama = (Workload.from_config(config_of(kind, sliding_window=40)) for kind in ("mistral", "llama"))
    assert mistral.windows == (40,) * 4
    assert llama.windows == ()
    assert (mistral.window_of(3), llama.window_of(3)) == (40.0, float("inf"))
    assert Workload.from_config(config_of("mistral", sliding_window=None)).windows == ()


def test_layer_types_say_which_layers_slide():
    types = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
    assert Workload.from_config(config_of("llama", layer_types=types, sliding_window=9)).windows == (9, 0, 0, 9)
    assert Workload.from_config(config_of("llama", layer_types=["full_attention"] * 4, sliding_window=9)).windows == ()


# What is refused.


@pytest.mark.parametrize("key", ["num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"])
def test_mixtures_of_experts_are_refused_by_their_keys(key):
    with pytest.raises(UnsupportedModelError, match=f"mixture of experts .{key} 8.*dense"):
        Workload.from_config({**LLAMA, key: 8})


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "dbrx", "granitemoe"])
def test_mixtures_of_experts_are_refused_by_their_model_type(kind):
    with pytest.raises(UnsupportedModelError, match=f"'{kind}' is a mixture of experts"):
        Workload.from_config({**LLAMA, "model_type": kind})


@pytest.mark.parametrize("kind", ["mamba", "rwkv", "recurrent", "linear_attention", "conv"])
def test_recurrent_layers_are_refused(kind):
    with pytest.raises(UnsupportedModelError, match=f"layer_types has '{kind}'.*full_attention"):
        Workload.from_config(config_of("llama", layer_types=["full_attention", kind, "full_attention", "full_attention"]))


@pytest.mark.parametrize(("kind", "near"), [("lama", "llama"), ("gemma22", "gemma2"), ("qwen_2", "qwen2")])
def test_an_unknown_architecture_is_named_with_the_nearest_known_one(kind, near):
    with pytest.raises(UnsupportedModelError, match=f"model_type: unknown architecture '{kind}' .did you mean '{near}'"):
        Workload.from_config({**LLAMA, "model_type": kind})


@pytest.mark.parametrize("kind", ["mamba", "rwkv", "t5"])
def test_other_architectures_get_the_list_of_those_that_can_be_read(kind):
    with pytest.raises(UnsupportedModelError, match=r"known: .*llama"):
        Workload.from_config({**LLAMA, "model_type": kind})


@pytest.mark.parametrize("key", ["hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size", "vocab_size"])
def test_a_missing_size_is_named_with_its_file(tmp_path, key):
    path = write_config(tmp_path, {k: v for k, v in LLAMA.items() if k != key})
    with pytest.raises(BadFileError, match=f"config.json: model config has no '{key}' .a llama config.json has it"):
        Workload.from_config(path)


@pytest.mark.parametrize(
    "key",
    [*(key for key in LLAMA if key != "model_type"), "head_dim", "sliding_window"],
)
@pytest.mark.parametrize("value", ["wide", 4.0, -4, True, [4], {"a": 1}], ids=repr)
def test_a_size_of_the_wrong_kind_is_named_with_its_file_value_and_what_is_allowed(tmp_path, key, value):
    path = write_config(tmp_path, {**LLAMA, "model_type": "mistral", key: value})
    with pytest.raises(BadFileError) as caught:
        Workload.from_config(path)
    assert caught.value.message == f"{path}: {key} is {value!r}"
    assert caught.value.hint == "an integer, at least 1"


@pytest.mark.parametrize("key", ["hidden_size", "num_key_value_heads", "head_dim"])
def test_zero_is_no_size(key):
    with pytest.raises(BadFileError, match=f"{key} is 0"):
        Workload.from_config({**LLAMA, key: 0})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_key_value_heads": 5}, "num_key_value_heads is 5 .a divisor of num_attention_heads, 32"),
        ({"num_attention_heads": 24}, "num_attention_heads is 24 .a divisor of hidden_size, 2048"),
        ({"model_type": None}, "model_type is None .one of llama"),
        ({"model_type": 3}, "model_type is 3"),
        ({"layer_types": "full"}, "layer_types is 'full' .a list with one entry for each of 16"),
        ({"layer_types": ["full_attention"]}, "a list with one entry for each of 16"),
        ({"model_type": "gemma2", "sliding_window": 9, "sliding_window_pattern": "x"}, "sliding_window_pattern is 'x'"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(changes, message):
    with pytest.raises(BadFileError, match=message):
        Workload.from_config({**LLAMA, **changes})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"{", "is not JSON", id="not JSON"),
        pytest.param(b"\xff\xfe\x00", "is not JSON", id="binary"),
        pytest.param(b"[" * 100_000, "is not JSON", id="nested"),
        pytest.param(b"[1, 2]", "is not a JSON object", id="not an object"),
        pytest.param(b"null", "is not a JSON object", id="null"),
        pytest.param(b"{}", "model_type is None", id="empty"),
        pytest.param(None, "no such model config", id="missing"),
    ],
)
def test_a_bad_config_file_is_refused_with_its_path(tmp_path, content, message):
    if content is not None:
        write_config(tmp_path, content)
    for path in (tmp_path / "config.json", tmp_path):
        with pytest.raises(BadFileError, match=message) as caught:
            Workload.from_config(path)
        assert str(tmp_path) in caught.value.message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-4, 200) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)
KEYS = [*LLAMA, "head_dim", "sliding_window", "layer_types", "text_config", "use_sliding_window", "max_window_layers"]


@given(
    st.sampled_from(sorted(FAMILIES)), st.dictionaries(st.sampled_from([*KEYS, "sliding_window_pattern"]), JSON, max_size=3)
)
def test_any_config_is_read_or_refused_for_a_reason(kind, changes):
    try:
        workload = Workload.from_config({**config_of(kind), **changes})
    except CloneRLError:
        return
    assert workload.layer_parameters > 0


# Where configurations are found.


def test_a_config_is_found_by_mapping_file_and_folder_and_named_after_its_folder(tmp_path):
    folder = tmp_path / "my-model"
    folder.mkdir()
    path = write_config(folder, LLAMA)
    expected = dataclasses.replace(Workload.from_config(LLAMA), name="my-model")
    for where in (path, str(path), folder, str(folder)):
        assert Workload.from_config(where) == expected
    other = folder / "other.json"
    path.rename(other)
    assert Workload.from_config(other).name == "other"


def test_a_model_id_is_found_in_the_local_cache_newest_snapshot_first(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    for age, (snapshot, layers) in enumerate({"aaa": 7, "bbb": 5}.items()):
        folder = tmp_path / "hub" / "models--someone--some-model" / "snapshots" / snapshot
        folder.mkdir(parents=True)
        path = write_config(folder, {**LLAMA, "num_hidden_layers": layers})
        os.utime(path, (1e9 - age, 1e9 - age))
    assert Workload.from_config("someone/some-model").layers == 7
    with pytest.raises(UnknownNameError, match=r"unknown model 'someone/other'.*config\.json.*cache"):
        Workload.from_config("someone/other")


def test_another_cache_folder_has_precedence(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "nowhere"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--tiny" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    write_config(folder, LLAMA)
    assert Workload.from_config("tiny").layers == 16


@pytest.mark.parametrize("name", ["llama-3.2-1B", "../../etc", "", "no/such/model"])
def test_an_unknown_model_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CloneRLError):
        Workload.from_config(name)


def test_a_mistyped_shape_gets_a_suggestion(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(UnknownNameError, match=r"did you mean 'llama-3\.2-1b'"):
        Workload.from_config("llama-3.2-1")


# Precision and changes.


@pytest.mark.parametrize(("name", "bits"), [("int4", 4.25), ("int8", 8), ("fp8", 8), ("fp16", 16), ("bf16", 16), ("fp32", 32)])
def test_precisions_by_name_store_their_bits(name, bits):
    workload = Workload.from_config(LLAMA, precision=name)
    assert workload.layer_bytes == workload.layer_parameters * bits / 8
    assert workload.precision is PRECISIONS[name]
    assert Workload.from_config(LLAMA).with_precision(name) == workload


def test_the_head_and_the_caches_have_formats_of_their_own():
    custom = Precision("int4", "fp16", "fp16", "fp8", group=32)
    workload = Workload.from_config(LLAMA, precision=custom)
    assert workload.layer_bytes == workload.layer_parameters * (4 + 16 / 32) / 8
    assert workload.head_bytes == 2 * workload.head_parameters
    assert workload.kv_bytes_per_token == 2 * 8 * 64
    assert [custom.multiplier(part) for part in ("weights", "head", "kv")] == ["fp16", "fp16", "fp8"]
    assert [PRECISIONS["int4"].multiplier(part) for part in ("weights", "head", "kv")] == ["int4", "int8", "int8"]


def test_scales_belong_to_weights_below_eight_bits_alone():
    assert Precision("int8", "int8", "int8", "int8", group=64).bits("weights") == 8
    assert Precision("int4", "int4", "int8", "int8", group=64).bits("head") == 4
    assert Precision("int4", "int4", "int8", "int8").bits("weights") == 4


def test_unknown_formats_and_precisions_get_a_suggestion():
    with pytest.raises(UnknownNameError, match="did you mean 'int8'"):
        Precision("int9", "int8", "int8", "int8")
    with pytest.raises(UnknownNameError, match="did you mean 'int4'"):
        Workload.from_config(LLAMA, precision="int-4")
    with pytest.raises(BadValueError, match="group is -1"):
        Precision("int4", "int8", "int8", "int8", group=-1)


def test_fields_can_be_set_and_unknown_ones_get_a_suggestion():
    assert Workload.from_config(LLAMA, lora_rank=8, context=99).lora_rank == 8
    with pytest.raises(UnknownNameError, match="did you mean 'lora_rank'"):
        Workload.from_config(LLAMA, lora_rang=8)


def test_fewer_layers_of_a_model_with_windows_see_everything_unless_told():
    config = config_of("mistral", sliding_window=40)
    assert Workload.from_config(config, layers=2).windows == ()
    assert Workload.from_config(config, layers=2, windows=(3, 0)).windows == (3, 0)
    assert Workload.from_config(config, layers=4).windows == (40,) * 4


@pytest.mark.parametrize(
    "name", ["layers", "hidden_size", "heads", "kv_heads", "ff_size", "vocab_size", "context", "adapters"]
)
@pytest.mark.parametrize("value", [0, -1, 2.5, "2", None])
def test_sizes_are_counts(name, value):
    with pytest.raises(BadValueError, match=f"{name} is {value!r}"):
        Workload(**{**SIZES, name: value})


def test_heads_share_keys_evenly_and_windows_are_one_for_each_layer():
    with pytest.raises(BadValueError, match="2 heads and 3 kv_heads"):
        Workload(**{**SIZES, "kv_heads": 3})
    for windows in ((1,), (1, 2, 3), (1, -2), (1, 2.5)):
        with pytest.raises(BadValueError, match="one for each of 2 layers"):
            Workload(**SIZES, windows=windows)


def test_a_workload_survives_plain_data():
    workload = Workload.from_config(LLAMA, "fp16", lora_rank=4, windows=(5,) * 16)
    assert Workload.from_dict(json.loads(json.dumps(workload.as_dict()))) == workload
    assert stored_workload(workload.as_dict(), "card.json") == workload


@pytest.mark.parametrize(
    "stored", [None, 3, "text", [1], {}, {"layers": 2}, {**SIZES, "zz": 1}, {**SIZES, "precision": "int4"}]
)
def test_plain_data_of_another_kind_is_refused_with_its_source(stored):
    with pytest.raises(BadFileError, match=r"card\.json: no model shape.*record it again"):
        stored_workload(stored, "card.json")


@pytest.mark.parametrize(("name", "size"), [("layers", 10**9), ("hidden_size", 10**30), ("context", 2**31)])
def test_sizes_beyond_any_model_are_refused(name, size):
    sizes = {"layers": 2, "hidden_size": 64, "heads": 2, "kv_heads": 1, "ff_size": 128}
    with pytest.raises(BadValueError, match=f"{name} is {size}"):
        Workload(**{**sizes, name: size})
