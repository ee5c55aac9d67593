import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clone_rl.errors import BadFileError
from clone_rl.llm.prompt_file import read_prompts
from clone_rl.llm.prompts import Prompt

LINES = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=30).filter(
    lambda text: text.strip() and not text.strip().startswith(("{", "\ufeff"))
)


@pytest.fixture
def write(tmp_path):
    def write(content, name="prompts.txt"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_a_text_file_has_one_prompt_a_line_and_blank_lines_do_not_count(write):
    prompts = read_prompts(write("Once upon a time\n\n  \n  Anna has 3 apples. \nlast"))
    assert [p.text for p in prompts] == ["Once upon a time", "Anna has 3 apples.", "last"]
    assert prompts[0] == Prompt("user", "Once upon a time", "", 1)
    assert len({p.seed for p in prompts}) == 3


@pytest.mark.parametrize("name", ["prompts.jsonl", "prompts.txt"])
def test_json_lines_may_give_an_answer_and_a_kind(write, name):
    rows = [{"prompt": "1 + 1 =", "answer": " 2.", "kind": "sum"}, {"prompt": "Say\nthis:"}]
    prompts = read_prompts(write("\n".join(map(json.dumps, rows)), name))
    assert prompts[0] == Prompt("sum", "1 + 1 =", " 2.", 1)
    assert prompts[1] == Prompt("user", "Say\nthis:", "", 2)


@given(st.lists(LINES, min_size=1, max_size=5))
def test_any_lines_come_back(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("any") / "prompts.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    assert [p.text for p in read_prompts(path)] == [line.strip() for line in lines]


@given(st.lists(LINES, min_size=1, max_size=5))
def test_any_prompts_come_back_from_json_lines(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("any") / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": line}, ensure_ascii=False) for line in lines), encoding="utf-8")
    assert [p.text for p in read_prompts(path)] == lines


@pytest.mark.parametrize("mark", ["\u2028", "\x85", "\u2029"])
def test_a_json_string_may_hold_characters_that_look_like_line_ends(write, mark):
    text = json.dumps({"prompt": f"one{mark}two"}, ensure_ascii=False)
    assert [p.text for p in read_prompts(write(text, "prompts.jsonl"))] == [f"one{mark}two"]


@pytest.mark.parametrize("name", ["prompts.jsonl", "prompts.txt"])
def test_the_byte_order_mark_of_windows_editors_is_not_part_of_a_prompt(write, name):
    content = '{"prompt": "hello"}\r\n' if name.endswith("jsonl") else "hello\r\n"
    assert [p.text for p in read_prompts(write(b"\xef\xbb\xbf" + content.encode(), name))] == ["hello"]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("", "has no prompts"),
        (" \n\n\t\n", "has no prompts"),
        (b"\xff\xfe\x00\x01", "not a text file"),
        (b"hello\x00world", "not a text file"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "not a text file"),
    ],
)
def test_files_without_text_are_refused(write, content, named):
    with pytest.raises(BadFileError, match=named) as caught:
        read_prompts(write(content))
    assert "prompts.txt" in caught.value.message
    assert "one prompt a line" in caught.value.hint


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('{"prompt": "half', "not JSON"),
        ("plain text", "not JSON"),
        ('"a string"', "no 'prompt'"),
        ("[1]", "no 'prompt'"),
        ('{"text": "x"}', "no 'prompt'"),
        ('{"prompt": 3}', "no 'prompt'"),
        ('{"prompt": " "}', "no 'prompt'"),
        ('{"prompt": "x", "answer": 4}', "'answer' is not a string"),
    ],
)
def test_a_broken_line_is_named_by_its_number_in_the_file(write, line, named):
    with pytest.raises(BadFileError, match=named) as caught:
        read_prompts(write(f'{{"prompt": "fine"}}\n\n{line}\n', "prompts.jsonl"))
    assert "line 3" in caught.value.message


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(BadFileError, match=r"no such prompt file: .*none"):
        read_prompts(tmp_path / "none.txt")
    with pytest.raises(BadFileError, match="cannot read"):
        read_prompts(tmp_path)
