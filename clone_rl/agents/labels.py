"""Names that tell controllers apart, where several would be called the same."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from clone_rl.agents.controller import Controller
from clone_rl.agents.lut import LutPolicy
from clone_rl.agents.own import OwnController
from clone_rl.agents.policy import Policy, is_policy_path
from clone_rl.own_code import names_code


def called(controller: Controller, name: str) -> Controller:
    """The same controller under another name; a baseline keeps its own, by which it is known."""
    if controller.name == name or not isinstance(controller, Policy | LutPolicy | OwnController):
        return controller
    return replace(controller, name=name)


def told_apart(controllers: Sequence[Controller], sources: Sequence[str]) -> list[Controller]:
    """Controllers under names that differ: where two would have one, each gets as much of its path as it takes.

    Args:
        controllers: In the order of ``sources``.
        sources: What each was found by: a name, or the path of a file or folder, or code of one's own.

    Returns:
        The same controllers. What differs in nothing, as the same folder twice, keeps one name.
    """
    names = [one.name for one in controllers]
    forms = [[name, *_forms(source)] for name, source in zip(names, sources, strict=True)]
    at = [0] * len(forms)
    while True:
        labels = [form[i] for form, i in zip(forms, at, strict=True)]
        counts = Counter(labels)
        longer = [k for k, label in enumerate(labels) if counts[label] > 1 and at[k] + 1 < len(forms[k])]
        if not longer:
            break
        for k in longer:
            at[k] += 1
    labels = [label if counts[label] == 1 else name for label, name in zip(labels, names, strict=True)]
    return [called(one, label) for one, label in zip(controllers, labels, strict=True)]


def _forms(source: str) -> list[str]:
    """Ever longer names of where a controller comes from; none of what ships."""
    place, rest = source, ""
    if names_code(source):
        place, _, name = source.rpartition(":")
        if not place.endswith(".py"):
            return [source]
        rest = f":{name}"
    elif not is_policy_path(source):
        return []
    path = Path(os.path.abspath(place))  # noqa: PTH100 (links keep their names)
    parts: Sequence[Any] = (path.parent if path.stem == "policy" else path).parts
    return ["/".join(parts[-k:]) + rest for k in range(1, len(parts))]
