"""Train a language model whose layers can be left early, from nothing or from a trained one, on any folder of text.

Loss = next-token cross-entropy of the last layer + the losses of two rotating exits, all through the shared norm and head,
with layers dropped more often the deeper they lie (early-exit loss and layer dropout after LayerSkip, arXiv 2404.16710). An
exit learns from the text, from the last layer (self-distillation), or from both. Muon on the matrices, AdamW on the rest; in
the last part of the run the forward pass sees quantised weights (straight-through), so that the shipped precision is trained.
No prompt reserved for control is ever among the generated ones.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from transformers import LlamaConfig, LlamaForCausalLM

from clone_rl.bars import Bar
from clone_rl.errors import BadFileError, CloneRLError
from clone_rl.files import append_line, replacing, writing
from clone_rl.hw_emulator.precision import PRECISIONS
from clone_rl.llm.anatomy import Anatomy, replaced
from clone_rl.llm.corpus import read_corpus
from clone_rl.llm.model import EMBEDDED, is_packed, load_model
from clone_rl.llm.muon import Muon
from clone_rl.llm.prompts import KINDS, make_prompt
from clone_rl.llm.quantise import quantise_model
from clone_rl.llm.recipe import Recipe
from clone_rl.llm.tokenizer import END_ID, load_tokenizer, train_tokenizer
from clone_rl.llm.windows import Encode, Windows, stream

STORED = PRECISIONS["int4"]
"""What the chip will store the weights in: also what a Hugging Face folder is rounded to on load."""

_SAVE_EVERY_S = 240.0
_LOG_EVERY = 20
_VALIDATION_WINDOWS = 100


@dataclass
class Subject:
    """What is trained.

    Attributes:
        model: A ``transformers`` model.
        encode: Its tokeniser.
        start: Token ahead of every document.
        end: Token behind an answer.
        base: The folder that it was continued from; empty for a new model.
        command: What the user ran, for the card.
        packed: Whether it is released in the package's own format; otherwise as a Hugging Face folder.
        home: The model folder that the first of its runs began with; empty for a new model.
    """

    model: Any
    encode: Encode
    start: int
    end: int
    base: str = ""
    command: str = ""
    packed: bool = True
    home: str = ""


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


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def _encoder(path: Path) -> Encode:
    tokenizer = load_tokenizer(path)
    return lambda texts: (encoding.ids for encoding in tokenizer.encode_batch(texts))


def _new(out: Path, recipe: Recipe, documents: list[str]) -> Subject:
    """A new model and, on the first start, its tokeniser."""
    if not (out / "tokenizer.json").exists():
        sample = [make_prompt(kind, seed) for kind in KINDS for seed in range(2000)]
        fitted = train_tokenizer(documents + [p.text + p.answer for p in sample], recipe.vocab_size)
        _write_text(out / "tokenizer.json", fitted.to_str(pretty=True))
    return Subject(build_model(recipe), _encoder(out / "tokenizer.json"), END_ID, END_ID)


def _continued(base: str, out: Path) -> Subject:
    """The model of an earlier run's folder (with its unrounded weights), or any model that loads."""
    run = Path(base)
    if (run / "checkpoint.pt").exists():
        subject = subject_of(run, read_run(run))
        if subject.packed:
            _write_text(out / "tokenizer.json", (run / "tokenizer.json").read_text(encoding="utf-8"))
        return replace(subject, base=base)
    packed = base == EMBEDDED or is_packed(Path(base))
    lm = load_model(base, "" if packed else "fp32")
    if packed:
        _write_text(out / "tokenizer.json", lm.tokenizer.backend.to_str())
    end = min(lm.end_ids, default=0)
    start = lm.start_ids[0] if lm.start_ids else end
    # A loaded model is shared by all who asked for it.
    encode = partial(map, lm.tokenizer.encode)
    return Subject(deepcopy(lm.model), encode, start, end, base, packed=packed, home=base)


def read_run(out: Path) -> dict[str, Any]:
    """What the checkpoint of a run holds.

    Raises:
        BadFileError: There is none, or it is damaged.
    """
    path = out / "checkpoint.pt"
    try:
        saved: dict[str, Any] = torch.load(path, weights_only=True)
        if {"model", "optimisers", "step", "spent_s", "template_seed", "recipe"} <= saved.keys():
            return saved
    except FileNotFoundError:
        raise BadFileError(f"no checkpoint in {out}", "run clone-rl pretrain first") from None
    except Exception as error:  # torch has one for every kind of damage
        raise BadFileError(f"{path} is not a checkpoint ({type(error).__name__})", f"remove {out} and start again") from None
    raise BadFileError(f"{path} is not a checkpoint of a model's training", "name the folder of clone-rl pretrain")


def subject_of(out: Path, saved: dict[str, Any]) -> Subject:
    """What a checkpoint holds, with its weights."""
    if base := saved.get("base", ""):
        subject = _continued(base, out)  # its sizes are those of what it was continued from, not the recipe's
    else:
        subject = Subject(build_model(Recipe(**saved["recipe"])), _encoder(out / "tokenizer.json"), END_ID, END_ID)
    subject.model.load_state_dict(saved["model"])
    return subject


