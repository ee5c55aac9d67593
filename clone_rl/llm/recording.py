"""A recording on disk: what is finished is kept, so that it can be interrupted at any moment, continued, and added to."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from clone_rl.envs.trace import FORMAT, PER_TOKEN, TraceSet, load_traces
from clone_rl.errors import BadFileError, BadValueError
from clone_rl.files import replacing, writing
from clone_rl.llm.documents import Document, Responses
from clone_rl.llm.model import LanguageModel
from clone_rl.llm.record import Columns, check_alike, join, keys_of, origin, record
from clone_rl.version import __version__

_ABOUT = "recording.json"


class Unfinished:
    """Columns of the documents recorded so far, by key of the document: a file each in a folder.

    Args:
        folder: Made where it is not there.
        about: What a recording that continues has in common with the one that began.

    Raises:
        BadFileError: The folder holds something else, or the beginning of another recording.
    """

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.folder = folder
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        if not (folder / _ABOUT).exists():
            if any(not path.name.startswith(".") for path in folder.iterdir()):
                raise BadFileError(f"{folder} is not an unfinished recording", "remove it, or choose another --out")
            with replacing(folder / _ABOUT) as aside:
                aside.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        try:
            begun = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
            differing = [name for name, value in about.items() if begun.get(name) != value]
        except (ValueError, AttributeError):
            raise BadFileError(f"{folder / _ABOUT} is damaged", f"remove {folder} and start again") from None
        if differing:
            raise BadFileError(
                f"{folder} is an unfinished recording with another {differing[0].replace('_', ' ')}",
                "repeat the command that began it, remove the folder, or choose another --out",
            )

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.npz"

    def __contains__(self, key: str) -> bool:
        try:
            return self[key].keys() == set(PER_TOKEN)
        except (OSError, EOFError, ValueError, BadZipFile):  # missing, or cut off by a machine that went down
            return False

    def __getitem__(self, key: str) -> Columns:
        with np.load(self._path(key), allow_pickle=False) as columns:
            return dict(columns)

    def __setitem__(self, key: str, columns: Columns) -> None:
        with replacing(self._path(key)) as aside, aside.open("wb") as file:
            np.savez(file, allow_pickle=False, **columns)

    def finish(self, traces: TraceSet, out: Path) -> None:
        """Put the complete set in its place, in that of an earlier one if there is one, and remove the folder."""
        ready = self.folder / "ready"
        shutil.rmtree(ready, ignore_errors=True)
        traces.save(ready)
        if out.exists():
            out.rename(_earlier(self.folder))
        ready.rename(out)
        shutil.rmtree(self.folder)


def _earlier(folder: Path) -> Path:
    return folder / "earlier"


def record_to(
    out: Path,
    lm: LanguageModel,
    documents: Sequence[Document],
    responses: Responses | None = None,
    append: bool = False,
    command: str = "",
    quiet: bool = False,
) -> tuple[TraceSet, int]:
    """Record into a folder, by way of ``OUT.partial``; the same call continues what an earlier one left there.

    Args:
        out: Folder to create, or one to add to.
        lm: The model, with its probe.
        documents: What to record.
        responses: How responses are drawn.
        append: Add to the set that is there; documents that it has already are left out.
        command: What the user ran, for the card.
        quiet: No progress bar.

    Returns:
        The whole set, and how many documents are new in it.

    Raises:
        BadFileError: ``out`` exists (or does not, to append to it), or ``OUT.partial`` is of another recording.
        BadValueError: As ``record``, or the set is of another model, precision, probe or sampling.
    """
    if not documents:
        raise BadValueError("no prompts", "give at least one")
    responses, folder = responses or Responses(), out.with_name(f"{out.name}.partial")
    if _earlier(folder).exists() and not out.exists():  # stopped just between taking one away and putting the other there
        _earlier(folder).rename(out)
    if out.exists() and not append:
        raise BadFileError(f"{out} exists", "choose another folder, remove it, or add to it with --append")
    if append and not out.exists():
        raise BadFileError(f"no trace set {out} to append to", "leave --append out to record a new one")
    before = load_traces(str(out.resolve())) if append else None
    same = origin(lm, responses)
    if before:
        check_alike(before.card, same, str(out))
    known = set(keys_of(before)) if before else set()
    fresh = list({document.key: document for document in documents if document.key not in known}.values())
    if before and not fresh:
        return before, 0
    about = {
        "format": FORMAT,
        "version": __version__,
        **same,
        "mode": responses.mode,
        "max_new_tokens": responses.max_new_tokens,
        "prompts_sha256": hashlib.sha256(" ".join(document.key for document in fresh).encode()).hexdigest(),
        "appended_to": before.card["sha256"] if before else "",
    }
    kept = Unfinished(folder, about)
    traces = record(lm, fresh, responses, command, kept, quiet)
    whole = join(before, traces) if before else traces
    kept.finish(whole, out)
    return whole, len(fresh)
