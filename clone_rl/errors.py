"""Errors written for people: what was wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class CloneRLError(Exception):
    """Base of every error that bad input can cause.

    Args:
        message: What is wrong, naming the offending value and, where there is one, the file.
        hint: What the user can do about it; empty when there is nothing to add.
        in_code: What besides a program can do, in arguments that the command line does not have and so does not show.

    Attributes:
        kind: Stable machine-readable name of the error class, as printed by ``--json``.
    """

    kind = "error"

    def __init__(self, message: str, hint: str = "", in_code: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.in_code = in_code

    def __str__(self) -> str:
        remedy = "; ".join(part for part in (self.hint, self.in_code) if part)
        return f"{self.message} ({remedy})" if remedy else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # Subclasses have arguments of their own; what came out of them is what another process gets.
        return _again, (type(self), vars(self))


def _again(kind: type[CloneRLError], state: dict[str, Any]) -> CloneRLError:
    error = kind.__new__(kind, state["message"])
    vars(error).update(state)
    return error


class UnknownNameError(CloneRLError):
    """A name that is not in the list of known ones; suggests the nearest, or lists them where none is near.

    Args:
        what: Kind of name.
        name: What was given.
        known: What is known.
        also: What would have been accepted besides, for example "or a path that ends in .toml".
    """

    kind = "unknown_name"

    def __init__(self, what: str, name: str, known: Iterable[str], also: str = "") -> None:
        known = sorted(known)
        near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        super().__init__(
            f"unknown {what} {name!r}", f"{hint}{', ' if also.startswith('or ') and not near else ' '}{also}".strip()
        )


class BadFileError(CloneRLError):
    """A file or folder that is missing, unreadable, malformed or of the wrong kind."""

    kind = "bad_file"


class BadValueError(CloneRLError):
    """A value outside what its field, argument or space allows."""

    kind = "bad_value"


class PolicyFileError(BadFileError):
    """A policy file that is truncated, altered, or made for another observation or action space."""

    kind = "bad_policy"


class MisfitError(PolicyFileError, BadValueError):
    """A controller that was made for another chip, model or scenario than it is given."""


class RunExistsError(CloneRLError):
    """A run folder that already holds something: nothing is overwritten silently."""

    kind = "run_exists"


class UnsupportedModelError(CloneRLError):
    """A language model whose layers cannot be run one at a time, with the reason."""

    kind = "unsupported_model"


class MissingExtraError(CloneRLError):
    """An optional dependency that the called feature needs and that is not installed."""

    kind = "missing_extra"


class StoppedError(CloneRLError):
    """Stopped by the user, with what is left and how to go on."""

    kind = "interrupted"


class DeviceError(CloneRLError):
    """Hardware that is missing, may not be used, or refuses what it was told."""

    kind = "device"


def reason(error: Exception) -> str:
    """What an error says to people, without the number and the path that the system's errors carry.

    >>> reason(IsADirectoryError(21, "Is a directory", "my-chip.toml"))
    'Is a directory'
    """
    said = str(getattr(error, "strerror", None) or error)
    return "it holds Python objects, which are not read" if "allow_pickle" in said else said  # NumPy's words to programmers
