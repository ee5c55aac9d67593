"""``clone-rl bench``: how fast this installation is, measured side by side with what others use for the same."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clone_rl.cli.bench_env import bench_env
from clone_rl.cli.bench_llm import bench_llm
from clone_rl.cli.bench_runtime import bench_runtime
from clone_rl.cli.options import add_command
from clone_rl.cli.text import aligned
from clone_rl.cli.timing import check_seconds, machine, per_cpu_second
from clone_rl.errors import CloneRLError

if TYPE_CHECKING:
    from clone_rl.hw_emulator import Emulator

SCALESIM = "3.0.0"
GEMMS = ((16, 256, 256), (1, 512, 512), (32, 512, 512))
"""(m, k, n) of the products that both sides cost."""

_ARRAY = 32
_LONGEST_S = 60.0
_CONTEXTS = 1000

_PEER = """
import contextlib, csv, json, sys, tempfile, time
from pathlib import Path
from scalesim.scale_sim import scalesim

config, gemms = json.loads(sys.stdin.read())
found = []
for m, k, n in gemms:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        at = Path(folder)
        (at / "array.cfg").write_text(config)
        (at / "gemm.csv").write_text(f"Layer,M,N,K,\\ngemm,{m},{n},{k},\\n")
        (at / "layout.csv").write_text("Layer\\n")
        start = time.process_time()
        files = {"config": "array.cfg", "topology": "gemm.csv", "layout": "layout.csv"}
        paths = {key: str(at / name) for key, name in files.items()}
        scalesim(save_disk_space=True, verbose=False, input_type_gemm=True, **paths).run_scale(top_path=folder)
        seconds = time.process_time() - start
        with (at / "run" / "COMPUTE_REPORT.csv").open() as file:
            header, row = [[cell.strip() for cell in line] for line in csv.reader(file)]
        found.append([seconds, int(float(row[header.index("Total Cycles")]))])
print(json.dumps(found))
"""
"""Runs in SCALE-Sim's own environment: CPU seconds and cycles of each product, without writing traces."""

_CONFIG = f"""[general]
run_name = run
[run_presets]
InterfaceBandwidth = CALC
UseRamulatorTrace = False
[architecture_presets]
ArrayHeight = {_ARRAY}
ArrayWidth = {_ARRAY}
IfmapSramSzkB = 1024
FilterSramSzkB = 1024
OfmapSramSzkB = 1024
IfmapOffset = 0
FilterOffset = 10000000
OfmapOffset = 20000000
Dataflow = ws
ReadRequestBuffer = 64
WriteRequestBuffer = 64
[layout]
IfmapCustomLayout = False
IfmapSRAMBankBandwidth = 10
IfmapSRAMBankNum = 10
IfmapSRAMBankPort = 2
FilterCustomLayout = False
FilterSRAMBankBandwidth = 10
FilterSRAMBankNum = 10
FilterSRAMBankPort = 2
[sparsity]
SparsitySupport = false
"""


class PeerError(CloneRLError):
    """Another tool cannot be run here, with the reason."""

    kind = "peer"


def add(commands: Any) -> None:
    """The parsers of ``clone-rl bench``."""
    text = "Measure speed: emulator, env, llm, runtime."
    benches = commands.add_parser("bench", help=text, description=text)
    subjects = benches.add_subparsers(dest="subject", required=True, metavar="SUBJECT")
    emulator = add_command(
        subjects,
        "emulator",
        f"Layer costs per CPU second, and the same products through SCALE-Sim {SCALESIM} in an environment of its own.",
        bench_emulator,
    )
    emulator.add_argument("--no-peers", action="store_true", help="measure this package alone; install nothing")
    emulator.add_argument(
        "--seconds", type=float, default=1.0, help="CPU seconds of each measurement of this package (default: 1.0)"
    )
    env = add_command(
        subjects,
        "env",
        "Steps per CPU second beside Gymnasium's CartPole, training beside training, evaluation, memory and start-up.",
        bench_env,
    )
    env.add_argument("--seconds", type=float, default=5.0, help="CPU seconds of each comparison (default: 5.0)")
    env.add_argument("--no-start", action="store_true", help="leave out the start-up times, which compile everything anew")
    llm = add_command(
        subjects,
        "llm",
        "CPU time per token of the stepper, with and without exits, beside the model's own generate.",
        bench_llm,
    )
    llm.add_argument("--seconds", type=float, default=5.0, help="CPU seconds for each family (default: 5.0)")
    runtime = add_command(
        subjects,
        "runtime",
        "Time of a decision beside Stable-Baselines3's predict, and tokens per CPU second of generate with a controller.",
        bench_runtime,
    )
    runtime.add_argument("--seconds", type=float, default=10.0, help="seconds for each comparison (default: 10.0)")


