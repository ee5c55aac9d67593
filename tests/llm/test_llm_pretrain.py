import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from test_llm_user_models import network, tokenizer

import clone_rl.llm.windows as windows_module
from clone_rl.envs.scenario import Scenario
from clone_rl.errors import BadFileError, BadValueError
from clone_rl.llm.anatomy import Anatomy
from clone_rl.llm.corpus import held_out
from clone_rl.llm.live import LiveSession
from clone_rl.llm.model import load_model
from clone_rl.llm.pretrain import (
    Pretraining,
    Subject,
    build_model,
    exit_losses,
    growing_drop,
    pretrain,
    quantised,
    training_states,
)
from clone_rl.llm.prompts import make_prompt, reserved_texts
from clone_rl.llm.quantise import fake_quantise, weight_bits
from clone_rl.llm.recipe import Recipe, recipe_from
from clone_rl.llm.release import release
from clone_rl.llm.report import exact_match
from clone_rl.llm.samples import Encoding
from clone_rl.llm.sampling import Sampling
from clone_rl.llm.windows import Windows
from clone_rl.runtime import Decision

pytest_plugins = ["llm_models"]

TINY = Recipe(
    minutes=0.05, vocab_size=300, hidden_size=64, layers=3, heads=2, kv_heads=1, ff_size=64, context=32, batch=2, warmup=2
)
ANIMALS = ("fox", "cat", "hen", "owl", "dog", "cow")


def story(number):
    animals = " ".join(
        f"The {ANIMALS[(number + i) % 6]} went to house {number * (i + 3) % 97} and came back." for i in range(7)
    )
    return f"Story {number}. {animals}"


