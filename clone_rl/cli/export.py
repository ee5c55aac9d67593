"""``clone-rl export``: a policy as an ONNX graph, a C header or a look-up table, beside its source."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clone_rl.cli.options import add_command
from clone_rl.errors import BadValueError, UnknownNameError
from clone_rl.files import write_together

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from clone_rl.agents.policy import Policy
    from clone_rl.envs.control import Control

FORMATS = {"onnx": ".onnx", "c": ".h", "lut": ".safetensors"}
"""Formats, and how their files end."""

_ONLY = {"fixed": "c", "rom_bytes": "lut"}
_SEEN = 100_000
_TIMED = 100  # decisions between two looks at the clock
_SECONDS = 1.0
_DRAWS = 4  # of each document, where a table is judged
_AGREEMENT_KEY = 2**30  # of observations to compare on: far from the requests that a table is fitted to


@dataclass(frozen=True)
class _Export:
    """What a format gives.

    Attributes:
        save: Writes its files.
        size_bytes: What the target stores.
        act: Decisions (N, heads) for observations (N, width); None where nothing here can run it.
        decide: As many decisions as it gets observations; None as above.
        more: What else there is to say.
    """

    save: Callable[[], None]
    size_bytes: int
    act: Callable[[NDArray[np.float32]], NDArray[np.int64]] | None
    decide: Callable[[NDArray[np.float32]], Any] | None
    more: dict[str, Any]


def add(commands: Any) -> argparse.ArgumentParser:
    """The parser of ``clone-rl export``, but for the options that other commands have as well."""
    text = "Write a policy as an ONNX graph, a C header or a look-up table, and compare it with its source."
    parser = add_command(commands, "export", text, export)
    parser.add_argument("policy", metavar="POLICY", help="shipped policy, policy file or run folder")
    parser.add_argument("--to", required=True, metavar="FORMAT", help="onnx, c or lut")
    parser.add_argument(
        "--out",
        default="",
        help="new file; ends in .onnx, .h or .safetensors (default: in this folder, by the policy's name)",
    )
    parser.add_argument("--fixed", action="store_true", help="with --to c: integers of 16 and 32 bits, without a library")
    parser.add_argument(
        "--rom-bytes", type=int, default=None, metavar="N", help="with --to lut: largest table, bytes (default: what is best)"
    )
    parser.add_argument("--scenario", default="", help="shipped scenario or TOML file to compare in (default: the policy's)")
    parser.add_argument("--chip", default="", help="shipped chip or TOML file (default: the policy's)")
    parser.add_argument("--traces", default="", help="shipped trace set or folder (default: the policy's)")
    parser.add_argument(
        "--observations",
        type=int,
        default=_SEEN,
        metavar="N",
        help=f"observations to compare on; a table is fitted to twice as many (default: {_SEEN})",
    )
    return parser


def _outputs(options: argparse.Namespace, policy: Policy) -> list[Path]:
    """The files that an export writes, the main one first.

    Raises:
        BadFileError: One exists, or its folder does not.
        BadValueError: The name ends otherwise.
    """
    from clone_rl.cli.run_folder import check_output
    from clone_rl.runtime.export.c import plain_name

    suffix, stem = FORMATS[options.to], plain_name(policy.name)
    if options.to == "lut":
        stem += "-lut"
    path = Path(options.out or f"{stem}{'-fixed' if options.fixed else ''}{suffix}")
    if path.suffix != suffix:
        better = path.with_suffix(suffix)
        raise BadValueError(f"--out {path} is no name of a file for --to {options.to}", f"end it in {suffix}: {better}")
    beside = {"c": [path.with_name(f"{path.stem}-golden.c")], "lut": [path.with_suffix(".json")]}
    return [check_output(each) for each in [path, *beside.get(options.to, [])]]


def _check(options: argparse.Namespace) -> None:
    """Refuse unknown formats, and options that would be ignored."""
    if options.to not in FORMATS:
        raise UnknownNameError("format", options.to, FORMATS)
    for name, to in _ONLY.items():
        if getattr(options, name) not in (None, False) and options.to != to:
            raise BadValueError(f"--{name.replace('_', '-')} with --to {options.to}", f"it is for --to {to}; leave it out")
    for name in ("observations", "rom_bytes"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise BadValueError(f"{name.replace('_', ' ')} is {value}", "at least 1")


def _one_by_one(act: Callable[..., Any], seen: NDArray[np.float32]) -> None:
    """Decide for one observation after the other, as a host does."""
    for i in range(len(seen)):
        act(seen[i : i + 1])


def _to_onnx(policy: Policy, paths: list[Path]) -> _Export:
    from clone_rl.runtime.export.onnx import OPSET, OnnxPolicy, metadata, onnx_model

    model = onnx_model(policy)
    run = OnnxPolicy(model)
    more = {"opset": OPSET, "metadata": metadata(policy)}
    return _Export(partial(write_together, {paths[0]: model}), len(model), run.act, partial(_one_by_one, run.act), more)


def _to_c(policy: Policy, paths: list[Path], fixed: bool, seen: NDArray[np.float32]) -> _Export:
    from clone_rl.runtime.export.c import c_header, constant_bytes, fixed_c_header, golden_program, golden_vectors
    from clone_rl.runtime.export.compiler import CompiledPolicy, find_compiler
    from clone_rl.runtime.export.fixed import FixedPolicy, inputs_of

    integers = FixedPolicy(policy) if fixed else None
    header = fixed_c_header(policy, integers) if integers else c_header(policy)
    golden = golden_vectors(policy.act(seen))
    program = golden_program(policy, integers, paths[0].name, seen[golden])
    save = partial(write_together, {paths[0]: header.encode(), paths[1]: program.encode()})
    compiler = find_compiler()
    more = {"fixed": fixed, "golden_vectors": len(golden), "compiler": compiler}
    size = constant_bytes(policy, integers)
    if compiler is None:
        print("clone-rl: no C compiler here: the header was not run; set CC", file=sys.stderr)
        return _Export(save, size, (lambda x: integers.act(inputs_of(x))) if integers else None, None, more)
    run = CompiledPolicy(header, len(policy.heads), "int16_t" if fixed else "float", compiler)
    return _Export(save, size, (lambda x: run.act(inputs_of(x))) if fixed else run.act, run.act, more)


def _to_lut(policy: Policy, paths: list[Path], control: Control, options: argparse.Namespace) -> _Export:
    from clone_rl.bars import Bar
    from clone_rl.cli.run_folder import command_line
    from clone_rl.runtime.export.lut import tabulate

    bar = partial(Bar, desc="tables", unit="table", delay=2.0, disable=None, dynamic_ncols=True)
    found = tabulate(policy, control, options.seed, options.rom_bytes, 2 * options.observations, bar)
    table = replace(found[0].table, card={**found[0].table.card, "command": command_line()})
    more = {
        "shape": table.shape,
        "steps": table.steps,
        "scalars": table.scalars,
        "sfu": {name: _sfu(control, one) for name, one in (("policy", policy), ("table", table))},
        "candidates": [candidate.as_json() for candidate in found],
        "evaluation": {split: _beside(control, policy, table, split, options.seed) for split in ("validation", "test")},
    }
    timed = partial(_one_by_one, partial(table.act, memory=table.memory(1)))
    return _Export(partial(table.save, paths[0]), table.rom_bytes, table.act, timed, more)


def _sfu(control: Control, controller: Any) -> dict[str, float]:
    """One decision on the chip at its top point, as it is charged; beside it, the emulator's price of one look-up."""
    from clone_rl.hw_emulator.emulator import POLICY, Emulator

    def cost(**controller: int) -> dict[str, float]:
        emulator = Emulator(control.emulator.chip, control.emulator.workload, **controller)  # type: ignore[arg-type]
        spent, clock_hz = emulator.cost(POLICY, None), float(emulator.points["frequency_hz"][-1])
        return {"cycles": spent.latency_s * clock_hz, "latency_s": spent.latency_s, "energy_j": spent.energy_j}

    found = cost(policy_macs=controller.macs)
    if size := getattr(controller, "rom_bytes", 0):
        found |= {f"one_lookup_{name}": value for name, value in cost(policy_lut_bytes=size).items()}
    return found


