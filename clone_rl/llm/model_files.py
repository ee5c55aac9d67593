"""The files of a model folder: where it lies, what holds its weights, which model it is. Known without loading any of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from clone_rl.errors import BadFileError, BadValueError, UnknownNameError, reason

EMBEDDED = "default"
"""Name of the model that ships with the package."""

PROBE = "probe.safetensors"
"""Name of an exit probe's file, beside the weights."""

_CHUNK = 2**22


def model_folder(name: str | Path) -> Path:
    """The folder of a model by name or path.

    Raises:
        BadValueError: Neither a name nor a path.
        UnknownNameError: No such folder.
        BadFileError: A file, or a path that the system refuses.
    """
    if not isinstance(name, str | Path):
        raise BadValueError(f"model {name!r}", "'default' or the path of a model folder")
    if name == EMBEDDED:
        return Path(str(resources.files("clone_rl.llm") / "embedded"))
    try:
        path = Path(name)
        if name and path.is_dir():
            return path
        if name and path.is_file():
            raise BadFileError(f"{name} is a file, not a model folder", "give the folder that holds it")
    except OSError as error:
        raise BadFileError(f"{name}: {error.strerror}") from None
    raise UnknownNameError("model", str(name), [EMBEDDED], "or give the path of a model folder; nothing is downloaded")


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        BadFileError: Missing, not UTF-8, not JSON, or not an object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadFileError(f"{path.parent} is not a model folder: no {path.name}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadFileError(f"{path} is not JSON: {reason(error)}") from None
    if not isinstance(found, dict):
        raise BadFileError(f"{path} is not a JSON object")
    return found


def _listed(index: Path) -> list[Path]:
    """Shards that an index names, sorted."""
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(name, str) for name in weight_map.values()):
        raise BadFileError(f"{index} has no weight_map", "save the model again")
    shards = sorted(set(weight_map.values()))
    for name in shards:
        if Path(name).name != name or not (index.parent / name).is_file():
            raise BadFileError(f"{index} names {name!r}, which is not in the folder", "copy all of its parts")
    return [index.parent / name for name in shards]


def weight_files(folder: Path, allow_pickle: bool = False) -> list[Path]:
    """Files that hold the weights, in the order in which they are hashed.

    Args:
        folder: The model folder.
        allow_pickle: Accept ``pytorch_model.bin`` where there is no safetensors file.

    Raises:
        BadFileError: There are none, one is missing, or there is only pickle.
    """
    for stem in ("model.safetensors", "pytorch_model.bin") if allow_pickle else ("model.safetensors",):
        if (folder / stem).is_file():
            return [folder / stem]
        if (folder / f"{stem}.index.json").is_file():
            return _listed(folder / f"{stem}.index.json")
    if any(folder.glob("pytorch_model*.bin*")):
        raise BadFileError(
            f"{folder} holds its weights as pickle, which is never loaded unasked",
            "convert it to safetensors",
            "save_pretrained(..., safe_serialization=True) does that; allow_pickle=True reads it where you trust it",
        )
    raise BadFileError(f"{folder} is not a model folder: no model.safetensors", "nor model.safetensors.index.json")


def digest(files: Iterable[Path]) -> str:
    """SHA-256 of the bytes of files, one after the other, whatever they are called; read again only when one changed."""
    stats = ((path, path.stat()) for path in files)
    return _digest(tuple((str(path.resolve()), stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in stats))


@lru_cache(maxsize=16)
def _digest(files: tuple[tuple[str, int, int, int], ...]) -> str:
    found = hashlib.sha256()
    for path, *_ in files:
        with Path(path).open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                found.update(chunk)
    return found.hexdigest()


@dataclass(frozen=True)
class ModelFiles:
    """What the files of a model say before any of them is loaded.

    Attributes:
        name: As it was asked for.
        sha256: Hash of the weights and the probe, as of ``clone_rl.llm.model.LanguageModel``; empty where they cannot be read,
            which loading tells more about.
        probe: Whether there is an exit probe.
    """

    name: str
    sha256: str
    probe: bool

    @classmethod
    def of(cls, name: str | Path) -> ModelFiles:
        """Of the embedded model by name, or of a model folder.

        Raises:
            UnknownNameError: No such model.
            BadFileError: A file instead of a folder, or a path that the system refuses.
        """
        folder = model_folder(name)
        probe = [folder / PROBE] * (folder / PROBE).is_file()
        try:
            sha256 = digest([*weight_files(folder), *probe])
        except (BadFileError, OSError):  # pickled weights, an adapter, files that have gone since
            sha256 = ""
        return cls(str(name), sha256, bool(probe))


def no_probe(model: str) -> BadValueError:
    """What is said where a probe is needed and there is none."""
    return BadValueError(f"{model} has no exit probe", f"fit one with: clone-rl probe --model {model} --text FOLDER")
