"""``clone-rl demo``: the three jobs in one go, on what ships in the package."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from clone_rl.cli import commands
from clone_rl.cli.run_folder import create_run, free_name, read_command, write_json
from clone_rl.errors import BadValueError


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def demo(options: argparse.Namespace) -> dict[str, Any]:
    """Load the model and traces, train, evaluate on held-out prompts, generate live, and leave a run folder."""
    from clone_rl.agents.labels import told_apart
    from clone_rl.agents.policy import Policy
    from clone_rl.agents.train_config import TrainConfig
    from clone_rl.bars import Bar
    from clone_rl.cli.controllers import make_controller
    from clone_rl.envs.control import load_control
    from clone_rl.envs.scenario import Scenario
    from clone_rl.envs.trace import SPLITS
    from clone_rl.evaluation.protocol import evaluate
    from clone_rl.evaluation.report import table
    from clone_rl.evaluation.rows import Origin, write_rows
    from clone_rl.llm.model import load_model

    config = TrainConfig(steps=options.steps, seed=options.seed)
    config = config.resolved(Scenario.load(config.scenario))
    parent = Path(options.runs)
    folder = parent / options.name if options.name else free_name(parent, "demo")
    lm = load_model()
    lm.encode_prompt(options.prompt)
    if options.max_new_tokens < 1:
        raise BadValueError(f"max_new_tokens is {options.max_new_tokens}", "at least 1")
    asked = {"prompt": options.prompt, "max_new_tokens": options.max_new_tokens}
    create_run(folder, {"train": asdict(config), **asked}, "choose another --name")
    _say(f"1. model: {lm.card['parameters'] / 1e6:.1f} M parameters, {lm.shape.layers} layers, {lm.card['weights']}")

    control = load_control("layer", config.scenario, "test")
    traces = control.traces
    counts = ", ".join(f"{len(traces.documents(split))} {split}" for split in SPLITS)
    _say(f"2. traces: the shipped set, recorded from this model ({counts} requests; {int(traces.offset[-1])} tokens)")
    if traces.card["model_sha256"] != lm.sha256:
        _say("   note: they were recorded from another version of the model")

    _say(f"3. train: {config.steps:,} layer decisions on {control.scenario.chip_name}")
    policy = commands.run_training(folder, config, resume=False)

    _say("4. evaluate: held-out prompts, the same requests for every controller")
    beside, own = ("performance", "pace"), str(folder / "policy.safetensors")
    controllers = [*(make_controller(name, control) for name in beside), Policy.load("default"), policy]
    controllers = told_apart(controllers, [*beside, "default", own])
    bar = lambda items: Bar(items, desc="evaluate", unit="controller")  # noqa: E731
    origin = Origin(read_command(folder), {controllers[-1].name: own})
    evaluation = evaluate(control, controllers, "test", options.seed, seeds=4, progress=bar, origin=origin)
    write_json(folder / "results.json", evaluation.as_json())
    write_rows(folder / "rows.csv", evaluation.requests)

    _say("5. generate: the trained policy chooses V/f and exit at every layer")
    # The tightest class: where deadlines leave room, one low point serves every layer and there is little to see.
    options.scenario, options.model, options.slo = config.scenario, "default", "smart-reply"
    session, runtime = commands.live_session(options, str(folder))
    runtime.begin(options.prompt)
    with Bar(total=options.max_new_tokens, desc="generate", unit="token") as progress:

        def count(_token: int) -> None:
            progress.update()

        answer = session.generate(
            options.prompt, runtime, options.max_new_tokens, seed=options.seed, on_token=count, slo=options.slo
        )
    summary = answer.summary()
    commands.draw(folder / "response.png", answer, session)
    session.close()
    write_json(folder / "generation.json", {"prompt": options.prompt, **summary})
    if not options.json:
        print(f"\n{options.prompt}{answer.text}\n  [{commands.generation_lines(summary)}]\n")
        print(evaluation.setting)
        print(table(evaluation.summary))
        print(f"\nrun folder: {folder}")
    return {"run_dir": str(folder), "controllers": evaluation.summary, "generation": summary}
