"""Learned policies as files: weights (safetensors), a JSON card, a hash. Loading runs no code from the file."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clone_rl.agents.controller import Observations, RuleController
from clone_rl.agents.origin import trained_scale
from clone_rl.agents.rule import rule
from clone_rl.agents.weights import Weights, packed, write_weights
from clone_rl.envs.compiling import inlined
from clone_rl.envs.observation import OBSERVATION
from clone_rl.envs.scenario import Limits, TargetScale
from clone_rl.errors import PolicyFileError, UnknownNameError
from clone_rl.own_code import names_code

FORMAT = 1


class PolicyRule(NamedTuple):
    """A network, input by input, so that the loop over outputs runs in vectors without another order of additions.

    Attributes:
        weights: For each layer, (in, out).
        biases: For each layer, (out,).
        ends: (heads,) where each action component's logits end.
    """

    weights: tuple[NDArray[np.float64], ...]
    biases: tuple[NDArray[np.float64], ...]
    ends: NDArray[np.int64]


@inlined
def choose(self: PolicyRule, observation: Any, memory: Any, action: Any, lean: float) -> None:
    """Write the most probable choice of every component; in layer control ``lean`` nats are added to leaving."""
    # Two views rather than offsets, which compiled code would have to ask in every addition whether they count from the end.
    half, layers = len(memory) // 2, len(self.weights)
    read, written = memory[:half], memory[half:]
    for i in range(len(observation)):
        read[i] = observation[i]
    for layer in range(layers):
        weight, bias = self.weights[layer], self.biases[layer]
        for j in range(len(bias)):
            written[j] = bias[j]
        for i in range(weight.shape[0]):
            x = read[i]
            for j in range(weight.shape[1]):
                written[j] += x * weight[i, j]
        if layer < layers - 1:
            for j in range(len(bias)):
                written[j] = 1.0 - 2.0 / (math.exp(2.0 * written[j]) + 1.0)  # tanh, in half its time
        read, written = written, read
    read[self.ends[0] - 1] += lean
    start = 0
    for head in range(len(self.ends)):
        best = start
        for j in range(start + 1, self.ends[head]):
            if read[j] > read[best]:
                best = j
        action[head] = best - start
        start = self.ends[head]


@rule(PolicyRule)
def _policy(self: Any, observation: Any, memory: Any, action: Any) -> None:
    choose(self, observation, memory, action, 0.0)


@dataclass(frozen=True)
class Policy(RuleController):
    """A tanh multilayer perceptron whose logits are split into one choice per action component.

    Attributes:
        layers: (weight (out, in), bias (out,)) float32, from the observation to the logits.
        heads: Choices of each action component; they add up to the logits.
        card: Where it comes from: ``env_id``, ``trained_in`` (the scenario), ``scale``, ``command`` and so on.
        name: Shown in results.
        signals: Scalars that it reads behind the standard ones, see ``clone_rl.envs.signals.EXTRA_SIGNALS``.

    Raises:
        PolicyFileError: Shapes do not fit together.
    """

    layers: tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]
    heads: tuple[int, ...]
    card: dict[str, Any] = field(default_factory=dict)
    name: str = "policy"
    probes: bool = True
    signals: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        width = len(self.inputs)
        for weight, bias in self.layers:
            if weight.ndim != 2 or weight.shape[1] != width or bias.shape != (weight.shape[0],):
                raise PolicyFileError(f"policy layer of shape {weight.shape} does not follow one of width {width}")
            if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
                raise PolicyFileError("a policy weight is not finite", "the training diverged; train again")
            width = weight.shape[0]
        if not self.layers or width != sum(self.heads) or min(self.heads, default=0) < 1:
            raise PolicyFileError(f"{width} logits for action components {self.heads}")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of what it reads."""
        return (*OBSERVATION, *self.signals)

    @cached_property
    def scale(self) -> TargetScale | None:
        """Targets that it was trained to observe as 1; None where its card does not tell."""
        return trained_scale(self.card)

    @property
    def kind(self) -> str:
        """``layer`` or ``token`` control."""
        return "layer" if len(self.heads) == 1 else "token"

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one decision."""
        return sum(weight.size for weight, _ in self.layers)

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return sum(weight.size + bias.size for weight, bias in self.layers)

    def logits(self, observations: Observations) -> NDArray[np.float32]:
        """(N, sum of heads) logits of observations (N, 16), or more with ``signals``."""
        x = np.asarray(observations, np.float32)
        for index, (weight, bias) in enumerate(self.layers):
            x = x @ weight.T + bias
            if index < len(self.layers) - 1:
                x = np.tanh(x)
        return x

    @cached_property
    def rule(self) -> PolicyRule:
        """The most probable choice of every component."""
        weights, biases = zip(*self.layers, strict=True)
        return PolicyRule(
            tuple(np.ascontiguousarray(w.T, np.float64) for w in weights),
            tuple(b.astype(np.float64) for b in biases),
            np.cumsum(self.heads),
        )

    @property
    def components(self) -> int:
        """Components of an action."""
        return len(self.heads)

    def memory(self, rows: int) -> NDArray[np.float64]:
        """(rows, M) room for the activations of two layers; nothing is kept from one decision to the next."""
        widest = max(max(weight.shape) for weight, _ in self.layers)
        return np.zeros((rows, 2 * widest))

    def describe(self) -> dict[str, Any]:
        """Its size and the hash of its weights."""
        return {"parameters": self.parameters, "sha256": self.sha256}

    @cached_property
    def content(self) -> bytes:
        """The weights as a safetensors file."""
        tensors: dict[str, NDArray[np.float32]] = {}
        for index, (weight, bias) in enumerate(self.layers):
            tensors |= {f"{index}.weight": weight, f"{index}.bias": bias}
        return packed(tensors)

    @property
    def sha256(self) -> str:
        """Hash of ``content``: of the policy's file, wherever it lies."""
        return hashlib.sha256(self.content).hexdigest()

    @classmethod
    def load(cls, name: str | Path, limits: Limits | None = None) -> Policy:
        """Load a shipped policy by name, or any by path: a run folder, its ``policy.safetensors`` or its card.

        Args:
            name: Which. What lies in a run folder is called by the folder's name, whatever it was trained as.
            limits: What a conditioned policy is to hold; None is what it was trained around. Others hold their own.

        Raises:
            UnknownNameError: No shipped policy has this name.
            BadValueError: Limits that a conditioned policy was not trained for.
            PolicyFileError: Missing, truncated, altered, or made for other observations.
            MissingExtraError: safetensors is not installed.
        """
        from clone_rl.agents.family import PolicyFamily

        name = str(name)
        path = _locate(name)
        tensors, card, signals, conditioned = Weights.read(path, "policy", FORMAT, "train it again")
        try:
            layers = tuple((tensors[f"{i}.weight"], tensors[f"{i}.bias"]) for i in range(len(tensors) // 2))
            heads = tuple(int(h) for h in card["heads"])
        except (KeyError, TypeError, ValueError) as error:
            raise PolicyFileError(f"{path} is not a policy: {error}") from None
        label = name if not is_policy_path(name) else _label(path, card)
        made = (layers, heads, card, str(label), bool(card.get("probes", True)), signals)
        return PolicyFamily(*made).within(limits) if conditioned else cls(*made)

    def save(self, path: str | Path) -> None:
        """Write ``path`` (.safetensors) and the card beside it (.json); each appears complete or not at all."""
        card = {
            **self.card,
            "format": FORMAT,
            "observation": list(self.inputs),
            "heads": list(self.heads),
            "parameters": self.parameters,
            "probes": self.probes,
        }
        write_weights(path, self.content, card)


def policy_names() -> list[str]:
    """Names of the shipped policies."""
    folder = resources.files("clone_rl.agents") / "policies"
    return sorted(e.name.removesuffix(".safetensors") for e in folder.iterdir() if e.name.endswith(".safetensors"))


def policy_cards() -> dict[str, dict[str, Any]]:
    """Cards of the shipped policies, by name."""
    folder = resources.files("clone_rl.agents") / "policies"
    return {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in policy_names()}


def is_policy_path(name: str) -> bool:
    """Whether a controller's name means a file or folder rather than something shipped."""
    if name.endswith((".safetensors", ".json")) or os.sep in name:
        return True
    return name not in policy_names() and Path(name).is_dir()  # a folder called "default" is not what ships


def names_policy(name: str) -> bool:
    """Whether a controller's name is that of a policy: one that ships, or a file or folder that is no code of one's own."""
    return name in policy_names() or (is_policy_path(name) and not names_code(name))


def _label(path: Path, card: Mapping[str, Any]) -> Any:
    """What the policy of a file is called."""
    folder = Path(os.path.abspath(path)).parent.name  # noqa: PTH100 (a link keeps its name)
    return folder if folder and path.stem == "policy" else card.get("name", path.stem)


def _locate(name: str) -> Path:
    if not is_policy_path(name):
        if name not in policy_names():
            raise UnknownNameError("policy", name, policy_names())
        return Path(str(resources.files("clone_rl.agents") / "policies" / f"{name}.safetensors"))
    path = Path(name)
    return path / "policy.safetensors" if path.is_dir() else path.with_suffix(".safetensors")
