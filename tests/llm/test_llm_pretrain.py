import json
import math

import numpy as np
import pytest
import torch

import clone_rl.llm.pretrain as pretrain_module
import clone_rl.llm.release as release_module
from clone_rl.envs.scenario import load_scenario
from clone_rl.errors import BadFileError
from clone_rl.llm.corpus import held_out
from clone_rl.llm.live import LiveSession
from clone_rl.llm.model import load_model
from clone_rl.llm.pretrain import Recipe, build_model, exit_losses, pretrain, training_states
from clone_rl.llm.prompts import make_prompt
from clone_rl.llm.quantise import fake_quantise, weight_bits
from clone_rl.llm.release import release
from clone_rl.llm.sampling import Sampling
from clone_rl.llm.tokenizer import train_tokenizer
from clone_rl.runtime import Decision

TINY = Recipe(
    minutes=0.05, vocab_size=300, hidden_size=64, layers=3, heads=2, kv_heads=1, ff_size=64, context=32, batch=2, warmup=2
)
ANIMALS = ("fox", "cat", "hen", "owl", "dog", "cow")


def story(number):
    animals = " ".join(
        f"The {ANIMALS[(number + i) % 6]} went to house {number * (i + 3) % 97} and came back." for i in range(7)
    )
    return f"Story {number}. {animals}"


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "tales.txt").write_text("\n\n\n".join(map(story, range(1400))), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(text, tmp_path_factory):
    """A run of three seconds: its folder and report."""
    out = tmp_path_factory.mktemp("run") / "tiny.training"
    return out, pretrain(text, out, TINY)


@pytest.fixture(scope="module")
def released(run, text, tmp_path_factory):
    """The model folder of the run, and its card."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    samples = release_module._samples
    with pytest.MonkeyPatch.context() as patch:  # a few of the samples: enough to fit two exits of width 64
        patch.setattr(
            release_module, "_samples", lambda t, d, windows, prompts, seed: samples(t, d, windows // 25, prompts // 25, seed)
        )
        return folder, release(run[0], text, folder, "clone-rl pretrain ...")


@pytest.mark.slow
def test_a_run_leaves_tokenizer_checkpoint_and_report(run):
    out, report = run
    assert {p.name for p in out.iterdir()} == {"tokenizer.json", "checkpoint.pt", "log.jsonl", "report.json"}
    assert json.loads((out / "report.json").read_text()) == report
    assert report["steps"] > 10
    assert report["tokens"] == report["steps"] * TINY.batch * TINY.context
    assert len(report["validation_loss"]) == len(report["validation_loss_quantised"]) == TINY.layers
    assert all(0 < loss < math.log(TINY.vocab_size) for loss in report["validation_loss"])
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(20, report["steps"] + 1, 20))


@pytest.mark.slow
def test_a_run_is_not_overwritten_and_continues_on_request(run, text):
    out, report = run
    with pytest.raises(BadFileError, match=r"already holds a training run.*--resume"):
        pretrain(text, out, TINY)
    longer = Recipe(**{**TINY.__dict__, "minutes": 0.07})
    again = pretrain(text, out, longer, resume=True)
    assert again["steps"] > report["steps"]
    assert torch.load(out / "checkpoint.pt", weights_only=True)["step"] == again["steps"]


def test_without_a_checkpoint_there_is_nothing_to_resume(text, tmp_path):
    with pytest.raises(BadFileError, match="no checkpoint"):
        pretrain(text, tmp_path / "none", TINY, resume=True)
    assert not list(tmp_path.iterdir())


def test_a_missing_corpus_leaves_nothing_behind(tmp_path):
    with pytest.raises(BadFileError, match="no such folder"):
        pretrain(tmp_path / "nowhere", tmp_path / "out", TINY)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_released_model_loads_and_generates(released, run):
    folder, card = released
    lm = load_model(str(folder))
    assert lm.card == card
    assert (lm.shape.layers, lm.shape.hidden_size, lm.shape.vocab_size, lm.shape.context) == (3, 64, 300, 32)
    live = LiveSession(lm, load_scenario("default"))

    class Early:
        def decide(self, observation):
            return Decision(7, exit=bool(observation[1] > 0.4))

        def observe(self, latency_s, energy_j):
            pass

    answer = live.generate("The fox", Early(), 5, Sampling(0.0))
    assert 1 <= len(answer.token_ids) <= 5
    assert answer.figures["depth"] == 3 + 2 * (len(answer.token_ids) - 1)


@pytest.mark.slow
def test_a_released_model_is_the_quantised_checkpoint(released, run):
    lm = load_model(str(released[0]))
    trained = torch.load(run[0] / "checkpoint.pt", weights_only=True)["model"]
    for name, tensor in lm.model.state_dict().items():
        bits = weight_bits(name, tensor)
        expected = trained[name] if bits == 32 else fake_quantise(trained[name], bits)
        assert torch.equal(tensor, expected), name


@pytest.mark.slow
def test_the_card_tells_how_the_model_was_made_and_how_good_its_exits_are(released):
    card = released[1]
    assert card["command"] == "clone-rl pretrain ..."
    assert card["recipe"]["hidden_size"] == 64
    assert card["tokens"] == card["steps"] * TINY.batch * TINY.context
    assert [row["layer"] for row in card["exits_held_out"]] == [1, 2]
    for row in card["exits_held_out"]:
        assert 0 <= row["agreement"] <= 1
        assert row["kl"] >= 0
        assert 0 <= row["probe_calibration_error"] <= 1
    assert card["held_out_tokens"] > 0


@pytest.mark.slow
def test_a_release_does_not_overwrite_and_leaves_nothing_aside(released, run, text):
    folder = released[0]
    with pytest.raises(BadFileError, match="exists"):
        release(run[0], text, folder, "")
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_a_release_needs_a_checkpoint(text, tmp_path):
    with pytest.raises(BadFileError, match="no checkpoint"):
        release(tmp_path, text, tmp_path / "out", "")
    assert not list(tmp_path.iterdir())


def test_the_weights_of_a_seed_are_always_the_same():
    one, same = build_model(TINY).state_dict(), build_model(TINY).state_dict()
    other = build_model(Recipe(**{**TINY.__dict__, "seed": 1})).state_dict()
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not torch.equal(one["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_training_runs_the_same_layers_as_inference():
    model, ids = build_model(TINY).eval(), torch.arange(20).view(2, 10)
    with torch.inference_mode():
        states = training_states(model, ids)
        out = model(input_ids=ids, output_hidden_states=True)
        logits = model.lm_head(model.model.norm(states[-1]))
    assert torch.allclose(logits, out.logits, atol=1e-5)
    assert torch.allclose(states[0], out.hidden_states[1], atol=1e-5)


def test_a_dropped_layer_passes_its_input_on():
    model, ids = build_model(TINY).eval(), torch.arange(20).view(2, 10)
    with torch.inference_mode():
        states = training_states(model, ids, frozenset({1}))
    assert torch.equal(states[1], states[0])
    assert not torch.equal(states[2], states[1])


@pytest.mark.parametrize("tokens", [64, 100, 31 * 32 + 5])
def test_the_loss_is_measured_on_however_much_text_there_is(tokens):
    stream = np.random.default_rng(0).integers(0, TINY.vocab_size, tokens).astype(np.uint16)
    losses = exit_losses(build_model(TINY).eval(), stream, TINY.context, 80)
    assert losses == pytest.approx([math.log(TINY.vocab_size)] * TINY.layers, rel=0.1)


def test_a_few_hundred_documents_are_enough_as_the_message_says(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    documents = [story(n) for n in range(300)]
    assert 0 < sum(map(held_out, documents)) < 20
    (folder / "tales.txt").write_text("\n\n\n".join(documents), encoding="utf-8")
    report = pretrain(folder, tmp_path / "out", Recipe(**{**TINY.__dict__, "minutes": 0.005}))
    assert all(math.isfinite(loss) for loss in report["validation_loss"])


def test_no_reserved_prompt_is_ever_trained_on(monkeypatch):
    seen = []
    reserve = frozenset(make_prompt("list", seed).text for seed in range(3000))
    monkeypatch.setattr(pretrain_module, "reserved_texts", lambda: reserve)
    tokenizer = train_tokenizer(["abc"], 300)

    class Recorder:
        def encode_batch(self, batch):
            seen.extend(batch)
            return tokenizer.encode_batch(batch)

    windows = pretrain_module._Windows(
        Recipe(**{**TINY.__dict__, "template_share": 1.0}), Recorder(), np.zeros(1000, np.uint16)
    )
    windows.batch()
    assert len(seen) >= 256
    assert not any(text.partition("Answer:")[0] + "Answer:" in reserve for text in seen)
    assert len(set(seen)) > 0.9 * len(seen)
