"""Devices that are given back at the end of a ``with`` block."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from clone_rl.errors import DeviceError


class Closing:
    """A context manager around ``close``; where a block fails and closing does too, its error carries the other as a note."""

    def close(self) -> None:
        """Give the device back; harmless when repeated.

        Raises:
            DeviceError: It refuses.
        """
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.close()
        except DeviceError as left:
            if error is None:
                raise
            error.add_note(str(left))
