"""The recipe of the embedded early-exit language model, on any folder of text.

Loss = next-token cross-entropy of the last layer + 0.25 x that of two rotating exits, all through the shared norm and head
(early-exit loss and layer dropout after LayerSkip, arXiv 2404.16710); Muon on the matrices, AdamW on the rest; in the last
part of the run the forward pass sees the quantised weights (straight-through), so that the shipped precision is trained.
Templates are generated fresh by ``clone_rl.llm.prompts`` and never repeat; no prompt reserved for control is among them.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from clone_rl.errors import BadFileError
from clone_rl.files import replacing
from clone_rl.llm.corpus import read_corpus
from clone_rl.llm.muon import Muon
from clone_rl.llm.prompts import KINDS, make_prompt, reserved_texts
from clone_rl.llm.quantise import fake_quantise, weight_bits
from clone_rl.llm.tokenizer import END_ID, load_tokenizer, train_tokenizer


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result besides the text and the machine.

    Attributes:
        minutes: Wall-clock training time, minutes; the learning rate follows it.
        vocab_size: Tokens in the vocabulary.
        hidden_size: Width of the residual stream.
        layers: Decoder layers.
        heads: Query heads.
        kv_heads: Key/value heads.
        ff_size: Width of the feed-forward network.
        context: Tokens per training window and longest context of the model.
        batch: Windows per step.
        learning_rate: Peak, reached after ``warmup`` steps, flat for half of the time, then linear to 2 %.
        warmup: Steps over which the learning rate rises to its peak.
        exit_weight: Weight of each of the two rotating exit losses.
        layer_drop: Highest probability of skipping a layer in training (the last layer's).
        template_share: Share of windows made of generated prompts with answers.
        quantised_from: Share of the time after which the forward pass uses quantised weights.
        seed: Seed of the initial weights and of the order of the data.
    """

    minutes: float = 60.0
    vocab_size: int = 2048
    hidden_size: int = 256
    layers: int = 10
    heads: int = 4
    kv_heads: int = 2
    ff_size: int = 768
    context: int = 256
    batch: int = 16
    learning_rate: float = 2.5e-3
    warmup: int = 40
    exit_weight: float = 0.25
    layer_drop: float = 0.1
    template_share: float = 0.4
    quantised_from: float = 0.7
    seed: int = 0


