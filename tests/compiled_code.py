"""Where the compiled code of this state of the sources is kept, for the tests and the notebooks alike."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

# Numba's cache does not notice a change in a function that another file calls: key it by all sources of compiled code.
_COMPILED = "envs/*.py", "hw_emulator/*.py", "agents/*.py", "agents/heuristics/*.py", "runtime/*.py", "runtime/export/*.py"
_COMPILES = b"code_cache import", b"compiling import", b"rule import"
_ROOM = 2**28
"""Bytes that the compiled code of all tests takes at most."""


def has_room(folder: str) -> bool:
    """Whether a folder can be made and has space for the compiled code."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"1")
        return shutil.disk_usage(folder).free >= _ROOM
    except OSError:
        return False


def keep_compiled_code() -> None:
    """Point ``NUMBA_CACHE_DIR`` at a folder of these sources, unless one with room is set; before anything imports Numba.

    Where nobody can write to ``HOME`` or where it is full, another one is made: a hundred processes would compile anew or
    complain.
    """
    if not has_room(os.environ.get("HOME") or str(Path.home())):
        home = Path(tempfile.gettempdir()) / f"clone-rl-home-{os.getuid() if hasattr(os, 'getuid') else 'own'}"
        home.mkdir(mode=0o700, exist_ok=True)
        os.environ["HOME"] = str(home)
    if (folder := os.environ.get("NUMBA_CACHE_DIR")) and has_room(folder):
        return
    package = Path(__file__).parent.parent / "clone_rl"
    sources = {path: path.read_bytes() for part in _COMPILED for path in sorted(package.glob(part))}
    lower = package / "envs", package / "hw_emulator"  # constants are compiled into what reads them
    compiled = [text for path, text in sources.items() if path.parent in lower or any(word in text for word in _COMPILES)]
    stamp = hashlib.sha256(b"".join(compiled)).hexdigest()[:16]
    os.environ["NUMBA_CACHE_DIR"] = str(Path(tempfile.gettempdir()) / f"clone-rl-numba-{stamp}")