def _beside(control: Control, policy: Policy, table: Any, split: str, seed: int) -> dict[str, Any]:
    """Policy and table on the same requests of a split: the paired protocol of ``clone-rl evaluate``."""
    from clone_rl.agents.rollout import run_requests
    from clone_rl.evaluation.protocol import chosen_documents
    from clone_rl.evaluation.summary import paired, summarise

    documents = chosen_documents(control, split, _DRAWS)
    strata, limits, power_w = control.traces.kind[documents], control.scenario.limits, control.emulator.chip.limit_w
    runs = {name: run_requests(control, one, split, documents, seed) for name, one in (("policy", policy), ("table", table))}
    rows = {name: summarise(name, run, strata, limits, power_w, seed) for name, run in runs.items()}
    return {**rows, **paired(runs["table"], runs["policy"], strata, seed, "over_policy")}


def _timed(policy: Policy, made: _Export, seen: NDArray[np.float32]) -> dict[str, float | None]:
    """Median seconds of a decision: of the export, of NumPy and of the compiled rule, taking turns."""
    from itertools import pairwise
    from statistics import median

    import numpy as np

    from clone_rl.cli.timing import interleaved

    seen = np.resize(seen, (_TIMED, seen.shape[1]))
    ends = [0, *np.cumsum(policy.heads).tolist()]

    def choose(observation: NDArray[np.float32]) -> list[int]:
        logits = policy.logits(observation)[0]
        return [int(logits[start:end].argmax()) for start, end in pairwise(ends)]

    jobs = {
        "numpy_decision_s": partial(_one_by_one, choose, seen),
        "compiled_decision_s": partial(_one_by_one, partial(policy.act, memory=policy.memory(1)), seen),
    }
    if made.decide is not None:
        jobs["decision_s"] = partial(made.decide, seen)
    found = {name: median(times) / _TIMED for name, times in interleaved(jobs, _SECONDS).items()}
    return {"decision_s": None, **found}