def growing_drop(highest: float, layers: int) -> list[float]:
    """Probability of dropping each layer: 0 for the first, ``highest`` for the last, exponentially between (LayerSkip)."""
    return [highest * (math.exp(i * math.log(2) / (layers - 1)) - 1) for i in range(layers)]


def training_states(anatomy: Anatomy, ids: torch.Tensor, dropped: frozenset[int] = frozenset()) -> list[torch.Tensor]:
    """Residual stream after each decoder layer, where dropped ones pass on their input; see ``Anatomy.states``."""
    layers = [anatomy.layers[index] for index in sorted(dropped)]
    with replaced(layers, [lambda hidden, *_a, **_k: (hidden,) if anatomy.wraps else hidden] * len(layers)):
        return anatomy.states(ids)


@contextmanager
def quantised(model: Any) -> Iterator[None]:
    """Run the block with the weights that the chip stores and put the exact ones back: gradients pass straight through."""
    exact = [(parameter, parameter.data) for parameter in model.parameters() if parameter.ndim == 2]
    for parameter, data in exact:
        parameter.data = data.clone()
    try:
        quantise_model(model, STORED)
        yield
    finally:
        for parameter, data in exact:
            parameter.data = data


@torch.no_grad()
def exit_losses(anatomy: Anatomy, tokens: NDArray[np.int64], context: int, windows: int = _VALIDATION_WINDOWS) -> list[float]:
    """Mean next-token cross-entropy (nats) of every exit, the last one full depth.

    Args:
        anatomy: The model.
        tokens: A stream of held-out documents.
        context: Tokens per window.
        windows: Most windows; they lie evenly over the whole stream.
    """
    context = min(context, len(tokens) - 1)
    starts = np.arange(0, len(tokens) - context, context)
    starts = starts[np.linspace(0, len(starts) - 1, min(windows, len(starts))).round().astype(int)]
    x = torch.from_numpy(np.stack([tokens[at : at + context + 1] for at in starts]))
    totals, count = torch.zeros(len(anatomy.layers)), 0
    for rows in x.split(8):
        targets = rows[:, 1:].reshape(-1)
        for index, state in enumerate(anatomy.states(rows[:, :-1].contiguous())):
            logits = anatomy.tail(state).float()
            totals[index] += F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets, reduction="sum")
        count += targets.numel()
    return [float(t) for t in totals / count]


