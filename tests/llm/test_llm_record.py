import dataclasses

import numpy as np
import pytest
import torch
from tiny_lm import CONTEXT, tiny_language_model

from clone_rl.envs.trace import load_traces
from clone_rl.errors import BadValueError
from clone_rl.llm.documents import Document, Responses, documents
from clone_rl.llm.prompts import Prompt, make_prompt
from clone_rl.llm.record import PER_TOKEN, check_alike, join, keys_of, measure, record
from clone_rl.version import __version__

pytest_plugins = ["llm_models", "tiny_lm"]

GIVEN = Prompt("sum", "12 + 30 =", " 42, of course.", 3)
STORY = Prompt("story", "Once upon a time", "", 5)
FEW = Responses(max_new_tokens=12)
FAMILIES = ("llama", "gpt2", "gemma2 with soft-capped logits")


def same(one, other):
    columns = (*PER_TOKEN, "offset", "prompt_tokens", "split", "kind", "sampled")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in columns)


@pytest.fixture(scope="module")
def chosen(tiny_lm):
    return list(documents(tiny_lm, [("train", STORY), ("test", GIVEN)], FEW))


@pytest.fixture(scope="module")
def traces(tiny_lm, chosen):
    return record(tiny_lm, chosen, FEW, "clone-rl record", quiet=True)


def last_states(lm, ids):
    """What goes into the first layer and comes out of every layer at the last position, and the model's log-probabilities."""
    found = []

    def before(module, args, kwargs):
        found.append(args[0] if args else kwargs["hidden_states"])

    def after(module, args, out):
        found.append(out[0] if isinstance(out, tuple) else out)

    layers = lm.anatomy.layers
    hooks = [layers[0].register_forward_pre_hook(before, with_kwargs=True)]
    hooks += [layer.register_forward_hook(after) for layer in layers]
    logits = lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
    for hook in hooks:
        hook.remove()
    return [state[0, -1] for state in found], logits.double().log_softmax(-1)


