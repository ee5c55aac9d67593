"""Running an exported header: compiled by the C compiler at hand, in a folder that is thrown away."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clone_rl.errors import CloneRLError

FLAGS = ("-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-pedantic")

_LOOP = """
#include "policy.h"

void run({kind} *observations, long rows, int *actions)
{{
    for (long i = 0; i < rows; i++)
        {call};
}}
"""


def find_compiler() -> str | None:
    """The C compiler of ``CC``, or ``cc`` or ``gcc``; None where there is none."""
    named = os.environ.get("CC")
    return next((found for name in ([named] if named else ["cc", "gcc"]) if (found := shutil.which(name))), None)


class CompiledPolicy:
    """An exported header as a shared library.

    Args:
        header: Its text.
        heads: Action components.
        kind: C type of what it reads: ``float`` or ``int16_t``.
        compiler: Path of a C compiler.

    Raises:
        CloneRLError: It does not compile.
    """

    def __init__(self, header: str, heads: int, kind: str, compiler: str) -> None:
        self._heads = heads
        self._kind: np.dtype[Any] = np.dtype(np.float32 if kind == "float" else np.int16)
        at = "observations + i * CLONE_RL_INPUTS"
        call = f"actions[i] = clone_rl_decide({at})" if heads == 1 else f"clone_rl_decide({at}, actions + i * CLONE_RL_HEADS)"
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "policy.h").write_text(header, encoding="utf-8")
            (folder / "loop.c").write_text(_LOOP.format(kind=f"const {kind}", call=call), encoding="utf-8")
            command = [compiler, *FLAGS, "-shared", "-fPIC", "loop.c", "-o", "loop.so", "-lm"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
            if done.returncode:
                said = (done.stderr.strip().splitlines() or ["no output"])[0]
                raise CloneRLError(f"{compiler} does not compile the header: {said}", "set CC to a C99 compiler")
            self._run = ctypes.CDLL(str(folder / "loop.so")).run  # stays loaded when the file is gone
        self._run.argtypes = [ctypes.c_void_p, ctypes.c_long, ctypes.c_void_p]
        self._run.restype = None

    def act(self, inputs: NDArray[np.float32] | NDArray[np.int16]) -> NDArray[np.int64]:
        """(N, heads) actions for (N, width) observations as the header reads them."""
        inputs = np.ascontiguousarray(inputs, self._kind)
        actions = np.empty((len(inputs), self._heads), np.intc)
        self._run(inputs.ctypes.data, len(inputs), actions.ctypes.data)
        return actions.astype(np.int64)
