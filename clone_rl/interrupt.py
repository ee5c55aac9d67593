"""Ctrl-C where it does no harm: it waits for a place to stop, instead of landing wherever the program happens to be."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

_AGAIN_S = 0.02


@dataclass
class _Waiting:
    active: bool = False
    asked: bool = False


_waiting = _Waiting()


@contextmanager
def postponing() -> Iterator[None]:
    """Ctrl-C waits for the next ``stop_here``, or for the end of the block; a second one waits for nothing.

    Blocks may be nested; the outermost counts. Without effect outside the main thread, and where the host program has a
    handler of its own.

    Raises:
        KeyboardInterrupt: At the end of a block in which Ctrl-C came.

    >>> with postponing():
    ...     stop_here()
    """
    ours = threading.current_thread() is threading.main_thread()
    if _waiting.active or not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    before = signal.signal(signal.SIGINT, _note)
    _waiting.active, _waiting.asked = True, False
    try:
        yield
        asked = _waiting.asked
    finally:
        _waiting.active = _waiting.asked = False
        signal.signal(signal.SIGINT, before)
    if asked:
        raise KeyboardInterrupt


def _note(_number: int, _frame: Any) -> None:
    if _waiting.asked:
        raise KeyboardInterrupt
    _waiting.asked = True


def stop_here() -> None:
    """A place where stopping does no harm.

    Raises:
        KeyboardInterrupt: Ctrl-C came in this block of ``postponing``.
    """
    if _waiting.asked:
        _waiting.asked = False
        raise KeyboardInterrupt


def install_again() -> None:
    """From now on, a Ctrl-C that lands where Python prints it and goes on, as in ``__del__``, comes again a moment later."""
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            main = threading.main_thread().ident or 0
            again = threading.Timer(_AGAIN_S, signal.pthread_kill, (main, signal.SIGINT))
            again.daemon = True
            with suppress(RuntimeError):  # Python is about to end, and the program with it
                again.start()
        else:
            before(unraisable)

    sys.unraisablehook = hook
