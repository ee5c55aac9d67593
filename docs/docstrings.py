"""An extension of griffe: doctests become code, names that share a text get one each, and values keep their comments."""

import re
from typing import Any

import griffe

_DOCTEST = re.compile(r"^[ ]*>>> .*(?:\n(?![ ]*$).*)*", re.M)
"""A doctest: up to the next blank line or the end."""


_SHARED = re.compile(r"^ {4}(\*{0,2}\w+(?:, \*{0,2}\w+)+): (.*(?:\n {8,}.*)*)", re.M)
"""Several arguments, attributes or errors with one text."""


def apart(docstring: str) -> str:
    """A docstring in which each argument, attribute or error has a text of its own."""
    return _SHARED.sub(lambda found: "\n".join(f"    {name}: {found[2]}" for name in found[1].split(", ")), docstring)


def fenced(docstring: str) -> str:
    """A docstring with each doctest in a code block of its own."""
    return _DOCTEST.sub(lambda found: f"```pycon\n{found[0]}\n```", docstring)


class Docstrings(griffe.Extension):
    """What changes while the sources are read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Docstrings of anything."""
        if obj.docstring:
            obj.docstring.value = apart(fenced(obj.docstring.value))

    def on_attribute(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """The source of a value that has comments, which a value alone would lose."""
        if attr.docstring and attr.value is not None and len(attr.lines) > 1 and "#" in attr.source:
            attr.docstring.value += f"\n\n```python\n{attr.source}\n```"
            attr.value = None
