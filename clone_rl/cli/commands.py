"""What each command does. Heavy packages are imported inside, so that ``--help`` and errors are quick."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from clone_rl.errors import BadFileError, BadValueError, StoppedError


def run_training(folder: Path, config: Any, resume: bool, longer: Callable[[], str] | None = None) -> Any:
    """Train in a run folder; leaves ``policy.safetensors`` and its card there. ``longer`` as of ``agents.training``.

    Raises:
        StoppedError: Ctrl-C; the last checkpoint is kept.
    """
    from clone_rl.cli.run_folder import keeping, read_command
    from clone_rl.interrupt import postponing

    try:
        with keeping(folder, f"clone-rl train --resume {folder}"), postponing():
            from clone_rl.agents import training

            return training.run_training(config, folder, resume, read_command(folder), longer)
    except KeyboardInterrupt:
        raise StoppedError(
            f"training stopped; what it reached is in {folder}", f"continue with: clone-rl train --resume {folder}"
        ) from None


def _resumed(folder: Path, options: argparse.Namespace) -> tuple[Any, Callable[[], str] | None]:
    """The configuration of a run that goes on, its own but for the number of steps; and what has the run keep another number.

    Raises:
        BadFileError: Not the folder of a training run.
        BadValueError: Another option than ``--steps``: the rest of a run is not another run.
    """
    from clone_rl.agents.train_config import TrainConfig
    from clone_rl.cli.run_folder import continue_run, read_config

    stored = read_config(folder)
    try:
        config = TrainConfig(**stored["train"])
    except (KeyError, TypeError):
        raise BadFileError(f"{folder / 'config.json'} is not of a training run") from None
    given = [field.name for field in fields(TrainConfig) if hasattr(options, field.name)]
    given += ["name"] if options.name else []
    if other := [name for name in given if name != "steps"]:
        option = f"--{other[0].replace('_', '-')}"
        raise BadValueError(f"{option} with --resume", f"a run keeps its configuration, but for --steps: leave {option} out")
    if "steps" not in given or options.steps == config.steps:
        return config, None
    config = replace(config, steps=options.steps)
    return config, partial(continue_run, folder, {**stored, "train": asdict(config)})


def train(options: argparse.Namespace) -> dict[str, Any]:
    """``clone-rl train``."""
    from clone_rl.agents.labels import told_apart
    from clone_rl.agents.reach import broken, reach, verdict
    from clone_rl.agents.train_config import TrainConfig
    from clone_rl.agents.weights import read_card
    from clone_rl.cli.controllers import make_controller
    from clone_rl.cli.options import from_options
    from clone_rl.cli.run_folder import POLICY, create_run, free_name, keeping, read_command, write_json
    from clone_rl.envs.control import load_control
    from clone_rl.evaluation.protocol import evaluate
    from clone_rl.evaluation.report import table
    from clone_rl.evaluation.rows import Origin, write_rows

    if options.resume:
        folder = Path(options.resume)
        config, longer = _resumed(folder, options)
    else:
        config, longer = from_options(TrainConfig, options), None
    control = load_control("layer", config.scenario, "validation", **config.changes)
    config = config.resolved(control.scenario)
    limits = config.limits(control.scenario)
    reachable = reach(control, limits, config.seed)
    if warning := reachable.check(limits, control.scenario.name):
        print(f"clone-rl: {warning}", file=sys.stderr)
    if not options.resume:
        parent = Path(options.runs)
        folder = parent / options.name if options.name else free_name(parent, "train")
        create_run(folder, {"train": asdict(config)})
    before = (read_card(folder / POLICY) or {}).get("decisions_trained")
    policy = run_training(folder, config, bool(options.resume), longer)
    if before == (reached := policy.card["decisions_trained"]):
        on = f"clone-rl train --resume {folder} --steps {2 * reached}"
        print(f"clone-rl: nothing was left to train at {reached} decisions; to go on: {on}", file=sys.stderr)
    beside = ("performance", "pace")
    controllers = [*(make_controller(name, control, limits) for name in beside), policy]
    controllers = told_apart(controllers, [*beside, str(folder / POLICY)])
    origin = Origin(read_command(folder), {controllers[-1].name: str(folder / POLICY)})
    evaluation = evaluate(control, controllers, "validation", config.seed, limits=limits, origin=origin)
    judged = verdict(limits, evaluation.summary[-1], reachable)
    results = {**evaluation.as_json(), "limits": judged}
    with keeping(folder, f"clone-rl train --resume {folder}"):
        write_json(folder / "results.json", results)
        write_rows(folder / "rows.csv", evaluation.requests)
    told = (evaluation.setting, table(evaluation.summary), *broken(judged), f"policy: {folder / POLICY}")
    print(*told, sep="\n", file=sys.stderr)
    return {"run_dir": str(folder), "decisions": policy.card["decisions_trained"], **results}


def live_session(options: argparse.Namespace, name: str, shielded: bool = False) -> tuple[Any, Any]:
    """A model in a scenario with a controller in its loop: ``(session, runtime controller)``.

    A shield is for every prompt and response that the model's context holds.
    """
    from clone_rl.agents.fit import ANY_MODEL, Place, check_fit
    from clone_rl.agents.rollout import charged_scenario
    from clone_rl.cli.controllers import make_controller
    from clone_rl.cli.scenario import control_of
    from clone_rl.envs.live import service_level
    from clone_rl.llm.model_files import ModelFiles, no_probe

    files = ModelFiles.of(options.model)
    control = control_of(options, [name], "train")
    controller = make_controller(name, control)
    place = Place(control.emulator.chip, repr(files.name), files.sha256 or None, kind="layer")
    for note in check_fit(controller, name, place, ANY_MODEL, strict=not getattr(options, "any_model", False)):
        print(f"clone-rl: {note}", file=sys.stderr)
    if controller.probes and files.sha256 and not files.probe:
        raise no_probe(files.name)
    scenario = charged_scenario(control.scenario, controller)
    if wanted := getattr(options, "slo", ""):
        service_level(scenario, wanted)  # it has one of this name

    # Now that all names are known: this takes seconds.
    from clone_rl.llm.live import LiveSession
    from clone_rl.llm.model import load_model
    from clone_rl.runtime import RuntimeController, emulated_shield, within_limits

    session, shield = LiveSession(load_model(options.model), scenario), None
    if shielded:
        context = session.lm.shape.context
        shield = emulated_shield(session.scenario, session.emulator, context, context)
        controller = within_limits(controller, scenario, session.lm.sha256)
    return session, RuntimeController(controller, control.points, shield=shield)


def _level(summary: dict[str, Any]) -> str:
    """A service level and the targets that held, for people."""
    ttft_s, tpot_s = summary["targets"]["ttft_s"], summary["targets"]["tpot_s"]
    return f"{summary['slo']}: TTFT {ttft_s * 1e3:.4g} ms, TPOT {tpot_s * 1e3:.4g} ms"


def generation_lines(summary: dict[str, Any]) -> str:
    """The figures of one generation for people."""
    tpot = "-" if summary["tpot_s"] is None else f"{summary['tpot_s'] * 1e3:.3f} ms"
    return (
        f"{summary['energy_per_token_j'] * 1e6:.2f} uJ/token, {summary['avg_power_w'] * 1e3:.2f} mW, "
        f"TTFT {summary['ttft_s'] * 1e3:.1f} ms, TPOT {tpot}, "
        f"{summary['deadline_misses']} of {summary['tokens']} tokens late, mean depth {summary['mean_depth']:.2f}, "
        f"agreement with full depth {summary['agreement']:.1%} ({_level(summary)})"
    )


def draw(path: Path, generation: Any, session: Any) -> None:
    """The picture of one response."""
    import numpy as np

    from clone_rl.evaluation.figure import draw_response

    summary = generation.summary()
    emitted_s, due_s = np.array(generation.emitted_s), np.array(generation.due_s)
    late = f"{summary['deadline_misses']} late"
    if summary["deadline_misses"]:
        late += f" by at most {(emitted_s - due_s).max() * 1e6:.3g} us"
    draw_response(
        path,
        generation.points,
        session.emulator.points["voltage_v"],
        emitted_s,
        due_s,
        f"{session.emulator.chip.name}, {_level(summary)}\n{summary['energy_per_token_j'] * 1e6:.2f} uJ/token, "
        f"mean depth {summary['mean_depth']:.2f}, {late}",
    )


def generate(options: argparse.Namespace) -> dict[str, Any]:
    """``clone-rl generate``."""
    from clone_rl.cli.run_folder import check_picture
    from clone_rl.llm.prompt_file import read_prompts
    from clone_rl.llm.sampling import Sampling

    picture = check_picture(options.picture, "picture")
    sampling = Sampling(options.temperature, options.top_k)
    texts = [p.text for p in read_prompts(Path(options.prompt_file))] if options.prompt_file is not None else [options.prompt]
    session, runtime = live_session(options, options.controller)
    results = []
    try:
        for text in texts:
            session.lm.encode_prompt(text)
        for number, text in enumerate(texts):
            runtime.begin(text)
            seed, level = options.seed + number, options.slo or None
            answer = session.generate(text, runtime, options.max_new_tokens, sampling, seed, slo=level)
            results.append({"prompt": text, **answer.summary(), "controller": options.controller})
            if not options.json:
                print(f"{text}{answer.text}\n  [{generation_lines(results[-1])}]")
            if picture and number == 0:
                draw(picture, answer, session)
    finally:
        session.close()
    return {"generations": results}
