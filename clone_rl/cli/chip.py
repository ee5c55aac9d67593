"""``clone-rl chip``: what a chip is, what a model costs on it, how it scales, and how far the emulator can be trusted."""

from __future__ import annotations

import argparse
import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clone_rl.cli import chip_text
from clone_rl.cli.options import add_command
from clone_rl.cli.run_folder import check_picture
from clone_rl.errors import BadFileError, BadValueError

if TYPE_CHECKING:
    from clone_rl.hw_emulator import Emulator, Workload
    from clone_rl.hw_emulator.report import RequestCost

_COLDEST_C, _HOTTEST_C = -55.0, 150.0


def add(commands: Any) -> None:
    """The parsers of ``clone-rl chip``."""
    text = "Look into chips: list, show, cost, scale, validate, fit."
    chips = commands.add_parser("chip", help=text, description=text)
    actions = chips.add_subparsers(dest="action", required=True, metavar="ACTION")

    add_command(actions, "list", "List the shipped chips.", list_chips)

    showing = add_command(actions, "show", "Show every derived figure of a chip.", show)
    showing.add_argument("chip", metavar="CHIP", help="shipped chip or TOML file")

    costing = add_command(actions, "cost", "Cost a request (a prompt, then tokens) of a model by operating point.", cost)
    costing.add_argument("--chip", default="asic28-sram", help="shipped chip or TOML file (default: 'asic28-sram')")
    _add_request(costing)
    costing.add_argument("--vf", default="all", help="operating points, 0 the lowest: all, or K,K,... (default: 'all')")
    costing.add_argument(
        "--exit-layer", type=int, default=0, help="layers of every decode step, an early exit; 0: all of them (default: 0)"
    )
    costing.add_argument(
        "--temperature", type=float, default=None,
        help="die temperature for leakage, Celsius (default: the one at which the chip file states leakage)",
    )  # fmt: skip
    costing.add_argument(
        "--switching", default="", help="ideal, on-chip, pmic, os or devfreq (default: the chip's own mechanism)"
    )
    _add_plot(costing, "energy against latency, and the roofline")

    scaling = add_command(
        actions, "scale", "Cost a decode step on an ASIC with other numbers of tiles; its SRAM stays.", scale
    )
    scaling.add_argument("chip", metavar="CHIP", help="shipped ASIC or TOML file")
    scaling.add_argument("--tiles", default="1,2,4,8", help="numbers of tiles, N,N,... (default: '1,2,4,8')")
    _add_request(scaling)
    scaling.add_argument("--vf", type=int, default=None, help="operating point, 0 the lowest (default: the highest)")
    _add_plot(scaling, "latency, energy and area by number of tiles")

    validating = add_command(
        actions, "validate", "Compare the emulator with published figures; exit code 1 if one is out of tolerance.", validate
    )
    _add_reference(validating)

    fitting = add_command(actions, "fit", "Refit every fitted constant and compare it with the shipped one.", fit)
    _add_reference(fitting)


def _add_request(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default="default",
        help="the embedded model, a config.json, a model folder, a model id in the local Hugging Face cache, or a shipped "
        "shape such as llama-3.2-1b (default: 'default')",
    )
    parser.add_argument("--prompt", type=int, default=128, help="prompt, tokens (default: 128)")
    parser.add_argument("--tokens", type=int, default=64, help="decode steps after the first token (default: 64)")
    parser.add_argument("--precision", default="int4", help="int4, int8, fp8, fp16, bf16 or fp32 (default: 'int4')")
    parser.add_argument("--lora-rank", type=int, default=0, help="rank of LoRA adapters; 0: none (default: 0)")
    parser.add_argument(
        "--lora-targets",
        default="query,value",
        help="matrices beside which they sit: query, key, value, output, gate, up, down, or first letters "
        "(default: 'query,value')",
    )


def _add_plot(parser: argparse.ArgumentParser, shown: str) -> None:
    parser.add_argument("--plot", default="", help=f"PNG file for a picture: {shown} (default: none)")


def _add_reference(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--reference", default="", help="folder of raw reference tables, compared as well (default: published figures only)"
    )


