"""A controller's numbers in safetensors, and a JSON card beside them with their hash. Reading runs no code from the file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clone_rl.envs.observation import OBSERVATION
from clone_rl.envs.signals import EXTRA_SIGNALS
from clone_rl.errors import MissingExtraError, PolicyFileError, reason
from clone_rl.files import write_together

LIMITS = "limits"
"""Last scalar of an observation that has the limits in it."""


def packed(tensors: Mapping[str, NDArray[Any]]) -> bytes:
    """Arrays as a safetensors file."""
    from safetensors.numpy import save

    return bytes(save({name: np.ascontiguousarray(array) for name, array in tensors.items()}))


class Weights(NamedTuple):
    """What lies in the two files.

    Attributes:
        tensors: By name.
        card: The card, whose hash is that of the file.
        signals: What is read behind the standard scalars.
        conditioned: Whether the limits are read as well.
    """

    tensors: dict[str, NDArray[Any]]
    card: dict[str, Any]
    signals: tuple[str, ...]
    conditioned: bool

    @classmethod
    def read(cls, path: Path, kind: str, form: int | str, remedy: str) -> Weights:
        """Read ``path`` (.safetensors) and the card beside it.

        Args:
            path: Which.
            kind: What it should be, for people: "policy".
            form: ``format`` of its card.
            remedy: What gives one for today's observation.

        Raises:
            PolicyFileError: Missing, truncated, altered, or made for other observations.
            MissingExtraError: safetensors is not installed.
        """
        try:
            from safetensors import SafetensorError
            from safetensors.numpy import load
        except ImportError:
            raise MissingExtraError("policy files need safetensors", "pip install 'clone-rl[train]'") from None
        beside = path.with_suffix(".json")
        try:
            data, card = path.read_bytes(), json.loads(beside.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise PolicyFileError(
                f"no {kind} file {error.filename}", f"a {kind} is NAME.safetensors with NAME.json beside it"
            ) from None
        except (OSError, ValueError) as error:
            raise PolicyFileError(f"{beside} is not a {kind} card: {reason(error)}") from None
        if not isinstance(card, dict) or card.get("format") != form:
            raise PolicyFileError(f"{beside} is not a {kind} card of format {form}")
        if hashlib.sha256(data).hexdigest() != card.get("sha256"):
            raise PolicyFileError(
                f"{path} does not match the hash in its card", "the file is truncated or altered; get it again"
            )
        seen = card.get("observation")
        extra = tuple(seen[len(OBSERVATION) :]) if isinstance(seen, list) else ()
        conditioned = extra[-1:] == (LIMITS,)
        signals = extra[: len(extra) - conditioned]
        if seen != [*OBSERVATION, *extra] or not set(signals) <= set(EXTRA_SIGNALS):
            raise PolicyFileError(f"{path} was made for another observation", f"expected {', '.join(OBSERVATION)}; {remedy}")
        try:
            return cls(load(data), card, signals, conditioned)
        except (SafetensorError, ValueError) as error:
            raise PolicyFileError(f"{path} is not a {kind}: {error}") from None


def write_weights(path: str | Path, content: bytes, card: dict[str, Any]) -> None:
    """Write ``path`` and the card beside it, with the hash; where one cannot be written, neither is replaced."""
    path, card = Path(path), {**card, "sha256": hashlib.sha256(content).hexdigest()}
    write_together({path: content, path.with_suffix(".json"): (json.dumps(card, indent=2) + "\n").encode()})


def read_card(path: Path) -> dict[str, Any] | None:
    """The card beside a file; None where there is none to read."""
    try:
        card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return card if isinstance(card, dict) else None
