"""What the command line tells users to do names options that they have."""

import argparse
import ast
import pickle
import re
import sys
from pathlib import Path

import pytest

import clone_rl
from clone_rl.cli import main as shell
from clone_rl.errors import BadValueError, CloneRLError, UnknownNameError

pytest_plugins = ["cli_running"]

PACKAGE = Path(clone_rl.__file__).parent

# Modules whose hints name options without a command, and the only commands that lead there.
ONLY = {
    "agents/fit.py": ("evaluate", "generate", "serve"),
    "agents/registry.py": ("evaluate",),
    "cli/commands.py": ("train",),
    "cli/scenario.py": ("evaluate", "generate", "serve"),
    "cli/evaluate.py": ("evaluate",),
    "cli/export.py": ("export",),
    "cli/pretrain.py": ("pretrain",),
    "cli/run_folder.py": ("train", "tune", "study granularity"),
    "cli/demo.py": ("demo",),
    "cli/trace.py": ("record",),
    "llm/documents.py": ("record",),
    "llm/pretrain.py": ("pretrain",),
    "llm/record.py": ("record",),
    "llm/recording.py": ("record",),
    "llm/windows.py": ("pretrain",),
    "runtime/export/fixed.py": ("export",),
    "runtime/export/observations.py": ("export",),
    "runtime/server/guard.py": ("serve",),
    "runtime/server/run.py": ("serve",),
}

# What no command reaches, so that arguments of functions are what its users have.
FOR_PROGRAMS = (
    "agents/sb3.py",
    "envs/",
    *(f"runtime/{name}.py" for name in ("asking", "decoding", "lookout", "text_generation")),
)


def leaves(parser, words=()):
    """``words: parser`` of every command, and of every group of commands."""
    found = {words: parser}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                found |= leaves(child, (*words, name))
    return found


@pytest.fixture(scope="module")
def parsers():
    before = sys.argv
    sys.argv = ["clone-rl", "train"]  # the only one whose options wait until it is asked for
    try:
        return leaves(shell._build())
    finally:
        sys.argv = before


def options_of(parser):
    return {name for name in parser._option_string_actions if name.startswith("--")}


def test_a_wrong_option_points_to_the_help_of_the_command_at_hand(run_cli, parsers):
    assert len(parsers) > 25
    for words in parsers:
        done = run_cli(*words, "--no-such-thing-as-this")
        assert done.code == 2
        assert done.err.splitlines()[-2:] == [
            "clone-rl: unknown option --no-such-thing-as-this",
            f"  see {' '.join(['clone-rl', *words])} --help",
        ]


def test_every_misspelt_option_is_told_the_one_that_was_meant(run_cli, parsers):
    for words, parser in parsers.items():
        for name in options_of(parser) - {"--help"}:
            wrong = name[:-2] + name[-1] + name[-2] + "s"
            with pytest.raises(BadValueError, match=f"unknown option {wrong}") as caught:
                parser.parse_args([wrong])
            near = re.match(r"did you mean (--[\w-]+)\? see (.*) --help", caught.value.hint)
            assert near, (words, wrong)
            assert near[1] in options_of(parser)
            assert near[2] == " ".join(["clone-rl", *words])


def test_every_misspelt_command_is_told_the_one_that_was_meant(run_cli, parsers):
    for words in parsers:
        if words:
            done = run_cli(*words[:-1], words[-1] + "x", "--json")
            assert done.error["hint"].startswith(f"did you mean {words[-1]}? see clone-rl"), words


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("record", "--ot", "traces"), "unknown option --ot", "did you mean --out? see clone-rl record --help"),
        (("evaluate", "pace", "--seed=3", "--sead=3"), "unknown option --sead", "did you mean --seed?"),
        (("evaluate", "pace", "--responses", "trcae"), "invalid choice: 'trcae'", "did you mean trace?"),
        (("evaluate", "pace", "--seed", "x"), "seed is x", "a whole number"),
        (("--jsn", "evaluate"), "unknown option --jsn", "see clone-rl --help"),
        (("generate", "--prompt", "hi", "you"), "unrecognized arguments: you", "see clone-rl generate --help"),
    ],
)
def test_bad_usage_is_told_with_what_was_meant(run_cli, arguments, message, hint):
    done = run_cli(*arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert hint in done.err


def test_help_is_shown_beside_a_wrong_option(run_cli):
    with pytest.raises(SystemExit) as caught:
        run_cli("evaluate", "--bogus", "--help")
    assert caught.value.code == 0


def test_a_prompt_may_look_like_an_option(run_cli):
    done = run_cli("generate", "--prompt=--dear", "--slo", "nothing")
    assert "unknown service level 'nothing'" in done.err


def texts_of_errors():
    """``(module, text)`` of everything that is written into an error of this package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                if name.endswith("Error") and name != "PeerError":
                    for text in node.args[:2]:
                        yield path.relative_to(PACKAGE).as_posix(), ast.unparse(text)


def test_hints_name_options_that_their_command_has(parsers):
    found = 0
    for module, text in texts_of_errors():
        for part in re.split(r"[;']|(?=clone-rl )", text):
            named = re.findall(r"(?<![\w-])--[a-z][\w-]+", part)
            command = re.search(r"clone-rl ((?:[a-z]+ ?)+)", part)
            words = tuple(command[1].split()) if command else ()
            while words and words not in parsers:
                words = words[:-1]
            places = [words] if words else [tuple(name.split()) for name in ONLY.get(module, ())]
            for option in set(named) - {"--help"}:
                assert places, (module, text)
                found += 1
                for place in places:
                    if place in parsers:
                        assert option in options_of(parsers[place]), (module, text, place)
    assert found > 30


def test_hints_for_the_command_line_have_no_arguments_of_functions():
    for module, text in texts_of_errors():
        if not module.startswith(FOR_PROGRAMS):
            assert not re.search(r"\b[a-z_]+=(True|False|None|\.\.\.)", text), (module, text)


def test_what_only_programs_can_do_is_told_to_programs(capsys):
    error = CloneRLError("it is pickle", "convert it", "allow_pickle=True reads it")
    assert str(error) == "it is pickle (convert it; allow_pickle=True reads it)"
    shell._report(error, as_json=False)
    shell._report(error, as_json=True)
    assert "allow_pickle" not in capsys.readouterr().err


def test_errors_come_back_from_another_process():
    error = UnknownNameError("chip", "asic", ["asic28", "asic7"], "or a file")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is UnknownNameError
    assert (str(again), again.hint, again.args) == (str(error), error.hint, error.args)
