"""The parser of every command: bad usage is an error like any other, and names the help of the command at hand."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from clone_rl.errors import BadValueError

_OPTION = re.compile(r"--?[A-Za-z][\w-]*")
_HELP = ("-h", "--help")


_MOST = 2**31 - 1


def _whole(text: str) -> int:
    """A whole number of a size that something can be done so many times."""
    if abs(number := int(text)) > _MOST:
        raise argparse.ArgumentTypeError(f"{text[:60]}{'...' * (len(text) > 60)} is out of range: at most {_MOST}")
    return number


class Parser(argparse.ArgumentParser):
    """Raises instead of exiting; options are written out, and a misspelt one is told before one that is missing."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **settings})
        self.register("type", int, _whole)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:  # type: ignore[override]
        """Parse everything: nothing is left to the command above, which would name its own help.

        Raises:
            BadValueError: An unknown option, or an argument too many.
        """
        args = sys.argv[1:] if args is None else list(args)
        if not set(_HELP) & set(args):
            self._check_options(args)
        found, left = super().parse_known_args(args, namespace)
        if left:
            self.error(f"unrecognized arguments: {' '.join(left)}")
        return found, left

    def error(self, message: str) -> NoReturn:
        """Bad usage.

        Raises:
            BadValueError: Always.
        """
        raise BadValueError(message, f"see {self.prog} --help")

    def _check_options(self, args: Sequence[str]) -> None:
        """Refuse options that this command does not have; those behind the name of a subcommand are not its own."""
        groups = self._subparsers is not None
        for word in args:
            if word == "--" or (groups and not word.startswith("-")):
                return
            if groups and word == "--json":
                continue  # in its wrong place; that a command is missing matters more
            name = word.partition("=")[0]
            if _OPTION.fullmatch(name) and name not in self._option_string_actions:
                self._refuse(f"unknown option {name}", name, self._option_string_actions)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            names = [str(name) for name in action.choices]
            what = action.metavar or "/".join(action.option_strings) or action.dest
            self._refuse(f"{what}: invalid choice: {value!r} (choose from {', '.join(names)})", str(value), names)

    def _refuse(self, message: str, name: str, known: Iterable[str]) -> NoReturn:
        near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
        raise BadValueError(message, f"{f'did you mean {near[0]}? ' if near else ''}see {self.prog} --help")
