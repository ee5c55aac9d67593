"""Execute every notebook in a scratch folder, two at a time, and fail if a cell does."""

import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from compiled_code import keep_compiled_code
from nbclient import NotebookClient


def execute(path: Path) -> None:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": scratch}}).execute()
    print(f"{path.name}: {time.monotonic() - began:.0f} s", flush=True)


def main() -> int:
    # The last takes longest.
    notebooks = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"), reverse=True)
    keep_compiled_code()
    # A notebook's shell commands are those of the environment that it runs in.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(execute, notebooks))
    return 0 if notebooks else 1


if __name__ == "__main__":
    sys.exit(main())
