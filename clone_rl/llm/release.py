"""From a training checkpoint to a model folder: quantise, fit the exit probe, measure, write the card."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tqdm import tqdm

from clone_rl.errors import BadFileError
from clone_rl.llm.corpus import read_corpus
from clone_rl.llm.exits import exit_statistics
from clone_rl.llm.model import hidden_states
from clone_rl.llm.pretrain import Recipe, build_model
from clone_rl.llm.probe import auc, calibration_error, fit_probe
from clone_rl.llm.prompts import KINDS, make_prompt, reserved_texts
from clone_rl.llm.quantise import pack, unpack
from clone_rl.llm.tokenizer import END_ID, load_tokenizer

_PROSE_TOKENS, _PROSE_FROM = 192, 32  # window, and first position whose exits are used
_FIT_SEED, _CHECK_SEED = 5_000_000_000, 6_000_000_000  # prompts for fitting and for checking the probe, apart from all others


def _samples(tokenizer: Tokenizer, documents: list[str], windows: int, prompts: int, seed: int) -> list[tuple[list[int], int]]:
    """Token sequences and the first position whose prediction counts."""
    samples = []
    stride = max(1, len(documents) // windows)
    for document in documents[::stride][:windows]:
        samples.append(([END_ID, *tokenizer.encode(document).ids][:_PROSE_TOKENS], _PROSE_FROM))
    reserved = reserved_texts()
    for number in range(prompts):
        prompt = make_prompt(KINDS[1 + number % 3], seed + number)
        if prompt.text not in reserved:
            head = [END_ID, *tokenizer.encode(prompt.text).ids]
            samples.append(([*head, *tokenizer.encode(prompt.answer).ids, END_ID], len(head) - 1))
    return [(ids, start) for ids, start in samples if len(ids) > start + 1]


def _collect(model: Any, samples: list[tuple[list[int], int]], label: str) -> dict[str, torch.Tensor]:
    hidden, columns = [], []
    for ids, start in tqdm(samples, desc=label, unit="doc", file=sys.stderr):
        states = hidden_states(model, torch.tensor([ids]))[:, start:-1]
        columns.append(exit_statistics(model, states, torch.tensor(ids[start + 1 :])))
        hidden.append(states[:-1].half())
    names = ("agree", "kl", "dnll", "nll")
    return {"hidden": torch.cat(hidden, 1), **{n: torch.cat([getattr(c, n) for c in columns], -1) for n in names}}


def release(run: Path, text: Path, out: Path, command: str) -> dict[str, Any]:
    """Write a model folder from a pretraining run.

    Args:
        run: Folder of ``pretrain``.
        text: The training text again, for the probe and for held-out figures.
        out: Folder to create.
        command: What the user ran, for the card.

    Returns:
        The card: sizes, steps, held-out loss of every exit, AUC and calibration error of the probe by exit.

    Raises:
        BadFileError: ``out`` exists, or ``run`` has no checkpoint.
    """
    if out.exists():
        raise BadFileError(f"{out} exists", "choose another folder or remove it")
    if not (run / "checkpoint.pt").exists():
        raise BadFileError(f"no checkpoint in {run}", "run clone-rl pretrain first")
    saved = torch.load(run / "checkpoint.pt", weights_only=True)
    recipe = Recipe(**saved["recipe"])
    model = build_model(recipe)
    weights = {name: tensor for name, tensor in saved["model"].items() if name != "lm_head.weight"}
    packed = pack(weights)
    model.load_state_dict(unpack(packed), strict=False)
    model.tie_weights()
    model.eval()
    tokenizer = load_tokenizer(run / "tokenizer.json")

    train, held = read_corpus(text)
    fit = _collect(model, _samples(tokenizer, train, 250, 900, _FIT_SEED), "probe: train")
    probe = fit_probe(fit["hidden"], fit["agree"], fit["kl"])
    check = _collect(model, _samples(tokenizer, held, 120, 450, _CHECK_SEED), "probe: check")
    exits = []
    for layer in range(1, recipe.layers):
        signal = probe.signals(check["hidden"][layer - 1].float(), layer)
        agree = check["agree"][layer - 1]
        exits.append(
            {
                "layer": layer,
                "agreement": round(float(agree.mean()), 4),
                "kl": round(float(check["kl"][layer - 1].mean()), 4),
                "dnll": round(float(check["dnll"][layer - 1].mean()), 4),
                "probe_auc": round(auc(signal[:, 0], agree), 4),
                "probe_calibration_error": round(calibration_error(signal[:, 0], agree), 4),
                "probe_kl_mean": round(float(signal[:, 1].mean()), 4),
            }
        )
    report = json.loads((run / "report.json").read_text()) if (run / "report.json").exists() else {}
    card = {
        "command": command,
        "recipe": saved["recipe"],
        "steps": saved["step"],
        "tokens": saved["step"] * recipe.batch * recipe.context,
        "parameters": sum(p.numel() for p in model.parameters()),
        "validation_loss": report.get("validation_loss"),
        "validation_loss_quantised": report.get("validation_loss_quantised"),
        "exits_held_out": exits,
        "held_out_tokens": int(check["nll"].shape[0]),
        "held_out_nll": round(float(check["nll"].mean()), 4),
        "weights": "INT4 in groups of 64 (decoder), INT8 per row (tied embedding and head)",
    }
    aside = out.with_name(f".{out.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_file(packed, aside / "model.safetensors")
    probe.save(aside / "probe.safetensors")
    config = model.config.to_dict()
    kept = {key: value for key, value in config.items() if value is not None and not key.startswith(("_", "transformers"))}
    (aside / "config.json").write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(run / "tokenizer.json", aside / "tokenizer.json")
    (aside / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    aside.rename(out)
    return card
