"""``clone-rl record`` and ``clone-rl trace``: making trace sets, and looking into them."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clone_rl.cli.options import add_command
from clone_rl.cli.text import aligned
from clone_rl.envs.trace import SPLITS
from clone_rl.errors import BadFileError, BadValueError, StoppedError

if TYPE_CHECKING:
    from clone_rl.envs.trace import TraceSet
    from clone_rl.envs.trace_check import Check
    from clone_rl.llm.documents import Document, Responses
    from clone_rl.llm.model import LanguageModel

_SHIPPED = {"train": 100, "validation": 25, "test": 50}
"""Prompts of each kind that are recorded where nothing else is asked for."""


def add(commands: Any) -> None:
    """The parsers of ``clone-rl record`` and ``clone-rl trace``."""
    text = "Record traces of a model: what each exit of each token shows and would emit."
    _add_record(add_command(commands, "record", text, record))

    text = "Look into trace sets: show, validate."
    traces = commands.add_parser("trace", help=text, description=text)
    actions = traces.add_subparsers(dest="action", required=True, metavar="ACTION")
    showing = add_command(
        actions, "show", "Show where a trace set comes from, and the quality and the signals of every exit.", show
    )
    showing.add_argument("traces", metavar="TRACES", help="shipped trace set or folder")
    showing.add_argument("--split", default="", help="only requests of train, validation or test (default: all)")
    showing.add_argument(
        "--plot", default="", help="PNG file for agreement, KL and quality of the signal by depth (default: none)"
    )
    text = "Check a trace set: provenance, columns, ranges, splits, hash; exit code 1 if a check fails."
    validating = add_command(actions, "validate", text, validate)
    validating.add_argument("traces", metavar="TRACES", help="shipped trace set or folder")


def _add_record(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, help="folder to create; unfinished work waits in OUT.partial")
    parser.add_argument("--append", action="store_true", help="add to the set in OUT; requests that it has are left out")
    parser.add_argument("--model", default="default", help="the embedded model or a model folder (default: 'default')")
    parser.add_argument(
        "--precision", default="", help="number formats that a Hugging Face folder is rounded to (default: the emulator's)"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--prompt-file", "--prompts", default="", metavar="FILE",
        help="record these prompts instead of the shipped ones (JSONL may give 'answer', 'kind' and 'split')",
    )  # fmt: skip
    source.add_argument(
        "--text", default="", metavar="DIR", help="record windows of the .txt, .md and .jsonl files of a folder"
    )
    for split, count in _SHIPPED.items():
        parser.add_argument(
            f"--{split}", type=int, default=None, help=f"shipped {split} prompts of each kind (default: {count})"
        )
    parser.add_argument(
        "--split", default="",
        help="split of the prompts or of the text (default: 'test' for prompts; text is divided 60/20/20 by a hash)",
    )  # fmt: skip
    parser.add_argument(
        "--windows", type=int, default=400, help="windows of text to record at most, spread over all documents (default: 400)"
    )
    parser.add_argument("--prompt-tokens", type=int, default=32, help="tokens of text that are the prompt (default: 32)")
    parser.add_argument(
        "--held-out", action="store_true", help="only the documents of --text that clone-rl pretrain keeps for validation"
    )
    parser.add_argument(
        "--mode", default="auto",
        help="teacher-forced (every response is given), free-running (every response is the model's own) or auto: given where "
        "there is an answer or text to give (default: 'auto')",
    )  # fmt: skip
    parser.add_argument(
        "--max-new-tokens", type=int, default=80, help="longest response that is sampled or cut from text (default: 80)"
    )
    parser.add_argument("--temperature", type=float, default=0.8, help="of sampled responses, 0 is greedy (default: 0.8)")
    parser.add_argument("--top-k", type=int, default=40, help="most probable tokens to draw from; 0 takes all (default: 40)")


def _documents(options: argparse.Namespace, responses: Responses) -> Callable[[LanguageModel], list[Document]]:
    """What the options ask to record: read now, told in tokens as soon as there is a model."""
    from clone_rl.llm.corpus import held_out, read_documents
    from clone_rl.llm.documents import prompt_documents, text_documents
    from clone_rl.llm.prompt_file import read_prompts
    from clone_rl.llm.prompts import make_prompts

    asked = {split: getattr(options, split) for split in SPLITS}
    counted = [split for split, count in asked.items() if count is not None]
    if options.text or options.prompt_file:
        if counted:
            raise BadValueError(f"--{counted[0]} counts shipped prompts", "leave it out with --text and --prompt-file")
    elif options.split:
        raise BadValueError(f"--split {options.split} is for --text and --prompt-file", "use --train, --validation and --test")
    if options.text:
        texts = read_documents(Path(options.text))
        if options.held_out:
            texts = [text for text in texts if held_out(text)]
        if not texts:
            raise BadFileError(f"{options.text} holds no text to record", "give .txt, .md or question/answer .jsonl files")
        return lambda lm: text_documents(lm, texts, responses, options.prompt_tokens, options.windows, options.split)
    if options.prompt_file:
        prompts = [(p.split or options.split or "test", p) for p in read_prompts(Path(options.prompt_file))]
    else:
        counts = {split: _SHIPPED[split] if count is None else count for split, count in asked.items()}
        prompts = [(split, p) for split, count in counts.items() if count for p in make_prompts(split, count)]
    return lambda lm: prompt_documents(lm, prompts, responses)


def record(options: argparse.Namespace) -> dict[str, Any]:
    """``clone-rl record``.

    Raises:
        StoppedError: Ctrl-C; what is recorded is kept.
    """
    from clone_rl.cli.run_folder import check_output, command_line, keeping

    out = Path(options.out)
    if not options.append:
        check_output(out)
    from clone_rl.llm.documents import Responses
    from clone_rl.llm.model import load_model
    from clone_rl.llm.recording import record_to
    from clone_rl.llm.sampling import Sampling

    responses = Responses(options.mode, options.max_new_tokens, Sampling(options.temperature, options.top_k))
    documents = _documents(options, responses)
    lm = load_model(options.model, options.precision)
    lm.need_probe()
    chosen = documents(lm)
    try:
        with keeping(f"{out}.partial", "the same command"):
            traces, new = record_to(out, lm, chosen, responses, options.append, command_line())
    except KeyboardInterrupt:
        raise StoppedError(
            f"recording stopped; what is finished is in {out}.partial", "repeat the command to continue"
        ) from None
    tokens, agreement = int(traces.offset[-1]), [round(float(a), 4) for a in traces.read("agree").mean(0)]
    if not options.json:
        print(f"{len(traces.split)} requests ({new} new), {tokens} tokens in {out}")
        print(f"agreement with full depth by exit: {agreement}")
        if cut := traces.card["cut_by_context"]:
            print(f"{cut} responses end where the model's context of {lm.shape.context} tokens does")
    return {
        "out": str(out),
        "requests": len(traces.split),
        "new": new,
        "tokens": tokens,
        "agreement": agreement,
        "card": _provenance(traces),
    }


def _provenance(traces: TraceSet) -> dict[str, Any]:
    """The card without the keys of the documents, which are for programs."""
    return {name: value for name, value in traces.card.items() if name != "keys"}


def show(options: argparse.Namespace) -> dict[str, Any]:
    """``clone-rl trace show``."""
    from clone_rl.cli.run_folder import check_picture
    from clone_rl.envs.trace import load_traces
    from clone_rl.evaluation.trace_summary import summarise

    picture = check_picture(options.plot, "plot")
    traces = load_traces(options.traces)
    found = summarise(traces, options.split)
    if picture:
        from clone_rl.evaluation.trace_figure import draw_traces

        draw_traces(picture, found, _headline(options, traces, found))
    if not options.json:
        print(_text(options, traces, found))
        if picture:
            print(f"picture: {picture}")
    return {"traces": options.traces, "layers": traces.layers, "card": _provenance(traces), **found}


def validate(options: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """``clone-rl trace validate``; exit code 1 if a check fails."""
    from clone_rl.envs.trace_check import check_traces

    checks = check_traces(options.traces)
    if not options.json:
        print(_checked(checks))
    return {"traces": options.traces, "checks": [check.as_json() for check in checks]}, int(not all(c.passed for c in checks))


def _checked(checks: list[Check]) -> str:
    verdicts = {True: "ok", False: "FAILED", None: "not looked at"}
    table = aligned(
        [
            ("check", "", [check.name for check in checks]),
            ("", "", [verdicts[check.passed] for check in checks]),
            ("what has to hold", "", [check.wants for check in checks]),
        ]
    )
    failed = [f"{check.name}: {check.found}\n  {check.fix}" for check in checks if check.passed is False]
    return "\n".join([table, "", *failed, f"{sum(check.passed is True for check in checks)} of {len(checks)} checks hold"])


def _headline(options: argparse.Namespace, traces: TraceSet, found: dict[str, Any]) -> str:
    requests = sum(sum(counts.values()) for counts in found["requests"].values())
    only = f"{options.split} " if options.split else ""
    return (
        f"Trace set {options.traces}: {requests:,} {only}requests, {sum(found['tokens'].values()):,} tokens "
        f"of model {traces.card.get('model', 'unknown')}, {traces.layers} layers"
    )


def _text(options: argparse.Namespace, traces: TraceSet, found: dict[str, Any]) -> str:
    counts, kinds, exits = found["requests"], list(found["requests"]), found["exits"]
    names = {
        "agreement": "agreement", "kl": "KL", "dnll": "dNLL", "auc": "signal AUC", "ece": "ECE", "margin": "margin",
        "entropy": "entropy",
    }  # fmt: skip
    layers = [*(str(row["layer"]) for row in exits), f"{traces.layers} (full)"]
    full = {"agreement": 1.0, "kl": 0.0, "dnll": 0.0, "auc": None, "ece": None, **found["full_depth"]}
    by_exit = aligned(
        [
            ("layers", "", layers),
            *((title, "", [_shown(row[key]) for row in [*exits, full]]) for key, title in names.items()),
        ]
    )
    by_kind = [
        aligned(
            [
                ("layers", "", layers[:-1]),
                *((kind, "", [_shown(row[key]) for row in found["exits_by_kind"][kind]]) for kind in kinds),
            ]
        )
        for key in ("agreement", "kl", "auc")
    ]
    requests = aligned(
        [
            ("kind", "", kinds),
            *((split, "", [counts[kind][split] for kind in kinds]) for split in SPLITS),
            ("tokens", "", [found["tokens"][kind] for kind in kinds]),
        ]
    )
    titles = ("agreement by kind", "KL by kind, nats per token", "signal AUC by kind")
    return "\n".join(
        [
            _headline(options, traces, found),
            *_origin(traces, found["sampled"]),
            "",
            requests,
            "",
            "quality of leaving after so many layers; KL, dNLL, margin and entropy in nats per token",
            by_exit,
            *(line for title, block in zip(titles, by_kind, strict=True) for line in ("", title, block)),
        ]
    )


def _shown(value: float | None) -> str:
    return "      -" if value is None or math.isnan(value) else f"{value: .4f}"


def _origin(traces: TraceSet, sampled: float) -> list[str]:
    """Where a set comes from, a line each; cards of other makers may lack any of it."""
    card = traces.card
    drawn = card.get("sampling") or {}
    lines = {
        "model": f"sha256 {str(card['model_sha256'])[:12]}, {card.get('precision', '')}" if "model_sha256" in card else "",
        "probe": f"sha256 {card['probe_sha256'][:12]}, {card['probe_dots']} dot products per exit"
        if {"probe_sha256", "probe_dots"} <= card.keys()
        else "",
        "responses": f"{1 - sampled:.0%} of the tokens given, {sampled:.0%} the model's own (temperature "
        f"{drawn.get('temperature', '?')}, top-k {drawn.get('top_k', '?')}); mode {card.get('mode', 'auto')}",
        "K/V": str(card.get("kv", "")),
        "set": f"sha256 {str(card['sha256'])[:12]}" if "sha256" in card else "",
        "made by": f"{card['command']} (version {card.get('version', '?')})" if card.get("command") else "",
    }
    lines |= {f"added {n}": part["command"] for n, part in enumerate(card.get("appended", []), 1)}
    return [f"{name + ':':11}{value}" for name, value in lines.items() if value]
