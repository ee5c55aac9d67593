import copy
import hashlib
import json
import os
import shutil
import socket
from pathlib import Path

import pytest
import torch
import transformers
from llm_models import tiny_probe
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from clone_rl.errors import BadFileError, BadValueError, CloneRLError, UnknownNameError, UnsupportedModelError
from clone_rl.hw_emulator.workload import Workload
from clone_rl.llm.model import load_model
from clone_rl.llm.quantise import stored_as
from clone_rl.llm.stepper import Stepper
from clone_rl.llm.tokenizer import END, train_tokenizer

pytest_plugins = ["llm_models"]

VOCAB, LAYERS, WIDTH = 300, 3, 32
TEXT = "Anna has 3 apples,\nand a caf\u00e9."
IDS = torch.arange(5, 25)[None]
_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
CONFIGS = {
    "llama": LlamaConfig(**_SIZES, tie_word_embeddings=False),
    "llama, tied": LlamaConfig(**_SIZES, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**_SIZES, tie_word_embeddings=False),
    "gemma3": Gemma3TextConfig(**_SIZES, head_dim=8, sliding_window=8, tie_word_embeddings=True),
    "gpt2": GPT2Config(
        vocab_size=VOCAB, n_embd=WIDTH, n_layer=LAYERS, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0
    ),
}


def tokenizer(starts=False):
    backend = train_tokenizer([TEXT, "the quick brown fox jumps over the lazy dog"], VOCAB - 20)
    if starts:
        backend.add_special_tokens(["<s>"])
        start = backend.token_to_id("<s>")
        backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", start)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, bos_token="<s>" if starts else None)


def network(family):
    torch.manual_seed(1)
    # Saving a model writes its type into its configuration.
    return AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[family])).eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders as save_pretrained writes them, by family; each made once, not to be changed."""
    made = {}

    def save(family):
        if family not in made:
            made[family] = tmp_path_factory.mktemp("hf") / "theirs"
            network(family).save_pretrained(made[family])
            tokenizer().save_pretrained(made[family])
        return made[family]

    return save


@pytest.fixture
def folder(saved, tmp_path):
    """A Llama of one's own to spoil."""
    return Path(shutil.copytree(saved("llama"), tmp_path / "mine"))


def edit(folder, name="config.json", **changes):
    found = json.loads((folder / name).read_text()) | changes
    (folder / name).write_text(json.dumps({key: value for key, value in found.items() if value is not ...}))


