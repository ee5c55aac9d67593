"""Long work in pieces: each is done once, in one process or several, and kept in a journal as soon as it is done."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any, TypeVar

from clone_rl.errors import BadFileError
from clone_rl.files import append_line
from clone_rl.interrupt import postponing

T = TypeVar("T")


class Journal:
    """A file of JSON lines, one for each finished piece; a line that was cut off by a kill counts as never written.

    Args:
        path: The file; None keeps everything in memory.

    Raises:
        BadFileError: The file is something else.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path, self.known = path, dict[str, Any]()
        if path is None or not path.exists():
            return
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
            if not line.endswith(b"\n"):
                with path.open("r+b") as file:
                    file.truncate(path.stat().st_size - len(line))
                break
            try:
                entry = json.loads(line)
                self.known[entry["key"]] = entry["content"]
            except (ValueError, KeyError, TypeError):
                raise BadFileError(f"{path}: line {number} is not of a journal", "remove it, or start anew") from None

    def add(self, key: str, content: Any) -> None:
        """Keep a finished piece: it is on disk when this returns."""
        with postponing():
            self.known[key] = content
            if self.path is not None:
                append_line(self.path, json.dumps({"key": key, "content": content}))


def _leave_with(parent: int) -> None:
    """End this process when the one that started it has ended, and leave Ctrl-C to that one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def each_once(
    tasks: Mapping[str, T],
    work: Callable[[T], Any],
    journal: Journal,
    jobs: int = 1,
    advance: Callable[[], object] = lambda: None,
) -> None:
    """Do what the journal does not have yet.

    Args:
        tasks: By key, which identifies everything that the result depends on.
        work: Gives plain data; a function of a module where there are several jobs.
        journal: Where results go.
        jobs: Processes; 1 works in this one.
        advance: Called after each piece (a progress bar).

    Raises:
        KeyboardInterrupt: Ctrl-C; what is finished is in the journal, and no process is left.
    """
    left = {key: task for key, task in tasks.items() if key not in journal.known}
    if jobs == 1 or len(left) < 2:
        for key, task in left.items():
            journal.add(key, work(task))
            advance()
        return
    before = set(active_children())
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), _leave_with, (os.getpid(),))
    try:
        waiting = {pool.submit(work, task): key for key, task in left.items()}
        while waiting:
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                journal.add(waiting.pop(future), future.result())
                advance()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(active_children()) - before:
            process.terminate()
        raise
    pool.shutdown()