def export(options: argparse.Namespace) -> dict[str, Any]:
    """``clone-rl export``."""
    from clone_rl.agents.policy import Policy
    from clone_rl.cli.timing import machine
    from clone_rl.runtime.export.agreement import agreement
    from clone_rl.runtime.export.observations import collect, own_control

    _check(options)
    policy = Policy.load(options.policy)
    paths = _outputs(options, policy)
    control = own_control(policy, options.scenario, options.chip, options.traces)
    seen = collect(control, policy, "test", options.observations, _AGREEMENT_KEY + options.seed)
    if options.to == "onnx":
        made = _to_onnx(policy, paths)
    elif options.to == "c":
        made = _to_c(policy, paths, options.fixed, seen)
    else:
        made = _to_lut(policy, paths, control, options)
    found: dict[str, Any] = {
        "policy": policy.name,
        "policy_sha256": policy.sha256,
        "scenario": control.scenario.name,
        "format": options.to,
        "files": [str(path) for path in paths],
        "bytes": made.size_bytes,
        **(agreement(policy, seen, made.act(seen)) if made.act else {"observations": 0, "agreement": None}),
        **_timed(policy, made, seen),
        **made.more,
        "machine": machine(),
    }
    made.save()
    if not options.json:
        print(_lines(found))
    return found


def _lines(found: dict[str, Any]) -> str:
    """What was made, for people."""
    from clone_rl.cli.text import quantity

    times = {name: quantity(found[name], "s") for name in ("decision_s", "numpy_decision_s", "compiled_decision_s")}
    lines = [
        f"{', '.join(found['files'])}",
        f"{found['bytes']} bytes; a decision takes {times['decision_s']} "
        f"(the policy: {times['numpy_decision_s']} in NumPy, {times['compiled_decision_s']} compiled)",
    ]
    if found["agreement"] is None:
        lines.append("agreement: not measured")
    else:
        wide = "" if found["widest_margin"] is None else f", where the logits are at most {found['widest_margin']:.2g} apart"
        lines.append(
            f"agrees with the policy on {found['agreement']:.3%} of {found['observations']} observations, "
            f"on {found['agreement_own']:.3%} of those of its own rollouts; {found['differing']} differ{wide}"
        )
    if "evaluation" in found:
        lines.append(_table_lines(found))
    return "\n".join(lines)


def _table_lines(found: dict[str, Any]) -> str:
    """Cost and regret of a look-up table, for people."""
    from clone_rl.cli.text import quantity
    from clone_rl.evaluation.report import table

    sfu = found["sfu"]
    costs = {name: f"{one['cycles']:.1f} cycles, {quantity(one['energy_j'], 'J')}" for name, one in sfu.items()}
    lines = [
        f"a {found['shape']} on {', '.join(found['scalars'])}; {found['steps']} look-ups a decision at most: "
        f"{costs['table']}; the policy: {costs['policy']}"
    ]
    for split, result in found["evaluation"].items():
        low, high = result["over_policy_ci"]
        over = f"energy over the policy's {result['over_policy']:+.2%} [{low:+.2%}, {high:+.2%}]"
        lines += ["", f"{split}: {over}", table([result["policy"], result["table"]])]
    return "\n".join(lines)
