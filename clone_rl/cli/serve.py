"""``clone-rl serve``: an OpenAI-compatible server with a controller in the loop."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from clone_rl.cli.options import add_any_model, add_command
from clone_rl.errors import MissingExtraError

TOKEN_VARIABLE = "CLONE_RL_TOKEN"
"""Environment variable with bearer tokens, apart by blanks: unlike an option, no list of processes shows it."""


def add(commands: Any) -> argparse.ArgumentParser:
    """The parser of ``clone-rl serve``."""
    from clone_rl.runtime.server.settings import CLOCKS, Settings

    text = "Serve the OpenAI API (completions, chat) on this machine, with a service level for every request."
    parser = add_command(commands, "serve", text, serve)
    standard = Settings()
    parser.add_argument("--model", default="default", help="the embedded model or a model folder (default: 'default')")
    parser.add_argument(
        "--controller",
        default="default",
        help="a baseline (docs/baselines.md), a shipped policy, or a policy file (default: 'default')",
    )
    add_any_model(parser)
    parser.add_argument("--host", default=standard.host, help="address to listen at (default: %(default)r)")
    parser.add_argument("--port", type=int, default=standard.port, help="0 takes a free one (default: %(default)s)")
    parser.add_argument(
        "--token",
        action="append",
        default=[],
        help=f"bearer token that is let in; may be repeated (default: those in {TOKEN_VARIABLE}, else everyone is let in)",
    )
    parser.add_argument("--insecure", action="store_true", help="listen beyond this machine although there is no token")
    parser.add_argument(
        "--shield",
        action="store_true",
        help="overrule decisions that may cost a deadline; let exits come to what the limits on quality allow, no more",
    )
    parser.add_argument(
        "--default-slo", default=standard.slo, help="service class of requests that name none (default: the scenario's first)"
    )
    parser.add_argument(
        "--clock", choices=CLOCKS, default=standard.clock, help="what waiting is measured in (default: %(default)r)"
    )
    for option, kind, words in (
        ("max-queue", int, "requests that may wait"),
        ("max-body-bytes", int, "largest body of a request"),
        ("max-connections", int, "open connections"),
        ("timeout-s", float, "wall seconds for a request"),
        ("grace-s", float, "wall seconds that a shutdown grants to requests"),
    ):
        value = getattr(standard, option.replace("-", "_"))
        parser.add_argument(f"--{option}", type=kind, default=value, help=f"{words} (default: %(default)s)")
    return parser


def _settings(options: argparse.Namespace) -> Any:
    from clone_rl.runtime.server.settings import Settings

    tokens = options.token or os.environ.get(TOKEN_VARIABLE, "").split()
    told = ("host", "port", "insecure", "max_queue", "max_body_bytes", "max_connections", "timeout_s", "grace_s", "clock")
    named = {name: getattr(options, name) for name in (*told, "any_model")}
    return Settings(tokens=tuple(tokens), slo=options.default_slo, **named)


def serve(options: argparse.Namespace) -> dict[str, Any]:
    """``clone-rl serve``."""
    settings = _settings(options)
    try:
        from clone_rl.runtime.server import run
        from clone_rl.runtime.server.chat import load_renderer, plain
        from clone_rl.runtime.server.service import Service
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"this needs {error.name}", "pip install 'clone-rl[serve,llm]'") from None
    from clone_rl.cli.commands import live_session

    with run.bound(settings) as listening:  # before the model is loaded: a port that is taken is told at once
        print("clone-rl: loading the model and compiling, up to a minute the first time", file=sys.stderr, flush=True)
        session, runtime = live_session(options, options.controller, options.shield)
        from clone_rl.llm.model import EMBEDDED  # takes seconds, which a wrong name should not

        render = plain if options.model == EMBEDDED else load_renderer(Path(options.model), bool(session.lm.start_ids))
        service = Service(session, runtime, options.controller, settings, render)
        # What is compiled or loaded the first time is not the first client's to wait for.
        level = session.scenario.slo[0]
        session.generate([0], runtime.begin("warm-up", level, 1, 2), 2, slo=level, reference=False)
        where = run.url(listening)
        print(f"clone-rl: {service.model} under {options.controller} at {where} (Ctrl-C stops)", file=sys.stderr, flush=True)
        run.run(service, listening)
    totals = service.worker.account.totals
    print(f"clone-rl: stopped after {totals.requests} responses, {totals.energy_j:.4g} J", file=sys.stderr)
    return {"url": where, "model": service.model, "controller": options.controller, **asdict(totals)}
