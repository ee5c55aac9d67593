import dataclasses
import itertools
import random
import string

import pytest
import torch
from tiny_lm import CONTEXT, END, tiny_language_model

from clone_rl.envs.trace import SPLITS
from clone_rl.errors import BadFileError, BadValueError, UnknownNameError
from clone_rl.llm.documents import MODES, Document, Responses, answered, documents, prompt_documents, respond, text_documents
from clone_rl.llm.prompts import Prompt
from clone_rl.llm.sampling import Sampling

pytest_plugins = ["llm_models", "tiny_lm"]

ASKED = ("test", Prompt("sum", "1 + 1 =", " 2.", 5))
OPEN = ("train", Prompt("story", "Once", "", 2**31 + 6))
TEXTS = ["".join(random.Random(seed).choices(string.ascii_letters, k=40 + 7 * seed)) for seed in range(60)]


def test_an_answer_is_given_and_ended_and_its_absence_is_filled_by_the_model(tiny_lm):
    asked, story = documents(tiny_lm, [ASKED, OPEN], Responses(max_new_tokens=9))
    head, answer = tiny_lm.encode("1 + 1 ="), tiny_lm.tokenizer.encode(" 2.")
    assert asked == Document("sum", "test", (*head, *answer, END), len(head), sampled=False, seed=5)
    assert (story.kind, story.split, story.prompt_tokens, story.sampled, story.seed) == ("story", "train", 5, True, 6)
    assert 1 <= len(story.ids) - 5 <= 9
    assert story.ids[5:] == tuple(respond(tiny_lm, tiny_lm.encode("Once"), 9, Sampling(), 6))


def test_documents_depend_on_the_arguments_alone(tiny_lm):
    once, again = (list(documents(tiny_lm, [OPEN, ASKED], Responses(max_new_tokens=9))) for _ in range(2))
    assert once == again
    alone = next(documents(tiny_lm, [OPEN], Responses(max_new_tokens=9)))
    assert alone == once[0]
    other = next(documents(tiny_lm, [("train", dataclasses.replace(OPEN[1], seed=7))], Responses(max_new_tokens=9)))
    assert other.ids != alone.ids


def test_free_running_answers_itself_and_teacher_forcing_needs_an_answer(tiny_lm):
    free = prompt_documents(tiny_lm, [ASKED, OPEN], Responses("free-running"))
    assert all(d.sampled and len(d.ids) == d.prompt_tokens for d in free)
    forced = prompt_documents(tiny_lm, [ASKED], Responses("teacher-forced"))
    assert forced == prompt_documents(tiny_lm, [ASKED])
    with pytest.raises(BadValueError, match="'Once' has no answer"):
        prompt_documents(tiny_lm, [ASKED, OPEN], Responses("teacher-forced"))


def test_a_key_tells_documents_apart_and_answering_does_not_change_it(tiny_lm):
    open_one = prompt_documents(tiny_lm, [OPEN])[0]
    assert answered(tiny_lm, open_one, Responses(max_new_tokens=4)).key == open_one.key
    asked = prompt_documents(tiny_lm, [ASKED])[0]
    changes = ({"kind": "x"}, {"split": "train"}, {"ids": asked.ids[:-1]}, {"prompt_tokens": 3}, {"sampled": True})
    keys = {asked.key, *(dataclasses.replace(asked, **change).key for change in changes)}
    assert len(keys) == 6
    assert dataclasses.replace(asked, seed=99).key == asked.key
    assert dataclasses.replace(open_one, seed=99).key != open_one.key


@pytest.mark.parametrize("answer", ["x" * 300, ""])
def test_a_response_ends_where_the_context_does(tiny_lm, answer):
    prompt = Prompt("user", "7" * (CONTEXT - 5), answer, 1)
    found = next(documents(tiny_lm, [("test", prompt)], Responses(max_new_tokens=80)))
    assert found.prompt_tokens == CONTEXT - 4
    assert len(found.ids) <= CONTEXT + bool(answer)


@pytest.mark.parametrize("text", ["", "  ", "7" * CONTEXT])
def test_prompts_that_do_not_fit_are_refused(tiny_lm, text):
    with pytest.raises(BadValueError, match="prompt"):
        prompt_documents(tiny_lm, [ASKED, ("test", Prompt("user", text, "", 1))])