def slow_columns(lm, document):
    """Token by token and exit by exit, each from a pass of its own over the text so far, in float64."""
    layers, ids = lm.shape.layers, list(document.ids)
    found = {name: [] for name in PER_TOKEN}
    for at in range(document.prompt_tokens, len(ids)):
        row = {name: [] for name in PER_TOKEN}
        flow, full = last_states(lm, ids[:at])
        for depth in range(1, layers + 1):
            emits = lm.anatomy.tail(flow[depth][None, None])[0, 0].double().log_softmax(-1)
            ordered = sorted(emits.tolist(), reverse=True)
            row["margin"].append(ordered[0] - ordered[1])
            row["entropy"].append(-float((emits.exp() * emits).sum()))
            if depth == layers:
                continue
            row["agree"].append(float(emits.argmax() == full.argmax()))
            row["kl"].append(float((full.exp() * (full - emits)).sum()))
            row["dnll"].append(float(full[ids[at]] - emits[ids[at]]))
            row["signal"].append(lm.need_probe().signals(flow[depth], depth).tolist())
            before, after = flow[depth - 1].double().numpy(), flow[depth].double().numpy()
            size = np.linalg.norm(after)
            change, cosine = np.linalg.norm(after - before) / size, before @ after / size / np.linalg.norm(before)
            row["hidden"].append([np.log10(size / np.sqrt(len(after))), change, cosine])
        for name, values in row.items():
            found[name].append(values)
    return {name: np.array(values) for name, values in found.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_columns_are_those_of_a_slow_computation(family):
    lm = tiny_language_model(family)
    ids = tuple(torch.randint(1, 160, (19,), generator=torch.Generator().manual_seed(4)).tolist())
    document = Document("user", "test", ids, 6, sampled=False)
    found = measure(lm, document)
    with torch.no_grad():
        expected = slow_columns(lm, document)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == np.float16
        assert found[name].shape == values.shape, name
        assert np.allclose(found[name], values, rtol=2e-3, atol=2e-3), name
    assert found["kl"].max() > 0


def test_the_embedded_model_too(lm):
    prompt = make_prompt("list", 123)
    document = next(documents(lm, [("test", prompt)]))
    document = dataclasses.replace(document, ids=document.ids[: document.prompt_tokens + 3])
    found = measure(lm, document)
    with torch.no_grad():
        expected = slow_columns(lm, document)
    for name, values in expected.items():
        assert np.allclose(found[name], values, rtol=3e-3, atol=3e-3), name


def test_what_a_set_says_about_its_documents(tiny_lm, chosen, traces):
    assert traces.sampled.tolist() == [1, 0]
    assert traces.split.tolist() == [0, 2]
    assert [traces.kinds[k] for k in traces.kind] == ["story", "sum"]
    assert traces.prompt_tokens.tolist() == [d.prompt_tokens for d in chosen]
    assert np.diff(traces.offset).tolist() == [len(d.ids) - d.prompt_tokens for d in chosen]
    assert keys_of(traces) == [d.key for d in chosen]
    card = traces.card
    assert card["model_sha256"] == tiny_lm.sha256
    assert card["layers"] == traces.layers == 4
    assert card["sampling"] == {"temperature": 0.8, "top_k": 40}
    assert (card["precision"], card["kv"], card["mode"], card["max_new_tokens"]) == ("int8", "exact", "auto", 12)
    assert (card["probe_sha256"], card["probe_dots"]) == ("of means", 2)
    assert (card["version"], card["command"]) == (__version__, "clone-rl record")
    assert card["requests"] == {
        "story": {"train": 1, "validation": 0, "test": 0},
        "sum": {"train": 0, "validation": 0, "test": 1},
    }
    assert card["tokens"] == traces.offset[-1]


def test_recording_twice_gives_the_same_set_and_answers_come_out_alike(tiny_lm, chosen, traces):
    again = record(tiny_lm, chosen, FEW, "clone-rl record", quiet=True)
    assert same(again, traces)
    assert again.card == traces.card
    unanswered = [dataclasses.replace(d, ids=d.ids[: d.prompt_tokens]) if d.sampled else d for d in chosen]
    assert same(record(tiny_lm, unanswered, FEW, quiet=True), traces)


def test_a_document_does_not_depend_on_its_neighbours(tiny_lm, chosen, traces):
    alone = record(tiny_lm, chosen[1:], FEW, quiet=True)
    for name in PER_TOKEN:
        assert np.array_equal(getattr(alone, name), getattr(traces, name)[traces.offset[1] :])


def test_the_hashes_tell_sets_apart_but_not_commands(tiny_lm, chosen, traces):
    other = record(tiny_lm, [chosen[0], dataclasses.replace(chosen[1], split="validation")], FEW, quiet=True)
    assert other.card["prompts_sha256"] != traces.card["prompts_sha256"]
    assert other.card["sha256"] != traces.card["sha256"]
    assert record(tiny_lm, chosen, FEW, "another", quiet=True).card["sha256"] == traces.card["sha256"]


def test_the_set_in_memory_is_the_set_on_disk(traces, tmp_path):
    traces.save(tmp_path / "set")
    again = load_traces(str(tmp_path / "set"))
    assert same(again, traces)
    assert {**again.card, "format": 0} == {**traces.card, "format": 0}


def test_kept_columns_are_not_recorded_again_and_new_ones_are_kept(tiny_lm, chosen, traces):
    kept = {}
    record(tiny_lm, chosen[:1], FEW, quiet=True, kept=kept)
    assert kept.keys() == {chosen[0].key}
    kept[chosen[0].key]["agree"][:] = 0.25
    found = record(tiny_lm, chosen, FEW, quiet=True, kept=kept)
    assert (found.agree[: found.offset[1]] == 0.25).all()
    assert np.array_equal(found.agree[found.offset[1] :], traces.agree[traces.offset[1] :])
    assert kept.keys() == {d.key for d in chosen}


def test_a_document_that_comes_twice_is_recorded_once(tiny_lm, chosen, traces):
    assert same(record(tiny_lm, [*chosen, chosen[0]], FEW, quiet=True), traces)


def test_responses_that_end_at_the_context_are_counted(tiny_lm):
    prompts = [("test", Prompt("user", "7" * (CONTEXT - 9), "x" * most, 1)) for most in (3, 60)]
    found = record(tiny_lm, list(documents(tiny_lm, prompts)), quiet=True)
    assert found.card["cut_by_context"] == 1


def test_joined_sets_are_the_set_recorded_at_once(tiny_lm, chosen, traces):
    parts = [record(tiny_lm, [document], FEW, f"part {n}", quiet=True) for n, document in enumerate(chosen)]
    both = join(*parts)
    assert same(both, traces)
    assert both.card["sha256"] == traces.card["sha256"]
    assert both.card["prompts_sha256"] == traces.card["prompts_sha256"]
    assert both.card["requests"] == traces.card["requests"]
    assert both.card["command"] == "part 0"
    assert [part["command"] for part in both.card["appended"]] == ["part 1"]


def test_sets_of_other_origins_are_told_apart_by_name(traces):
    check_alike(traces.card, {"model_sha256": traces.card["model_sha256"], "model": "another name for it"}, "set")
    with pytest.raises(BadValueError, match="set has another probe dots: 2, not 6"):
        check_alike(traces.card, {**traces.card, "probe_dots": 6}, "set")


def test_no_documents_are_refused(tiny_lm):
    with pytest.raises(BadValueError, match="no prompts"):
        record(tiny_lm, [], quiet=True)


def test_a_model_without_a_probe_is_refused_with_what_to_do(tiny_lm, chosen):
    bare = dataclasses.replace(tiny_lm, probe=None)
    with pytest.raises(BadValueError, match="clone-rl probe"):
        record(bare, chosen, quiet=True)


def test_values_that_are_not_finite_are_refused(chosen):
    broken = tiny_language_model()
    with torch.no_grad():
        broken.anatomy.layers[2].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(BadValueError, match="tiny gives values that are not finite"):
        measure(broken, chosen[0])
