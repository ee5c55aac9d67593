"""``clone-rl evaluate``: controllers on the same requests, replayed or with the model in the loop, beside an oracle."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from clone_rl.cli.options import add_command
from clone_rl.errors import BadValueError

_LIVE_ONLY = {"model": "", "responses": "own", "prompt_file": "", "max_new_tokens": None}
"""Options that only make sense with ``--live``, with their defaults."""


def add(commands: Any) -> argparse.ArgumentParser:
    """The parser of ``clone-rl evaluate``, but for the options that other commands have as well."""
    parser = add_command(commands, "evaluate", "Compare controllers on the same requests.", evaluate)
    parser.add_argument(
        "controllers", nargs="+", metavar="CONTROLLER", help="baselines (docs/baselines.md), shipped policies, or policy files"
    )
    parser.add_argument("--traces", default="", help="shipped trace set or folder (default: the scenario's)")
    parser.add_argument("--split", default="test", help="train, validation or test (default: 'test')")
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N",
        help="evaluation seeds, each with draws of its own for every request; a row for each of them (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--repeats", type=int, default=1, help="draws for each document within one evaluation seed (default: 1)"
    )
    parser.add_argument(
        "--requests",
        type=int,
        default=None,
        metavar="N",
        help="documents at most, spread evenly over the split (default: all)",
    )
    parser.add_argument(
        "--oracle-requests", type=int, default=12, metavar="N",
        help="requests of each seed on which regret to the clairvoyant oracle is measured, spread evenly; seconds each, "
        "and again for every controller with exits of its own (default: 12)",
    )  # fmt: skip
    parser.add_argument("--no-oracle", action="store_true", help="do not measure regret")
    parser.add_argument(
        "--shield", action="store_true",
        help="overrule decisions that may cost a deadline which the top operating point would hold; let exits come to what "
        "the limits on quality allow, no more; measures no regret",
    )  # fmt: skip
    parser.add_argument(
        "--shield-exits", action="store_true", help="with --shield: exit where a token would be late in any case"
    )
    parser.add_argument("--tuned", default="", help="file of clone-rl tune with settings of baselines (default: what ships)")
    parser.add_argument(
        "--out",
        default="",
        help="CSV or JSON file for one row per controller and request, see clone-rl validate rows (default: none)",
    )
    live = parser.add_argument_group("the model in the loop")
    live.add_argument(
        "--live", action="store_true", help="let the model answer the prompts of the split, and show what a replay predicted"
    )
    live.add_argument("--model", default="", help="with --live: model folder (default: the one that the traces are of)")
    live.add_argument(
        "--responses", choices=("own", "trace"), default="own",
        help="with --live: the model answers by itself, or the recorded responses are forced, so that only "
        "the K/V of exits differ from a replay (default: 'own')",
    )  # fmt: skip
    live.add_argument(
        "--prompt-file",
        default="",
        metavar="FILE",
        help="with --live: the prompts that the traces were recorded from (default: the shipped ones)",
    )
    live.add_argument(
        "--max-new-tokens", type=int, default=None, help="with --live: longest response, tokens (default: as recorded)"
    )
    return parser


def _check(options: argparse.Namespace) -> None:
    """Refuse options that would be ignored."""
    from clone_rl.cli.run_folder import check_output
    from clone_rl.evaluation.rows import check_rows_path

    for name, default in _LIVE_ONLY.items():
        if not options.live and getattr(options, name) != default:
            raise BadValueError(
                f"--{name.replace('_', '-')} {getattr(options, name)} without --live", "add --live, or leave it out"
            )
    if options.shield_exits and not options.shield:
        raise BadValueError("--shield-exits without --shield", "add --shield, or leave it out")
    if options.shield and options.out:
        raise BadValueError("--shield with --out", "rows under a shield cannot be run again one by one; leave one out")
    if options.oracle_requests < 1:
        raise BadValueError(f"oracle requests is {options.oracle_requests}", "1 or more; --no-oracle measures no regret")
    if options.out:
        check_rows_path(check_output(Path(options.out)))


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """``clone-rl evaluate``."""
    import sys
    from dataclasses import replace
    from functools import partial

    from clone_rl.agents.lut import LutPolicy
    from clone_rl.agents.policy import Policy
    from clone_rl.agents.rollout import run_requests
    from clone_rl.bars import Bar
    from clone_rl.cli.controllers import compared
    from clone_rl.cli.run_folder import command_line
    from clone_rl.cli.scenario import control_of
    from clone_rl.evaluation.live import beside_replay
    from clone_rl.evaluation.protocol import chosen_documents
    from clone_rl.evaluation.protocol import evaluate as run
    from clone_rl.evaluation.report import live_table, table
    from clone_rl.evaluation.rows import Origin, write_rows

    _check(options)
    control = control_of(options, options.controllers, options.split)
    limits, controllers = compared(options, control)
    from clone_rl.agents.fit import Place, check_fit

    traced = control.traces.card
    place = Place(control.emulator.chip, f"that of traces {control.scenario.traces!r}", traced.get("model_sha256"))
    for controller, name in zip(controllers, options.controllers, strict=True):
        for note in check_fit(controller, name, place, strict=False):  # it is measured here, so it may differ
            print(f"clone-rl: {note}", file=sys.stderr)
    typed = zip(controllers, options.controllers, strict=True)
    origin = Origin(command_line(), {c.name: name for c, name in typed if isinstance(c, Policy | LutPolicy)})
    shared: dict[str, Any] = {"seeds": options.seeds, "requests": options.requests}
    ask = partial(run, control, controllers, options.split, options.seed, options.repeats, limits, **shared)
    shield: dict[str, Any] = {"shield": options.shield, "shield_exits": options.shield_exits, "limits": limits}
    replay = partial(run_requests, **shield)
    if options.live:
        from clone_rl.cli.live_requests import live_requests

        documents = chosen_documents(control, options.split, options.repeats, options.requests)
        predicted = ask(origin=origin, run=replay)
        total = len(documents) * options.seeds * len(controllers)
        live = live_requests(options, control, documents)
        with Bar(total=total, desc="live", unit="request", dynamic_ncols=True) as bar:
            live.runner.tick = bar.update
            try:
                result = ask(origin=Origin(origin.command, origin.policies, live.settings), run=partial(live.runner, **shield))
            finally:
                live.close()
        found = {**result.as_json(), "mode": "live", "shield": options.shield, "live": live.settings}
        found |= {name: beside_replay(getattr(result, name), getattr(predicted, name)) for name in ("rows", "summary")}
        lines = [*result.requests, *predicted.requests]
    else:
        # A bar for people who wait; stderr of programs and of what is quick stays empty.
        bar_of = partial(Bar, desc="oracle", unit="controller", delay=2.0, disable=None, dynamic_ncols=True)
        asked = 0 if options.no_oracle or options.shield else options.oracle_requests
        result = ask(origin=origin, oracle_requests=asked, oracle_progress=bar_of, run=replay)
        found, lines = {**result.as_json(), "mode": "replay", "shield": options.shield}, result.requests
        for note in result.notes:
            print(f"clone-rl: {note}", file=sys.stderr)
    setting = replace(result.setting, shield=options.shield)
    found |= {"setting": setting.as_json()}
    if options.out:
        write_rows(Path(options.out), lines)
    if not options.json:
        print(setting)
        print(table(result.summary))
        if options.live:
            print(
                "\nthe model in the loop beside what a replay of the same requests predicts",
                live_table(found["summary"]),
                sep="\n",
            )
    return found
