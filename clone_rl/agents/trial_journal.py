"""Optuna's journal in a file, in which no line is ever half written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from clone_rl.files import append_line, writing


class TrialJournal(JournalFileBackend):
    """The file of a search; a full disk leaves what was there, so that the search can go on.

    Args:
        path: The file, made if missing.

    Raises:
        WriteError: The disk is full, or there is no permission.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._held = path, JournalFileSymlinkLock(str(path))
        with writing(path):
            super().__init__(str(path), self._held)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add what happened, under the lock that other processes heed."""
        with writing(self._path):
            self._held.acquire()
        try:
            append_line(self._path, "\n".join(json.dumps(log, separators=(",", ":")) for log in logs))
        finally:
            self._held.release()