def edit_weights(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@torch.inference_mode()
def logits(model):
    return model(input_ids=IDS).logits


@pytest.mark.parametrize("family", CONFIGS)
def test_a_model_that_is_not_rounded_is_the_one_that_was_saved(saved, family):
    lm, original = load_model(str(saved(family)), "bf16"), network(family)
    assert torch.equal(logits(lm.model), logits(original))
    assert not lm.model.training
    assert {p.dtype for p in lm.model.parameters()} == {torch.float32}
    assert lm.shape == Workload.from_config(json.loads((saved(family) / "config.json").read_text()), "bf16")
    assert (lm.shape.layers, lm.shape.hidden_size, lm.shape.vocab_size) == (LAYERS, WIDTH, VOCAB)
    assert (lm.name, lm.precision, lm.probe, lm.card) == (str(saved(family)), "bf16", None, {})
    tied = lm.model.get_output_embeddings().weight is lm.model.get_input_embeddings().weight
    assert tied is lm.shape.tied is (family in ("llama, tied", "gemma3", "gpt2"))


@pytest.mark.parametrize("family", CONFIGS)
def test_a_loaded_model_can_be_stepped(saved, family):
    lm = load_model(str(saved(family)))
    assert lm.anatomy is lm.anatomy
    assert len(lm.anatomy.layers) == LAYERS
    assert Stepper(lm).layers == LAYERS


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_sharded_weights_are_the_same_model(saved, tmp_path, family):
    lm = load_model(str(saved(family)), "fp32")
    lm.model.save_pretrained(tmp_path, max_shard_size="30KB")
    tokenizer().save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert not (tmp_path / "model.safetensors").exists()
    assert torch.equal(logits(load_model(str(tmp_path), "fp32").model), logits(lm.model))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_kept_only_where_asked(saved, tmp_path, dtype):
    network("llama").to(getattr(torch, dtype)).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    assert load_model(str(tmp_path)).model.dtype == torch.float32
    half = load_model(str(tmp_path), "bf16", dtype=dtype)
    assert {p.dtype for p in half.model.parameters()} == {getattr(torch, dtype)}
    assert torch.equal(half.model.lm_head.weight, network("llama").lm_head.weight.to(getattr(torch, dtype)))


@pytest.mark.parametrize("precision", ["", "int4", "int8", "fp8", "bf16", "fp16", "fp32"])
@pytest.mark.parametrize("family", ["llama, tied", "gpt2"])
def test_the_weights_are_those_that_the_charged_precision_can_store(saved, family, precision):
    lm, before = load_model(str(saved(family)), precision), network(family).state_dict()
    charged = lm.shape.precision
    assert lm.precision == charged.name == (precision or Workload.from_config("gpt2").precision.name)
    assert lm.model.get_output_embeddings().weight is lm.model.get_input_embeddings().weight
    counts = {"head": 0, "weights": 0}
    for name, found in lm.model.state_dict().items():
        part = "head" if any(key in name for key in ("embed", "lm_head", "wte", "wpe")) else "weights"
        if found.ndim < 2:
            assert torch.equal(found, before[name]), name
            continue
        counts[part] += 1
        turned = family == "gpt2" and part == "weights"
        expected = stored_as(before[name].T if turned else before[name], getattr(charged, part))
        assert torch.equal(found.T if turned else found, expected), name
    assert counts["weights"] == LAYERS * (4 if family == "gpt2" else 7)


def test_the_default_precision_is_the_emulators(saved):
    lm = load_model(str(saved("llama")))
    assert lm.shape.precision == Workload.from_config(json.loads((saved("llama") / "config.json").read_text())).precision
    assert not torch.equal(logits(lm.model), logits(network("llama")))


def test_text_goes_through_the_models_own_tokenizer(saved):
    lm, reference = load_model(str(saved("llama"))), AutoTokenizer.from_pretrained(saved("llama"))
    assert lm.start_ids == ()
    assert lm.encode(TEXT) == lm.tokenizer.encode(TEXT) == reference(TEXT).input_ids
    assert lm.decode(lm.encode(TEXT)) == TEXT
    assert lm.decode([0, *lm.encode(TEXT), 0]) == TEXT
    assert lm.tokenizer.size == VOCAB - 20


def test_a_start_token_that_the_tokenizer_adds_comes_first(folder):
    tokenizer(starts=True).save_pretrained(folder)
    lm, reference = load_model(str(folder)), AutoTokenizer.from_pretrained(folder)
    assert lm.start_ids == (reference.bos_token_id,)
    assert lm.encode(TEXT) == reference(TEXT).input_ids == [*lm.start_ids, *lm.tokenizer.encode(TEXT)]
    assert lm.decode(lm.encode(TEXT)) == TEXT


def test_a_file_that_truncates_does_not_truncate_prompts(folder):
    cut = tokenizer()
    cut.backend_tokenizer.enable_truncation(4)
    cut.backend_tokenizer.enable_padding(length=50)
    cut.save_pretrained(folder)
    assert load_model(str(folder)).encode(TEXT) == tokenizer()(TEXT).input_ids


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": 7}, {}, {7}),
        ({"eos_token_id": [7, 9, 10_000]}, {}, {7, 9}),
        (None, {"eos_token_id": 5}, {5}),
        (None, {"eos_token_id": [5, 6]}, {5, 6}),
        (None, {"eos_token_id": None}, {0}),
    ],
)
def test_what_ends_a_text_is_what_generation_would_stop_at(folder, generation, config, expected):
    edit(folder, **config)
    (folder / "generation_config.json").unlink()
    if generation:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    assert load_model(str(folder)).end_ids == frozenset(expected)


def test_a_model_without_an_end_never_ends(folder):
    edit(folder, eos_token_id=None)
    (folder / "generation_config.json").unlink()
    PreTrainedTokenizerFast(tokenizer_object=train_tokenizer([TEXT], 280)).save_pretrained(folder)
    assert load_model(str(folder)).end_ids == frozenset()


