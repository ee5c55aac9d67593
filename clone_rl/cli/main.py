"""The ``clone-rl`` command: parsing, and turning every error into a sentence and an exit code."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from clone_rl.cli import streams
from clone_rl.cli.extras import check_extras, missing
from clone_rl.cli.parser import Parser
from clone_rl.cli.text import as_text, plain
from clone_rl.errors import BadFileError, BadValueError, CloneRLError
from clone_rl.files import NO_ROOM, WriteError
from clone_rl.interrupt import install_again
from clone_rl.version import __version__

_STORY = (
    "Once upon a time there was a little girl who lived with her grandmother in a small house by the river, "
    "and every morning she went to the market with her basket."
)


def _seed(text: str) -> int:
    with suppress(ValueError):
        if 0 <= (seed := int(text)) < 2**31:
            return seed
    raise BadValueError(f"seed is {text}", f"a whole number: 0 or more, at most {2**31 - 1}")


def _add_scenario(parser: argparse.ArgumentParser, of_policies: bool = True) -> None:
    own = "that in which the policies were trained, else " if of_policies else ""
    parser.add_argument(
        "--scenario", default="" if of_policies else "default", help=f"shipped scenario or TOML file (default: {own}'default')"
    )
    parser.add_argument("--chip", default="", help="shipped chip or TOML file (default: the scenario's)")


def _add_limits(parser: argparse.ArgumentParser) -> None:
    for option, text in (
        ("--max-miss", "highest share of late tokens"),
        ("--max-disagree", "highest share of tokens that differ from full depth"),
        ("--max-dnll", "highest increase of NLL, nats per token"),
    ):
        parser.add_argument(option, type=float, default=None, help=f"{text} (default: the scenario's)")


def _build() -> argparse.ArgumentParser:
    from clone_rl.cli import (
        bench,
        chip,
        commands,
        evaluate,
        export,
        hardware,
        pretrain,
        probe,
        report,
        serve,
        study,
        trace,
        tune,
        validate,
    )
    from clone_rl.cli.demo import demo as demonstrate
    from clone_rl.cli.options import add_any_model, add_command, add_fields

    parser = Parser(prog="clone-rl", description="Learned control of voltage, frequency and depth of LLM inference.")
    parser.add_argument("--version", action="version", version=f"clone-rl {__version__}")
    subcommands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = partial(add_command, subcommands)

    demo = command("demo", "Train, evaluate and generate with what ships in the package; about two minutes.", demonstrate)
    demo.add_argument("--steps", type=int, default=1_000_000, help="layer decisions to train for (default: 1000000)")
    demo.add_argument("--seed", type=_seed, default=0, help="seed of everything random (default: 0)")
    demo.add_argument("--prompt", type=as_text, default=_STORY, help="text to continue (default: %(default)r)")
    demo.add_argument("--max-new-tokens", type=int, default=80, help="longest response, tokens (default: 80)")
    demo.add_argument("--runs", default="runs", help="folder of run folders (default: 'runs')")
    demo.add_argument(
        "--name", default="", help="name of the run folder; must be new (default: the first free demo, demo-2, ...)"
    )

    train = command("train", "Train a controller and evaluate it on the validation split.", commands.train)
    if _wants("train"):
        from clone_rl.agents.train_config import TrainConfig

        add_fields(train, TrainConfig)
    train.add_argument("--runs", default="runs", help="folder of run folders (default: 'runs')")
    train.add_argument("--name", default="", help="name of the run folder; must be new (default: train, train-2, ...)")
    train.add_argument(
        "--resume",
        default="",
        metavar="RUN",
        help="continue the run of this folder, as it was configured; to --steps, if given",
    )

    evaluating = evaluate.add(subcommands)
    validate.add(subcommands)
    report.add(subcommands)

    tuning = tune.add(subcommands)
    _add_scenario(tuning, of_policies=False)
    _add_limits(tuning)
    tuning.add_argument("--seed", type=_seed, default=0, help="of the search and of the requests (default: 0)")

    generate = command("generate", "Generate text with a controller choosing V/f and exit at every layer.", commands.generate)
    source = generate.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", type=as_text, help="text to continue")
    source.add_argument("--prompt-file", help="one prompt a line, or JSON lines with a 'prompt' field")
    generate.add_argument(
        "--controller",
        default="default",
        help="a baseline (docs/baselines.md), a shipped policy, or a policy file (default: 'default')",
    )
    generate.add_argument("--model", default="default", help="the embedded model or a model folder (default: 'default')")
    add_any_model(generate)
    _add_scenario(generate)
    generate.add_argument("--max-new-tokens", type=int, default=60, help="longest response, tokens (default: 60)")
    generate.add_argument("--temperature", type=float, default=0.8, help="0 is greedy (default: 0.8)")
    generate.add_argument("--top-k", type=int, default=40, help="most probable tokens to draw from; 0 takes all (default: 40)")
    generate.add_argument("--seed", type=_seed, default=0, help="of sampling, service level and interference (default: 0)")
    generate.add_argument("--slo", default="", help="service level by name, e.g. chatbot (default: drawn by the seed)")
    generate.add_argument(
        "--picture", default="", help="PNG file for V/f per layer and token of the first prompt (default: none)"
    )

    exporting = export.add(subcommands)
    exporting.add_argument("--seed", type=_seed, default=0, help="of requests and random actions (default: 0)")

    _add_scenario(serve.add(subcommands))

    trace.add(subcommands)
    probe.add(subcommands)
    pretrain.add(subcommands)
    chip.add(subcommands)
    hardware.add(subcommands)
    bench.add(subcommands)
    for judging in (evaluating, study.add(subcommands)):
        _add_scenario(judging)
        judging.add_argument("--seed", type=_seed, default=0, help="of service levels and interference (default: 0)")
        _add_limits(judging)
    return parser


def _wants(command: str) -> bool:
    """Whether this command was asked for: only then are its options worth importing torch."""
    return next((a for a in sys.argv[1:] if not a.startswith("-")), "") == command


def _run(options: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """What a command found, and its exit code: 0 unless it is one that judges."""
    check_extras(options)
    found = options.job(options)
    return found if isinstance(found, tuple) else (found, 0)


def _report(error: CloneRLError, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"error": {"kind": error.kind, "message": error.message, "hint": error.hint}}), file=sys.stderr)
    else:
        print(f"clone-rl: {error.message}" + (f"\n  {error.hint}" if error.hint else ""), file=sys.stderr)


def _show_notices() -> None:
    """What the package logs for people goes to whoever watches a terminal."""
    log = logging.getLogger("clone_rl.envs.compiling")
    if sys.stderr.isatty() and not log.handlers:
        notices = logging.StreamHandler()
        notices.setFormatter(logging.Formatter("clone-rl: %(message)s"))
        log.addHandler(notices)
        log.setLevel(logging.INFO)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0, 1 where a check failed, 2 for bad input, 130 when interrupted, 141 when nobody reads the output.
    """
    if arguments is None:
        install_again()
        streams.prepare()
    else:
        sys.argv[1:] = list(arguments)
    as_json = "--json" in sys.argv[1:]
    try:
        return _answer(as_json)
    except KeyboardInterrupt:
        print("clone-rl: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever reads the output has seen enough.
        streams.drop()
        return 141


def _answer(as_json: bool) -> int:
    """Do what the arguments ask for and report what went wrong; an interrupt passes, and that nobody reads the output."""
    if "pretrain" not in sys.argv[1:2]:
        # Networks and models this small lose more to synchronising threads than a second core gives them.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    _show_notices()
    try:
        options = _options()
        result, code = _run(options)
        if as_json:
            print(json.dumps(plain(result)))
        sys.stdout.flush()
    except CloneRLError as error:
        _report(error, as_json)
        return 130 if error.kind == "interrupted" else 2
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("clone_rl"):
            raise
        _report(missing(error.name or "a module"), as_json)
        return 2
    except MemoryError as error:
        _report(BadValueError(f"not enough memory: {error}".removesuffix(": "), "ask for less at a time"), as_json)
        return 2
    except BrokenPipeError:
        raise
    except OSError as error:
        _report(_explained(error), as_json)
        return 2
    return code


def _explained(error: OSError) -> CloneRLError:
    """What the system said, in a sentence."""
    if error.filename is None and error.errno in NO_ROOM:
        streams.drop()  # files have names: it is the output that has no room
        return WriteError(f"cannot write the output: {error.strerror}", "send it to another place")
    return BadFileError(f"{error.filename}: {error.strerror}" if error.filename is not None else str(error.strerror or error))


def _options() -> argparse.Namespace:
    """What was asked for; ``--help`` and ``--version`` end here, when they have been written."""
    try:
        return _build().parse_args()
    except SystemExit:
        sys.stdout.flush()
        raise


if __name__ == "__main__":
    sys.exit(main())