def _integers(text: str, option: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise BadValueError(f"{option} is {text!r}", "whole numbers, separated by commas") from None


def _workload(options: argparse.Namespace) -> Workload:
    """The model that was asked for, with its adapters; refuses a request longer than its context."""
    from clone_rl.hw_emulator import Workload
    from clone_rl.hw_emulator.report import check_request
    from clone_rl.hw_emulator.workload import LORA_TARGETS

    letters = {target[0]: target for target in LORA_TARGETS}
    targets = tuple(letters.get(target, target) for target in options.lora_targets.split(","))
    changes: dict[str, Any] = {"lora_rank": options.lora_rank, "lora_targets": targets}
    model: Any = options.model
    if model == "default":
        # Its shape is read without the package of the language model, which needs torch.
        model = json.loads((resources.files("clone_rl") / "llm" / "embedded" / "config.json").read_text(encoding="utf-8"))
        changes["name"] = "default"
    workload = Workload.from_config(model, options.precision, **changes)
    check_request(workload, options.prompt, options.tokens)
    return workload


def list_chips(options: argparse.Namespace) -> dict[str, Any]:
    """``clone-rl chip list``."""
    from clone_rl.hw_emulator import chip_names, load_chip
    from clone_rl.hw_emulator.report import summary

    chips = [summary(load_chip(name)) for name in chip_names()]
    if not options.json:
        print(chip_text.chips(chips))
    return {"chips": chips}


def show(options: argparse.Namespace) -> dict[str, Any]:
    """``clone-rl chip show``."""
    from clone_rl.hw_emulator import load_chip
    from clone_rl.hw_emulator.report import describe

    found = describe(load_chip(options.chip))
    if not options.json:
        print(chip_text.description(found))
    return found


def cost(options: argparse.Namespace) -> dict[str, Any]:
    """``clone-rl chip cost``."""
    from clone_rl.hw_emulator import Emulator, load_chip
    from clone_rl.hw_emulator.report import knee, placement, request_costs

    path = check_picture(options.plot, "plot")
    celsius = options.temperature
    if celsius is not None and not _COLDEST_C <= celsius <= _HOTTEST_C:
        raise BadValueError(f"temperature is {celsius}", f"{_COLDEST_C:g} to {_HOTTEST_C:g} Celsius")
    chosen = None if options.vf == "all" else sorted(set(_integers(options.vf, "vf")))
    chip, workload = load_chip(options.chip), _workload(options)
    context = options.prompt + options.tokens
    emulator = Emulator(chip, workload, options.switching or None, context=context)
    costs = request_costs(emulator, options.prompt, options.tokens, chosen, options.exit_layer or None, celsius)
    bend = knee([c.decode.latency_s for c in costs], [c.decode.energy_j for c in costs])
    result = {
        **_request_json(options, workload),
        "chip": chip.name,
        "kind": type(chip).__name__.lower(),
        "layers": options.exit_layer or workload.layers,
        "temperature_c": float(emulator.constants[0]["leakage_reference_c"]) if celsius is None else celsius,
        "switching": emulator.switching,
        "limit_w": chip.limit_w,
        "placement": placement(emulator, context),
        "points": [_point_json(emulator, cost) for cost in costs],
        "minimum_energy_point": min(costs, key=lambda cost: cost.decode.energy_j).point,
        "knee_point": None if bend is None else costs[bend].point,
        "plot": str(path) if path else None,
    }
    if path:
        from clone_rl.evaluation.chip_figure import draw_cost

        draw_cost(path, emulator, costs, options.prompt, result["knee_point"])
    if not options.json:
        print(chip_text.request(result))
    return result


def _request_json(options: argparse.Namespace, workload: Workload) -> dict[str, Any]:
    return {
        "model": workload.name,
        "precision": workload.precision.name,
        "lora_rank": workload.lora_rank,
        "prompt": options.prompt,
        "tokens": options.tokens,
    }


def _point_json(emulator: Emulator, cost: RequestCost) -> dict[str, Any]:
    from clone_rl.hw_emulator.report import split

    point, total = emulator.points[cost.point], cost.total
    stall_s, switch_j = emulator.switch(cost.point - 1, cost.point) if cost.point else (None, None)
    return {
        "point": cost.point,
        "voltage_v": float(point["voltage_v"]),
        "frequency_hz": float(point["frequency_hz"]),
        "ttft_s": cost.ttft_s,
        "tpot_s": cost.per_token.latency_s,
        "energy_per_token_j": cost.per_token.energy_j,
        "prefill_j": cost.prefill.energy_j,
        "decode_j": cost.decode.energy_j,
        "request_s": total.latency_s,
        "request_j": total.energy_j,
        "prefill_power_w": cost.prefill.power_w,
        "decode_power_w": cost.decode.power_w,
        "power_w": total.power_w,
        "over_limit": total.power_w > emulator.chip.limit_w,
        "steady_die_c": cost.steady.die_c,
        "steady_power_w": cost.steady.power_w,
        "highest_allowed_point": cost.steady.allowed,
        "throttled": cost.steady.allowed < cost.point,
        "switch_from_below_s": stall_s,
        "switch_from_below_j": switch_j,
        "decode_per_token": split(cost.per_token),
        "prefill": split(cost.prefill),
    }


def scale(options: argparse.Namespace) -> dict[str, Any]:
    """``clone-rl chip scale``."""
    from clone_rl.hw_emulator import Asic, load_chip
    from clone_rl.hw_emulator.report import scaling

    path, tiles = check_picture(options.plot, "plot"), _integers(options.tiles, "tiles")
    chip = load_chip(options.chip)
    if not isinstance(chip, Asic):
        raise BadValueError(f"{chip.name} is a board: its laws are of the whole of it", "scale an ASIC, such as asic28-sram")
    workload = _workload(options)
    rows = scaling(chip, workload, tiles, options.prompt, options.tokens, options.vf)
    result = {
        **_request_json(options, workload),
        "chip": chip.name,
        "rows": rows,
        "plot": str(path) if path else None,
    }
    if path:
        from clone_rl.evaluation.chip_figure import draw_scaling

        draw_scaling(path, rows, f"{workload.name} at {workload.precision.name} on {chip.name} with more and fewer tiles")
    if not options.json:
        print(chip_text.scaled(result))
    return result


def _reference(options: argparse.Namespace) -> Path | None:
    if not options.reference:
        return None
    folder = Path(options.reference)
    if folder.is_dir() and not any(folder.rglob("*.csv")):
        raise BadFileError(f"no reference table in {folder}", "a folder of CSV files")
    return folder


def validate(options: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """``clone-rl chip validate``; exit code 1 if a check fails."""
    from clone_rl.hw_emulator.validation import validate as run

    checks = [check.as_json() for check in run(_reference(options))]
    if not options.json:
        print(chip_text.checked(checks))
    return {"checks": checks}, int(not all(check["pass"] for check in checks))


def fit(options: argparse.Namespace) -> dict[str, Any]:
    """``clone-rl chip fit``."""
    from clone_rl.hw_emulator.validation import fit as run

    constants = [fitted.as_json() for fitted in run(_reference(options))]
    if not options.json:
        print(chip_text.constants(constants))
    return {"constants": constants}