def test_the_longest_prompt_is_the_models_own_context(saved):
    lm = load_model(str(saved("llama")))
    assert lm.shape.context == 64
    assert len(lm.encode_prompt("7" * 63)) == 63
    with pytest.raises(BadValueError, match="the prompt has 64 tokens and the context 64"):
        lm.encode_prompt("7" * 64)


def test_half_a_surrogate_pair_is_refused(saved):
    with pytest.raises(BadValueError, match="cannot be written as UTF-8"):
        load_model(str(saved("llama"))).encode("caf\udce9")


def test_an_added_token_beyond_the_embedding_is_refused_where_it_is_used(folder):
    # Gemma 3 1B ships such a token, for the images of its larger siblings.
    odd = tokenizer()
    odd.add_tokens([AddedToken(f"<image {i}>") for i in range(30)])
    odd.save_pretrained(folder)
    lm = load_model(str(folder))
    assert max(lm.encode(TEXT + "<image 3>")) < VOCAB
    with pytest.raises(BadValueError, match="<image 29>"):
        lm.encode(TEXT + "<image 29>")


def test_the_hash_is_of_all_weights_and_the_probe_and_not_of_names(folder, tmp_path):
    plain = load_model(str(folder)).sha256
    assert plain == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert load_model(str(shutil.copytree(folder, tmp_path / "elsewhere"))).sha256 == plain
    tiny_probe(LAYERS - 1, WIDTH).save(folder / "probe.safetensors")
    with_probe = load_model(str(folder)).sha256
    both = [(folder / name).read_bytes() for name in ("model.safetensors", "probe.safetensors")]
    assert with_probe == hashlib.sha256(b"".join(both)).hexdigest() != plain


def test_the_hash_of_shards_covers_each(saved, tmp_path):
    network("llama").save_pretrained(tmp_path, max_shard_size="30KB")
    tokenizer().save_pretrained(tmp_path)
    bytes_of_all = b"".join(path.read_bytes() for path in sorted(tmp_path.glob("model-*.safetensors")))
    assert load_model(str(tmp_path)).sha256 == hashlib.sha256(bytes_of_all).hexdigest()


def test_a_probe_beside_the_weights_is_used_and_its_absence_is_told_where_it_is_needed(folder):
    with pytest.raises(BadValueError) as caught:
        load_model(str(folder)).need_probe()
    assert "has no exit probe" in caught.value.message
    assert caught.value.hint == f"fit one with: clone-rl probe --model {folder} --text FOLDER"
    probe = tiny_probe(LAYERS - 1, WIDTH)
    probe.save(folder / "probe.safetensors")
    lm = load_model(str(folder))
    assert lm.need_probe() is lm.probe
    assert lm.probe.sha256 == probe.sha256


@pytest.mark.parametrize(("exits", "width"), [(LAYERS, WIDTH), (LAYERS - 1, WIDTH + 1)])
def test_the_probe_of_another_model_is_refused(folder, exits, width):
    tiny_probe(exits, width).save(folder / "probe.safetensors")
    with pytest.raises(BadFileError, match="probe of another model"):
        load_model(str(folder))


def test_a_folder_is_read_again_only_after_a_change(folder):
    first = load_model(str(folder))
    assert load_model(str(folder)) is first
    assert load_model(str(folder), "int8") is not first
    edit_weights(folder, lambda state: state["model.norm.weight"].mul_(2))
    os.utime(folder / "model.safetensors", ns=(1, 1))
    second = load_model(str(folder))
    assert second is not first
    assert torch.equal(second.model.model.norm.weight, 2 * first.model.model.norm.weight)


def test_loading_says_nothing_and_needs_no_network(folder, monkeypatch, capfd):
    def refuse(*_args, **_kwargs):
        raise AssertionError("somebody called out")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load_model(str(folder))
    for name in ("gpt2", "meta-llama/Llama-3.2-1B", "no/such/folder", "", "default/"):
        with pytest.raises(UnknownNameError) as caught:
            load_model(name)
        assert "the path of a model folder" in caught.value.hint
    assert capfd.readouterr() == ("", "")


def test_another_precision_than_the_stored_one_is_refused():
    assert load_model("default", "int4").precision == "int4"
    with pytest.raises(BadValueError, match="default is stored in int4, not int8"):
        load_model("default", "int8")


