"""Running the command line in this process, in a folder of its own.

A plugin of the tests beside it: PYTEST_DONT_REWRITE.
"""

import json
import sys
from dataclasses import dataclass

import pytest
import torch

from clone_rl.cli.main import main

torch.set_num_threads(1)


@dataclass
class Done:
    """What a command left: exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        """The one JSON object that stdout has to be."""
        assert self.code == 0, self.err
        assert self.out.count("\n") == 1
        return json.loads(self.out)

    @property
    def error(self):
        """The error in the last line of stderr."""
        assert self.out == ""
        assert self.code != 0
        last = json.loads(self.err.splitlines()[-1])
        assert set(last) == {"error"}
        assert set(last["error"]) == {"kind", "message", "hint"}
        return last["error"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def run_cli(capsys, monkeypatch, here):
    """Run ``clone-rl`` with these arguments; an escaped exception fails the test, as it would be a traceback."""
    monkeypatch.setattr(sys, "argv", ["clone-rl"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run(*arguments):
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture
def snapshot(here):
    """Every file below the current folder with its content; called again, it must give the same."""
    return lambda: {p.relative_to(here): p.read_bytes() if p.is_file() else None for p in here.rglob("*")}
