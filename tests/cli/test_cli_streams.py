"""Output to terminals of another encoding, to pipes that nobody reads, to full and to closed streams."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import clone_rl
from clone_rl.cli.run_folder import command_line
from clone_rl.cli.text import as_text

EVERY_CHARACTER = "hé “x” 漢字"


def run(arguments, environment=None, shell=None, **pipes):
    """The command in a process of its own; ``shell`` is put behind it."""
    command = [sys.executable, "-m", "clone_rl.cli.main", *arguments]
    if shell:
        command = ["bash", "-c", f'set -o pipefail; "$@" {shell}', "bash", *command]
    return subprocess.run(command, capture_output=True, env={**os.environ, **(environment or {})}, check=False, **pipes)


ENCODINGS = [
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "cp1252"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
]


@pytest.mark.parametrize("environment", ENCODINGS, ids=["ascii", "cp1252", "C"])
def test_text_that_a_terminal_cannot_show_ends_nothing(tmp_path, environment):
    # The chip's name is what `chip list` and `chip show` print, and what an error names.
    code = (
        "import sys, clone_rl.cli.main as shell, clone_rl.cli.chip as chip\n"
        f"chip.show = lambda options: print({EVERY_CHARACTER!a}) or {{'text': {EVERY_CHARACTER!a}}}\n"
        "sys.exit(shell.main())"
    )
    for arguments in (["chip", "show", "asic28-sram"], ["chip", "show", "asic28-sram", "--json"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, env={**os.environ, **environment}, check=False
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.startswith(b"h")
    done = run(["chip", "show", f"{EVERY_CHARACTER}.toml"], environment)
    assert done.returncode == 2
    assert b"no such chip file: h" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_pipe_that_nobody_reads_is_no_error(unbuffered):
    environment = {"PYTHONUNBUFFERED": unbuffered}
    for arguments in (["chip", "cost"], ["--help"], ["chip", "cost", "--help"]):
        done = run(arguments, environment, "| true")
        assert done.returncode in (0, 141)
        assert done.stderr == b""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_without_room_is_told(unbuffered):
    done = run(["chip", "list"], {"PYTHONUNBUFFERED": unbuffered}, "> /dev/full")
    assert done.returncode == 2
    assert done.stderr.decode().splitlines() == [
        "clone-rl: cannot write the output: No space left on device",
        "  send it to another place",
    ]


def test_closed_streams_are_no_error():
    assert run(["chip", "list"], shell=">&-").returncode == 0
    assert run(["chip", "list"], shell="2>&-").returncode == 0
    assert run(["chip", "lst"], shell=">&- 2>&-").returncode == 2


def test_what_was_typed_in_another_locale_is_the_text_that_was_meant():
    typed = "zwölf 漢".encode().decode("ascii", "surrogateescape")
    assert as_text(typed) == "zwölf 漢"
    assert as_text("zwölf") == "zwölf"
    assert as_text("\ud800") == "\ud800"


def test_a_command_with_bytes_that_are_no_text_can_be_kept(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["clone-rl", "train", "--name", "r\udcff"])
    assert command_line().encode("utf-8").startswith(b"clone-rl train --name")


def test_files_are_utf_8_wherever_they_are_written_and_read():
    for path in sorted(Path(clone_rl.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and (name := getattr(node.func, "attr", "")) in ("read_text", "write_text", "open"):
                binary = name == "open" and any(isinstance(a, ast.Constant) and "b" in str(a.value) for a in node.args)
                system = name == "open" and getattr(node.func.value, "id", "") == "os"
                named = any(keyword.arg == "encoding" for keyword in node.keywords)
                assert binary or system or named, f"{path}, line {node.lineno}"
