"""From a training checkpoint to a model folder: quantise, fit the exit probe, measure, write the card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from clone_rl.errors import BadFileError
from clone_rl.files import building
from clone_rl.llm.anatomy import Anatomy
from clone_rl.llm.fitting import fit_and_judge
from clone_rl.llm.model import EMBEDDED, load_model
from clone_rl.llm.model_card import model_card
from clone_rl.llm.pretrain import STORED, Subject, read_run, subject_of
from clone_rl.llm.quantise import pack, quantise_model, unpack
from clone_rl.llm.recipe import Recipe
from clone_rl.llm.report import exact_match
from clone_rl.llm.samples import Encoding, read_samples

_CURVE_POINTS = 24
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")


def _stage(run: Path, saved: dict[str, Any], command: str) -> dict[str, Any]:
    """What one run did."""
    recipe = Recipe(**saved["recipe"])
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = rows[:: max(1, len(rows) // _CURVE_POINTS)]
    return {
        "command": command,
        "recipe": saved["recipe"],
        "steps": saved["step"],
        "tokens": saved["step"] * recipe.batch * recipe.context,
        "minutes": round(saved["spent_s"] / 60, 1),
        "curve": [[row["tokens"], row["loss"]] for row in kept],
    }


def _earlier(base: str) -> list[dict[str, Any]]:
    """Stages that the model went through before."""
    if not base:
        return []
    run = Path(base)
    if (run / "checkpoint.pt").exists():
        saved = read_run(run)
        return [*_earlier(saved.get("base", "")), _stage(run, saved, saved.get("command", ""))]
    return list(load_model(base).card.get("stages", [])) if base == EMBEDDED or run.is_dir() else []


def _write_model(subject: Subject, run: Path, folder: Path) -> None:
    """Weights, configuration and tokeniser; ``subject.model`` is left with the weights that the chip stores."""
    model = subject.model
    if subject.packed:
        packed = pack({name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"})
        save_file(packed, folder / "model.safetensors")
        model.load_state_dict(unpack(packed), strict=False)
        model.tie_weights()
        config = model.config.to_dict()
        kept = {key: value for key, value in config.items() if value is not None and not key.startswith(("_", "transformers"))}
        (folder / "config.json").write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
        shutil.copyfile(run / "tokenizer.json", folder / "tokenizer.json")
        return
    model.save_pretrained(folder)
    for name in _TOKENIZER_FILES:
        if (Path(subject.home) / name).is_file():
            shutil.copyfile(Path(subject.home) / name, folder / name)
    quantise_model(model, STORED)


def release(run: Path, text: Path, out: Path, command: str, tokens: int = 200_000) -> dict[str, Any]:
    """Write a model folder from a pretraining run.

    Args:
        run: Folder of ``pretrain``.
        text: The training text again, for the probe and for held-out figures.
        out: Folder to create.
        command: What the user ran, for the card.
        tokens: Positions to fit, calibrate and judge the probe on.

    Returns:
        The card: how the model was trained, held-out loss of every exit, quality and depth (``quality.quality_report``),
        exact answers by task.

    Raises:
        BadFileError: ``out`` exists, or ``run`` has no checkpoint.
    """
    if out.exists():
        raise BadFileError(f"{out} exists", "choose another folder or remove it")
    saved = read_run(run)
    subject = subject_of(run, saved)
    with building(out) as aside:
        _write_model(subject, run, aside)
        anatomy = Anatomy(subject.model.eval())
        encoding = Encoding(lambda one: next(iter(subject.encode([one]))), (subject.start,), (subject.end,), anatomy.context)
        probe, quality = fit_and_judge(anatomy, read_samples(encoding, text, tokens))
        probe.save(aside / "probe.safetensors")
        report = json.loads((run / "report.json").read_text(encoding="utf-8")) if (run / "report.json").exists() else {}
        stages = [*_earlier(saved.get("base", "")), _stage(run, saved, command)]
        card: dict[str, Any] = {
            "command": command,
            "stages": stages,
            "tokens": sum(stage["tokens"] for stage in stages),
            "parameters": sum(p.numel() for p in subject.model.parameters()),
            "weights": "INT4 in groups of 64 (decoder), INT8 per row (tied embedding and head)",
            "validation_loss": report.get("validation_loss"),
            "validation_loss_quantised": report.get("validation_loss_quantised"),
            "probe_dots": probe.dots,
            "quality": quality,
            "exact_match": exact_match(anatomy, encoding),
        }
        name = "card.json" if subject.packed else "pretrain.json"
        card = rounded(card)
        (aside / name).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
        (aside / "MODEL_CARD.md").write_text(model_card(card, out.name), encoding="utf-8")
    return card


def rounded(value: Any, digits: int = 5) -> Any:
    """Plain data with floats of a few significant digits, and without what JSON does not know."""
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item, digits) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if abs(value) < float("inf") else None
    return value
