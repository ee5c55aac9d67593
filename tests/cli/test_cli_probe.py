import json
import random
import shutil

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from clone_rl.cli.probe import advice, report_text
from clone_rl.llm.probe import load_probe

pytest_plugins = ["cli_running"]

WORDS = [
    "fox",
    "cat",
    "hen",
    "owl",
    "bear",
    "river",
    "house",
    "stone",
    "tree",
    "moon",
    "ran",
    "slept",
    "sang",
    "found",
    "lost",
    "saw",
    "the",
    "a",
    "of",
    "to",
    "and",
    "in",
]
LAYERS, WIDTH = 4, 32


def tale(number, words=120):
    rng = random.Random(number)
    return f"Tale {number}. " + " ".join(rng.choice(WORDS) for _ in range(words)) + "."


@pytest.fixture
def text(here):
    """A folder of sixty short documents."""
    (here / "text").mkdir()
    (here / "text" / "tales.txt").write_text("\n\n\n".join(tale(i) for i in range(60)), encoding="utf-8")
    return here / "text"


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A random Llama as Hugging Face saves it."""
    folder = tmp_path_factory.mktemp("hf") / "tiny"
    symbols = [chr(c) for c in range(32, 127)] + ["\n"]
    vocab = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *symbols, *(w for w in WORDS if len(w) > 1)])}
    raw = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(vocab), hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def model(model_folder, here):
    """A copy that may be written to."""
    return shutil.copytree(model_folder, here / "tiny")


def test_a_hugging_face_folder_gets_a_probe_with_its_provenance(run_cli, model, text):
    found = run_cli("probe", "--model", model, "--text", text, "--tokens", 1700, "--json").json
    assert [row["layer"] for row in found["layers"]] == [1, 2, 3]
    assert all({"auc", "ece", "agreement", "kl", "dnll", "kl_mean"} <= row.keys() for row in found["layers"])
    assert set(found["depth_at_quality"]) == {"dnll", "agreement"}
    assert found["out"] == str(model / "probe.safetensors")
    probe = load_probe(model / "probe.safetensors", LAYERS - 1, WIDTH)
    stored = json.loads((model / "probe.json").read_text(encoding="utf-8"))
    assert stored["probe_sha256"] == found["probe_sha256"] == probe.sha256
    assert {"model_sha256", "text_sha256", "seed", "command", "tokens_by_slice", "layers"} <= stored.keys()
    assert sorted(p.name for p in model.iterdir() if p.name.startswith((".", "probe"))) == ["probe.json", "probe.safetensors"]

    # Again: the same probe, over the old one, and the figures in a table.
    again = run_cli("probe", "--model", model, "--text", text, "--tokens", 1700)
    assert again.code == 0, again.err
    assert load_probe(model / "probe.safetensors").sha256 == probe.sha256
    assert "after layer" in again.out
    assert "oracle" in again.out


def test_the_embedded_model_is_reported_on_and_left_alone(run_cli, text, here, snapshot):
    before = snapshot()
    found = run_cli("probe", "--text", text, "--tokens", 1700, "--json").json
    assert found["out"] is None
    assert snapshot() == before
    assert len(found["layers"]) == 9
    assert found["layers"][-1]["agreement"] > found["layers"][0]["agreement"]
    assert (
        run_cli("probe", "--text", text, "--tokens", 1700, "--out", here / "text" / "tales.txt", "--json").error["kind"]
        == "bad_file"
    )


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (lambda text: shutil.rmtree(text), "bad_file", "no such folder"),
        (lambda text: (text / "tales.txt").write_text(""), "bad_file", "too little text"),
        (lambda text: (text / "tales.txt").write_text(tale(1)), "bad_file", "too little text"),
        (lambda text: (text / "bad.md").write_bytes(b"good \xff bad"), "bad_file", "bad.md: byte 0xff at offset 5"),
    ],
)
def test_text_that_is_none_is_named_and_nothing_is_written(run_cli, model, text, change, kind, words, snapshot):
    change(text)
    before = snapshot()
    error = run_cli("probe", "--model", model, "--text", text, "--tokens", 1700, "--json").error
    assert error["kind"] == kind
    assert words in error["message"]
    assert snapshot() == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tokens", 10], "10 tokens"),
        (["--tokens", -1], "-1 tokens"),
        (["--seed", -1], "seed is -1"),
        (["--model", "nowhere"], "nowhere"),
        (["--out", "no/such/folder/probe.safetensors"], "no such folder"),
    ],
)
def test_bad_options_are_named(run_cli, model, text, options, words):
    assert words in run_cli("probe", "--model", model, "--text", text, *options, "--json").error["message"]


def figures(agreement, depth):
    row = {"kl": 0.1, "dnll": 0.1, "auc": float("nan"), "ece": 0.0, "agreement_mean": 0.5, "kl_mean": 0.1}
    way = {"depth": depth, "dnll": 0.01, "agreement": 0.9}
    ways = dict.fromkeys(("static", "predicted_kl", "predicted_agreement", "true_kl", "oracle"), way)
    layers = [{"layer": i + 1, "agreement": a, **row} for i, a in enumerate(agreement)]
    return {"tokens": 7, "nll": 1.0, "layers": layers, "depth_at_quality": {"dnll": ways, "agreement": ways}, "kinds": {}}


def test_what_to_expect_is_said_from_the_figures():
    poor = figures([0.05, 0.15, 0.1, 0.4, 0.5, 0.6, 0.9], 0.97)
    assert advice(poor).startswith("exits agree with full depth on at most 50% of tokens before layer 6 of 8: expect savings")
    assert "--init" in advice(poor)
    assert advice(figures([0.5, 0.7, 0.9], 0.8)).startswith("tokens can leave after 80% of the layers")
    lines = report_text(poor).splitlines()
    assert lines[0].startswith("7 tokens")
    assert any("80.0 %" in line or "97.0 %" in line for line in lines)
    assert max(map(len, lines)) <= 200