def build_model(recipe: Recipe) -> LlamaForCausalLM:
    """A freshly initialised Llama decoder with tied embeddings."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=recipe.vocab_size,
        hidden_size=recipe.hidden_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        intermediate_size=recipe.ff_size,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        initializer_range=0.02,
        bos_token_id=END_ID,
        eos_token_id=END_ID,
        pad_token_id=None,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            torch.nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * recipe.layers))
    return model


def training_states(model: LlamaForCausalLM, ids: torch.Tensor, dropped: frozenset[int] = frozenset()) -> list[torch.Tensor]:
    """Residual stream after each decoder layer; ``ids`` has shape (batch, tokens), each result (batch, tokens, hidden)."""
    decoder = model.model
    x = decoder.embed_tokens(ids)
    positions = decoder.rotary_emb(x, position_ids=torch.arange(ids.shape[1], device=ids.device)[None])
    states = []
    for index, layer in enumerate(decoder.layers):
        if index not in dropped:
            x = layer(x, attention_mask=None, position_embeddings=positions)
        states.append(x)
    return states


class _Windows:
    """Endless training windows: real text by random order without repeats in a pass, templates generated as they go."""

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer, text: np.ndarray) -> None:
        self.recipe, self.tokenizer, self.text = recipe, tokenizer, text
        self.rng = np.random.default_rng(recipe.seed)
        self.reserved = reserved_texts()
        self.template_seed = 0
        self.templates: list[int] = []
        self.order: list[int] = []

    def _template_window(self) -> np.ndarray:
        while len(self.templates) <= self.recipe.context:
            batch: list[str] = []
            while len(batch) < 256:
                prompt = make_prompt(KINDS[1 + self.template_seed % 3], self.template_seed)
                self.template_seed += 1
                if prompt.text not in self.reserved:
                    batch.append(prompt.text + prompt.answer)
            for encoding in self.tokenizer.encode_batch(batch):
                self.templates += [END_ID, *encoding.ids]
        window = np.array(self.templates[: self.recipe.context + 1])
        del self.templates[: self.recipe.context]
        return window

    def _text_window(self) -> np.ndarray:
        if not self.order:
            # Windows of a new pass start at another offset, so that no pass cuts the text at the same places.
            start = int(self.rng.integers(self.recipe.context))
            last = len(self.text) - self.recipe.context - 1
            self.order = list(self.rng.permutation(np.arange(start, last, self.recipe.context)))
        at = self.order.pop()
        return self.text[at : at + self.recipe.context + 1]

    def batch(self) -> torch.Tensor:
        rows = [
            self._template_window() if self.rng.random() < self.recipe.template_share else self._text_window()
            for _ in range(self.recipe.batch)
        ]
        return torch.from_numpy(np.stack(rows).astype(np.int64))


def _encode(tokenizer: Tokenizer, documents: list[str]) -> np.ndarray:
    ids: list[int] = []
    for encoding in tokenizer.encode_batch(documents):
        ids += [END_ID, *encoding.ids]
    return np.array(ids, dtype=np.uint16)


@contextmanager
def _quantised(model: LlamaForCausalLM) -> Iterator[None]:
    """Run the block with quantised weights and put the exact ones back: gradients pass straight through."""
    exact = {name: parameter.data for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        if (bits := weight_bits(name, parameter)) < 32:
            parameter.data = fake_quantise(parameter.data, bits)
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.data = exact[name]


@torch.no_grad()
def exit_losses(model: LlamaForCausalLM, tokens: np.ndarray, context: int, windows: int) -> list[float]:
    """Mean next-token cross-entropy (nats) of every exit on the first windows of a token stream."""
    context = min(context, len(tokens))
    windows = min(windows, len(tokens) // context)
    x = torch.from_numpy(tokens[: windows * context].astype(np.int64)).view(-1, context)
    totals, count = torch.zeros(len(model.model.layers)), 0
    for rows in x.split(16):
        targets = rows[:, 1:].reshape(-1)
        for index, state in enumerate(training_states(model, rows)):
            logits = model.lm_head(model.model.norm(state))[:, :-1].float()
            totals[index] += F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets, reduction="sum")
        count += targets.numel()
    return [float(t) for t in totals / count]


def pretrain(text: Path, out: Path, recipe: Recipe, resume: bool = False) -> dict[str, Any]:
    """Train and write ``tokenizer.json``, ``checkpoint.pt`` and ``log.jsonl`` under ``out``.

    Args:
        text: Folder of training text, see ``clone_rl.llm.corpus``.
        out: Folder to create; ``checkpoint.pt`` is replaced every few minutes.
        recipe: What to train.
        resume: Continue from ``out/checkpoint.pt``.

    Returns:
        Steps, tokens, parameters and the validation loss of every exit with exact and with quantised weights.

    Raises:
        BadFileError: No usable text, ``out`` already holds a run, or nothing to resume.
    """
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists() and not resume:
        raise BadFileError(f"{out} already holds a training run", "add --resume, or choose another folder")
    if resume and not checkpoint.exists():
        raise BadFileError(f"no checkpoint in {out}", "start without --resume")
    train_documents, validation_documents = read_corpus(text)
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "tokenizer.json").exists():
        sample = [make_prompt(kind, seed) for kind in KINDS for seed in range(2000)]
        fitted = train_tokenizer(train_documents + [p.text + p.answer for p in sample], recipe.vocab_size)
        fitted.save(str(out / "tokenizer.json"))
    tokenizer = load_tokenizer(out / "tokenizer.json")
    windows = _Windows(recipe, tokenizer, _encode(tokenizer, train_documents))
    validation = _encode(tokenizer, validation_documents)

    model = build_model(recipe)
    named = list(model.named_parameters())
    matrices = [p for n, p in named if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in named if p.ndim != 2 or "embed" in n]
    optimisers: list[torch.optim.Optimizer] = [
        Muon(matrices, lr=recipe.learning_rate),
        torch.optim.AdamW(rest, lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    step, spent_s = 0, 0.0
    if resume:
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        for optimiser, state in zip(optimisers, saved["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        step, spent_s, windows.template_seed = saved["step"], saved["spent_s"], saved["template_seed"]

    def exit_loss(state: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model.lm_head(model.model.norm(state)).float().view(-1, recipe.vocab_size), target)

    def save() -> None:
        state = {
            "model": model.state_dict(),
            "optimisers": [o.state_dict() for o in optimisers],
            "step": step,
            "spent_s": spent_s,
            "template_seed": windows.template_seed,
            "recipe": asdict(recipe),
        }
        with replacing(checkpoint) as aside:
            torch.save(state, aside)

    def train_step(progress: float) -> float:
        rate = recipe.learning_rate * min(1.0, (step + 1) / recipe.warmup) * min(1.0, max(0.02, 2 * (1 - progress)))
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
        x = windows.batch()
        depth = recipe.layers - 1
        growth = [recipe.layer_drop * (math.exp(i * math.log(2) / depth) - 1) for i in range(recipe.layers)]
        dropped = frozenset(i for i, p in enumerate(growth) if windows.rng.random() < p)
        states = training_states(model, x[:, :-1].contiguous(), dropped)
        target = x[:, 1:].reshape(-1)
        final = exit_loss(states[-1], target)
        exits = [exit_loss(states[(step + shift) % depth], target) for shift in (0, depth // 2)]
        (final + recipe.exit_weight * (exits[0] + exits[1])).backward()
        return float(final.detach())

    tokens_per_step = recipe.batch * recipe.context
    budget_s, began, last_save, average = recipe.minutes * 60, time.monotonic() - spent_s, time.monotonic(), math.nan
    bar = tqdm(total=round(budget_s), initial=round(spent_s), unit="s", desc="pretrain", file=sys.stderr)
    with (out / "log.jsonl").open("a") as log:
        while (spent_s := time.monotonic() - began) < budget_s:
            progress = spent_s / budget_s
            if progress >= recipe.quantised_from:
                with _quantised(model):
                    value = train_step(progress)
            else:
                value = train_step(progress)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimiser in optimisers:
                optimiser.step()
                optimiser.zero_grad()
            step += 1
            average = value if math.isnan(average) else 0.97 * average + 0.03 * value
            bar.update(round(spent_s) - bar.n)
            if step % 20 == 0:
                entry = {"step": step, "spent_s": round(spent_s), "tokens": step * tokens_per_step, "loss": round(average, 4)}
                log.write(json.dumps(entry) + "\n")
                log.flush()
                bar.set_postfix(loss=f"{average:.3f}", tokens=f"{step * tokens_per_step / 1e6:.1f}M")
            if time.monotonic() - last_save > 240:
                save()
                last_save = time.monotonic()
    bar.close()
    save()
    model.eval()
    report: dict[str, Any] = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": step,
        "tokens": step * tokens_per_step,
        "validation_loss": exit_losses(model, validation, recipe.context, 80),
    }
    with _quantised(model):
        report["validation_loss_quantised"] = exit_losses(model, validation, recipe.context, 80)
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    return report