def _product(k: int, n: int) -> Emulator:
    """A (k x n) product on one array like SCALE-Sim's: a model's head, whose inputs are k wide and whose vocabulary is n."""
    from clone_rl.hw_emulator import Asic, Emulator, Precision, Workload

    chip = Asic.load("asic28-sram")
    compute = replace(chip.compute, tiles=1, array_rows=_ARRAY, array_columns=_ARRAY, dataflow="ws")
    formats = Precision("int4", "int4", "int4", "int4")
    return Emulator(replace(chip, compute=compute), Workload(1, k, 1, 1, 1, n, precision=formats, head_dim=1))


def array_cycles(m: int, k: int, n: int) -> int:
    """Cycles that the compiled cost function charges the array for an (m x k) by (k x n) product."""
    from clone_rl.hw_emulator.emulator import HEAD

    work = _product(k, n).work[HEAD]
    return int(work["array_cycles_per_block"] + m * work["array_cycles_per_row"] - work["array_cycles_saved"])


def _measure(seconds: float) -> dict[str, float]:
    """Speed of this package: a small model's layers, and the products that SCALE-Sim is given."""
    import numpy as np

    from clone_rl.hw_emulator import Emulator, Workload, load_chip, systolic_cycles
    from clone_rl.hw_emulator.cost import cost_table
    from clone_rl.hw_emulator.emulator import HEAD

    emulator = Emulator(load_chip("asic28-sram"), Workload(10, 256, 4, 2, 768))
    contexts = [float(c) for c in range(1, _CONTEXTS + 1)]

    def table() -> int:
        return emulator.table(context=contexts)["latency_s"].size

    def calls() -> int:
        for point in range(len(emulator.points)):
            emulator.layer(context=100, vf=point)
        return len(emulator.points)

    made = [_product(k, n) for _, k, n in GEMMS]
    # Copies in a row, so that nothing of a product's cost can be taken out of the loop.
    works = [np.repeat(each.work[HEAD : HEAD + 1], _CONTEXTS) for each in made]
    out = np.empty((_CONTEXTS, len(emulator.points), 1, 8))

    def products() -> int:
        for (m, _, _), each, work in zip(GEMMS, made, works, strict=True):
            cost_table(each.constants[0], each.points, work, float(m), np.zeros(1), False, 25.0, 1.0, out)
        return len(GEMMS) * out.shape[0] * out.shape[1]

    def cycles() -> int:
        for m, k, n in GEMMS:
            systolic_cycles(m, k, n, _ARRAY, _ARRAY)
        return len(GEMMS)

    return {
        "layer_costs_per_cpu_s": per_cpu_second(table, seconds),
        "layer_calls_per_cpu_s": per_cpu_second(calls, seconds),
        "cpu_s_per_gemm": 1 / per_cpu_second(products, seconds),
        "systolic_cycles_cpu_s_per_gemm": 1 / per_cpu_second(cycles, seconds),
    }


def _run(command: list[str], stdin: str = "") -> str:
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, errors="replace", timeout=600, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerError(f"{Path(command[0]).name}: {error}") from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise PeerError(f"{' '.join(command[1:4])}: {said[-1].strip() if said else f'exit code {done.returncode}'}")
    return done.stdout