@pytest.mark.parametrize(
    ("asked", "match"), [({"precision": "int3"}, "precision 'int3'"), ({"dtype": "half"}, "dtype 'half'")]
)
def test_an_unknown_number_format_is_refused(folder, asked, match):
    with pytest.raises(UnknownNameError, match=match):
        load_model(str(folder), **asked)


CONFIG_ERRORS = {
    "encoder-decoder": ({"model_type": "t5", "is_encoder_decoder": True}, UnsupportedModelError, "encoder-decoder"),
    "encoder": ({"model_type": "bert"}, UnsupportedModelError, "unknown architecture 'bert'"),
    "images alone": ({"model_type": "vit"}, UnsupportedModelError, "unknown architecture 'vit'"),
    "images and text": ({"model_type": "llava", "vision_config": {"a": 1}}, UnsupportedModelError, "it has a vision_config"),
    "recurrent": ({"model_type": "mamba"}, UnsupportedModelError, "unknown architecture 'mamba'"),
    "experts": ({"num_local_experts": 8}, UnsupportedModelError, "mixture of experts"),
    "unknown": ({"model_type": "gpt7"}, UnsupportedModelError, "unknown architecture 'gpt7'"),
    "no type": ({"model_type": ...}, BadFileError, "model_type is None"),
    "own code": ({"model_type": "x", "auto_map": {"A": "m.A"}}, UnsupportedModelError, "trust_remote_code is never used"),
    "quantised": ({"quantization_config": {"quant_method": "gptq"}}, UnsupportedModelError, "quantised already .gptq"),
    "no size": ({"hidden_size": ...}, BadFileError, "no 'hidden_size'"),
    "wrong size": ({"hidden_size": "wide"}, BadFileError, "hidden_size is 'wide'"),
    "a size beyond all models": ({"num_hidden_layers": 10**6}, BadFileError, "layers is 1000000"),
    "larger than its weights": ({"intermediate_size": 2**22}, BadFileError, "more than there can be in the files"),
    "a head of its own": ({"tie_word_embeddings": True}, BadFileError, "ties the head to the embedding"),
    "a wider network": ({"intermediate_size": 64}, BadFileError, r"mismatched model.layers.0.mlp.down_proj.weight"),
    "more layers": ({"num_hidden_layers": 4}, BadFileError, r"missing model.layers.3"),
    "fewer layers": ({"num_hidden_layers": 2}, BadFileError, r"unexpected model.layers.2"),
    "an unknown activation": ({"hidden_act": "no such"}, BadFileError, "transformers can load"),
    "fewer tokens than its tokenizer": ({"vocab_size": 200}, BadFileError, "its tokenizer has 280 tokens and its model 200"),
}


@pytest.mark.parametrize("case", CONFIG_ERRORS)
def test_a_configuration_that_cannot_be_used_is_refused_by_name(folder, case):
    if case == "a head of its own" and transformers.__version__.startswith("4."):
        pytest.skip("ties them without a word")
    changes, kind, match = CONFIG_ERRORS[case]
    edit(folder, **changes)
    before = sorted(folder.iterdir())
    with pytest.raises(kind, match=match) as caught:
        load_model(str(folder))
    assert str(folder) in caught.value.message
    assert caught.value.hint
    assert sorted(folder.iterdir()) == before


def only_pickle(folder):
    torch.save(network("llama").state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def without(name):
    return lambda folder: (folder / name).unlink()


def content(name, what):
    return lambda folder: (folder / name).write_bytes(what)


def shard_index(weight_map):
    def change(folder):
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return change


def weights(change):
    return lambda folder: edit_weights(folder, change)


def no_tokenizer(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def cut_weights(folder):
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])


def other_tokenizer(folder):
    text = "the quick brown fox jumps over the lazy dog while the early bird catches worms under seven silent willows"
    PreTrainedTokenizerFast(tokenizer_object=train_tokenizer([text], VOCAB + 1)).save_pretrained(folder)


