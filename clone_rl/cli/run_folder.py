"""Run folders: the resolved configuration, the exact command, and everything that a run leaves behind."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clone_rl.cli.text import as_text
from clone_rl.errors import BadFileError, BadValueError, RunExistsError
from clone_rl.files import WriteError, replacing, writing
from clone_rl.version import __version__

POLICY = "policy.safetensors"
"""What training leaves, with its card beside it."""


def command_line() -> str:
    """What the user typed, quoted so that it can be typed again."""
    return shlex.join(["clone-rl", *(as_text(word) for word in sys.argv[1:])]).encode("utf-8", "replace").decode()


def write_json(path: Path, content: Any) -> None:
    """Write JSON; the file appears complete or not at all."""
    with replacing(path) as aside:
        aside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def create_run(folder: Path, config: Mapping[str, Any], remedy: str = "choose another --name, or --resume it") -> Path:
    """Make a new run folder with ``config.json`` and ``command.txt``; ``remedy`` is for one that is there already.

    Raises:
        RunExistsError: It is there already.
    """
    try:
        with writing(folder):
            folder.mkdir(parents=True)
    except WriteError:
        if not folder.exists():
            raise
        raise RunExistsError(f"run folder {folder} exists", remedy) from None
    try:
        write_json(folder / "config.json", {"version": __version__, **config})
        with replacing(folder / "command.txt") as aside:
            aside.write_text(command_line() + "\n", encoding="utf-8")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def continue_run(folder: Path, config: Mapping[str, Any]) -> str:
    """Give a run another configuration to go on with; the command line is kept beside those before it, and given back."""
    command = f"{read_command(folder)} && {command_line()}"
    write_json(folder / "config.json", config)
    with replacing(folder / "command.txt") as aside:
        aside.write_text(f"{command}\n", encoding="utf-8")
    return command


@contextmanager
def keeping(place: Path | str, command: str) -> Iterator[None]:
    """Says, where a disk is full, what of long work is kept and how to go on.

    Raises:
        WriteError: As it came, with that.
    """
    try:
        yield
    except WriteError as error:
        raise WriteError(error.message, f"{error.hint}; what was reached is in {place}, continue with: {command}") from None


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of an earlier run.

    Raises:
        BadFileError: Not a run folder.
    """
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadFileError(f"{folder} is not a run folder: no config.json") from None
    except OSError as error:
        raise BadFileError(f"cannot read {folder / 'config.json'}: {error.strerror}") from None
    except ValueError as error:
        raise BadFileError(f"{folder / 'config.json'} is not JSON: {error}") from None
    return config


def read_command(folder: Path) -> str:
    """The command that made a run folder; the one that runs now where that was not kept."""
    try:
        return (folder / "command.txt").read_text(encoding="utf-8").strip()
    except OSError:
        return command_line()


def check_output(path: Path) -> Path:
    """A path that a command may write to.

    Raises:
        BadFileError: It exists, or the folder that it would be in does not.
    """
    if path.exists():
        raise BadFileError(f"{path} exists", "choose another file or folder, or remove it")
    if not path.parent.is_dir():
        raise BadFileError(f"no such folder: {path.parent}", "create it first")
    return path


def check_picture(name: str, option: str) -> Path | None:
    """The path of a picture that a command may write, or None where none was asked for.

    Raises:
        BadFileError: As ``check_output``.
        BadValueError: Not a PNG file.
    """
    if not name:
        return None
    if (path := check_output(Path(name))).suffix != ".png":
        raise BadValueError(f"{option} {name}", "a PNG file: end it in .png")
    return path


def free_name(parent: Path, stem: str) -> Path:
    """First of ``stem``, ``stem-2``, ``stem-3``... that does not exist under ``parent``."""
    candidate, number = parent / stem, 2
    while candidate.exists():
        candidate, number = parent / f"{stem}-{number}", number + 1
    return candidate
