"""Progress bars on stderr, which Ctrl-C stops between two steps."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from clone_rl.interrupt import postponing, stop_here


class Bar(tqdm):  # type: ignore[type-arg]
    """A tqdm bar on stderr.

    Args:
        *args, **options: As of ``tqdm.tqdm``, but for ``file``.

    >>> [item for item in Bar("ab", disable=True)]
    ['a', 'b']
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        with postponing():  # half a bar could not be closed
            super().__init__(*args, **{"file": sys.stderr, **options})

    def __iter__(self) -> Iterator[Any]:
        """The items, with a place to stop before each."""
        for item in super().__iter__():
            stop_here()
            yield item

    def update(self, n: float | None = 1) -> bool | None:
        """Count n more, and stop if asked to."""
        stop_here()
        return super().update(n)
