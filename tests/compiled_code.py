"""Where the compiled code of this state of the sources is kept, for the tests and the notebooks alike."""

import hashlib
import os
import tempfile
from pathlib import Path

# Numba's cache does not notice a change in a function that another file calls: key it by all compiled sources.
_COMPILED = ("envs/*.py", "hw_emulator/*.py", "agents/heuristics/*.py", "agents/policy.py", "agents/lut.py")


def keep_compiled_code() -> None:
    """Point ``NUMBA_CACHE_DIR`` at a folder of these sources, unless it is set; before anything imports Numba."""
    package = Path(__file__).parent.parent / "clone_rl"
    sources = sorted(path for part in _COMPILED for path in package.glob(part))
    stamp = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"clone-rl-numba-{stamp}"))
