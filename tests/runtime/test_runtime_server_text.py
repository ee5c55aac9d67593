"""Pieces of text and stop strings."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clone_rl.runtime.server.text_stream import TextStream


def bytewise(ids):
    """A tokenizer whose tokens are bytes."""
    return bytes(ids).decode("utf-8", "replace")


def pieces(text, stops=()):
    stream = TextStream(bytewise, stops)
    found = []
    for token in text.encode():
        found.append(stream.push(token))
        if stream.stopped:
            break
    return [*found, stream.finish()], stream


@given(st.text(max_size=40).filter(lambda text: "\N{REPLACEMENT CHARACTER}" not in text))
def test_pieces_add_up_and_never_split_a_character(text):
    found, _ = pieces(text)
    assert "".join(found) == text


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_text_ends_before_the_first_stop_string_and_nothing_of_it_was_shown(text, stops):
    found, stream = pieces(text, stops)
    # The first to be complete ends the response; of those that are complete with one token, the one that begins first.
    ends = [at for at in range(1, len(text) + 1) if any(text[:at].endswith(stop) for stop in stops)]
    expected = text if not ends else text[: min(at for stop in stops if (at := text[: ends[0]].find(stop)) >= 0)]
    assert "".join(found) == expected
    assert stream.stopped == bool(ends)


def test_what_may_become_a_stop_string_is_held_back_until_it_is_known():
    stream = TextStream(bytewise, ["END"])
    assert [stream.push(ord(c)) for c in "xENxEN"] == ["x", "", "", "ENx", "", ""]
    assert stream.finish() == "EN"


def test_half_a_character_at_the_end_is_shown_as_such():
    stream = TextStream(bytewise)
    assert [stream.push(token) for token in "é".encode()[:1]] == [""]
    assert stream.finish() == "\N{REPLACEMENT CHARACTER}"


def test_nothing_comes_after_a_stop():
    stream = TextStream(bytewise, ["b"])
    assert [stream.push(ord(c)) for c in "abc"] == ["a", "", ""]
    assert stream.finish() == ""


@pytest.mark.parametrize("stops", [(), ("\n",)])
def test_text_is_that_of_the_embedded_tokenizer(stops):
    from clone_rl.llm.model import load_model

    lm = load_model()
    text = "The old king said: “héllo, 42 - naïve 😀!”"
    stream = TextStream(lm.decode, stops)
    found = [stream.push(token) for token in lm.encode(text)[1:]] + [stream.finish()]
    assert "".join(found) == text
    assert sum(map(bool, found)) > 10
