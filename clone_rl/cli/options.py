"""Command-line options from dataclasses: the field docs are the help."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import fields
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

T = TypeVar("T")


Job = Callable[[argparse.Namespace], dict[str, Any] | tuple[dict[str, Any], int]]
"""What a command does with its options: what it found, and an exit code where it is one that judges."""


def add_command(commands: Any, name: str, text: str, job: Job) -> argparse.ArgumentParser:
    """A parser for one command among ``commands``, with ``--json`` and the job that it stands for."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else there")
    parser.set_defaults(job=job)
    return parser


def add_any_model(parser: argparse.ArgumentParser) -> None:
    """The option to try a policy on another model than its own."""
    parser.add_argument("--any-model", action="store_true", help="run a policy that was trained on another model as well")


def field_docs(cls: type[Any]) -> dict[str, str]:
    """Text of each field in the ``Attributes`` section of a class docstring."""
    section = (cls.__doc__ or "").partition("Attributes:")[2].partition("Raises:")[0]
    found = re.findall(r"^\s+(\w+): (.+(?:\n {12,}.+)*)", section, re.M)
    return {name: re.sub(r"\s+", " ", text).rstrip(".") for name, text in found}


def add_fields(parser: argparse.ArgumentParser, cls: type[Any]) -> None:
    """One ``--option`` for every field, with its doc, type and default; those that are not given leave no trace."""
    docs, hints = field_docs(cls), get_type_hints(cls)
    for field in fields(cls):
        if hints[field.name] is bool:
            parser.add_argument(
                f"--{field.name.replace('_', '-')}", action="store_true", default=argparse.SUPPRESS, help=docs[field.name]
            )
            continue
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=_parser_of(hints[field.name]),
            default=argparse.SUPPRESS,
            help=f"{docs[field.name]} (default: {field.default!r})".replace("%", "%%"),
        )


def _parser_of(hint: Any) -> Any:
    """What parses a field: its type, or that beside None."""
    return next((kind for kind in get_args(hint) if kind is not NoneType), hint)


def from_options(cls: type[T], options: argparse.Namespace) -> T:
    """The dataclass that the parsed options describe."""
    given = vars(options)
    return cls(**{field.name: given[field.name] for field in fields(cls) if field.name in given})  # type: ignore[arg-type]
