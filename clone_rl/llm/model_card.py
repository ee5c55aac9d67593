"""A model's card for people, from the card that its release wrote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_WAYS = {
    "static": "one fixed exit",
    "predicted_kl": "calibrated probe, predicted KL",
    "predicted_agreement": "calibrated probe, predicted agreement",
    "true_kl": "true KL known (a perfect probe)",
    "oracle": "oracle over tokens",
}


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def _depths(quality: dict[str, Any]) -> str:
    parts = {"all text": quality, **quality["kinds"]}
    head = ["exit chosen by", *(f"{kind}: {goal}" for kind in parts for goal in ("dNLL <= 0.02", "agreement >= 0.98"))]
    rows = []
    for way, name in _WAYS.items():
        cells = []
        for part in parts.values():
            for goal in ("dnll", "agreement"):
                found = part["depth_at_quality"][goal][way]
                came = "" if way == "oracle" else f" ({found['dnll']:+.3f}, {found['agreement']:.1%})"
                cells.append(f"{found['depth']:.1%}{came}")
        rows.append([name, *cells])
    return _table(head, rows)


def _exits(quality: dict[str, Any]) -> str:
    kinds = quality["kinds"]
    head = ["after layer", "agreement", *(f"on {kind}" for kind in kinds), "KL", "dNLL", "probe AUC", "ECE"]
    rows = []
    for index, row in enumerate(quality["layers"]):
        rows.append(
            [
                str(row["layer"]),
                f"{row['agreement']:.3f}",
                *(f"{kind['layers'][index]['agreement']:.3f}" for kind in kinds.values()),
                # An exit that always agrees, or never does, has no AUC.
                *("-" if row[name] is None else f"{row[name]:.3f}" for name in ("kl", "dnll", "auc", "ece")),
            ]
        )
    return _table(head, rows)


def _stage(stage: dict[str, Any]) -> str:
    recipe = stage["recipe"]
    curve = ", ".join(f"{tokens / 1e6:.1f} M: {loss:.2f}" for tokens, loss in stage["curve"])
    return (
        f"`{stage['command'] or 'clone-rl pretrain'}`: {stage['steps']} steps, {stage['tokens'] / 1e6:.2f} M tokens, "
        f"{stage['minutes']:.0f} minutes; learning rate {recipe['learning_rate']:g}, exit weight {recipe['exit_weight']:g}, "
        f"of it {recipe.get('distil', 0):.0%} distilled from the last layer. Training loss at full depth (nats, text and "
        f"tasks mixed) by tokens: {curve}."
    )


def model_card(card: dict[str, Any], name: str) -> str:
    """Markdown of a card that ``release`` wrote; every figure in it is the card's.

    Args:
        card: The contents of ``card.json`` (or ``pretrain.json``).
        name: Of the model.
    """
    quality, losses = card["quality"], card["validation_loss"]
    stages = [f"{number}. {_stage(stage)}" for number, stage in enumerate(card["stages"], 1)]
    answers = card["exact_match"]
    layers = range(1, 1 + max(map(len, answers.values()), default=0))
    tasks = _table(
        ["exit after layer", *map(str, layers)], [[k, *(f"{v:.0%}" for v in shares)] for k, shares in answers.items()]
    )
    lines = [
        f"# {name}",
        f"{card['parameters'] / 1e6:.2f} M parameters; {card['weights']}. Trained on {card['tokens'] / 1e6:.2f} M tokens.",
        "## Training",
        "\n".join(stages),
    ]
    if losses:
        exact, stored = losses[-1], card["validation_loss_quantised"][-1]
        lines.append(f"Held-out loss at full depth: {exact:.4f} nats per token with exact weights, {stored:.4f} as stored.")
    lines += [
        "## Exits",
        f"On {quality['tokens']} held-out tokens, teacher-forced, weights as stored. KL and dNLL in nats per token; the probe "
        f"takes {card['probe_dots']} dot products of the residual's width at a boundary.",
        _exits(quality),
        "Smallest mean depth within a limit (in brackets what came out: nats per token, agreement). Fixed exits and "
        "thresholds are chosen on other text than they are judged on; the last two rows know what they are judged on, and "
        "the oracle gains from tokens that an exit happens to predict better.",
        _depths(quality),
    ]
    if answers:
        lines += ["Right answers to generated tasks, whole answer, greedy:", tasks]
    return "\n\n".join(lines) + "\n"
