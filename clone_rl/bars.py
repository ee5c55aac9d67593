"""Progress bars on stderr, which Ctrl-C stops between two steps."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Self

from clone_rl.interrupt import postponing, stop_here

if TYPE_CHECKING:
    from tqdm import tqdm
else:
    try:
        from tqdm import tqdm
    except ImportError:

        class tqdm:  # noqa: N801
            """As much of tqdm as is used here, and shows nothing: a bar is no reason to install something."""

            def __init__(self, iterable: Iterable[Any] = (), total: int | None = None, **options: Any) -> None:
                self.iterable, self.total, self.n = iterable, total, options.get("initial", 0)

            def __iter__(self) -> Iterator[Any]:
                for item in self.iterable:
                    yield item
                    self.n += 1

            def __enter__(self) -> Self:
                return self

            def __exit__(self, *_: object) -> None:
                self.close()

            def update(self, n: float | None = 1) -> bool | None:  # noqa: D102
                self.n += n or 0

            def set_postfix(self, *_: object, **_values: object) -> None: ...  # noqa: D102

            def close(self) -> None: ...  # noqa: D102


class Bar(tqdm):  # type: ignore[type-arg]
    """A tqdm bar on stderr; nothing is shown where tqdm is not installed.

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