class Pretraining:
    """One run: its model, its optimisers, and how far it is.

    Args:
        out: The run's folder.
        recipe: What to train.
        subject: What is trained.
        text: Tokens of the training text.
    """

    def __init__(self, out: Path, recipe: Recipe, subject: Subject, text: NDArray[np.int64]) -> None:
        self.out, self.recipe, self.subject = out, recipe, subject
        self.model, self.anatomy = subject.model, Anatomy(subject.model)
        self.windows = Windows(recipe, subject.encode, subject.start, text)
        embedded = {
            id(p) for m in (self.model.get_input_embeddings(), self.model.get_output_embeddings()) for p in m.parameters()
        }
        parameters = list(self.model.parameters())
        matrices = [p for p in parameters if p.ndim == 2 and id(p) not in embedded]
        rest = [p for p in parameters if p.ndim != 2 or id(p) in embedded]
        self.optimisers: list[torch.optim.Optimizer] = [
            Muon(matrices, lr=recipe.learning_rate),
            torch.optim.AdamW(rest, lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.drop = growing_drop(recipe.layer_drop, len(self.anatomy.layers))
        self.step, self.spent_s = 0, 0.0

    @property
    def checkpoint(self) -> Path:
        """Where the run's state is kept."""
        return self.out / "checkpoint.pt"

    @property
    def progress(self) -> float:
        """Share of the run that is done."""
        if self.recipe.steps:
            return self.step / self.recipe.steps
        return self.spent_s / (self.recipe.minutes * 60)

    def save(self) -> None:
        """Replace the checkpoint."""
        state = {
            "model": self.model.state_dict(),
            "optimisers": [o.state_dict() for o in self.optimisers],
            "step": self.step,
            "spent_s": self.spent_s,
            "template_seed": self.windows.template_seed,
            "recipe": asdict(self.recipe),
            "base": self.subject.base,
            "command": self.subject.command,
        }
        with replacing(self.checkpoint) as aside, aside.open("wb") as file:
            torch.save(state, file)

    def load(self) -> None:
        """Continue from the checkpoint."""
        saved = read_run(self.out)
        self.model.load_state_dict(saved["model"])
        for optimiser, state in zip(self.optimisers, saved["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        self.step, self.spent_s, self.windows.template_seed = saved["step"], saved["spent_s"], saved["template_seed"]

    def exit_loss(self, state: torch.Tensor, target: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Loss of one exit: against the text, the last layer, or a mix; ``teacher``: its log-probabilities."""
        early = self.anatomy.tail(state).float().flatten(0, 1)
        share = self.recipe.distil
        loss = torch.zeros((), device=early.device)
        if share < 1:
            loss = loss + (1 - share) * F.cross_entropy(early, target)
        if share > 0:
            divergence = F.kl_div(early.log_softmax(-1), teacher, reduction="batchmean", log_target=True)
            loss = loss + share * divergence
        return loss

    def backward(self) -> float:
        """Gradients of one batch; returns the last layer's cross-entropy (nats)."""
        x = self.windows.batch()
        dropped = frozenset(i for i, p in enumerate(self.drop) if self.windows.rng.random() < p)
        states = training_states(self.anatomy, x[:, :-1].contiguous(), dropped)
        target = x[:, 1:].reshape(-1)
        full = self.anatomy.tail(states[-1]).float().flatten(0, 1)
        final = loss = F.cross_entropy(full, target)
        exits = len(states) - 1
        if self.recipe.exit_weight > 0:
            teacher = full.detach().log_softmax(-1)
            for shift in {0, exits // 2}:
                state = states[(self.step + shift) % exits]
                loss = loss + self.recipe.exit_weight * self.exit_loss(state, target, teacher)
        loss.backward()
        return float(final.detach())

    def advance(self) -> float:
        """One optimiser step; returns the last layer's cross-entropy (nats)."""
        recipe, progress = self.recipe, self.progress
        rate = recipe.learning_rate * min(1.0, (self.step + 1) / recipe.warmup) * min(1.0, max(0.02, 2 * (1 - progress)))
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
        with quantised(self.model) if progress >= recipe.quantised_from else nullcontext():
            value = self.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad()
        self.step += 1
        return value

    def run(self) -> None:
        """Train to the end of the recipe, with a bar, a log line every few steps and a checkpoint every few minutes."""
        recipe, tokens_per_step = self.recipe, self.recipe.batch * self.recipe.context
        total = recipe.steps or round(recipe.minutes * 60)
        began, last_save, average = time.monotonic() - self.spent_s, time.monotonic(), math.nan
        bar = Bar(
            total=total,
            initial=min(total, self.step if recipe.steps else round(self.spent_s)),
            unit="step" if recipe.steps else "s",
            desc="pretrain",
        )
        self.model.train()
        log = self.out / "log.jsonl"
        with writing(log):
            log.touch()  # a short run has no line in it
        with bar:
            while self.progress < 1:
                value = self.advance()
                self.spent_s = time.monotonic() - began
                average = value if math.isnan(average) else 0.97 * average + 0.03 * value
                bar.update(min(total, self.step if recipe.steps else round(self.spent_s)) - bar.n)
                if self.step % _LOG_EVERY == 0:
                    tokens = self.step * tokens_per_step
                    entry = {"step": self.step, "spent_s": round(self.spent_s), "tokens": tokens, "loss": round(average, 4)}
                    append_line(log, json.dumps(entry))
                    bar.set_postfix(loss=f"{average:.3f}", tokens=f"{tokens / 1e6:.1f}M")
                if time.monotonic() - last_save > _SAVE_EVERY_S:
                    self.save()
                    last_save = time.monotonic()
        self.save()
        self.model.eval()


def pretrain(text: Path, out: Path, recipe: Recipe, resume: bool = False, init: str = "", command: str = "") -> dict[str, Any]:
    """Train; leaves ``checkpoint.pt``, ``log.jsonl``, ``report.json`` and a new model's ``tokenizer.json`` in ``out``.

    Args:
        text: Folder of training text, see ``clone_rl.llm.corpus``.
        out: Folder to create; ``checkpoint.pt`` is replaced every few minutes.
        recipe: What to train; its sizes are those of the model where one is continued.
        resume: Continue from ``out/checkpoint.pt``.
        init: Model to continue: ``"default"``, the folder of an earlier run, or that of any model; empty for a new one.
        command: What the user ran, for the model's card.

    Returns:
        Steps, tokens, parameters and the validation loss of every exit with exact and with quantised weights.

    Raises:
        BadFileError: No usable text, ``out`` already holds a run, or nothing to resume.
        CloneRLError: ``init`` is no model that can be trained.
    """
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists() and not resume:
        raise BadFileError(f"{out} already holds a training run", "add --resume, or choose another folder")
    if resume and not checkpoint.exists():
        raise BadFileError(f"no checkpoint in {out}", "start without --resume")
    train_documents, validation_documents = read_corpus(text)
    fresh = not out.exists()
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    try:
        if resume:
            subject = subject_of(out, read_run(out))
        else:
            subject = _continued(init, out) if init else _new(out, recipe, train_documents)
    except CloneRLError:
        if fresh:
            shutil.rmtree(out)
        raise
    subject.command = command
    run = Pretraining(out, recipe, subject, stream(subject.encode, train_documents, subject.start))
    if resume:
        run.load()
    else:
        run.save()
    run.run()
    validation = stream(subject.encode, validation_documents, subject.start)
    report: dict[str, Any] = {
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "steps": run.step,
        "tokens": run.step * recipe.batch * recipe.context,
        "validation_loss": exit_losses(run.anatomy, validation, recipe.context),
    }
    with quantised(run.model):
        report["validation_loss_quantised"] = exit_losses(run.anatomy, validation, recipe.context)
    _write_text(out / "report.json", json.dumps(report, indent=2) + "\n")
    return report
