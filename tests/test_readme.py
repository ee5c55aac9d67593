"""What the README and the pages beside it show runs."""

import re
import shlex
from pathlib import Path

import pytest

from clone_rl.cli.main import main

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
SHOWN = (README, *(ROOT / "docs" / page for page in ("emulator.md", "environment.md", "llm.md")))
PAGES = {path.name: path.read_text(encoding="utf-8") for path in SHOWN}
BLOCKS = [block for page in PAGES.values() for block in re.findall(r"```python\n(.*?)```", page, re.S)]
CHIP_LINES = sorted(
    {line.split("#")[0].strip() for page in PAGES.values() for line in re.findall(r"^clone-rl chip .*$", page, re.M)}
)


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_python_blocks_run(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})


@pytest.mark.parametrize("line", CHIP_LINES)
def test_chip_commands_run(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text((ROOT / "clone_rl" / "llm" / "embedded" / "config.json").read_text())
    code = main(shlex.split(line)[1:])
    assert code == (1 if "validate" in line else 0)  # six checks are out of tolerance, see docs/emulator.md
    assert capsys.readouterr().out.count("\n") > 5


def test_the_readme_has_the_three_jobs_and_names_only_files_that_exist():
    text = PAGES[README.name]
    assert all(f"### {number}. " in text for number in (1, 2, 3))
    assert len(BLOCKS) == 11
    for path in re.findall(r"`(clone_rl/[\w./-]+)`", text) + re.findall(r"\]\((docs/[\w.]+)\)", text):
        if not path.startswith(("clone_rl/LayerControl", "clone_rl/TokenControl", "clone_rl/LiveLayerControl")):
            assert (ROOT / path).exists(), path
