import hashlib
import json

import pytest

from clone_rl.errors import BadFileError
from clone_rl.llm.corpus import HELD_OUT_OF_1000, clean, held_out, read_corpus


def document(number):
    return f"Story {number}. " + " ".join(
        f"The {w} went all the way to number {number} and came back again." for w in ("fox", "cat", "hen", "owl")
    )


@pytest.fixture
def folder(tmp_path):
    """Enough text that both sides get some."""
    (tmp_path / "tales").mkdir()
    (tmp_path / "tales" / "b.txt").write_text("\n\n\n".join(document(i) for i in range(200)), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("\u201cOh\u201d \u2014 it\u2019s\u2026", '"Oh" -- it\'s...'),
        ("caf\u00e9 na\u00efve \u4e2d", "cafe naive"),
        ("# Title\ntext\n## More\nend", "text\nend"),
        ("* License: MIT\nkept\n* Text: someone", "kept"),
        ("a\n\n\n\n\nb", "a\n\nb"),
        ("  padded \n", "padded"),
    ],
)
def test_clean(text, cleaned):
    assert clean(text) == cleaned


def test_validation_is_chosen_by_the_text_alone_about_two_percent_of_it():
    documents = [document(i) for i in range(5000)]
    kept = [d for d in documents if held_out(d)]
    digests = [int.from_bytes(hashlib.sha1(d.encode()).digest()[:4], "big") % 1000 for d in documents]
    assert kept == [d for d, h in zip(documents, digests, strict=True) if h < HELD_OUT_OF_1000]
    assert 60 <= len(kept) <= 140


def test_a_folder_is_split_without_overlap_and_the_same_way_each_time(folder):
    train, validation = read_corpus(folder)
    assert sorted(train + validation) == sorted(document(i) for i in range(200))
    assert validation == [d for d in map(document, range(200)) if held_out(d)]
    assert read_corpus(folder) == (train, validation)
    (folder / "a.md").write_text(document(1000), encoding="utf-8")
    more, same = read_corpus(folder)
    assert (more, same) == ([document(1000), *train], validation)


def test_short_documents_and_other_files_are_left_out(folder):
    train, validation = read_corpus(folder)
    (folder / "short.txt").write_text("too short\n\n\n" + "x" * 199, encoding="utf-8")
    (folder / "code.py").write_text(document(7000), encoding="utf-8")
    assert read_corpus(folder) == (train, validation)


def test_markdown_is_one_document_without_its_headings(folder):
    (folder / "story.md").write_text(f"# Title\n\n{document(3000)}\n\n\n\n{document(3001)}\n", encoding="utf-8")
    train, _ = read_corpus(folder)
    assert f"{document(3000)}\n\n{document(3001)}" in train


def test_questions_and_answers_become_prose_without_calculator_marks(folder):
    rows = [
        {
            "question": f"Anna has {i} hats. {document(i)} How many?",
            "answer": f"She has {i}+1=<<{i}+1={i + 1}>>{i + 1}.\n#### {i + 1}",
        }
        for i in range(4000, 4003)
    ]
    (folder / "qa.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    train, validation = read_corpus(folder)
    expected = f"Anna has 4001 hats. {document(4001)} How many?\nAnswer: She has 4001+1=4002. The answer is 4002."
    assert expected in train + validation


def test_rows_without_question_and_answer_are_left_out(folder):
    before = read_corpus(folder)
    (folder / "other.jsonl").write_text(json.dumps({"text": document(9000)}) + "\n", encoding="utf-8")
    assert read_corpus(folder) == before


@pytest.mark.parametrize("line", ['{"question": "half a', "[1, 2]", '{"question": 1, "answer": null}'])
def test_a_broken_line_is_named_with_its_file(folder, line):
    good = json.dumps({"question": document(1), "answer": "1\n#### 1"})
    (folder / "broken.jsonl").write_text(f"{good}\n{line}\n", encoding="utf-8")
    with pytest.raises(BadFileError, match=r"broken\.jsonl.*2"):
        read_corpus(folder)


def test_blank_lines_between_rows_do_no_harm(folder):
    good = json.dumps({"question": document(1), "answer": "1\n#### 1"})
    (folder / "spaced.jsonl").write_text(f"{good}\n\n{good}\n", encoding="utf-8")
    assert sum(len(part) for part in read_corpus(folder)) == 202


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(BadFileError, match=r"no such folder.*nowhere"):
        read_corpus(tmp_path / "nowhere")


@pytest.mark.parametrize("documents", [0, 1])
def test_too_little_text_is_refused(tmp_path, documents):
    for number in range(documents):
        (tmp_path / f"{number}.txt").write_text(document(number), encoding="utf-8")
    with pytest.raises(BadFileError, match="too little text"):
        read_corpus(tmp_path)
