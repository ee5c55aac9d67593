import numpy as np
import pytest
import torch

from clone_rl.envs.trace import load_traces
from clone_rl.errors import BadValueError
from clone_rl.llm.prompts import Prompt, make_prompt
from clone_rl.llm.record import record, respond
from clone_rl.llm.sampling import Sampling
from clone_rl.llm.tokenizer import END_ID

pytest_plugins = ["llm_models"]

GIVEN = make_prompt("arithmetic", 123)
STORY = make_prompt("story", 5)
PER_TOKEN = ("signal", "agree", "kl", "dnll")


@pytest.fixture(scope="module")
def traces(lm):
    return record(lm, [("train", STORY), ("test", GIVEN)], max_new_tokens=12, quiet=True)


def same(one, other):
    columns = (*PER_TOKEN, "offset", "prompt_tokens", "split", "kind", "sampled")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in columns)


def test_a_given_answer_is_traced_as_an_independent_computation_says(lm, traces):
    head = lm.encode(GIVEN.text)
    text = [*head, *lm.tokenizer.encode(GIVEN.answer).ids, END_ID]
    with torch.inference_mode():
        out = lm.model(input_ids=torch.tensor([text[:-1]]), output_hidden_states=True)
    full = out.logits[0].double().log_softmax(-1)
    rows = range(len(head) - 1, len(text) - 1)
    start, stop = traces.offset[1:3]
    assert stop - start == len(rows)
    for exit_layer in range(1, lm.shape.layers):
        state = out.hidden_states[exit_layer][0]
        with torch.inference_mode():
            early = lm.model.lm_head(lm.model.model.norm(state)).double().log_softmax(-1)
        expected = {
            "agree": [float(early[t].argmax() == full[t].argmax()) for t in rows],
            "kl": [float((full[t].exp() * (full[t] - early[t])).sum()) for t in rows],
            "dnll": [float(full[t, text[t + 1]] - early[t, text[t + 1]]) for t in rows],
        }
        for name, values in expected.items():
            recorded = getattr(traces, name)[start:stop, exit_layer - 1]
            assert np.allclose(recorded, values, rtol=2e-3, atol=2e-3), (name, exit_layer)
        normed = state * (state.square().mean(-1, keepdim=True)).rsqrt()
        raw = normed @ lm.probe.weight[exit_layer - 1].T + lm.probe.bias[exit_layer - 1]
        signal = traces.signal[start:stop, exit_layer - 1]
        assert np.allclose(signal[:, 0], raw[rows.start :, 0].sigmoid(), atol=2e-3)
        assert np.allclose(signal[:, 1], raw[rows.start :, 1].exp().log1p(), rtol=2e-3, atol=2e-3)


def test_the_answer_is_followed_by_the_end_token(lm, traces):
    tokens = len(lm.tokenizer.encode(GIVEN.answer).ids)
    assert traces.offset[2] - traces.offset[1] == tokens + 1
    head = lm.encode(GIVEN.text)
    ids = [*head, *lm.tokenizer.encode(GIVEN.answer).ids]
    with torch.inference_mode():
        out = lm.model(input_ids=torch.tensor([ids]), output_hidden_states=True)
        early = lm.model.lm_head(lm.model.model.norm(out.hidden_states[1][0, -1])).log_softmax(-1)
    increase = out.logits[0, -1].log_softmax(-1)[END_ID] - early[END_ID]
    assert traces.dnll[-1, 0] == pytest.approx(float(increase), abs=5e-3, rel=2e-3)


def test_what_a_set_says_about_its_documents(lm, traces):
    assert traces.sampled.tolist() == [1, 0]
    assert traces.split.tolist() == [0, 2]
    assert [traces.kinds[k] for k in traces.kind] == ["story", "arithmetic"]
    assert traces.prompt_tokens.tolist() == [len(lm.encode(STORY.text)), len(lm.encode(GIVEN.text))]
    assert 1 <= traces.offset[1] <= 12
    assert traces.card["model_sha256"] == lm.sha256
    assert traces.card["layers"] == traces.layers == lm.shape.layers
    assert traces.card["sampling"] == {"temperature": 0.8, "top_k": 40}
    assert traces.card["precision"] == lm.card["weights"]


def test_recording_twice_gives_the_same_set(lm, traces):
    again = record(lm, [("train", STORY), ("test", GIVEN)], max_new_tokens=12, quiet=True)
    assert same(again, traces)
    assert again.card == traces.card


def test_a_document_does_not_depend_on_its_neighbours(lm, traces):
    alone = record(lm, [("test", GIVEN)], max_new_tokens=12, quiet=True)
    for name in PER_TOKEN:
        assert np.array_equal(getattr(alone, name), getattr(traces, name)[traces.offset[1] :])


def test_the_hash_tells_sets_of_other_prompts_apart(lm, traces):
    other = record(lm, [("train", STORY), ("validation", GIVEN)], max_new_tokens=12, quiet=True)
    assert other.card["prompts_sha256"] != traces.card["prompts_sha256"]
    assert other.card["sha256"] != traces.card["sha256"]


def test_the_set_in_memory_is_the_set_on_disk(traces, tmp_path):
    traces.save(tmp_path / "set")
    assert same(load_traces(str(tmp_path / "set")), traces)


def test_no_prompts_are_refused(lm):
    with pytest.raises(BadValueError, match="no prompts"):
        record(lm, [], quiet=True)


@pytest.mark.parametrize("text", ["", "7" * 300])
def test_prompts_that_do_not_fit_are_refused(lm, text):
    with pytest.raises(BadValueError, match="prompt"):
        record(lm, [("test", Prompt("user", text, "", 1))], quiet=True)


@pytest.mark.parametrize("most", [0, -1])
def test_responses_without_tokens_are_refused(lm, most):
    with pytest.raises(BadValueError, match=str(most)):
        record(lm, [("test", STORY)], max_new_tokens=most, quiet=True)


def test_an_unknown_split_is_refused_before_the_model_runs(lm):
    with pytest.raises(BadValueError.__base__, match="tests"):
        record(lm, [("tests", STORY)], max_new_tokens=2, quiet=True)


@pytest.mark.parametrize("answer", [" one two", ""])
def test_a_response_ends_where_the_context_does(lm, answer):
    digits = lm.shape.context - 4
    found = record(lm, [("test", Prompt("user", "7" * digits, answer * 40, 1))], max_new_tokens=80, quiet=True)
    prompt = digits + 1
    assert found.prompt_tokens.tolist() == [prompt]
    assert found.offset[1] <= lm.shape.context + 1 - prompt


def test_responses_depend_on_the_seed_alone(lm):
    prompt = lm.encode(STORY.text)
    drawn = [respond(lm, prompt, 10, Sampling(), seed) for seed in (1, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert len({tuple(d) for d in drawn}) > 1
    for response in drawn:
        assert len(response) == 10 or response[-1] == END_ID
        assert END_ID not in response[:-1]


def test_a_greedy_response_is_what_the_model_generates(lm):
    ids = torch.tensor([lm.encode(STORY.text)])
    with torch.inference_mode():
        out = lm.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=15,
            eos_token_id=END_ID,
            pad_token_id=END_ID,
        )
    assert respond(lm, ids[0].tolist(), 15, Sampling(0.0), 0) == out[0, ids.shape[1] :].tolist()
