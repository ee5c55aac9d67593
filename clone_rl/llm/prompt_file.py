"""Files of prompts: one a line, or JSON lines with a ``prompt`` field."""

from __future__ import annotations

import json
import re
from pathlib import Path

from clone_rl.errors import BadFileError
from clone_rl.llm.prompts import Prompt


def read_prompts(path: Path) -> list[Prompt]:
    """Read the prompts of a file.

    A ``.jsonl`` file, or one whose first line starts with ``{``, holds JSON objects with ``prompt`` and, where wanted, an
    exact ``answer``, a ``kind`` and a ``split``; any other file holds one prompt a line. Blank lines are skipped.

    Raises:
        BadFileError: The file is missing, empty or binary, or a line is broken (its number is named).
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise BadFileError(f"no such prompt file: {path}", "a prompt a line, or JSON lines with a 'prompt' field") from None
    except OSError as error:
        raise BadFileError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadFileError(f"{path} is not a text file", "write UTF-8 text, one prompt a line, or JSON lines") from None
    if "\0" in text:
        raise BadFileError(f"{path} is not a text file", "write UTF-8 text, one prompt a line, or JSON lines")
    lines = [(number, line) for number, line in enumerate(re.split("\r\n|\n|\r", text), 1) if line.strip()]
    if not lines:
        raise BadFileError(f"{path} has no prompts", "write one prompt a line, or JSON lines with a 'prompt' field")
    if path.suffix != ".jsonl" and not lines[0][1].lstrip().startswith("{"):
        return [Prompt("user", line.strip(), "", number) for number, line in lines]
    prompts = []
    for number, line in lines:
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise BadFileError(f"{path}, line {number}: not JSON: {error}") from None
        if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str) or not entry["prompt"].strip():
            raise BadFileError(f"{path}, line {number}: no 'prompt' string", 'write {"prompt": "..."}')
        if not isinstance(entry.get("answer", ""), str):
            raise BadFileError(f"{path}, line {number}: 'answer' is not a string")
        kind, split = str(entry.get("kind", "user")), str(entry.get("split", ""))
        prompts.append(Prompt(kind, entry["prompt"], entry.get("answer", ""), number, split))
    return prompts
