"""Training text: any folder of .txt, .md and question/answer .jsonl files, cleaned and split by document."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from clone_rl.errors import BadFileError

HELD_OUT_OF_1000 = 20
"""Documents per thousand that validation keeps, chosen by a hash of their text."""

_FOLD = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2014": "--", "\u2013": "-", "\u2026": "..."}
)


def clean(text: str) -> str:
    """ASCII-fold, drop Markdown headings and licence lines, and join what is left into paragraphs."""
    text = unicodedata.normalize("NFKD", text.translate(_FOLD)).encode("ascii", "ignore").decode()
    lines = [line for line in text.splitlines() if not re.match(r"\s*(#|\* (License|Text|Illustration|Language))", line)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _text(path: Path) -> str:
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        at = error.start
        raise BadFileError(
            f"{path}: byte {raw[at]:#04x} at offset {at} is not UTF-8", "convert the file, or move it out of the folder"
        ) from None


def _documents(path: Path) -> Iterator[str]:
    text = _text(path)
    if path.suffix == ".jsonl":
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise BadFileError(f"{path}, line {number}: not JSON: {error}") from None
            if not isinstance(record, dict):
                raise BadFileError(f"{path}, line {number}: not an object", 'write {"question": "...", "answer": "..."}')
            if {"question", "answer"} <= record.keys():
                if not (isinstance(record["question"], str) and isinstance(record["answer"], str)):
                    raise BadFileError(f"{path}, line {number}: 'question' and 'answer' are strings")
                answer = re.sub(r"<<.*?>>", "", record["answer"]).replace("\n#### ", " The answer is ")
                yield clean(f"{record['question']}\nAnswer: {answer}.".replace(".\n", ". "))
    else:
        parts = re.split(r"\n\s*\n\s*\n", text) if path.suffix == ".txt" else [text]
        yield from (clean(part) for part in parts)


def held_out(document: str) -> bool:
    """Whether a document belongs to validation: a property of its text alone."""
    return int.from_bytes(hashlib.sha1(document.encode()).digest()[:4]) % 1000 < HELD_OUT_OF_1000


def read_documents(folder: Path) -> list[str]:
    """All cleaned documents of at least 200 characters under a folder, in a fixed order.

    Raises:
        BadFileError: The folder is missing, or a file in it is not text, with the place.
    """
    if not folder.is_dir():
        raise BadFileError(f"no such folder: {folder}", "give a folder with .txt, .md or question/answer .jsonl files")
    paths = sorted(p for p in folder.rglob("*") if p.suffix in {".txt", ".md", ".jsonl"} and p.is_file())
    return [document for path in paths for document in _documents(path) if len(document) >= 200]


def read_corpus(folder: Path) -> tuple[list[str], list[str]]:
    """All documents under a folder, in a fixed order.

    Returns:
        ``(train, validation)`` lists of cleaned documents of at least 200 characters.

    Raises:
        BadFileError: The folder is missing, a file in it is not text, or there is too little of it.
    """
    train: list[str] = []
    validation: list[str] = []
    for document in read_documents(folder):
        (validation if held_out(document) else train).append(document)
    if not train or not validation:
        raise BadFileError(f"{folder} holds too little text", "at least a few hundred documents of 200 characters are needed")
    return train, validation
