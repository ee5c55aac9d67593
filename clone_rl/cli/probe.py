"""``clone-rl probe``: fit the exit probe of any model on the user's text, and say what its exits are worth."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from clone_rl.cli.options import add_command
from clone_rl.cli.text import aligned
from clone_rl.errors import BadValueError
from clone_rl.files import replacing

_WAYS = ("static", "predicted_kl", "predicted_agreement", "true_kl", "oracle")
_SIGNALS = ("predicted_kl", "predicted_agreement")
_GOALS = {"dnll": "dNLL <= {:g} nats", "agreement": "agreement >= {:.0%}"}
_WORTHWHILE = 0.05
"""Share of the layers that exits have to save to be worth talking about."""


def add(commands: Any) -> None:
    """The parser of ``clone-rl probe``."""
    parser = add_command(commands, "probe", "Fit, calibrate and judge the exit probe of a model on a folder of text.", probe)
    parser.add_argument("--model", default="default", help="the embedded model or a model folder (default: 'default')")
    parser.add_argument("--text", required=True, help="folder with .txt, .md and question/answer .jsonl files")
    parser.add_argument(
        "--out",
        default="",
        help="probe file to create, with a .json of its provenance beside it (default: probe.safetensors in the model "
        "folder, replacing the one there; none for the embedded model)",
    )
    parser.add_argument(
        "--tokens", type=int, default=200_000, help="tokens to run the model on, fewer if --text is short (default: 200000)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the order of the documents and of the fit (default: 0)")


def probe(options: argparse.Namespace) -> dict[str, Any]:
    """``clone-rl probe``."""
    from clone_rl.cli.run_folder import command_line
    from clone_rl.llm.fitting import encoding_of, fit_and_judge
    from clone_rl.llm.model import load_model
    from clone_rl.llm.release import rounded
    from clone_rl.llm.samples import read_samples

    if not 0 <= options.seed < 2**31:
        raise BadValueError(f"seed is {options.seed}", f"0 or more, at most {2**31 - 1}")
    out = _output(options)
    lm = load_model(options.model)
    samples = read_samples(encoding_of(lm), Path(options.text), options.tokens, options.seed)
    fitted, report = fit_and_judge(lm.anatomy, samples, options.seed)
    found = {
        "model": lm.name,
        "model_sha256": lm.sha256,
        "text_sha256": samples.text_sha256,
        "seed": options.seed,
        "probe_sha256": fitted.sha256,
        "probe_dots": fitted.dots,
        "command": command_line(),
        "advice": advice(report),
        **report,
    }
    if out:
        with replacing(out.with_suffix(".json")) as aside:  # in place once the probe is
            aside.write_text(json.dumps(rounded(found), indent=2) + "\n", encoding="utf-8")
            fitted.save(out)
    if not options.json:
        print(report_text(report))
        print(f"probe: {out}" if out else "nothing written: the embedded model stays as it is without --out")
    return {**found, "out": str(out) if out else None}


def _output(options: argparse.Namespace) -> Path | None:
    """Where the probe goes: never into the installed package, unless asked for by name."""
    from clone_rl.cli.run_folder import check_output

    if options.out:
        out = Path(options.out)
        check_output(out.with_suffix(".json"))
        return check_output(out)
    folder = Path(options.model)
    package = Path(__file__).resolve().parent.parent
    if options.model == "default" or package in folder.resolve().parents:
        return None
    return folder / "probe.safetensors"


def advice(report: dict[str, Any]) -> str:
    """What to expect of this model's exits, in a sentence."""
    layers = report["layers"]
    # Both limits count: an untrained model loses nothing by an exit, and agrees with nothing either.
    depth = max(min(ways[way]["depth"] for way in _SIGNALS) for ways in report["depth_at_quality"].values())
    if 1 - depth >= _WORTHWHILE:
        return f"tokens can leave after {depth:.0%} of the layers on average, within 0.02 nats per token and 98 % agreement"
    full = len(layers) + 1
    before = max(2, math.ceil(0.75 * full))
    best = max(row["agreement"] for row in layers[: before - 1])
    return (
        f"exits agree with full depth on at most {best:.0%} of tokens before layer {before} of {full}: "
        "expect savings from V/f, not from exits; fine-tune with clone-rl pretrain --init"
    )


def report_text(report: dict[str, Any]) -> str:
    """The report for people: exits, depth at quality by kind of text, and a sentence."""
    layers = report["layers"]
    titles = (
        ("after layer", "", "layer"),
        ("agreement", "", "agreement"),
        ("KL, nats", "", "kl"),
        ("dNLL, nats", "", "dnll"),
        ("probe: AUC", "", "auc"),
        ("ECE", "", "ece"),
        ("predicted KL, nats", "", "kl_mean"),
    )
    exits = aligned([(title, unit, [_short(row[key]) for row in layers]) for title, unit, key in titles])
    parts = [("all", report), *report["kinds"].items()]
    return "\n\n".join((f"{report['tokens']} tokens of text that was not fitted on", exits, _depths(parts), advice(report)))


def _depths(parts: list[tuple[str, dict[str, Any]]]) -> str:
    from clone_rl.llm.quality import LIMITS

    rows = [(kind, part["tokens"], goal, part["depth_at_quality"][goal]) for goal in _GOALS for kind, part in parts]
    columns: list[Any] = [
        ("mean depth at", "", [_GOALS[goal].format(LIMITS[goal]) for _, _, goal, _ in rows]),
        ("text", "", [kind for kind, *_ in rows]),
        ("tokens", "", [tokens for _, tokens, *_ in rows]),
    ]
    for way in _WAYS:
        columns.append((way.replace("_", " "), "", [f"{100 * ways[way]['depth']:.1f} %" for *_, ways in rows]))
    achieved = [ways["predicted_kl"] for *_, ways in rows]
    columns.append(("predicted KL gave", "", [f"{a['dnll']:+.4f} nats, {a['agreement']:.1%}" for a in achieved]))
    return aligned(columns)


def _short(value: float) -> float | int:
    return value if isinstance(value, int) or math.isnan(value) else round(value, 4)