def test_unknown_modes_and_splits_and_lengths_are_refused(tiny_lm):
    with pytest.raises(UnknownNameError, match="unknown mode 'forced'"):
        Responses("forced")
    with pytest.raises(BadValueError, match="max_new_tokens is 0"):
        Responses(max_new_tokens=0)
    with pytest.raises(UnknownNameError, match="unknown split 'tests'"):
        prompt_documents(tiny_lm, [("tests", OPEN[1])])


@pytest.mark.parametrize("mode", MODES)
def test_windows_hold_consecutive_tokens_of_one_text(tiny_lm, mode):
    found = text_documents(tiny_lm, TEXTS, Responses(mode, 20), prompt_tokens=10, most=10_000)
    whole = [[*tiny_lm.tokenizer.encode(text), END] for text in TEXTS]
    for document in found:
        assert document.ids[0] == END
        assert (document.prompt_tokens, document.kind) == (11, "text")
        assert document.sampled == (mode == "free-running")
        window = list(document.ids[1:])
        assert any(window == ids[at : at + len(window)] for ids in whole for at in range(0, len(ids), 30))
        assert len(window) == 10 if document.sampled else 18 <= len(window) <= 30
    expected = sum(len(ids) // 30 + (len(ids) % 30 >= 18) for ids in whole)
    assert len(found) == len({document.key for document in found}) == expected


def test_windows_are_spread_over_texts_and_places_and_do_not_depend_on_the_order(tiny_lm):
    responses = Responses(max_new_tokens=20)
    few = text_documents(tiny_lm, TEXTS, responses, prompt_tokens=10, most=30)
    assert few == text_documents(tiny_lm, TEXTS[::-1], responses, prompt_tokens=10, most=30)
    assert few == text_documents(tiny_lm, [*TEXTS, *TEXTS], responses, prompt_tokens=10, most=30)
    places = set()
    texts = set()
    for document, (number, text) in itertools.product(few, enumerate(TEXTS)):
        ids = [*tiny_lm.tokenizer.encode(text), END]
        if (at := next((a for a in range(0, len(ids), 30) if ids[a : a + 30] == list(document.ids[1:])), None)) is not None:
            texts.add(number)
            places.add(at)
    assert len(texts) == 30
    assert len(places) > 3


def test_the_windows_of_a_text_share_its_split(tiny_lm):
    found = text_documents(tiny_lm, TEXTS, Responses(max_new_tokens=10), prompt_tokens=5, most=10_000)
    counts = {split: sum(d.split == split for d in found) for split in SPLITS}
    assert counts["train"] > counts["validation"] > 0
    assert counts["test"] > 0
    for text in TEXTS[::9]:
        assert len({d.split for d in text_documents(tiny_lm, [text], Responses(max_new_tokens=10), prompt_tokens=5)}) == 1
    assert {d.split for d in text_documents(tiny_lm, TEXTS, prompt_tokens=5, split="test")} == {"test"}


def test_windows_fill_the_context_at_most(tiny_lm):
    long = "abcdefghij" * 60
    found = text_documents(tiny_lm, [long], Responses(max_new_tokens=1000), prompt_tokens=16)
    assert max(len(document.ids) for document in found) == CONTEXT + 1


def test_text_that_gives_no_window_is_refused(tiny_lm):
    with pytest.raises(BadFileError, match="longer than 40 tokens"):
        text_documents(tiny_lm, ["too short"])
    for tokens in (0, CONTEXT):
        with pytest.raises(BadValueError, match=f"{tokens} prompt tokens"):
            text_documents(tiny_lm, TEXTS, prompt_tokens=tokens)
    with pytest.raises(BadValueError, match="0 windows"):
        text_documents(tiny_lm, TEXTS, most=0)
    with pytest.raises(UnknownNameError, match="split"):
        text_documents(tiny_lm, TEXTS, split="rest")


def test_a_model_without_an_end_gives_answers_without_one():
    lm = tiny_language_model(end_ids=frozenset(), start_ids=())
    found = prompt_documents(lm, [ASKED])[0]
    assert found.ids == tuple(lm.tokenizer.encode("1 + 1 = 2."))
    assert len(respond(lm, [4, 5], 12, Sampling(), 0)) == 12


def test_a_greedy_response_is_what_the_model_generates(lm):
    ids = torch.tensor([lm.encode("Once upon a time there was a little")])
    with torch.inference_mode():
        out = lm.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=10,
            eos_token_id=list(lm.end_ids),
            pad_token_id=0,
        )
    assert respond(lm, ids[0].tolist(), 10, Sampling(0.0), 0) == out[0, ids.shape[1] :].tolist()
