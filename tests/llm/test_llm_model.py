import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from llm_models import tiny_probe
from safetensors.torch import save
from transformers import Qwen2Config, Qwen2ForCausalLM

import clone_rl.llm.model
from clone_rl.errors import BadFileError, BadValueError, UnknownNameError
from clone_rl.llm.model import LanguageModel, load_model
from clone_rl.llm.quantise import pack, unpack
from clone_rl.llm.tokenizer import END_ID

pytest_plugins = ["llm_models"]

EMBEDDED = Path(clone_rl.llm.__file__).parent / "embedded"
FILES = ("card.json", "config.json", "model.safetensors", "probe.safetensors", "tokenizer.json")


@pytest.fixture
def folder(tmp_path):
    """A model folder of links to the embedded files."""
    target = tmp_path / "mine"
    target.mkdir()
    for name in FILES:
        (target / name).symlink_to(EMBEDDED / name)
    return target


def replace_file(folder, name, content):
    (folder / name).unlink()
    (folder / name).write_bytes(content)


def test_the_embedded_model_fits_its_own_shape(lm):
    config = lm.model.config
    assert (lm.shape.layers, lm.shape.hidden_size) == (config.num_hidden_layers, config.hidden_size)
    assert (lm.shape.heads, lm.shape.kv_heads) == (config.num_attention_heads, config.num_key_value_heads)
    assert (lm.shape.vocab_size, lm.shape.context) == (config.vocab_size, config.max_position_embeddings)
    assert lm.tokenizer.size == lm.shape.vocab_size
    assert (lm.probe.exits, lm.probe.width) == (lm.shape.layers - 1, lm.shape.hidden_size)
    assert lm.card["parameters"] == sum(p.numel() for p in lm.model.parameters())
    assert lm.model.lm_head.weight is lm.model.model.embed_tokens.weight
    assert not lm.model.training
    assert {p.dtype for p in lm.model.parameters()} == {torch.float32}


def test_the_embedded_model_is_loaded_once(lm):
    assert load_model() is lm
    assert load_model("default") is lm


def test_the_embedded_model_learned_something(lm):
    text = "Once upon a time there was a little girl who lived in the woods with her mother and her father."
    ids = torch.tensor([lm.encode(text)])
    with torch.inference_mode():
        loss = float(lm.model(input_ids=ids, labels=ids).loss)
    assert loss < 0.75 * torch.tensor(float(lm.shape.vocab_size)).log()


def test_a_folder_by_path_is_the_same_model(folder, lm):
    loaded = load_model(str(folder))
    assert isinstance(loaded, LanguageModel)
    assert (loaded.name, loaded.sha256, loaded.shape) == (str(folder), lm.sha256, lm.shape)
    weights = loaded.model.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in lm.model.state_dict().items())


def test_the_hash_covers_weights_and_probe(folder, lm):
    (folder / "probe.safetensors").unlink()
    replace(lm.probe, outer_bias=lm.probe.outer_bias + 1).save(folder / "probe.safetensors")
    assert load_model(str(folder)).sha256 != lm.sha256


def test_an_unknown_model_is_refused_with_a_suggestion():
    with pytest.raises(UnknownNameError, match=r"unknown model 'defalt'.*did you mean 'default'"):
        load_model("defalt")


