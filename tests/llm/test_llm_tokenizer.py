import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clone_rl.llm.model import load_model
from clone_rl.llm.prompts import KINDS, make_prompt
from clone_rl.llm.tokenizer import END, END_ID, load_tokenizer, train_tokenizer

DOCUMENTS = [make_prompt(kind, seed).text for kind in KINDS for seed in range(50)]
FITTED = train_tokenizer(DOCUMENTS, 400)


def tokenizers():
    return {"fitted": FITTED, "embedded": load_model().tokenizer}


@pytest.mark.parametrize("name", ["fitted", "embedded"])
@given(text=st.text(max_size=60).filter(lambda t: END not in t))
def test_any_text_comes_back_from_its_tokens(name, text):
    tokenizer = tokenizers()[name]
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == text
    assert END_ID not in ids


@pytest.mark.parametrize("name", ["fitted", "embedded"])
def test_the_end_token_is_number_zero_and_not_shown(name):
    tokenizer = tokenizers()[name]
    assert tokenizer.token_to_id(END) == END_ID == 0
    ids = tokenizer.encode("one two").ids
    assert tokenizer.decode([END_ID, *ids, END_ID]) == "one two"


@pytest.mark.parametrize("name", ["fitted", "embedded"])
def test_no_token_holds_two_digits_or_a_digit_and_something_else_than_a_digit(name):
    tokenizer = tokenizers()[name]
    assert not [t for t in tokenizer.get_vocab() if re.search(r"\d", t) and len(t) > 1 and t != END]
    assert [tokenizer.id_to_token(i) for i in tokenizer.encode("20240719").ids] == list("20240719")


def test_the_vocabulary_has_the_size_that_was_asked_for_and_saves_tokens():
    assert FITTED.get_vocab_size() == 400
    text = DOCUMENTS[0]
    assert len(FITTED.encode(text).ids) < 0.7 * len(text.encode())


def test_a_tokenizer_comes_back_from_its_file(tmp_path):
    FITTED.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert [loaded.encode(d).ids for d in DOCUMENTS] == [FITTED.encode(d).ids for d in DOCUMENTS]
