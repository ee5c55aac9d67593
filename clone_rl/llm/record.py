"""Record traces: what every exit of every token of a response shows and would emit.

Where a prompt has an exact answer the response is given (teacher-forced); otherwise it is the model's own, drawn by seeded
sampling, because the greedy prose of a small model loops and loops are trivially easy to leave early.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from clone_rl.envs.trace import SPLITS, TraceSet
from clone_rl.errors import BadValueError, UnknownNameError
from clone_rl.llm.exits import exit_statistics
from clone_rl.llm.model import LanguageModel, hidden_states
from clone_rl.llm.prompts import Prompt
from clone_rl.llm.sampling import Sampling
from clone_rl.llm.tokenizer import END_ID


@torch.inference_mode()
def respond(lm: LanguageModel, prompt: list[int], most: int, sampling: Sampling, seed: int) -> list[int]:
    """The model's own response at full depth, with the end token if it came within ``most`` tokens."""
    generator = torch.Generator().manual_seed(seed)
    cache, ids = None, torch.tensor([prompt])
    response: list[int] = []
    while len(response) < most:
        out = lm.model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        token = sampling.pick(out.logits[0, -1].float(), generator)
        response.append(token)
        if token == END_ID:
            break
        ids = torch.tensor([[token]])
    return response


def record(
    lm: LanguageModel,
    prompts: Sequence[tuple[str, Prompt]],
    max_new_tokens: int = 80,
    sampling: Sampling | None = None,
    quiet: bool = False,
) -> TraceSet:
    """One document per prompt.

    Args:
        lm: The model.
        prompts: (split, prompt) pairs.
        max_new_tokens: Longest sampled response.
        sampling: Of responses without a given answer.
        quiet: No progress bar.

    Returns:
        A trace set with its provenance.

    Raises:
        BadValueError: No prompts, or one that does not fit the context.
    """
    if not prompts:
        raise BadValueError("no prompts", "give at least one")
    if max_new_tokens < 1:
        raise BadValueError(f"max_new_tokens is {max_new_tokens}", "at least 1")
    for split, prompt in prompts:
        if split not in SPLITS:
            raise UnknownNameError("split", split, SPLITS)
        lm.encode_prompt(prompt.text)
    sampling = sampling or Sampling()
    kinds = sorted({prompt.kind for _, prompt in prompts})
    rows: list[dict[str, Any]] = []
    digest = hashlib.sha256()
    for split, prompt in tqdm(prompts, desc="record", unit="request", file=sys.stderr, disable=quiet):
        head = lm.encode_prompt(prompt.text)
        if prompt.answer:
            response = [*lm.tokenizer.encode(prompt.answer).ids, END_ID]
        else:
            response = respond(lm, head, min(max_new_tokens, lm.shape.context - len(head)), sampling, prompt.seed % 2**31)
        ids = [*head, *response][: lm.shape.context + 1]
        states = hidden_states(lm.model, torch.tensor([ids[:-1]]))[:, len(head) - 1 :]
        quality = exit_statistics(lm.model, states, torch.tensor(ids[len(head) :]))
        signals = torch.stack([lm.probe.signals(states[i], i + 1) for i in range(lm.shape.layers - 1)])
        digest.update(f"{split}\0{prompt.kind}\0{prompt.text}\0{prompt.answer}\0".encode())
        rows.append(
            {
                "prompt_tokens": len(head),
                "split": SPLITS.index(split),
                "kind": kinds.index(prompt.kind),
                "sampled": int(not prompt.answer),
                "signal": signals.permute(1, 0, 2).numpy(),
                "agree": quality.agree.T.numpy(),
                "kl": quality.kl.T.numpy(),
                "dnll": quality.dnll.T.numpy(),
            }
        )
    columns: dict[str, Any] = {
        name: np.concatenate([row[name] for row in rows]).astype(np.float32) for name in ("signal", "agree", "kl", "dnll")
    }
    # What is written is float16: the set in memory is the set on disk.
    columns = {name: column.astype(np.float16).astype(np.float32) for name, column in columns.items()}
    card = {
        "layers": lm.shape.layers,
        "shape": lm.shape.as_dict(),
        "kinds": kinds,
        "model": lm.name,
        "model_sha256": lm.sha256,
        "prompts_sha256": digest.hexdigest(),
        "sampling": asdict(sampling),
        "max_new_tokens": max_new_tokens,
        "precision": lm.card.get("weights", ""),
        "kv": "exact",
    }
    card["sha256"] = hashlib.sha256(json.dumps(card, sort_keys=True).encode() + columns["signal"].tobytes()).hexdigest()
    for name in ("prompt_tokens", "split", "kind", "sampled"):
        columns[name] = np.array([row[name] for row in rows], np.int64)
    offset = np.concatenate([[0], np.cumsum([len(row["agree"]) for row in rows])])
    return TraceSet(card=card, offset=offset, **columns)
