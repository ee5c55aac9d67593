import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from clone_rl.errors import BadValueError
from clone_rl.llm.model import load_model
from clone_rl.llm.prompts import KINDS, make_prompt
from clone_rl.llm.tokenizer import END, END_ID, Text, load_tokenizer, train_tokenizer

DOCUMENTS = [make_prompt(kind, seed).text for kind in KINDS for seed in range(50)]
FITTED = train_tokenizer(DOCUMENTS, 400)


def tokenizers():
    return {"fitted": FITTED, "embedded": load_model().tokenizer.backend}


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


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_text_and_its_backend_agree_on_plain_text(text):
    codec = Text(FITTED)
    assert codec.encode(text) == FITTED.encode(text).ids
    assert codec.decode(codec.encode(text)) == text.replace(END, "")


def test_text_adds_and_shows_no_special_tokens():
    starting = train_tokenizer(DOCUMENTS, 300)
    starting.post_processor = TemplateProcessing(single=f"{END} $A {END}", special_tokens=[(END, END_ID)])
    codec = Text(starting)
    assert codec.start_ids == (END_ID,)
    assert END_ID not in codec.encode("one two")
    assert codec.decode([END_ID, *codec.encode("one two"), END_ID]) == "one two"
    assert Text(train_tokenizer(DOCUMENTS, 300)).start_ids == ()


def test_added_tokens_do_not_count_as_vocabulary():
    grown = train_tokenizer(DOCUMENTS, 300)
    grown.add_tokens(["<one>", "<two>"])
    assert (Text(grown).size, grown.get_vocab_size()) == (300, 302)


def test_what_is_not_unicode_is_refused_with_its_place():
    with pytest.raises(BadValueError, match=r"cannot be written as UTF-8.*see character 3"):
        Text(FITTED).encode("caf\udce9")