@pytest.fixture(scope="module", autouse=True)
def few_prompts():
    """Hardly any answer fits a context of 32 tokens: do not look through all prompts for one, nor write the reserved anew."""
    reserved = reserved_texts()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clone_rl.llm.samples._MOST_PROMPTS", 1000)
        for module in ("windows", "report"):
            patch.setattr(f"clone_rl.llm.{module}.reserved_texts", lambda: reserved)
        yield


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "tales.txt").write_text("\n\n\n".join(map(story, range(700))), encoding="utf-8")
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
    return folder, release(run[0], text, folder, "clone-rl pretrain ...", tokens=2000)


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
def test_a_run_is_not_overwritten_and_continues_on_request(run, text, tmp_path):
    out, report = shutil.copytree(run[0], tmp_path / "tiny.training"), run[1]
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
    live = LiveSession(lm, Scenario.load("default"))

    class Early:
        def decide(self, observation):
            return Decision(7, exit=bool(observation[1] > 0.4))

        def observe(self, cost):
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
    assert [stage["recipe"]["hidden_size"] for stage in card["stages"]] == [64]
    assert card["tokens"] == card["stages"][0]["steps"] * TINY.batch * TINY.context
    assert len(card["stages"][0]["curve"]) > 1
    assert [row["layer"] for row in card["quality"]["layers"]] == [1, 2]
    for row in card["quality"]["layers"]:
        assert 0 <= row["agreement"] <= 1
        assert row["kl"] >= 0
        assert 0 <= row["ece"] <= 1
    assert all(len(shares) == 3 for shares in card["exact_match"].values())
    assert len(card["validation_loss"]) == 3
    text = (released[0] / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert f"{card['quality']['layers'][0]['agreement']:.3f}" in text
    assert f"{card['validation_loss'][-1]:.4f} nats" in text


@pytest.mark.slow
def test_a_released_model_is_continued_and_tells_of_both_stages(released, text, tmp_path):
    recipe = recipe_from({"steps": 6, "batch": 2, "context": 32}, continued=True)
    assert (recipe.learning_rate, recipe.distil, recipe.exit_weight) == (3e-4, 1.0, 1.0)
    report = pretrain(text, tmp_path / "more.training", recipe, init=str(released[0]))
    assert report["steps"] == 6
    card = release(tmp_path / "more.training", text, tmp_path / "more", "clone-rl pretrain --init ...", tokens=2000)
    assert [stage["steps"] for stage in card["stages"]] == [released[1]["stages"][0]["steps"], 6]
    before, after = (load_model(str(folder)) for folder in (released[0], tmp_path / "more"))
    assert before.sha256 != after.sha256
    assert before.tokenizer.encode("The fox") == after.tokenizer.encode("The fox")


@pytest.mark.slow
def test_a_run_of_any_size_is_continued_from_its_own_folder(run, text, tmp_path):
    """Twice over: neither recipe says the sizes, the first run of the chain does."""
    recipe = recipe_from({"steps": 2, "batch": 2, "context": 32}, continued=True)
    base = str(run[0])
    for name in ("second.training", "third.training"):
        pretrain(text, tmp_path / name, recipe, init=base)
        base = str(tmp_path / name)
    card = release(Path(base), text, tmp_path / "third", "clone-rl pretrain ...", tokens=2000)
    assert [stage["steps"] for stage in card["stages"][1:]] == [2, 2]
    assert load_model(str(tmp_path / "third")).shape.layers == TINY.layers
    with pytest.raises(BadFileError, match="already holds"):
        pretrain(text, tmp_path / "third.training", recipe)
    again = pretrain(text, tmp_path / "third.training", Recipe(**{**recipe.__dict__, "steps": 3}), resume=True)
    assert again["steps"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma3", "gpt2"])
def test_a_model_of_another_family_is_tuned_for_exits(text, tmp_path, family):
    folder = tmp_path / "base"
    network(family).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    recipe = recipe_from({"steps": 5, "batch": 2, "context": 24, "warmup": 2}, continued=True)
    before = torch.cat([p.flatten() for p in load_model(str(folder), "fp32").model.parameters()])
    pretrain(text, tmp_path / "out.training", recipe, init=str(folder))
    release(tmp_path / "out.training", text, tmp_path / "out", "...", tokens=2000)
    lm = load_model(str(tmp_path / "out"))
    assert lm.need_probe().exits == lm.shape.layers - 1
    assert type(lm.model).__name__ == type(load_model(str(folder)).model).__name__
    exact = load_model(str(tmp_path / "out"), "fp32").model
    assert not torch.equal(before, torch.cat([p.flatten() for p in exact.parameters()]))
    assert load_model(str(folder), "fp32").model is not exact
    assert json.loads((tmp_path / "out" / "pretrain.json").read_text())["stages"][0]["steps"] == 5


def one_batch(recipe, weight):
    torch.manual_seed(0)
    stream = np.random.default_rng(0).integers(0, recipe.vocab_size, 500)
    run = Pretraining(None, Recipe(**{**recipe.__dict__, **weight}), Subject(build_model(recipe), None, 0, 0), stream)
    return run, run.backward()


@pytest.mark.parametrize("changes", [{"exit_weight": 0.0}, {"exit_weight": 0.5}, {"exit_weight": 0.5, "distil": 1.0}])
def test_the_loss_is_that_of_the_recipe(changes):
    """Against the definition, written out, on the first batch (no layer is dropped and the first two exits are in turn)."""
    recipe = Recipe(**{**TINY.__dict__, "template_share": 0.0, "layer_drop": 0.0})
    run, value = one_batch(recipe, changes)
    again, _ = one_batch(recipe, {"exit_weight": 0.0})
    model = build_model(recipe)
    ids = Windows(recipe, None, 0, again.windows.text).batch()
    states = model(input_ids=ids[:, :-1], output_hidden_states=True).hidden_states
    target = ids[:, 1:].reshape(-1)
    full = model.lm_head(states[-1]).flatten(0, 1).log_softmax(-1)
    loss = torch.nn.functional.nll_loss(full, target)
    assert value == pytest.approx(float(loss.detach()), rel=1e-5)
    for exit_state in (states[1], states[2]) if changes["exit_weight"] else ():
        early = model.lm_head(model.model.norm(exit_state)).flatten(0, 1).log_softmax(-1)
        teacher = full.detach()
        divergence = (teacher.exp() * (teacher - early)).sum(-1).mean()
        wrong = torch.nn.functional.nll_loss(early, target)
        loss = loss + changes["exit_weight"] * (divergence if changes.get("distil") else wrong)
    loss.backward()
    for (name, one), other in zip(run.model.named_parameters(), model.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=2e-5), name


def test_equal_steps_and_seed_give_equal_weights(text, tmp_path):
    recipe = Recipe(**{**TINY.__dict__, "steps": 4})
    weights = []
    for name in ("one", "two"):
        report = pretrain(text, tmp_path / name, recipe)
        weights.append(torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["model"])
        assert report["steps"] == 4
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_quantised_weights_are_seen_and_put_back():
    model = build_model(TINY)
    exact = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with quantised(model):
        for name, tensor in model.named_parameters():
            bits = weight_bits(name, tensor)
            assert torch.equal(tensor, exact[name] if bits == 32 else fake_quantise(exact[name], bits)), name
    assert all(torch.equal(tensor, exact[name]) for name, tensor in model.state_dict().items())


def test_deeper_layers_are_dropped_more_often():
    drop = growing_drop(0.2, 5)
    assert drop[0] == 0
    assert drop == sorted(drop)
    assert drop[-1] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"layers": 1}, "layers is 1"),
        ({"layers": 0}, "layers is 0"),
        ({"steps": -1}, "steps is -1"),
        ({"minutes": 0.0}, "minutes is 0"),
        ({"distil": 1.5}, "distil is 1.5"),
        ({"learning_rate": 0.0}, "learning_rate is 0"),
        ({"context": 4}, "context is 4"),
        ({"heads": 3}, "heads 3"),
        ({"vocab_size": 100}, "vocab_size is 100"),
        ({"exit_weight": -1.0}, "exit_weight is -1"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(given, named):
    with pytest.raises(BadValueError, match=named):
        recipe_from(given, continued=False)


def test_sizes_of_a_continued_model_are_its_own():
    with pytest.raises(BadValueError, match=r"layers is given.*--layers"):
        recipe_from({"layers": 4}, continued=True)


def test_text_shorter_than_a_window_is_refused():
    with pytest.raises(BadFileError, match="10 tokens, fewer than a window"):
        Windows(TINY, None, 0, np.zeros(10, np.int64))


@pytest.mark.parametrize("length", [34, 40, 65, 500])
def test_windows_stay_within_the_text_and_use_all_of_it(length):
    recipe = Recipe(**{**TINY.__dict__, "template_share": 0.0, "batch": 1})
    windows, seen = Windows(recipe, None, 0, np.arange(length)), set()
    for _ in range(400):
        window = windows.batch()[0]
        assert (window.diff() == 1).all()
        assert len(window) == recipe.context + 1
        seen.update(window.tolist())
    assert len(seen) > 0.9 * length


def test_right_answers_are_counted_as_greedy_decoding_would(lm):
    """Against decoding token by token, at full depth."""
    encoding = Encoding(lambda text: lm.tokenizer.encode(text), lm.start_ids, (min(lm.end_ids),), lm.shape.context)
    found, right, seed, count = exact_match(lm.anatomy, encoding, 12), 0, 6_500_000_000, 0
    while count < 12:
        prompt = make_prompt("list", seed)
        seed += 1
        count += 1
        ids = torch.tensor([lm.encode(prompt.text)])
        wanted = [*lm.tokenizer.encode(prompt.answer), min(lm.end_ids)]
        out = lm.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=len(wanted), pad_token_id=0
        )
        right += out[0, ids.shape[1] :].tolist() == wanted
    assert found["list"][-1] == pytest.approx(right / 12)
    assert all(len(shares) == lm.shape.layers for shares in found.values())


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
    anatomy = Anatomy(model)
    with torch.inference_mode():
        states = training_states(anatomy, ids)
        out = model(input_ids=ids, output_hidden_states=True)
        logits = anatomy.tail(states[-1])
    assert torch.allclose(logits, out.logits, atol=1e-5)
    assert torch.allclose(states[0], out.hidden_states[1], atol=1e-5)


