"""Execute every notebook in a scratch folder and fail if a cell does."""

import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def main() -> int:
    notebooks = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
    for path in notebooks:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            notebook = nbformat.read(path, as_version=4)
            NotebookClient(notebook, timeout=300, resources={"metadata": {"path": scratch}}).execute()
        print(f"{path.name}: {time.monotonic() - began:.0f} s")
    return 0 if notebooks else 1


if __name__ == "__main__":
    sys.exit(main())
