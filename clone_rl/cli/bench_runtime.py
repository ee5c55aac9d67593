"""``clone-rl bench runtime``: a decision beside SB3's ``predict``, ``generate`` under control beside itself, and the server.

CPU time on one thread, but for the server; what is compared takes turns in one process.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from clone_rl.cli.bench_server import bench_server
from clone_rl.cli.text import aligned
from clone_rl.cli.timing import check_seconds, interleaved, machine, one_thread

BARS = {
    "numpy_vs_predict_p50": 1 / 25,
    "compiled_vs_predict_p50": 1 / 80,
    "numpy_vs_predict_p99": 1 / 25,
    "compiled_vs_predict_p99": 1 / 80,
    "attached_vs_generate_tokens_per_s": 0.95,
    "exiting_vs_generate_tokens_per_s": 1.0,
}
"""What each ratio is meant to reach: of times to stay below, and of tokens per second to stay above."""

POLICY = "default"
"""The shipped policy that is measured."""

_LONGEST_S = 600.0
_DECISIONS, _PER_KIND, _NEW = 500, 2, 60

Section = tuple[dict[str, float | None], dict[str, Any]]
"""Ratios and values."""


def decision_jobs(policy: Any) -> dict[str, Callable[[Any], Any]]:
    """One decision each: the runtime controller with NumPy and compiled, and a network of the same shape through ``predict``.

    Raises:
        ImportError: Stable-Baselines3 is not installed.
    """
    import gymnasium as gym
    from stable_baselines3 import PPO

    from clone_rl.runtime import RuntimeController

    hidden = [len(bias) for _, bias in policy.layers[:-1]]
    model = PPO("MlpPolicy", gym.make("clone_rl/LayerControl-v0"), policy_kwargs={"net_arch": hidden}, device="cpu", seed=0)
    points = policy.heads[0] - 1
    asked = {name: RuntimeController(policy, points, compiled=name == "compiled").begin() for name in ("numpy", "compiled")}
    jobs: dict[str, Callable[[Any], Any]] = {name: request.decide for name, request in asked.items()}
    return {**jobs, "predict": lambda seen: model.predict(seen, deterministic=True)}


def decision_figures(seconds: float) -> Section:
    """Seconds of one decision, and their ratios.

    Args:
        seconds: To spend at least.
    """
    from clone_rl.agents.policy import Policy

    policy = Policy.load(POLICY)
    jobs = decision_jobs(policy)
    width = policy.layers[0][0].shape[1]
    observations = np.random.default_rng(0).uniform(-1, 1, (_DECISIONS, width)).astype(np.float32)
    found: dict[str, list[Any]] = {name: [] for name in jobs}
    begin = time.perf_counter()
    while not found["predict"] or time.perf_counter() - begin < seconds:
        for name, job in jobs.items():
            taken = np.zeros(_DECISIONS)
            for n, seen in enumerate(observations):
                start = time.perf_counter()
                job(seen)
                taken[n] = time.perf_counter() - start
            found[name].append(np.percentile(taken, (50, 99)))
    ratios: dict[str, float | None] = {}
    values: dict[str, Any] = {}
    for at, rank in enumerate(("p50", "p99")):
        for name, rounds in found.items():
            values[f"{name}_{rank}_s"] = float(median(each[at] for each in rounds))
            if name != "predict":
                pairs = zip(rounds, found["predict"], strict=True)
                ratios[f"{name}_vs_predict_{rank}"] = float(median(ours[at] / theirs[at] for ours, theirs in pairs))
    return ratios, values


def _prompts(lm: Any) -> list[Any]:
    """Test prompts of every kind that the shipped policy is judged on, as tensors."""
    import torch

    from clone_rl.llm.prompts import make_prompts

    return [torch.tensor([lm.encode(prompt.text)]) for prompt in make_prompts("test", _PER_KIND)]


def generation_jobs(lm: Any, prompts: list[Any]) -> dict[str, Callable[..., list[int]]]:
    """The answer to a prompt by its number: the model's own, under a controller that never exits, under the shipped policy."""
    import torch

    from clone_rl.llm.sampling import Sampling
    from clone_rl.runtime import ControlledDecoding

    drawn, ends = Sampling(), sorted(lm.end_ids)

    def job(controller: Any) -> Callable[..., list[int]]:
        def answer(number: int, sample: bool = True) -> list[int]:
            sampled = {"do_sample": True, "temperature": drawn.temperature, "top_k": drawn.top_k}
            options, ids = sampled if sample else {"do_sample": False}, prompts[number]
            torch.manual_seed(number)
            out = lm.model.generate(
                ids, attention_mask=torch.ones_like(ids), custom_generate=controller, max_new_tokens=_NEW,
                eos_token_id=ends, pad_token_id=ends[0], **options,
            )  # fmt: skip
            return out[0, ids.shape[1] :].tolist()  # type: ignore[no-any-return]

        return answer

    never, exiting = (ControlledDecoding.load(name, lm) for name in ("performance", POLICY))
    return {"generate": job(None), "attached": job(never), "exiting": job(exiting)}