def scalesim_python() -> Path:
    """The interpreter of SCALE-Sim's own environment, which is made in the user's cache folder if it is not there.

    Raises:
        PeerError: It cannot be made, for example without a network.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "clone-rl" / f"scalesim-{SCALESIM}"
    python, ready = folder / "bin" / "python", folder / ".ready"
    if not ready.exists():
        print(f"installing SCALE-Sim {SCALESIM} into {folder}", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(folder)])
        # SCALE-Sim 3.0.0 fails with numpy 2.4 and newer.
        _run([str(python), "-m", "pip", "install", "--disable-pip-version-check", "-q", f"scalesim=={SCALESIM}", "numpy<2.4"])
        ready.touch()
    return python


def scalesim() -> list[tuple[float, int]]:
    """CPU seconds and cycles of each of ``GEMMS`` in SCALE-Sim.

    Raises:
        PeerError: It cannot be installed or run here.
    """
    found = _run([str(scalesim_python()), "-c", _PEER], json.dumps([_CONFIG, GEMMS]))
    return [(float(seconds), int(cycles)) for seconds, cycles in json.loads(found.splitlines()[-1])]


def bench_emulator(options: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """``clone-rl bench emulator``; exit code 1 if SCALE-Sim counts other cycles."""
    check_seconds(options.seconds, _LONGEST_S)
    values: dict[str, Any] = {**_measure(options.seconds), "scalesim_cpu_s_per_gemm": None}
    # Beside the compiled loop: a Python function that counts cycles alone, and one Python call per cost of a layer.
    own = {
        "vs_scalesim": values["cpu_s_per_gemm"],
        "vs_scalesim_cycles_only": values["systolic_cycles_cpu_s_per_gemm"],
        "vs_scalesim_python_call": 1 / values["layer_calls_per_cpu_s"],
    }
    ratios: dict[str, Any] = dict.fromkeys(own)
    result: dict[str, Any] = {"values": values, "ratios": ratios, "gemms": [], "machine": machine()}
    code = 0
    try:
        if options.no_peers:
            raise PeerError("--no-peers")
        for (m, k, n), (seconds, theirs) in zip(GEMMS, scalesim(), strict=True):
            ours = array_cycles(m, k, n)
            result["gemms"].append(
                {"m": m, "k": k, "n": n, "scalesim_cpu_s": seconds, "scalesim_cycles": theirs, "cycles": ours}
            )
            code = max(code, int(ours != theirs))
        each = sum(gemm["scalesim_cpu_s"] for gemm in result["gemms"]) / len(GEMMS)
        values["scalesim_cpu_s_per_gemm"] = each
        ratios |= {name: each / ours_s for name, ours_s in own.items()}
    except PeerError as error:
        result["skipped"] = error.message
    if not options.json:
        print(_text(result))
    return result, code


def _text(result: dict[str, Any]) -> str:
    values, ratios, at = result["values"], result["ratios"], result["machine"]
    lines = [
        f"{at['cpu']}, {at['cores']} cores, Python {at['python']}, Numba {at['numba']}, NumPy {at['numpy']}; CPU time",
        f"layer costs, compiled table:    {values['layer_costs_per_cpu_s']:,.0f} per second",
        f"layer costs, Emulator.layer:    {values['layer_calls_per_cpu_s']:,.0f} per second",
        f"one product, compiled cost:     {values['cpu_s_per_gemm'] * 1e6:.3g} us",
        f"one product, systolic_cycles:   {values['systolic_cycles_cpu_s_per_gemm'] * 1e6:.3g} us (cycles alone)",
    ]
    if result.get("skipped"):
        return "\n".join([*lines, f"SCALE-Sim {SCALESIM} skipped: {result['skipped']}"])
    gemms = result["gemms"]
    table = aligned(
        [
            (f"product on {_ARRAY}x{_ARRAY} ws", "", [f"{g['m']} x {g['k']} x {g['n']}" for g in gemms]),
            ("SCALE-Sim", "s", [g["scalesim_cpu_s"] for g in gemms]),
            ("cycles", "", [g["scalesim_cycles"] for g in gemms]),
            ("ours", "", [g["cycles"] for g in gemms]),
            ("", "", ["same" if g["cycles"] == g["scalesim_cycles"] else "DIFFERENT" for g in gemms]),
        ]
    )
    return "\n".join(
        [
            *lines,
            f"one product, SCALE-Sim {SCALESIM}:   {values['scalesim_cpu_s_per_gemm']:.3g} s: "
            f"{ratios['vs_scalesim']:.3g} times the compiled cost (same array cycles, energy besides),",
            f"{ratios['vs_scalesim_python_call']:.3g} times one call of Emulator.layer from Python",
            "",
            table,
        ]
    )
