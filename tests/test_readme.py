"""What the README shows runs."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_python_blocks_of_the_readme_run(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})


def test_the_readme_has_the_three_jobs_and_names_only_files_that_exist():
    text = README.read_text(encoding="utf-8")
    assert len(BLOCKS) == 3
    for path in re.findall(r"`(clone_rl/[\w./-]+)`", text) + re.findall(r"\]\((docs/[\w.]+)\)", text):
        if not path.startswith(("clone_rl/LayerControl", "clone_rl/TokenControl")):
            assert (README.parent / path).exists(), path