def generation_figures(seconds: float) -> Section:
    """Tokens per CPU second, and their ratios to plain ``generate``: medians over answers that neighbour each other.

    Args:
        seconds: CPU time to spend at least.
    """
    from clone_rl.llm.model import load_model

    lm = load_model()
    prompts = _prompts(lm)
    jobs, numbers = generation_jobs(lm, prompts), range(len(prompts))
    same = all(jobs["generate"](number, sample=False) == jobs["attached"](number, sample=False) for number in numbers)
    speeds: dict[str, list[float]] = {name: [] for name in jobs}
    for number in numbers:
        tokens = {name: len(job(number)) for name, job in jobs.items()}
        asked = {name: partial(job, number) for name, job in jobs.items()}
        for name, times in interleaved(asked, seconds / len(prompts)).items():
            speeds[name] += [tokens[name] / s for s in times]
    ratios: dict[str, float | None] = {
        f"{name}_vs_generate_tokens_per_s": median(
            ours / theirs for ours, theirs in zip(speeds[name], speeds["generate"], strict=True)
        )
        for name in ("attached", "exiting")
    }
    values = {f"{name}_tokens_per_s": median(each) for name, each in speeds.items()}
    return ratios, {**values, "same_text": same, "repetitions": len(speeds["generate"])}


def server_figures(seconds: float) -> Section:
    """What a server answers with so many clients at once; there is nothing beside it to compare with.

    Args:
        seconds: Wall time to spend at least for each number of clients.
    """
    return {}, {"server": bench_server(seconds)}


SECTIONS: dict[str, Callable[[float], Section]] = {
    "decision": decision_figures,
    "generation": generation_figures,
    "server": server_figures,
}
"""What is measured."""


def measure_runtime(seconds: float) -> dict[str, Any]:
    """All figures.

    Args:
        seconds: To spend at least on each section.

    Returns:
        ``ratios`` and ``values``: ``<path>_p50_s`` and ``_p99_s`` of one decision, ``<job>_tokens_per_s`` (of CPU time), and
        ``same_text``, whether a controller that never exits wrote the greedy text of the model; ``server``, see
        ``bench_server``. What a library is missing for is None, and named in ``skipped``.
    """
    ratios: dict[str, float | None] = dict.fromkeys(BARS)
    result: dict[str, Any] = {"ratios": ratios, "values": {}}
    with one_thread():
        for name, section in SECTIONS.items():
            try:
                found, values = section(seconds)
            except ImportError as error:
                result["skipped"] = f"{name}: {error}"
                continue
            ratios |= found
            result["values"] |= values
    return result


def bench_runtime(options: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """``clone-rl bench runtime``; exit code 1 if a controller that never exits writes another text than the model."""
    check_seconds(options.seconds, _LONGEST_S)
    import torch
    import transformers

    result = measure_runtime(options.seconds)
    result["machine"] = machine() | {"torch": torch.__version__, "transformers": transformers.__version__}
    if not options.json:
        print(_text(result))
    return result, int(not result["values"].get("same_text", True))


def _text(result: dict[str, Any]) -> str:
    ratios, values, at = result["ratios"], result["values"], result["machine"]
    lines = [f"{at['cpu']}, Python {at['python']}, torch {at['torch']}, transformers {at['transformers']}; one thread"]
    paths = [name for name in ("numpy", "compiled", "predict") if f"{name}_p50_s" in values]
    if paths:
        columns: list[Any] = [("decision", "", paths)]
        for rank in ("p50", "p99"):
            columns.append((rank, "s", [values[f"{name}_{rank}_s"] for name in paths]))
            shares = [ratios.get(f"{name}_vs_predict_{rank}") for name in paths]
            columns.append((f"of {rank}", "", [f"1/{1 / share:.0f}" if share else "1" for share in shares]))
        lines += ["", aligned(columns, together="s")]
    jobs = [name for name in ("generate", "attached", "exiting") if f"{name}_tokens_per_s" in values]
    if jobs:
        speeds = [f"{values[f'{name}_tokens_per_s']:.0f}" for name in jobs]
        shares = [ratios.get(f"{name}_vs_generate_tokens_per_s") for name in jobs]
        texts = ["", "same" if values["same_text"] else "DIFFERENT", ""]
        lines += [
            "",
            aligned(
                [
                    ("generation", "", jobs),
                    ("tokens per CPU second", "", speeds),
                    ("ratio", "", [f"{share:.2f}" if share else "1" for share in shares]),
                    ("greedy text", "", texts),
                ]
            ),
        ]
    if served := values.get("server"):
        rows = list(served.values())
        lines += [
            "",
            aligned(
                [
                    ("server: clients", "", list(served)),
                    ("requests per second", "", [f"{row['requests_per_s']:.2f}" for row in rows]),
                    ("tokens per second", "", [f"{row['tokens_per_s']:.0f}" for row in rows]),
                    ("p50", "s", [row["p50_s"] for row in rows]),
                    ("p99", "s", [row["p99_s"] for row in rows]),
                ]
            ),
        ]
    if "skipped" in result:
        lines += ["", f"skipped {result['skipped']}"]
    return "\n".join(lines)