@pytest.mark.parametrize("missing", FILES)
def test_a_folder_without_one_of_its_files_is_refused_by_name(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(BadFileError) as caught:
        load_model(str(folder))
    assert missing in caught.value.message
    assert str(folder) in caught.value.message


DAMAGE = {"empty": b"", "binary": b"\xff\xfe not what it says", "an empty object": b"{}", "a list": b"[]", "cut": b"{"}
USED = [(name, damage) for name in FILES for damage in DAMAGE if name != "card.json" or damage in ("empty", "binary", "cut")]


@pytest.mark.parametrize(("name", "damage"), USED)
def test_a_folder_with_a_damaged_file_is_refused(folder, name, damage):
    replace_file(folder, name, DAMAGE[damage])
    with pytest.raises(BadFileError) as caught:
        load_model(str(folder))
    assert str(folder) in caught.value.message


@pytest.mark.parametrize("name", ["model.safetensors", "probe.safetensors"])
def test_truncated_weights_are_refused(folder, name):
    replace_file(folder, name, (EMBEDDED / name).read_bytes()[:-100])
    with pytest.raises(BadFileError, match=r"mine"):
        load_model(str(folder))


def test_the_packed_format_holds_other_architectures_too(folder, lm):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=2048, num_hidden_layers=3, tie_word_embeddings=False, **sizes))
    state = pack(model.state_dict())
    replace_file(folder, "config.json", json.dumps(model.config.to_dict()).encode())
    replace_file(folder, "model.safetensors", save(state))
    (folder / "probe.safetensors").unlink()
    tiny_probe(2, 32).save(folder / "probe.safetensors")
    loaded = load_model(str(folder))
    found = loaded.model.state_dict()
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in unpack(state).items())
    assert (loaded.encode("one"), loaded.end_ids) == (lm.encode("one"), {END_ID})


def test_a_packed_folder_with_the_probe_of_another_model_is_refused(folder, lm):
    (folder / "probe.safetensors").unlink()
    tiny_probe(lm.probe.exits - 1, lm.probe.width).save(folder / "probe.safetensors")
    with pytest.raises(BadFileError, match="probe of another model"):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 9),
        ("num_hidden_layers", 11),
        ("intermediate_size", 704),
        ("vocab_size", 2000),
        ("hidden_size", 250),
    ],
)
def test_a_configuration_of_another_model_is_refused(folder, key, value):
    config = json.loads((EMBEDDED / "config.json").read_text())
    replace_file(folder, "config.json", json.dumps(config | {key: value}).encode())
    with pytest.raises(BadFileError, match=r"mine"):
        load_model(str(folder))


def test_a_folder_that_was_refused_loads_once_it_is_complete(folder):
    (folder / "card.json").unlink()
    with pytest.raises(BadFileError):
        load_model(str(folder))
    shutil.copyfile(EMBEDDED / "card.json", folder / "card.json")
    assert load_model(str(folder)).name == str(folder)


def test_a_prompt_starts_with_the_document_start(lm):
    ids = lm.encode_prompt("Once upon a time")
    assert ids[0] == END_ID
    assert END_ID not in ids[1:]
    assert lm.decode(ids) == "Once upon a time"


@pytest.mark.parametrize("text", ["", " ", "\n\t "])
def test_an_empty_prompt_is_refused(lm, text):
    with pytest.raises(BadValueError, match="the prompt is empty"):
        lm.encode_prompt(text)


def test_the_longest_prompt_leaves_room_for_one_token(lm):
    # A digit is one token each, and the document start one more.
    context = lm.shape.context
    assert len(lm.encode_prompt("7" * (context - 2))) == context - 1
    for digits in (context - 1, context, 4 * context):
        with pytest.raises(BadValueError) as caught:
            lm.encode_prompt("7" * digits)
        assert f"{digits + 1} tokens" in caught.value.message
        assert str(context) in caught.value.message
        assert f"at most {context - 1} tokens" in caught.value.hint


def test_hidden_states_are_the_residual_stream_after_each_layer(lm):
    ids = torch.tensor([lm.encode("Anna has 3 apples.")])
    before = [len(layer._forward_hooks) for layer in lm.model.model.layers]
    with torch.inference_mode():
        states = torch.cat(lm.anatomy.states(ids))
    assert [len(layer._forward_hooks) for layer in lm.model.model.layers] == before
    with torch.inference_mode():
        out = lm.model(input_ids=ids, output_hidden_states=True)
        assert torch.allclose(states[:-1], torch.cat(out.hidden_states[1:-1]), atol=1e-5)
        assert torch.allclose(lm.model.lm_head(lm.model.model.norm(states[-1])), out.logits[0], atol=1e-4)
    assert states.shape == (lm.shape.layers, ids.shape[1], lm.shape.hidden_size)
