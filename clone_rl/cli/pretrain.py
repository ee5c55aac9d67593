"""``clone-rl pretrain``: train a model for early exits, continue one, or report how good one is."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from clone_rl.cli.options import add_command, field_docs
from clone_rl.cli.text import aligned
from clone_rl.errors import BadFileError, BadValueError, StoppedError
from clone_rl.files import WriteError
from clone_rl.llm.recipe import FINE_TUNING, Recipe, recipe_from


def add(commands: Any) -> None:
    """The parser of ``clone-rl pretrain``."""
    parser = add_command(
        commands,
        "pretrain",
        "Train a language model for early exits on a folder of text, or report how good one is.",
        pretrain,
    )
    parser.add_argument("--text", required=True, help="folder with .txt, .md and question/answer .jsonl files")
    parser.add_argument("--out", default="", help="model folder to create; training state goes to OUT.training")
    parser.add_argument(
        "--init",
        default="",
        metavar="PATH",
        help="continue this model: a model folder, 'default', or a MODEL.training folder (default: a new model)",
    )
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run")
    parser.add_argument("--report", action="store_true", help="train nothing: measure --model on the held-out part of --text")
    parser.add_argument(
        "--model", default="default", help="model to report on: the embedded one or a folder (default: 'default')"
    )
    docs, hints = field_docs(Recipe), get_type_hints(Recipe)
    for field in fields(Recipe):
        default = f"default: {field.default!r}"
        if field.name in FINE_TUNING:
            default += f"; with --init: {FINE_TUNING[field.name]!r}"
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=hints[field.name],
            help=f"{docs[field.name]} ({default})".replace("%", "%%"),
        )


def pretrain(options: argparse.Namespace) -> dict[str, Any]:
    """``clone-rl pretrain``."""
    return _report(options) if options.report else _train(options)


def _report(options: argparse.Namespace) -> dict[str, Any]:
    from clone_rl.cli.probe import report_text
    from clone_rl.llm.model import load_model
    from clone_rl.llm.report import report

    if options.out or options.init or options.resume:
        raise BadValueError("--report trains nothing", "leave --out, --init and --resume out")
    found = report(load_model(options.model), Path(options.text))
    if not options.json:
        print(f"validation loss {found['val_loss']:.4f} nats per token; {report_text(found)}\n\n{_answers(found)}")
    return found


def _answers(found: dict[str, Any]) -> str:
    """Exact answers by task and depth, for people."""
    tasks: dict[str, list[float]] = found["exact_match"]
    if not tasks:
        return "no task fits the context"
    layers = range(1, 1 + max(map(len, tasks.values())))
    columns: list[Any] = [("right answers after layer", "", list(layers))]
    columns += [(kind, "", [f"{share:.0%}" for share in shares]) for kind, shares in tasks.items()]
    return aligned(columns)


def _train(options: argparse.Namespace) -> dict[str, Any]:
    from clone_rl.cli.run_folder import command_line
    from clone_rl.llm.pretrain import pretrain as run
    from clone_rl.llm.release import release

    if not options.out:
        raise BadValueError("--out is missing", "name the model folder to create")
    out, work = Path(options.out), Path(f"{options.out}.training")
    if out.exists():
        raise BadFileError(f"{out} exists", "choose another folder or remove it")
    recipe = recipe_from(vars(options), continued=bool(options.init))
    try:
        run(Path(options.text), work, recipe, options.resume, options.init, command_line())
        return release(work, Path(options.text), out, command_line())
    except KeyboardInterrupt:
        raise StoppedError(f"training stopped; checkpoints are in {work}", "repeat the command with --resume") from None
    except WriteError as error:
        again = "repeat the command with --resume" if (work / "checkpoint.pt").exists() else "repeat the command"
        raise WriteError(error.message, f"{error.hint}; what was reached is in {work}, {again}") from None
