import re
import subprocess
import sys
from dataclasses import dataclass, fields

import pytest

from clone_rl.agents.train_config import TrainConfig
from clone_rl.cli.main import main
from clone_rl.cli.options import field_docs
from clone_rl.llm.recipe import Recipe
from clone_rl.version import __version__

pytest_plugins = ["cli_running"]

# What each command's help has to say: units, choices.
SAYS = {
    "demo": ["tokens", "layer decisions", "seed"],
    "train": ["nats per token", "share of late tokens", "Decisions to train for", "clone_rl/TokenControl-v0"],
    "tune": ["nats per token", "settings to try", "JSON file", "training split"],
    "evaluate": ["nats per token", "share of late tokens", "train, validation or test", "CSV"],
    "generate": ["tokens", "0 is greedy", "JSON lines", "PNG"],
    "record": ["tokens", "prompts of each kind", "folder to create"],
    "pretrain": ["minutes", "Tokens in the vocabulary", ".jsonl", "model folder to create", "last layer"],
    "probe": ["tokens to run", ".jsonl", "provenance"],
    "trace show": ["PNG"],
    "export": ["onnx, c or lut", "largest table, bytes"],
    "hardware": ["operating points", "devfreq", "s (default"],
    "serve": ["bearer token", "wall seconds", "0 takes a free one"],
    "study granularity": ["100ns or 5ms", "training split", "Decisions to train PPO", "on its own chip"],
}


@pytest.mark.parametrize("command", SAYS)
def test_help_names_units_and_every_default(run_cli, capsys, command):
    with pytest.raises(SystemExit) as caught:
        run_cli(*command.split(), "--help")
    assert caught.value.code == 0
    shown = capsys.readouterr()
    text = re.sub(r"\s+", " ", shown.out)
    assert shown.err == ""
    for words in SAYS[command]:
        assert words in text
    entries = re.findall(r"^  (--[\w-]+) ([A-Z_]+)\s(.*?)(?=^  -|\Z)", shown.out, re.M | re.S)
    assert len(entries) >= 2
    without = {name for name, _, words in entries if "default:" not in re.sub(r"\s+", " ", words)}
    assert without <= {"--resume", "--out", "--text", "--prompt", "--prompt-file", "--slo", "--to"}


def test_help_lists_the_commands(run_cli, capsys):
    with pytest.raises(SystemExit) as caught:
        run_cli("--help")
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert all(re.search(rf"^ +{command.split()[0]} +[A-Z]", out, re.M) for command in SAYS)


def test_the_version_is_printed(run_cli, capsys):
    with pytest.raises(SystemExit) as caught:
        run_cli("--version")
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"clone-rl {__version__}\n"


@pytest.mark.parametrize("cls", [TrainConfig, Recipe])
def test_every_field_that_becomes_an_option_has_a_doc(cls):
    docs = field_docs(cls)
    assert {field.name for field in fields(cls)} == docs.keys()
    assert all(len(text) > 10 and not text.endswith(".") for text in docs.values())


@dataclass
class Example:
    """Something.

    Attributes:
        one: First line
            and the next, 50 %.
        two: Second.
    """

    one: int = 1
    two: int = 2


def test_docs_of_fields_may_run_over_several_lines():
    assert field_docs(Example) == {"one": "First line and the next, 50 %", "two": "Second"}


def test_help_and_bad_usage_do_not_wait_for_torch():
    code = (
        "import sys; from clone_rl.cli.main import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    for arguments in (["--help"], ["evaluate", "--help"], ["generate", "--bogus"], ["record"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "False", arguments


def test_the_command_is_installed():
    done = subprocess.run([sys.executable, "-m", "clone_rl.cli.main", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"clone-rl {__version__}\n"
    assert callable(main)