FILE_ERRORS = {
    "no configuration": (without("config.json"), "no config.json"),
    "a configuration that is not JSON": (content("config.json", b"{"), "config.json is not JSON"),
    "a binary configuration": (content("config.json", b"\xff\xfe"), "config.json is not JSON"),
    "a configuration that is a list": (content("config.json", b"[]"), "not a JSON object"),
    "an adapter": (content("adapter_config.json", b"{}"), "is an adapter"),
    "no weights": (without("model.safetensors"), "no model.safetensors"),
    "pickle": (only_pickle, "pickle, which is never loaded unasked"),
    "empty weights": (content("model.safetensors", b""), "more than there can be"),
    "truncated weights": (cut_weights, "transformers can load"),
    "weights that are none": (content("model.safetensors", b"\xff" * 99_999_9), "transformers can load"),
    "a missing weight": (weights(lambda s: s.pop("model.norm.weight")), "missing model.norm.weight"),
    "no head": (weights(lambda s: s.pop("lm_head.weight")), "missing lm_head.weight"),
    "a weight too many": (weights(lambda s: s.update(more=torch.ones(2))), "unexpected more"),
    "a weight of another shape": (
        weights(lambda s: s.update({"model.norm.weight": torch.ones(31)})),
        "mismatched model.norm.weight",
    ),
    "not a number": (
        weights(lambda s: s["model.layers.1.mlp.up_proj.weight"][3].fill_(float("nan"))),
        "up_proj.weight is not",
    ),
    "infinity": (weights(lambda s: s["model.norm.weight"].fill_(float("inf"))), "model.norm.weight is not finite"),
    "an index without a map": (shard_index({}), "no weight_map"),
    "an index of absent shards": (shard_index({"a": "model-1.safetensors"}), "names 'model-1.safetensors'"),
    "an index that leaves the folder": (shard_index({"a": "../model.safetensors"}), "names '../model.safetensors'"),
    "no tokenizer": (no_tokenizer, "has no tokenizer"),
    "a broken tokenizer": (content("tokenizer.json", b'{"a": 1}'), "its tokenizer cannot be loaded"),
    "an empty tokenizer": (content("tokenizer.json", b""), "its tokenizer cannot be loaded"),
    "the tokenizer of a larger model": (other_tokenizer, "its tokenizer has 301 tokens and its model 300"),
    "half of the packed format": (content("card.json", b"{}"), "no probe.safetensors"),
}


@pytest.mark.parametrize("case", FILE_ERRORS)
def test_a_folder_with_a_missing_or_damaged_file_is_refused_by_name(folder, case, capfd):
    change, match = FILE_ERRORS[case]
    change(folder)
    before = sorted(folder.iterdir())
    with pytest.raises((BadFileError, UnsupportedModelError), match=match) as caught:
        load_model(str(folder))
    assert str(folder) in caught.value.message
    assert "\n" not in str(caught.value)
    assert sorted(folder.iterdir()) == before
    assert capfd.readouterr() == ("", "")


def test_a_file_is_not_a_folder(folder):
    with pytest.raises(BadFileError, match="is a file, not a model folder"):
        load_model(str(folder / "model.safetensors"))


def test_an_empty_folder_is_no_model(tmp_path):
    with pytest.raises(BadFileError, match=r"no config\.json"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_a_name_that_cannot_be_a_path_is_refused(name):
    with pytest.raises(CloneRLError):
        load_model(name)


def test_a_folder_that_was_refused_loads_once_it_is_complete(folder, saved):
    (folder / "config.json").unlink()
    with pytest.raises(BadFileError):
        load_model(str(folder))
    shutil.copyfile(saved("llama") / "config.json", folder / "config.json")
    assert load_model(str(folder)).name == str(folder)


def test_pickle_loads_where_it_is_asked_for(folder):
    only_pickle(folder)
    loaded = load_model(str(folder), "fp32", allow_pickle=True)
    assert torch.equal(logits(loaded.model), logits(network("llama")))
    assert loaded.sha256 == hashlib.sha256((folder / "pytorch_model.bin").read_bytes()).hexdigest()


def test_pickle_never_runs_code(folder, tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    only_pickle(folder)
    torch.save(network("llama").state_dict() | {"trap": Trap()}, folder / "pytorch_model.bin")
    with pytest.raises(BadFileError):
        load_model(str(folder), allow_pickle=True)
    assert not (tmp_path / "sprung").exists()