def test_a_dropped_layer_passes_its_input_on():
    model, ids = build_model(TINY).eval(), torch.arange(20).view(2, 10)
    with torch.inference_mode():
        states = training_states(Anatomy(model), ids, frozenset({1}))
    assert torch.equal(states[1], states[0])
    assert not torch.equal(states[2], states[1])
    assert "forward" not in model.model.layers[1].__dict__


@pytest.mark.parametrize("tokens", [64, 100, 31 * 32 + 5])
def test_the_loss_is_measured_on_however_much_text_there_is(tokens):
    stream = np.random.default_rng(0).integers(0, TINY.vocab_size, tokens)
    losses = exit_losses(Anatomy(build_model(TINY).eval()), stream, TINY.context, 80)
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
    monkeypatch.setattr(windows_module, "reserved_texts", lambda: reserve)

    def encode(batch):
        seen.extend(batch)
        return [[1] * len(text) for text in batch]

    Windows(Recipe(**{**TINY.__dict__, "template_share": 1.0}), encode, 0, np.zeros(1000, np.int64)).batch()
    assert len(seen) >= 256
    assert not any(text.partition("Answer:")[0] + "Answer:" in reserve for text in seen)
    assert len(set(seen)) > 0.9 * len(seen)


def test_runs_of_other_seeds_see_other_prompts():
    def prompts(seed):
        seen = []
        recipe = Recipe(**{**TINY.__dict__, "template_share": 1.0, "seed": seed})
        Windows(recipe, lambda batch: seen.extend(batch) or [[1] * 99] * len(batch), 0, np.zeros(1000, np.int64)).batch()
        return set(seen)

    assert len(prompts(0) & prompts(1)) < 0.05 * len(prompts(0))
