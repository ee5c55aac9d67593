"""Whoever watches a terminal is told why nothing happens."""

import os
import subprocess
import sys

import pytest


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_is_told_of_compilation(tmp_path):
    """Once, and not where the code is on disk."""
    import pty

    command = [sys.executable, "-m", "clone_rl.cli.main", "chip", "show", "asic28-sram"]
    told = []
    for _ in range(2):
        ours, theirs = pty.openpty()
        subprocess.run(
            command, stderr=theirs, stdout=subprocess.DEVNULL, check=True, env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
        )
        os.close(theirs)
        try:
            told.append(os.read(ours, 1000).decode())
        except OSError:  # nothing was written
            told.append("")
        os.close(ours)
    assert told == ["clone-rl: compiling for this machine, once: up to a minute\r\n", ""]
